//! Folders with finished tensors: the last output and the remains of an interrupted run, as far as their records
//! hold.
//!
//! A record is not believed if it does not fit the plan. A place in a file is not believed if it is not in the file's
//! own header.

use std::collections::HashMap;
use std::fs;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::finding::Failure;
use crate::format::source::Identity;
use crate::fs::exclusive::{self, Folder};
use crate::fs::handles::Handle;
use crate::fs::identity::FileIdentity;
use crate::fs::{paths, rename};
use crate::ids::{ExportId, FileId, IdVec, TensorId};
use crate::model::{Name, header};
use crate::plan::Checks;
use crate::plan::fingerprint::{self, Prints};
use crate::plan::{ExportPlan, Plan, Task};
use crate::publish::{files, hidden};
use crate::quant::Distortion;
use crate::report::FileRecord;
use crate::run::incremental::record;
use crate::run::incremental::record::{CarriedFile, Finished, Found, Header, WrittenFile};

/// A folder with finished tensors.
#[derive(Debug)]
pub(crate) struct Store {
    pub header: Header,
    /// Whether it is the staging folder of a run that did not publish it, in the layout that the plan wants.
    pub is_staging: bool,
    known: Known,
    /// Of each tensor of the model what the record says, if it was finished and its bytes can be there.
    finished: IdVec<TensorId, Option<Box<Finished>>>,
    pub files: IdVec<FileId, StoredFile>,
}

/// How it is known that files are as they were when the record was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    /// By their identities: the system has not been started since.
    Here,
    /// By what of their identities is the same on every machine: they were on the disk before the record was.
    Anywhere,
    /// Not at all: what was not flushed when the system ended may be lost.
    No,
}

impl Known {
    fn of(header: &Header) -> Self {
        if header.is_of_this_boot() { Self::Here } else { Self::No }
    }

    fn is_file(self, then: Option<FileIdentity>, now: FileIdentity) -> bool {
        match self {
            Self::Here => then == Some(now),
            Self::Anywhere => then.is_some_and(|then| then.anywhere() == now.anywhere()),
            Self::No => false,
        }
    }

    fn is_source(self, then: &Identity, now: &Identity) -> bool {
        match self {
            Self::Here => then == now,
            Self::Anywhere => then.anywhere() == now.anywhere(),
            Self::No => false,
        }
    }
}

/// A weight file of a store.
#[derive(Debug)]
pub(crate) struct StoredFile {
    pub path: PathBuf,
    pub len: u64,
    /// None where it could not be opened, or is a link.
    file: Option<Handle>,
    /// Whether it is as it was written, as far as its identity tells.
    pub is_trusted: bool,
    /// Whether it has another name too, perhaps in a published output: then it must not be written to.
    pub is_shared: bool,
    /// Whether it is uploaded, and cannot be read here.
    pub is_uploaded: bool,
}

/// Where the tensors of a file are, by its own header: offset and bytes.
type Places = HashMap<Name, (u64, u64)>;

impl StoredFile {
    /// Looks at a file in a folder and where its tensors are; one without tensors if it cannot be understood.
    fn look(root: &Path, folder: &Arc<Folder>, file: &WrittenFile, known: Known) -> (Self, Places) {
        let path = root.join(&file.name);
        let (folder, name) = (Arc::clone(folder), PathBuf::from(&file.name));
        let open = move || folder.open_file(&name, false);
        let Some((metadata, opened)) = open().ok().and_then(|file| Some((file.metadata().ok()?, file)))
        else {
            return (Self::absent(path), Places::new());
        };
        let found = FileIdentity::of(&metadata);
        let read = header::read(BufReader::new(&opened), found.len, &file.name);
        let places = |header: header::Header| {
            header.tensors().map(|tensor| (tensor.name, (tensor.offset, tensor.bytes))).collect()
        };
        let places = read.map(places).unwrap_or_default();
        let file = Self {
            path,
            len: found.len,
            file: Handle::new(opened, open).ok(),
            is_trusted: known.is_file(file.identity, found),
            is_shared: is_shared(&metadata),
            is_uploaded: false,
        };
        (file, places)
    }

