//! `monoquant run` for CI: documents about the run, the summary of a GitHub step, the baseline and the lock.

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;

use super::output::Output;
use super::workspace::{from_root, root};
use super::{Format, RunArgs};
use crate::exit::Exit;
use crate::finding::{Failure, Finding};
use crate::fs::{exclusive, paths};
use crate::plan::Plan;
use crate::publish::{files, hidden};
use crate::recipe::{self, Loaded};
use crate::report::comparison::Bounds;
use crate::report::{self, Report};
use crate::run::conditions::{Baseline, Conditions};
use crate::run::{Outcome, lockfile};
use crate::show::document::{Document, FORMS, Form, form_named, form_of_extension};

/// The largest summary of a step that GitHub takes.
const MAX_SUMMARY: usize = 1 << 20;

/// What is for CI.
#[derive(Debug, Args)]
pub(super) struct CiArgs {
    /// Write a document about the run, whatever its outcome: .json, .md, .xml (JUnit), .sarif or .html; or `gitlab=FILE` for
    /// GitLab's code quality, and `FORM=FILE` for any other name. May be repeated.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["watch", "dry_run"])]
    report: Vec<OsString>,
    /// Compare the results with this report of an earlier run, or with that of an output directory. With a bound that is crossed,
    /// the exit status is 1 and nothing is published.
    #[arg(long, value_name = "REPORT", conflicts_with_all = ["watch", "dry_run"])]
    baseline: Option<PathBuf>,
    /// With `--baseline`: the largest drop of the model's SQNR, in dB.
    #[arg(long, value_name = "DB", requires = "baseline", value_parser = bound)]
    max_drop: Option<f64>,
    /// With `--baseline`: the largest rise of the mean KL divergence, in percent.
    #[arg(long, value_name = "PERCENT", requires = "baseline", value_parser = bound)]
    max_kl_rise: Option<f64>,
    /// With `--baseline`: the largest growth of the weight files, in percent.
    #[arg(long, value_name = "PERCENT", requires = "baseline", value_parser = bound)]
    max_growth: Option<f64>,
    /// Publish only what `monoquant.lock` beside the recipe says: the same recipe, source, version and output.
    #[arg(long, conflicts_with_all = ["watch", "dry_run"])]
    locked: bool,
}

/// A number that is not negative.
pub(super) fn bound(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| "it is no number".to_owned())?;
    if number.is_finite() && number >= 0.0 { Ok(number) } else { Err("it has to be 0 or more".to_owned()) }
}

/// A document to write.
struct Wanted {
    form: &'static Form,
    path: PathBuf,
}

/// What CI wants of a run.
pub(super) struct Ci<'a> {
    args: &'a RunArgs,
    wanted: Vec<Wanted>,
    conditions: Arc<Conditions>,
}

impl<'a> Ci<'a> {
    /// What the arguments of a run ask for.
    ///
    /// # Errors
    /// If the form of a document is not known.
    pub(super) fn of(args: &'a RunArgs) -> Result<Self, Failure> {
        Ok(Self { args, wanted: wanted(&args.ci.report)?, conditions: Arc::default() })
    }

    /// Reads the conditions of the run.
    ///
    /// # Errors
    /// If the baseline or the lock cannot be read.
    pub(super) fn read_conditions(&mut self) -> Result<(), Failure> {
        self.conditions = Arc::new(conditions(self.args)?);
        Ok(())
    }

    /// Writes the documents about a run that has failed; as JSON there is one result of one shape, whatever happened.
    ///
    /// # Errors
    /// The failure, if it is still to be told.
    pub(super) fn tell_failure(&self, failure: Failure, output: &Output) -> Result<Exit, Failure> {
        let loaded = super::recipe_args::loaded(&self.args.recipe).ok();
        let mut report = Report::of_failure(&failure, loaded.as_ref());
        report.tell_without([root(), std::env::current_dir().ok()].into_iter().flatten());
        if let Err(second) = self.tell(&report, loaded.as_ref()) {
            output.findings(&second.findings);
        }
        if output.format() == Format::Json {
            output.json(&report);
            return Ok(failure.exit);
        }
        Err(failure)
    }

    /// The conditions of the run.
    pub(super) fn conditions(&self) -> Arc<Conditions> {
        Arc::clone(&self.conditions)
    }

