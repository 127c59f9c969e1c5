//! Reading ahead: the ranges of remote blobs that a pass will read, asked for in that order, many at a time.
//!
//! Blobs are cut into blocks. A block is asked for when there is room for it in the budget, kept until all that will be
//! read of it was read, and then dropped. If a reader needs a block that there was no room for, it is asked for at once.
//! A pass begins with a few requests and makes one more with each answer: on a slow link the first blocks are there long before
//! the budget is full, and later ones do not all come at the same moment.
//! Reads that were not announced go to the blob itself.

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use super::trouble::likeness;
use super::{Blob, Done, Identity};
use crate::cancel::Cancel;
use crate::fs::handles::Handle;
use crate::sync::lock;

/// Bytes of a block: fewer make a request cost more than its bytes, and more fill the budget with too few of them.
pub(crate) const BLOCK: u64 = 8 << 20;

/// Requests that a pass begins with.
const FIRST: usize = 4;

/// How long a reader waits before it looks if the run was cancelled.
const LOOK: Duration = Duration::from_millis(100);

/// Blobs that are read through one budget.
#[derive(Debug, Clone)]
pub(crate) struct Ahead(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// Bytes that are asked for or kept.
    budget: u64,
    blobs: RwLock<Vec<Arc<dyn Blob>>>,
    state: Mutex<State>,
    /// A block has come.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Counts the lists, so that what comes late is not taken for a block of another one.
    list: u64,
    /// In the order of their first readers.
    blocks: Vec<Block>,
    places: Places,
    /// Those before were asked for.
    next: usize,
    /// Bytes of the blocks that are asked for or kept.
    held: u64,
    /// Requests without an answer, and how many there may be.
    requests: usize,
    most: usize,
    /// Bytes that have come.
    came: u64,
    cancel: Cancel,
}

/// What goes on between a run and the place that it reads from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    /// Bytes that have come, in this pass.
    pub bytes: u64,
    /// Requests without an answer.
    pub requests: usize,
}

/// Blocks by the number of their blob and their own number in it.
type Places = HashMap<(usize, u64), usize>;

#[derive(Debug)]
struct Block {
    blob: usize,
    /// From the first byte that will be read to the last.
    range: Range<u64>,
    /// Bytes that are still to be read, some perhaps more than once.
    left: u64,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Waiting,
    Asked,
    Here(Arc<Vec<u8>>),
    Failed(io::Error),
    Gone,
}

impl Block {
    fn bytes(&self) -> u64 {
        self.range.end - self.range.start
    }
}

/// The ranges of a pass, in the order in which they will be read.
#[derive(Debug)]
pub(crate) struct List<'a> {
    ahead: &'a Ahead,
    blocks: Vec<Block>,
    places: Places,
    /// The block of the last range: the next one is most likely in it.
    last: Option<((usize, u64), usize)>,
}

/// A pass that is being read. When it is dropped, so is what is left of its blocks.
#[derive(Debug)]
pub(crate) struct Reading<'a>(&'a Ahead);

impl Ahead {
    /// With a budget in bytes. One block at least is kept.
    #[must_use]
    pub(crate) fn new(budget: u64) -> Self {
        let (blobs, state) = (RwLock::default(), Mutex::default());
        Self(Arc::new(Shared { budget, blobs, state, changed: Condvar::new() }))
    }

    /// A blob that is read through the budget. Ranges name it by how many there were before it.
    #[must_use]
    pub(crate) fn around(&self, blob: Box<dyn Blob>) -> Box<dyn Blob> {
        let blob: Arc<dyn Blob> = Arc::from(blob);
        let mut blobs = self.0.blobs.write().unwrap_or_else(PoisonError::into_inner);
        blobs.push(Arc::clone(&blob));
        Box::new(Through { blob, number: blobs.len() - 1, shared: Arc::clone(&self.0) })
    }

