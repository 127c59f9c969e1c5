//! A source in memory: the smallest implementation of the port.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use monoquant::format::source::{Blob, Done, Entry, Identity, Kind, Source};
use monoquant::fs::handles::Replaced;

/// A file: its bytes, and how often it was exchanged.
type File = (Arc<[u8]>, usize);

/// Files by their names, which can be exchanged.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    files: Arc<Mutex<BTreeMap<String, File>>>,
    /// Bytes that were read at once, and bytes that were asked for, if it is to be treated like a store.
    remote: Option<Arc<[AtomicU64; 2]>>,
}

impl Memory {
    /// The files of a folder.
    pub fn of(folder: &Path) -> Self {
        let memory = Self::default();
        super::files(folder).into_iter().for_each(|(name, bytes)| memory.put(&name, bytes));
        memory
    }

    /// The same files, as if they were behind a network.
    pub fn remote(self) -> Self {
        Self { remote: Some(Arc::default()), ..self }
    }

    /// Bytes that were read at once, and bytes that were asked for ahead, since this was called last.
    pub fn traffic(&self) -> [u64; 2] {
        let counts = self.remote.as_ref().expect("it is remote");
        [0, 1].map(|which| counts[which].swap(0, Ordering::SeqCst))
    }

    /// Puts a file in, or in the place of another.
    pub fn put(&self, name: &str, bytes: Vec<u8>) {
        let mut files = self.files.lock().expect("no thread has panicked");
        let version = files.get(name).map_or(0, |(_, version)| version + 1);
        files.insert(name.to_owned(), (bytes.into(), version));
    }

    /// A file.
    pub fn get(&self, name: &str) -> io::Result<File> {
        let files = self.files.lock().expect("no thread has panicked");
        files.get(name).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Source for Memory {
    fn name(&self) -> String {
        "memory".to_owned()
    }

    fn place(&self, path: &str) -> String {
        format!("memory/{path}")
    }

    fn list(&self) -> Vec<Entry> {
        let files = self.files.lock().expect("no thread has panicked");
        let blob = |(name, (bytes, _)): (&String, &File)| Entry {
            path: name.clone(),
            kind: Kind::Blob(bytes.len() as u64),
        };
        files.iter().map(blob).collect()
    }

    fn is_remote(&self) -> bool {
        self.remote.is_some()
    }

    fn open(&self, path: &str) -> io::Result<Box<dyn Blob>> {
        let (bytes, version) = self.get(path)?;
        let identity = identity(version);
        Ok(Box::new(Bytes { memory: self.clone(), name: path.to_owned(), bytes, identity }))
    }
}

fn identity(version: usize) -> Identity {
    Identity::of_version(version.to_string())
}

#[derive(Debug)]
struct Bytes {
    memory: Memory,
    name: String,
    bytes: Arc<[u8]>,
    identity: Identity,
}

impl Blob for Bytes {
    fn bytes(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn identity_now(&self) -> io::Result<Identity> {
        Ok(identity(self.memory.get(&self.name)?.1))
    }

    /// Gives fewer bytes than are asked for, and none of a file that was exchanged.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        if self.identity_now()? != self.identity {
            return Err(Replaced.into());
        }
        let rest = self.bytes.get(offset as usize..).unwrap_or_default();
        let count = rest.len().min(buffer.len()).min(1000);
        buffer[..count].copy_from_slice(&rest[..count]);
        if let Some(counts) = &self.memory.remote {
            counts[0].fetch_add(count as u64, Ordering::SeqCst);
        }
        Ok(count)
    }

    fn begin(&self, range: Range<u64>, done: Done) {
        let is_same = self.identity_now().is_ok_and(|identity| identity == self.identity);
        let bytes = self.bytes[range.start as usize..range.end as usize].to_vec();
        if let Some(counts) = &self.memory.remote {
            counts[1].fetch_add(bytes.len() as u64, Ordering::SeqCst);
        }
        std::thread::spawn(move || done(if is_same { Ok(bytes) } else { Err(Replaced.into()) }));
    }
}
