use std::sync::mpsc::{Receiver, Sender, channel};

use super::*;
use crate::fs::handles::Replaced;

/// A blob that answers when it is told to. Every byte is the low byte of its offset.
#[derive(Debug)]
struct Slow {
    bytes: u64,
    identity: Identity,
    asked: Mutex<Sender<(Range<u64>, Asked)>>,
}

struct Asked(Done);

impl std::fmt::Debug for Asked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Asked")
    }
}

fn bytes_of(range: Range<u64>) -> Vec<u8> {
    range.map(|at| at as u8).collect()
}

impl Blob for Slow {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn identity_now(&self) -> io::Result<Identity> {
        Ok(self.identity.clone())
    }

    /// What is read past the blocks is told by its high bit.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        (offset..).zip(buffer.iter_mut()).for_each(|(at, byte)| *byte = at as u8 | 0x80);
        Ok(buffer.len())
    }

    fn begin(&self, range: Range<u64>, done: Done) {
        lock(&self.asked).send((range, Asked(done))).unwrap();
    }
}

/// What a blob was asked for.
type Asks = Receiver<(Range<u64>, Asked)>;

fn slow(blocks: u64) -> (Box<dyn Blob>, Asks) {
    let (sender, asked) = channel();
    let identity = Identity::of_version("1");
    (Box::new(Slow { bytes: blocks * BLOCK, identity, asked: Mutex::new(sender) }), asked)
}

fn asked(receiver: &Asks) -> Vec<Range<u64>> {
    let answered = receiver.try_iter().map(|(range, Asked(done))| {
        done(Ok(bytes_of(range.clone())));
        range
    });
    answered.collect()
}

fn read(blob: &dyn Blob, range: Range<u64>) -> bool {
    let mut buffer = vec![0; (range.end - range.start) as usize];
    blob.read_exact_at(range.start, &mut buffer).unwrap();
    buffer == bytes_of(range)
}

#[test]
fn as_many_blocks_as_there_is_room_for_are_asked_for_in_order() {
    let ahead = Ahead::new(BLOCK);
    let (blob, receiver) = slow(4);
    let blob = ahead.around(blob);
    let mut list = ahead.list();
    for start in [10, BLOCK - 5, 3 * BLOCK, 2 * BLOCK] {
        list.add(0, start..start + 10);
    }
    let reading = list.begin(&Cancel::default());
    // A block holds no more than what will be read.
    assert_eq!(asked(&receiver), [10..BLOCK, BLOCK..BLOCK + 5]);
    assert!(read(&*blob, 10..20));
    assert_eq!(asked(&receiver), Vec::<Range<u64>>::new());
    assert!(read(&*blob, BLOCK - 5..BLOCK + 5));
    assert_eq!(asked(&receiver), [3 * BLOCK..3 * BLOCK + 10, 2 * BLOCK..2 * BLOCK + 10]);
    assert!(read(&*blob, 3 * BLOCK..3 * BLOCK + 10) && read(&*blob, 2 * BLOCK..2 * BLOCK + 10));
    assert_eq!(lock(&ahead.0.state).held, 0, "all was dropped");
    // What is read more often than was said, or was never announced, comes from the blob.
    assert!(!read(&*blob, 10..20) && !read(&*blob, 50..60));
    drop(reading);
    assert!(lock(&ahead.0.state).blocks.is_empty());
}

#[test]
fn a_range_that_is_read_twice_is_kept_for_the_second_reader() {
    let ahead = Ahead::new(BLOCK);
    let (blob, receiver) = slow(2);
    let blob = ahead.around(blob);
    let mut list = ahead.list();
    list.add(0, 0..100);
    list.add(0, BLOCK..BLOCK + 100);
    list.add(0, 50..100);
    let _reading = list.begin(&Cancel::default());
    assert_eq!(asked(&receiver).len(), 2, "both are small");
    assert!(read(&*blob, 0..100));
    assert!(read(&*blob, 50..100) && !read(&*blob, 50..100));
    assert!(read(&*blob, BLOCK..BLOCK + 100));
}