    /// What has come, and what is awaited.
    #[must_use]
    pub(crate) fn link(&self) -> Link {
        let state = lock(&self.0.state);
        Link { bytes: state.came, requests: state.requests }
    }

    /// A list without ranges.
    #[must_use]
    pub(crate) fn list(&self) -> List<'_> {
        List { ahead: self, blocks: Vec::new(), places: Places::new(), last: None }
    }
}

impl<'a> List<'a> {
    /// Adds a range of a blob. A range that is read twice is added twice.
    pub(crate) fn add(&mut self, blob: usize, range: Range<u64>) {
        let mut start = range.start;
        while start < range.end {
            let cell = (blob, start / BLOCK);
            let end = range.end.min((cell.1 + 1) * BLOCK);
            let index = match self.last {
                Some((last, index)) if last == cell => index,
                _ => *self.places.entry(cell).or_insert_with(|| {
                    self.blocks.push(Block { blob, range: start..end, left: 0, content: Content::Waiting });
                    self.blocks.len() - 1
                }),
            };
            self.last = Some((cell, index));
            if let Some(block) = self.blocks.get_mut(index) {
                block.range = block.range.start.min(start)..block.range.end.max(end);
                block.left += end - start;
            }
            start = end;
        }
    }

    /// Begins to ask for the ranges. Readers stop waiting when the run is cancelled.
    pub(crate) fn begin(self, cancel: &Cancel) -> Reading<'a> {
        let mut state = lock(&self.ahead.0.state);
        let list = state.list + 1;
        *state = State {
            list,
            blocks: self.blocks,
            places: self.places,
            most: FIRST,
            cancel: cancel.clone(),
            ..State::default()
        };
        self.ahead.0.go_on(state);
        Reading(self.ahead)
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        let mut state = lock(&self.0.0.state);
        let list = state.list + 1;
        let old = std::mem::replace(&mut *state, State { list, ..State::default() });
        drop(state);
        drop(old);
        self.0.0.changed.notify_all();
    }
}

impl Shared {
    /// Asks for the next blocks, as many as there is room for.
    fn go_on(self: &Arc<Self>, mut state: MutexGuard<'_, State>) {
        let mut asked = Vec::new();
        while let Some(block) = state.blocks.get(state.next) {
            if matches!(block.content, Content::Waiting) && block.left > 0 {
                let is_full = state.held > 0 && state.held + block.bytes() > self.budget;
                if is_full || state.requests >= state.most {
                    break;
                }
                asked.push(state.next);
                let next = state.next;
                state.take(next);
            }
            state.next += 1;
        }
        self.ask(state, &asked);
    }

    /// Asks for blocks that were taken.
    fn ask(self: &Arc<Self>, state: MutexGuard<'_, State>, blocks: &[usize]) {
        let blobs = self.blobs.read().unwrap_or_else(PoisonError::into_inner);
        let list = state.list;
        let asks: Vec<(usize, Arc<dyn Blob>, Range<u64>)> = blocks
            .iter()
            .filter_map(|&index| {
                let block = state.blocks.get(index)?;
                Some((index, Arc::clone(blobs.get(block.blob)?), block.range.clone()))
            })
            .collect();
        drop(blobs);
        // A blob may answer at once, in this thread.
        drop(state);
        for (index, blob, range) in asks {
            let shared = Arc::clone(self);
            let done: Done = Box::new(move |got| shared.arrived((list, index), got));
            blob.begin(range, done);
        }
    }

    fn arrived(self: &Arc<Self>, (list, index): (u64, usize), got: io::Result<Vec<u8>>) {
        let mut state = lock(&self.state);
        if state.list == list
            && let Some(block) = state.blocks.get_mut(index)
        {
            let came = got.as_ref().map_or(0, |bytes| bytes.len() as u64);
            block.content = match got {
                Ok(bytes) if bytes.len() as u64 == block.bytes() => Content::Here(Arc::new(bytes)),
                Ok(_) => Content::Failed(ErrorKind::UnexpectedEof.into()),
                Err(error) => Content::Failed(error),
            };
            state.came += came;
            state.requests = state.requests.saturating_sub(1);
            state.most = state.most.saturating_add(1);
            self.go_on(state);
        } else {
            drop(state);
        }
        self.changed.notify_all();
    }

