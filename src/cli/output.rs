//! All printing: results go to standard output, everything else to standard error. A closed pipe is not a failure.

use std::borrow::Cow;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use anstream::{AutoStream, ColorChoice};
use serde::Serialize;

use super::{Color, Format, Terminal};
use crate::finding::{Finding, Severity, diagnostics};
use crate::show::{github, graphical, paint, plain};
use crate::text;
use crate::text::fit::{self, UNBOUNDED};

/// How a command prints.
#[derive(Debug)]
pub(super) struct Output {
    /// Of standard error.
    color: ColorChoice,
    /// Of standard output.
    result_color: ColorChoice,
    format: Format,
    is_quiet: bool,
    is_verbose: bool,
    lost_result: AtomicBool,
}

impl Output {
    pub(super) fn new(terminal: &Terminal) -> Self {
        let (color, result_color) = match terminal.color {
            Color::Auto => (AutoStream::choice(&io::stderr()), AutoStream::choice(&io::stdout())),
            Color::Always => (ColorChoice::Always, ColorChoice::Always),
            Color::Never => (ColorChoice::Never, ColorChoice::Never),
        };
        Self {
            color,
            result_color,
            format: terminal.format,
            is_quiet: terminal.quiet,
            is_verbose: terminal.verbose,
            lost_result: AtomicBool::new(false),
        }
    }

    pub(super) fn format(&self) -> Format {
        self.format
    }

    /// Whether a result could not be written to standard output.
    pub(super) fn has_lost_a_result(&self) -> bool {
        self.lost_result.load(Ordering::Relaxed)
    }

    pub(super) fn is_quiet(&self) -> bool {
        self.is_quiet
    }

    pub(super) fn is_verbose(&self) -> bool {
        self.is_verbose
    }

    /// Whether a bar can be drawn.
    pub(super) fn is_interactive(&self) -> bool {
        self.format == Format::Human && !self.is_quiet && std::io::stderr().is_terminal()
    }

    /// Whether results are read on a screen, which can be drawn anew.
    pub(super) fn is_screen(&self) -> bool {
        self.format == Format::Human && std::io::stdout().is_terminal()
    }

    /// Columns and lines of the terminal on which results are shown.
    pub(super) fn screen(&self) -> (usize, usize) {
        let size = terminal_size::terminal_size_of(io::stdout());
        let height = size.map(|(_, height)| usize::from(height.0)).filter(|height| *height > 0);
        (self.width(), height.unwrap_or(24))
    }

    /// Whether results have colours.
    pub(super) fn has_color(&self) -> bool {
        matches!(self.result_color, ColorChoice::Always | ColorChoice::AlwaysAnsi)
    }

    /// Draws what is on the screen anew; the text moves the cursor, and what was read is harmless in it.
    pub(super) fn screenful(&self, text: &str) {
        let mut out = io::stdout().lock();
        let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
        self.note_loss(&written);
    }

    /// Columns of results: those of the terminal, or of `COLUMNS`; else as many as there are.
    pub(super) fn width(&self) -> usize {
        columns(terminal_size::terminal_size_of(io::stdout())).unwrap_or(UNBOUNDED)
    }

    /// Columns of findings, progress and notes.
    pub(super) fn error_width(&self) -> usize {
        columns(terminal_size::terminal_size_of(io::stderr())).unwrap_or(100)
    }

    /// Prints the summary of a run, in colour if the terminal has it.
    pub(super) fn summary(&self, text: &str) {
        let text = text::lines(text);
        self.own(&if self.has_color() { paint::summary(&text).into() } else { text });
    }

    /// Prints a result: lines in which nothing is acted on by a terminal or by whoever reads the log.
    pub(super) fn result(&self, text: &str) {
        self.own(&fit::wrapped(&text::lines(text), self.width()));
    }

    /// As [`Output::result`], with lines as long as they are: a file may be made of them.
    pub(super) fn result_unbroken(&self, text: &str) {
        self.own(&text::lines(text));
    }

    /// As [`Output::result`], of lines that are too many to be held.
    pub(super) fn result_by_line(&self, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) {
        self.by_line(text::lines, self.width(), write);
    }

    /// Prints a result as JSON, indented.
    pub(super) fn json(&self, value: &impl Serialize) {
        self.by_line(text::json, UNBOUNDED, |out| {
            serde_json::to_writer_pretty(out, value).map_err(Into::into)
        });
    }

    /// Prints what is written, each line made harmless.
    fn by_line(
        &self,
        harmless: fn(&str) -> Cow<'_, str>,
        width: usize,
        write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) {
        let out = BufWriter::with_capacity(1 << 16, io::stdout().lock());
        let mut lines = ByLine { out, line: Vec::new(), harmless, width };
        let written = write(&mut lines).and_then(|()| lines.finish());
        self.note_loss(&written);
    }

    /// Prints a result as JSON in one line.
    pub(super) fn json_line(&self, value: &impl Serialize) {
        match serde_json::to_string(value) {
            Ok(text) => self.own(&text::json(&text)),
            Err(error) => self.note_loss(&Err(error.into())),
        }
    }

    /// Prints a text as it is: one that is made of nothing that was read.
    pub(super) fn own(&self, text: &str) {
        let mut out = std::io::stdout().lock();
        let written = out
            .write_all(text.as_bytes())
            .and_then(|()| if text.ends_with('\n') { Ok(()) } else { out.write_all(b"\n") })
            .and_then(|()| out.flush());
        self.note_loss(&written);
    }

