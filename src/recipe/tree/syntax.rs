//! Errors of the YAML reader as findings: the place in bytes, and the usual cause.

use serde_saphyr::Error;

use super::Build;
use crate::finding::Finding;

/// The finding for an error of the reader.
pub(super) fn finding(error: &Error, build: &Build<'_>) -> Finding {
    let error = error.without_snippet();
    let locations = error.locations();
    let place = match &locations {
        Some(locations) => build.place(&locations.reference_location),
        None => build.at(build.text.len()..build.text.len()),
    };
    let start = place.start - build.offset;
    let cause = original(error);
    if let Error::MultipleDocuments { .. } = cause {
        return Finding::error("recipe::several-documents", "a recipe is one YAML document")
            .at(place, "a second one begins here")
            .help("Keep each recipe in a file of its own.");
    }
    if let Error::UnsupportedTag { tag, .. } = cause {
        // The reader gives the place of the value, which its tag stands before.
        let before = &build.text[..start];
        let tag_start = before.rfind(tag.as_str()).or_else(|| before.rfind('!')).unwrap_or(start);
        let tag_end =
            build.text[tag_start..].find(char::is_whitespace).map_or(place.end, |len| tag_start + len);
        return Finding::error("recipe::unknown-tag", format!("the tag `{tag}` is not known"))
            .at(build.at(tag_start..tag_end), "means nothing in a recipe")
            .help("Remove it. A text that begins with `!` is put in quotes.");
    }
    if is_budget(cause) {
        let finding = Finding::error("recipe::too-complex", "the recipe expands to too much")
            .at(place, "the limit was passed here")
            .help("A recipe has at most 20,000 values, aliases expanded, and 32 levels of nesting.");
        let defined = locations.map(|locations| build.place(&locations.defined_location));
        return finding.at_opt(defined.filter(|place| place.start - build.offset != start), "defined here");
    }
    let mut end = place.end - build.offset;
    if end == start {
        end =
            build.text[start..].chars().next().filter(|c| *c != '\n').map_or(start, |c| start + c.len_utf8());
    }
    let finding = Finding::error("recipe::yaml", format!("this is not YAML: {}", reason(cause)));
    if let Some(tab) = tab_in_indentation(build.text, start) {
        return finding
            .at(build.at(tab..tab + 1), "a tab indents this line")
            .help("Indent with spaces; YAML does not allow tabs there.");
    }
    let place = build.at(start..end);
    if is_unknown_anchor(cause) {
        let help = "Define it first, as in `&name value`. A text that begins with `*`, such as a glob, is quoted: \"*.mlp\".";
        return finding.at(place, "nothing above has this anchor").help(help);
    }
    if let Some(open) = open_bracket(&build.text[..start]) {
        return finding
            .at(place, "not expected in brackets")
            .at(build.at(open..open + 1), "opened here")
            .help("Close the bracket. Inside brackets, a text with `:`, `,`, brackets or braces is put in quotes.");
    }
    let (label, help) = advice(&line_at(build.text, start), &build.text[start..]);
    let finding = finding.at(place, label);
    match help {
        Some(help) => finding.help(help),
        None => finding,
    }
}

/// The first tab in the indentation of the line of an error, or of the line after it if the reader noticed the error
/// there.
fn tab_in_indentation(text: &str, at: usize) -> Option<usize> {
    let mut start = text[..at].rfind('\n').map_or(0, |line_break| line_break + 1);
    for line in text[start..].split_inclusive('\n').take(2) {
        let indent = &line[..line.len() - line.trim_start_matches([' ', '\t']).len()];
        if let Some(tab) = indent.find('\t').filter(|_| !line.trim().is_empty()) {
            return Some(start + tab);
        }
        start += line.len();
    }
    None
}

fn is_unknown_anchor(error: &Error) -> bool {
    matches!(error, Error::UnknownAnchor { .. }) || error.to_string().contains("unknown anchor")
}

