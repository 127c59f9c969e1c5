//! Transfer of reused tensors into the staging folders, and into the record of the run.

use crate::digest::checksum;
use crate::finding::Failure;
use crate::ids::{ExportId, FileId, OutputTensorId};
use crate::plan::Checks;
use crate::plan::Plan;
use crate::publish::files;
use crate::run::context::Context;
use crate::run::incremental::previous::Store;
use crate::run::incremental::record::{Finished, WrittenPart};
use crate::run::incremental::reuse::Reuse;
use crate::run::stream::collector::Collector;

/// The number of bytes that are copied at once. A run can be cancelled between two stretches.
const STRETCH: u64 = 16 << 20;

/// Bytes that are copied from one file into another.
struct Stretch<'a> {
    export: ExportId,
    store: &'a Store,
    /// The file in the store.
    from: FileId,
    from_offset: u64,
    file: FileId,
    offset: u64,
    len: u64,
}

/// Gives the collector the known results of the tensors that are reused.
pub(crate) fn remember(plan: &Plan, reuse: &Reuse<'_>, checks: Checks, collector: &Collector<'_>) {
    for tensor in plan.model.tensors.ids() {
        let Some(first) = reuse.tensors.get(tensor).and_then(|mut taken| taken.next()) else { continue };
        let finished = first.finished;
        // What is hashed is read again, but for the weights themselves.
        let known = if plan.asks_for_hashes() { 1 } else { finished.source.len() };
        for (input, &checksum) in plan.model.parts_of(tensor).zip(&finished.source).take(known) {
            collector.known_source(input, checksum);
        }
        if checks.measure {
            for (task, distortion) in plan.tasks_of(tensor).zip(&finished.tasks) {
                collector.known_distortion(task, *distortion);
            }
        }
        if let Some(element) = finished.not_finite.filter(|_| checks.finite) {
            collector.not_finite(tensor, element);
        }
        for (export, taken) in plan.exports.ids().zip(reuse.tensors.get(tensor).into_iter().flatten()) {
            let outputs = plan.exports[export].tensors_of(plan, tensor);
            for (output, part) in outputs.zip(&taken.finished.parts) {
                collector.known_output(export, output, part.checksum);
            }
        }
    }
}

/// Copies the reused tensors into the files that are made anew, and notes them in the journals.
///
/// # Errors
/// If a tensor cannot be read or written, or the run is cancelled.
pub(crate) fn take_over(run: &Context<'_>, reuse: &Reuse<'_>) -> Result<(), Failure> {
    let plan = run.plan;
    let stretches = stretches(plan, reuse);
    run.workers.each_of(&stretches, |stretch, (): &mut ()| {
        let to = run.staging[stretch.export].weight(stretch.file)?;
        let from = stretch.store.file(stretch.from);
        let from =
            from.map_err(|error| files::cannot_write("open", stretch.store.path(stretch.from), &error))?;
        files::copy_range(from, stretch.from_offset, to, stretch.offset, stretch.len)
    })?;
    if run.checks.round_trip {
        read_back(run, reuse)?;
    }
    for (export, journal) in run.journals.numbered() {
        taken(plan, reuse, export).try_for_each(|finished| journal.add(&finished))?;
    }
    Ok(())
}

/// The tensors that an export reuses, at their places in the new files.
pub(crate) fn taken<'a>(
    plan: &'a Plan,
    reuse: &'a Reuse<'_>,
    export: ExportId,
) -> impl Iterator<Item = Finished> + 'a {
    plan.model.tensors.ids().filter_map(move |tensor| {
        let finished = reuse.tensors.of(tensor, export)?.finished;
        let parts = plan.exports[export].tensors_of(plan, tensor).zip(&finished.parts);
        let moved = parts.map(|(output, part)| {
            let planned = &plan.exports[export].tensors[output];
            WrittenPart { file: planned.file(), offset: planned.offset, ..*part }
        });
        Some(Finished { parts: moved.collect(), ..finished.clone() })
    })
}

/// The stretches that have to be copied. Neighbours that stay neighbours are joined.
fn stretches<'a>(plan: &Plan, reuse: &Reuse<'a>) -> Vec<Stretch<'a>> {
    let mut out: Vec<Stretch<'a>> = Vec::new();
    for (export, planned) in plan.exports.numbered() {
        for (index, tensor) in planned.tensors.numbered() {
            let (file, bytes) = (tensor.file(), tensor.bytes(plan.content()));
            if bytes == 0 || !reuse.starts[export][file].is_filled() {
                continue;
            }
            let Some((taken, part)) = reuse.part(plan, export, index) else { continue };
            let store = &reuse.stores[export].stores[taken.store];
            if store.is_staging {
                // It is already in its place.
                continue;
            }
            let (mut from_offset, mut offset, mut left) = (part.offset, tensor.offset, bytes);
            while left > 0 {
                let follows = out.last_mut().filter(|last| {
                    (last.export, last.file) == (export, file)
                        && last.store.path(last.from) == store.path(part.file)
                        && last.offset + last.len == offset
                        && last.from_offset + last.len == from_offset
                        && last.len < STRETCH
                });
                let room = follows.as_ref().map_or(STRETCH, |last| STRETCH - last.len);
                let len = left.min(room);
                match follows {
                    Some(last) => last.len += len,
                    None => {
                        out.push(Stretch { export, store, from: part.file, from_offset, file, offset, len })
                    }
                }
                (from_offset, offset, left) = (from_offset + len, offset + len, left - len);
            }
        }
    }
    out
}

/// Reads what was copied back and compares it with what it was.
fn read_back(run: &Context<'_>, reuse: &Reuse<'_>) -> Result<(), Failure> {
    let plan = run.plan;
    let mut copied: Vec<(ExportId, OutputTensorId, u64)> = Vec::new();
    for (export, planned) in plan.exports.numbered() {
        for (index, tensor) in planned.tensors.numbered() {
            if let Some((taken, part)) = reuse.part(plan, export, index)
                && !reuse.stores[export].stores[taken.store].is_staging
                && reuse.starts[export][tensor.file()].is_filled()
            {
                copied.push((export, index, part.checksum));
            }
        }
    }
    run.workers.each_of(&copied, |&(export, index, meant), buffer: &mut Vec<u8>| {
        let tensor = &plan.exports[export].tensors[index];
        let bytes = tensor.bytes(plan.content());
        let (mut crc, mut start) = (0, 0);
        while start < bytes {
            run.workers.cancel().check()?;
            let count = (bytes - start).min(1 << 20);
            buffer.resize(count as usize, 0);
            files::read_at(run.staging[export].weight(tensor.file())?, tensor.offset + start, buffer)?;
            crc = checksum::joined(crc, checksum::of(buffer), count);
            start += count;
        }
        if crc != meant {
            run.collector.mismatch(export, index);
        }
        Ok(())
    })
}
