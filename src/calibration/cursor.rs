//! Cursor over little-endian numbers in untrusted bytes: reading past the end is an error, and lengths are checked
//! first.

use super::truncated;
use crate::finding::Finding;

/// A place in some bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// The place, from the start.
    pub(super) fn position(&self) -> usize {
        self.at
    }

    /// Bytes that are left.
    pub(super) fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    pub(super) fn take(&mut self, count: u64) -> Result<&'a [u8], Finding> {
        let count = usize::try_from(count).map_err(|_| truncated())?;
        let end = self.at.checked_add(count).filter(|&end| end <= self.bytes.len()).ok_or_else(truncated)?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Finding> {
        self.take(N as u64)?.try_into().map_err(|_| truncated())
    }

    pub(super) fn u32(&mut self) -> Result<u32, Finding> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn i32(&mut self) -> Result<i32, Finding> {
        self.array().map(i32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, Finding> {
        self.array().map(u64::from_le_bytes)
    }

    /// So many bytes as text.
    pub(super) fn text(&mut self, len: u64) -> Result<String, Finding> {
        Ok(String::from_utf8_lossy(self.take(len)?).into_owned())
    }

    /// A count of things of at least `least` bytes each, of which there cannot be more than bytes are left.
    pub(super) fn check_count(&self, count: u64, least: u64, what: &str) -> Result<(), Finding> {
        if count.checked_mul(least).is_some_and(|bytes| bytes <= self.left() as u64) {
            return Ok(());
        }
        Err(Finding::error(
            "calibration::bad-count",
            format!("the file promises {count} {what}, for which it is too short"),
        )
        .help("It is damaged, or no file of activation statistics."))
    }
}

/// F32 numbers, little-endian.
pub(super) fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}
