//! Flushing of files to the disk while they are still being written.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::exit::Exit;
use crate::finding::Failure;
use crate::publish::files;
use crate::publish::staging::Staging;

/// The pause before the next flush once the disk has everything.
const PAUSE: Duration = Duration::from_millis(20);

/// Does some work that fills staged files while their contents are written to the disk. Making them durable
/// afterwards then takes little time.
///
/// # Errors
/// The errors of the work. Also if the disk reports an error: the system reports each error only once.
pub(crate) fn while_flushing<T>(
    staging: &[Staging],
    work: impl FnOnce() -> Result<T, Failure>,
) -> Result<T, Failure> {
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let flush = || {
            while !is_over.load(Ordering::Relaxed) {
                for staged in staging.iter().flat_map(Staging::weights) {
                    let synced = staged.file.with(std::fs::File::sync_data);
                    synced.map_err(|error| files::cannot_write("flush", &staged.path, &error))?;
                    if is_over.load(Ordering::Relaxed) {
                        break;
                    }
                }
                std::thread::park_timeout(PAUSE);
            }
            Ok(())
        };
        // Without another thread all of it is written to the disk at the end.
        let Ok(flusher) = std::thread::Builder::new().spawn_scoped(scope, flush) else { return work() };
        let end = End(&is_over, flusher.thread());
        let result = work();
        drop(end);
        let flushed = flusher.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        match (result, flushed) {
            // The part of an interrupted run that is kept has to be on the disk.
            (Err(failure), Err(error)) if failure.exit == Exit::Interrupted => Err(error),
            (result, flushed) => result.and_then(|done| flushed.map(|()| done)),
        }
    })
}

/// Ends the flushing, even if the work panics.
struct End<'a>(&'a AtomicBool, &'a std::thread::Thread);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
        self.1.unpark();
    }
}
