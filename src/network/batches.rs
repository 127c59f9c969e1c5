//! Windows that are at work at once.

use std::ops::Range;

/// Windows, and tokens of them, that are at work at once in passes that hold much of each.
const BATCH: usize = 8;
const BATCH_TOKENS: usize = 4096;

/// Runs of windows that are at work at once, by their numbers: they depend on nothing but the windows.
pub(super) fn batches(windows: &[Vec<u32>]) -> Vec<Range<usize>> {
    let (mut out, mut start, mut tokens) = (Vec::new(), 0, 0);
    for (index, window) in windows.iter().enumerate() {
        if index > start && (index - start == BATCH || tokens + window.len() > BATCH_TOKENS) {
            out.push(start..index);
            (start, tokens) = (index, 0);
        }
        tokens += window.len();
    }
    out.extend((start < windows.len()).then_some(start..windows.len()));
    out
}

/// Numbers up to `count` in runs of `size`.
pub(super) fn blocks(count: usize, size: usize) -> impl Iterator<Item = Range<usize>> {
    (0..count).step_by(size).map(move |start| start..count.min(start + size))
}
