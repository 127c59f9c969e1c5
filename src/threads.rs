//! Threads, as many as the system starts: limits of processes and of memory mean fewer of them, and not an error.

use std::cmp::Ordering;
use std::io;
use std::sync::mpsc::{Sender, channel};
use std::thread::{Builder, JoinHandle};

use rayon::prelude::*;
use rayon::{ThreadBuilder, ThreadPool, ThreadPoolBuilder};

/// Address space that must be left before a thread is started: its stack, and what an allocator sets aside for a thread.
const A_THREAD: usize = if cfg!(target_pointer_width = "64") { 160 << 20 } else { 8 << 20 };

/// Memory that is left to everything that is no thread's own.
const THE_REST: usize = 32 << 20;

/// Things that are worth a thread for a moment, where there is little to be done with each.
const HANDFUL: usize = 1024;

/// More threads than that are not worth starting for a moment.
const AT_MOST: usize = 16;

/// So many bytes, and those that are left to the rest.
#[must_use]
pub(crate) fn with_the_rest(bytes: usize) -> usize {
    bytes.saturating_add(THE_REST)
}

/// Whether the system still gives so many bytes, with those that are left to the rest. They are asked for and not used.
#[must_use]
pub(crate) fn has_room(bytes: usize) -> bool {
    let mut memory: Vec<u8> = Vec::new();
    let is_there = memory.try_reserve_exact(with_the_rest(bytes)).is_ok();
    std::hint::black_box(&mut memory);
    is_there
}

/// A thread that has started, and waits to be told that it is one of a pool.
struct Started {
    sender: Sender<ThreadBuilder>,
    handle: JoinHandle<()>,
}

/// Starts so many threads, each of which will want so many bytes, or as many as the system lets start.
fn started(threads: usize, bytes: usize) -> Vec<Started> {
    let start = |count: usize| {
        // Little is left where this fails, and the next small thing that is asked for would end the process.
        if !has_room(A_THREAD.saturating_add(bytes.saturating_mul(count))) {
            return None;
        }
        let (sender, receiver) = channel::<ThreadBuilder>();
        let (running, runs) = channel();
        let body = move || {
            let _ = running.send(());
            if let Ok(thread) = receiver.recv() {
                thread.run();
            }
        };
        let handle = Builder::new().spawn(body).ok()?;
        // Only then it has taken what it takes.
        runs.recv().ok()?;
        Some(Started { sender, handle })
    };
    (1..=threads).map_while(start).collect()
}

/// Threads that work together, perhaps none.
#[derive(Debug)]
pub(crate) struct Pool {
    rayon: Option<ThreadPool>,
    handles: Vec<JoinHandle<()>>,
}

impl Pool {
    /// A pool of so many threads, each of which will want so many bytes, or of as many as the system lets start.
    #[must_use]
    pub(crate) fn start(threads: usize, bytes: usize) -> Self {
        Self::of(started(threads, bytes))
    }

    fn of(started: Vec<Started>) -> Self {
        let count = started.len();
        let (senders, handles): (Vec<_>, Vec<_>) =
            started.into_iter().map(|started| (started.sender, started.handle)).unzip();
        if count == 0 {
            return Self { rayon: None, handles };
        }
        let mut senders = senders.into_iter();
        let builder = ThreadPoolBuilder::new().num_threads(count).spawn_handler(move |thread| {
            let sent = senders.next().map(|sender| sender.send(thread));
            sent.is_some_and(|sent| sent.is_ok()).then_some(()).ok_or_else(|| io::ErrorKind::NotFound.into())
        });
        Self { rayon: builder.build().ok(), handles }
    }

    /// How many threads there are.
    #[must_use]
    pub(crate) fn threads(&self) -> usize {
        self.rayon.as_ref().map_or(0, ThreadPool::current_num_threads)
    }

    /// Does work whose parallel parts these threads share; the calling one if there is none.
    pub(crate) fn install<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        match &self.rayon {
            Some(pool) => pool.install(work),
            None => work(),
        }
    }

    /// Does the same work on each thread at once, and waits for all of them; on the calling one if there is none.
    pub(crate) fn on_each(&self, work: impl Fn() + Sync) {
        match &self.rayon {
            Some(pool) => drop(pool.broadcast(|_| work())),
            None => work(),
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        drop(self.rayon.take());
        // The next ones to be started count from what is left.
        for handle in self.handles.drain(..) {
            let _ = handle.join();
        }
    }
}

