//! A temporary folder with a model, and everything that is asked of a model before a weight is read.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use monoquant::finding::Failure;
use monoquant::format::source;
use monoquant::model::{self, ModelFolder};
use monoquant::plan::{self, ExportPlan, Limits, OutputTensor, Plan};
use monoquant::recipe::{self, Overrides};
use monoquant::show;
use tempfile::TempDir;

use super::findings;

/// The header of a model with one layer of most kinds, of 1 MiB: attention, a router and a stack of experts, norms.
pub const SMALL: &[(&str, &str, &[u64])] = &[
    ("model.embed_tokens.weight", "BF16", &[64, 64]),
    ("model.layers.0.input_layernorm.weight", "BF16", &[64]),
    ("model.layers.0.self_attn.q_proj.weight", "BF16", &[64, 64]),
    ("model.layers.0.self_attn.k_proj.weight", "BF16", &[32, 64]),
    ("model.layers.0.self_attn.v_proj.weight", "BF16", &[32, 64]),
    ("model.layers.0.self_attn.o_proj.weight", "F16", &[64, 64]),
    ("model.layers.0.mlp.gate.weight", "BF16", &[4, 64]),
    ("model.layers.0.mlp.experts.gate_up_proj", "BF16", &[4, 96, 64]),
    ("model.layers.0.mlp.experts.down_proj", "BF16", &[4, 64, 48]),
    ("model.layers.1.mlp.up_proj.weight", "F32", &[96, 64]),
    ("model.layers.1.mlp.gate_proj.weight", "F32", &[96, 64]),
    ("model.layers.1.mlp.down_proj.weight", "F32", &[64, 96]),
    ("lm_head.weight", "BF16", &[64, 64]),
];

/// Bytes of data up to which a file is made: it has no data, but what is planned for it takes memory.
const MOST_DATA: u64 = 1 << 17;

/// The recipes that a model is planned with.
const RECIPES: [&str; 2] = [
    "version: 1
stages:
  - {stage: load, model: model}
  - {stage: resolve-skips, skip_layer_types: [Embedding]}
  - {stage: quantize-int4, targets: [Linear, Experts], group_size: 32, indivisible: shrink, siblings: warn}
  - {stage: validate}
  - {stage: export, path: out, target: any, shards: 64KB}
",
    "version: 1
stages:
  - {stage: load, model: model}
  - {stage: quantize-int8, targets: [Linear, Conv1D], granularity: channel, symmetric: false, siblings: ignore}
  - {stage: check-warnings, sqnr_error_threshold: 3, sqnr_warning_threshold: 5}
  - {stage: export, path: out, target: transformers}
  - {stage: export, path: plain, format: dequantized}
",
];

/// The text of a header with these tensors, and the bytes of its data.
pub fn header(tensors: &[(&str, &str, &[u64])]) -> (String, u64) {
    let (mut map, mut end) = (serde_json::Map::new(), 0);
    for (name, dtype, shape) in tensors {
        let element = if *dtype == "F32" { 4 } else { 2 };
        let start = end;
        end += shape.iter().product::<u64>() * element;
        let entry = serde_json::json!({"dtype": dtype, "shape": shape, "data_offsets": [start, end]});
        map.insert((*name).to_owned(), entry);
    }
    (serde_json::Value::Object(map).to_string(), end)
}

/// Writes a weight file: a header, and data of zeros.
pub fn write_weights(path: &Path, header: &str, data: u64) {
    let mut file = File::create(path).expect("a file");
    file.write_all(&(header.len() as u64).to_le_bytes()).expect("a length");
    file.write_all(header.as_bytes()).expect("a header");
    file.set_len(8 + header.len() as u64 + data).expect("a length");
}

/// A temporary folder with the folder `model`.
pub struct Folder(TempDir);

impl Folder {
    /// With a small model.
    pub fn new() -> Self {
        let folder = Self::empty();
        let (header, data) = header(SMALL);
        write_weights(&folder.path("model/model.safetensors"), &header, data);
        folder.write(
            "model/config.json",
            br#"{"model_type": "qwen3_moe", "hidden_size": 64, "num_experts": 4}"#,
        );
        folder
    }

    /// Without one.
    pub fn empty() -> Self {
        let folder = Self(tempfile::tempdir().expect("a temporary folder"));
        fs::create_dir(folder.path("model")).expect("a folder");
        folder
    }

