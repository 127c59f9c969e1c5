//! Findings as drawings for people, through miette: the line, the underlined word with its label, and the help.

use std::fmt;
use std::sync::Arc;

use miette::{
    Diagnostic, GraphicalReportHandler, GraphicalTheme, LabeledSpan, MietteError, MietteSpanContents,
    SourceCode, SourceSpan, SpanContents, ThemeCharacters, ThemeStyles,
};

use crate::finding::{Finding, Label, Severity, SourceText};
use crate::show::help::visible_help;
use crate::show::plain;
use crate::text::{inert, is_hidden, push_visible, visible};

/// Longer lines are not drawn. They are unreadable, and miette cannot pad lines of 64 KiB.
const MAX_LINE_BYTES: usize = 1_000;

/// How drawings look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Style {
    /// Colours, as ANSI sequences.
    pub color: bool,
    /// Lines of Unicode; else ASCII.
    pub unicode: bool,
    /// Columns of the terminal.
    pub width: usize,
}

/// Draws the findings one after another. Labels in a second text (an override beside the recipe) are drawn below the first's.
#[must_use]
pub fn render(findings: &[Finding], style: Style) -> String {
    let handler = handler(style);
    let mut text = String::new();
    for finding in findings {
        if !text.is_empty() {
            text.push('\n');
        }
        match draw(&handler, finding) {
            Some(drawing) => drawing.lines().for_each(|line| {
                text.push_str(line.trim_end());
                text.push('\n');
            }),
            // The line that says the same needs no text to point into.
            None => text.push_str(&plain::render(std::slice::from_ref(finding))),
        }
    }
    // After a break in a long line, the rest begins a new line.
    inert(&text).into_owned()
}

/// The drawing, if the places are within their texts and the lines are short enough to read.
fn draw(handler: &GraphicalReportHandler, finding: &Finding) -> Option<String> {
    if finding.labels.iter().any(|label| longest_line(label) > MAX_LINE_BYTES) {
        return None;
    }
    let mut drawing = String::new();
    handler.render_report(&mut drawing, &Report::of(finding)).ok()?;
    Some(drawing)
}

/// Bytes of the longest line that a label would show, with one line of context on each side.
fn longest_line(label: &Label) -> usize {
    let text = label.place.source.text.as_bytes();
    let (start, end) = (label.place.start.min(text.len()), label.place.end.min(text.len()));
    let mut breaks =
        text[..start].iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1);
    let first = breaks.nth(1).unwrap_or(0);
    let mut breaks =
        text[end..].iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| end + at);
    let last = breaks.nth(1).unwrap_or(text.len());
    text[first..last.max(first)].split(|byte| *byte == b'\n').map(<[u8]>::len).max().unwrap_or(0)
}

fn handler(style: Style) -> GraphicalReportHandler {
    let theme = GraphicalTheme {
        characters: if style.unicode { ThemeCharacters::unicode() } else { ThemeCharacters::ascii() },
        styles: if style.color { ThemeStyles::ansi() } else { ThemeStyles::none() },
    };
    GraphicalReportHandler::new_themed(theme)
        .with_width(style.width.max(40))
        .with_links(false)
        .with_context_lines(1)
        .without_cause_chain()
        .with_break_words(false)
        // `check-warnings` is one word.
        .with_word_splitter(textwrap::WordSplitter::NoHyphenation)
}

/// One finding, or its labels in a further text.
#[derive(Debug)]
struct Report<'f> {
    finding: Option<&'f Finding>,
    message: String,
    help: String,
    labels: Vec<LabeledSpan>,
    source: Option<Text>,
    further: Vec<Report<'f>>,
}

impl<'f> Report<'f> {
    fn of(finding: &'f Finding) -> Self {
        let mut sources: Vec<&Arc<SourceText>> = Vec::new();
        for label in &finding.labels {
            if !sources.iter().any(|source| Arc::ptr_eq(source, &label.place.source)) {
                sources.push(&label.place.source);
            }
        }
        let mut reports = sources.into_iter().map(|source| {
            let text = Text::of(source);
            Self {
                finding: None,
                message: format!("in {}", text.name),
                help: String::new(),
                labels: labels_in(finding, &text),
                source: Some(text),
                further: Vec::new(),
            }
        });
        let first = reports.next();
        let (labels, source) = first.map_or((Vec::new(), None), |first| (first.labels, first.source));
        Self {
            finding: Some(finding),
            message: visible(&finding.message).into_owned(),
            help: visible_help(finding, "\n"),
            labels,
            source,
            further: reports.collect(),
        }
    }
}

fn labels_in(finding: &Finding, text: &Text) -> Vec<LabeledSpan> {
    let labels =
        finding.labels.iter().enumerate().filter(|(_, label)| Arc::ptr_eq(&label.place.source, &text.source));
    labels
        .map(|(index, label)| {
            let said = (!label.text.is_empty()).then(|| visible(&label.text).into_owned());
            let start = text.shown_at(label.place.start);
            let length = text.shown_at(label.place.end).saturating_sub(start);
            match index {
                0 => LabeledSpan::new_primary_with_span(said, (start, length)),
                _ => LabeledSpan::new_with_span(said, (start, length)),
            }
        })
        .collect()
}

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Report<'_> {}

