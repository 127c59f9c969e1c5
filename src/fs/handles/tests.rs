use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicUsize;
use std::thread;

use super::*;
use crate::fs::regular;

fn only(most: usize) -> &'static Open {
    Box::leak(Box::new(Open::new(most)))
}

/// A file named by a number, which is what it holds.
fn handle(open: &'static Open, folder: &Path, number: usize) -> Handle {
    let path = folder.join(number.to_string());
    fs::write(&path, number.to_string()).unwrap();
    Handle::among(open, File::open(&path).unwrap(), move || File::open(&path)).unwrap()
}

fn text(mut file: &File) -> Result<String> {
    use std::io::{Read, Seek};
    file.rewind()?;
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    Ok(text)
}

fn count(open: &Open) -> usize {
    open.slots().by_handle.len()
}

#[test]
fn more_files_than_may_be_open_are_used_and_each_is_the_right_one() {
    let folder = tempfile::tempdir().unwrap();
    let open = only(3);
    let handles: Vec<Handle> = (0..20).map(|number| handle(open, folder.path(), number)).collect();
    for number in (0..20).rev().chain(0..20) {
        assert_eq!(handles[number].with(text).unwrap(), number.to_string());
        assert!(count(open) <= 3);
    }
    // The ones that were used last are open, the others are not.
    assert!([17, 18, 19].iter().all(|&at| open.slots().by_handle.contains_key(&handles[at].id)));
    drop(handles);
    assert_eq!(count(open), 0);
}

#[test]
fn many_threads_wait_for_each_other_and_never_open_too_many() {
    let folder = tempfile::tempdir().unwrap();
    let open = only(2);
    let handles: Vec<Handle> = (0..8).map(|number| handle(open, folder.path(), number)).collect();
    let (handles, in_use, most) = (&handles, &AtomicUsize::new(0), &AtomicUsize::new(0));
    let busy = |files: usize| -> Result<()> {
        most.fetch_max(in_use.fetch_add(files, Ordering::SeqCst) + files, Ordering::SeqCst);
        thread::yield_now();
        in_use.fetch_sub(files, Ordering::SeqCst);
        Ok(())
    };
    thread::scope(|scope| {
        for thread in 0..16 {
            scope.spawn(move || {
                for round in 0..100 {
                    let (a, b) = ((thread + round) % 8, (thread + 3 * round + 1) % 8);
                    let used = if a == b {
                        handles[a].with(|_| busy(1))
                    } else {
                        Handle::with_both(&handles[a], &handles[b], |_, _| busy(2))
                    };
                    used.unwrap();
                }
            });
        }
    });
    // Two that use the same one are counted twice.
    assert!(most.load(Ordering::SeqCst) >= 2 && count(open) <= 2);
}

#[test]
fn a_file_in_the_place_of_another_is_not_used() {
    let folder = tempfile::tempdir().unwrap();
    let open = only(2);
    let handles: Vec<Handle> = (0..4).map(|number| handle(open, folder.path(), number)).collect();
    let path = |name: &str| -> PathBuf { folder.path().join(name) };
    fs::write(path("new"), "0").unwrap();
    fs::rename(path("new"), path("0")).unwrap();
    assert!(Replaced::is(&handles[0].with(text).unwrap_err()));
    // Another one may get the number of the inode, at a later time.
    let made = |path: &Path| fs::metadata(path).unwrap().created().ok();
    if let Some(first) = made(&path("1")) {
        while made(&path("1")) == Some(first) {
            fs::remove_file(path("1")).unwrap();
            fs::write(path("1"), "1").unwrap();
        }
        assert!(Replaced::is(&handles[1].with(text).unwrap_err()));
    }
    // Those that are open stay as they are, and one that is gone is an error of the system.
    fs::remove_file(path("3")).unwrap();
    assert_eq!(handles[3].with(text).unwrap(), "3");
    let others: Vec<Handle> = (4..6).map(|number| handle(open, folder.path(), number)).collect();
    let gone = handles[3].with(text).unwrap_err();
    assert!(gone.kind() == std::io::ErrorKind::NotFound && !Replaced::is(&gone));
    assert_eq!(others[0].with(text).unwrap(), "4");
    assert!(count(open) <= 2);
}

#[test]
fn what_fails_or_panics_is_given_back() {
    let folder = tempfile::tempdir().unwrap();
    let open = only(2);
    let handles: Vec<Handle> = (0..4).map(|number| handle(open, folder.path(), number)).collect();
    for _ in 0..3 {
        assert!(handles[0].with(|_| Err::<(), _>(Error::other("no"))).is_err());
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            Handle::with_both(&handles[1], &handles[2], |_, _| -> Result<()> { panic!("on purpose") })
        }));
        assert!(panicked.is_err());
    }
    assert_eq!(Handle::with_both(&handles[0], &handles[3], |_, file| text(file)).unwrap(), "3");
    assert!(open.slots().by_handle.values().all(|slot| slot.users == 0));
}

#[test]
fn where_no_more_may_be_open_idle_ones_are_closed() {
    let folder = tempfile::tempdir().unwrap();
    let open = only(4);
    let path = folder.path().join("file");
    fs::write(&path, "here").unwrap();
    let opened = AtomicUsize::new(0);
    // The system refuses twice.
    let reopen = move || match opened.fetch_add(1, Ordering::Relaxed) {
        #[cfg(unix)]
        0 | 1 => Err(rustix::io::Errno::MFILE.into()),
        _ => regular::open(&path),
    };
    let file = File::open(folder.path().join("file")).unwrap();
    let refused = Handle::among(open, file, reopen).unwrap();
    let others: Vec<Handle> = (0..4).map(|number| handle(open, folder.path(), number)).collect();
    assert_eq!(refused.with(text).unwrap(), "here");
    assert_eq!(others[0].with(text).unwrap(), "0");
}
