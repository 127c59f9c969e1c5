//! Uploads in parts: of one process, to be ended by it or another one.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use object_store::multipart::PartId;
use object_store::{Attribute, Attributes, PutMultipartOptions};

use super::*;
use crate::digest::checksum;
use crate::fs::positioned;
use crate::plan::budget::{PARTS_AT_ONCE, part_bytes};
use crate::publish::files::{cannot_write, open_to_read};
use crate::sync::lock;

/// The metadata in which an object that was uploaded in parts has its checksum.
const SUM: Attribute = Attribute::Metadata(Cow::Borrowed("monoquant-crc64nvme"));

/// What ends an upload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    upload: String,
    parts: Vec<String>,
    pub(super) sum: Sum,
}

/// Files that are uploaded together, and whose uploads are not ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Group {
    files: BTreeMap<String, Record>,
    /// The record of what is in them, as text.
    pub(crate) told: String,
}

/// An upload that was begun.
#[derive(Debug, Serialize, Deserialize)]
struct Note {
    file: String,
    upload: String,
}

/// What goes on while files are uploaded.
#[derive(Clone, Copy)]
pub(crate) struct Going<'a> {
    pub(crate) cancel: &'a Cancel,
    /// Is told how many bytes more are sent.
    pub(crate) sent: &'a (dyn Fn(u64) + Sync),
}

impl Group {
    pub(crate) fn has(&self, name: &str) -> bool {
        self.files.contains_key(name)
    }

    pub(super) fn records(&self) -> impl Iterator<Item = (&String, &Record)> {
        self.files.iter()
    }

    /// Whether it holds these files, with these bytes.
    fn is_of(&self, files: &[Local]) -> bool {
        let is_same = |file: &Local| self.files.get(&file.name).is_some_and(|known| known.sum == file.sum);
        self.files.len() == files.len() && files.iter().all(is_same)
    }

    /// The name by which it is found.
    fn first(&self) -> &str {
        self.files.keys().next().map_or("", String::as_str)
    }
}

impl Store {
    /// All groups that processes of the plan have uploaded.
    ///
    /// # Errors
    /// If the store cannot be reached, or holds something else in their place.
    pub(crate) fn groups(&self) -> Result<Vec<Group>, Failure> {
        let keys = self.list(&self.own("files")?)?;
        let read = |key| self.read(key)?.map(|bytes| self.parsed(&bytes)).transpose();
        let groups: Result<Vec<Option<Group>>, Failure> =
            threads::map_waiting(&keys, read).into_iter().collect();
        Ok(groups?.into_iter().flatten().collect())
    }

    /// Uploads files that are made together and does not end the uploads, unless some process of the plan has done so already.
    ///
    /// # Errors
    /// If others are published already, or the store or the disk fails.
    pub(crate) fn uploaded(&self, files: &[Local], told: &str, going: &Going<'_>) -> Result<Group, Failure> {
        let mut group = Group { files: BTreeMap::new(), told: told.to_owned() };
        let first = files.iter().map(|file| file.name.as_str()).min().unwrap_or_default();
        let key = self.group_key(first)?;
        let there = || -> Result<Option<Group>, Failure> {
            let there: Option<Group> = self.read(&key)?.map(|bytes| self.parsed(&bytes)).transpose()?;
            Ok(there.filter(|there| there.is_of(files)))
        };
        if let Some(there) = there()? {
            return Ok(there);
        }
        for file in files {
            match self.upload(file, going) {
                Ok(record) => drop(group.files.insert(file.name.clone(), record)),
                // Whoever publishes removes the uploads of those who came second.
                Err(failure) => {
                    self.abort_all(&group);
                    return there().ok().flatten().ok_or(failure);
                }
            }
        }
        let bytes = serde_json::to_vec(&group).unwrap_or_default();
        for _ in 0..TRIES {
            let Created::Other(others) = self.create(&key, &bytes)? else { return Ok(group) };
            let others: Group = self.parsed(&others)?;
            let is_published = || Ok(self.read(&self.own(MANIFEST)?)?.is_some());
            if others.is_of(files) || is_published()? {
                self.abort_all(&group);
                return if others.is_of(files) { Ok(others) } else { Err(self.has_others()) };
            }
            // They were made with other codes or statistics, by a process that counts on them no more than this one.
            self.delete(&key)?;
            self.abort_all(&others);
        }
        Err(failed(&self.word, &Trouble::temporary("others upload other files of the same weights")))
    }

    fn group_key(&self, first: &str) -> Result<Path, Failure> {
        self.own(&format!("files/{first}.json"))
    }

