//! Worker threads of a run, and the way they work through a list.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::cancel::Cancel;
use crate::exit::Exit;
use crate::finding::{Failure, Finding};
use crate::sync::lock;
use crate::text::units;
use crate::threads::{self, Pool};

/// Threads that take one thing at a time.
pub(crate) struct Workers {
    pool: Pool,
    wanted: usize,
    cancel: Cancel,
}

/// The first failure in the order in which things are handed out. All before the one that failed were handed out before it,
/// and are finished, so which failure is reported does not depend on the number of workers.
#[derive(Default)]
struct FirstFailure(Mutex<Option<(u64, Failure)>>);

impl FirstFailure {
    fn offer(&self, at: u64, failure: Failure) {
        let mut first = lock(&self.0);
        if first.as_ref().is_none_or(|(known, _)| at < *known) {
            *first = Some((at, failure));
        }
    }

    fn take(self) -> Result<(), Failure> {
        match self.0.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
            Some((_, failure)) => Err(failure),
            None => Ok(()),
        }
    }
}

impl Workers {
    /// Starts so many threads, or as many as the system lets start; `cancel` ends their work. Each needs `bytes` of memory; if there is no thread, the
    /// calling one does the work.
    ///
    /// # Errors
    /// If there is not even memory for that one.
    pub(crate) fn start(threads: usize, bytes: u64, cancel: Cancel) -> Result<Self, Failure> {
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        let pool = Pool::start(threads, bytes);
        if pool.threads() == 0 && !threads::has_room(bytes) {
            let message = "the system gives too little memory to work on this model";
            let help = format!(
                "It takes {} that are free: raise the limit of the process (`ulimit -v`), or use a larger machine.",
                units::bytes(threads::with_the_rest(bytes) as u64)
            );
            return Err(Failure::new(Exit::CannotWrite, Finding::error("run::memory", message).help(help)));
        }
        Ok(Self { pool, wanted: threads, cancel })
    }

    /// The switch that ends their work.
    pub(crate) fn cancel(&self) -> &Cancel {
        &self.cancel
    }

    /// What there is to say if there are fewer threads than were wanted.
    pub(crate) fn warning(&self) -> Option<Finding> {
        let (started, wanted) = (self.pool.threads(), self.wanted);
        let why = "limits of processes (`ulimit -u`) or memory (`ulimit -v`) allow no more";
        (started < wanted).then(|| {
            Finding::warning("run::threads", format!("{started} of {wanted} threads could be started: {why}"))
        })
    }

    /// Works on what `next` hands out, each with its number in order, until there is nothing more. Every thread has memory
    /// of its own, used again for each.
    ///
    /// # Errors
    /// The first failure, or that the run was cancelled.
    pub(crate) fn each<T, Memory: Default>(
        &self,
        next: impl Fn() -> Option<(u64, T)> + Sync,
        work: impl Fn(T, &mut Memory) -> Result<(), Failure> + Sync,
    ) -> Result<(), Failure> {
        let first = FirstFailure::default();
        let has_failed = AtomicBool::new(false);
        self.pool.on_each(|| {
            let mut memory = Memory::default();
            while !has_failed.load(Ordering::Relaxed)
                && let Some((at, thing)) = next()
            {
                let done = self.cancel.check().and_then(|()| work(thing, &mut memory));
                // What waits for a network ends with whatever error when the run is cancelled.
                if let Err(failure) = done.map_err(|failure| self.cancel.check().err().unwrap_or(failure)) {
                    has_failed.store(true, Ordering::Relaxed);
                    first.offer(at, failure);
                }
            }
        });
        first.take()
    }

    /// Works on the things of a list.
    ///
    /// # Errors
    /// As [`Workers::each`].
    pub(crate) fn each_of<T: Sync, Memory: Default>(
        &self,
        things: &[T],
        work: impl Fn(&T, &mut Memory) -> Result<(), Failure> + Sync,
    ) -> Result<(), Failure> {
        let next = AtomicUsize::new(0);
        let hand_out = || {
            let at = next.fetch_add(1, Ordering::Relaxed);
            things.get(at).map(|thing| (at as u64, thing))
        };
        self.each(hand_out, work)
    }
}
