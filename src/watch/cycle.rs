//! One cycle of a watch, compared with the one before: the edits and the results.

use std::fmt::Write;
use std::time::Duration;

use serde_json::{Value, json};
use similar::{ChangeTag, TextDiff};

use crate::exit::Exit;
use crate::finding::Finding;
use crate::run::Outcome;
use crate::text::units::{bytes, counted, decibels};
use crate::text::visible;

/// Lines of a change that are shown.
const SHOWN_LINES: usize = 12;

/// The figures by which cycles are compared.
#[derive(Debug, Clone, PartialEq)]
struct Figures {
    sqnr_db: Option<f64>,
    min_sqnr_db: Option<f64>,
    bytes: u64,
    redone: usize,
    tensors: usize,
    exit: Exit,
    is_up_to_date: bool,
}

impl Figures {
    fn of(outcome: &Outcome) -> Self {
        let quality = outcome.report.quality.as_ref();
        Self {
            sqnr_db: quality.and_then(|quality| quality.sqnr_db),
            min_sqnr_db: quality.and_then(|quality| quality.min_sqnr_db),
            bytes: outcome.report.sizes.outputs.first().copied().unwrap_or(0),
            redone: outcome.work.redone,
            tensors: outcome.work.redone + outcome.work.taken_over,
            exit: outcome.exit,
            is_up_to_date: outcome.is_up_to_date,
        }
    }
}

/// A cycle that has ended.
#[derive(Debug, Clone)]
pub(crate) struct Cycle {
    /// Its number, from 1.
    pub number: usize,
    /// How long it took.
    pub took: Duration,
    /// Lines of the recipe that differ from those of the cycle before, with `-` and `+` in front.
    changed: Vec<String>,
    figures: Option<Figures>,
    /// Those that it is compared with: of the pinned cycle, or of the last one that came to an end.
    before: Option<Figures>,
    /// The number of the pinned cycle.
    pinned: Option<usize>,
    findings: Vec<Finding>,
    exit: Exit,
}

/// The cycles of a watch, one after another.
#[derive(Debug, Default)]
pub(crate) struct Cycles {
    number: usize,
    text: Option<String>,
    figures: Option<Figures>,
    /// The cycle that others are compared with, and its figures.
    pinned: Option<(usize, Figures)>,
    /// Whether the next cycle is told even if it changed nothing: the one before failed, or somebody has asked for it.
    is_wanted: bool,
}

impl Cycles {
    /// Adds a cycle: the recipe's text, if it could be read, and the result. None if nothing has changed, so that
    /// there is nothing to report.
    pub(crate) fn next(
        &mut self,
        text: Option<String>,
        ended: Result<&Outcome, (&[Finding], Exit)>,
        took: Duration,
    ) -> Option<Cycle> {
        let figures = ended.ok().map(Figures::of);
        let is_silent = self.number > 0
            && text == self.text
            && figures.as_ref().is_some_and(|figures| figures.is_up_to_date)
            && !self.is_wanted;
        if is_silent {
            return None;
        }
        self.is_wanted = figures.as_ref().is_none_or(|figures| figures.exit != Exit::Done);
        self.number += 1;
        let changed = match (&self.text, &text) {
            (Some(old), Some(new)) => changed_lines(old, new),
            _ => Vec::new(),
        };
        let (findings, exit) = match ended {
            Ok(outcome) => (outcome.findings.clone(), outcome.exit),
            Err((findings, exit)) => (findings.to_vec(), exit),
        };
        let pinned = self.pinned.as_ref().map(|(number, _)| *number);
        let before = self.pinned.as_ref().map(|(_, figures)| figures).or(self.figures.as_ref()).cloned();
        if figures.is_some() {
            self.figures.clone_from(&figures);
        }
        self.text = text.or_else(|| self.text.take());
        Some(Cycle { number: self.number, took, changed, figures, before, pinned, findings, exit })
    }

    /// Has the next cycle told, whatever it finds.
    pub(crate) fn want(&mut self) {
        self.is_wanted = true;
    }

    /// Pins a cycle, with which those after it are compared; if it is the pinned one, it is so no longer. False if it has no
    /// figures.
    pub(crate) fn pin(&mut self, cycle: &Cycle) -> bool {
        let Some(figures) = cycle.figures.clone() else { return false };
        self.pinned = match &self.pinned {
            Some((number, _)) if *number == cycle.number => None,
            _ => Some((cycle.number, figures)),
        };
        true
    }

    /// The number of the pinned cycle.
    #[must_use]
    pub(crate) fn pinned(&self) -> Option<usize> {
        self.pinned.as_ref().map(|(number, _)| *number)
    }
}

fn changed_lines(old: &str, new: &str) -> Vec<String> {
    let diff = TextDiff::from_lines(old, new);
    let sign = |tag| match tag {
        ChangeTag::Delete => Some('-'),
        ChangeTag::Insert => Some('+'),
        ChangeTag::Equal => None,
    };
    diff.iter_all_changes()
        .filter_map(|change| Some(format!("{} {}", sign(change.tag())?, change.value().trim_end())))
        .collect()
}

