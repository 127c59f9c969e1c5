//! Strings of strangers in XML and Markdown.

use std::fmt::Write;

use crate::text::visible;

/// A text in XML or HTML, between tags or in an attribute. Line breaks stay.
pub(super) fn xml(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for (index, line) in text.split('\n').enumerate() {
        if index > 0 {
            out.push('\n');
        }
        for c in visible(line).chars() {
            match c {
                '&' => out.push_str("&amp;"),
                '<' => out.push_str("&lt;"),
                '>' => out.push_str("&gt;"),
                '"' => out.push_str("&quot;"),
                // No XML may hold these two, and they are not hidden.
                '\u{fffe}' | '\u{ffff}' => out.push('\u{fffd}'),
                c => out.push(c),
            }
        }
    }
    out
}

/// A text in one line of Markdown, in which nothing is markup, a link, a mention or the end of a cell.
pub(super) fn markdown(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in visible(text).chars() {
        match c {
            '&' | '<' | '>' | '|' | '`' | '*' | '_' | '~' | '[' | ']' | '@' | '\\' | '#' | '$' | '!' => {
                let _ = write!(out, "&#{};", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out
}

/// A name in Markdown, as code.
pub(super) fn code(name: &str) -> String {
    let is_plain =
        |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '/' | ':' | ' ' | '@');
    if !name.is_empty() && name.chars().all(is_plain) {
        return format!("`{name}`");
    }
    format!("<code>{}</code>", markdown(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_markup() {
        assert_eq!(xml("<a b=\"c\">\u{1b}&\n"), "&lt;a b=&quot;c&quot;&gt;\\u{1b}&amp;\n");
        assert_eq!(markdown("a|b`c`@d\n"), "a&#124;b&#96;c&#96;&#64;d\\n".replace("\\n", "&#92;n"));
        assert_eq!(code("model.layers.0"), "`model.layers.0`");
        assert_eq!(code("<script>"), "<code>&#60;script&#62;</code>");
    }
}
