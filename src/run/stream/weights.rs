//! The model's weight files, for the whole run: tiles of weights in a type that can be quantized, and their checksums.

use std::convert::Infallible;
use std::ops::Range;

use crate::cancel::Cancel;
use crate::digest::checksum;
use crate::finding::Failure;
use crate::format::source::ahead::{Ahead, Link, Reading};
use crate::ids::{IdVec, ShardId, TaskId, TensorId};
use crate::model::encoded::EncodedReader;
use crate::model::read::{MatrixReader, WeightFile};
use crate::model::{MatrixRows, MatrixView, TensorInfo};
use crate::plan::Plan;
use crate::quant::Integers;
use crate::run::stream::collector::Collector;
use crate::run::stream::tiles::{Queue, Span, Tile};
use crate::threads;

/// Every weight file of the model.
#[derive(Debug)]
pub(crate) struct Weights<'p> {
    plan: &'p Plan,
    files: IdVec<ShardId, WeightFile>,
    /// Where what comes over a network is kept until it is read.
    ahead: Option<Ahead>,
}

/// A worker's memory for source bytes, reused for each tile.
#[derive(Debug, Default)]
pub(crate) struct WeightBuffers {
    /// The weights of the tile, in the tensor's working type.
    pub weights: Vec<u8>,
    /// The tile as it is stored, in row order, if the tensor is stored in another type than the working one.
    raw: Vec<u8>,
}

/// What the weight files begin with.
#[derive(Debug)]
pub(crate) struct Headers {
    /// Their checksums.
    pub checksums: IdVec<ShardId, u64>,
    /// The headers themselves, if files are hashed.
    bytes: IdVec<ShardId, Vec<u8>>,
}

impl WeightBuffers {
    /// The weights of the tile in the tensor's own type, with every bit of it: an F64 tensor is worked on as F32.
    pub(crate) fn exact(&self, tensor: &TensorInfo) -> &[u8] {
        if tensor.dtype == tensor.working_dtype() { &self.weights } else { &self.raw }
    }
}

impl<'p> Weights<'p> {
    /// Opens the files.
    ///
    /// # Errors
    /// If one cannot be opened, or is no longer the file whose header was read.
    pub(crate) fn open(plan: &'p Plan) -> Result<Self, Failure> {
        let source = &*plan.model.source;
        let ahead = source.is_remote().then(|| Ahead::new(plan.budget.ahead));
        let open = |shard| {
            let file = WeightFile::open(source, shard)?;
            Ok(match &ahead {
                Some(ahead) => file.through(ahead),
                None => file,
            })
        };
        let files = plan.model.shards.iter().map(open).collect::<Result<_, Failure>>()?;
        Ok(Self { plan, files, ahead })
    }

