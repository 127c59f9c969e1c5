//! Models without weights: folders written from the distilled headers in `tests/fixtures/headers`.
//!
//! The files have a real header and their full length, but no data: what is not written reads as zeros and
//! takes no space. That is all a plan needs. `tests/interop/distill_headers.py` makes the fixtures.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use tempfile::TempDir;

/// The headers of one model and the truth about its layers.
pub struct Fixture {
    pub config: Value,
    pub shards: Vec<(String, Vec<FixtureTensor>)>,
}

/// One tensor of a fixture.
pub struct FixtureTensor {
    pub name: String,
    pub dtype: String,
    pub shape: Vec<u64>,
    /// The class of the module that holds it in transformers; `?` if that is not known.
    pub class: String,
}

/// Names of all fixtures, ordered.
pub fn names() -> Vec<String> {
    let entries = fs::read_dir(folder()).expect("the fixtures are there");
    let mut names: Vec<String> = entries
        .filter_map(|entry| Some(entry.ok()?.file_name().to_str()?.strip_suffix(".json")?.to_owned()))
        .collect();
    names.sort();
    names
}

/// Writes the fixture `name` into a temporary folder, which is removed when the value is dropped.
pub fn model(name: &str) -> TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    Fixture::load(name).write(folder.path());
    folder
}

impl Fixture {
    /// Reads the fixture `name`.
    pub fn load(name: &str) -> Self {
        let text = fs::read_to_string(folder().join(format!("{name}.json"))).expect("a fixture of this name");
        let mut data: Value = serde_json::from_str(&text).expect("a fixture is JSON");
        let shards = data["shards"].as_object().expect("shards by file name");
        let shards = shards.iter().map(|(file, tensors)| {
            let tensors = tensors.as_object().expect("tensors by name");
            (file.clone(), tensors.iter().map(|(name, text)| FixtureTensor::parse(name, text)).collect())
        });
        let shards = shards.collect();
        Self { config: data["config"].take(), shards }
    }

    /// All tensors.
    pub fn tensors(&self) -> impl Iterator<Item = &FixtureTensor> {
        self.shards.iter().flat_map(|(_, tensors)| tensors)
    }

    /// Writes the model into a folder: `config.json`, the weight files, and their index.
    pub fn write(&self, folder: &Path) {
        let put = |name: &str, value: &Value| {
            let text = serde_json::to_string_pretty(value).expect("JSON can be written");
            fs::write(folder.join(name), text).expect("a file in a temporary folder");
        };
        put("config.json", &self.config);
        let mut weight_map = Map::new();
        let mut total = 0;
        for (file, tensors) in &self.shards {
            total += write_sparse(&folder.join(file), tensors);
            weight_map.extend(tensors.iter().map(|tensor| (tensor.name.clone(), json!(file))));
        }
        if self.shards.len() > 1 {
            let index = json!({"metadata": {"total_size": total}, "weight_map": weight_map});
            put("model.safetensors.index.json", &index);
        }
    }
}

impl FixtureTensor {
    /// Reads `BF16 [512,256] Linear`; the class may be missing.
    pub fn parse(name: &str, text: &Value) -> Self {
        let mut words = text.as_str().expect("dtype, shape and class").split(' ');
        let mut word = || words.next().expect("dtype and shape").to_owned();
        let (dtype, shape) = (word(), word());
        let class = words.next().unwrap_or("?").to_owned();
        let shape = serde_json::from_str(&shape).expect("a shape is a list");
        Self { name: name.to_owned(), dtype, shape, class }
    }

    fn bytes(&self) -> u64 {
        let element = match self.dtype.as_str() {
            "F64" | "I64" | "U64" => 8,
            "F32" | "I32" | "U32" => 4,
            "BF16" | "F16" | "I16" | "U16" => 2,
            _ => 1,
        };
        self.shape.iter().product::<u64>() * element
    }
}

/// Writes the header and sets the length; gives the bytes of the data.
pub fn write_sparse(path: &Path, tensors: &[FixtureTensor]) -> u64 {
    let mut header = Map::new();
    header.insert("__metadata__".to_owned(), json!({"format": "pt"}));
    let mut end = 0;
    for tensor in tensors {
        let start = end;
        end += tensor.bytes();
        let entry = json!({"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [start, end]});
        header.insert(tensor.name.clone(), entry);
    }
    let mut text = serde_json::to_vec(&header).expect("JSON can be written");
    text.resize(text.len().next_multiple_of(8), b' ');
    let length = text.len() as u64;
    let mut file = File::create(path).expect("a file in a temporary folder");
    file.write_all(&length.to_le_bytes())
        .and_then(|()| file.write_all(&text))
        .expect("a header can be written");
    file.set_len(8 + length + end).expect("a file can have a length");
    end
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/headers")
}
