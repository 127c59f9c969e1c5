//! A safetensors directory: the length of a JSON header as 8 bytes, the header padded with spaces to a multiple of 8, then the
//! tensors; and `model.safetensors.index.json` beside several files.

use std::io::{self, BufWriter, Write};

use serde_json::Value;

use super::{Container, Entry};

/// Bytes of the length before the header.
const PREFIX: u64 = 8;

/// Tensors are read as arrays of up to 64-bit numbers.
const ALIGNMENT: u64 = 8;

/// The format of the `safetensors` crate and library.
#[derive(Debug)]
pub(super) struct Safetensors;

impl Container for Safetensors {
    fn header_len(&self, metadata: &Value, entries: &mut dyn Iterator<Item = Entry>) -> u64 {
        let mut length = Counted { out: io::sink(), count: 0 };
        // Counting cannot fail.
        let _ = write_entries(metadata, entries, &mut length);
        PREFIX + length.count.next_multiple_of(ALIGNMENT)
    }

    fn write_header(
        &self,
        header_len: u64,
        metadata: &Value,
        entries: &mut dyn Iterator<Item = Entry>,
        out: &mut dyn Write,
    ) -> io::Result<()> {
        let mut out = BufWriter::with_capacity(1 << 16, out);
        let text = header_len - PREFIX;
        out.write_all(&text.to_le_bytes())?;
        let mut counted = Counted { out: &mut out, count: 0 };
        write_entries(metadata, entries, &mut counted)?;
        for _ in counted.count..text {
            out.write_all(b" ")?;
        }
        out.flush()
    }

    fn write_index(
        &self,
        total: u64,
        entries: &mut dyn Iterator<Item = (String, String)>,
        out: &mut dyn Write,
    ) -> io::Result<()> {
        let mut out = BufWriter::with_capacity(1 << 16, out);
        write!(out, "{{\n  \"metadata\": {{\n    \"total_size\": {total}\n  }},\n  \"weight_map\": {{")?;
        let mut is_empty = true;
        for (name, file) in entries {
            out.write_all(if is_empty { b"\n    " } else { b",\n    " })?;
            is_empty = false;
            serde_json::to_writer(&mut out, &name)?;
            out.write_all(b": ")?;
            serde_json::to_writer(&mut out, &file)?;
        }
        out.write_all(if is_empty { b"}\n}\n" } else { b"\n  }\n}\n" })?;
        out.flush()
    }
}

fn write_entries(
    metadata: &Value,
    entries: &mut dyn Iterator<Item = Entry>,
    out: &mut impl Write,
) -> io::Result<()> {
    write!(out, "{{\"__metadata__\":{metadata}")?;
    for entry in entries {
        out.write_all(b",")?;
        serde_json::to_writer(&mut *out, &entry.name)?;
        write!(out, ":{{\"dtype\":\"{}\",\"shape\":[", entry.dtype)?;
        for (axis, size) in entry.shape.iter().enumerate() {
            write!(out, "{}{size}", if axis == 0 { "" } else { "," })?;
        }
        write!(out, "],\"data_offsets\":[{},{}]}}", entry.start, entry.end)?;
    }
    out.write_all(b"}")
}

/// Counts the bytes that are written through it.
struct Counted<W> {
    out: W,
    count: u64,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.out.write(bytes)?;
        self.count += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn entries() -> Vec<Entry> {
        let entry = |name: &str, shape: &[u64], start, end| Entry {
            name: name.to_owned(),
            dtype: "F32",
            shape: shape.to_vec(),
            start,
            end,
        };
        vec![entry("a", &[2, 3], 0, 24), entry("b \"", &[], 24, 28)]
    }

    #[test]
    fn the_library_reads_what_is_written() {
        let metadata = json!({"format": "pt"});
        let len = Safetensors.header_len(&metadata, &mut entries().into_iter());
        let mut file = Vec::new();
        Safetensors.write_header(len, &metadata, &mut entries().into_iter(), &mut file).unwrap();
        assert_eq!((file.len() as u64, len % 8), (len, 0));
        file.extend([0; 28]);
        let read = ::safetensors::SafeTensors::deserialize(&file).unwrap();
        assert_eq!(read.tensor("a").unwrap().shape(), [2, 3]);
        assert_eq!(read.tensor("b \"").unwrap().data().len(), 4);
    }

    #[test]
    fn an_index_names_the_file_of_each_tensor() {
        let mut index = Vec::new();
        let mut entries =
            [("a", "1"), ("b", "2")].map(|(name, file)| (name.to_owned(), file.to_owned())).into_iter();
        Safetensors.write_index(28, &mut entries, &mut index).unwrap();
        let index: Value = serde_json::from_slice(&index).unwrap();
        assert_eq!(index, json!({"metadata": {"total_size": 28}, "weight_map": {"a": "1", "b": "2"}}));
    }
}
