//! Text for display: words and strings that are shown to people.
//!
//! Names, paths, values and messages come from files that strangers write. A terminal or a log may act on some
//! characters instead of showing them. Such characters are escaped here, and only here. Until then, strings stay
//! unchanged.

pub(crate) mod fit;
pub(crate) mod units;
use std::borrow::Cow;
use std::fmt::Write;

/// The start of a GitHub Actions workflow command, at the start of a line.
const COMMAND: &str = "::";

/// The start of an older-style workflow command, anywhere in a line.
const OLD_COMMAND: &str = "##[";

/// Whether a character would be acted on, or not be seen: control characters, what changes the direction of a text, separators
/// of lines, characters without width, and those that hide text in others.
#[must_use]
pub fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}'
            | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}'
            | '\u{fff0}'..='\u{fffb}' | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}'
            | '\u{e0000}'..='\u{e0fff}')
}

/// Adds a character, as an escape if it would be acted on or be invisible.
pub fn push_visible(out: &mut String, c: char) {
    match c {
        '\n' => out.push_str("\\n"),
        '\r' => out.push_str("\\r"),
        '\t' => out.push_str("\\t"),
        c if is_hidden(c) => {
            let _ = write!(out, "\\u{{{:x}}}", u32::from(c));
        }
        c => out.push(c),
    }
}

/// A text as one line in which every character is visible: `\n`, `\u{1b}` and similar escapes replace the others.
#[must_use]
pub fn visible(text: &str) -> Cow<'_, str> {
    if !text.contains(is_hidden) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    text.chars().for_each(|c| push_visible(&mut out, c));
    Cow::Owned(out)
}

/// As [`visible`], but limited to `most` characters: `…` marks the part that was left out of the middle.
#[must_use]
pub fn visible_part(text: &str, most: usize) -> Cow<'_, str> {
    let count = text.chars().count();
    if count <= most {
        return visible(text);
    }
    let half = most.saturating_sub(1) / 2;
    let at = |index: usize| text.char_indices().nth(index).map_or(text.len(), |(at, _)| at);
    let (head, tail) = (at(most - 1 - half), at(count - half));
    Cow::Owned(format!("{}…{}", visible(&text[..head]), visible(&text[tail..])))
}

/// Lines for a terminal or a log: line breaks stay, every other character can be seen, and no line is a command to whoever
/// reads the log.
#[must_use]
pub fn lines(text: &str) -> Cow<'_, str> {
    if !text.contains(|c| c != '\n' && is_hidden(c)) {
        return inert(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if c == '\n' { out.push(c) } else { push_visible(&mut out, c) }
    }
    Cow::Owned(inert(&out).into_owned())
}

/// Lines of which none is a workflow command of GitHub Actions: its runner takes any line that begins with `::`, after white
/// space, and `##[` anywhere. A backslash keeps it from that.
#[must_use]
pub fn inert(text: &str) -> Cow<'_, str> {
    let is_command = |line: &str| line.trim_start().starts_with(COMMAND);
    let has_old = text.contains(OLD_COMMAND);
    if !has_old && !text.split('\n').any(is_command) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for line in text.split_inclusive('\n') {
        if is_command(line) {
            let begin = line.len() - line.trim_start().len();
            out.push_str(&line[..begin]);
            out.push('\\');
            out.push_str(&line[begin..]);
        } else {
            out.push_str(line);
        }
    }
    Cow::Owned(out.replace(OLD_COMMAND, "##\\["))
}

/// The same JSON, safe to show in a terminal. Its strings have escapes for the characters that [`visible`] escapes,
/// and for the start of a workflow command. A JSON parser still reads the exact strings.
#[must_use]
pub fn json(text: &str) -> Cow<'_, str> {
    // Line breaks are between values; within strings they are escapes already.
    let is_raw = |c: char| c != '\n' && is_hidden(c);
    if !text.contains(is_raw) && !text.contains(OLD_COMMAND) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_raw(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                let _ = write!(out, "\\u{unit:04x}");
            }
        } else {
            out.push(c);
        }
    }
    Cow::Owned(out.replace(OLD_COMMAND, "#\\u0023["))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_be_acted_on_is_shown() {
        assert_eq!(visible("größe 漢 model.layers.0"), "größe 漢 model.layers.0");
        assert_eq!(visible("a\nb\r\t\u{1b}[0m"), "a\\nb\\r\\t\\u{1b}[0m");
        assert_eq!(
            visible("\u{9b}\u{7f}\u{202e}\u{2066}\u{200b}\u{2028}\u{feff}\u{e0041}"),
            "\\u{9b}\\u{7f}\\u{202e}\\u{2066}\\u{200b}\\u{2028}\\u{feff}\\u{e0041}"
        );
        let long = "x".repeat(50) + "\n" + &"y".repeat(50);
        assert_eq!(visible_part(&long, 11), "xxxxx…yyyyy");
        assert_eq!(visible_part("a\nb", 3), "a\\nb");
    }

    #[test]
    fn no_line_is_a_command() {
        assert_eq!(lines("a\n::set-output name=a::b\n"), "a\n\\::set-output name=a::b\n");
        assert_eq!(lines("\u{a0} ::x\n \t::y"), "\u{a0} \\::x\n \\t::y");
        assert_eq!(lines("see ##[error]x\n  #::"), "see ##\\[error]x\n  #::");
        assert_eq!(lines("a::b\r::c"), "a::b\\r::c");
    }

    #[test]
    fn json_means_the_same() {
        let value = serde_json::json!({"##[a]": ["\u{9b}x\u{202e}\u{7f}\n::y", "##[b]", "\u{e0041}"]});
        for text in [value.to_string(), format!("{value:#}")] {
            let shown = json(&text);
            assert!(!shown.contains(|c| c != '\n' && is_hidden(c)) && !shown.contains(OLD_COMMAND));
            assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap(), value);
        }
    }
}
