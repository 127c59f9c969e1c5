//! The lock of an output. Only one run at a time works on it, from before the first check until its record is
//! written.
//!
//! The lock is a file. A run that finds none creates it, and the run that created it removes it. The system's own
//! lock on it tells a dead process from a living one. If the file system has no such locks (Lustre, some FUSE), the
//! content of the file decides: the process, and the start of the system and the name space that its number belongs
//! to. If the state is unknown, the process counts as alive.

use std::fs::{File, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::exit::Exit;
use crate::finding::{Failure, Finding};
use crate::fs::disk;
use crate::fs::exclusive::{self, Folder};
use crate::fs::processes::{self, place, started};
use crate::publish::files;
use crate::publish::files::cannot_write;
use crate::publish::hidden;

/// The number of attempts to take the lock while other runs take and release it.
const TRIES: usize = 50;

/// How long is waited before it is tried again.
const PAUSE: Duration = Duration::from_millis(10);

/// Bytes of a lock that are read.
const LONGEST: u64 = 4096;

/// The lock of an output, held by the one run that works on it.
#[derive(Debug)]
pub(crate) struct Lock {
    file: File,
    path: PathBuf,
    note: Option<String>,
}

/// Locks a file with the system's lock. Returns false if the file system has no locks.
type TryLock = fn(&File) -> Result<bool, TryLockError>;

/// The holder of a lock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Holder {
    host: String,
    /// The start of the system and the name space of process numbers.
    place: String,
    process: u32,
    /// When the process was started, as its system counts.
    started: String,
}

/// The state of a lock's holder, as far as the lock tells it.
#[derive(Debug, PartialEq, Eq)]
enum State {
    Alive,
    Dead,
    Unknown,
}

impl Lock {
    /// Takes the lock, and checks that no foreign files are in the places of the hidden files beside the output.
    ///
    /// # Errors
    /// If another run holds the lock, a foreign file is there, or the folder cannot be written.
    pub(crate) fn take(target: &Path) -> Result<Self, Failure> {
        Self::take_by(target, try_lock)
    }

    fn take_by(target: &Path, try_lock: TryLock) -> Result<Self, Failure> {
        hidden::check(target)?;
        files::create_dir_all(disk::above(target))?;
        let path = hidden::lock(target);
        let mut note = None;
        for _ in 0..TRIES {
            if let Some(file) = attempt(target, &path, try_lock, &mut note)? {
                let lock = Self { file, path, note };
                hidden::check(target)?;
                lock.check_owner(target)?;
                return Ok(lock);
            }
            std::thread::sleep(PAUSE);
        }
        Err(locked(&path, None))
    }

    /// The note about a run that held the lock before and has ended.
    #[must_use]
    pub(crate) fn note(&self) -> Option<&str> {
        self.note.as_deref()
    }

    /// Files that an interrupted run of another user left are not reused: that user could still write to them.
    fn check_owner(&self, target: &Path) -> Result<(), Failure> {
        for path in [hidden::staging(target), hidden::interrupted(target), hidden::parts(target)] {
            let Ok(folder) = Folder::open(&path) else { continue };
            let is_ours = folder.owner().is_none_or(|owner| self.owners().contains(&owner));
            if !is_ours {
                let message = format!(
                    "{} belongs to another user (uid {})",
                    path.display(),
                    folder.owner().unwrap_or_default()
                );
                let finding = Finding::error("export::not-yours", message).help(
                    "Their interrupted run, or parts of a run, have left it. Let them finish or remove it, or choose another `path`.",
                );
                return Err(Failure::new(Exit::CannotWrite, finding));
            }
        }
        Ok(())
    }

    /// This process's user, and the user to whom the file system says that its files belong.
    fn owners(&self) -> Vec<u32> {
        #[cfg(unix)]
        {
            use std::os::unix::fs::MetadataExt;
            let here = self.file.metadata().map(|metadata| metadata.uid());
            here.into_iter().chain([rustix::process::geteuid().as_raw()]).collect()
        }
        #[cfg(not(unix))]
        Vec::new()
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // The file is removed while the lock is still held, so that no other process locks a file that is about to be
        // removed.
        if exclusive::is_at(&self.file, &self.path) {
            let _ = exclusive::remove_file(&self.path);
        }
    }
}

