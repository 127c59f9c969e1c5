//! Publishing to an object store. A store cannot rename, and readers take whatever is below a prefix: so nothing is visible before
//! everything is there and has passed, and nothing is ever replaced.
//!
//! Below the prefix, with PLAN for the fingerprint of all that decides the bytes of the weights:
//! 1. `.monoquant/claim` is created, with the plan. Whoever finds another plan there goes away.
//! 2. Weight files are uploaded in parts, and the uploads are not ended: there is nothing to be seen. Each upload is noted in
//!    `.monoquant/PLAN/uploads/`, so that what a process leaves behind that dies can be removed.
//! 3. `.monoquant/PLAN/files/FILE.json` is created for files that are made together, with what ends their uploads, and what a run
//!    needs to know of them that has not made them. Who comes second ends the first one's.
//! 4. `.monoquant/PLAN/manifest.json` is created, with the checksums of all files: who would publish others goes away.
//! 5. The uploads are ended; then the other files are created, `config.json` last.
//!
//! Each step is done again without harm, by the same process or another one: "created" means that it was not there, or was there with
//! the same bytes.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::sync::Arc;

use futures_util::StreamExt;
use object_store::path::Path;
use object_store::{Error, GetOptions, ObjectStoreExt, PutMode, PutOptions, PutPayload};
use serde::{Deserialize, Serialize};

use crate::cancel::Cancel;
use crate::exit::Exit;
use crate::finding::{Failure, Finding};
use crate::format::source::cloud::{Bucket, connect, patiently, trouble, wait};
use crate::format::source::{self, Trouble};
use crate::fs::processes::own_name;
use crate::threads;
pub(crate) use local::Local;
pub(crate) use upload::{Going, Group};

mod local;
mod upload;

/// Codes of findings about outputs in object stores.
pub(crate) mod code {
    /// The prefix is another run's.
    pub(crate) const CLAIMED: &str = "export::claimed";
    /// The store does not let it be written.
    pub(crate) const DENIED: &str = "export::denied";
    /// Something else is below the prefix.
    pub(crate) const OCCUPIED: &str = "export::occupied";
    /// The store refuses a request.
    pub(crate) const STORE: &str = "export::store";
    /// The store does not answer.
    pub(crate) const UNREACHABLE: &str = "export::unreachable";
}

/// The name of what is not for readers.
const OURS: &str = ".monoquant";

/// What the names of objects begin with that are made to see whether that is allowed.
const TRIAL: &str = ".monoquant/try-";

/// The object that lists what is published.
const MANIFEST: &str = "manifest.json";

/// The file without which no reader takes a prefix for a model.
const LAST: &str = "config.json";

/// Tries of creating an object that somebody removes in between.
const TRIES: usize = 8;

/// A place in an object store at which a plan's output is to be published.
#[derive(Debug)]
pub(crate) struct Store {
    word: String,
    bucket: Arc<dyn Bucket>,
    prefix: Path,
    /// The plan.
    id: String,
    /// Requests until all fail, in tests of processes that die.
    #[cfg(test)]
    left: std::sync::atomic::AtomicUsize,
}

/// What the claim of a prefix says.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Owner {
    plan: String,
}

/// All files of a publication, by name.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    files: BTreeMap<String, Sum>,
}

/// What tells the bytes of a file from others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Sum {
    bytes: u64,
    crc64nvme: String,
}

/// What became of an object that was to be created.
#[derive(Debug)]
enum Created {
    /// It was made.
    Now,
    /// It was there with these bytes, or the answer to the request that made it was lost.
    Before,
    /// It is there with others.
    Other(Vec<u8>),
}

impl Store {
    /// The place that a word stands for, for a plan. Nothing is asked for yet.
    ///
    /// # Errors
    /// If the word is wrong, or the environment does not tell how to reach the bucket.
    pub(crate) fn at(word: &str, id: String) -> Result<Self, Failure> {
        let (bucket, prefix) = connect(word).map_err(|trouble| failed(word, &trouble))?;
        if prefix.as_ref().is_empty() {
            let finding = Finding::error(code::STORE, format!("`{word}` names no prefix"))
                .help("Write `s3://bucket/prefix`: an output does not fill a whole bucket.");
            return Err(Failure::new(Exit::BadRecipe, finding));
        }
        Ok(Self::new(word, bucket, prefix, id))
    }