    fn absent(path: PathBuf) -> Self {
        Self { path, len: 0, file: None, is_trusted: false, is_shared: true, is_uploaded: false }
    }

    /// A file that is uploaded, if it is: it has its tensors where the plan has them.
    #[cfg(feature = "cloud")]
    fn uploaded(plan: &Plan, export: &ExportPlan, (index, file): (FileId, &WrittenFile)) -> (Self, Places) {
        let absent = Self::absent(export.path.join(&file.name));
        let Some(planned) = export.files.get(index).filter(|_| file.uploaded.is_some()) else {
            return (absent, Places::new());
        };
        let content = plan.content();
        let tensors = export.tensors[planned.tensors.clone()].iter();
        let place = |tensor: &crate::plan::OutputTensor| {
            (Name::from(&*tensor.name(content)), (tensor.offset, tensor.bytes(content)))
        };
        let places = tensors.map(place).collect();
        (Self { len: planned.bytes, is_trusted: true, is_uploaded: true, ..absent }, places)
    }
}

impl Store {
    fn open(
        plan: &Plan,
        export: &ExportPlan,
        root: &Path,
        (header, finished): (Header, Vec<Finished>),
        (is_staging, known): (bool, Known),
    ) -> Option<Self> {
        let folder = Arc::new(Folder::open(root).ok()?);
        let look = |file: &WrittenFile| StoredFile::look(root, &folder, file, known);
        let (files, places): (Vec<_>, Vec<_>) = header.files.iter().map(look).unzip();
        let store = Self {
            header,
            is_staging,
            known,
            finished: plan.model.tensors.map(|_| None),
            files: files.into(),
        };
        Some(store.with(plan, export, finished, &places.into()))
    }

    /// With the tensors that can be in the files, by these places.
    fn with(
        mut self,
        plan: &Plan,
        export: &ExportPlan,
        finished: Vec<Finished>,
        places: &IdVec<FileId, Places>,
    ) -> Self {
        for one in finished {
            if let Some(tensor) = self.tensor_of(plan, export, &one, places) {
                self.finished[tensor] = Some(Box::new(one));
            }
        }
        self
    }

    /// The tensor that a record is of, if what is recorded can be in the files, by their own headers.
    fn tensor_of(
        &self,
        plan: &Plan,
        export: &ExportPlan,
        found: &Finished,
        places: &IdVec<FileId, Places>,
    ) -> Option<TensorId> {
        let tensor = plan.model.find(&found.name)?;
        let content = plan.content();
        let mut parts = found.parts.iter();
        let are_there = export.tensors_of(plan, tensor).all(|output| {
            let (planned, Some(part)) = (&export.tensors[output], parts.next()) else { return false };
            let is_in = |file: &StoredFile| {
                let is_in_place = (part.file, part.offset) == (planned.file(), planned.offset);
                places[part.file].get(planned.name(content).as_str()) == Some(&(part.offset, part.bytes))
                    && (!self.is_staging || is_in_place && !file.is_shared)
            };
            part.bytes == planned.bytes(content)
                && (part.bytes == 0 || self.files.get(part.file).is_some_and(is_in))
        });
        (are_there && parts.next().is_none()).then_some(tensor)
    }

    /// The path of a weight file.
    pub(crate) fn path(&self, file: FileId) -> &Path {
        &self.files[file].path
    }

    /// A weight file.
    ///
    /// # Errors
    /// Where it could not be opened, or is a link.
    pub(crate) fn file(&self, file: FileId) -> std::io::Result<&Handle> {
        self.files[file].file.as_ref().ok_or_else(|| std::io::ErrorKind::NotFound.into())
    }

    /// Whether a source file is the one that was read for this store.
    pub(crate) fn knows_source(&self, shard: &crate::model::Shard) -> bool {
        let known = self.header.sources.iter().find(|source| source.name == shard.name);
        known.is_some_and(|source| {
            source.is_settled && self.known.is_source(&source.identity, &shard.identity)
        })
    }