    /// Holds a plan against the lock, as far as headers tell.
    ///
    /// # Errors
    /// If it differs.
    pub(super) fn check(&self, plan: &Plan) -> Result<(), Failure> {
        let Some(entry) = &self.conditions.locked else { return Ok(()) };
        let findings = entry.differences_before(plan)?;
        if findings.is_empty() { Ok(()) } else { Err(Failure { exit: Exit::BadRecipe, findings }) }
    }

    /// Writes the documents about an outcome, whose report is given the comparison with the baseline.
    ///
    /// # Errors
    /// If one cannot be written.
    pub(super) fn tell_outcome(&self, plan: &Plan, outcome: &mut Outcome) -> Result<(), Failure> {
        if let Some(comparison) = outcome.baseline.take() {
            outcome.report.baseline = Some(comparison);
            report::seal(&mut outcome.report);
        }
        self.tell(&outcome.report, Some(&plan.loaded))
    }

    fn tell(&self, report: &Report, loaded: Option<&Loaded>) -> Result<(), Failure> {
        let recipe = &self.args.recipe.recipe;
        let text = loaded.map(Loaded::public_text).or_else(|| recipe::text_of(recipe));
        let document = Document { report, recipe_path: &from_root(recipe), recipe_text: text.as_deref() };
        for wanted in &self.wanted {
            if let Some(folder) = wanted.path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
                files::create_dir_all(folder)?;
            }
            files::replace(&wanted.path, &hidden::new(&wanted.path), |file| {
                let mut out = io::BufWriter::new(file);
                (wanted.form.write)(&document, &mut out)?;
                out.flush()
            })?;
        }
        summarize(&document)
    }
}

/// The form and the path of each `--report`.
fn wanted(args: &[OsString]) -> Result<Vec<Wanted>, Failure> {
    args.iter()
        .map(|arg| {
            let text = arg.to_string_lossy();
            if let Some((name, path)) = text.split_once('=')
                && let Some(form) = form_named(name)
            {
                return Ok(Wanted { form, path: PathBuf::from(path) });
            }
            let path = PathBuf::from(arg);
            let extension = path.extension().unwrap_or_default().to_string_lossy();
            match form_of_extension(&extension) {
                Some(form) => Ok(Wanted { form, path }),
                None => {
                    let names: Vec<&str> = FORMS.iter().map(|form| form.name).collect();
                    let message = format!("`--report {text}` does not say which form the document has");
                    let finding = Finding::error("cli::report-form", message)
                        .help(format!("Write `FORM=FILE` with one of {}.", names.join(", ")));
                    Err(Failure::new(Exit::BadRecipe, finding))
                }
            }
        })
        .collect()
}

fn conditions(args: &RunArgs) -> Result<Conditions, Failure> {
    let CiArgs { max_drop, max_kl_rise, max_growth, .. } = args.ci;
    let bounds = Bounds { max_drop, max_kl_rise, max_growth };
    let baseline = args.ci.baseline.as_deref().map(|path| baseline(path, bounds)).transpose()?;
    let locked = args.ci.locked.then(|| lockfile::entry(&args.recipe.recipe)).transpose()?;
    Ok(Conditions { baseline, locked })
}

fn baseline(path: &Path, bounds: Bounds) -> Result<Baseline, Failure> {
    let file = if paths::is_folder(path) { path.join(report::FILE_NAME) } else { path.to_owned() };
    let report = report::read(&file).map_err(|failure| Failure { exit: Exit::BadRecipe, ..failure })?;
    Ok(Baseline { name: from_root(path), report, bounds })
}

/// Adds the summary to that of the step, under GitHub Actions.
fn summarize(document: &Document<'_>) -> Result<(), Failure> {
    let Some(path) = std::env::var_os("GITHUB_STEP_SUMMARY").filter(|path| !path.is_empty()) else {
        return Ok(());
    };
    if std::env::var_os("GITHUB_ACTIONS").is_none_or(|is| is != "true") {
        return Ok(());
    }
    let (mut text, path) = (Vec::new(), PathBuf::from(path));
    // Memory takes all that is written to it.
    let _ = form_named("markdown").map(|form| (form.write)(document, &mut text));
    let text = String::from_utf8_lossy(&text);
    let end = (0..=text.len().min(MAX_SUMMARY / 2)).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    exclusive::append(&path, &text.as_bytes()[..end])
        .map_err(|error| files::cannot_write("add to", &path, &error))
}
