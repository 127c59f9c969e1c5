//! Tensors much larger than a tile: memory does not grow with them, and neither do results depend on the cuts.

#[cfg(target_os = "linux")]
use std::fs;

use monoquant::quant::{FloatType, Isa, Quantized, Quantizer, Scratch};

use crate::support::{Model, Workspace, gaussian, report, tensors};
#[cfg(target_os = "linux")]
use crate::support::{
    headers::{FixtureTensor, write_sparse},
    statistics::safetensors,
};

/// A matrix of 40 tiles and a remainder.
const ROWS: usize = 10_007;
const COLUMNS: usize = 2048;

/// A model whose one matrix is a stretch of Gaussian weights, over and over.
fn large() -> Model {
    let stretch = gaussian("a stretch", 1 << 16);
    let values: Vec<f32> = stretch.iter().copied().cycle().take(ROWS * COLUMNS).collect();
    let mut model = Model::llama();
    model.add_values("model.layers.0.mlp.down_proj.weight", &[ROWS, COLUMNS], &values);
    model.in_shards(1)
}

#[test]
fn a_tensor_of_many_tiles_is_quantized_as_if_it_were_one() {
    let workspace = Workspace::with(&large());
    for stage in [
        "  - stage: quantize-int4\n    symmetric: false\n",
        "  - stage: quantize-int4\n    granularity: tensor\n",
        "  - stage: quantize-int8\n    observer: mse\n",
    ] {
        let recipe = workspace.recipe(&format!("{stage}  - stage: validate\n"));
        let plan = workspace.plan(&recipe).expect("a plan");
        assert!(plan.budget.tile_bytes < (2 * ROWS * COLUMNS / 30) as u64, "{}", plan.budget.tile_bytes);
        workspace.run(&recipe).exits(0);
        let (source, written) = (tensors(&workspace.path("model")), tensors(&workspace.path("out")));
        let module = "model.layers.0.mlp.down_proj";
        let weights = &source[&format!("{module}.weight")].bytes;
        let index = plan.model.find(&format!("{module}.weight")).expect("the tensor");
        let spec = plan.decisions[index].spec().expect("it is quantized");

        // The whole tensor in one step.
        let quantizer = Quantizer::new(spec.scheme, spec.observer, FloatType::Bf16, COLUMNS, Isa::detect());
        let params = (quantizer.survey_passes() > 0).then(|| {
            let mut survey = quantizer.begin_survey();
            for _ in 0..quantizer.survey_passes() {
                survey.merge(quantizer.survey(&survey, weights, ROWS).expect("weights are finite"));
                quantizer.end_pass(&mut survey);
            }
            quantizer.tensor_params(&survey).expect("the scale is finite")
        });
        let (mut whole, mut scratch) = (Quantized::default(), Scratch::default());
        quantizer
            .quantize(params.as_ref(), weights, ROWS, &mut whole, &mut scratch)
            .expect("weights are finite");
        assert!(written[&format!("{module}.weight_packed")].bytes == whole.codes, "{stage}");
        assert!(written[&format!("{module}.weight_scale")].bytes == whole.scales, "{stage}");
        let zero_points =
            written.get(&format!("{module}.weight_zero_point")).map_or(&[][..], |tensor| &tensor.bytes);
        assert!(zero_points == whole.zero_points, "{stage}");

        // Sums over tiles are those over the whole but for the order of summation.
        let distortion = quantizer.measure(weights, whole.view(), ROWS, &mut scratch);
        let report = report(&workspace.path("out"));
        let tensor = report
            .tensors
            .iter()
            .find(|tensor| tensor.name == format!("{module}.weight"))
            .expect("the tensor");
        let metrics = tensor.metrics.as_ref().expect("it was measured");
        let (found, expected) = (metrics.sqnr_db.expect("a number"), distortion.sqnr_db().expect("a number"));
        assert!((found - expected).abs() < 1e-9, "{stage}: {found} {expected}");
        assert_eq!(metrics.max_abs_error, f64::from(distortion.max_abs_error), "{stage}");
        let at = distortion.max_abs_error_at;
        assert_eq!(metrics.max_abs_error_at, [at.0 as u64, at.1 as u64], "{stage}");
    }
}