/// The byte at a line and column, both from 1, the column in characters.
pub(super) fn byte_of(text: &str, line: u64, column: u64) -> usize {
    let line = usize::try_from(line).unwrap_or(usize::MAX).saturating_sub(1);
    let column = usize::try_from(column).unwrap_or(usize::MAX).saturating_sub(1);
    let Some(start) = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).nth(line)
    else {
        return text.len();
    };
    text[start..].char_indices().nth(column).map_or(text.len(), |(at, _)| start + at)
}

fn original(error: &Error) -> &Error {
    match error {
        Error::AliasError { error, .. } => original(error.without_snippet()),
        other => other,
    }
}

fn is_budget(error: &Error) -> bool {
    matches!(
        error,
        Error::Budget { .. }
            | Error::AliasReplayLimitExceeded { .. }
            | Error::AliasExpansionLimitExceeded { .. }
            | Error::AliasReplayStackDepthExceeded { .. }
            | Error::AliasReplayCounterOverflow { .. }
    ) || error.to_string().contains("recursion limit")
}

/// The reader's words without the place, which the label shows.
fn reason(error: &Error) -> String {
    let text = match error {
        Error::RecursiveReferencesRequireWeakTypes { .. } => {
            "an alias inside the value that it names".to_owned()
        }
        other => other.to_string(),
    };
    let text = text.lines().next().unwrap_or_default();
    let text = text.rfind(" at line ").map_or(text, |at| &text[..at]);
    text.replace("unexpected character: ", "unexpected character ").replace('\'', "`")
}

struct Line<'a> {
    /// The line up to the error.
    before: &'a str,
    /// The line before it.
    above: &'a str,
}

fn line_at(text: &str, at: usize) -> Line<'_> {
    let start = text[..at].rfind('\n').map_or(0, |line_break| line_break + 1);
    Line {
        before: &text[start..at],
        above: text[..start].trim_end_matches('\n').rsplit('\n').next().unwrap_or_default(),
    }
}

fn advice(line: &Line<'_>, from: &str) -> (&'static str, Option<&'static str>) {
    match from.chars().next() {
        Some('\'' | '"') => {
            ("the text that begins here does not end as it should", Some("Close the quotes."))
        }
        Some('@' | '`' | '%') => ("no value begins with this character", Some("Put the value in quotes.")),
        Some('[' | '{') => ("opened here and not closed", Some("Close the bracket.")),
        Some(']' | '}') => ("closes what was not opened", Some("Remove it, or put the text in quotes.")),
        Some(':') if line.before.contains(": ") => {
            ("a second `:` in one line", Some("Put a value that contains `: ` in quotes."))
        }
        Some(':') if !line.above.trim().is_empty() && !line.above.trim_end().ends_with(':') => (
            "not expected here",
            Some("Is this line indented as the one above it? Keys of one mapping begin in one column."),
        ),
        _ => ("not expected here", None),
    }
}

/// The innermost flow bracket that is open at the end of `text`. Quotes and comments are skipped as well as can be told
/// without the reader, which has given up.
fn open_bracket(text: &str) -> Option<usize> {
    let mut open = Vec::new();
    let mut quote = None;
    let mut comment = false;
    let mut previous = '\n';
    for (at, c) in text.char_indices() {
        match (quote, c) {
            _ if comment => comment = c != '\n',
            (Some(q), _) if c == q && previous != '\\' => quote = None,
            (Some(_), _) => {}
            (None, '#') if previous.is_whitespace() => comment = true,
            (None, '"' | '\'') if previous.is_whitespace() || "[{,:".contains(previous) => quote = Some(c),
            (None, '[' | '{') if !open.is_empty() || previous.is_whitespace() => open.push(at),
            (None, ']' | '}') => {
                open.pop();
            }
            _ => {}
        }
        previous = c;
    }
    if quote.is_some() { None } else { open.pop() }
}