    /// The hash of a file that is unchanged since it was written.
    pub(crate) fn hash_of(&self, path: &Path) -> Option<String> {
        let at = self.files.iter().position(|file| file.path == path && file.is_trusted)?;
        self.header.files[at].blake3.clone()
    }

    /// What is known of a file that is uploaded.
    pub(crate) fn uploaded(&self, file: FileId) -> Option<&WrittenFile> {
        self.header.files.get(file.index()).filter(|_| self.files[file].is_uploaded)
    }

    /// The record of a file that is carried over, if the source is the file that was looked at then.
    pub(crate) fn carried(&self, name: &str, source: &Identity, bytes: u64) -> Option<&FileRecord> {
        let is_it = |carried: &&CarriedFile| {
            let is_source = self.known.is_source(&carried.source, source);
            carried.file.name == name && is_source && carried.is_settled
        };
        let known = self.header.carried.iter().find(is_it)?;
        (known.file.bytes == bytes).then_some(&known.file)
    }

    /// Whether a file found in the published output is this one, as it was carried over then.
    pub(crate) fn has_carried(&self, file: &FileRecord, found: &FileIdentity) -> bool {
        let is_it = |carried: &CarriedFile| {
            (&carried.file.name, &carried.file.crc64nvme) == (&file.name, &file.crc64nvme)
                && self.known.is_file(carried.written, *found)
        };
        !self.is_staging && self.header.carried.iter().any(is_it)
    }

    /// The tensor, if its record matches the plan and its bytes can be there.
    pub(crate) fn find(&self, wanted: &Wanted<'_>, export: ExportId, checks: Checks) -> Option<&Finished> {
        let found = self.finished[wanted.tensor].as_deref()?;
        let fits = found.numbers == wanted.prints.numbers(wanted.tensor)
            && found.output == wanted.prints.output(export, wanted.tensor)
            && self.header.checks.cover(checks)
            && wanted.is_measured_by(found, checks);
        fits.then_some(found)
    }
}

/// A source tensor that is wanted as a plan has it.
pub(crate) struct Wanted<'a> {
    pub plan: &'a Plan,
    pub tensor: TensorId,
    pub prints: &'a Prints,
}

impl Wanted<'_> {
    /// Whether what was measured can be of this tensor.
    fn is_measured_by(&self, found: &Finished, checks: Checks) -> bool {
        let tensor = &self.plan.model.tensors[self.tensor];
        let inputs = 1 + tensor.parts().len();
        let is_quantized = self.plan.decisions[self.tensor].spec().is_some();
        let is_of = |(task, distortion): (&Task, &Option<Distortion>)| match (
            task.matrix(&self.plan.model),
            distortion,
        ) {
            (Some(view), Some(distortion)) => is_quantized && distortion.is_of(view.rows, view.cols),
            (None, Some(_)) => false,
            (Some(view), None) => !is_quantized || !checks.measure || view.rows == 0 || view.cols == 0,
            (None, None) => true,
        };
        let tasks = self.plan.tasks_of(self.tensor).map(|task| &self.plan.tasks[task]);
        found.source.len() == inputs
            && found.not_finite.is_none_or(|element| element < tensor.elements())
            && self.plan.tasks_of(self.tensor).count() == found.tasks.len()
            && tasks.zip(&found.tasks).all(is_of)
    }
}

/// Whether a file has more than one name.
fn is_shared(metadata: &fs::Metadata) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        metadata.nlink() > 1
    }
    #[cfg(not(unix))]
    {
        let _ = metadata;
        true
    }
}

/// The stores of an export, the last output first, and notes on those that are of no use.
#[derive(Debug, Default)]
pub(crate) struct Stores {
    pub stores: Vec<Store>,
    pub notes: Vec<String>,
}

/// The finished tensors that parts of a run have left in a folder of their own, whichever machines they ran on: what all of their
/// records say together. None if there is none.
pub(crate) fn of_parts(plan: &Plan, export: &ExportPlan, folder: &Path) -> Option<Store> {
    let names = Folder::open(folder).ok()?.tree().ok()?;
    let records = names.iter().filter(|entry| {
        entry.is_file() && entry.name.extension().is_some_and(|extension| extension == PART_RECORD)
    });
    let all = all_of(records.map(|entry| record::read(&folder.join(&entry.name), known(plan))));
    Store::open(plan, export, folder, all?, (false, Known::Anywhere))
}

