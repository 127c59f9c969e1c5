//! What a watch shows: on a screen the last result, fitted to it; elsewhere one line or one JSON object per cycle.

use std::fmt::Write;

use serde_json::json;
use unicode_width::UnicodeWidthStr;

use crate::cli::Format;
use crate::cli::output::Output;
use crate::cli::recipe_args::tell_failed_reports;
use crate::finding::{Failure, Finding};
use crate::model::folder::arriving::Arriving;
use crate::plan::Plan;
use crate::run::Outcome;
use crate::show::paint;
use crate::show::progress::Read;
use crate::show::summary::{Told, summary};
use crate::text;
use crate::text::fit::{shortened, wrapped};
use crate::text::units::{bytes, counted};
use crate::watch::cycle::{Cycle, Cycles};

/// Names of files that are waited for.
const NAMED: usize = 3;

/// What is shown, and what was.
pub(super) struct Screen<'o> {
    output: &'o Output,
    /// Whether keys are heard.
    has_keys: bool,
    /// The last cycle.
    pub(super) cycle: Option<Cycle>,
    result: Option<Result<(Plan, Outcome), Failure>>,
    last_good: Option<String>,
    /// The files that are waited for, if that was said.
    waiting: Option<Vec<String>>,
    is_drawn: bool,
}

impl<'o> Screen<'o> {
    pub(super) fn new(output: &'o Output, has_keys: bool) -> Self {
        Self { output, has_keys, cycle: None, result: None, last_good: None, waiting: None, is_drawn: false }
    }

    /// Shows a cycle that has ended.
    pub(super) fn show(&mut self, cycle: Cycle, result: Result<(Plan, Outcome), Failure>, cycles: &Cycles) {
        self.waiting = None;
        let output = self.output;
        if output.format() == Format::Json {
            output.json_line(&cycle.json());
        } else if !output.is_screen() {
            match &result {
                Ok((plan, outcome)) => tell_failed_reports(plan, outcome, output),
                Err(failure) => output.findings(&failure.findings),
            }
            // One line, however long.
            output.result_unbroken(&cycle.line());
        }
        if let Some(good) = cycle.as_last_good() {
            self.last_good = Some(good);
        }
        (self.cycle, self.result) = (Some(cycle), Some(result));
        self.draw(cycles);
    }

    /// Says that the model is being copied, and how far that is.
    pub(super) fn wait(&mut self, arriving: &Arriving) {
        let is_said = self.waiting.as_ref() == Some(&arriving.files);
        self.waiting = Some(arriving.files.clone());
        let output = self.output;
        if output.format() == Format::Json {
            if !is_said {
                let Arriving { bytes, expected, files } = arriving;
                output.json_line(&json!({"outcome": "waiting", "bytes": bytes, "expected_bytes": expected, "files": files}));
            }
        } else if output.is_screen() {
            let mut last = vec![self.keys(None)];
            last.splice(0..0, self.last_good.clone());
            let (width, _) = output.screen();
            self.put(&wrapped(&waiting(arriving), width), &last.join("\n"));
        } else if !is_said {
            output.result_unbroken(&waiting(arriving));
        }
    }

    /// Shows the last cycle again, if something else was shown since.
    pub(super) fn waited(&mut self, cycles: &Cycles) {
        if self.waiting.take().is_some() {
            self.draw(cycles);
        }
    }

