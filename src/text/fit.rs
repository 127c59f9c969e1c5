//! Text that fits into the columns of a terminal: shortened in the middle, or broken at spaces.

use std::borrow::Cow;

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// A width that no text reaches: where nothing is shown on a terminal.
pub(crate) const UNBOUNDED: usize = usize::MAX;

/// Continued lines stand this far to the right of the line that they continue.
const HANGING: usize = 4;

/// A text of at most so many columns: `…` marks the part that was left out of the middle. The end of a name or a path says more than
/// its beginning, and keeps three quarters.
#[must_use]
pub(crate) fn shortened(text: &str, columns: usize) -> Cow<'_, str> {
    if text.width() <= columns {
        return Cow::Borrowed(text);
    }
    let room = columns.saturating_sub(1);
    let (head, tail) = (prefix(text.chars(), room / 4), prefix(text.chars().rev(), room - room / 4));
    let tail: String = tail.chars().rev().collect();
    Cow::Owned(format!("{head}…{tail}"))
}

/// As many characters as fit into so many columns.
fn prefix(chars: impl Iterator<Item = char>, columns: usize) -> String {
    let mut left = columns;
    chars
        .take_while(|c| {
            let width = c.width().unwrap_or(0);
            let fits = width <= left;
            left = left.saturating_sub(width);
            fits
        })
        .collect()
}

/// Lines of at most so many columns: longer ones are broken at spaces, the rest is indented further, and a word that is too long
/// by itself is shortened.
#[must_use]
pub(crate) fn wrapped(text: &str, columns: usize) -> Cow<'_, str> {
    if columns == UNBOUNDED || text.split('\n').all(|line| line.width() <= columns) {
        return Cow::Borrowed(text);
    }
    let lines: Vec<String> = text
        .split('\n')
        .map(|line| {
            let indentation = line.len() - line.trim_start_matches(' ').len();
            broken(line, columns, indentation + HANGING).join("\n")
        })
        .collect();
    Cow::Owned(lines.join("\n"))
}

/// One line as lines of at most so many columns; those after the first begin with so many spaces.
#[must_use]
pub(crate) fn broken(line: &str, columns: usize, indentation: usize) -> Vec<String> {
    if line.width() <= columns {
        return vec![line.to_owned()];
    }
    let indentation = indentation.min(columns / 2);
    let (mut lines, mut current) = (Vec::new(), String::new());
    let mut has_words = false;
    for word in line.split_inclusive(' ') {
        let (bare, used) = (word.trim_end_matches(' '), current.width());
        if has_words && used + bare.width() > columns {
            lines.push(current.trim_end().to_owned());
            current = " ".repeat(indentation);
            has_words = false;
        }
        let room = columns.saturating_sub(current.width());
        if bare.width() > room {
            current.push_str(&shortened(bare, room));
            current.push(' ');
        } else {
            current.push_str(word);
        }
        has_words |= !bare.is_empty();
    }
    lines.push(current.trim_end().to_owned());
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_is_left_out() {
        assert_eq!(shortened("model.layers.0", 14), "model.layers.0");
        assert_eq!(shortened("model.layers.0", 9), "mo…yers.0");
        assert_eq!(shortened("漢字漢字漢字", 9), "漢…字漢字");
        assert_eq!(shortened("abc", 1), "…");
        assert_eq!(shortened("abc", 0), "…");
    }

    #[test]
    fn lines_break_at_spaces() {
        let text = "  one two three four\nshort";
        assert_eq!(wrapped(text, 40), text);
        assert_eq!(wrapped(text, UNBOUNDED), text);
        assert_eq!(wrapped(text, 14), "  one two\n      three\n      four\nshort");
        assert_eq!(wrapped("  path /a/very/long/path/to/a/model", 16), "  path\n      /a…a/model");
        for columns in 8..40 {
            for line in wrapped("  a: check-warnings of `model.layers.10.mlp` fails", columns).lines() {
                assert!(line.width() <= columns, "{columns}: {line}");
            }
        }
    }
}
