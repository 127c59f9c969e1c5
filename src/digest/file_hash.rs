//! BLAKE3 of a file whose bytes come in any order, as tiles are read or written. No second read is needed.
//!
//! BLAKE3 is a binary tree over chunks of 1024 bytes, so any aligned run of a power of two of chunks can be hashed
//! alone. Each piece is cut into such subtrees. The rest at its ends (less than a chunk) waits for the neighbouring
//! piece. Subtrees are merged as soon as both halves are there, so that little is kept. The result is that of
//! `b3sum`.

use std::collections::BTreeMap;

use blake3::hazmat::{self, ChainingValue, HasherExt, Mode};

/// Bytes of a leaf of the tree.
const CHUNK: u64 = blake3::CHUNK_LEN as u64;

/// The hash of one file of known length, from pieces in any order.
#[derive(Debug)]
pub(crate) struct FileHash {
    len: u64,
    subtrees: BTreeMap<u64, Subtree>,
    /// Bytes of chunks of which a part is missing, by the chunk's first byte.
    partial: BTreeMap<u64, Partial>,
}

#[derive(Debug)]
struct Subtree {
    len: u64,
    value: ChainingValue,
}

#[derive(Debug)]
struct Partial {
    bytes: Vec<u8>,
    missing: usize,
}

/// Subtrees of one piece, hashed without the file's lock held.
#[derive(Debug, Default)]
pub(crate) struct HashedPiece {
    subtrees: Vec<(u64, Subtree)>,
    edges: Vec<(u64, Vec<u8>)>,
}

impl HashedPiece {
    /// Hashes the whole chunks of a piece of a file of length `len` that begins at `offset`.
    #[must_use]
    pub(crate) fn new(len: u64, offset: u64, bytes: &[u8]) -> Self {
        let mut out = Self::default();
        let end = offset + bytes.len() as u64;
        if len <= CHUNK {
            // A file of one chunk is hashed whole: its leaf is the root.
            out.edges.push((offset, bytes.to_vec()));
            return out;
        }
        let first = offset.next_multiple_of(CHUNK).min(end);
        // The file's last chunk may be short. It is whole if the piece holds all of it.
        let whole = end - end % CHUNK;
        let last = if end == len && whole >= first { end } else { whole };
        let last = last.max(first);
        let at = |position: u64| (position - offset) as usize;
        if first > offset {
            out.edges.push((offset, bytes[..at(first)].to_vec()));
        }
        let mut start = first;
        while start < last {
            let mut size = 1_u64 << (63 - (last - start).max(CHUNK).leading_zeros());
            if let Some(most) = hazmat::max_subtree_len(start) {
                size = size.min(most);
            }
            // A subtree that would be the root is cut in two: only the end knows that it is the root.
            if start == 0 && size == len {
                size /= 2;
            }
            let size = size.min(last - start);
            let slice = &bytes[at(start)..at(start + size)];
            out.subtrees.push((start, Subtree { len: size, value: chaining_value(start, slice) }));
            start += size;
        }
        if end > last {
            out.edges.push((last, bytes[at(last)..].to_vec()));
        }
        out
    }
}

fn chaining_value(offset: u64, bytes: &[u8]) -> ChainingValue {
    let mut hasher = blake3::Hasher::new();
    hasher.set_input_offset(offset);
    hasher.update(bytes);
    hasher.finalize_non_root()
}

impl FileHash {
    /// For a file of `len` bytes.
    #[must_use]
    pub(crate) fn new(len: u64) -> Self {
        Self { len, subtrees: BTreeMap::new(), partial: BTreeMap::new() }
    }

    /// Adds a hashed piece. Pieces must not overlap.
    pub(crate) fn add(&mut self, piece: HashedPiece) {
        for (offset, bytes) in piece.edges {
            self.add_edge(offset, &bytes);
        }
        for (offset, subtree) in piece.subtrees {
            self.insert(offset, subtree);
        }
    }

    fn add_edge(&mut self, offset: u64, mut bytes: &[u8]) {
        let mut offset = offset;
        while !bytes.is_empty() {
            let chunk = offset - offset % CHUNK;
            let chunk_len = CHUNK.min(self.len - chunk) as usize;
            let start = (offset - chunk) as usize;
            let take = bytes.len().min(chunk_len - start);
            let partial = self
                .partial
                .entry(chunk)
                .or_insert_with(|| Partial { bytes: vec![0; chunk_len], missing: chunk_len });
            partial.bytes[start..start + take].copy_from_slice(&bytes[..take]);
            partial.missing -= take.min(partial.missing);
            if partial.missing == 0
                && self.len > CHUNK
                && let Some(whole) = self.partial.remove(&chunk)
            {
                let value = chaining_value(chunk, &whole.bytes);
                self.insert(chunk, Subtree { len: chunk_len as u64, value });
            }
            offset += take as u64;
            bytes = &bytes[take..];
        }
    }

