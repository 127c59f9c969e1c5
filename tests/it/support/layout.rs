//! Folders as people have them, written from the descriptions in `tests/fixtures/layouts`.
//!
//! A description is JSON: `about` says what it stands for, `files` what each file is by its path:
//!
//! - `{"tensors": {"model.layers.{0,1}.mlp.up_proj.weight": "BF16 [512,256]"}}`: a weight file with a real header and no data;
//!   braces stand for each of their words,
//! - `{"json": …}`, `{"text": "…"}`: that content,
//! - `{"bytes": 500}`: that many zeros, `{"bytes": 500, "text": "PK"}` with this before them,
//! - `{"link": "../x"}`: a link.
//!
//! `model` is the folder that a recipe names (the whole if it is missing), `recipes` the stages of recipes by a title (one
//! short recipe if it is missing).

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use tempfile::TempDir;

use super::headers::{FixtureTensor, write_sparse};

/// The description of a folder.
pub struct Layout {
    /// What it stands for.
    pub about: String,
    files: Map<String, Value>,
    model: String,
    recipes: Map<String, Value>,
}

/// Names of all descriptions, ordered.
pub fn names() -> Vec<String> {
    let entries = fs::read_dir(folder()).expect("the descriptions are there");
    let mut names: Vec<String> = entries
        .filter_map(|entry| Some(entry.ok()?.file_name().to_str()?.strip_suffix(".json")?.to_owned()))
        .collect();
    names.sort();
    names
}

/// Where the descriptions are, and beside each what was found.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/layouts")
}

impl Layout {
    /// Reads the description `name`.
    pub fn load(name: &str) -> Self {
        let text = fs::read_to_string(folder().join(format!("{name}.json"))).expect("a description");
        let mut data: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
        let mut object = |key: &str| match data[key].take() {
            Value::Object(object) => object,
            _ => Map::new(),
        };
        let (files, recipes) = (object("files"), object("recipes"));
        let text = |key: &str| data[key].as_str().unwrap_or_default().to_owned();
        Self { about: text("about"), model: text("model"), files, recipes }
    }

    /// Writes the folder into a temporary one, which is removed when the value is dropped.
    pub fn write(&self) -> Written {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for (path, file) in &self.files {
            write_file(&folder.path().join(path), file);
        }
        let model =
            if self.model.is_empty() { folder.path().to_owned() } else { folder.path().join(&self.model) };
        Written { folder, model }
    }

    /// Recipes by title, as YAML.
    pub fn recipes(&self) -> Vec<(String, String)> {
        let whole = |stages: &Value| json!({"version": 1, "name": "any-model", "stages": stages}).to_string();
        if self.recipes.is_empty() {
            let stages = json!([
                {"stage": "load", "model": "model"},
                {"stage": "quantize-int4", "group_size": 32},
                {"stage": "export", "path": "out"},
            ]);
            return vec![(String::new(), whole(&stages))];
        }
        self.recipes.iter().map(|(title, stages)| (title.clone(), whole(stages))).collect()
    }
}

/// A folder on disk.
pub struct Written {
    folder: TempDir,
    model: PathBuf,
}

impl Written {
    /// The folder that recipes name.
    pub fn model(&self) -> &Path {
        &self.model
    }

    /// The whole folder.
    pub fn root(&self) -> &Path {
        self.folder.path()
    }
}

fn write_file(path: &Path, file: &Value) {
    fs::create_dir_all(path.parent().expect("a path below the folder")).expect("a folder");
    if let Some(tensors) = file["tensors"].as_object() {
        let tensors: Vec<FixtureTensor> = tensors
            .iter()
            .flat_map(|(name, text)| expand(name).into_iter().map(|name| FixtureTensor::parse(&name, text)))
            .collect();
        write_sparse(path, &tensors);
    } else if let Some(target) = file["link"].as_str() {
        super::symlink(target, path);
    } else if !file["json"].is_null() {
        fs::write(path, serde_json::to_string_pretty(&file["json"]).expect("JSON")).expect("a file");
    } else {
        fs::write(path, file["text"].as_str().unwrap_or_default()).expect("a file");
        if let Some(bytes) = file["bytes"].as_u64() {
            File::options().write(true).open(path).and_then(|file| file.set_len(bytes)).expect("a length");
        }
    }
}

/// `a.{0,1}.b` as `a.0.b` and `a.1.b`.
fn expand(name: &str) -> Vec<String> {
    let Some((before, rest)) = name.split_once('{') else { return vec![name.to_owned()] };
    let (words, after) = rest.split_once('}').expect("a brace that closes");
    words.split(',').flat_map(|word| expand(&format!("{before}{word}{after}"))).collect()
}