    /// A reader that has seen enough closes the pipe; anything else loses the result.
    fn note_loss(&self, written: &io::Result<()>) {
        if written.as_ref().is_err_and(|error| error.kind() != io::ErrorKind::BrokenPipe) {
            self.lost_result.store(true, Ordering::Relaxed);
        }
    }

    /// Prints findings. Warnings are left out if only errors are wanted.
    pub(super) fn findings(&self, findings: &[Finding]) {
        self.findings_if(!self.is_quiet, findings);
    }

    /// Prints findings, warnings only if they are wanted.
    pub(super) fn findings_if(&self, wants_warnings: bool, findings: &[Finding]) {
        let shown: Vec<Finding> = findings
            .iter()
            .filter(|finding| finding.severity == Severity::Error || wants_warnings)
            .cloned()
            .collect();
        if shown.is_empty() {
            return;
        }
        match self.format {
            Format::Json => self.json(&diagnostics(&shown)),
            // Commands are intended here. Their content was made harmless.
            Format::Github => self.own(&github::render(&shown, &annotated_path)),
            Format::Plain => self.raw(&plain::render(&shown)),
            Format::Human => {
                let color = matches!(self.color, ColorChoice::Always | ColorChoice::AlwaysAnsi);
                self.raw(&drawn(&shown, color, self.error_width()));
            }
        }
    }

    /// Findings as they are drawn on the screen.
    pub(super) fn drawn(&self, findings: &[Finding]) -> String {
        drawn(findings, self.has_color(), self.width())
    }

    /// Says something in one line, on standard error.
    pub(super) fn say(&self, line: &str) {
        self.raw(&fit::wrapped(&text::inert(&text::visible(line)), self.error_width().max(40)));
    }

    fn raw(&self, text: &str) {
        let mut err = std::io::stderr().lock();
        let _ = err.write_all(text.as_bytes());
        if !text.ends_with('\n') {
            let _ = err.write_all(b"\n");
        }
    }
}

/// The path of a file in an annotation: under GitHub Actions from the root of the workspace.
fn annotated_path(name: &str) -> String {
    let is_file = !name.starts_with("--") && std::env::var_os("GITHUB_WORKSPACE").is_some();
    if is_file { super::workspace::from_root(Path::new(name)) } else { name.to_owned() }
}

/// Makes the lines of a text harmless as they are written.
struct ByLine<W> {
    out: W,
    /// What was written of a line so far.
    line: Vec<u8>,
    harmless: fn(&str) -> Cow<'_, str>,
    width: usize,
}

impl<W: Write> ByLine<W> {
    fn end_line(&mut self) -> io::Result<()> {
        let text = String::from_utf8_lossy(&self.line);
        self.out.write_all(fit::wrapped(&(self.harmless)(&text), self.width).as_bytes())?;
        self.line.clear();
        self.out.write_all(b"\n")
    }

    fn finish(mut self) -> io::Result<()> {
        if !self.line.is_empty() {
            self.end_line()?;
        }
        self.out.flush()
    }
}

impl<W: Write> Write for ByLine<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut lines = bytes.split(|byte| *byte == b'\n');
        let last = lines.next_back().unwrap_or_default();
        for line in lines {
            self.line.extend_from_slice(line);
            self.end_line()?;
        }
        self.line.extend_from_slice(last);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Prints what is wrong with a command line. clap quotes its arguments as they are, so it is asked again with visible ones.
pub(super) fn usage(error: &clap::Error, again: impl FnOnce() -> Option<clap::Error>) {
    // Help and version quote nothing and go to standard output; a closed pipe is no failure.
    if !error.use_stderr() {
        let _ = error.print();
        return;
    }
    let again = again();
    let shown = again.as_ref().unwrap_or(error).render();
    let text = match AutoStream::choice(&std::io::stderr()) {
        ColorChoice::Never => text::lines(&shown.to_string()).into_owned(),
        _ => text::inert(&shown.ansi().to_string()).into_owned(),
    };
    let _ = std::io::stderr().lock().write_all(text.as_bytes());
}

/// Reports the place and the reason of a panic, and that it is not the user's fault. Set as the panic hook.
pub(super) fn panicked(info: &std::panic::PanicHookInfo<'_>) {
    let payload = info.payload();
    let text = payload.downcast_ref::<&str>().copied();
    let payload =
        text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message");
    let place = info.location().map(ToString::to_string).unwrap_or_default();
    let backtrace = std::backtrace::Backtrace::capture();
    let backtrace = match backtrace.status() {
        std::backtrace::BacktraceStatus::Captured => format!("{backtrace}\n"),
        _ => String::new(),
    };
    let text = format!(
        "monoquant panicked at {place}: {}\n{backtrace}This is a bug in monoquant. Please report it with the lines above and \
         the recipe.\n",
        text::visible(payload)
    );
    let _ = std::io::stderr().lock().write_all(text::lines(&text).as_bytes());
}

fn drawn(findings: &[Finding], color: bool, width: usize) -> String {
    graphical::render(findings, graphical::Style { color, unicode: true, width: width.clamp(40, 140) })
}

/// The columns of a terminal; else what the environment says.
fn columns(terminal: Option<(terminal_size::Width, terminal_size::Height)>) -> Option<usize> {
    let measured = terminal.map(|(width, _)| usize::from(width.0)).filter(|width| *width > 0);
    measured.or_else(|| std::env::var("COLUMNS").ok()?.parse().ok().filter(|width| *width > 0))
}
