//! Arguments shared by the commands on a recipe, and their meaning.

use std::ffi::OsStr;
use std::path::PathBuf;

use super::output::Output;
use super::{RecipeArgs, RunArgs};
use crate::exit::Exit;
use crate::finding::{Failure, Finding};
use crate::fs::exclusive;
use crate::plan::{Limits, Plan};
use crate::publish::hidden;
use crate::quant::Isa;
use crate::recipe::{Loaded, Overrides};
use crate::run::Outcome;

/// The plan that a recipe and its overrides on the command line make.
pub(super) fn planned(args: &RecipeArgs) -> Result<Plan, Failure> {
    crate::plan::plan(loaded(args)?, limits(args))
}

/// The recipe, with what overrides it.
pub(super) fn loaded(args: &RecipeArgs) -> Result<Loaded, Failure> {
    let follow_links = args.links.follow_links.clone();
    crate::recipe::load(&args.recipe, &Overrides { follow_links, ..args.overrides.overrides() })
}

/// Command-line limits of a plan.
pub(super) fn limits(args: &RecipeArgs) -> Limits {
    Limits { threads: args.threads.map(usize::from), memory: args.memory }
}

/// Whether to trust existing results of earlier runs, and the source of that decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trust {
    /// It is this machine's own work.
    Trusted,
    /// The command line says that it is not.
    Untrusted,
    /// The environment says that this is a CI job, where existing results may come from a stranger.
    UntrustedInCi,
}

impl Trust {
    pub(super) fn of(args: &RunArgs) -> Self {
        Self::from(args.trusted, args.untrusted, std::env::var_os("CI").as_deref())
    }

    /// As the environment has it, for commands without an option.
    pub(super) fn of_environment() -> Self {
        Self::from(false, false, std::env::var_os("CI").as_deref())
    }

    fn from(trusted: bool, untrusted: bool, ci: Option<&OsStr>) -> Self {
        match ci {
            _ if trusted => Self::Trusted,
            _ if untrusted => Self::Untrusted,
            Some(ci) if !ci.is_empty() && ci != "false" => Self::UntrustedInCi,
            _ => Self::Trusted,
        }
    }

    /// The note for results of earlier runs that are not trusted without a command-line option.
    pub(super) fn note(self, plan: &Plan) -> Option<&'static str> {
        let is_there = |path: PathBuf| exclusive::is_there(&path);
        let mut exports = plan.exports.iter();
        let is_any = exports
            .any(|export| is_there(hidden::record(&export.path)) || is_there(hidden::journal(&export.path)));
        (self == Self::UntrustedInCi && is_any).then_some(
            "everything is made anew: CI is set, so what earlier runs have left is not believed; --trusted undoes it",
        )
    }
}

/// Names the paths of the reports of outputs that were not published, beside the findings about them.
pub(super) fn tell_failed_reports(plan: &Plan, outcome: &Outcome, output: &Output) {
    for export in &plan.exports {
        let path = hidden::failed_report(&export.path);
        if outcome.report_paths.contains(&path) {
            output.say(&format!("the report of what failed is kept in {}", plan.told_path(&path)));
        }
    }
}

pub(super) fn instruction_set(name: &str) -> Result<Isa, Failure> {
    let available: Vec<&str> = Isa::available().iter().map(|isa| isa.name()).collect();
    match Isa::from_name(name) {
        Some(isa) if Isa::available().contains(&isa) => Ok(isa),
        _ => {
            let finding =
                Finding::error("cli::isa", format!("`{name}` is no instruction set of this machine"))
                    .help(format!("There are {}.", available.join(", ")));
            Err(Failure::new(Exit::BadRecipe, finding))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ci_is_not_believed_unless_it_is_empty_or_false_or_the_command_line_says_otherwise() {
        let ci = |value: Option<&str>| Trust::from(false, false, value.map(OsStr::new));
        assert_eq!([ci(None), ci(Some("")), ci(Some("false"))], [Trust::Trusted; 3]);
        for value in ["true", "1", "0", "False", "woodpecker", " "] {
            assert_eq!(ci(Some(value)), Trust::UntrustedInCi, "{value}");
        }
        let said = |trusted, untrusted| Trust::from(trusted, untrusted, Some(OsStr::new("true")));
        assert_eq!([said(true, false), said(false, true)], [Trust::Trusted, Trust::Untrusted]);
    }
}
