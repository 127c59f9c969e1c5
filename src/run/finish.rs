//! The end of a run: publishes the outputs that passed, keeps the report of those that did not, and records the
//! results for the next run.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::card;
use super::carried::Carried;
use super::conditions;
use super::event::{Event, Listener};
use super::made::{MadeFile, made_files};
use super::outcome::{Options, Outcome, Work};
use super::sums;
use super::verify::Digester;
use crate::exit::Exit;
use crate::finding::{Failure, Finding};
use crate::fs::exclusive::{self, Entry, Folder};
use crate::fs::identity::FileIdentity;
use crate::gates::Judgement;
use crate::ids::{ExportId, IdVec};
use crate::plan::Checks;
use crate::plan::copies::SUMS_FILE_NAME;
use crate::plan::{ExportPlan, Plan, fingerprint};
use crate::publish::occupant;
use crate::publish::occupant::Occupant;
use crate::publish::{Staging, exchange, files, hidden, staging};
use crate::report::ledger::{self, Results};
use crate::report::measured::Measured;
use crate::report::{self, Report, Verdict};
use crate::run::incremental::record;
use crate::run::incremental::record::{CarriedFile, Header, Journal, SourceFile, Tensors, WrittenFile};
use crate::run::incremental::reuse::Reuse;
use crate::run::incremental::take_over;
use crate::text::units;

/// The longest wait until every later change of a file shows in its times.
const TICK: Duration = Duration::from_millis(20);

/// The record of a run of a plan, before anything is written.
pub(super) fn header(plan: &Plan, export: &ExportPlan, checks: Checks) -> Header {
    let mut header = Header::new(checks, fingerprint::layout(plan, export));
    header.sources = plan
        .model
        .shards
        .iter()
        .map(|shard| SourceFile {
            name: shard.name.clone(),
            identity: shard.identity.clone(),
            is_settled: shard.identity.is_settled(),
            blake3: None,
        })
        .collect();
    let unwritten = |file: &crate::plan::OutputFile| WrittenFile {
        name: file.name.clone(),
        identity: None,
        blake3: None,
        uploaded: None,
    };
    header.files = export.files.iter().map(unwritten).collect();
    header
}

/// A run that is complete except for its end.
pub(super) struct Job<'a> {
    pub plan: &'a Plan,
    pub options: &'a Options,
    pub listener: &'a dyn Listener,
    /// The record of each export.
    pub headers: IdVec<ExportId, Header>,
    /// The occupant of each export's path when the run began.
    pub occupants: IdVec<ExportId, Occupant>,
    pub reuse: &'a Reuse<'a>,
    pub work: Work,
}

/// What there is to be published.
struct Ready<'a> {
    /// Whether each export is.
    is_published: &'a IdVec<ExportId, bool>,
    measured: &'a Measured,
    carried: &'a IdVec<ExportId, Vec<Carried>>,
    made: &'a IdVec<ExportId, Vec<MadeFile<'a>>>,
    report: &'a Report,
}

/// Where outputs and reports are by now.
#[derive(Default)]
struct Done {
    report_paths: Vec<PathBuf>,
    published: Vec<PathBuf>,
    is_up_to_date: bool,
    /// What is told once nothing is waited for any more.
    events: Vec<Event>,
}

/// The staging folder and the journal of each export.
pub(super) type Built = (IdVec<ExportId, Staging>, IdVec<ExportId, Journal>);

