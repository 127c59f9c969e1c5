//! Windows of tokens on their way through the layers: the unit of parallel work.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::sync::Mutex;

use rayon::prelude::*;

use super::batches::{batches, blocks};
use super::code;
use super::description::Description;
use super::execute::{Hear, LayerWeights, Window, first_not_finite, not_finite};
use super::listener::Listener;
use super::rope::Angles;
use super::weights::Weights;
use crate::finding::Finding;

/// Rows of a table that are read at a time.
const TABLE_ROWS: usize = 4096;

/// Is told how many windows are through with something. An error ends the work.
pub type Tell<'a> = &'a (dyn Fn(usize) -> Result<(), Finding> + Sync);

/// The streams of all windows between two layers: in memory, or in a file.
#[derive(Debug)]
pub struct Hidden {
    hidden: usize,
    /// Tokens of each window.
    lengths: Vec<usize>,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Memory(Vec<Vec<f32>>),
    File { file: Mutex<File>, starts: Vec<u64> },
}

fn spilled(error: &std::io::Error) -> Finding {
    Finding::error(code::SPILL, format!("activations cannot be kept in a file: {error}"))
        .help("Free some space on the disk of the output, or give more `--memory`.")
}

impl Hidden {
    /// Room for windows of these lengths; in `file` if there is one. Gives the bytes that memory would need by
    /// [`Hidden::bytes`].
    #[must_use]
    pub fn new(hidden: usize, lengths: Vec<usize>, file: Option<File>) -> Self {
        let place = match file {
            None => Place::Memory(vec![Vec::new(); lengths.len()]),
            Some(file) => {
                let mut at = 0;
                let starts = lengths
                    .iter()
                    .map(|length| {
                        let start = at;
                        at += (length * hidden * 4) as u64;
                        start
                    })
                    .collect();
                Place::File { file: Mutex::new(file), starts }
            }
        };
        Self { hidden, lengths, place }
    }

    /// How many windows there are.
    #[must_use]
    pub fn windows(&self) -> usize {
        self.lengths.len()
    }

    /// How many tokens there are.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.lengths.iter().sum()
    }

    /// Bytes of all streams.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        (self.tokens() * self.hidden * 4) as u64
    }

    /// A copy of the stream of a window.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn get(&self, window: usize) -> Result<Vec<f32>, Finding> {
        match &self.place {
            Place::Memory(streams) => Ok(streams[window].clone()),
            Place::File { file, starts } => {
                let mut bytes = vec![0; self.lengths[window] * self.hidden * 4];
                let mut file = file.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                file.seek(SeekFrom::Start(starts[window])).map_err(|e| spilled(&e))?;
                file.read_exact(&mut bytes).map_err(|e| spilled(&e))?;
                Ok(bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
            }
        }
    }

    fn take(&mut self, window: usize) -> Result<Vec<f32>, Finding> {
        match &mut self.place {
            Place::Memory(streams) => Ok(std::mem::take(&mut streams[window])),
            Place::File { .. } => self.get(window),
        }
    }

    /// Keeps what a layer has made of a window, if it is finite.
    pub(super) fn put_after(&mut self, layer: usize, window: usize, after: After) -> Result<(), Finding> {
        match after.broken {
            Some(token) => Err(not_finite(layer, window, token, None)),
            None => self.put(window, after.stream),
        }
    }

    pub(super) fn put(&mut self, window: usize, stream: Vec<f32>) -> Result<(), Finding> {
        match &mut self.place {
            Place::Memory(streams) => streams[window] = stream,
            Place::File { file, starts } => {
                let bytes: Vec<u8> = stream.iter().flat_map(|x| x.to_le_bytes()).collect();
                let file = file.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner);
                file.seek(SeekFrom::Start(starts[window])).map_err(|e| spilled(&e))?;
                file.write_all(&bytes).map_err(|e| spilled(&e))?;
            }
        }
        Ok(())
    }
}

/// The stream of a window after a layer, and its first token that is not finite.
pub(super) struct After {
    stream: Vec<f32>,
    broken: Option<usize>,
}

/// A model over some windows.
pub struct Pass<'a> {
    description: &'a Description,
    windows: &'a [Vec<u32>],
    angles: BTreeMap<usize, Vec<Angles>>,
}

impl<'a> Pass<'a> {
    /// Prepares a pass.
    ///
    /// # Errors
    /// A window is longer than the model's positions, or a token is not in its vocabulary.
    pub fn new(description: &'a Description, windows: &'a [Vec<u32>]) -> Result<Self, Finding> {
        let longest = windows.iter().map(Vec::len).max().unwrap_or(0);
        if longest > description.positions {
            let positions = description.positions;
            return Err(Finding::error(
                code::TOO_LONG,
                format!(
                    "samples of {longest} tokens are longer than the {positions} positions that the model has"
                ),
            )
            .help(format!("Set `sequence_length` to at most {positions}.")));
        }
        let largest = windows.iter().flatten().copied().max().unwrap_or(0);
        if largest as usize >= description.vocabulary {
            return Err(Finding::error(
                code::BAD_TOKEN,
                format!(
                    "the text has token {largest}, and the model's vocabulary ends before {}",
                    description.vocabulary
                ),
            )
            .help("The tokenizer belongs to another model: get the `tokenizer.json` of this one."));
        }
        let mut angles: BTreeMap<usize, Vec<Angles>> = BTreeMap::new();
        for window in windows {
            let tokens = window.len();
            angles
                .entry(tokens)
                .or_insert_with(|| description.ropes.iter().map(|rope| Angles::new(rope, tokens)).collect());
        }
        Ok(Self { description, windows, angles })
    }