impl Diagnostic for Report<'_> {
    fn code<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        Some(Box::new(self.finding?.code))
    }

    fn severity(&self) -> Option<miette::Severity> {
        match self.finding.map(|finding| finding.severity) {
            Some(Severity::Error) => Some(miette::Severity::Error),
            Some(Severity::Warning) => Some(miette::Severity::Warning),
            Some(Severity::Note) | None => Some(miette::Severity::Advice),
        }
    }

    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        (!self.help.is_empty()).then(|| Box::new(&self.help) as _)
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        self.source.as_ref().map(|source| source as &dyn SourceCode)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        (!self.labels.is_empty()).then(|| Box::new(self.labels.iter().cloned()) as Box<_>)
    }

    fn related<'a>(&'a self) -> Option<Box<dyn Iterator<Item = &'a dyn Diagnostic> + 'a>> {
        if self.further.is_empty() {
            return None;
        }
        Some(Box::new(self.further.iter().map(|report| report as &dyn Diagnostic)))
    }
}

/// A text with its name, in the form that miette needs. Characters that a terminal would act on are shown as escapes,
/// and places move along.
#[derive(Debug)]
struct Text {
    source: Arc<SourceText>,
    name: String,
    /// The text as it is shown, if it differs from the source.
    shown: Option<String>,
    /// The replaced characters, in order: the end of the character in the source, and the end of its replacement in
    /// the shown text.
    moved: Vec<(usize, usize)>,
}

impl Text {
    fn of(source: &Arc<SourceText>) -> Self {
        let text = &source.text;
        let mut out = Self {
            source: Arc::clone(source),
            name: visible(&source.name).into_owned(),
            shown: None,
            moved: Vec::new(),
        };
        // Tabs are widened by miette.
        let is_left = |c: char| matches!(c, '\n' | '\t') || !is_hidden(c);
        if text.chars().all(is_left) {
            return out;
        }
        let mut shown = String::with_capacity(text.len() + 16);
        for (at, c) in text.char_indices() {
            if is_left(c) {
                shown.push(c);
                continue;
            }
            // A byte-order mark and the carriage returns of Windows line breaks are not part of any line.
            if !(c == '\u{feff}' && at == 0 || c == '\r' && text[at + 1..].starts_with('\n')) {
                push_visible(&mut shown, c);
            }
            out.moved.push((at + c.len_utf8(), shown.len()));
        }
        out.shown = Some(shown);
        out
    }

    fn text(&self) -> &str {
        self.shown.as_deref().unwrap_or(&self.source.text)
    }

    /// The byte of the shown text that corresponds to a byte of the source.
    fn shown_at(&self, at: usize) -> usize {
        match self.moved.partition_point(|(end, _)| *end <= at).checked_sub(1) {
            Some(last) => self.moved[last].1 + (at - self.moved[last].0),
            None => at,
        }
    }

    /// The byte of the source that corresponds to a byte of the shown text.
    fn source_at(&self, shown: usize) -> usize {
        match self.moved.partition_point(|(_, end)| *end <= shown).checked_sub(1) {
            Some(last) => self.moved[last].0 + (shown - self.moved[last].1),
            None => shown,
        }
    }
}

impl SourceCode for Text {
    fn read_span<'a>(
        &'a self,
        span: &SourceSpan,
        before: usize,
        after: usize,
    ) -> Result<Box<dyn SpanContents<'a> + 'a>, MietteError> {
        let inner = self.text().read_span(span, before, after)?;
        // Asked without context, the column is what the header shows. miette counts bytes there; people count characters.
        let column = match (before, after) {
            (0, 0) => self.source.line_column(self.source_at(span.offset())).1 - 1,
            _ => inner.column(),
        };
        Ok(Box::new(MietteSpanContents::new_named(
            self.name.clone(),
            inner.data(),
            *inner.span(),
            inner.line(),
            column,
            inner.line_count(),
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finding::Place;

    #[test]
    fn the_word_is_underlined() {
        let findings = crate::finding::tests::two_findings();
        let text = render(&findings, Style { color: false, unicode: false, width: 100 });
        assert!(text.contains("[r.yaml:2:4]"), "{text}");
        assert!(text.contains("did you mean `e`?") && text.contains("plan::slow"), "{text}");
        assert!(text.is_ascii() || !text.contains('│'), "{text}");
        let colored = render(&findings, Style { color: true, unicode: true, width: 100 });
        assert!(colored.contains('\u{1b}') && colored.contains('│'), "{colored}");
    }

    #[test]
    fn places_stay_at_their_words_where_characters_are_shown_as_escapes() {
        let text = "\u{feff}a: \"\u{1b}[31m\u{202e}\" # \r\r\nb: w\u{9b}rd\tx\r\n";
        let source = Arc::new(SourceText { name: "r\u{7f}\n::x.yaml".into(), text: text.into() });
        let start = text.find("w\u{9b}rd").unwrap();
        let place = Place { source, start, end: start + 5 };
        let finding = Finding::error("a::b", "\n::set-output name=x::y\u{1b}").at(place, "this\u{2028}word");
        let finding = finding.help("first\n::second").help(format!("{} ::third", "long ".repeat(18).trim()));
        let shown = render(&[finding], Style { color: false, unicode: true, width: 100 });
        assert!(!shown.contains(|c| c != '\n' && is_hidden(c)), "{shown}");
        assert!(shown.contains("r\\u{7f}\\n::x.yaml:2:4]"), "{shown}");
        assert!(shown.contains("\\u{1b}[31m\\u{202e}\" # \\r\n"), "{shown}");
        let lines: Vec<&str> = shown.lines().collect();
        let at = lines.iter().position(|line| line.contains("b: w\\u{9b}rd")).unwrap();
        let column = |line: &str, part: &str| line[..line.find(part).unwrap()].chars().count();
        assert_eq!(column(lines[at], "w\\u{9b}rd"), column(lines[at + 1], "──"), "{shown}");
        assert_eq!(lines[at + 1].matches(['─', '┬']).count(), "w\\u{9b}rd".len(), "{shown}");
        assert!(!shown.lines().any(|line| line.trim_start().starts_with("::")), "{shown}");
    }
}
