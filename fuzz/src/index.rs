//! `model.safetensors.index.json`: from a model that somebody uploaded.

use std::path::{Component, Path};

use monoquant::model;

use super::folder::{Folder, SMALL, header, write_weights};
use super::{Target, findings};

/// The text of an index. The files that it names lie below the model's folder; it is read beside two weight files.
pub struct Index(Folder);

impl Target for Index {
    fn new() -> Self {
        let folder = Folder::empty();
        let (first, second) = SMALL.split_at(SMALL.len() / 2);
        for (name, tensors) in [("a.safetensors", first), ("b.safetensors", second)] {
            let (header, data) = header(tensors);
            write_weights(&folder.path("model").join(name), &header, data);
        }
        folder.write(
            "model/config.json",
            br#"{"model_type": "qwen3_moe", "hidden_size": 64, "num_experts": 4}"#,
        );
        Self(folder)
    }

    fn try_on(&self, input: &[u8]) {
        match model::Index::parse(input, "model.safetensors.index.json") {
            Ok(index) => {
                let files = index.files();
                assert!(files.windows(2).all(|pair| pair[0] < pair[1]), "{files:?}");
                for file in &files {
                    let mut parts = Path::new(file).components();
                    assert!(
                        !file.is_empty() && parts.all(|part| matches!(part, Component::Normal(_))),
                        "{file}"
                    );
                }
                assert!(index.iter().all(|(_, file)| files.contains(&file)));
            }
            Err(problems) => {
                assert!(!problems.is_empty());
                findings::check(&problems);
            }
        }
        self.0.write("model/model.safetensors.index.json", input);
        self.0.check_model();
    }
}
