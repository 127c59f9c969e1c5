//! Attention over the rows of one window, head by head, in blocks of queries.

use super::math::{softmax, tanh};
use super::parts::Attention;
use super::product::{View, multiply};

/// Queries of one block: scores of a block against all keys before its end fit a cache.
pub(super) const BLOCK: usize = 64;

/// What each token attends to: [tokens, heads · value_size].
pub(super) fn attend(
    how: &Attention,
    tokens: usize,
    queries: &[f32],
    keys: &[f32],
    values: &[f32],
    sinks: Option<&[f32]>,
) -> Vec<f32> {
    let all = Heads { how, tokens, queries, keys, values };
    let width = how.heads * how.value_size;
    let mut out = vec![0.0; tokens * width];
    let mut shares = vec![0.0; BLOCK.min(tokens) * tokens];
    for head in 0..how.heads {
        for start in (0..tokens).step_by(BLOCK) {
            let block = all.block(head, start);
            block.shares(&mut shares, sinks.map(|sinks| sinks[head]), None);
            let to = (&mut out[start * width + head * how.value_size..], width);
            let size = (block.rows, block.seen, how.value_size);
            multiply(size, View::rows(&shares, block.seen), block.value(), to, 1.0, false);
        }
    }
    out
}

/// Queries, keys and values of all heads.
#[derive(Clone, Copy)]
pub(super) struct Heads<'a> {
    pub(super) how: &'a Attention,
    pub(super) tokens: usize,
    pub(super) queries: &'a [f32],
    pub(super) keys: &'a [f32],
    pub(super) values: &'a [f32],
}

/// Some queries of a head, and all keys and values that one of them sees.
#[derive(Clone, Copy)]
pub(super) struct Block<'a> {
    all: Heads<'a>,
    start: usize,
    /// Keys from this one on are seen.
    begin: usize,
    /// How many queries there are.
    pub(super) rows: usize,
    /// How many keys are seen.
    pub(super) seen: usize,
    /// Where the first query is.
    pub(super) query_start: usize,
    /// Where the first key is.
    pub(super) key_start: usize,
    /// Where the first value is.
    pub(super) value_start: usize,
}

impl<'a> Heads<'a> {
    pub(super) fn block(self, head: usize, start: usize) -> Block<'a> {
        let how = self.how;
        let shared = how.heads / how.key_heads.max(1);
        let key_head = head / shared.max(1);
        let rows = BLOCK.min(self.tokens - start);
        let end = if how.is_causal { start + rows } else { self.tokens };
        let begin = how.window.map_or(0, |window| (start + 1).saturating_sub(window));
        Block {
            all: self,
            start,
            begin,
            rows,
            seen: end - begin,
            query_start: (start * how.heads + head) * how.size,
            key_start: (begin * how.key_heads + key_head) * how.size,
            value_start: (begin * how.key_heads + key_head) * how.value_size,
        }
    }
}

impl<'a> Block<'a> {
    pub(super) fn query(&self) -> View<'a> {
        let Heads { how, queries, .. } = self.all;
        View { data: &queries[self.query_start..], row_step: how.heads * how.size, column_step: 1 }
    }

    pub(super) fn key(&self) -> View<'a> {
        let Heads { how, keys, .. } = self.all;
        View { data: &keys[self.key_start..], row_step: how.key_heads * how.size, column_step: 1 }
    }

    pub(super) fn value(&self) -> View<'a> {
        let Heads { how, values, .. } = self.all;
        View { data: &values[self.value_start..], row_step: how.key_heads * how.value_size, column_step: 1 }
    }

    /// What each value counts for each query, [rows, seen]. `capped` becomes the scores that the softmax is of.
    pub(super) fn shares(&self, shares: &mut [f32], sink: Option<f32>, capped: Option<&mut [f32]>) {
        let Heads { how, tokens, .. } = self.all;
        let (rows, seen, begin) = (self.rows, self.seen, self.begin);
        multiply((rows, how.size, seen), self.query(), self.key().turned(), (shares, seen), how.scale, false);
        let shares = &mut shares[..rows * seen];
        if let Some(cap) = how.cap {
            shares.iter_mut().for_each(|x| *x = cap * tanh(*x / cap));
        }
        if let Some(capped) = capped {
            capped[..rows * seen].copy_from_slice(shares);
        }
        for (row, shares) in shares.chunks_exact_mut(seen).enumerate() {
            let position = self.start + row;
            let last = if how.is_causal { position + 1 } else { tokens };
            let first = how.window.map_or(0, |window| (position + 1).saturating_sub(window));
            // A window reaches as far ahead as back where tokens after are seen.
            let last = if how.is_causal { last } else { how.window.map_or(last, |w| last.min(position + w)) };
            shares[..first - begin].fill(0.0);
            shares[last - begin..].fill(0.0);
            softmax(&mut shares[first - begin..last - begin], sink);
        }
    }
}