/// Threads for a moment: as many as there are cores, but no more than have a handful of things each, and none where that is one.
fn for_a_moment(things: usize, handful: usize) -> Pool {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    match cores.min(AT_MOST).min(things / handful) {
        0 | 1 => Pool::of(Vec::new()),
        threads => Pool::start(threads, 0),
    }
}

/// What `work` makes of each of these things, in order; little work on each.
pub(crate) fn map<'a, T: Sync, R: Send>(things: &'a [T], work: impl Fn(&'a T) -> R + Send + Sync) -> Vec<R> {
    map_by(things, HANDFUL, work)
}

/// As [`map`], with much work on each thing.
pub(crate) fn map_each<'a, T: Sync, R: Send>(
    things: &'a [T],
    work: impl Fn(&'a T) -> R + Send + Sync,
) -> Vec<R> {
    map_by(things, 1, work)
}

/// Things that are waited for at once.
const WAITING: usize = 32;

/// As [`map_each`], where the work is to wait for another machine: much of it at once, however few cores there are.
pub(crate) fn map_waiting<'a, T: Sync, R: Send>(
    things: &'a [T],
    work: impl Fn(&'a T) -> R + Send + Sync,
) -> Vec<R> {
    let pool = Pool::start(WAITING.min(things.len()), 0);
    pool.install(|| things.par_iter().with_max_len(1).map(work).collect())
}

fn map_by<'a, T: Sync, R: Send>(
    things: &'a [T],
    handful: usize,
    work: impl Fn(&'a T) -> R + Send + Sync,
) -> Vec<R> {
    match &for_a_moment(things.len(), handful).rayon {
        Some(pool) => pool.install(|| things.par_iter().map(work).collect()),
        None => things.iter().map(work).collect(),
    }
}

/// Sorts; what is equal stays in order.
pub(crate) fn sort_by<T: Send>(things: &mut [T], compare: impl Fn(&T, &T) -> Ordering + Send + Sync) {
    match &for_a_moment(things.len(), HANDFUL).rayon {
        Some(pool) => pool.install(|| things.par_sort_by(compare)),
        None => things.sort_by(compare),
    }
}

/// Sorts without memory of its own; what is equal may change places.
pub(crate) fn sort_unstable_by<T: Send>(
    things: &mut [T],
    compare: impl Fn(&T, &T) -> Ordering + Send + Sync,
) {
    match &for_a_moment(things.len(), HANDFUL).rayon {
        Some(pool) => pool.install(|| things.par_sort_unstable_by(compare)),
        None => things.sort_unstable_by(compare),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{self, AtomicUsize};

    use super::*;

    #[test]
    fn a_pool_has_what_was_asked_for_and_each_thread_works_once() {
        for threads in [0, 1, 3] {
            let pool = Pool::start(threads, 1 << 20);
            assert_eq!(pool.threads(), threads);
            let count = AtomicUsize::new(0);
            pool.on_each(|| {
                count.fetch_add(1, atomic::Ordering::Relaxed);
            });
            assert_eq!(count.into_inner(), threads.max(1));
        }
    }

    #[test]
    fn threads_whose_memory_is_not_to_be_had_are_not_started() {
        // More than an address space holds.
        assert_eq!(Pool::start(3, usize::MAX / 2).threads(), 0);
        assert!(has_room(0) && !has_room(usize::MAX / 2));
    }

    #[test]
    fn results_come_in_order() {
        for count in [0, 1, 2, 10 * HANDFUL] {
            let things: Vec<usize> = (0..count).collect();
            let doubled: Vec<usize> = things.iter().map(|thing| thing * 2).collect();
            assert_eq!(map(&things, |thing| thing * 2), doubled);
            assert_eq!(map_each(&things, |thing| thing * 2), doubled);
            assert_eq!(map_waiting(&things, |thing| thing * 2), doubled);
            let mut backwards: Vec<usize> = (0..count).rev().collect();
            sort_by(&mut backwards, Ord::cmp);
            assert_eq!(backwards, things);
            sort_unstable_by(&mut backwards, |a, b| b.cmp(a));
            assert!(backwards.iter().rev().eq(&things));
        }
    }
}