impl Cycle {
    fn verdict(&self) -> &'static str {
        match &self.figures {
            None => "broken",
            Some(figures) if figures.is_up_to_date => "up to date",
            Some(figures) if figures.exit == Exit::Done => "passed",
            Some(_) => "failed",
        }
    }

    /// The cycle in one line.
    #[must_use]
    pub(crate) fn line(&self) -> String {
        let mark = if self.exit == Exit::Done { '✓' } else { '✗' };
        let mut out = format!("cycle {}: {mark} {}", self.number, self.verdict());
        match &self.figures {
            Some(figures) => {
                for part in self.differences(figures) {
                    let _ = write!(out, ", {part}");
                }
                let warnings = self.findings.iter().filter(|finding| !finding.is_error()).count();
                if warnings > 0 {
                    let _ = write!(out, ", {}", counted(warnings, "warning"));
                }
                if self.before.is_some() && !self.changed.is_empty() && figures.redone == 0 {
                    out.push_str(", no weight touched");
                }
                if let Some(pinned) = self.pinned {
                    let _ = write!(out, ", compared with cycle {pinned}");
                }
            }
            None => {
                if let Some(first) = self.findings.iter().find(|finding| finding.is_error()) {
                    let place = first.labels.first().map(|label| {
                        let (line, column) = label.place.line_column();
                        format!("{}:{line}:{column}: ", visible(&label.place.source.name))
                    });
                    let _ = write!(out, ": {}{}", place.unwrap_or_default(), visible(&first.message));
                }
                let more = self.findings.iter().filter(|finding| finding.is_error()).count();
                if more > 1 {
                    let _ = write!(out, " (and {} more)", more - 1);
                }
                if self.before.is_some() {
                    out.push_str("; the last good output stays");
                }
            }
        }
        let _ = write!(out, ", {:.2} s", self.took.as_secs_f64());
        out
    }

    /// Whether it has passed, so that its output is published.
    #[must_use]
    pub(crate) fn is_good(&self) -> bool {
        self.figures.is_some() && self.exit == Exit::Done
    }

    /// A good cycle in one line, for later ones that are not.
    #[must_use]
    pub(crate) fn as_last_good(&self) -> Option<String> {
        let figures = self.figures.as_ref().filter(|_| self.is_good())?;
        let (sqnr, least) = (decibels(figures.sqnr_db), decibels(figures.min_sqnr_db));
        let size = bytes(figures.bytes);
        Some(format!(
            "last good result, still published: cycle {}, SQNR {sqnr}, worst layer {least}, {size}",
            self.number
        ))
    }

    /// Quality, size and work, with their earlier values if they differ.
    fn differences(&self, figures: &Figures) -> Vec<String> {
        let before = self.before.as_ref();
        let sqnr = |name: &str, now: Option<f64>, before: Option<Option<f64>>| {
            let mut out = format!("{name} {}", decibels(now));
            if let (Some(now), Some(Some(before))) = (now, before)
                && (now - before).abs() >= 0.005
            {
                let _ = write!(out, " ({:+.2})", now - before);
            }
            out
        };
        let mut size = bytes(figures.bytes);
        if let Some(before) = before.filter(|before| before.bytes != figures.bytes) {
            let sign = if figures.bytes > before.bytes { '+' } else { '-' };
            let _ = write!(size, " ({sign}{})", bytes(figures.bytes.abs_diff(before.bytes)));
        }
        vec![
            sqnr("SQNR", figures.sqnr_db, before.map(|before| before.sqnr_db)),
            sqnr("worst layer", figures.min_sqnr_db, before.map(|before| before.min_sqnr_db)),
            size,
            format!("{} of {} redone", figures.redone, counted(figures.tensors, "tensor")),
        ]
    }

    /// The cycle for a screen: the edit and its effect.
    #[must_use]
    pub(crate) fn text(&self) -> String {
        let mut out = String::new();
        let _ = writeln!(out, "{}", self.line());
        for line in self.changed.iter().take(SHOWN_LINES) {
            let _ = writeln!(out, "  {}", visible(line));
        }
        if self.changed.len() > SHOWN_LINES {
            let _ = writeln!(out, "  … and {} more lines", self.changed.len() - SHOWN_LINES);
        }
        out
    }

    /// The cycle as one JSON object.
    #[must_use]
    pub(crate) fn json(&self) -> Value {
        let figures = self.figures.as_ref();
        json!({
            "cycle": self.number,
            "outcome": self.verdict(),
            "exit_status": self.exit.code(),
            "seconds": self.took.as_secs_f64(),
            "changed_lines": self.changed,
            "sqnr_db": figures.and_then(|figures| figures.sqnr_db),
            "min_sqnr_db": figures.and_then(|figures| figures.min_sqnr_db),
            "bytes": figures.map(|figures| figures.bytes),
            "tensors_redone": figures.map(|figures| figures.redone),
            "tensors": figures.map(|figures| figures.tensors),
            "findings": crate::finding::diagnostics(&self.findings),
        })
    }
}