    /// Reads bytes of a blob, as many as one block has. None if they were not announced, or were read already.
    fn read_at(self: &Arc<Self>, blob: usize, offset: u64, buffer: &mut [u8]) -> Option<io::Result<usize>> {
        let mut state = lock(&self.state);
        let index = *state.places.get(&(blob, offset / BLOCK))?;
        let bytes = loop {
            let block = state.blocks.get(index).filter(|block| block.range.contains(&offset))?;
            match &block.content {
                Content::Here(bytes) => break Arc::clone(bytes),
                Content::Failed(error) => return Some(Err(likeness(error))),
                Content::Gone => return None,
                Content::Waiting => {
                    state.take(index);
                    self.ask(state, &[index]);
                    state = lock(&self.state);
                }
                Content::Asked => {
                    if state.cancel.is_cancelled() {
                        return Some(Err(io::Error::other("cancelled")));
                    }
                    let waited = self.changed.wait_timeout(state, LOOK);
                    state = waited.unwrap_or_else(PoisonError::into_inner).0;
                }
            }
        };
        let (list, start) = (state.list, state.blocks.get(index)?.range.start);
        drop(state);
        let from = bytes.get(usize::try_from(offset - start).ok()?..)?;
        let count = from.len().min(buffer.len());
        buffer.get_mut(..count)?.copy_from_slice(from.get(..count)?);
        drop(bytes);
        let mut state = lock(&self.state);
        if state.list == list && state.was_read(index, count as u64) {
            self.go_on(state);
        }
        Some(Ok(count))
    }
}

impl State {
    /// Counts a block as one that is asked for.
    fn take(&mut self, index: usize) {
        if let Some(block) = self.blocks.get_mut(index) {
            block.content = Content::Asked;
            self.held += block.bytes();
            self.requests += 1;
        }
    }

    /// Counts bytes of a block as read, and drops it if these were the last. Says so.
    fn was_read(&mut self, index: usize, count: u64) -> bool {
        let Some(block) = self.blocks.get_mut(index) else { return false };
        block.left = block.left.saturating_sub(count);
        let is_last = block.left == 0 && matches!(block.content, Content::Here(_));
        if is_last {
            block.content = Content::Gone;
            self.held -= block.bytes();
        }
        is_last
    }
}

/// A blob whose announced ranges are read from their blocks.
#[derive(Debug)]
struct Through {
    blob: Arc<dyn Blob>,
    number: usize,
    shared: Arc<Shared>,
}

impl Blob for Through {
    fn bytes(&self) -> u64 {
        self.blob.bytes()
    }

    fn identity(&self) -> &Identity {
        self.blob.identity()
    }

    fn identity_now(&self) -> io::Result<Identity> {
        self.blob.identity_now()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        match self.shared.read_at(self.number, offset, buffer) {
            Some(read) => read,
            None => self.blob.read_at(offset, buffer),
        }
    }

    fn read_exact_at(&self, mut offset: u64, mut buffer: &mut [u8]) -> io::Result<()> {
        while !buffer.is_empty() {
            let Some(read) = self.shared.read_at(self.number, offset, buffer) else {
                return self.blob.read_exact_at(offset, buffer);
            };
            let count = read?;
            buffer = buffer.get_mut(count..).unwrap_or_default();
            offset += count as u64;
        }
        Ok(())
    }

    fn begin(&self, range: Range<u64>, done: Done) {
        self.blob.begin(range, done);
    }

    fn file(&self) -> Option<&Handle> {
        self.blob.file()
    }
}

#[cfg(test)]
mod tests;
