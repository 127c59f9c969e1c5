//! Layer types against the real module classes of transformers, for every tensor of 40 small models.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::Path;

use monoquant::format::source;
use monoquant::layer::LayerType;
use monoquant::model::{self, Classified, ExpertPart, ModelFolder};

use crate::support::headers::{self, Fixture, FixtureTensor};

fn open(name: &str) -> (ModelFolder, Classified) {
    let folder = headers::model(name);
    let opened = source::folder::open(folder.path(), &[]).and_then(|source| model::open(source, &[], &[]));
    let opened = opened.unwrap_or_else(|e| panic!("{name}: {e}"));
    let classified = model::classify(&opened);
    (opened, classified)
}

/// The kind that a module class stands for.
fn kind_of_class(tensor: &FixtureTensor) -> LayerType {
    let class = tensor.class.as_str();
    let is_weight = tensor.name.ends_with(".weight");
    let axes = tensor.shape.len();
    match class {
        // The experts' module holds a stack, whether the file has one tensor or one an expert.
        _ if class.ends_with("Experts") && axes == 3 => LayerType::Experts,
        _ if class.ends_with("Experts") && axes == 2 && is_weight => LayerType::Linear,
        _ if !is_weight => LayerType::Other,
        "Linear" | "NonDynamicallyQuantizableLinear" | "DeepseekV4GroupedLinear" if axes == 2 => {
            LayerType::Linear
        }
        "Conv1D" if axes == 2 => LayerType::Conv1D,
        "Conv1d" | "Gemma4AudioCausalConv1d" => LayerType::Conv1d,
        "Conv2d" => LayerType::Conv2d,
        "Conv3d" => LayerType::Conv3d,
        "LayerNorm" => LayerType::LayerNorm,
        _ if class.contains("RMSNorm") => LayerType::RMSNorm,
        _ if class.ends_with("Embedding") => LayerType::Embedding,
        _ if class.to_lowercase().ends_with("router") => LayerType::Router,
        _ => LayerType::Other,
    }
}

/// What no file can show, and why: the kind found instead of that of the module class, where they may differ.
fn exception(tensor: &FixtureTensor, fixture: &Fixture) -> Option<LayerType> {
    // Routing layers that their families build as a plain `nn.Linear`: Gemma 4's, and the gate of a shared
    // expert.
    let is_router =
        tensor.name.ends_with(".router.proj.weight") || tensor.name.ends_with(".shared_expert_gate.weight");
    // A layer norm without a bias has the tensors of an RMS norm: those of Gemma 4's audio convolutions.
    let bias = tensor.name.replace(".weight", ".bias");
    let is_bare_norm = tensor.class == "LayerNorm" && !fixture.tensors().any(|t| t.name == bias);
    match tensor.class.as_str() {
        "Linear" if is_router => Some(LayerType::Router),
        "LayerNorm" if is_bare_norm => Some(LayerType::RMSNorm),
        _ => None,
    }
}

