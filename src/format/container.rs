//! Containers: how tensors lie in files.

use std::fmt;
use std::io::{self, Write};

use serde_json::Value;

mod safetensors;

/// The container that outputs are written in.
pub(crate) const SAFETENSORS: &dyn Container = &safetensors::Safetensors;

/// A tensor in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Its name.
    pub name: String,
    /// Its type as headers write it.
    pub dtype: &'static str,
    /// Its shape.
    pub shape: Vec<u64>,
    /// Its first byte, from the end of the header.
    pub start: u64,
    /// One past its last byte.
    pub end: u64,
}

/// A kind of file that holds tensors, and of folders of such files. Headers are written as their entries come, because a model may
/// have millions of tensors.
pub(crate) trait Container: fmt::Debug + Send + Sync {
    /// The bytes that a file begins with, before its first tensor.
    fn header_len(&self, metadata: &Value, entries: &mut dyn Iterator<Item = Entry>) -> u64;

    /// Writes these bytes. `header_len` is their count.
    ///
    /// # Errors
    /// If they cannot be written.
    fn write_header(
        &self,
        header_len: u64,
        metadata: &Value,
        entries: &mut dyn Iterator<Item = Entry>,
        out: &mut dyn Write,
    ) -> io::Result<()>;

    /// Writes the index of the files of a folder. `total` is the bytes of all tensors; entries are names of tensors with their
    /// files, ordered by name.
    ///
    /// # Errors
    /// If it cannot be written.
    fn write_index(
        &self,
        total: u64,
        entries: &mut dyn Iterator<Item = (String, String)>,
        out: &mut dyn Write,
    ) -> io::Result<()>;
}
