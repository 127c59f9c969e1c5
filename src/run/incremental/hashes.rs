//! BLAKE3 hashes of files that the pass did not see whole, because parts of them were reused. A hash is remembered if
//! the file is known; otherwise the file is read.

use std::io;
use std::path::{Path, PathBuf};

use crate::cancel::Cancel;
use crate::exit::Exit;
use crate::finding::{Failure, Finding};
use crate::format::source::{self, Blob, Reader, Trouble};
use crate::fs::regular;
use crate::ids::{ExportId, IdVec};
use crate::plan::Plan;
use crate::publish::files;
use crate::publish::staging::FileStart;
use crate::report::FileRecord;
use crate::report::measured::Measured;
use crate::run::incremental::reuse::Reuse;
use crate::run::verify;

/// Adds the missing hashes, if the recipe asks for them. `folders` hold the weight files of each export.
///
/// # Errors
/// If a file cannot be read, or the run is cancelled.
pub(crate) fn complete(
    plan: &Plan,
    reuse: &Reuse<'_>,
    folders: &IdVec<ExportId, PathBuf>,
    measured: &mut Measured,
    cancel: &Cancel,
) -> Result<(), Failure> {
    if !plan.asks_for_hashes() {
        return Ok(());
    }
    let all = || reuse.stores.iter().flat_map(|stores| &stores.stores);
    for (shard, digest) in plan.model.shards.iter().zip(&mut measured.source_files) {
        if digest.blake3.is_none() {
            cancel.check()?;
            let known = all()
                .filter(|store| store.knows_source(shard))
                .flat_map(|store| &store.header.sources)
                .find(|source| source.name == shard.name && source.blake3.is_some());
            digest.blake3 = match known {
                Some(source) => source.blake3.clone(),
                None => Some(read_source(plan, &shard.name, cancel)?),
            };
        }
    }
    for (index, export) in plan.exports.numbered() {
        for (file, digest) in export.files.ids().zip(&mut measured.output_files[index]) {
            if digest.blake3.is_none() {
                cancel.check()?;
                let known = match &reuse.starts[index][file] {
                    FileStart::Linked(path) => {
                        reuse.stores[index].stores.iter().find_map(|store| store.hash_of(path))
                    }
                    FileStart::Elsewhere => reuse.uploaded(index, file).and_then(|file| file.blake3.clone()),
                    _ => None,
                };
                digest.blake3 = match known {
                    Some(hash) => Some(hash),
                    None => {
                        let path = folders[index].join(&export.files[file].name);
                        Some(read_output(&path, cancel)?)
                    }
                };
            }
        }
    }
    Ok(())
}

fn read_source(plan: &Plan, name: &str, cancel: &Cancel) -> Result<String, Failure> {
    let model = &plan.model.source;
    let identify = |blob: Box<dyn Blob>| verify::identify("", Reader::new(&*blob), true, cancel);
    let identified = model.open(name).and_then(identify);
    cancel.check()?;
    hash(identified).map_err(|error| {
        if let Some(trouble) = Trouble::of(&error) {
            return source::failure(vec![trouble.finding(&model.place(name))]);
        }
        let message = format!("cannot read {}: {error}", model.place(name));
        Failure::new(Exit::BadModel, Finding::error("model::io", message))
    })
}

fn read_output(path: &Path, cancel: &Cancel) -> Result<String, Failure> {
    let identified = regular::open(path).and_then(|file| verify::identify("", file, true, cancel));
    cancel.check()?;
    hash(identified).map_err(|error| files::cannot_write("read back", path, &error))
}

fn hash(identified: io::Result<FileRecord>) -> io::Result<String> {
    identified.and_then(|file| file.blake3.ok_or_else(|| io::Error::other("no hash was taken")))
}
