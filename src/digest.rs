//! Digests: checksums and hashes of files, put together from their pieces.

pub mod checksum;
pub mod file_hash;