/// The largest resident set that the binary has with these arguments, in KiB.
#[cfg(target_os = "linux")]
fn peak_of(workspace: &Workspace, args: &[&str]) -> u64 {
    let mut command = workspace.command(args);
    let child = command.stderr(std::process::Stdio::null()).stdout(std::process::Stdio::null()).spawn();
    let mut child = child.expect("the binary runs");
    let status_file = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    // The mark only grows, so the last reading before the end is what counts.
    loop {
        let text = fs::read_to_string(&status_file).unwrap_or_default();
        let found = text
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse().ok());
        peak = found.unwrap_or(0_u64).max(peak);
        if let Some(status) = child.try_wait().expect("a child") {
            assert!(status.success(), "{args:?}");
            return peak;
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
}

#[cfg(target_os = "linux")]
#[test]
fn memory_stays_below_its_bound_whatever_the_size_of_the_tensor() {
    let workspace = Workspace::new();
    fs::create_dir(workspace.path("model")).expect("a folder");
    workspace.write("model/config.json", r#"{"model_type": "llama"}"#);
    // 512 MiB in one tensor, of zeros that take no disk.
    let tensor = FixtureTensor {
        name: "model.layers.0.mlp.down_proj.weight".to_owned(),
        dtype: "BF16".to_owned(),
        shape: vec![32768, 8192],
        class: "Linear".to_owned(),
    };
    write_sparse(&workspace.path("model/model.safetensors"), &[tensor]);
    workspace.recipe("  - stage: quantize-int4\n  - stage: validate\n");
    for (memory, bound) in [("40MiB", 40 << 20), ("128MiB", 128 << 20)] {
        let args = ["run", "recipe.yaml", "-q", "--threads", "8", "--memory", memory];
        let plan =
            workspace.monoquant(["plan", "recipe.yaml", "--json", "--threads", "8", "--memory", memory]);
        let planned = plan.exits(0).json()["memory_bound"].as_u64().expect("a bound");
        assert!(planned <= bound, "{planned} of {bound}");
        let peak = peak_of(&workspace, &args) * 1024;
        assert!(peak > 0 && peak <= planned, "{memory}: {peak} bytes, planned {planned}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn statistics_count_towards_the_memory_bound() {
    const COLUMNS: usize = 1 << 20;
    let workspace = Workspace::new();
    fs::create_dir(workspace.path("model")).expect("a folder");
    workspace.write("model/config.json", r#"{"model_type": "llama"}"#);
    let module = "model.layers.0.mlp.down_proj";
    let tensor = FixtureTensor {
        name: format!("{module}.weight"),
        dtype: "BF16".to_owned(),
        shape: vec![32, COLUMNS as u64],
        class: "Linear".to_owned(),
    };
    write_sparse(&workspace.path("model/model.safetensors"), &[tensor]);
    let sums: Vec<f32> = (0..COLUMNS).map(|column| (1 + column % 7) as f32).collect();
    workspace.write("stats", safetensors(&[(module, &[COLUMNS], &sums, &[100])], Some(100)));
    let bound = |calibration: &str| {
        workspace.recipe(&format!(
            "  - stage: quantize-int4\n    observer: mse\n{calibration}  - stage: validate\n"
        ));
        let plan = workspace.monoquant(["plan", "recipe.yaml", "--json", "--threads", "1"]);
        plan.exits(0).json()["memory_bound"].as_u64().expect("a bound")
    };
    let (without, with) = (bound(""), bound("    calibration: {file: stats}\n"));
    // The file, its sums, and the importance of the columns.
    assert!(with - without >= 3 * 4 * COLUMNS as u64, "{without} {with}");
    let peak = peak_of(&workspace, &["run", "recipe.yaml", "-q", "--threads", "1"]) * 1024;
    assert!(peak > 0 && peak <= with, "{peak} bytes, planned {with}");
}