    fn new(word: &str, bucket: Arc<dyn Bucket>, prefix: Path, id: String) -> Self {
        Self {
            word: word.to_owned(),
            bucket,
            prefix,
            id,
            #[cfg(test)]
            left: usize::MAX.into(),
        }
    }

    /// Sends a request, again if it may be answered otherwise.
    fn ask<T, F>(&self, request: impl Fn(Arc<dyn Bucket>) -> F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        #[cfg(test)]
        {
            use std::sync::atomic::Ordering::SeqCst;
            if self.left.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_err() {
                return Err(Error::PermissionDenied { path: "dead".into(), source: "dead".into() });
            }
        }
        let lost = |error: io::Error| Error::Generic { store: "store", source: error.into() };
        patiently(|| wait(request(Arc::clone(&self.bucket))).map_err(lost)?)
    }

    fn failure(&self, error: &Error) -> Failure {
        failed(&self.word, &trouble(error))
    }

    fn refuse(&self, code: &'static str, what: &str, help: &str) -> Failure {
        Failure::new(Exit::CannotWrite, Finding::error(code, format!("`{}` {what}", self.word)).help(help))
    }

    /// An object of this name below the prefix.
    fn key(&self, name: &str) -> Result<Path, Failure> {
        Path::parse(format!("{}/{name}", self.prefix)).map_err(|_| {
            let what = format!("cannot hold a file named `{name}`");
            self.refuse(code::STORE, &what, "Leave it behind with `copy: false`, or rename it in the source.")
        })
    }

    /// An object of this plan that is not for readers.
    fn own(&self, name: &str) -> Result<Path, Failure> {
        self.key(&format!("{OURS}/{}/{name}", self.id))
    }

    fn claim_key(&self) -> Result<Path, Failure> {
        self.key(&format!("{OURS}/claim"))
    }

    fn read(&self, key: &Path) -> Result<Option<Vec<u8>>, Failure> {
        let got = self.ask(|bucket| {
            let key = key.clone();
            async move { Ok(bucket.get(&key).await?.bytes().await?.to_vec()) }
        });
        match got {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(self.failure(&error)),
        }
    }

    fn create(&self, key: &Path, bytes: &[u8]) -> Result<Created, Failure> {
        for _ in 0..TRIES {
            let put =
                self.ask(|bucket| {
                    let (key, payload) = (key.clone(), PutPayload::from(bytes.to_vec()));
                    async move {
                        bucket.put_opts(&key, payload, PutOptions::from(PutMode::Create)).await.map(drop)
                    }
                });
            match put {
                Ok(()) => return Ok(Created::Now),
                Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => match self.read(key)? {
                    Some(there) if there == bytes => return Ok(Created::Before),
                    Some(there) => return Ok(Created::Other(there)),
                    None => {}
                },
                Err(error) => return Err(self.failure(&error)),
            }
        }
        Err(failed(&self.word, &Trouble::temporary("an object is made and removed by others")))
    }

    fn delete(&self, key: &Path) -> Result<(), Failure> {
        let gone = self.ask(|bucket| {
            let key = key.clone();
            async move { bucket.delete(&key).await }
        });
        match gone {
            Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(self.failure(&error)),
        }
    }

    /// The objects below a prefix: some, if there are very many.
    fn list(&self, prefix: &Path) -> Result<Vec<Path>, Failure> {
        let listed = self.ask(|bucket| {
            let prefix = prefix.clone();
            async move {
                let mut listing = bucket.list(Some(&prefix)).take(100_000);
                let mut keys = Vec::new();
                while let Some(object) = listing.next().await {
                    keys.push(object?.location);
                }
                Ok(keys)
            }
        });
        listed.map_err(|error| self.failure(&error))
    }

    /// Looks whether the prefix can be reached.
    ///
    /// # Errors
    /// If not.
    pub(crate) fn look(&self) -> Result<(), Failure> {
        self.read(&self.claim_key()?)?;
        self.list(&self.prefix).map(drop)
    }