    /// Puts a subtree in and merges it with its other half for as long as there is one.
    fn insert(&mut self, mut offset: u64, mut subtree: Subtree) {
        loop {
            let size = subtree.len;
            let whole = size.is_power_of_two() && size >= CHUNK;
            let parent = if whole { offset - offset % (2 * size) } else { offset };
            let is_root = parent == 0 && 2 * size >= self.len;
            let other = if offset == parent { offset + size } else { parent };
            let fits = whole && !is_root && self.subtrees.get(&other).is_some_and(|found| found.len == size);
            if !fits {
                self.subtrees.insert(offset, subtree);
                return;
            }
            let Some(found) = self.subtrees.remove(&other) else { return };
            let (left, right) = if offset == parent { (&subtree, &found) } else { (&found, &subtree) };
            let value = hazmat::merge_subtrees_non_root(&left.value, &right.value, Mode::Hash);
            subtree = Subtree { len: 2 * size, value };
            offset = parent;
        }
    }

    /// The hash in hexadecimal. None if bytes are missing.
    #[must_use]
    pub(crate) fn finish(&self) -> Option<String> {
        if self.len <= CHUNK {
            let bytes = match self.partial.get(&0) {
                Some(partial) if partial.missing == 0 => partial.bytes.as_slice(),
                None if self.len == 0 => &[],
                _ => return None,
            };
            return Some(blake3::hash(bytes).to_hex().to_string());
        }
        let left = hazmat::left_subtree_len(self.len);
        let (left, right) = (self.value(0, left)?, self.value(left, self.len - left)?);
        Some(hazmat::merge_subtrees_root(&left, &right, Mode::Hash).to_hex().to_string())
    }

    fn value(&self, offset: u64, len: u64) -> Option<ChainingValue> {
        if let Some(subtree) = self.subtrees.get(&offset)
            && subtree.len == len
        {
            return Some(subtree.value);
        }
        if len <= CHUNK {
            return None;
        }
        let left = hazmat::left_subtree_len(len);
        let (left, right) = (self.value(offset, left)?, self.value(offset + left, len - left)?);
        Some(hazmat::merge_subtrees_non_root(&left, &right, Mode::Hash))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hash_in_order(data: &[u8], cuts: &[usize], reverse: bool) -> Option<String> {
        let mut bounds: Vec<usize> = cuts.iter().map(|cut| cut % (data.len() + 1)).collect();
        bounds.extend([0, data.len()]);
        bounds.sort_unstable();
        bounds.dedup();
        let mut pieces: Vec<(usize, usize)> = bounds.windows(2).map(|pair| (pair[0], pair[1])).collect();
        if reverse {
            pieces.reverse();
        }
        let mut hash = FileHash::new(data.len() as u64);
        for (start, end) in pieces {
            hash.add(HashedPiece::new(data.len() as u64, start as u64, &data[start..end]));
        }
        hash.finish()
    }

    #[test]
    fn lengths_around_chunks_and_powers_of_two() {
        for len in
            [0, 1, 1023, 1024, 1025, 2047, 2048, 2049, 3072, 4096, 4097, 65_536, 65_537, 100_000, 131_072]
        {
            let data: Vec<u8> = (0..len).map(|i| (i * 31 % 251) as u8).collect();
            let expected = Some(blake3::hash(&data).to_hex().to_string());
            assert_eq!(hash_in_order(&data, &[], false), expected, "{len} whole");
            assert_eq!(hash_in_order(&data, &[len / 2, len / 3], true), expected, "{len} in three");
        }
    }

    #[test]
    fn missing_bytes_have_no_hash() {
        let mut hash = FileHash::new(5000);
        hash.add(HashedPiece::new(5000, 0, &[0; 2000]));
        assert_eq!(hash.finish(), None);
    }

    proptest! {
        #[test]
        fn any_cuts_in_any_order_give_the_same(
            len in 0_usize..20_000,
            cuts in proptest::collection::vec(0_usize..20_000, 0..12),
            reverse: bool,
        ) {
            let data: Vec<u8> = (0..len).map(|i| (i * 131 % 253) as u8).collect();
            let expected = Some(blake3::hash(&data).to_hex().to_string());
            prop_assert_eq!(hash_in_order(&data, &cuts, reverse), expected);
        }
    }
}
