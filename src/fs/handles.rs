//! Files that are read or written at positions all through a run, of which only some are open at a time: a model may have more
//! files, and its output as many again, than a process may have open.

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::{Error, Result};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use super::limits;

/// Files that are open beside those here, whatever the limit is: terminals, locks, folders, what is looked at in passing.
const OTHERS: u64 = 32;

/// More open files make nothing faster.
const AT_MOST: u64 = 512;

/// The files of a process: half of what there may be, since to open one takes its folder's handle for a moment.
static OPEN: LazyLock<Open> = LazyLock::new(|| {
    let limit = limits::open_files().unwrap_or(u64::MAX);
    Open::new((limit.saturating_sub(OTHERS) / 2).clamp(2, AT_MOST) as usize)
});

static NEXT: AtomicU64 = AtomicU64::new(0);

/// Files of which no more than so many are open.
struct Open {
    most: usize,
    slots: Mutex<Slots>,
    /// Something that others may wait for: a file is no longer used, or was opened.
    changed: Condvar,
}

/// What is open, by handle.
#[derive(Default)]
struct Slots {
    clock: u64,
    by_handle: HashMap<u64, Slot>,
}

struct Slot {
    /// None while it is being opened.
    file: Option<Arc<File>>,
    users: usize,
    /// When it was used last.
    used: u64,
}

impl Slots {
    /// The file that nobody uses and was used least recently, a few aside.
    fn idle(&self, but: &[u64]) -> Option<u64> {
        let idle = self.by_handle.iter().filter(|(id, slot)| slot.users == 0 && !but.contains(id));
        idle.min_by_key(|(_, slot)| slot.used).map(|(id, _)| *id)
    }

    /// Takes files out until so many more may be open. To be dropped when nobody waits; none where too many are used.
    fn make_room(&mut self, wanted: usize, most: usize, but: &[u64]) -> Option<Vec<Slot>> {
        let idle = self.by_handle.iter().filter(|(id, slot)| slot.users == 0 && !but.contains(id)).count();
        if self.by_handle.len() - idle + wanted > most {
            return None;
        }
        let mut out = Vec::new();
        while self.by_handle.len() + wanted > most {
            out.extend(self.idle(but).and_then(|oldest| self.by_handle.remove(&oldest)));
        }
        Some(out)
    }

    fn put(&mut self, id: u64, file: Option<Arc<File>>, users: usize) {
        self.clock += 1;
        self.by_handle.insert(id, Slot { file, users, used: self.clock });
    }
}

impl Open {
    fn new(most: usize) -> Self {
        Self { most, slots: Mutex::default(), changed: Condvar::new() }
    }