    /// Looks whether the prefix can be claimed and written, before a model runs. Until it has run, what is computed may not be known
    /// so well that another plan can be told from this one: then `is_known` is false.
    ///
    /// # Errors
    /// As those of [`Store::claim`].
    pub(crate) fn try_to_write(&self, is_known: bool) -> Result<(), Failure> {
        let claim = self.claim_key()?;
        match self.read(&claim)? {
            Some(there) if is_known && there != self.owner() => return Err(self.claimed()),
            Some(_) => {}
            None => self.check_is_free(&claim)?,
        }
        let trial = self.key(&format!("{TRIAL}{}", own_name()))?;
        self.create(&trial, b"")?;
        self.delete(&trial)
    }

    /// What the claim says.
    fn owner(&self) -> Vec<u8> {
        serde_json::to_vec(&Owner { plan: self.id.clone() }).unwrap_or_default()
    }

    /// Claims the prefix for the plan. Says whether this call did it, and no other process of the plan.
    ///
    /// # Errors
    /// If it is another plan's or holds something else, or the store cannot be reached or written.
    pub(crate) fn claim(&self) -> Result<bool, Failure> {
        let key = self.claim_key()?;
        let owner = self.owner();
        if let Some(there) = self.read(&key)? {
            return if there == owner { Ok(false) } else { Err(self.claimed()) };
        }
        if let Err(failure) = self.check_is_free(&key) {
            // Another process of the plan may have claimed it between the two, and published.
            return if self.read(&key)?.is_some_and(|there| there == owner) {
                Ok(false)
            } else {
                Err(failure)
            };
        }
        match self.create(&key, &owner)? {
            Created::Other(_) => Err(self.claimed()),
            Created::Before => Ok(false),
            // Another plan may have begun to publish between the two, its claim being gone.
            Created::Now => match self.check_is_free(&key) {
                Ok(()) => Ok(true),
                Err(failure) => self.delete(&key).and(Err(failure)),
            },
        }
    }

    fn claimed(&self) -> Failure {
        self.refuse(
            code::CLAIMED,
            "belongs to another plan: to another recipe, another source or another version of monoquant",
            "An output in an object store is never replaced. Choose a new prefix; or remove everything below this one, if no run \
             writes it and nobody reads it.",
        )
    }

    fn check_is_free(&self, claim: &Path) -> Result<(), Failure> {
        let own = self.key(&format!("{OURS}/{}", self.id))?;
        let trial = format!("{}/{TRIAL}", self.prefix);
        let is_foreign =
            |key: &&Path| *key != claim && !key.prefix_matches(&own) && !key.as_ref().starts_with(&trial);
        match self.list(&self.prefix)?.iter().find(is_foreign) {
            None => Ok(()),
            Some(key) => Err(self.refuse(
                code::OCCUPIED,
                &format!("is not empty: it holds `{key}`"),
                "An output in an object store replaces nothing. Choose a new prefix.",
            )),
        }
    }

    /// Gives the prefix back after a run that published nothing, unless another process of the plan is about to publish.
    ///
    /// # Errors
    /// If the store cannot be reached.
    pub(crate) fn withdraw(&self) -> Result<(), Failure> {
        if self.list(&self.key(&format!("{OURS}/{}", self.id))?)?.is_empty() {
            self.delete(&self.claim_key()?)?;
        }
        Ok(())
    }

    /// What is published, if everything is.
    ///
    /// # Errors
    /// If the store cannot be reached.
    pub(crate) fn published(&self) -> Result<Option<Manifest>, Failure> {
        let Some(bytes) = self.read(&self.own(MANIFEST)?)? else { return Ok(None) };
        let manifest: Manifest = self.parsed(&bytes)?;
        let Some(last) = manifest.last() else { return Ok(None) };
        let is_there = self.read(&self.key(last)?)?.is_some();
        Ok(is_there.then_some(manifest))
    }

    /// A file of what is published.
    ///
    /// # Errors
    /// If it is not there.
    pub(crate) fn file(&self, name: &str) -> Result<Vec<u8>, Failure> {
        let gone = || self.refuse(code::STORE, &format!("lacks `{name}`"), "Choose a new prefix.");
        self.read(&self.key(name)?)?.ok_or_else(gone)
    }

    fn parsed<T: for<'t> Deserialize<'t>>(&self, bytes: &[u8]) -> Result<T, Failure> {
        serde_json::from_slice(bytes).map_err(|error| {
            let what = format!("holds something below `{OURS}/` that monoquant did not write: {error}");
            self.refuse(code::OCCUPIED, &what, "Choose a new prefix.")
        })
    }

