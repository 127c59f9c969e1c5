//! A switch that ends a run at the next tile, and the one step of a run that is done as a whole.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use crate::exit::Exit;
use crate::finding::{Failure, Finding};
use crate::sync::lock;

/// A switch that is shared between a run and the code that may end it. Clones are the same switch.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<Switch>);

#[derive(Debug, Default)]
struct Switch {
    is_cancelled: AtomicBool,
    /// Held while something is done that is not to be left half done.
    step: Mutex<()>,
}

impl Cancel {
    /// Asks the run to end.
    pub fn cancel(&self) {
        self.0.is_cancelled.store(true, Ordering::SeqCst);
    }

    /// Whether the run was asked to end.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.0.is_cancelled.load(Ordering::SeqCst)
    }

    /// Returns `Ok` to go on, or fails as interrupted.
    ///
    /// # Errors
    /// [`Exit::Interrupted`] if the run was asked to end.
    pub fn check(&self) -> Result<(), Failure> {
        if !self.is_cancelled() {
            return Ok(());
        }
        let finding = Finding::error("run::interrupted", "interrupted")
            .help("Nothing was published; everything that was there before is untouched. The next run goes on where this one ended.");
        Err(Failure::new(Exit::Interrupted, finding))
    }

    /// Does something as a whole, such as publishing: a run that was asked to end does not begin it, and one that was asked in
    /// the middle of it ends afterwards.
    ///
    /// # Errors
    /// As [`Cancel::check`], and those of the step.
    pub fn whole<T>(&self, step: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
        let _held = lock(&self.0.step);
        self.check()?;
        step()
    }

    /// Asks the run to end, and waits until no step is going on that is done as a whole: none begins after that. Says whether
    /// there was one to be waited for.
    #[must_use]
    pub fn settle(&self) -> bool {
        self.cancel();
        let is_held = self.0.step.try_lock().is_err();
        drop(lock(&self.0.step));
        is_held
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn a_step_that_has_begun_is_waited_for_and_none_begins_afterwards() {
        let cancel = Cancel::default();
        assert_eq!(cancel.whole(|| Ok(1)).unwrap(), 1);
        let (begun, has_begun) = channel();
        let (go_on, may_go_on) = channel::<()>();
        let (cancel, is_done) = (&cancel, &AtomicBool::new(false));
        std::thread::scope(|scope| {
            let step = scope.spawn(move || {
                cancel.whole(|| {
                    begun.send(()).unwrap();
                    may_go_on.recv().unwrap();
                    is_done.store(true, Ordering::SeqCst);
                    Ok(2)
                })
            });
            has_begun.recv().unwrap();
            let waiting = scope.spawn(|| (cancel.settle(), is_done.load(Ordering::SeqCst)));
            while !cancel.is_cancelled() {
                std::thread::yield_now();
            }
            go_on.send(()).unwrap();
            assert!(waiting.join().unwrap().1, "the step had ended");
            assert_eq!(step.join().unwrap().unwrap(), 2, "it was not broken off");
        });
        let failure =
            cancel.whole(|| -> Result<(), Failure> { unreachable!("it was asked to end") }).unwrap_err();
        assert_eq!(failure.exit, Exit::Interrupted);
        assert!(!cancel.settle());
    }
}