    /// Has the weights of tasks asked for in the order of their tiles, as far ahead as the budget allows, until the
    /// result is dropped. None if they are on this machine.
    pub(crate) fn read_ahead(&self, tasks: &[TaskId], cancel: &Cancel) -> Option<Reading<'_>> {
        let mut list = self.ahead.as_ref()?.list();
        let queue = Queue::new(self.plan, tasks.to_vec());
        while let Some((_, tile)) = queue.next() {
            self.each_range(&tile, |shard, range| list.add(shard.index(), range));
        }
        Some(list.begin(cancel))
    }

    /// What goes on between this machine and the one that has the weights; none if that is this one.
    pub(crate) fn link(&self) -> Option<Link> {
        self.ahead.as_ref().map(Ahead::link)
    }

    /// The bytes of the files that are read for a tile.
    fn each_range(&self, tile: &Tile, mut each: impl FnMut(ShardId, Range<u64>)) {
        let index = self.plan.tasks[tile.task].tensor();
        let tensor = &self.plan.model.tensors[index];
        let mut of_tensor = |range: Range<u64>| {
            each(tensor.shard, tensor.offset + range.start..tensor.offset + range.end);
        };
        match &tile.span {
            Span::Bytes(range) => of_tensor(range.clone()),
            Span::Rows(rows) => match EncodedReader::new(&self.plan.model, &self.files, index) {
                None => rows.reads(tensor.stored.bits() / 8).for_each(of_tensor),
                Some(reader) => {
                    reader.each_range(rows, &mut each);
                    // What is re-labelled is read as weights, and once more as integers.
                    if self.plan.decisions[index].spec().is_some_and(|spec| spec.is_relabelled) {
                        reader.each_range(rows, each);
                    }
                }
            },
        }
    }

    /// Reads stored bytes of a tensor into `buffer`.
    ///
    /// # Errors
    /// If they cannot be read.
    pub(crate) fn read_stored(
        &self,
        tensor: TensorId,
        start: u64,
        count: u64,
        buffer: &mut Vec<u8>,
    ) -> Result<(), Failure> {
        let tensor = &self.plan.model.tensors[tensor];
        buffer.resize(usize::try_from(count).unwrap_or(0), 0);
        self.files[tensor.shard].read_at(tensor.offset + start, buffer)
    }

    /// Checks that the files are still as they were when their headers were read.
    ///
    /// # Errors
    /// If one has changed: the bytes read from it may be of two versions.
    pub(crate) fn check_unchanged(&self) -> Result<(), Failure> {
        let files: Vec<_> = self.files.iter().zip(&self.plan.model.shards).collect();
        match self.ahead {
            None => files.into_iter().try_for_each(|(file, shard)| file.check_unchanged(shard)),
            Some(_) => threads::map_waiting(&files, |(file, shard)| file.check_unchanged(shard))
                .into_iter()
                .collect(),
        }
    }

    /// Reads the headers of all files, which no tile reads.
    ///
    /// # Errors
    /// If one cannot be read.
    pub(crate) fn headers(&self, cancel: &Cancel) -> Result<Headers, Failure> {
        let _ahead = self.ahead.as_ref().map(|ahead| {
            let mut list = ahead.list();
            let headers = self.plan.model.shards.numbered();
            headers.for_each(|(index, shard)| list.add(index.index(), 0..shard.data_start));
            list.begin(cancel)
        });
        let is_hashed = self.plan.asks_for_hashes();
        let (mut checksums, mut bytes) = (IdVec::with_capacity(self.files.len()), IdVec::new());
        for (index, shard) in self.plan.model.shards.numbered() {
            let mut header = vec![0; usize::try_from(shard.data_start).unwrap_or(0)];
            self.files[index].read_at(0, &mut header)?;
            checksums.push(checksum::of(&header));
            bytes.push(if is_hashed { header } else { Vec::new() });
        }
        Ok(Headers { checksums, bytes })
    }

    /// Computes the checksums of the bytes that no tile reads: parts of encoded weights beside their codes. Of weights that are not
    /// wanted, nothing is read, and nothing of which the collector knows the checksum.
    ///
    /// # Errors
    /// If they cannot be read.
    pub(crate) fn sum_up_the_rest(
        &self,
        (tasks, is_wanted): (&[TaskId], &dyn Fn(TensorId) -> bool),
        headers: &Headers,
        collector: &Collector<'_>,
        cancel: &Cancel,
    ) -> Result<(), Failure> {
        headers.bytes.numbered().for_each(|(index, bytes)| collector.source_header(index, bytes));
        let mut others = self.read_by_no_tile(tasks, is_wanted);
        others.retain(|&tensor| collector.source_checksum(tensor).is_none());
        let _ahead = self.ahead.as_ref().map(|ahead| {
            let mut list = ahead.list();
            for tensor in others.iter().map(|&index| &self.plan.model.tensors[index]) {
                list.add(tensor.shard.index(), tensor.offset..tensor.offset + tensor.bytes);
            }
            list.begin(cancel)
        });
        others.into_iter().try_for_each(|index| self.sum_up(index, collector, cancel))
    }

    /// The tensors of which tiles do not read every byte once: parts of encoded weights, and those that are read in pieces
    /// that are too small, or more than once.
    fn read_by_no_tile(&self, tasks: &[TaskId], is_wanted: &dyn Fn(TensorId) -> bool) -> Vec<TensorId> {
        let tensors = self.plan.model.tensors.numbered();
        let parts = tensors.filter(|(_, tensor)| tensor.part_of.is_some_and(is_wanted));
        let mut out: Vec<TensorId> = parts.map(|(index, _)| index).collect();
        let mut last = None;
        for task in tasks.iter().map(|&task| &self.plan.tasks[task]) {
            let view = task.matrix(&self.plan.model);
            if !self.sums_up_tiles(task.tensor(), view) && last != Some(task.tensor()) {
                last = Some(task.tensor());
                out.push(task.tensor());
            }
        }
        out
    }

    fn sum_up(&self, index: TensorId, collector: &Collector<'_>, cancel: &Cancel) -> Result<(), Failure> {
        let bytes = self.plan.model.tensors[index].bytes;
        let mut buffer = Vec::new();
        let mut start = 0;
        while start < bytes {
            cancel.check()?;
            let count = (bytes - start).min(crate::plan::budget::TILE_BYTES);
            self.read_stored(index, start, count, &mut buffer)?;
            collector.source(index, start, &buffer);
            start += count;
        }
        Ok(())
    }

    /// Whether the tiles of a task read every stored byte once, in stretches. If not, the tensor is read once more to be
    /// summed up.
    fn sums_up_tiles(&self, tensor: TensorId, view: Option<MatrixView>) -> bool {
        match &self.plan.model.tensors[tensor].encoded {
            Some(encoded) => {
                view.is_none_or(|view| view.is_contiguous()) && !encoded.matrix.rows_share_bytes()
            }
            None => view.is_none_or(|view| !view.is_interleaved()),
        }
    }

    /// Reads the codes, zero points and scales of rows that are re-labelled.
    ///
    /// # Errors
    /// If they cannot be read.
    pub(crate) fn integers(
        &self,
        tensor: TensorId,
        rows: &MatrixRows,
        out: &mut Integers,
    ) -> Result<(), Failure> {
        match EncodedReader::new(&self.plan.model, &self.files, tensor) {
            Some(reader) => reader.integers(rows, out),
            None => Ok(()),
        }
    }

    /// Reads a tile into `buffers.weights`; takes note of its bytes if a collector is given.
    ///
    /// # Errors
    /// If it cannot be read.
    pub(crate) fn read(
        &self,
        tile: &Tile,
        buffers: &mut WeightBuffers,
        collector: Option<&Collector<'_>>,
    ) -> Result<(), Failure> {
        let index = self.plan.tasks[tile.task].tensor();
        let tensor = &self.plan.model.tensors[index];
        let file = &self.files[tensor.shard];
        let rows = match &tile.span {
            Span::Rows(rows) => rows,
            Span::Bytes(range) => {
                buffers.weights.resize((range.end - range.start) as usize, 0);
                file.read_at(tensor.offset + range.start, &mut buffers.weights)?;
                if let Some(collector) = collector {
                    collector.source(index, range.start, &buffers.weights);
                }
                return Ok(());
            }
        };
        let collector = collector.filter(|_| self.sums_up_tiles(index, Some(rows.view)));
        if let Some(reader) = EncodedReader::new(&self.plan.model, &self.files, index) {
            let ranges = reader.rows(rows, &mut buffers.weights, &mut buffers.raw)?;
            if let Some(collector) = collector {
                let stretches = buffers.raw.chunks(ranges.bytes.max(1) as usize);
                ranges
                    .starts()
                    .zip(stretches)
                    .for_each(|(start, bytes)| collector.source(index, start, bytes));
            }
            return Ok(());
        }
        let reader = MatrixReader::new(file, tensor, rows.view)?;
        reader.rows(rows.range.clone(), &mut buffers.weights, &mut buffers.raw)?;
        if let Some(collector) = collector {
            let is_plain = tensor.stored == tensor.working_dtype();
            let stored = if is_plain { &buffers.weights } else { &buffers.raw };
            let Ok(()) = rows.scatter(tensor.stored.bits() / 8, stored, |start, bytes| {
                collector.source(index, start, bytes);
                Ok::<_, Infallible>(())
            });
        }
        Ok(())
    }
}