#[test]
fn a_block_without_room_is_asked_for_when_it_is_needed() {
    let ahead = Ahead::new(BLOCK);
    let (blob, receiver) = slow(2);
    let blob = ahead.around(blob);
    let mut list = ahead.list();
    list.add(0, 0..BLOCK);
    list.add(0, BLOCK..2 * BLOCK);
    let _reading = list.begin(&Cancel::default());
    assert_eq!(asked(&receiver).pop(), Some(0..BLOCK));
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| read(&*blob, BLOCK..BLOCK + 1));
        let (range, Asked(done)) = receiver.recv().unwrap();
        assert_eq!(range, BLOCK..2 * BLOCK);
        done(Ok(bytes_of(range)));
        assert!(reader.join().unwrap());
    });
}

#[test]
fn errors_reach_every_reader_and_a_short_answer_is_one() {
    let ahead = Ahead::new(4 * BLOCK);
    let (blob, receiver) = slow(2);
    let blob = ahead.around(blob);
    let mut list = ahead.list();
    list.add(0, 0..100);
    list.add(0, BLOCK..BLOCK + 100);
    let _reading = list.begin(&Cancel::default());
    let (_, Asked(first)) = receiver.recv().unwrap();
    first(Err(Replaced.into()));
    let (_, Asked(second)) = receiver.recv().unwrap();
    second(Ok(vec![0; 99]));
    for _ in 0..2 {
        assert!(Replaced::is(&blob.read_exact_at(0, &mut [0; 10]).unwrap_err()));
    }
    let error = blob.read_exact_at(BLOCK, &mut [0; 10]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
}

#[test]
fn a_reader_stops_waiting_when_the_run_is_cancelled_and_late_answers_are_nothing() {
    let ahead = Ahead::new(BLOCK);
    let (blob, receiver) = slow(1);
    let blob = ahead.around(blob);
    let (mut list, cancel) = (ahead.list(), Cancel::default());
    list.add(0, 0..100);
    let reading = list.begin(&cancel);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| blob.read_exact_at(0, &mut [0; 10]).unwrap_err());
        cancel.cancel();
        assert_eq!(reader.join().unwrap().to_string(), "cancelled");
    });
    drop(reading);
    let mut list = ahead.list();
    list.add(0, 0..50);
    let _reading = list.begin(&Cancel::default());
    let (_, Asked(old)) = receiver.recv().unwrap();
    old(Ok(vec![1; 100]));
    let (_, Asked(new)) = receiver.recv().unwrap();
    new(Ok(bytes_of(0..50)));
    assert!(read(&*blob, 0..50));
}

#[test]
fn requests_grow_in_number_with_the_answers() {
    let ahead = Ahead::new(100 * BLOCK);
    let (blob, receiver) = slow(20);
    let _blob = ahead.around(blob);
    let mut list = ahead.list();
    list.add(0, 0..20 * BLOCK);
    let reading = list.begin(&Cancel::default());
    assert_eq!(ahead.link(), Link { bytes: 0, requests: FIRST });
    let mut first: Vec<(Range<u64>, Asked)> = receiver.try_iter().collect();
    assert_eq!(first.len(), FIRST);
    // Each answer makes two new requests: its own place, and one more.
    for answered in 1..=3 {
        let (range, Asked(done)) = first.remove(0);
        done(Ok(bytes_of(range)));
        assert_eq!(ahead.link().requests, FIRST + answered);
    }
    assert_eq!(ahead.link().bytes, 3 * BLOCK);
    // A request that fails counts as answered.
    let (_, Asked(done)) = first.remove(0);
    done(Err(ErrorKind::ConnectionReset.into()));
    assert_eq!(ahead.link(), Link { bytes: 3 * BLOCK, requests: FIRST + 4 });
    drop(reading);
    assert_eq!(ahead.link(), Link { bytes: 0, requests: 0 });
}