    /// Publishes the files of a finished output: those of this machine, and those that are uploaded.
    ///
    /// # Errors
    /// If the prefix is another plan's, files of others are in the place of these, or the store or the disk fails. Then the same call may
    /// be made again, with the groups that are there then.
    pub(crate) fn publish(
        &self,
        files: &[Local],
        mut groups: Vec<Group>,
        going: &Going<'_>,
    ) -> Result<(), Failure> {
        self.claim()?;
        for file in files.iter().filter(|file| file.is_uploaded()) {
            if !groups.iter().any(|group| group.has(&file.name)) {
                groups.push(self.uploaded(std::slice::from_ref(file), "", going)?);
            }
        }
        let uploads = || groups.iter().flat_map(Group::records);
        let sums = files.iter().map(|file| (file.name.clone(), file.sum.clone()));
        let sums = sums.chain(uploads().map(|(name, record)| (name.clone(), record.sum.clone())));
        let manifest = Manifest { files: sums.collect() };
        let (key, text) = (self.own(MANIFEST)?, serde_json::to_vec(&manifest).unwrap_or_default());
        let created = self.create(&key, &text)?;
        if matches!(created, Created::Other(_)) {
            return Err(self.has_others());
        }
        if let Err(failure) = self.claim() {
            // It was given back meanwhile, and is another plan's by now.
            return self.delete(&key).and(Err(failure));
        }
        going.cancel.check()?;
        let ended = threads::map_waiting(&groups, |group| self.end_uploads(group));
        ended.into_iter().collect::<Result<(), Failure>>()?;
        let (last, small): (Vec<&Local>, Vec<&Local>) = files
            .iter()
            .filter(|file| !file.is_uploaded())
            .partition(|file| Some(&*file.name) == manifest.last());
        for file in small.into_iter().chain(last) {
            if let Created::Other(_) = self.create(&self.key(&file.name)?, &file.read()?)? {
                return Err(self.has_others());
            }
        }
        self.sweep(&uploads().collect())
    }

    /// Removes all that a run has uploaded whose gates have failed, and gives the prefix back; nothing if another run of the plan is
    /// about to publish.
    ///
    /// # Errors
    /// If the store cannot be reached.
    pub(crate) fn discard(&self) -> Result<(), Failure> {
        if self.read(&self.own(MANIFEST)?)?.is_some() {
            return Ok(());
        }
        // Nobody is to count on an upload that is gone.
        self.list(&self.own("files")?)?.iter().try_for_each(|key| self.delete(key))?;
        self.sweep(&BTreeMap::new())?;
        self.withdraw()
    }

    /// That the plan has published other files, or something else is in the place of one.
    pub(crate) fn has_others(&self) -> Failure {
        self.refuse(
            code::CLAIMED,
            "holds other files of the same weights: those of a recipe with other gates, say, or of somebody else",
            "An output in an object store is never replaced. Choose a new prefix.",
        )
    }
}

impl Manifest {
    /// The file that is published last.
    fn last(&self) -> Option<&str> {
        let named = self.files.keys().find(|name| *name == LAST);
        let small = || self.files.iter().find(|(name, sum)| !sum.is_uploaded(name)).map(|(name, _)| name);
        named.or_else(small).map(String::as_str)
    }

    /// Whether a file has these bytes.
    pub(crate) fn has(&self, name: &str, bytes: &[u8]) -> bool {
        self.files.get(name) == Some(&Sum::of(bytes))
    }
}

/// Whether an object is not there. That it was removed while it was read is told otherwise than that it never was.
fn is_absent(error: &Error) -> bool {
    let trouble = trouble(error);
    trouble.code == source::code::NOT_FOUND && !trouble.what.contains("NoSuchBucket")
}

/// A trouble with a store that is written to.
fn failed(word: &str, trouble: &Trouble) -> Failure {
    let (code, exit) = match trouble.code {
        source::code::UNREACHABLE => (code::UNREACHABLE, Exit::TryAgain),
        source::code::DENIED => (code::DENIED, Exit::CannotWrite),
        _ => (code::STORE, Exit::CannotWrite),
    };
    let finding = Finding::error(code, format!("cannot publish at `{word}`: {trouble}"));
    Failure::new(exit, finding.help(trouble.help.clone()))
}

#[cfg(test)]
mod tests;