    /// The windows.
    #[must_use]
    pub fn windows(&self) -> &'a [Vec<u32>] {
        self.windows
    }

    /// The model.
    pub(super) fn description(&self) -> &'a Description {
        self.description
    }

    /// The angles of a window's positions.
    pub(super) fn angles(&self, window: usize) -> &[Angles] {
        &self.angles[&self.windows[window].len()]
    }

    /// Looks all tokens up: the streams before the first layer, in `file` if there is one.
    ///
    /// # Errors
    /// A table or the file cannot be read or written.
    pub fn embed(&self, weights: &dyn Weights, file: Option<File>) -> Result<Hidden, Finding> {
        let (description, embedding) = (self.description, &self.description.embedding);
        let width = description.hidden;
        // Only rows that are used are kept, whatever the size of the table.
        let mut used: Vec<u32> = self.windows.iter().flatten().copied().collect();
        used.sort_unstable();
        used.dedup();
        let mut table: Vec<f32> = Vec::with_capacity(used.len() * width);
        let mut rest = used.as_slice();
        while let Some(first) = rest.first() {
            let start = *first as usize;
            let count = rest.partition_point(|token| (*token as usize) < start + TABLE_ROWS);
            let end = rest[count - 1] as usize + 1;
            let rows = weights.read(&embedding.tokens, start..end)?;
            for token in &rest[..count] {
                let at = (*token as usize - start) * width;
                table.extend(rows[at..at + width].iter().map(|x| x * embedding.scale));
            }
            rest = &rest[count..];
        }
        let longest = self.windows.iter().map(Vec::len).max().unwrap_or(0);
        let positions = match &embedding.positions {
            Some((name, first)) => Some(weights.read(name, *first..first + longest)?),
            None => None,
        };
        let types = embedding.types.as_ref().map(|name| weights.read(name, 0..1)).transpose()?;
        let mut small = LayerWeights::default();
        for name in embedding.norm.iter().flat_map(|norm| norm.weight.iter().chain(&norm.bias)) {
            small.read_small(name, weights)?;
        }
        let mut hidden = self.room(file);
        for (index, window) in self.windows.iter().enumerate() {
            let mut stream = Vec::with_capacity(window.len() * width);
            for token in window {
                let at = used.partition_point(|used| used < token) * width;
                stream.extend_from_slice(&table[at..at + width]);
            }
            if let Some(types) = &types {
                stream
                    .chunks_exact_mut(width)
                    .for_each(|row| row.iter_mut().zip(types).for_each(|(x, add)| *x += add));
            }
            if let Some(positions) = &positions {
                stream.iter_mut().zip(positions).for_each(|(x, add)| *x += add);
            }
            if let Some(norm) = &embedding.norm {
                small.norm(&mut stream, norm);
            }
            hidden.put(index, stream)?;
        }
        Ok(hidden)
    }

    /// Runs all windows through a layer, in the threads of the pool that this is called in.
    ///
    /// # Errors
    /// Activations stop being finite, the file cannot be read or written, or the listener says so.
    pub fn layer<L: Listener>(
        &self,
        layer: usize,
        weights: &LayerWeights,
        hidden: &mut Hidden,
        listener: &mut L,
    ) -> Result<(), Finding> {
        for range in blocks(self.windows.len(), listener.block().max(1)) {
            let streams = range.clone().map(|window| hidden.take(window)).collect::<Result<Vec<_>, _>>()?;
            for (window, stream) in range.clone().zip(self.block(layer, weights, range, streams, listener)?) {
                hidden.put(window, stream)?;
            }
        }
        Ok(())
    }

    /// As [`Pass::layer`], for the listener only: the streams stay as they are before the layer.
    ///
    /// # Errors
    /// As [`Pass::layer`].
    pub fn listen<L: Listener>(
        &self,
        layer: usize,
        weights: &LayerWeights,
        hidden: &Hidden,
        listener: &mut L,
    ) -> Result<(), Finding> {
        for range in blocks(self.windows.len(), listener.block().max(1)) {
            let streams = range.clone().map(|window| hidden.get(window)).collect::<Result<Vec<_>, _>>()?;
            self.block(layer, weights, range, streams, listener)?;
        }
        Ok(())
    }

    /// Runs some windows, and gives their streams after the layer.
    fn block<L: Listener>(
        &self,
        layer: usize,
        weights: &LayerWeights,
        range: Range<usize>,
        streams: Vec<Vec<f32>>,
        listener: &mut L,
    ) -> Result<Vec<Vec<f32>>, Finding> {
        let program = &self.description.layers[layer];
        let width = self.description.hidden;
        let shared: &L = listener;
        let done: Vec<_> = streams
            .into_par_iter()
            .map(|stream| {
                let mut heard = shared.start();
                let angles = &self.angles[&(stream.len() / width)];
                let mut window = Window::new(program, stream.clone(), width);
                window.run(program, weights, angles, program.ops.len(), &mut |_, matrix, inputs| {
                    shared.hear(&mut heard, matrix, inputs);
                });
                let after = window.stream();
                let broken = first_not_finite(&after, width).map(|token| {
                    let module = match first_not_finite(&stream, width) {
                        Some(_) => Some(self.description.embedding.tokens.clone()),
                        None => Window::new(program, stream, width).first_broken(program, weights, angles),
                    };
                    (token, module)
                });
                (after, heard, broken)
            })
            .collect();
        let (mut after, mut all_heard) = (Vec::with_capacity(done.len()), Vec::with_capacity(done.len()));
        for (window, (stream, heard, broken)) in range.zip(done) {
            if let Some((token, module)) = broken {
                return Err(not_finite(layer, window, token, module.as_deref()));
            }
            after.push(stream);
            all_heard.push(heard);
        }
        listener.keep(all_heard)?;
        Ok(after)
    }

    /// Room for the streams of all windows, in `file` if there is one.
    #[must_use]
    pub fn room(&self, file: Option<File>) -> Hidden {
        Hidden::new(self.description.hidden, self.windows.iter().map(Vec::len).collect(), file)
    }

    /// Runs all windows through a layer, as [`Pass::layer`] does, and keeps the streams before it: those after it go `to`
    /// another place.
    ///
    /// # Errors
    /// Activations stop being finite, a file cannot be read or written, or `tell` says so.
    pub fn layer_to(
        &self,
        layer: usize,
        weights: &LayerWeights,
        from: &Hidden,
        to: &mut Hidden,
        tell: Tell<'_>,
    ) -> Result<(), Finding> {
        let steps = self.description.layers[layer].ops.len();
        for range in batches(self.windows) {
            let one = |index: usize| -> Result<After, Finding> {
                let mut window = self.window(layer, from, index)?;
                self.run(layer, weights, (index, &mut window), steps, &mut |_, _, _| {});
                Ok(self.after(window))
            };
            let done: Result<Vec<_>, Finding> = range.clone().into_par_iter().map(one).collect();
            for (index, after) in range.clone().zip(done?) {
                to.put_after(layer, index, after)?;
            }
            tell(range.len())?;
        }
        Ok(())
    }

    /// Checks that what a layer has made of a window is finite. `before` is the stream before the layer.
    ///
    /// # Errors
    /// If it is not, with the module that is the first not to be; or the file cannot be read.
    pub(super) fn check(
        &self,
        layer: usize,
        weights: &LayerWeights,
        before: &Hidden,
        (window, after): (usize, &After),
    ) -> Result<(), Finding> {
        let Some(token) = after.broken else { return Ok(()) };
        let program = &self.description.layers[layer];
        let module = self.window(layer, before, window)?.first_broken(program, weights, self.angles(window));
        Err(not_finite(layer, window, token, module.as_deref()))
    }

    /// What a layer has made of a window.
    pub(super) fn after(&self, window: Window) -> After {
        let stream = window.stream();
        let broken = first_not_finite(&stream, self.description.hidden);
        After { stream, broken }
    }

    /// Makes a window at the start of a layer, for callers that stop between its steps.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn window(&self, layer: usize, hidden: &Hidden, window: usize) -> Result<Window, Finding> {
        Ok(Window::new(&self.description.layers[layer], hidden.get(window)?, self.description.hidden))
    }

    /// Runs a window on up to a step of its layer.
    pub fn run(
        &self,
        layer: usize,
        weights: &LayerWeights,
        window: (usize, &mut Window),
        until: usize,
        hear: &mut Hear<'_>,
    ) {
        let angles = self.angles(window.0);
        window.1.run(&self.description.layers[layer], weights, angles, until, hear);
    }

    /// The stream after the last norm: what the head, or a pooling, works on.
    ///
    /// # Errors
    /// A tensor cannot be read.
    pub fn finish(&self, weights: &dyn Weights, hidden: &mut Hidden) -> Result<(), Finding> {
        let Some(norm) = &self.description.norm else { return Ok(()) };
        let mut small = LayerWeights::default();
        for name in norm.weight.iter().chain(&norm.bias) {
            small.read_small(name, weights)?;
        }
        for window in 0..hidden.windows() {
            let mut stream = hidden.take(window)?;
            small.norm(&mut stream, norm);
            hidden.put(window, stream)?;
        }
        Ok(())
    }
}
