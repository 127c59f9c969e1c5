//! llama.cpp's older binary importance matrix: no magic number. Each entry has a name, a number of chunks, and mean
//! squares multiplied by that number.

use crate::calibration::cursor::{Cursor, floats};
use crate::calibration::{Format, ModuleStatistics, Statistics};
use crate::finding::Finding;

/// Bytes of the smallest entry: three numbers, a letter and a value.
const LEAST_ENTRY: u64 = 17;

/// Bytes of the longest name: a longer one is a sign of another kind of file.
const LONGEST_NAME: u32 = 512;

/// Whether bytes begin with a number of entries and the length of a name.
pub(crate) fn begins(bytes: &[u8]) -> bool {
    let mut cursor = Cursor::new(bytes);
    let numbers = cursor.i32().and_then(|entries| Ok((entries, cursor.i32()?)));
    numbers.is_ok_and(|(entries, len)| entries > 0 && len > 0 && len.unsigned_abs() <= LONGEST_NAME)
}

fn unknown() -> Finding {
    Finding::error("calibration::unknown-format", "it is no file of activation statistics")
        .help("Activation statistics are a safetensors file, or an importance matrix of llama.cpp.")
}

pub(crate) fn parse(bytes: &[u8]) -> Result<Statistics, Finding> {
    // Text in place of the number of entries.
    if bytes
        .first_chunk::<8>()
        .is_some_and(|head| head.iter().all(|byte| matches!(byte, b'\t'..=b'\r' | b' '..=b'~')))
    {
        return Err(unknown());
    }
    let mut cursor = Cursor::new(bytes);
    let entries = cursor.i32()?;
    let count = u64::try_from(entries).ok().filter(|count| *count > 0).ok_or_else(unknown)?;
    cursor.check_count(count, LEAST_ENTRY, "entries")?;
    let mut modules = Vec::new();
    for _ in 0..count {
        let len = u32::try_from(cursor.i32()?).map_err(|_| unknown())?;
        if len == 0 || len > LONGEST_NAME {
            return Err(unknown());
        }
        let name = cursor.text(len.into())?;
        let chunks = cursor.i32()?;
        let values = u64::try_from(cursor.i32()?).ok().filter(|values| *values > 0).ok_or_else(unknown)?;
        cursor.check_count(values, 4, "values")?;
        let sums = floats(cursor.take(4 * values)?);
        let name = name.strip_suffix(".weight").map_or(name.clone(), str::to_owned);
        modules.push(ModuleStatistics { name, sums, counts: vec![f64::from(chunks)] });
    }
    let mut samples = None;
    let mut sources = Vec::new();
    if cursor.left() > 0 {
        samples = u64::try_from(cursor.i32()?).ok();
        if cursor.left() > 0 {
            let len = u64::try_from(cursor.i32()?).map_err(|_| unknown())?;
            sources.push(cursor.text(len)?);
        }
    }
    Ok(Statistics { format: Format::Legacy, modules, samples, tokens: None, sources })
}
