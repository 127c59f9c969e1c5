//! The end of a run: publishes what passed, keeps the report of what did not, and records what is there for the next run.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::cancel::Cancel;
use super::carried::Carried;
use super::event::{Event, Listener};
use super::executor::{Options, Outcome, Work};
use super::made::{MadeFiles, made_files};
use super::measured::{Measured, asks_for_hashes};
use super::record::{self, CarriedFile, Finished, Header, Journal, SourceFile, WrittenFile};
use super::reuse::Reuse;
use super::store::Stores;
use super::stream::Checks;
use super::verdict::{self, Judgement};
use super::{take_over, verify};
use crate::exit::Exit;
use crate::export::occupant::{self, Occupant};
use crate::export::{Staging, files, publish, siblings, staging};
use crate::finding::{Failure, Finding};
use crate::fs::exclusive::{self, Entry, Folder};
use crate::model::FileIdentity;
use crate::plan::{ExportPlan, Plan, fingerprint};
use crate::report::ledger::{self, Results};
use crate::report::{self, Verdict, units};

/// Up to so long is waited for until every later change of a file shows in its times.
const TICK: Duration = Duration::from_millis(20);

/// The record of a run of a plan, before anything is written.
pub(super) fn header(plan: &Plan, export: &ExportPlan, checks: Checks) -> Header {
    let mut header = Header::new(checks, fingerprint::layout(export));
    header.sources = plan
        .model
        .shards
        .iter()
        .map(|shard| SourceFile {
            name: shard.name.clone(),
            identity: shard.identity,
            is_settled: shard.identity.is_settled(),
            blake3: None,
        })
        .collect();
    let unwritten = |file: &crate::plan::OutputFile| WrittenFile {
        name: file.name.clone(),
        identity: None,
        blake3: None,
    };
    header.files = export.files.iter().map(unwritten).collect();
    header
}

/// A run that only its end is missing from.
pub(super) struct Job<'a> {
    pub plan: &'a Plan,
    pub options: &'a Options,
    pub listener: &'a dyn Listener,
    /// The record of each export.
    pub headers: Vec<Header>,
    /// What was in the place of each export when the run began.
    pub occupants: Vec<Occupant>,
    pub stores: &'a [Stores],
    pub reuse: &'a Reuse<'a>,
}

/// What there is to be published.
struct Ready<'a> {
    /// Whether each export is.
    is_published: &'a [bool],
    measured: &'a Measured,
    carried: &'a [Vec<Carried>],
    made: &'a [MadeFiles],
    /// The report.
    text: &'a str,
}

/// The staging folder and the journal of each export.
pub(super) type Built = (Vec<Staging>, Vec<Journal>);

