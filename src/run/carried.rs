//! Files that are carried over as they are: their identity, and whether an output has them already.

use std::collections::HashMap;
use std::io::{self, Seek};
use std::path::Path;

use super::verify;
use crate::cancel::Cancel;
use crate::exit::Exit;
use crate::finding::{Failure, Finding};
use crate::format::source::{self, Identity, Reader, Trouble};
use crate::fs::exclusive::Folder;
use crate::fs::identity::FileIdentity;
use crate::fs::regular;
use crate::ids::{ExportId, IdVec};
use crate::model::{ModelFolder, code};
use crate::plan::Plan;
use crate::publish::Staging;
use crate::report::FileRecord;
use crate::run::incremental::previous::Stores;

/// A file of the model that an export carries over.
#[derive(Debug, Clone)]
pub(super) struct Carried {
    /// The identity of its bytes. Its name is its path in the model and in the output.
    pub file: FileRecord,
    /// The identity of the model's file when it was looked at.
    pub source: Identity,
}

/// Looks at all files that each export carries over. A file that the record knows need not be read.
///
/// # Errors
/// If a file cannot be read, or the run is cancelled.
pub(super) fn look(
    plan: &Plan,
    stores: &IdVec<ExportId, Stores>,
    cancel: &Cancel,
) -> Result<IdVec<ExportId, Vec<Carried>>, Failure> {
    let is_hashed = plan.asks_for_hashes();
    let mut seen: HashMap<usize, Carried> = HashMap::new();
    let mut out = IdVec::with_capacity(plan.exports.len());
    for export in &plan.exports {
        for &index in &export.copies {
            if seen.contains_key(&index) {
                continue;
            }
            let name = &plan.model.others[index].path;
            let failed = |error| cannot_read(&plan.model.source.place(name), &error);
            let opened = plan.model.open_other(name)?;
            let (source, bytes) = (opened.identity().clone(), opened.bytes());
            let mut known = stores.iter().flat_map(|stores| &stores.stores);
            let known = known.find_map(|store| {
                store.carried(name, &source, bytes).filter(|known| known.blake3.is_some() || !is_hashed)
            });
            let file = match known {
                Some(known) => {
                    FileRecord { blake3: known.blake3.clone().filter(|_| is_hashed), ..known.clone() }
                }
                None => {
                    let identified = verify::identify(name, Reader::new(&*opened), is_hashed, cancel);
                    cancel.check()?;
                    identified.map_err(failed)?
                }
            };
            seen.insert(index, Carried { file, source });
        }
        out.push(export.copies.iter().filter_map(|index| seen.get(index).cloned()).collect());
    }
    Ok(out)
}

impl Carried {
    /// Whether the folder of an output holds the file as it is in the model.
    pub(super) fn is_in(&self, folder: &Folder, stores: &Stores, cancel: &Cancel) -> bool {
        let Ok(file) = folder.open_file(Path::new(&self.file.name), false) else { return false };
        let Ok(found) = file.metadata().map(|metadata| FileIdentity::of(&metadata)) else { return false };
        let is_known = stores.stores.iter().any(|store| store.has_carried(&self.file, &found));
        found.len == self.file.bytes
            && (is_known
                || verify::identify(&self.file.name, file, self.file.blake3.is_some(), cancel)
                    .is_ok_and(|found| found == self.file))
    }

    /// Copies the file into a staging folder, and checks by reading back that it is the one that the report
    /// describes.
    ///
    /// # Errors
    /// If it cannot be read or written, or has changed since it was looked at.
    pub(super) fn copy(
        &self,
        model: &ModelFolder,
        staging: &Staging,
        cancel: &Cancel,
    ) -> Result<(), Failure> {
        let name = Path::new(&self.file.name);
        let (blob, path) = (model.open_other(&self.file.name)?, staging.folder.join(name));
        let go_on = || cancel.check();
        match blob.file() {
            Some(file) => {
                // Others may have read it before.
                let copied = file.with(|mut file| {
                    file.rewind()?;
                    Ok(staging.copy(file, name, &go_on))
                });
                copied.map_err(|error| cannot_read(&model.source.place(&self.file.name), &error))??;
            }
            None => staging.copy(Reader::new(&*blob), name, &go_on)?,
        }
        let written = regular::open(&path)
            .and_then(|file| verify::identify(&self.file.name, file, self.file.blake3.is_some(), cancel));
        cancel.check()?;
        if written.map_err(|error| cannot_read(&path.display().to_string(), &error))? != self.file {
            let message = format!("`{}` changed while it was read", self.file.name);
            let finding = Finding::error(code::CHANGED, message)
                .help("Something else writes to the model's folder; run again when it is done.");
            return Err(Failure::new(Exit::BadModel, finding));
        }
        Ok(())
    }
}

fn cannot_read(place: &str, error: &io::Error) -> Failure {
    if let Some(trouble) = Trouble::of(error) {
        return source::failure(vec![trouble.finding(place)]);
    }
    let message = format!("cannot read {place}: {error}");
    Failure::new(Exit::BadModel, Finding::error(code::IO, message))
}
