//! Digests: checksums and hashes of files, put together from their pieces.

pub mod checksum;
pub mod file_hash;

/// What identifies the bytes of a file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Digest {
    /// Its CRC-64/NVME; none where not every byte was seen.
    pub crc64: Option<u64>,
    /// Its BLAKE3 hash in hexadecimal, where the recipe asks for it.
    pub blake3: Option<String>,
}