    fn upload(&self, file: &Local, going: &Going<'_>) -> Result<Record, Failure> {
        let key = self.key(&file.name)?;
        let upload = self.ask(|bucket| {
            let key = key.clone();
            let attributes = Attributes::from_iter([(SUM, file.sum.crc64nvme.clone())]);
            let options = PutMultipartOptions { attributes, ..PutMultipartOptions::default() };
            async move { bucket.create_multipart_opts(&key, options).await }
        });
        let upload = upload.map_err(|error| self.failure(&error))?;
        let note = Note { file: file.name.clone(), upload: upload.clone() };
        self.create(&self.note(&file.name, &upload)?, &serde_json::to_vec(&note).unwrap_or_default())?;
        let bytes = part_bytes(file.sum.bytes);
        let count = file.sum.bytes.div_ceil(bytes).max(1);
        let (next, parts) = (AtomicU64::new(0), Mutex::new(BTreeMap::new()));
        let opened = open_to_read(&file.path)?;
        let send = || -> Result<(), Failure> {
            loop {
                let part = next.fetch_add(1, Ordering::Relaxed);
                if part >= count {
                    return Ok(());
                }
                going.cancel.check()?;
                let start = part * bytes;
                let mut buffer = vec![0; (file.sum.bytes - start).min(bytes) as usize];
                positioned::read_exact_at(&opened, &mut buffer, start)
                    .map_err(|error| cannot_write("read", &file.path, &error))?;
                let (crc, len) = (checksum::of(&buffer), buffer.len() as u64);
                let payload = PutPayload::from(buffer);
                let sent = self.ask(|bucket| {
                    let (key, upload, payload) = (key.clone(), upload.clone(), payload.clone());
                    async move { bucket.put_part(&key, &upload, part as usize, payload).await }
                });
                let sent = sent.map_err(|error| self.failure(&error))?;
                lock(&parts).insert(part, (sent.content_id, crc, len));
                (going.sent)(len);
            }
        };
        let sent: Result<(), Failure> = thread::scope(|scope| {
            let threads: Vec<_> = (0..count.min(PARTS_AT_ONCE)).map(|_| scope.spawn(send)).collect();
            let mut ends = threads.into_iter().map(|thread| thread.join());
            ends.try_for_each(|end| end.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        });
        let parts = std::mem::take(&mut *lock(&parts));
        let crc = parts.values().fold(0, |crc, (_, part, len)| checksum::joined(crc, *part, *len));
        let checked = sent.and_then(|()| match checksum::text(crc) == file.sum.crc64nvme {
            true => Ok(()),
            false => Err(not_read_back(file)),
        });
        if let Err(failure) = checked {
            let _ = self.abort(&file.name, &upload);
            return Err(failure);
        }
        let parts = parts.into_values().map(|(content, ..)| content).collect();
        Ok(Record { upload, parts, sum: file.sum.clone() })
    }

    /// Removes the uploads of a group. Those that cannot be removed now are noted.
    fn abort_all(&self, group: &Group) {
        for (name, record) in &group.files {
            let _ = self.abort(name, &record.upload);
        }
    }

    /// The note of an upload. Identifiers are long, and hold anything.
    fn note(&self, name: &str, upload: &str) -> Result<Path, Failure> {
        self.own(&format!("uploads/{name}-{}.json", &blake3::hash(upload.as_bytes()).to_hex()[..16]))
    }

    /// Removes an upload that was not ended, and its note.
    fn abort(&self, name: &str, upload: &str) -> Result<(), Failure> {
        let key = self.key(name)?;
        let gone = self.ask(|bucket| {
            let (key, upload) = (key.clone(), upload.to_owned());
            async move { bucket.abort_multipart(&key, &upload).await }
        });
        match gone {
            Ok(()) | Err(Error::NotFound { .. }) => self.delete(&self.note(name, upload)?),
            Err(error) => Err(self.failure(&error)),
        }
    }

    /// Ends the uploads of files, unless that was done.
    pub(super) fn end_uploads(&self, group: &Group) -> Result<(), Failure> {
        group.files.iter().try_for_each(|(name, record)| self.end_upload(group.first(), name, record))
    }

    fn end_upload(&self, first: &str, name: &str, record: &Record) -> Result<(), Failure> {
        if self.is_there(name, &record.sum)? {
            return Ok(());
        }
        let key = self.key(name)?;
        let ended = self.ask(|bucket| {
            let (key, upload) = (key.clone(), record.upload.clone());
            let parts = record.parts.iter().map(|part| PartId { content_id: part.clone() }).collect();
            async move { bucket.complete_multipart(&key, &upload, parts).await.map(drop) }
        });
        let Err(error) = ended else { return Ok(()) };
        // It may have been ended by another process, or by a request whose answer was lost.
        if self.is_there(name, &record.sum)? {
            return Ok(());
        }
        if let Error::NotFound { .. } = error {
            self.delete(&self.group_key(first)?)?;
            let gone = format!("the upload of {name} was removed, by a rule of the bucket or by hand");
            return Err(failed(&self.word, &Trouble::temporary(gone)));
        }
        Err(self.failure(&error))
    }

    /// Whether a file is visible.
    fn is_there(&self, name: &str, sum: &Sum) -> Result<bool, Failure> {
        let key = self.key(name)?;
        let got = self.ask(|bucket| {
            let (key, options) = (key.clone(), GetOptions { head: true, ..GetOptions::default() });
            async move { bucket.get_opts(&key, options).await.map(|got| (got.meta.size, got.attributes)) }
        });
        match got {
            Ok((bytes, attributes)) => {
                let told = attributes.get(&SUM).map(|told| told.as_ref());
                let is_same = bytes == sum.bytes && told == Some(sum.crc64nvme.as_str());
                if is_same { Ok(true) } else { Err(self.has_others()) }
            }
            Err(Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(self.failure(&error)),
        }
    }

    /// Removes the uploads that crashed processes have left, and all notes.
    pub(super) fn sweep(&self, records: &BTreeMap<&String, &Record>) -> Result<(), Failure> {
        for key in self.list(&self.own("uploads")?)? {
            let Some(bytes) = self.read(&key)? else { continue };
            let note: Note = self.parsed(&bytes)?;
            if records.get(&note.file).is_some_and(|record| record.upload == note.upload) {
                self.delete(&key)?;
            } else {
                // Another process may be about to do the same.
                let _ = self.abort(&note.file, &note.upload);
            }
        }
        Ok(())
    }
}

/// A file that is not on the disk as it was written.
fn not_read_back(file: &Local) -> Failure {
    let message = format!("{} is not read back as it was written", file.path.display());
    let finding = Finding::error("output::round-trip", message)
        .help("The disk or the memory of this machine may be faulty. Nothing of it was recorded; run again.");
    Failure::new(Exit::OutputDamaged, finding)
}