impl Job<'_> {
    /// Makes the staging folders and begins the journals.
    ///
    /// # Errors
    /// Where they cannot be written.
    pub fn stage(&self) -> Result<Built, Failure> {
        let go_on = || self.options.cancel.check();
        let (mut folders, mut journals) = (Vec::new(), Vec::new());
        for ((export, starts), header) in self.plan.exports.iter().zip(&self.reuse.starts).zip(&self.headers)
        {
            folders.push(Staging::create(export, starts, &go_on)?);
            journals.push(Journal::begin(&export.path, header)?);
        }
        Ok((folders, journals))
    }

    /// Publishes what passed, and keeps the report of what did not.
    ///
    /// # Errors
    /// Where something cannot be written, or the ledger does not balance.
    pub fn finish(
        mut self,
        measured: &Measured,
        carried: &[Vec<Carried>],
        judgement: Judgement,
        built: Option<Built>,
        work: Work,
    ) -> Result<Outcome, Failure> {
        let (plan, options) = (self.plan, self.options);
        let distortions = verdict::by_tensor(plan, measured);
        let last = judgement.failed.map_or(usize::MAX, |(stage, _)| stage);
        let published: Vec<bool> = plan.exports.iter().map(|export| export.stage < last).collect();
        let exit = judgement.failed.map_or(Exit::Done, |(_, exit)| exit);
        let verdict = Verdict {
            passed: exit == Exit::Done,
            exit_status: exit.code(),
            summary: summary(plan, &judgement),
        };
        let made = plan.exports.iter().map(|export| made_files(plan, export));
        let mut made: Vec<MadeFiles> = made.collect::<Result<_, _>>()?;
        let is_hashed = asks_for_hashes(plan);
        let others = carried.iter().zip(&made).map(|(carried, made)| {
            let made = made.iter().filter_map(|(name, bytes)| {
                // What is in memory can be read.
                verify::identify(name, bytes.as_slice(), is_hashed, &Cancel::default()).ok()
            });
            carried.iter().map(|carried| carried.file.clone()).chain(made).collect()
        });
        let mut report = ledger::report(
            plan,
            Results {
                distortions: &distortions,
                source_files: &measured.source_files,
                output_files: &measured.output_files,
                other_files: others.collect(),
                gates: judgement.gates,
                complaints: judgement.complaints.iter().map(|c| (c.is_critical, c.finding.clone())).collect(),
                published: published.clone(),
                verdict,
            },
        );
        if !report.balance.balanced {
            let finding = Finding::error("report::unbalanced", "the ledger does not balance").help(
                "Bytes of the source and of the output do not add up. This is a bug in monoquant; nothing was published.",
            );
            return Err(Failure::new(Exit::Internal, finding));
        }
        let text = report::sealed(&mut report);
        let mut outcome = Outcome {
            report,
            report_paths: Vec::new(),
            published: Vec::new(),
            distortions,
            findings: judgement.shown,
            exit,
            work,
            is_up_to_date: false,
        };
        for made in &mut made {
            made.push((report::FILE_NAME.to_owned(), text.as_bytes().to_vec()));
        }
        self.record_sources(measured);
        let is_up_to_date = built.is_none()
            && published.iter().all(|is_published| *is_published)
            && self.is_same(carried, &made);
        if built.is_none() {
            // What was not looked at to its end is not known to be the same.
            options.cancel.check()?;
        }
        if is_up_to_date {
            outcome.is_up_to_date = true;
            for (index, export) in plan.exports.iter().enumerate() {
                if self.options.durable {
                    files::sync_all(&export.path)?;
                }
                let finished = take_over::taken(plan, self.reuse, index).collect();
                options.cancel.whole(|| self.record(index, measured, &carried[index], finished))?;
                staging::clear(&export.path);
                outcome.report_paths.push(export.path.join(report::FILE_NAME));
            }
            return Ok(outcome);
        }
        // All are looked at before the first is moved, so that one that cannot be published stops the others as well.
        for (index, export) in plan.exports.iter().enumerate().filter(|(index, _)| published[*index]) {
            publish::look_again(&export.path, export.overwrite, &self.occupants[index])?;
        }
        let built = match built {
            Some(built) => Some(built),
            // A gate that fails on what is there already has nothing to stage.
            None if !published.iter().any(|is_published| *is_published) => None,
            None => {
                let (staging, journals) = self.stage()?;
                for (index, journal) in journals.iter().enumerate() {
                    take_over::taken(plan, self.reuse, index)
                        .try_for_each(|finished| journal.add(finished))?;
                }
                Some((staging, journals))
            }
        };
        let mut built: Vec<Option<(Staging, Journal)>> = match built {
            Some((staging, journals)) => staging.into_iter().zip(journals).map(Some).collect(),
            None => plan.exports.iter().map(|_| None).collect(),
        };
        let mut events = Vec::new();
        let ready = Ready { is_published: &published, measured, carried, made: &made, text: &text };
        let done = self.complete(&built, &ready).and_then(|()| {
            options.cancel.whole(|| self.publish(&mut built, &ready, &mut outcome, &mut events))
        });
        if done.as_ref().is_err_and(|failure| failure.exit == Exit::Interrupted) {
            built.iter_mut().flatten().for_each(|(staging, _)| staging.keep());
        }
        events.iter().for_each(|event| self.listener.on_event(event));
        done.map(|()| outcome)
    }

    /// Writes what is still missing from the outputs that passed.
    fn complete(&self, built: &[Option<(Staging, Journal)>], ready: &Ready<'_>) -> Result<(), Failure> {
        for (index, built) in built.iter().enumerate().filter(|(index, _)| ready.is_published[*index]) {
            let Some((staging, _)) = built else { continue };
            self.write_other_files(index, &ready.carried[index], &ready.made[index], staging)?;
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
        built: &mut [Option<(Staging, Journal)>],
        ready: &Ready<'_>,
        outcome: &mut Outcome,
        events: &mut Vec<Event>,
    ) -> Result<(), Failure> {
        let (plan, options) = (self.plan, self.options);
        if options.keep_unpublished {
            let unpublished = built.iter_mut().enumerate().filter(|(index, _)| !ready.is_published[*index]);
            for (index, built) in unpublished {
                let Some((staging, journal)) = built else { continue };
                let header = self.written_header(index, ready.measured, &staging.folder);
                let (path, new) = (siblings::journal(&staging.target), siblings::new(&staging.target));
                record::write(&path, &new, &header, &journal.finished())?;
                staging.keep();
            }
        }
        for (index, built) in built.iter_mut().enumerate() {
            let export = &plan.exports[index];
            let failed_report = siblings::failed_report(&export.path);
            let Some((staging, journal)) = built.take().filter(|_| ready.is_published[index]) else {
                let new = siblings::new(&export.path);
                let file = files::replace(&failed_report, &new, ready.text.as_bytes())?;
                if options.durable {
                    files::sync_file(&failed_report, &file)?;
                    files::sync_way(&failed_report)?;
                }
                outcome.report_paths.push(failed_report);
                continue;
            };
            let at_first = &self.occupants[index];
            let published = publish::publish(staging, export.overwrite, options.durable, at_first)?;
            if let Some(left) = published.left {
                let text = format!("not all of the old output could be removed: see {}", left.display());
                events.push(Event::Note { text });
            }
            let path = published.path;
            self.record(index, ready.measured, &ready.carried[index], journal.finished())?;
            // The report of an earlier, failed run says nothing about this output.
            if occupant::read_report(&failed_report).is_ok() {
                let _ = fs::remove_file(&failed_report);
            }
            outcome.report_paths.push(path.join(report::FILE_NAME));
            let told = plan.told_path(&path);
            events.push(Event::Published { path: path.clone(), told });
            outcome.published.push(path);
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
    fn written_header(&self, index: usize, measured: &Measured, folder: &Path) -> Header {
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

    /// Records what a published output holds.
    ///
    /// # Errors
    /// Where it is to be durable and the disk reports an error.
    fn record(
        &self,
        index: usize,
        measured: &Measured,
        carried: &[Carried],
        finished: Vec<Finished>,
    ) -> Result<(), Failure> {
        let export = &self.plan.exports[index];
        let mut header = self.written_header(index, measured, &export.path);
        let paths: Vec<PathBuf> =
            carried.iter().map(|carried| export.path.join(&carried.file.name)).collect();
        header.carried = carried
            .iter()
            .zip(identities(&paths))
            .map(|(carried, written)| CarriedFile {
                file: carried.file.clone(),
                source: carried.source,
                is_settled: carried.source.is_settled(),
                written,
            })
            .collect();
        let (path, new) = (siblings::record(&export.path), siblings::new(&export.path));
        match record::write(&path, &new, &header, &finished) {
            Ok(file) if self.options.durable => files::sync_file(&path, &file)?,
            Ok(_) => {}
            Err(failure) => {
                let why = failure.findings.first().map_or("", |finding| finding.message.as_str());
                let why = self.plan.loaded.told(why);
                let text = format!("the next run will do everything again: {why}");
                self.listener.on_event(&Event::Note { text });
            }
        }
        let _ = fs::remove_file(siblings::journal(&export.path));
        let _ = exclusive::remove_folder(&siblings::interrupted(&export.path));
        if self.options.durable { files::sync_way(&export.path) } else { Ok(()) }
    }

    /// Whether every output is already as it would be made, its weight files aside: these files and no others, at any depth.
    fn is_same(&self, carried: &[Vec<Carried>], made: &[MadeFiles]) -> bool {
        self.plan.exports.iter().zip(carried).zip(made).enumerate().all(
            |(index, ((export, carried), made))| {
                let weights = export.files.iter().map(|file| file.name.as_str());
                let others = carried.iter().map(|carried| carried.file.name.as_str());
                let names = weights.chain(others).chain(made.iter().map(|(name, _)| name.as_str()));
                let files: BTreeSet<&Path> = names.map(Path::new).collect();
                let folders: BTreeSet<&Path> =
                    files.iter().flat_map(|file| file.ancestors().skip(1)).collect();
                let Ok(folder) = Folder::open(&export.path) else { return false };
                let Ok(tree) = folder.tree() else { return false };
                let is_expected = |entry: &Entry| {
                    let name = entry.name.as_path();
                    entry.is_file && files.contains(name) || entry.is_folder && folders.contains(name)
                };
                tree.iter().filter(|entry| entry.is_file).count() == files.len()
                    && tree.iter().all(is_expected)
                    && made.iter().all(|(name, bytes)| is_file_of(&folder, name, bytes))
                    && carried
                        .iter()
                        .all(|carried| carried.is_in(&folder, &self.stores[index], &self.options.cancel))
            },
        )
    }

    /// Everything of an output but its weights. What the output before it holds is given a second name, where that output is one
    /// that is taken over from.
    fn write_other_files(
        &self,
        index: usize,
        carried: &[Carried],
        made: &MadeFiles,
        staging: &Staging,
    ) -> Result<(), Failure> {
        let (plan, stores, cancel) = (self.plan, &self.stores[index], &self.options.cancel);
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
        made.iter().try_for_each(|(name, bytes)| staging.write(Path::new(name), bytes))
    }
}

/// What identifies files that are complete; none of those in which a later change might not show.
fn identities(paths: &[PathBuf]) -> Vec<Option<FileIdentity>> {
    let look = || -> Vec<Option<FileIdentity>> {
        let found = paths.iter().map(|path| fs::symlink_metadata(path).ok());
        found.map(|metadata| metadata.as_ref().map(FileIdentity::of)).collect()
    };
    let first = look();
    let left = first.iter().flatten().map(FileIdentity::tick_left);
    // A tick of the system's clock is worth waiting for, one of a file system that counts in seconds is not.
    std::thread::sleep(left.filter(|left| *left <= TICK).max().unwrap_or_default());
    let settled = |(first, now): (Option<FileIdentity>, Option<FileIdentity>)| {
        now.filter(|now| first == Some(*now) && now.tick_left().is_zero())
    };
    first.into_iter().zip(look()).map(settled).collect()
}

/// Whether a file in a folder holds these bytes.
fn is_file_of(folder: &Folder, name: &str, bytes: &[u8]) -> bool {
    let Ok(file) = folder.open_file(Path::new(name), false) else { return false };
    let mut found = Vec::with_capacity(bytes.len());
    file.take(bytes.len() as u64 + 1).read_to_end(&mut found).is_ok() && found == bytes
}

fn summary(plan: &Plan, judgement: &Judgement) -> String {
    let quantized = plan.quantized_tensors();
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
