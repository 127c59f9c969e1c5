//! All printing: results go to standard output, everything else to standard error. A closed pipe is not a failure.

use std::borrow::Cow;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use anstream::{AutoStream, ColorChoice};
use serde::Serialize;

use super::{Color, Format, Terminal};
use crate::finding::{Finding, Severity, diagnostics};
use crate::show::{github, graphical, plain};
use crate::text;

/// How a command prints.
#[derive(Debug)]
pub(super) struct Output {
    color: ColorChoice,
    format: Format,
    is_quiet: bool,
    is_verbose: bool,
    lost_result: AtomicBool,
}

impl Output {
    pub(super) fn new(terminal: &Terminal) -> Self {
        let color = match terminal.color {
            Color::Auto => AutoStream::choice(&std::io::stderr()),
            Color::Always => ColorChoice::Always,
            Color::Never => ColorChoice::Never,
        };
        Self {
            color,
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

    /// Clears the screen.
    pub(super) fn clear(&self) {
        self.own("\u{1b}[2J\u{1b}[3J\u{1b}[H");
    }

    /// Prints a result: lines in which nothing is acted on by a terminal or by whoever reads the log.
    pub(super) fn result(&self, text: &str) {
        self.own(&text::lines(text));
    }

    /// As [`Output::result`], of lines that are too many to be held.
    pub(super) fn result_by_line(&self, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) {
        self.by_line(text::lines, write);
    }

    /// Prints a result as JSON, indented.
    pub(super) fn json(&self, value: &impl Serialize) {
        self.by_line(text::json, |out| serde_json::to_writer_pretty(out, value).map_err(Into::into));
    }

    /// Prints what is written, each line made harmless.
    fn by_line(
        &self,
        harmless: fn(&str) -> Cow<'_, str>,
        write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) {
        let out = BufWriter::with_capacity(1 << 16, io::stdout().lock());
        let mut lines = ByLine { out, line: Vec::new(), harmless };
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
            Format::Github => self.own(&github::render(&shown)),
            Format::Plain => self.raw(&plain::render(&shown)),
            Format::Human => {
                let style = graphical::Style {
                    color: matches!(self.color, ColorChoice::Always | ColorChoice::AlwaysAnsi),
                    unicode: true,
                    width: terminal_width(),
                };
                self.raw(&graphical::render(&shown, style));
            }
        }
    }

    /// Says something in one line, on standard error.
    pub(super) fn say(&self, line: &str) {
        self.raw(&text::inert(&text::visible(line)));
    }

    fn raw(&self, text: &str) {
        let mut err = std::io::stderr().lock();
        let _ = err.write_all(text.as_bytes());
        if !text.ends_with('\n') {
            let _ = err.write_all(b"\n");
        }
    }
}

/// Makes the lines of a text harmless as they are written.
struct ByLine<W> {
    out: W,
    /// What was written of a line so far.
    line: Vec<u8>,
    harmless: fn(&str) -> Cow<'_, str>,
}

impl<W: Write> ByLine<W> {
    fn end_line(&mut self) -> io::Result<()> {
        let text = String::from_utf8_lossy(&self.line);
        self.out.write_all((self.harmless)(&text).as_bytes())?;
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

/// Columns of the terminal, within what reads well.
fn terminal_width() -> usize {
    std::env::var("COLUMNS").ok().and_then(|text| text.parse().ok()).unwrap_or(100).clamp(60, 140)
}
