//! Does a written output hold what was meant? Sizes and headers against the plan, files against the hashes of their report.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use crate::exit::Exit;
use crate::finding::{Failure, Finding};
use crate::model::header;
use crate::plan::{ExportPlan, OutputTensor};
use crate::report::{self, Report};

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
        let opened = fs::File::open(folder.join(&file.name));
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

/// Checks an output directory against its own report: sizes and hashes of all weight files.
///
/// # Errors
/// [`Exit::OutputDamaged`] with every file that differs; [`Exit::BadModel`] where there is no report.
pub fn verify(folder: &Path) -> Result<Report, Failure> {
    let report = report::read(&folder.join(report::FILE_NAME))?;
    let mut findings = Vec::new();
    // The report lists every output of its run; this folder is the one whose files are all here.
    let here = report
        .outputs
        .iter()
        .find(|output| output.path.trim_end_matches('/').ends_with(&name_of(folder)))
        .or_else(|| report.outputs.first());
    for file in here.into_iter().flat_map(|output| &output.files) {
        let path = folder.join(&file.name);
        let damage = match hash(&path) {
            Err(error) => format!("{} cannot be read: {error}", file.name),
            Ok((len, _)) if len != file.bytes => {
                format!("{} has {len} bytes and not {}", file.name, file.bytes)
            }
            Ok((_, found)) if found != file.blake3 => {
                format!("{} has other bytes than were written", file.name)
            }
            Ok(_) => continue,
        };
        findings.push(Finding::error("output::damaged", damage).help("Run the recipe again to restore it."));
    }
    if findings.is_empty() { Ok(report) } else { Err(Failure { exit: Exit::OutputDamaged, findings }) }
}

fn name_of(folder: &Path) -> String {
    let folder = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn hash(path: &Path) -> std::io::Result<(u64, String)> {
    let mut file = fs::File::open(path)?;
    let len = file.metadata()?.len();
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match std::io::Read::read(&mut file, &mut buffer)? {
            0 => return Ok((len, hasher.finalize().to_hex().to_string())),
            n => hasher.update(&buffer[..n]),
        };
    }
}
