//! llama.cpp's importance matrix as GGUF: `NAME.in_sum2` and `NAME.counts`, F32, and `imatrix.*` in the metadata.

use std::collections::HashMap;

use super::cursor::{Cursor, floats};
use super::{Format, ModuleStatistics, Statistics, same_name, truncated};
use crate::finding::Finding;

/// The magic bytes at the start of every GGUF file.
pub(super) const MAGIC: &[u8] = b"GGUF";

/// Arrays within arrays are no use here, and a way to exhaust the stack.
const DEEPEST: usize = 4;

/// The GGUF type of F32 tensors.
const F32: u32 = 0;

/// A value of the metadata that matters here.
enum Value {
    Number(u64),
    Text(String),
    Texts(Vec<String>),
    Other,
}

struct Tensor {
    elements: u64,
    kind: u32,
    offset: u64,
}

pub(super) fn parse(bytes: &[u8]) -> Result<Statistics, Finding> {
    let mut cursor = Cursor::new(bytes);
    cursor.take(4)?;
    let version = cursor.u32()?;
    if !(2..=3).contains(&version) {
        return Err(Finding::error(
            "calibration::unknown-format",
            format!("it is GGUF of version {version}"),
        )
        .help("Versions 2 and 3 are read."));
    }
    let (tensors, pairs) = (cursor.u64()?, cursor.u64()?);
    cursor.check_count(pairs, 13, "metadata entries")?;
    let mut metadata = HashMap::new();
    for _ in 0..pairs {
        let len = cursor.u64()?;
        let key = cursor.text(len)?;
        let kind = cursor.u32()?;
        metadata.insert(key, value(&mut cursor, kind, 0)?);
    }
    let kind = match metadata.get("general.type") {
        Some(Value::Text(text)) => text.as_str(),
        _ => "model",
    };
    if kind != "imatrix" {
        return Err(Finding::error(
            "calibration::not-statistics",
            format!("it is a GGUF file of type `{kind}`"),
        )
        .help("An importance matrix has the type `imatrix`; llama-imatrix writes one."));
    }
    cursor.check_count(tensors, 24, "tensors")?;
    let mut found: HashMap<String, Tensor> = HashMap::new();
    let mut order = Vec::new();
    for _ in 0..tensors {
        let len = cursor.u64()?;
        let name = cursor.text(len)?;
        let dims = cursor.u32()?;
        cursor.check_count(dims.into(), 8, "dimensions")?;
        let mut elements = 1_u64;
        for _ in 0..dims {
            elements = elements.checked_mul(cursor.u64()?).ok_or_else(truncated)?;
        }
        let (kind, offset) = (cursor.u32()?, cursor.u64()?);
        if let Some(name) = name.strip_suffix(".in_sum2") {
            order.push(name.to_owned());
        }
        if found.contains_key(&name) {
            return Err(same_name(&name));
        }
        found.insert(name, Tensor { elements, kind, offset });
    }
    let alignment = match metadata.get("general.alignment") {
        Some(Value::Number(number)) if number.is_power_of_two() && *number <= 1 << 20 => *number,
        _ => 32,
    };
    let start = (cursor.position() as u64).next_multiple_of(alignment);
    // Tensors that overlap could claim any amount of memory.
    let mut left = bytes.len() as u64;
    let mut values = |name: &str| -> Result<Vec<f32>, Finding> {
        let missing = || {
            Finding::error("calibration::wrong-shape", format!("there is no `{name}` of type F32"))
                .help("It is damaged, or of a version that is not known.")
        };
        let tensor = found.get(name).filter(|tensor| tensor.kind == F32).ok_or_else(missing)?;
        let len = tensor.elements.checked_mul(4).ok_or_else(truncated)?;
        left = left.checked_sub(len).ok_or_else(truncated)?;
        let at = start.checked_add(tensor.offset).ok_or_else(truncated)?;
        let end = at.checked_add(len).and_then(|end| usize::try_from(end).ok()).ok_or_else(truncated)?;
        let at = usize::try_from(at).map_err(|_| truncated())?;
        bytes.get(at..end).map(floats).ok_or_else(truncated)
    };
    let mut modules = Vec::with_capacity(order.len());
    for name in order {
        let sums = values(&format!("{name}.in_sum2"))?;
        // Counts are whole numbers, written as floats.
        let counts: Vec<f64> =
            values(&format!("{name}.counts"))?.into_iter().map(|count| f64::from(count).round()).collect();
        if counts.is_empty() || !sums.len().is_multiple_of(counts.len()) {
            let message = format!("`{name}` has {} sums and {} counts", sums.len(), counts.len());
            return Err(Finding::error("calibration::wrong-shape", message)
                .help("There is one sum per column of each matrix, and one count, or one per matrix."));
        }
        let name = name.strip_suffix(".weight").map_or(name.clone(), str::to_owned);
        modules.push(ModuleStatistics { name, sums, counts });
    }
    let number = |key: &str| match metadata.get(key) {
        Some(Value::Number(number)) => Some(*number),
        _ => None,
    };
    let samples = number("imatrix.chunk_count");
    let tokens =
        samples.zip(number("imatrix.chunk_size")).and_then(|(chunks, size)| chunks.checked_mul(size));
    let sources = match metadata.remove("imatrix.datasets") {
        Some(Value::Texts(texts)) => texts,
        Some(Value::Text(text)) => vec![text],
        _ => Vec::new(),
    };
    Ok(Statistics { format: Format::Gguf, modules, samples, tokens, sources })
}

fn value(cursor: &mut Cursor<'_>, kind: u32, depth: usize) -> Result<Value, Finding> {
    Ok(match kind {
        0 | 1 | 7 => {
            cursor.take(1)?;
            Value::Other
        }
        2 | 3 => {
            cursor.take(2)?;
            Value::Other
        }
        4 => Value::Number(cursor.u32()?.into()),
        5 | 6 => {
            cursor.take(4)?;
            Value::Other
        }
        8 => {
            let len = cursor.u64()?;
            Value::Text(cursor.text(len)?)
        }
        9 => {
            let (kind, count) = (cursor.u32()?, cursor.u64()?);
            cursor.check_count(count, 1, "values of an array")?;
            if depth >= DEEPEST {
                return Err(truncated());
            }
            let mut texts = Vec::new();
            for _ in 0..count {
                if let Value::Text(text) = value(cursor, kind, depth + 1)? {
                    texts.push(text);
                }
            }
            Value::Texts(texts)
        }
        10 => Value::Number(cursor.u64()?),
        11 | 12 => {
            cursor.take(8)?;
            Value::Other
        }
        _ => {
            return Err(Finding::error(
                "calibration::unknown-format",
                format!("a value has the unknown type {kind}"),
            )
            .help("It is damaged, or of a version that is not known."));
        }
    })
}
