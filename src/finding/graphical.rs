//! Findings as drawings for people, through miette: the line, the word underlined, what about it, and what to do.

use std::fmt;
use std::sync::Arc;

use miette::{
    Diagnostic, GraphicalReportHandler, GraphicalTheme, LabeledSpan, MietteError, MietteSpanContents,
    SourceCode, SourceSpan, SpanContents, ThemeCharacters, ThemeStyles,
};

use super::{Finding, Label, Severity, SourceText, plain};

/// Lines beyond this are not drawn. Nobody reads them, and miette cannot pad lines of 64 KiB.
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
    text
}

/// The drawing, where the places are within their texts and the lines no longer than can be looked at.
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
}

/// One finding, or its labels in a further text.
#[derive(Debug)]
struct Report<'f> {
    finding: Option<&'f Finding>,
    message: String,
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
        let mut reports = sources.into_iter().map(|source| Self {
            finding: None,
            message: format!("in {}", source.name),
            labels: labels_in(finding, source),
            source: Some(Text(Arc::clone(source))),
            further: Vec::new(),
        });
        let first = reports.next();
        let (labels, source) = first.map_or((Vec::new(), None), |first| (first.labels, first.source));
        Self {
            finding: Some(finding),
            message: finding.message.clone(),
            labels,
            source,
            further: reports.collect(),
        }
    }
}

fn labels_in(finding: &Finding, source: &Arc<SourceText>) -> Vec<LabeledSpan> {
    let labels =
        finding.labels.iter().enumerate().filter(|(_, label)| Arc::ptr_eq(&label.place.source, source));
    labels
        .map(|(index, label)| {
            let text = (!label.text.is_empty()).then(|| label.text.clone());
            let length = label.place.end.saturating_sub(label.place.start);
            match index {
                0 => LabeledSpan::new_primary_with_span(text, (label.place.start, length)),
                _ => LabeledSpan::new_with_span(text, (label.place.start, length)),
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
            None => Some(miette::Severity::Advice),
        }
    }

    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        Some(Box::new(self.finding?.help.as_deref()?))
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

/// A text with its name, as miette asks for it.
#[derive(Debug)]
struct Text(Arc<SourceText>);

impl SourceCode for Text {
    fn read_span<'a>(
        &'a self,
        span: &SourceSpan,
        before: usize,
        after: usize,
    ) -> Result<Box<dyn SpanContents<'a> + 'a>, MietteError> {
        let inner = self.0.text.read_span(span, before, after)?;
        // Asked without context, the column is what the header shows. miette counts bytes there; people count characters.
        let column = match (before, after) {
            (0, 0) => self.0.line_column(span.offset()).1 - 1,
            _ => inner.column(),
        };
        Ok(Box::new(MietteSpanContents::new_named(
            self.0.name.clone(),
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

    #[test]
    fn the_word_is_underlined() {
        let findings = super::super::tests::two_findings();
        let text = render(&findings, Style { color: false, unicode: false, width: 100 });
        assert!(text.contains("[r.yaml:2:4]"), "{text}");
        assert!(text.contains("did you mean `e`?") && text.contains("plan::slow"), "{text}");
        assert!(text.is_ascii() || !text.contains('│'), "{text}");
        let colored = render(&findings, Style { color: true, unicode: true, width: 100 });
        assert!(colored.contains('\u{1b}') && colored.contains('│'), "{colored}");
    }
}