impl Job<'_> {
    /// Creates the staging folders and begins the journals.
    ///
    /// # Errors
    /// If they cannot be written.
    pub(super) fn stage(&self) -> Result<Built, Failure> {
        let go_on = || self.options.cancel.check();
        let (mut folders, mut journals) = (IdVec::new(), IdVec::new());
        for ((export, starts), header) in self.plan.exports.iter().zip(&self.reuse.starts).zip(&self.headers)
        {
            let folder = hidden::staging(&export.path);
            let staging = Staging::create(folder, self.plan.content(), (export, starts), &go_on)?;
            folders.push(staging);
            journals.push(Journal::begin(&export.path, header)?);
        }
        Ok((folders, journals))
    }

    /// Publishes the outputs that passed, and keeps the report of those that did not.
    ///
    /// # Errors
    /// If something cannot be written, or the ledger does not balance.
    pub(super) fn finish(
        mut self,
        mut measured: Measured,
        carried: &IdVec<ExportId, Vec<Carried>>,
        mut judgement: Judgement,
        built: Option<Built>,
    ) -> Result<Outcome, Failure> {
        let plan = self.plan;
        let distortions = std::mem::take(&mut measured.tensors);
        let measured = &measured;
        let failed = judgement.failed.map(|(stage, _)| stage);
        let mut published = plan.exports.map(|export| failed.is_none_or(|failed| export.stage < failed));
        let mut exit = judgement.failed.map_or(Exit::Done, |(_, exit)| exit);
        let verdict = Verdict {
            passed: exit == Exit::Done,
            exit_status: exit.code(),
            summary: summary(plan, &judgement),
        };
        let results = card::Measured {
            distortions: &distortions,
            files: &measured.output_files,
            judgement: &judgement,
        };
        let made = plan.exports.ids().map(|export| made_files(plan, export, &results));
        let made: IdVec<ExportId, Vec<MadeFile<'_>>> = made.collect::<Result<_, _>>()?;
        let is_hashed = plan.asks_for_hashes();
        let others = carried.iter().zip(&made).map(|(carried, made)| {
            let made = made.iter().map(|made| {
                let mut digester = Digester::new(is_hashed);
                // A sum takes everything.
                let _ = (made.write)(&mut digester);
                digester.of(&made.name)
            });
            carried.iter().map(|carried| carried.file.clone()).chain(made).collect()
        });
        let mut report = ledger::report(
            plan,
            Results {
                distortions: &distortions,
                extremes: &measured.extremes,
                source_files: &measured.source_files,
                output_files: &measured.output_files,
                other_files: others.collect(),
                evaluations: judgement.evaluations,
                gates: judgement.gates,
                complaints: judgement.complaints,
                published: published.to_vec(),
                verdict,
            },
        )?;
        if !report.balance.balanced {
            let finding = Finding::error("report::unbalanced", "the ledger does not balance").help(
                "Bytes of the source and of the output do not add up. This is a bug in monoquant; nothing was published.",
            );
            return Err(Failure::new(Exit::Internal, finding));
        }
        let held = conditions::hold(&self.options.conditions, &mut report)?;
        if !held.findings.is_empty() && exit == Exit::Done {
            (published, exit) = (plan.exports.map(|_| false), Exit::GateFailed);
        }
        judgement.shown.extend(held.findings);
        report::seal(&mut report);
        self.record_sources(measured);
        // Bound once more, so that it is dropped before the report.
        let mut made = made;
        let write_report = |out: &mut dyn Write| report::write(&report, out);
        for made in &mut made {
            made.push(MadeFile { name: report::FILE_NAME.to_owned(), write: Box::new(write_report) });
        }
        let ready = Ready { is_published: &published, measured, carried, made: &made, report: &report };
        let done = self.end(&ready, built)?;
        drop(made);
        Ok(Outcome {
            report,
            baseline: held.comparison,
            report_paths: done.report_paths,
            published: done.published,
            findings: judgement.shown,
            exit,
            work: self.work,
            is_up_to_date: done.is_up_to_date,
        })
    }

    /// Publishes what passed, with its report, and keeps the report of what did not.
    fn end(&self, ready: &Ready<'_>, built: Option<Built>) -> Result<Done, Failure> {
        let (plan, options) = (self.plan, self.options);
        let is_any = ready.is_published.iter().any(|is_published| *is_published);
        let is_up_to_date = built.is_none()
            && ready.is_published.iter().all(|is_published| *is_published)
            && self.is_same(ready.carried, ready.made);
        if built.is_none() {
            // What was not looked at to its end is not known to be the same.
            options.cancel.check()?;
        }
        let mut done = Done { is_up_to_date, ..Done::default() };
        if is_up_to_date {
            for (index, export) in plan.exports.numbered() {
                if options.durable {
                    files::sync_all(&export.path)?;
                }
                let mut taken = take_over::taken(plan, self.reuse, index);
                let tensors = Tensors::Each(self.reuse.tensors.count(), &mut taken);
                self.record(index, ready, tensors)?;
                staging::clear(&export.path);
                remove_failed_report(&export.path);
                done.report_paths.push(export.path.join(report::FILE_NAME));
            }
            return Ok(done);
        }
        // All are looked at before the first is moved, so that one that cannot be published stops the others as well.
        for (index, export) in plan.exports.numbered().filter(|(index, _)| ready.is_published[*index]) {
            exchange::look_again(&export.path, export.overwrite, &self.occupants[index])?;
        }
        let built = match built {
            Some(built) => Some(built),
            // If a gate fails on an output that is there already, there is nothing to stage.
            None if !is_any => None,
            None => {
                let (staging, journals) = self.stage()?;
                for (index, journal) in journals.numbered() {
                    take_over::taken(plan, self.reuse, index)
                        .try_for_each(|finished| journal.add(&finished))?;
                }
                Some((staging, journals))
            }
        };
        let mut built: IdVec<ExportId, Option<(Staging, Journal)>> = match built {
            Some((staging, journals)) => staging.into_iter().zip(journals).map(Some).collect(),
            None => plan.exports.map(|_| None),
        };
        let ended = self
            .complete(&built, ready)
            .and_then(|()| options.cancel.whole(|| self.publish(&mut built, ready, &mut done)));
        if ended.as_ref().is_err_and(|failure| failure.exit == Exit::Interrupted) {
            built.iter_mut().flatten().for_each(|(staging, _)| staging.keep());
        }
        done.events.iter().for_each(|event| self.listener.on_event(event));
        ended.map(|()| done)
    }

    /// Writes what is still missing from the outputs that passed.
    fn complete(
        &self,
        built: &IdVec<ExportId, Option<(Staging, Journal)>>,
        ready: &Ready<'_>,
    ) -> Result<(), Failure> {
        for (index, built) in built.numbered().filter(|(index, _)| ready.is_published[*index]) {
            let Some((staging, _)) = built else { continue };
            self.write_other_files(index, &ready.carried[index], &ready.made[index], staging)?;
            self.write_sums(index, staging)?;
            if card::lacks_base_model(self.plan, &self.plan.exports[index]) {
                let text = "the model card names no base model: `base_model` of `export` says which it is";
                self.listener.on_event(&Event::Note { text: text.to_owned() });
            }
            if self.options.durable {
                staging.sync()?;
            }
        }
        Ok(())
    }

    /// Moves what passed to its place and records it, and keeps the report of what did not. Nothing here takes long: the signal
    /// that ends a run waits for all of it.
    fn publish(
        &self,
        built: &mut IdVec<ExportId, Option<(Staging, Journal)>>,
        ready: &Ready<'_>,
        done: &mut Done,
    ) -> Result<(), Failure> {
        let (plan, options) = (self.plan, self.options);
        if options.keep_unpublished {
            let unpublished =
                plan.exports.ids().zip(&mut *built).filter(|(index, _)| !ready.is_published[*index]);
            for (index, built) in unpublished {
                let Some((staging, journal)) = built else { continue };
                let header = self.written_header(index, ready.measured, &staging.folder);
                let (path, new) = (hidden::journal(&staging.target), hidden::new(&staging.target));
                record::write(&path, &new, &header, Tensors::Of(journal))?;
                staging.keep();
            }
        }
        for (index, built) in plan.exports.ids().zip(built) {
            let export = &plan.exports[index];
            let failed_report = hidden::failed_report(&export.path);
            let Some((staging, journal)) = built.take().filter(|_| ready.is_published[index]) else {
                let new = hidden::new(&export.path);
                let file = files::replace(&failed_report, &new, |file| report::write(ready.report, file))?;
                if options.durable {
                    files::sync_file(&failed_report, &file)?;
                    files::sync_way(&failed_report)?;
                }
                done.report_paths.push(failed_report);
                continue;
            };
            let at_first = &self.occupants[index];
            let published = exchange::publish(staging, export.overwrite, options.durable, at_first)?;
            if let Some(left) = published.left {
                let text = format!("not all of the old output could be removed: see {}", left.display());
                done.events.push(Event::Note { text });
            }
            let path = published.path;
            self.record(index, ready, Tensors::Of(&journal))?;
            remove_failed_report(&export.path);
            done.report_paths.push(path.join(report::FILE_NAME));
            if export.store.is_none() {
                let told = plan.told_path(&path);
                done.events.push(Event::Published { path: path.clone(), told });
            }
            done.published.push(path);
        }
        Ok(())
    }

    fn record_sources(&mut self, measured: &Measured) {
        for header in &mut self.headers {
            for (file, digest) in header.sources.iter_mut().zip(&measured.source_files) {
                file.blake3.clone_from(&digest.blake3);
            }
        }
    }

    /// The header of a record for weight files that are complete, in a folder.
    fn written_header(&self, index: ExportId, measured: &Measured, folder: &Path) -> Header {
        let mut header = self.headers[index].clone();
        let paths: Vec<PathBuf> = header.files.iter().map(|file| folder.join(&file.name)).collect();
        let identities = identities(&paths);
        for ((file, digest), identity) in
            header.files.iter_mut().zip(&measured.output_files[index]).zip(identities)
        {
            file.identity = identity;
            file.blake3.clone_from(&digest.blake3);
        }
        header
    }

    /// Records the content of a published output.
    ///
    /// # Errors
    /// If it is to be durable and the disk reports an error.
    fn record(&self, index: ExportId, ready: &Ready<'_>, tensors: Tensors<'_>) -> Result<(), Failure> {
        let (export, carried) = (&self.plan.exports[index], &ready.carried[index]);
        let mut header = self.written_header(index, ready.measured, &export.path);
        let paths: Vec<PathBuf> =
            carried.iter().map(|carried| export.path.join(&carried.file.name)).collect();
        header.carried = carried
            .iter()
            .zip(identities(&paths))
            .map(|(carried, written)| CarriedFile {
                file: carried.file.clone(),
                source: carried.source.clone(),
                is_settled: carried.source.is_settled(),
                written,
            })
            .collect();
        let (path, new) = (hidden::record(&export.path), hidden::new(&export.path));
        match record::write(&path, &new, &header, tensors) {
            Ok(file) if self.options.durable => files::sync_file(&path, &file)?,
            Ok(_) => {}
            Err(failure) => {
                let why = failure.findings.first().map_or("", |finding| finding.message.as_str());
                let why = self.plan.loaded.told(why);
                let text = format!("the next run will do everything again: {why}");
                self.listener.on_event(&Event::Note { text });
            }
        }
        let _ = exclusive::remove_file(&hidden::journal(&export.path));
        let _ = exclusive::remove_folder(&hidden::interrupted(&export.path));
        if self.options.durable { files::sync_way(&export.path) } else { Ok(()) }
    }

    /// Whether every output is already as it would be made, its weight files aside: these files and no others, at any depth.
    fn is_same(&self, carried: &[Vec<Carried>], made: &[Vec<MadeFile<'_>>]) -> bool {
        self.plan.exports.iter().zip(carried).zip(made).zip(self.reuse.stores).all(
            |(((export, carried), made), stores)| {
                let weights = export.files.iter().map(|file| file.name.as_str());
                let others = carried.iter().map(|carried| carried.file.name.as_str());
                let names = weights.chain(others).chain(made.iter().map(|made| made.name.as_str()));
                let names = names.chain(export.sums.then_some(SUMS_FILE_NAME));
                let files: BTreeSet<&Path> = names.map(Path::new).collect();
                let folders: BTreeSet<&Path> =
                    files.iter().flat_map(|file| file.ancestors().skip(1)).collect();
                let Ok(folder) = Folder::open(&export.path) else { return false };
                let Ok(tree) = folder.tree() else { return false };
                let is_expected = |entry: &Entry| {
                    let name = entry.name.as_path();
                    entry.is_file() && files.contains(name) || entry.is_folder() && folders.contains(name)
                };
                tree.iter().filter(|entry| entry.is_file()).count() == files.len()
                    && tree.iter().all(is_expected)
                    && made.iter().all(|made| made.is_in(&folder))
                    && (!export.sums || sums::are_there(&folder, &self.options.cancel))
                    && carried.iter().all(|carried| carried.is_in(&folder, stores, &self.options.cancel))
            },
        )
    }

    /// Writes the hashes of all files, if the recipe asks for them.
    fn write_sums(&self, index: ExportId, staging: &Staging) -> Result<(), Failure> {
        if !self.plan.exports[index].sums {
            return Ok(());
        }
        let cancel = &self.options.cancel;
        let files = self.plan.exports[index].files.numbered();
        let uploaded = files.filter_map(|(file, planned)| {
            let hash = self.reuse.uploaded(index, file)?.uploaded.as_ref()?.sha256.clone()?;
            Some((planned.name.clone(), hash))
        });
        let text = Folder::open(&staging.folder).and_then(|folder| sums::text(&folder, uploaded, cancel));
        cancel.check()?;
        let text = text.map_err(|error| files::cannot_write("hash", &staging.folder, &error))?;
        staging.write(Path::new(SUMS_FILE_NAME), |out| out.write_all(text.as_bytes()))
    }

    /// Writes everything of an output except its weights. Files that the previous output holds get a second name, if
    /// that output is one that results are reused from.
    fn write_other_files(
        &self,
        index: ExportId,
        carried: &[Carried],
        made: &[MadeFile<'_>],
        staging: &Staging,
    ) -> Result<(), Failure> {
        let (plan, stores, cancel) = (self.plan, &self.reuse.stores[index], &self.options.cancel);
        let target = &plan.exports[index].path;
        let old = Folder::open(target).ok().filter(|_| !stores.stores.is_empty());
        for carried in carried {
            cancel.check()?;
            let name = Path::new(&carried.file.name);
            if old.as_ref().is_some_and(|old| carried.is_in(old, stores, cancel)) {
                staging.link(&target.join(name), name, &|| cancel.check())?;
            } else {
                carried.copy(&plan.model, staging, cancel)?;
            }
        }
        made.iter().try_for_each(|made| staging.write(Path::new(&made.name), &made.write))
    }
}

/// The identities of files that are complete; none for a file in which a later change might not show.
pub(super) fn identities(paths: &[PathBuf]) -> Vec<Option<FileIdentity>> {
    let look = || -> Vec<Option<FileIdentity>> { paths.iter().map(|path| FileIdentity::at(path)).collect() };
    let first = look();
    let left = first.iter().flatten().map(FileIdentity::tick_left);
    // A tick of the system's clock is worth waiting for; a tick of a file system that counts in seconds is not.
    std::thread::sleep(left.filter(|left| *left <= TICK).max().unwrap_or_default());
    let settled = |(first, now): (Option<FileIdentity>, Option<FileIdentity>)| {
        now.filter(|now| first == Some(*now) && now.tick_left().is_zero())
    };
    first.into_iter().zip(look()).map(settled).collect()
}

/// Removes the report of an earlier run that failed: it says nothing about the output that is there now.
fn remove_failed_report(target: &Path) {
    let path = hidden::failed_report(target);
    if occupant::read_report(&path).is_ok() {
        let _ = exclusive::remove_file(&path);
    }
}

fn summary(plan: &Plan, judgement: &Judgement) -> String {
    let quantized = units::grouped(plan.quantized_tensors() as u64);
    let of = units::counted(plan.model.tensors.len(), "tensor");
    match judgement.failed {
        Some((stage, _)) => {
            format!(
                "`{}` failed: {quantized} of {of} quantized, not published",
                plan.recipe().stages[stage].name()
            )
        }
        None => format!("{quantized} of {of} quantized"),
    }
}