#[test]
fn kinds_are_those_of_the_module_classes() {
    let (mut wrong, mut exceptions, mut checked) = (String::new(), 0, 0);
    for name in headers::names() {
        let fixture = Fixture::load(&name);
        let (folder, classified) = open(&name);
        assert_eq!(folder.tensors.len(), fixture.tensors().count(), "{name}");
        for tensor in fixture.tensors() {
            let class = classified.classes[folder.find(&tensor.name).unwrap()];
            let exception = exception(tensor, &fixture);
            let expected = exception.unwrap_or_else(|| kind_of_class(tensor));
            exceptions += u32::from(exception.is_some());
            checked += 1;
            if class.kind != expected {
                let FixtureTensor { name: tensor, dtype, shape, class: truth } = tensor;
                writeln!(
                    wrong,
                    "{name}: {tensor} {dtype} {shape:?} of {truth} is {expected:?}, not {class:?}"
                )
                .unwrap();
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    assert_eq!((checked, exceptions), (2572, 18));
}

#[test]
fn no_small_model_is_doubtful() {
    let names = headers::names();
    assert_eq!(names.len(), 40);
    for name in names {
        let (folder, classified) = open(&name);
        assert!(folder.warnings.is_empty() && classified.warnings.is_empty(), "{name}");
    }
}

/// Roles, model by model: for each role and kind the modules that have it, layer and expert numbers as `N`.
fn roles_text() -> String {
    let mut text = String::new();
    for name in headers::names() {
        let (folder, classified) = open(&name);
        let mut lines: BTreeMap<(LayerType, &str, String), u32> = BTreeMap::new();
        for (tensor, class) in folder.tensors.iter().zip(&classified.classes) {
            assert_eq!(class.role.is_some(), class.role_rule.is_some());
            let Some(role) = class.role else { continue };
            // Of a tower or an extra layer the segment tells all; of a kind only what can be quantized
            // matters.
            let module: Vec<&str> = tensor.module().split('.').map(numbered).collect();
            let module = match role {
                LayerType::Tower | LayerType::Projector | LayerType::MTP => brief(&module),
                _ => module.join("."),
            };
            *lines.entry((role, class.kind.name(), module)).or_default() += 1;
        }
        writeln!(text, "{name}").unwrap();
        for ((role, kind, module), count) in lines {
            writeln!(text, "  {:<15} {kind:<9} {count:>3}  {module}", role.name()).unwrap();
        }
    }
    text
}

fn numbered(segment: &str) -> &str {
    match segment {
        "" => "-",
        _ if segment.bytes().all(|b| b.is_ascii_digit()) => "N",
        _ => segment,
    }
}

fn brief(module: &[&str]) -> String {
    let start = module.iter().position(|s| !matches!(*s, "model" | "language_model")).unwrap_or(0);
    format!("{}.…", module[..module.len().min(start + 1)].join("."))
}

#[test]
fn roles_are_as_reviewed() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/roles.txt");
    let found = roles_text();
    if std::env::var_os("MONOQUANT_UPDATE").is_some() {
        fs::write(&path, &found).unwrap();
    }
    let reviewed = fs::read_to_string(&path).unwrap_or_default();
    for (line, (found, reviewed)) in found.lines().zip(reviewed.lines()).enumerate() {
        assert_eq!(found, reviewed, "line {} of {}", line + 1, path.display());
    }
    assert_eq!(found.lines().count(), reviewed.lines().count(), "MONOQUANT_UPDATE=1 writes the file anew");
}

#[test]
fn a_dense_decoder_has_a_head_and_no_other_role() {
    for name in ["llama", "mistral", "qwen2", "qwen3", "phi3", "mixtral"] {
        let (folder, classified) = open(name);
        for (tensor, class) in folder.tensors.iter().zip(&classified.classes) {
            let expected = (tensor.name == "lm_head.weight").then_some(LayerType::Head);
            assert_eq!(class.role, expected, "{name}: {}", tensor.name);
        }
    }
}

#[test]
fn models_of_one_modality_have_no_towers() {
    for name in ["whisper", "bert", "gpt2", "opt"] {
        let (_, classified) = open(name);
        assert!(!classified.classes.iter().any(|c| c.role == Some(LayerType::Tower)), "{name}");
    }
}

#[test]
fn stacks_are_split_as_their_family_stores_them() {
    // Family, stored as [E, in, out], interleaved.
    let families = [
        ("qwen3-5-moe", false, false),
        ("qwen3-6-moe", false, false),
        ("qwen3-vl-moe", true, false),
        ("gemma4-moe", false, false),
        ("llama4", true, false),
        ("gpt-oss", true, true),
        ("granite-moe-hybrid", false, false),
    ];
    for (name, is_transposed, is_interleaved) in families {
        let (folder, classified) = open(name);
        let hidden = folder.config.hidden_size().unwrap();
        let stacks = folder.tensors.ids().filter(|&i| classified.classes[i].kind == LayerType::Experts);
        let mut count = 0;
        for i in stacks {
            let stack = model::experts::stack(&folder, i).unwrap();
            let tensor = &folder.tensors[i];
            assert_eq!(stack.is_transposed, is_transposed, "{name}: {}", tensor.name);
            assert_eq!(
                stack.is_interleaved,
                is_interleaved && stack.part == ExpertPart::GateUp,
                "{}",
                tensor.name
            );
            assert_eq!(stack.note, None, "{name}: {}", tensor.name);
            let elements: u64 = stack.matrices.iter().map(|m| m.view.rows * m.view.cols).sum();
            assert_eq!(elements, tensor.elements(), "{name}: {}", tensor.name);
            for matrix in &stack.matrices {
                let (rows, cols) = (matrix.view.rows, matrix.view.cols);
                let outside = if stack.part == ExpertPart::Down { rows } else { cols };
                assert_eq!(outside, hidden, "{name}: {}", matrix.module);
                assert!(matrix.view.end(2).unwrap() <= tensor.bytes, "{}", matrix.module);
                assert!(matrix.module.contains(&format!(".experts.{}.", matrix.expert)), "{}", matrix.module);
            }
            count += 1;
        }
        assert!(count > 0, "{name} has stacks");
    }
}
