//! The same bytes whatever the number of threads and the instruction set: every file of the output, the report included.

use std::collections::BTreeMap;

use monoquant::quant::Isa;

use crate::support::{Model, Workspace, files};

/// One recipe a scheme: names and stages.
const SCHEMES: [(&str, &str); 9] = [
    ("int4", "  - stage: quantize-int4\n"),
    ("int4-asymmetric", "  - stage: quantize-int4\n    symmetric: false\n    group_size: 32\n"),
    ("int4-channel", "  - stage: quantize-int4\n    granularity: channel\n"),
    ("int4-tensor", "  - stage: quantize-int4\n    granularity: tensor\n    symmetric: false\n"),
    ("int4-mse", "  - stage: quantize-int4\n    observer: mse\n"),
    ("int8", "  - stage: quantize-int8\n"),
    ("int8-asymmetric", "  - stage: quantize-int8\n    symmetric: false\n"),
    ("int8-percentile", "  - stage: quantize-int8\n    granularity: tensor\n    observer: percentile\n"),
    ("int8-dynamic", "  - stage: quantize-int8\n    activations: dynamic-token\n"),
];

/// Two megabytes a matrix, so that the larger ones are several tiles.
fn model() -> Model {
    let mut model = Model::sized(128, 256);
    model.add("model.layers.0.mlp.down_proj.weight", &[1024, 1536]);
    model.add("lm_head.weight", &[4096, 512]);
    model
}

#[test]
fn threads_and_instruction_sets_change_no_byte() {
    let workspace = Workspace::with(&model());
    let instruction_sets = Isa::available();
    for (name, stage) in SCHEMES {
        let stages = format!(
            "{stage}  - stage: validate\n  - stage: check-warnings\n    sqnr_warning_threshold: 1\n    sqnr_error_threshold: 0\n"
        );
        workspace.recipe(&stages);
        let mut first: Option<BTreeMap<String, Vec<u8>>> = None;
        let runs = [("1", 0), ("2", 0), ("7", 0)]
            .into_iter()
            .chain((1..instruction_sets.len()).map(|isa| ("2", isa)));
        for (threads, isa) in runs {
            let isa = instruction_sets[isa].name();
            let output = workspace
                .command(["run", "recipe.yaml", "-q", "--threads", threads])
                .env("MONOQUANT_ISA", isa)
                .output()
                .expect("the binary runs");
            assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
            let found = files(&workspace.path("out"));
            let Some(first) = &first else {
                first = Some(found);
                continue;
            };
            assert_eq!(first.keys().collect::<Vec<_>>(), found.keys().collect::<Vec<_>>());
            for (file, bytes) in &found {
                assert!(first[file] == *bytes, "{name}: {file} differs with {threads} threads and {isa}");
            }
        }
    }
}
