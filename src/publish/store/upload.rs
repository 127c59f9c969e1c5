//! Uploads in parts: of one process, to be ended by it or another one.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use object_store::multipart::PartId;
use object_store::{Attribute, Attributes, PutMultipartOptions};

use super::*;
use crate::fs::positioned;
use crate::publish::files::{cannot_write, open_to_read};
use crate::sync::lock;

/// Bytes of a part, if that does not make too many of them.
const PART: u64 = 8 << 20;

/// Parts of an upload that a store allows.
const MOST: u64 = 10_000;

/// Parts that are sent at once.
const AT_ONCE: u64 = 4;

/// The metadata in which an object that was uploaded in parts has its checksum.
const SUM: Attribute = Attribute::Metadata(Cow::Borrowed("monoquant-crc64nvme"));

/// What ends an upload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    upload: String,
    parts: Vec<String>,
    sum: Sum,
}

/// An upload that was begun.
#[derive(Debug, Serialize, Deserialize)]
struct Note {
    file: String,
    upload: String,
}

impl Store {
    /// Uploads a file and does not end the upload, unless some process of the plan has done so already.
    pub(super) fn uploaded(&self, file: &Local, cancel: &Cancel) -> Result<Record, Failure> {
        let key = self.own(&format!("files/{}.json", file.name))?;
        let known = |bytes: &[u8]| {
            let record: Record = self.parsed(bytes)?;
            if record.sum == file.sum { Ok(record) } else { Err(self.has_others()) }
        };
        if let Some(bytes) = self.read(&key)? {
            return known(&bytes);
        }
        let record = match self.upload(file, cancel) {
            Ok(record) => record,
            // Whoever publishes removes the uploads of those who came second.
            Err(failure) => {
                let there = self.read(&key).ok().flatten();
                return there.map_or(Err(failure), |bytes| known(&bytes));
            }
        };
        match self.create(&key, &serde_json::to_vec(&record).unwrap_or_default())? {
            Created::Now | Created::Before => Ok(record),
            Created::Other(bytes) => {
                // What cannot be removed now is noted.
                let _ = self.abort(&file.name, &record.upload);
                known(&bytes)
            }
        }
    }

    fn upload(&self, file: &Local, cancel: &Cancel) -> Result<Record, Failure> {
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
        let bytes = PART.max(file.sum.bytes.div_ceil(MOST).next_multiple_of(1 << 20));
        let count = file.sum.bytes.div_ceil(bytes).max(1);
        let (next, parts) = (AtomicU64::new(0), Mutex::new(BTreeMap::new()));
        let opened = open_to_read(&file.path)?;
        let send = || -> Result<(), Failure> {
            loop {
                let part = next.fetch_add(1, Ordering::Relaxed);
                if part >= count {
                    return Ok(());
                }
                cancel.check()?;
                let start = part * bytes;
                let mut buffer = vec![0; (file.sum.bytes - start).min(bytes) as usize];
                positioned::read_exact_at(&opened, &mut buffer, start)
                    .map_err(|error| cannot_write("read", &file.path, &error))?;
                let payload = PutPayload::from(buffer);
                let sent = self.ask(|bucket| {
                    let (key, upload, payload) = (key.clone(), upload.clone(), payload.clone());
                    async move { bucket.put_part(&key, &upload, part as usize, payload).await }
                });
                let sent = sent.map_err(|error| self.failure(&error))?;
                lock(&parts).insert(part, sent.content_id);
            }
        };
        let sent: Result<(), Failure> = thread::scope(|scope| {
            let threads: Vec<_> = (0..count.min(AT_ONCE)).map(|_| scope.spawn(send)).collect();
            let mut ends = threads.into_iter().map(|thread| thread.join());
            ends.try_for_each(|end| end.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        });
        if let Err(failure) = sent {
            let _ = self.abort(&file.name, &upload);
            return Err(failure);
        }
        let parts = lock(&parts).values().cloned().collect();
        Ok(Record { upload, parts, sum: file.sum.clone() })
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

    /// Ends the upload of a file, unless that was done.
    pub(super) fn end_upload(&self, name: &str, record: &Record) -> Result<(), Failure> {
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
            self.delete(&self.own(&format!("files/{name}.json"))?)?;
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
    pub(super) fn sweep(&self, records: &BTreeMap<&str, Record>) -> Result<(), Failure> {
        for key in self.list(&self.own("uploads")?)? {
            let Some(bytes) = self.read(&key)? else { continue };
            let note: Note = self.parsed(&bytes)?;
            if records.get(note.file.as_str()).is_some_and(|record| record.upload == note.upload) {
                self.delete(&key)?;
            } else {
                // Another process may be about to do the same.
                let _ = self.abort(&note.file, &note.upload);
            }
        }
        Ok(())
    }
}