    pub fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }

    pub fn write(&self, name: &str, bytes: &[u8]) {
        fs::write(self.path(name), bytes).expect("a file in the folder");
    }

    /// Looks at the model as `inspect` does and plans it with each recipe.
    pub fn check_model(&self) {
        let source = source::folder::open(&self.path("model"), &[]);
        match source.and_then(model::look) {
            Ok(found) => check_folder(&found),
            Err(failure) => findings::check_failure(&failure),
        }
        for recipe in RECIPES {
            if let Ok(plan) = self.plan(recipe) {
                check_plan(&plan);
            }
        }
    }

    /// Plans a recipe.
    pub fn plan(&self, recipe: &str) -> Result<Plan, Failure> {
        let env = |_: &str| None;
        let loaded = recipe::from_text("recipe.yaml", recipe, self.0.path(), &Overrides::default(), &env);
        let planned = plan::plan(loaded.expect("a good recipe"), limits());
        if let Err(failure) = &planned {
            findings::check_failure(failure);
        }
        planned
    }
}

/// One thread.
pub fn limits() -> Limits {
    Limits { threads: Some(1), memory: None }
}

/// Whether so much data may be planned.
pub fn is_small(data: u64) -> bool {
    data <= MOST_DATA
}

/// All that `inspect` asks of a model.
fn check_folder(folder: &ModelFolder) {
    findings::check(&folder.warnings);
    let layers = model::layers(folder);
    findings::check(&layers.classified.warnings);
    assert_eq!(layers.classified.classes.len(), folder.tensors.len());
    assert!(folder.tensor_bytes() <= folder.shards.iter().map(|shard| shard.len).sum());
    for (index, tensor) in folder.tensors.numbered() {
        assert_eq!(folder.find(&tensor.name), Some(index));
        let shard = &folder.shards[tensor.shard];
        assert!(shard.data_start <= tensor.offset && tensor.offset + tensor.bytes <= shard.len);
        if let Ok(stack) = model::experts::stack(folder, index) {
            let element = tensor.stored.bytes().unwrap_or(1);
            for matrix in &stack.matrices {
                assert!(matrix.view.end(element).is_some_and(|end| end <= tensor.bytes), "{matrix:?}");
            }
        }
    }
}

/// What a plan promises: every output tensor lies in its file, and none upon another.
pub fn check_plan(plan: &Plan) {
    findings::check(&plan.warnings);
    assert!(!show::plan::text(plan).is_empty());
    let json = show::plan::json(plan)
        .map(serde_json::to_value)
        .expect("its recipe is JSON")
        .expect("a plan is JSON");
    assert!(json.is_object());
    if let Some(tensor) = plan.model.tensors.first() {
        let draft = plan::draft(plan.loaded.clone()).expect("what could be planned has a draft");
        plan::explain(&draft, &tensor.name).expect("the model has the tensor");
    }
    for export in &plan.exports {
        check_layout(plan, export);
        let config = export.config.as_ref();
        let written = config.map(|text| serde_json::from_str::<serde_json::Value>(text).is_ok());
        assert_ne!(written, Some(false), "config.json is no JSON");
    }
}

fn check_layout(plan: &Plan, export: &ExportPlan) {
    let bytes = |tensor: &OutputTensor| tensor.bytes(plan.content());
    let mut tensors: Vec<_> = export.tensors.iter().filter(|tensor| bytes(tensor) > 0).collect();
    tensors.sort_by_key(|tensor| (tensor.file(), tensor.offset));
    for pair in tensors.windows(2).filter(|pair| pair[0].file() == pair[1].file()) {
        assert!(pair[0].offset + bytes(pair[0]) <= pair[1].offset, "{pair:?}");
    }
    for tensor in tensors {
        let file = &export.files[tensor.file()];
        assert!(file.header_len <= tensor.offset && tensor.offset + bytes(tensor) <= file.bytes);
    }
    for (index, file) in export.files.numbered() {
        let mut header = Vec::new();
        export.write_header(plan.content(), index, &mut header).expect("memory takes it");
        assert_eq!(header.len() as u64, file.header_len);
    }
    for file in &export.files {
        let parts = file.name.split('/');
        assert!(parts.clone().all(|part| !part.is_empty() && part != ".."), "{}", file.name);
    }
}
