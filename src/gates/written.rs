//! Checks of written weight files against the plan: sizes, and headers as any reader sees them.

use super::Written;
use crate::fs::regular;
use crate::model::header;
use crate::plan::{Content, ExportPlan};

/// The first file that has another size than planned, in words.
#[must_use]
pub(super) fn sizes(written: &Written<'_>) -> Option<String> {
    written.files.iter().find_map(|file| {
        let found = regular::length(&written.folder.join(&file.name));
        match found {
            Ok(len) if len == file.bytes => None,
            Ok(len) => Some(format!("{} has {len} bytes and not the planned {}", file.name, file.bytes)),
            Err(error) => Some(format!("{} cannot be read: {error}", file.name)),
        }
    })
}

/// Opens written files as any reader would and compares every tensor with the plan; the first difference, in words.
#[must_use]
pub(super) fn headers(content: Content<'_>, export: &ExportPlan, written: &Written<'_>) -> Option<String> {
    written.files.iter().find_map(|file| {
        let opened = regular::open(&written.folder.join(&file.name));
        let read = opened.map(|opened| header::read(opened, file.bytes, &file.name));
        let found = match read {
            Ok(Ok(header)) => header,
            Ok(Err(findings)) => return findings.first().map(|finding| finding.message.clone()),
            Err(error) => return Some(format!("{} cannot be read: {error}", file.name)),
        };
        let planned = &export.tensors[file.tensors.clone()];
        let mut by_name: Vec<u32> = (0..planned.len() as u32).collect();
        by_name.sort_unstable_by(|&a, &b| planned[a as usize].cmp_names(&planned[b as usize], content));
        let mut is_found = vec![false; planned.len()];
        for tensor in found.tensors() {
            let name = |index: u32| planned[index as usize].name(content);
            let at = by_name.binary_search_by(|&index| name(index).as_str().cmp(&tensor.name)).ok();
            let same = at.is_some_and(|at| {
                let meant = &planned[by_name[at] as usize];
                !std::mem::replace(&mut is_found[at], true)
                    && meant.dtype(content) == tensor.dtype.name()
                    && meant.shape(content) == tensor.shape
                    && meant.offset == tensor.offset
                    && meant.bytes(content) == tensor.bytes
            });
            if !same {
                return Some(format!("`{}` in {} is not as planned", tensor.name, file.name));
            }
        }
        let missing = is_found.iter().position(|is_found| !is_found)?;
        let name = planned[by_name[missing] as usize].name(content);
        Some(format!("`{name}` was planned and is not in {}", file.name))
    })
}
