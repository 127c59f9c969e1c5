//! Second moments of gradients: taken in one walk backwards for all layers that are to be rounded, and kept in files beside the
//! output until that is done.
//!
//! A file begins with its key and a hash of the rest. Then follow the matrices that are guided, in the order of their steps: the
//! tokens whose gradients were summed, and the blocks of the sum.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use super::{Place, place};
use crate::cancel::Cancel;
use crate::exit::Exit;
use crate::finding::{Failure, Finding};
use crate::fs::exclusive::{self, Folder};
use crate::fs::positioned::read_exact_at;
use crate::network::{Backwards, Checkpoint, Linear, OutputMoments, OutputSum, Pass};
use crate::plan::rounding::{Gradients, LayerMatrix};
use crate::plan::{ModelRun, ModelRuns};
use crate::publish::files::{self, cannot_write};
use crate::publish::hidden;
use crate::run::event::Listener;
use crate::run::kept::key;
use crate::run::model_pass::{Places, Progress, failed, first};

/// Digits of a hash in hexadecimal.
const DIGITS: usize = 64;

/// Numbers that are hashed or written at once.
const STRETCH: usize = 1 << 16;

/// Moments of gradients of fewer tokens than this share of a block's outputs say too little of them.
const FEW: u64 = 4;

/// The files of all layers.
pub(super) struct GradientFiles<'p> {
    target: &'p Path,
    gradients: Gradients,
    /// The guided matrices of each layer, and the key of its file.
    layers: Vec<(Vec<&'p Linear>, String)>,
}

/// What a walk needs beside the files.
pub(super) struct Walk<'a> {
    pub runs: &'a ModelRuns,
    pub run: &'a ModelRun,
    pub checkpoint: &'a Checkpoint<'a>,
    /// Whether the streams before all layers are in memory.
    pub holds: bool,
    pub cancel: &'a Cancel,
    pub listener: &'a dyn Listener,
}

