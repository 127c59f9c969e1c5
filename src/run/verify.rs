//! Does a written output hold what was meant? Sizes and headers against the plan, files against the checksums of their report.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use super::checksum;
use crate::exit::Exit;
use crate::finding::{Failure, Finding};
use crate::fs::regular;
use crate::model::header;
use crate::plan::{ExportPlan, OutputTensor};
use crate::report::{self, FileRecord, OutputRecord, Report};

/// The first file of a folder that has another size than planned, in words.
#[must_use]
pub fn sizes(export: &ExportPlan, folder: &Path) -> Option<String> {
    export.files.iter().find_map(|file| {
        let found = fs::metadata(folder.join(&file.name)).map(|metadata| metadata.len());
        match found {
            Ok(len) if len == file.bytes => None,
            Ok(len) => Some(format!("{} has {len} bytes and not the planned {}", file.name, file.bytes)),
            Err(error) => Some(format!("{} cannot be read: {error}", file.name)),
        }
    })
}

/// Opens a written folder as any reader would and compares every tensor with the plan; the first difference, in words.
#[must_use]
pub fn headers(export: &ExportPlan, folder: &Path) -> Option<String> {
    export.files.iter().enumerate().find_map(|(index, file)| {
        let opened = regular::open(&folder.join(&file.name));
        let read = opened.map(|opened| header::read(std::io::BufReader::new(opened), file.bytes, &file.name));
        let found = match read {
            Ok(Ok(header)) => header,
            Ok(Err(findings)) => return findings.first().map(|finding| finding.message.clone()),
            Err(error) => return Some(format!("{} cannot be read: {error}", file.name)),
        };
        let mut planned: HashMap<&str, &OutputTensor> = export
            .tensors
            .iter()
            .filter(|tensor| tensor.file == index)
            .map(|tensor| (tensor.name.as_str(), tensor))
            .collect();
        for tensor in &found.tensors {
            let meant = planned.remove(tensor.name.as_str());
            let same = meant.is_some_and(|meant| {
                meant.dtype == tensor.dtype.name()
                    && meant.shape == tensor.shape
                    && meant.offset == tensor.offset
                    && meant.bytes == tensor.bytes
            });
            if !same {
                return Some(format!("`{}` in {} is not as planned", tensor.name, file.name));
            }
        }
        planned.keys().min().map(|name| format!("`{name}` was planned and is not in {}", file.name))
    })
}

/// Checks an output directory against its own report: sizes and checksums of all weight files.
///
/// # Errors
/// [`Exit::OutputDamaged`] with every file that differs; [`Exit::BadModel`] where there is no report.
pub fn verify(folder: &Path) -> Result<Report, Failure> {
    let report = report::read(&folder.join(report::FILE_NAME))?;
    // The report lists every output of its run, and a folder may have been moved: it is the output whose files it holds. Where
    // it holds none of them, its name tells what it should be.
    let name = name_of(folder);
    let named = |output: &&OutputRecord| output.path.trim_end_matches('/').ends_with(&name);
    let damages: Vec<(bool, Vec<Finding>)> =
        report.outputs.iter().map(|output| (named(&output), damages(folder, output))).collect();
    if damages.is_empty() || damages.iter().any(|(_, findings)| findings.is_empty()) {
        return Ok(report);
    }
    let at = damages.iter().position(|(is_named, _)| *is_named).unwrap_or(0);
    let findings = damages.into_iter().nth(at).map(|(_, findings)| findings).unwrap_or_default();
    Err(Failure { exit: Exit::OutputDamaged, findings })
}

/// Every file of an output that is not in the folder as it was written.
fn damages(folder: &Path, output: &OutputRecord) -> Vec<Finding> {
    let damage = |file: &FileRecord| {
        Some(match digest(&folder.join(&file.name), file.blake3.is_some()) {
            Err(error) => format!("{} cannot be read: {error}", file.name),
            Ok((len, ..)) if len != file.bytes => {
                format!("{} has {len} bytes and not {}", file.name, file.bytes)
            }
            Ok((_, crc, hash)) if checksum::text(crc) != file.crc64nvme || hash != file.blake3 => {
                format!("{} has other bytes than were written", file.name)
            }
            Ok(_) => return None,
        })
    };
    let found = output.files.iter().filter_map(damage);
    found
        .map(|text| Finding::error("output::damaged", text).help("Run the recipe again to restore it."))
        .collect()
}

fn name_of(folder: &Path) -> String {
    let folder = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// A file's length and CRC, and its hash where that is wanted.
pub(super) fn digest(path: &Path, hashed: bool) -> std::io::Result<(u64, u64, Option<String>)> {
    let mut file = regular::open(path)?;
    let (mut len, mut crc) = (0, 0);
    let mut hasher = hashed.then(blake3::Hasher::new);
    let mut buffer = vec![0; 1 << 20];
    loop {
        match std::io::Read::read(&mut file, &mut buffer)? {
            0 => return Ok((len, crc, hasher.map(|hasher| hasher.finalize().to_hex().to_string()))),
            n => {
                crc = checksum::joined(crc, checksum::of(&buffer[..n]), n as u64);
                len += n as u64;
                if let Some(hasher) = &mut hasher {
                    hasher.update(&buffer[..n]);
                }
            }
        }
    }
}