    /// Draws the last cycle on the screen, if there is one: errors alone, with the last good result in a line; else the summary.
    pub(super) fn draw(&mut self, cycles: &Cycles) {
        if !self.output.is_screen() || self.waiting.is_some() {
            return;
        }
        let (Some(cycle), Some(result)) = (&self.cycle, &self.result) else { return };
        let (width, _) = self.output.screen();
        let mut above = String::new();
        let mut below = text::lines(&cycle.text()).into_owned();
        match result {
            Ok((plan, outcome)) => {
                let findings: Vec<Finding> = plan.warnings.iter().chain(&outcome.findings).cloned().collect();
                if cycle.is_good() {
                    above += &self.output.drawn(&findings);
                    let told = Told { width, all: false, took: cycle.took, read: Read::default() };
                    let summary = summary(plan, outcome, &told);
                    let summary = text::lines(&summary);
                    above += &if self.output.has_color() {
                        paint::summary(&summary)
                    } else {
                        summary.into_owned()
                    };
                } else {
                    let errors: Vec<Finding> =
                        findings.iter().filter(|finding| finding.is_error()).cloned().collect();
                    above += &self.output.drawn(&errors);
                }
            }
            Err(failure) => {
                let errors: Vec<Finding> =
                    failure.findings.iter().filter(|finding| finding.is_error()).cloned().collect();
                above += &self.output.drawn(if errors.is_empty() { &failure.findings } else { &errors });
            }
        }
        if let Some(good) = self.last_good.as_ref().filter(|_| !cycle.is_good()) {
            let _ = writeln!(below, "{good}");
        }
        below += &self.keys(Some(cycles));
        self.put(&above, &below);
    }

    /// What can be done now.
    fn keys(&self, cycles: Option<&Cycles>) -> String {
        if !self.has_keys {
            return "waiting for a change · Ctrl-C ends".to_owned();
        }
        let pinned = match cycles.and_then(Cycles::pinned) {
            Some(number) => format!("pin this result instead of cycle {number}"),
            None => "pin this result".to_owned(),
        };
        format!("waiting for a change · q quit · r run again · b {pinned}")
    }

    /// Puts lines on the screen: all of those that stand below, and as many of the others as there is room for. What was on the
    /// screen before the watch moves up into what can be scrolled back to.
    fn put(&mut self, above: &str, below: &str) {
        let (width, height) = self.output.screen();
        let below = wrapped(below.trim_end(), width);
        let below: Vec<&str> = below.lines().collect();
        let above: Vec<&str> = above.trim_end().lines().collect();
        // The cursor stays in a line of its own.
        let room = height.saturating_sub(below.len() + 2);
        let mut out = String::new();
        if !self.is_drawn {
            out.push_str(&"\n".repeat(height.min(500)));
        }
        self.is_drawn = true;
        out.push_str("\u{1b}[H");
        let mut line = |text: &str| {
            let _ = writeln!(out, "{text}\u{1b}[K");
        };
        let shown = if above.len() > room { room.saturating_sub(1) } else { above.len() };
        above[..shown].iter().for_each(|text| line(&fitted(text, width)));
        if shown < above.len() {
            line(&shortened(&format!("… {}", counted(above.len() - shown, "more line")), width));
        }
        line("");
        below.iter().for_each(|text| line(text));
        out.push_str("\u{1b}[J");
        self.output.screenful(&out);
    }
}

/// A line as it is, if it has colours: such lines were fitted when they were made.
fn fitted(text: &str, width: usize) -> std::borrow::Cow<'_, str> {
    if text.contains('\u{1b}') || text.width() <= width { text.into() } else { shortened(text, width) }
}

fn waiting(arriving: &Arriving) -> String {
    let names: Vec<_> =
        arriving.files.iter().take(NAMED).map(|name| format!("`{}`", text::visible(name))).collect();
    let more = arriving.files.len().saturating_sub(NAMED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let verb = if arriving.files.len() == 1 { "is" } else { "are" };
    let (there, all) = (bytes(arriving.bytes), bytes(arriving.expected));
    let percent = (arriving.bytes as f64 / arriving.expected.max(1) as f64 * 100.0).floor();
    format!(
        "waiting for the model: {there} of {all} ({percent:.0} %) of the files that are there; {}{more} {verb} not complete",
        names.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_waited_for_is_named() {
        let files: Vec<String> = (1..=5).map(|number| format!("model-{number}")).collect();
        let of = |count: usize| {
            waiting(&Arriving { bytes: 1 << 30, expected: 3 << 30, files: files[..count].to_vec() })
        };
        assert_eq!(
            of(1),
            "waiting for the model: 1.00 GiB of 3.00 GiB (33 %) of the files that are there; `model-1` is not complete"
        );
        assert!(of(5).ends_with("`model-1`, `model-2`, `model-3` and 2 more are not complete"));
    }
}