impl<'p> GradientFiles<'p> {
    /// For the matrices of each layer that are guided and have codes chosen now: `is_wanted` says which. `facts` is a hash of
    /// all that decides gradients, the matrices aside.
    pub(super) fn new(
        target: &'p Path,
        gradients: Gradients,
        facts: &str,
        matrices: &[Vec<LayerMatrix<'p>>],
        is_wanted: impl Fn(&LayerMatrix<'p>) -> bool,
    ) -> Self {
        let layers = matrices.iter().enumerate().map(|(layer, matrices)| {
            let guided = matrices.iter().filter(|matrix| matrix.spec.is_guided() && is_wanted(matrix));
            let guided: Vec<&Linear> = guided.map(|matrix| matrix.linear).collect();
            let names = guided.iter().map(|linear| format!("{:?}", place(linear)));
            let of_layer = key([facts.to_owned(), layer.to_string()].into_iter().chain(names));
            (guided, of_layer)
        });
        Self { target, gradients, layers: layers.collect() }
    }

    fn path(&self, layer: usize) -> PathBuf {
        hidden::rounding(self.target).join(format!("gradients-{layer}"))
    }

    /// Walks the model backwards, unless the files of these layers are there already. `is_fresh` takes none of them.
    ///
    /// # Errors
    /// The model has no gradients, or they are not finite; a file cannot be written; the run is cancelled.
    pub(super) fn take(&self, layers: &[usize], walk: &Walk<'_>, is_fresh: bool) -> Result<(), Failure> {
        let needed: Vec<usize> =
            layers.iter().copied().filter(|layer| !self.layers[*layer].0.is_empty()).collect();
        if needed.is_empty() || (!is_fresh && needed.iter().all(|layer| self.is_whole(*layer))) {
            return Ok(());
        }
        let folder = hidden::rounding(self.target);
        Folder::open_or_create(&folder).map_err(|error| cannot_write("make", &folder, &error))?;
        let run =
            ModelRun { windows: walk.run.windows[..self.gradients.samples].to_vec(), ..walk.run.clone() };
        let programs = walk.runs.description.layers.len();
        let progress = Progress::new("gradients", walk.runs, &run, walk.listener)
            .of_tokens(2 * programs * self.gradients.tokens);
        progress.layer(0);
        let blocks = |layer: usize, linear: &Linear| {
            let is_guided = needed.contains(&layer) && self.layers[layer].0.contains(&linear);
            is_guided.then(|| self.gradients.block(linear.rows))
        };
        let tell = |layer: usize, windows: usize| progress.through_layer(layer, windows, walk.cancel);
        let how =
            Backwards { weights: walk.checkpoint, seed: self.gradients.seed, blocks: &blocks, tell: &tell };
        let (mut places, mut count) = (Places::default(), 0);
        // A file that cannot be written is told with its own exit status.
        let (mut not_made, mut not_kept) = (None, None);
        let mut file = || -> Result<Option<File>, Finding> {
            if walk.holds {
                return Ok(None);
            }
            count += 1;
            let made = places.another(&folder.join(format!("stream-{count}")));
            made.map(Some).map_err(|failure| first(not_made.insert(failure).clone()))
        };
        let mut keep = |layer: usize, outputs: OutputMoments| {
            if !needed.contains(&layer) {
                return Ok(());
            }
            self.write(layer, &outputs).map_err(|failure| first(not_kept.insert(failure).clone()))
        };
        let pass = Pass::new(&walk.runs.description, &run.windows)
            .map_err(|finding| failed(walk.cancel, finding))?;
        let done = pass.output_moments(&how, &mut file, &mut keep);
        match not_made.or(not_kept) {
            Some(failure) => Err(failure),
            None => done.map_err(|finding| failed(walk.cancel, finding)),
        }
    }

    /// The sums of a layer's matrices, one after another, as bytes of its file.
    fn each_stretch(
        &self,
        layer: usize,
        outputs: &OutputMoments,
        with: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        for linear in &self.layers[layer].0 {
            let Some(sum) = outputs.get(linear) else { continue };
            with(&sum.tokens.to_le_bytes())?;
            for numbers in sum.sums.chunks(STRETCH) {
                with(&numbers.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>())?;
            }
        }
        Ok(())
    }

    fn write(&self, layer: usize, outputs: &OutputMoments) -> Result<(), Failure> {
        let path = self.path(layer);
        let mut hasher = blake3::Hasher::new();
        let mut add = |bytes: &[u8]| {
            hasher.update(bytes);
            Ok(())
        };
        self.each_stretch(layer, outputs, &mut add).map_err(|error| cannot_write("write", &path, &error))?;
        let head = format!("{}{}", self.layers[layer].1, hasher.finalize().to_hex());
        files::replace(&path, &hidden::new(self.target), |file| {
            file.write_all(head.as_bytes())?;
            self.each_stretch(layer, outputs, &mut |bytes| file.write_all(bytes))
        })?;
        Ok(())
    }

    /// Whether a layer's file is there, of its key, and as it was written.
    fn is_whole(&self, layer: usize) -> bool {
        let check = || -> Option<bool> {
            let mut file = exclusive::open_existing(&self.path(layer)).ok()?;
            let mut head = [0; 2 * DIGITS];
            file.read_exact(&mut head).ok()?;
            let (of, hash) = head.split_at(DIGITS);
            let mut hasher = blake3::Hasher::new();
            let mut buffer = vec![0; 4 * STRETCH];
            loop {
                match file.read(&mut buffer).ok()? {
                    0 => break,
                    count => hasher.update(&buffer[..count]),
                };
            }
            let is_own = of == self.layers[layer].1.as_bytes();
            Some(is_own && hash == hasher.finalize().to_hex().as_bytes())
        };
        check().unwrap_or(false)
    }

    /// The moments of those of a layer's matrices that are guided, and of which enough tokens' gradients are known.
    ///
    /// # Errors
    /// If they cannot be read.
    pub(super) fn read(
        &self,
        layer: usize,
        matrices: &[&Linear],
    ) -> Result<HashMap<Place, OutputSum>, Failure> {
        let (guided, key) = &self.layers[layer];
        let mut out = HashMap::new();
        if !matrices.iter().any(|linear| guided.contains(linear)) {
            return Ok(out);
        }
        let path = self.path(layer);
        let unreadable = |error: io::Error| {
            let message = format!("the gradients in {} cannot be read: {error}", path.display());
            let finding = Finding::error("run::gradients", message)
                .help("Run again: gradients that are missing there are taken anew.");
            Failure::new(Exit::CannotWrite, finding)
        };
        let file = exclusive::open_existing(&path).map_err(unreadable)?;
        let mut head = vec![0; DIGITS];
        read_exact_at(&file, &mut head, 0).map_err(unreadable)?;
        if head != key.as_bytes() {
            return Err(unreadable(io::Error::other("another run has replaced them")));
        }
        let mut at = 2 * DIGITS as u64;
        for linear in guided {
            let block = self.gradients.block(linear.rows);
            let bytes = OutputSum::bytes_of(linear.rows, block);
            if matrices.contains(linear) {
                let mut tokens = [0; 8];
                read_exact_at(&file, &mut tokens, at).map_err(unreadable)?;
                let tokens = u64::from_le_bytes(tokens);
                if tokens * FEW >= block as u64 {
                    let sums = numbers(&file, at + 8, bytes / 4).map_err(unreadable)?;
                    out.insert(place(linear), OutputSum { rows: linear.rows, block, tokens, sums });
                }
            }
            at += 8 + bytes;
        }
        Ok(out)
    }
}

/// So many numbers of a file.
fn numbers(file: &File, start: u64, count: u64) -> io::Result<Vec<f32>> {
    let count = usize::try_from(count).map_err(io::Error::other)?;
    let mut out = Vec::with_capacity(count);
    let mut buffer = vec![0; 4 * STRETCH.min(count)];
    while out.len() < count {
        let bytes = &mut buffer[..4 * STRETCH.min(count - out.len())];
        read_exact_at(file, bytes, start + 4 * out.len() as u64)?;
        out.extend(bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)));
    }
    Ok(out)
}
