//! Digests: checksums and hashes of files, combined from those of their pieces.

pub mod checksum;
pub(crate) mod file_hash;

/// Checksums and hashes that identify the bytes of a file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Digest {
    /// Its CRC-64/NVME. None if not every byte was seen.
    pub crc64: Option<u64>,
    /// Its BLAKE3 hash in hexadecimal, if the recipe asks for it.
    pub blake3: Option<String>,
}
