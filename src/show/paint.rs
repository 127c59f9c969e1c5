//! Colours of a summary: the verdict, the headings of its tables, and the outcomes of its stages.

use std::fmt::Write;

use crate::report::GateOutcome;

/// The headings of the tables of a summary, by their first word or words.
const HEADINGS: [&str; 6] =
    ["worst layers", "skipped", "stage", "weights written", "carried over as it is", "left behind  "];

const GREEN: &str = "32";
const YELLOW: &str = "33";
const RED: &str = "1;31";
const BOLD: &str = "1";

/// The outcomes of stages and their colours; one that begins another comes after it.
const OUTCOMES: [(GateOutcome, &str); 5] = [
    (GateOutcome::Warned, YELLOW),
    (GateOutcome::Passed, GREEN),
    (GateOutcome::FailedAndIgnored, YELLOW),
    (GateOutcome::Failed, RED),
    (GateOutcome::NotReached, YELLOW),
];

/// A summary that is safe to show, with colours.
#[must_use]
pub(crate) fn summary(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 256);
    let mut in_stages = false;
    for line in text.split_inclusive('\n') {
        let (line, end) = line.strip_suffix('\n').map_or((line, ""), |line| (line, "\n"));
        let body = line.trim_start();
        let heading = HEADINGS.iter().any(|heading| line.starts_with("  ") && body.starts_with(heading));
        in_stages = if heading { body.starts_with("stage") } else { in_stages && !line.is_empty() };
        if line.starts_with('✓') {
            put(&mut out, GREEN, line);
        } else if line.starts_with('✗') {
            put(&mut out, RED, line);
        } else if heading {
            put(&mut out, BOLD, line);
        } else if let Some((at, word, color)) = outcome(line).filter(|_| in_stages) {
            out.push_str(&line[..at]);
            put(&mut out, color, word);
            out.push_str(&line[at + word.len()..]);
        } else {
            out.push_str(line);
        }
        out.push_str(end);
    }
    out
}

/// The first outcome in a line, with its colour.
fn outcome(line: &str) -> Option<(usize, &'static str, &'static str)> {
    let found = OUTCOMES.iter().filter_map(|(outcome, color)| {
        let word = outcome.words();
        Some((line.find(&format!("  {word}"))? + 2, word, *color))
    });
    found.min_by_key(|(at, ..)| *at)
}

fn put(out: &mut String, color: &str, text: &str) {
    let _ = write!(out, "\u{1b}[{color}m{text}\u{1b}[0m");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdict_headings_and_outcomes_have_colours_and_no_word_is_lost() {
        let text = "✗ r: `check-warnings` failed\n\n  SQNR  1 dB\n\n  stage\n  validate        passed  passed by\n  check-warnings  \
                    FAILED  x\n\n  output  passed\n";
        let painted = summary(text);
        assert!(painted.starts_with("\u{1b}[1;31m✗ r: `check-warnings` failed\u{1b}[0m\n"), "{painted}");
        assert!(painted.contains("\u{1b}[1m  stage\u{1b}[0m\n"), "{painted}");
        assert!(painted.contains("validate        \u{1b}[32mpassed\u{1b}[0m  passed by\n"), "{painted}");
        assert!(painted.contains("\u{1b}[1;31mFAILED\u{1b}[0m  x\n"), "{painted}");
        assert!(painted.ends_with("\n  output  passed\n"), "{painted}");
        let plain = regex::Regex::new("\u{1b}\\[[0-9;]*m").unwrap().replace_all(&painted, "").into_owned();
        assert_eq!(plain, text);
    }
}
