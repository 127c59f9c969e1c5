//! Progress of a run: a bar on a terminal, otherwise a line at intervals. It listens to events and knows nothing
//! else.

use std::io::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::run::{Event, Listener};
use crate::text;
use crate::text::units;

/// The interval between two lines if there is no terminal.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// The bar while tiles are read.
const TILES: &str =
    "{bar:32} {binary_bytes:>11} of {binary_total_bytes}  {binary_bytes_per_sec:>13}  {eta} left  {wide_msg}";

/// The bar while a model runs: the unit is a token in a layer.
const PASS: &str = "{bar:32} {msg}  {per_sec:>13} (tokens × layers)  {eta} left";

/// A bar with bytes, rate and time left, on standard error.
#[derive(Debug)]
pub(crate) struct Bar {
    bar: ProgressBar,
}

impl Bar {
    /// A bar that is not drawn until the run starts.
    #[must_use]
    pub(crate) fn new() -> Self {
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
        Self { bar }
    }

    fn style(&self, template: &str) {
        if let Ok(style) = ProgressStyle::with_template(template) {
            self.bar.set_style(style.progress_chars("━╸─"));
        }
    }
}

impl Default for Bar {
    fn default() -> Self {
        Self::new()
    }
}

impl Listener for Bar {
    fn on_event(&self, event: &Event) {
        match event {
            Event::Started { bytes, .. } => {
                self.style(TILES);
                self.bar.reset();
                self.bar.set_message("");
                self.bar.set_length(*bytes);
            }
            Event::Note { text: note } => {
                self.bar.println(text::inert(&text::visible(&format!("note: {note}"))))
            }
            Event::Layer { name, layer, layers, done, total, .. } => {
                if self.bar.length() != Some(*total) || *done == 0 {
                    self.style(PASS);
                    self.bar.reset();
                    self.bar.set_length(*total);
                }
                self.bar.set_position(*done);
                self.bar.set_message(format!("{name}: layer {layer} of {layers}"));
            }
            Event::Tile { bytes, .. } => self.bar.inc(*bytes),
            Event::Written { .. } => self.bar.finish_and_clear(),
            _ => {}
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// One line at the start, one every ten seconds, and one per stage.
#[derive(Debug)]
pub(crate) struct Lines {
    total: AtomicU64,
    done: AtomicU64,
    last: Mutex<Instant>,
    /// When a model began to run.
    passes: Mutex<Option<Instant>>,
    is_verbose: bool,
}

impl Lines {
    /// Lines on standard error.
    #[must_use]
    pub(crate) fn new(is_verbose: bool) -> Self {
        let last = Mutex::new(Instant::now());
        Self { total: AtomicU64::new(0), done: AtomicU64::new(0), last, passes: Mutex::new(None), is_verbose }
    }
}

/// How far a model is, how fast it runs, and the time left.
fn pass_line(name: &str, layer: (usize, usize), tokens: (u64, u64), since: Option<Instant>) -> String {
    let ((layer, layers), (done, total)) = (layer, tokens);
    let seconds = since.map_or(0.0, |since| since.elapsed().as_secs_f64()).max(1e-9);
    let rate = done as f64 / seconds;
    let left = total.saturating_sub(done) as f64 / rate.max(1e-9);
    // The whole model's tokens: each goes through all layers.
    format!(
        "{name}: layer {layer} of {layers}, {:.0} tokens/s, {left:.0} s left",
        rate / layers.max(1) as f64
    )
}

/// Writes a line to standard error; a closed pipe there is ignored.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{}", text::inert(&text::visible(line)));
}

impl Listener for Lines {
    fn on_event(&self, event: &Event) {
        match event {
            Event::Started { bytes, tensors, taken_over } => {
                self.total.store(*bytes, Ordering::Relaxed);
                let reading =
                    format!("reading {} of {}", units::bytes(*bytes), units::counted(*tensors, "tensor"));
                match (tensors, taken_over) {
                    (_, 0) => say(&reading),
                    (0, count) => say(&format!("{} reused as they are", units::counted(*count, "tensor"))),
                    (_, count) => say(&format!("{reading}; {count} reused as they are")),
                }
            }
            Event::Note { text: note } => say(&format!("note: {note}")),
            Event::Tile { bytes, .. } => {
                let done = self.done.fetch_add(*bytes, Ordering::Relaxed) + bytes;
                let Ok(mut last) = self.last.try_lock() else { return };
                if last.elapsed() >= HEARTBEAT {
                    *last = Instant::now();
                    let total = self.total.load(Ordering::Relaxed);
                    say(&format!("{} of {}", units::bytes(done), units::bytes(total)));
                }
            }
            Event::Layer { name, layer, layers, done, total, tokens } => {
                if *done == 0 {
                    self.passes
                        .lock()
                        .unwrap_or_else(std::sync::PoisonError::into_inner)
                        .replace(Instant::now());
                    say(&format!(
                        "{name}: {} through {}",
                        units::counted(*tokens as usize, "token"),
                        units::counted(*layers, "layer")
                    ));
                    return;
                }
                let Ok(mut last) = self.last.try_lock() else { return };
                if last.elapsed() >= HEARTBEAT {
                    *last = Instant::now();
                    let since = *self.passes.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                    say(&pass_line(name, (*layer, *layers), (*done, *total), since));
                }
            }
            Event::Stage { name, outcome, summary, .. } => {
                say(&format!("{name}: {}, {summary}", outcome.words()))
            }
            Event::Tensor { name, distortion: Some(distortion), .. } if self.is_verbose => {
                say(&format!("{name}: {}", units::decibels(distortion.sqnr_db())));
            }
            Event::Published { told, .. } if self.is_verbose => say(&format!("published {told}")),
            _ => {}
        }
    }
}