/// The finished tensors in files that parts of a run have uploaded, by the texts of their records. None if there is none.
#[cfg(feature = "cloud")]
pub(crate) fn of_uploads<'t>(
    plan: &Plan,
    export: &ExportPlan,
    texts: impl Iterator<Item = &'t str>,
) -> Option<Store> {
    let (header, finished) = all_of(texts.map(|text| record::read_text(text, known(plan))))?;
    let files = header.files.iter().enumerate();
    let look = |(index, file)| StoredFile::uploaded(plan, export, (FileId::new(index), file));
    let (files, places): (Vec<_>, Vec<_>) = files.map(look).unzip();
    let store = Store {
        header,
        is_staging: false,
        known: Known::Anywhere,
        finished: plan.model.tensors.map(|_| None),
        files: files.into(),
    };
    Some(store.with(plan, export, finished, &places.into()))
}

/// What the records of all parts say together.
fn all_of(records: impl Iterator<Item = Found>) -> Option<(Header, Vec<Finished>)> {
    let mut all: Option<(Header, Vec<Finished>)> = None;
    for record in records {
        let Found::Record(header, finished) = record else { continue };
        match &mut all {
            None => all = Some((header, finished)),
            Some((so_far, all)) => {
                if so_far.add_part(&header) {
                    all.extend(finished);
                }
            }
        }
    }
    all
}

/// The ending of the records of parts.
pub(crate) const PART_RECORD: &str = "record";

/// Names are those of the model, of which there is one text; what is not of the model is of no use.
fn known(plan: &Plan) -> impl FnMut(Finished) -> Option<Finished> + '_ {
    |mut finished: Finished| {
        finished.name = plan.model.by_name(&finished.name)?.name.clone();
        Some(finished)
    }
}

/// The finished tensors of the published output.
///
/// # Errors
/// The version or build that it is of, if that is another one.
pub(crate) fn published(plan: &Plan, export: &ExportPlan) -> Result<Option<Store>, String> {
    match record::read(&hidden::record(&export.path), known(plan)) {
        Found::Record(header, finished) if paths::is_folder(&export.path) => {
            let known = Known::of(&header);
            Ok(Store::open(plan, export, &export.path, (header, finished), (false, known)))
        }
        Found::OfAnother(which) if paths::is_folder(&export.path) => Err(which),
        _ => Ok(None),
    }
}

/// Looks for finished tensors of an export. The staging folder of an interrupted run with another layout is moved
/// aside. The lock of the output must be held.
///
/// # Errors
/// If that folder cannot be moved.
pub(crate) fn stores(plan: &Plan, export: &ExportPlan) -> Result<Stores, Failure> {
    let mut out = Stores::default();
    match published(plan, export) {
        Ok(store) => out.stores.extend(store),
        Err(which) => out.notes.push(format!("everything is made anew: the last output is of {which}")),
    }
    let folder = hidden::staging(&export.path);
    match record::read(&hidden::journal(&export.path), known(plan)) {
        Found::Record(header, finished) if paths::is_folder(&folder) => {
            let is_staging = header.layout == fingerprint::layout(plan, export);
            let root = if is_staging {
                folder
            } else {
                let aside = hidden::interrupted(&export.path);
                let _ = exclusive::remove_folder(&aside);
                rename::over(&folder, &aside)
                    .map_err(|error| files::cannot_write("move", &folder, &error))?;
                aside
            };
            let known = Known::of(&header);
            out.stores.extend(Store::open(plan, export, &root, (header, finished), (is_staging, known)));
        }
        Found::OfAnother(which) if paths::is_folder(&folder) => {
            out.notes.push(format!("an interrupted run cannot be taken up: it was of {which}"));
        }
        _ => {}
    }
    Ok(out)
}