/// Tries to take the lock once. None if another process was faster, or a dead lock was removed.
fn attempt(
    target: &Path,
    path: &Path,
    try_lock: TryLock,
    note: &mut Option<String>,
) -> Result<Option<File>, Failure> {
    let failed = |error: io::Error| cannot_write("lock", path, &error);
    let mut file = match exclusive::create_new(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            return clear(target, path, try_lock, note).map(|()| None);
        }
        Err(error) => return Err(cannot_write("make", path, &error)),
    };
    match try_lock(&file) {
        Ok(true | false) => {}
        // Another process has opened the file before it could be locked here, and decides what happens to it.
        Err(TryLockError::WouldBlock) => return Ok(None),
        Err(TryLockError::Error(error)) => {
            let _ = exclusive::remove_file(path);
            return Err(failed(error));
        }
    }
    let written = serde_json::to_vec(&Holder::here()).map_err(io::Error::from);
    if let Err(error) = written.and_then(|bytes| file.write_all(&bytes)) {
        let _ = exclusive::remove_file(path);
        return Err(failed(error));
    }
    Ok(exclusive::is_at(&file, path).then_some(file))
}

/// Removes the lock at a path if no process holds it any more.
fn clear(target: &Path, path: &Path, try_lock: TryLock, note: &mut Option<String>) -> Result<(), Failure> {
    let failed = |error: io::Error| cannot_write("lock", path, &error);
    let mut file = match exclusive::open_existing(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        opened => opened.map_err(failed)?,
    };
    let is_system_locked = match try_lock(&file) {
        Ok(locked) => locked,
        Err(TryLockError::WouldBlock) => {
            return Err(locked(path, holder(&mut file).as_ref()));
        }
        Err(TryLockError::Error(error)) => return Err(failed(error)),
    };
    if !exclusive::is_at(&file, path) {
        return Ok(());
    }
    let holder = holder(&mut file);
    let state = holder.as_ref().map_or(State::Unknown, Holder::state);
    match (is_system_locked, state) {
        // The system's lock is free, so its holder is dead, unless it had to do without.
        (true, State::Dead | State::Unknown) => {
            remove(path)?;
            if let Some(holder) = holder.filter(Holder::is_elsewhere) {
                *note = Some(format!(
                    "taking over from a run on {} (process {}) that has ended, as the file system tells",
                    holder.host, holder.process
                ));
            }
            Ok(())
        }
        (false, State::Dead) => {
            let guard = hidden::lock_of_lock(target);
            match exclusive::create_new(&guard) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    return Err(locked(&guard, None));
                }
                Err(error) => return Err(cannot_write("make", &guard, &error)),
            }
            // Under the guard no other process removes a dead lock. The file at the path may already be another lock.
            let done = if exclusive::is_at(&file, path) { remove(path) } else { Ok(()) };
            let _ = exclusive::remove_file(&guard);
            done
        }
        (_, State::Alive) | (false, State::Unknown) => Err(locked(path, holder.as_ref())),
    }
}

fn remove(path: &Path) -> Result<(), Failure> {
    match exclusive::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(cannot_write("remove", path, &error)),
        _ => Ok(()),
    }
}

