//! The files of a finished output on this machine.

use std::path::{Path, PathBuf};

use super::Sum;
use crate::digest::checksum;
use crate::finding::Failure;
use crate::fs::regular;
use crate::publish::files::cannot_write;
use crate::report::FileRecord;

/// Longer files are uploaded in parts.
const SMALL: u64 = 8 << 20;

/// A file of a finished output.
#[derive(Debug)]
pub(crate) struct Local {
    /// Its name below the output, with `/`.
    pub(super) name: String,
    pub(super) path: PathBuf,
    pub(super) sum: Sum,
}

impl Local {
    /// A file of a folder, with what is known of it.
    pub(crate) fn new(folder: &Path, file: FileRecord) -> Self {
        let path = folder.join(&file.name);
        Self { name: file.name, path, sum: Sum { bytes: file.bytes, crc64nvme: file.crc64nvme } }
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.sum.bytes
    }

    pub(super) fn is_uploaded(&self) -> bool {
        self.sum.is_uploaded(&self.name)
    }

    /// All bytes of a small file.
    pub(super) fn read(&self) -> Result<Vec<u8>, Failure> {
        regular::read_bounded(&self.path, SMALL).map_err(|error| cannot_write("read", &self.path, &error))
    }
}

impl Sum {
    /// Of bytes in memory.
    pub(super) fn of(bytes: &[u8]) -> Self {
        Self { bytes: bytes.len() as u64, crc64nvme: checksum::text(checksum::of(bytes)) }
    }

    /// Whether the file of a name is uploaded in parts, so that it can become visible at once: a weight file, or a large one.
    pub(super) fn is_uploaded(&self, name: &str) -> bool {
        self.bytes > SMALL || name.ends_with(".safetensors")
    }
}