    fn slots(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps an open file if there is room.
    fn keep(&self, id: u64, file: File) {
        let mut slots = self.slots();
        let closed = slots.make_room(1, self.most, &[]);
        if closed.is_some() {
            slots.put(id, Some(Arc::new(file)), 0);
        }
        drop(slots);
        drop(closed);
    }

    /// Waits until these files may be open at once, and takes those that are; the others have their slots.
    fn take<const N: usize>(&self, ids: [u64; N]) -> [Option<Arc<File>>; N] {
        let mut slots = self.slots();
        loop {
            let is_being_opened = |id| slots.by_handle.get(id).is_some_and(|slot| slot.file.is_none());
            let wanted = ids.iter().filter(|id| !slots.by_handle.contains_key(id)).count();
            if !ids.iter().any(is_being_opened)
                && let Some(closed) = slots.make_room(wanted, self.most, &ids)
            {
                let taken = ids.map(|id| {
                    slots.clock += 1;
                    let now = slots.clock;
                    if let Some(slot) = slots.by_handle.get_mut(&id) {
                        slot.users += 1;
                        slot.used = now;
                        return slot.file.clone();
                    }
                    slots.put(id, None, 1);
                    None
                });
                drop(slots);
                drop(closed);
                return taken;
            }
            slots = self.changed.wait(slots).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Gives a file back that was taken.
    fn give_back(&self, id: u64) {
        let mut slots = self.slots();
        let mut closed = None;
        if let Some(slot) = slots.by_handle.get_mut(&id) {
            slot.users -= 1;
            // One that could not be opened is as if it had never been asked for.
            if slot.users == 0 && slot.file.is_none() {
                closed = slots.by_handle.remove(&id);
            }
        }
        drop(slots);
        drop(closed);
        self.changed.notify_all();
    }

    /// Closes a file that nobody uses; false if there is none.
    fn close_one(&self) -> bool {
        let mut slots = self.slots();
        let closed = slots.idle(&[]).and_then(|oldest| slots.by_handle.remove(&oldest));
        drop(slots);
        closed.is_some()
    }
}

type Reopen = Box<dyn Fn() -> Result<File> + Send + Sync>;

/// A file that is open when it is used. Opened again it is the same file, or an error.
pub struct Handle {
    id: u64,
    open: &'static Open,
    identity: Identity,
    reopen: Reopen,
}

/// What is in a file's place is another file: the error of using one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it was replaced by another file meanwhile")]
pub struct Replaced;

impl Replaced {
    /// Whether an error is this one.
    #[must_use]
    pub fn is(error: &Error) -> bool {
        error.get_ref().is_some_and(|inner| inner.is::<Self>())
    }
}

impl From<Replaced> for Error {
    fn from(replaced: Replaced) -> Self {
        Self::other(replaced)
    }
}

/// A file that is in use.
struct Used {
    open: &'static Open,
    id: u64,
}

impl Drop for Used {
    fn drop(&mut self) {
        self.open.give_back(self.id);
    }
}

impl Handle {
    /// Takes an open file, and how it is opened again.
    ///
    /// # Errors
    /// Where the system says nothing about the open file.
    pub fn new(file: File, reopen: impl Fn() -> Result<File> + Send + Sync + 'static) -> Result<Self> {
        Self::among(&OPEN, file, reopen)
    }

    fn among(
        open: &'static Open,
        file: File,
        reopen: impl Fn() -> Result<File> + Send + Sync + 'static,
    ) -> Result<Self> {
        let (id, identity) = (NEXT.fetch_add(1, Ordering::Relaxed), identity(&file)?);
        open.keep(id, file);
        Ok(Self { id, open, identity, reopen: Box::new(reopen) })
    }

    /// Uses the file. Other files of handles must not be used meanwhile by the same thread: see [`Handle::with_both`].
    ///
    /// # Errors
    /// Those of the use; it cannot be opened again, or something else is in its place ([`Replaced`]).
    pub fn with<T>(&self, work: impl FnOnce(&File) -> Result<T>) -> Result<T> {
        let [file] = self.open.take([self.id]);
        let _used = self.used();
        work(&*self.opened(file)?)
    }

    /// Uses the files of two handles at once.
    ///
    /// # Errors
    /// As [`Handle::with`].
    pub fn with_both<T>(a: &Self, b: &Self, work: impl FnOnce(&File, &File) -> Result<T>) -> Result<T> {
        let [of_a, of_b] = a.open.take([a.id, b.id]);
        let _used = [a.used(), b.used()];
        work(&*a.opened(of_a)?, &*b.opened(of_b)?)
    }

    fn used(&self) -> Used {
        Used { open: self.open, id: self.id }
    }

    /// The file, opened if it was not.
    fn opened(&self, file: Option<Arc<File>>) -> Result<Arc<File>> {
        if let Some(file) = file {
            return Ok(file);
        }
        let file = loop {
            match (self.reopen)() {
                Err(error) if limits::is_out_of_files(&error) && self.open.close_one() => {}
                opened => break opened?,
            }
        };
        if identity(&file)? != self.identity {
            return Err(Replaced.into());
        }
        let file = Arc::new(file);
        if let Some(slot) = self.open.slots().by_handle.get_mut(&self.id) {
            slot.file = Some(Arc::clone(&file));
        }
        self.open.changed.notify_all();
        Ok(file)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let closed = self.open.slots().by_handle.remove(&self.id);
        drop(closed);
        self.open.changed.notify_all();
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Handle({})", self.id)
    }
}

/// What tells a file from another one in its place: device and inode, and when it was made, where a file system tells, since the
/// number of an inode is given again.
type Identity = (Option<(u64, u64)>, Option<SystemTime>);

fn identity(file: &File) -> Result<Identity> {
    let metadata = file.metadata()?;
    #[cfg(unix)]
    let numbers = {
        use std::os::unix::fs::MetadataExt;
        Some((metadata.dev(), metadata.ino()))
    };
    #[cfg(not(unix))]
    let numbers = None;
    Ok((numbers, metadata.created().ok()))
}

#[cfg(test)]
mod tests;
