//! Sources that are reached over a network, in builds with the feature `cloud`: object stores, and the Hub.
//!
//! One thread does all that waits for the network. Requests hand their bytes to [`Done`], or to a thread that waits.

use std::fmt::Debug;
use std::future::Future;
use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, LazyLock, Mutex};

use tokio::runtime::{Builder, Runtime};

use super::ahead::BLOCK;
use super::{Blob, Done, Identity};
use crate::sync::lock;

pub(super) mod hub;
mod listing;
pub(super) mod objects;
mod told;

pub(crate) use objects::{Bucket, connect, patiently};
pub(crate) use told::trouble;

/// Bytes that the first small read of a blob gets: more headers than not are shorter.
const HEAD: u64 = 256 << 10;

/// Bytes that a small read gets that goes on where the last one ended.
const STRETCH: u64 = 2 << 20;

/// Reads up to this length may get more than they want.
const SMALL: usize = 1 << 20;

/// Requests of one large read at a time.
const AT_ONCE: usize = 8;

static RUNTIME: LazyLock<io::Result<Runtime>> = LazyLock::new(|| {
    // It fails if there is one already, which does as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Builder::new_multi_thread().worker_threads(1).thread_name("network").enable_all().build()
});

fn runtime() -> io::Result<&'static Runtime> {
    RUNTIME.as_ref().map_err(|error| io::Error::new(error.kind(), error.to_string()))
}

/// Something that will be there.
type Pending<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Waits for something that the network's thread does.
///
/// # Errors
/// If the thread cannot be started, or has ended.
pub(crate) fn wait<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> io::Result<T> {
    let (sender, receiver) = sync_channel(1);
    runtime()?.spawn(async move {
        let _ = sender.send(work.await);
    });
    receiver.recv().map_err(|_| io::Error::other("the thread of the network has ended"))
}

/// One object behind a network, of one version.
trait Fetch: Debug + Send + Sync + 'static {
    /// The bytes of a range, all of them.
    fn fetch(self: Arc<Self>, range: Range<u64>) -> Pending<io::Result<Vec<u8>>>;

    /// The identity of what is in its place now.
    fn identity_now(&self) -> io::Result<Identity>;
}

/// An object as a blob.
#[derive(Debug)]
struct Remote {
    object: Arc<dyn Fetch>,
    bytes: u64,
    identity: Identity,
    /// What a small read got more than it wanted, and where that begins.
    window: Mutex<(u64, Vec<u8>)>,
}

impl Remote {
    fn new(object: Arc<dyn Fetch>, bytes: u64, identity: Identity) -> Self {
        Self { object, bytes, identity, window: Mutex::default() }
    }

    fn fetch(&self, range: Range<u64>) -> io::Result<Vec<u8>> {
        wait(Arc::clone(&self.object).fetch(range))?
    }
}

impl Blob for Remote {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn identity_now(&self) -> io::Result<Identity> {
        self.object.identity_now()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let end = self.bytes.min(offset.saturating_add(buffer.len() as u64));
        if offset >= end {
            return Ok(0);
        }
        if buffer.len() > SMALL {
            let count = (end - offset) as usize;
            return self.read_exact_at(offset, &mut buffer[..count]).map(|()| count);
        }
        let mut window = lock(&self.window);
        let (start, bytes) = &*window;
        let behind = start + bytes.len() as u64;
        if !(*start..behind).contains(&offset) {
            let more = if offset == 0 && end <= HEAD {
                HEAD
            } else if offset == behind && behind > 0 {
                STRETCH
            } else {
                0
            };
            let range = offset..end.max(offset + more).min(self.bytes);
            *window = (offset, self.fetch(range)?);
        }
        let (start, bytes) = &*window;
        let from = bytes.get((offset - start) as usize..).unwrap_or_default();
        let count = from.len().min(buffer.len());
        buffer[..count].copy_from_slice(&from[..count]);
        if count == from.len() {
            // Where the next stretch may begin is kept, and no byte.
            *window = (start + bytes.len() as u64, Vec::new());
        }
        Ok(count)
    }

    fn read_exact_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        if offset.checked_add(buffer.len() as u64).is_none_or(|end| end > self.bytes) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut places = (offset..).step_by(BLOCK as usize).zip(buffer.chunks_mut(BLOCK as usize));
        let (sender, receiver) = sync_channel(AT_ONCE);
        let mut waiting = std::collections::HashMap::new();
        loop {
            while waiting.len() < AT_ONCE
                && let Some((start, place)) = places.next()
            {
                let sender = sender.clone();
                let range = start..start + place.len() as u64;
                waiting.insert(start, place);
                self.begin(
                    range,
                    Box::new(move |got| {
                        let _ = sender.send((start, got));
                    }),
                );
            }
            if waiting.is_empty() {
                return Ok(());
            }
            let (start, got) = receiver.recv().map_err(io::Error::other)?;
            let (got, place) = (got?, waiting.remove(&start).unwrap_or_default());
            if got.len() != place.len() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            place.copy_from_slice(&got);
        }
    }

    fn begin(&self, range: Range<u64>, done: Done) {
        let object = Arc::clone(&self.object);
        match runtime() {
            Ok(runtime) => drop(runtime.spawn(async move { done(object.fetch(range).await) })),
            Err(error) => done(Err(error)),
        }
    }
}