fn try_lock(file: &File) -> Result<bool, TryLockError> {
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::Error(error)) if is_unsupported(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

fn is_unsupported(error: &io::Error) -> bool {
    #[cfg(unix)]
    {
        use rustix::io::Errno;
        let errors = [Errno::NOSYS, Errno::OPNOTSUPP, Errno::NOLCK, Errno::INVAL, Errno::NOTTY];
        errors.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
    }
    #[cfg(not(unix))]
    {
        error.kind() == io::ErrorKind::Unsupported
    }
}

fn holder(file: &mut File) -> Option<Holder> {
    let mut text = Vec::new();
    file.take(LONGEST).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

fn locked(path: &Path, holder: Option<&Holder>) -> Failure {
    let who = holder.map_or_else(String::new, |holder| {
        let host = if holder.host.is_empty() { String::new() } else { format!(" on {}", holder.host) };
        format!(" (process {}{host})", holder.process)
    });
    let is_certain = holder.is_some_and(|holder| holder.state() == State::Alive);
    let otherwise = if is_certain { "" } else { " If no run is alive that made it, remove it." };
    Failure::new(
        Exit::CannotWrite,
        Finding::error("export::locked", format!("another run is writing this output{who}"))
            .help(format!("It holds {}. Wait for it, or choose another `path`.{otherwise}", path.display())),
    )
}

impl Holder {
    fn here() -> Self {
        let process = std::process::id();
        Self {
            host: processes::host(),
            place: place(),
            process,
            started: started(process).unwrap_or_default(),
        }
    }

    fn is_elsewhere(&self) -> bool {
        !self.host.is_empty() && self.host != Self::here().host
    }

    fn state(&self) -> State {
        if self.place.is_empty() || self.place != place() {
            return State::Unknown;
        }
        match started(self.process) {
            Some(started) if started == self.started => State::Alive,
            _ => State::Dead,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn one_at_a_time_and_the_dead_hold_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("out");
        let lock = Lock::take(&target).unwrap();
        let failure = Lock::take(&target).unwrap_err();
        assert_eq!(failure.findings[0].code, "export::locked");
        drop(lock);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        for left in ["", "{}", "half of", r#"{"host":"h","place":"p","process":1,"started":"1"}"#] {
            fs::write(hidden::lock(&target), left).unwrap();
            drop(Lock::take(&target).unwrap());
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_process_without_the_systems_lock_is_known_by_what_it_wrote() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("out");
        let write = |holder: &Holder| {
            fs::write(hidden::lock(&target), serde_json::to_vec(holder).unwrap()).unwrap();
        };
        let here = Holder::here();
        assert_eq!(here.state(), State::Alive);
        write(&here);
        let failure = Lock::take(&target).unwrap_err();
        assert!(failure.findings[0].message.contains(&format!("process {}", here.process)));
        let dead = Holder { started: "0".to_owned(), ..here.clone() };
        assert_eq!(dead.state(), State::Dead);
        let elsewhere = Holder { place: "another".to_owned(), ..here };
        assert_eq!(elsewhere.state(), State::Unknown);
        write(&dead);
        drop(Lock::take(&target).unwrap());
    }

    /// A file system without locks.
    fn without(_: &File) -> Result<bool, TryLockError> {
        Ok(false)
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn without_the_systems_locks_the_living_and_the_unknown_hold_and_the_dead_do_not() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("out");
        let path = hidden::lock(&target);
        let lock = Lock::take_by(&target, without).unwrap();
        assert_eq!(Lock::take_by(&target, without).unwrap_err().findings[0].code, "export::locked");
        drop(lock);
        assert!(!path.exists());
        let here = Holder::here();
        for (holder, is_held) in [
            (here.clone(), true),
            (Holder { started: "0".to_owned(), ..here.clone() }, false),
            (Holder { process: u32::MAX, ..here.clone() }, false),
            (Holder { place: "another".to_owned(), ..here.clone() }, true),
            (Holder { place: String::new(), ..here.clone() }, true),
        ] {
            fs::write(&path, serde_json::to_vec(&holder).unwrap()).unwrap();
            assert_eq!(Lock::take_by(&target, without).is_err(), is_held, "{holder:?}");
        }
        // Half of what a process wrote, or was about to write, is no reason to take it for dead.
        for text in ["", "{\"host\": \"h"] {
            fs::write(&path, text).unwrap();
            let failure = Lock::take_by(&target, without).unwrap_err();
            assert!(failure.findings[0].help.iter().any(|help| help.contains("remove it")), "{text}");
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        // Another one is clearing it away just now.
        let dead = Holder { started: "0".to_owned(), ..here };
        fs::write(&path, serde_json::to_vec(&dead).unwrap()).unwrap();
        fs::write(hidden::lock_of_lock(&target), "").unwrap();
        assert!(Lock::take_by(&target, without).is_err() && path.exists());
    }

    #[test]
    fn a_disk_that_cannot_say_whether_it_locks_is_told_before_any_work() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("out");
        let broken = |_: &File| Err(TryLockError::Error(io::Error::other("the disk is broken")));
        let failure = Lock::take_by(&target, broken).unwrap_err();
        assert_eq!((failure.exit, failure.findings[0].code), (Exit::CannotWrite, "export::cannot-write"));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_process_that_has_ended_and_was_not_asked_for_holds_nothing() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let stat = format!("/proc/{}/stat", child.id());
        while !fs::read_to_string(&stat).unwrap().contains(") Z ") {
            std::thread::sleep(PAUSE);
        }
        assert_eq!(started(child.id()), None);
        child.wait().unwrap();
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn who_is_taken_over_from_on_another_machine_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("out");
        for (host, is_told) in [("elsewhere", true), ("", false)] {
            let holder = Holder { host: host.to_owned(), place: "another".to_owned(), ..Holder::here() };
            fs::write(hidden::lock(&target), serde_json::to_vec(&holder).unwrap()).unwrap();
            let lock = Lock::take(&target).unwrap();
            assert_eq!(lock.note().is_some_and(|note| note.contains("elsewhere")), is_told);
        }
    }

    #[test]
    fn of_many_at_once_one_gets_it_with_and_without_the_systems_locks() {
        for by in [try_lock as TryLock, without] {
            let folder = tempfile::tempdir().unwrap();
            let target = folder.path().join("out");
            let (inside, taken) =
                (std::sync::atomic::AtomicUsize::new(0), std::sync::atomic::AtomicUsize::new(0));
            std::thread::scope(|scope| {
                for _ in 0..8 {
                    scope.spawn(|| {
                        for _ in 0..50 {
                            let Ok(lock) = Lock::take_by(&target, by) else { continue };
                            assert_eq!(inside.fetch_add(1, std::sync::atomic::Ordering::SeqCst), 0);
                            taken.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                            inside.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
                            drop(lock);
                        }
                    });
                }
            });
            assert!(taken.into_inner() >= 8 && !hidden::lock(&target).exists());
        }
    }
}
