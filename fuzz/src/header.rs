//! The header of a weight file: from a model that somebody uploaded.

use monoquant::model::header::{self, Header as Found};

use super::folder::{Folder, is_small, write_weights};
use super::{Target, findings};

/// A whole file, and the JSON of a header whose file is as long as it says. Tensors of an accepted header lie in the file without
/// hole or overlap; a model of it is looked at and planned. Its `config.json` is the metadata key `config`.
pub struct Header(Folder);

impl Target for Header {
    fn new() -> Self {
        Self(Folder::empty())
    }

    fn try_on(&self, input: &[u8]) {
        check(header::read(input, input.len() as u64, "model.safetensors"), input.len() as u64);
        let data = promised(input);
        let start = 8 + input.len() as u64;
        let Some(len) = start.checked_add(data) else { return };
        let Some(found) = check(header::parse(input, start, len, "model.safetensors"), len) else { return };
        let Ok(text) = str::from_utf8(input) else { return };
        if is_small(data) {
            write_weights(&self.0.path("model/model.safetensors"), text, data);
            let config = found.metadata.get("config").map_or("{}", String::as_str);
            self.0.write("model/config.json", config.as_bytes());
            self.0.check_model();
        }
    }
}

/// The end of the last tensor.
fn promised(text: &[u8]) -> u64 {
    let value: serde_json::Value = serde_json::from_slice(text).unwrap_or_default();
    let entries = value.as_object().into_iter().flat_map(|map| map.values());
    entries.filter_map(|entry| entry["data_offsets"][1].as_u64()).max().unwrap_or(0)
}

fn check(read: Result<Found, Vec<monoquant::finding::Finding>>, len: u64) -> Option<Found> {
    let found = match read {
        Ok(found) => found,
        Err(problems) => {
            assert!(!problems.is_empty());
            findings::check(&problems);
            return None;
        }
    };
    let (mut end, mut names) = (found.data_start, std::collections::HashSet::new());
    for tensor in found.tensors() {
        assert_eq!(tensor.offset, end, "{tensor:?}");
        end += tensor.bytes;
        let elements = tensor.shape.iter().try_fold(1_u64, |all, &axis| all.checked_mul(axis));
        let bits = elements.and_then(|elements| elements.checked_mul(tensor.dtype.bits()));
        assert_eq!(bits, tensor.bytes.checked_mul(8), "{tensor:?}");
        assert!(!tensor.name.chars().any(char::is_control), "{tensor:?}");
        assert!(names.insert(tensor.name.clone()), "{tensor:?}");
    }
    assert_eq!(end, len);
    Some(found)
}
