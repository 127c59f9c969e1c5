//! Progress of a run: a bar on a terminal, otherwise a line at intervals. It listens to events and knows nothing
//! else.

use std::io::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::run::{Event, Link, Listener};
use crate::sync::lock;
use crate::text;
use crate::text::units;

/// The interval between two lines if there is no terminal.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// The bar while tiles are read, for terminals of at least so many columns: the most that fits.
const TILES: [(usize, &str); 3] = [
    (
        90,
        "{bar:32} {binary_bytes:>11} of {binary_total_bytes}  {binary_bytes_per_sec:>13}  {eta} left  {wide_msg}",
    ),
    (60, "{wide_bar} {binary_bytes} of {binary_total_bytes}  {binary_bytes_per_sec}  {eta} left"),
    (0, "{wide_bar} {percent:>3} %  {eta}"),
];

/// The bar while a model runs: the unit is a token in a layer.
const PASS: [(usize, &str); 3] = [
    (90, "{bar:32} {msg}  {per_sec:>13} (tokens × layers)  {eta} left"),
    (60, "{wide_bar} {msg}  {eta} left"),
    (0, "{wide_bar} {percent:>3} %  {eta}"),
];

/// The weights that a run has read, and in which time.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Read {
    bytes: u64,
    took: Duration,
}

impl Read {
    /// What is said of it behind the time of the run; nothing if nothing was read.
    #[must_use]
    pub(crate) fn rate(&self) -> String {
        if self.bytes == 0 || self.took.is_zero() {
            return String::new();
        }
        let rate = self.bytes as f64 / self.took.as_secs_f64() / 1e9;
        format!(", {} of weights read at {rate:.2} GB/s", units::bytes(self.bytes))
    }
}

/// A listener that notes what is read and hands all events on.
pub(crate) struct Noted<'l> {
    inner: &'l dyn Listener,
    read: Mutex<(Read, Option<Instant>)>,
}

impl<'l> Noted<'l> {
    /// Notes what goes to a listener.
    #[must_use]
    pub(crate) fn new(inner: &'l dyn Listener) -> Self {
        Self { inner, read: Mutex::new((Read::default(), None)) }
    }

    /// What was read so far.
    #[must_use]
    pub(crate) fn read(&self) -> Read {
        lock(&self.read).0
    }
}

impl Listener for Noted<'_> {
    fn on_event(&self, event: &Event) {
        match event {
            Event::Started { bytes, .. } => {
                *lock(&self.read) = (Read { bytes: *bytes, took: Duration::ZERO }, Some(Instant::now()));
            }
            Event::Written { .. } => {
                let mut read = lock(&self.read);
                read.0.took = read.1.map_or(Duration::ZERO, |since| since.elapsed());
            }
            _ => {}
        }
        self.inner.on_event(event);
    }
}

/// The interval over which the speed of a link is taken.
const INTERVAL: Duration = Duration::from_secs(1);

/// How fast weights come from another machine, and what was sent to one.
#[derive(Debug, Default)]
struct Speed {
    /// When it was looked at, and how much had come by then.
    last: Option<(Instant, u64)>,
    told: String,
    sent: String,
}

impl Speed {
    /// What is said of a link at a time.
    fn of(&mut self, link: &Link, now: Instant) -> &str {
        match self.last.filter(|(_, bytes)| *bytes <= link.bytes) {
            None => self.last = Some((now, link.bytes)),
            Some((then, bytes)) => {
                let took = now.saturating_duration_since(then);
                if took >= INTERVAL {
                    let rate = (link.bytes - bytes) as f64 / took.as_secs_f64();
                    let requests = units::counted(link.requests, "request");
                    self.told = format!("link {}/s, {requests}", units::bytes(rate as u64));
                    self.last = Some((now, link.bytes));
                }
            }
        }
        &self.told
    }

    /// Takes note of what was sent.
    fn sent(&mut self, sent: u64, total: u64) {
        self.sent = format!("{} of {} uploaded", units::bytes(sent), units::bytes(total));
    }

    /// All that is known.
    fn line(&self) -> String {
        let known = [self.told.as_str(), self.sent.as_str()].into_iter().filter(|text| !text.is_empty());
        known.collect::<Vec<_>>().join("; ")
    }
}

/// A bar with bytes, rate and time left, on standard error.
#[derive(Debug)]
pub(crate) struct Bar {
    bar: ProgressBar,
    /// Columns of the terminal.
    width: usize,
    speed: Mutex<Speed>,
    /// Whether the bar shows what is sent, all being read.
    is_sending: AtomicBool,
}

impl Bar {
    /// A bar that is not drawn until the run starts. None on a terminal that takes no control sequences (`TERM=dumb`).
    #[must_use]
    pub(crate) fn new(width: usize) -> Option<Self> {
        let target = ProgressDrawTarget::stderr();
        let is_drawn = !target.is_hidden();
        is_drawn.then(|| Self {
            bar: ProgressBar::with_draw_target(Some(0), target),
            width,
            speed: Mutex::default(),
            is_sending: AtomicBool::new(false),
        })
    }

    fn style(&self, templates: [(usize, &str); 3]) {
        let template =
            templates.iter().find(|(least, _)| self.width >= *least).map_or("{wide_bar}", |(_, t)| t);
        if let Ok(style) = ProgressStyle::with_template(template) {
            self.bar.set_style(style.progress_chars("━╸─"));
        }
        IS_DRAWN.store(!self.bar.is_hidden(), Ordering::Relaxed);
    }
}

impl Listener for Bar {
    fn on_event(&self, event: &Event) {
        if IS_BROKEN_OFF.load(Ordering::Relaxed) {
            return;
        }
        match event {
            Event::Started { bytes, .. } => {
                self.is_sending.store(false, Ordering::Relaxed);
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
            Event::Link(link) => {
                let mut speed = lock(&self.speed);
                speed.of(link, Instant::now());
                self.bar.set_message(speed.line());
            }
            Event::Upload { sent, total } => {
                let mut speed = lock(&self.speed);
                speed.sent(*sent, *total);
                self.bar.set_message(speed.line());
                if self.bar.is_finished() && !self.is_sending.swap(true, Ordering::Relaxed) {
                    // Nothing is read any more.
                    self.style(TILES);
                    self.bar.reset();
                }
                if self.is_sending.load(Ordering::Relaxed) {
                    self.bar.set_length(*total);
                    self.bar.set_position(*sent);
                }
            }
            Event::Published { .. } => self.clear(),
            Event::Written { .. } => self.clear(),
            _ => {}
        }
    }
}

impl Bar {
    fn clear(&self) {
        self.bar.finish_and_clear();
        IS_DRAWN.store(false, Ordering::Relaxed);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Whether a bar is on the screen.
static IS_DRAWN: AtomicBool = AtomicBool::new(false);

/// Whether the process ends on the spot, and no bar is to be drawn any more.
static IS_BROKEN_OFF: AtomicBool = AtomicBool::new(false);

/// Ends the drawing of bars, and clears the line of one that nobody will finish, because the process ends on the spot.
pub(crate) fn break_off() {
    IS_BROKEN_OFF.store(true, Ordering::Relaxed);
    if IS_DRAWN.swap(false, Ordering::Relaxed) {
        let _ = write!(std::io::stderr(), "\r\u{1b}[2K");
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
    speed: Mutex<Speed>,
    is_verbose: bool,
}

impl Lines {
    /// Lines on standard error.
    #[must_use]
    pub(crate) fn new(is_verbose: bool) -> Self {
        let last = Mutex::new(Instant::now());
        Self {
            total: AtomicU64::new(0),
            done: AtomicU64::new(0),
            last,
            passes: Mutex::new(None),
            speed: Mutex::default(),
            is_verbose,
        }
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
                    let link = lock(&self.speed).line();
                    let link = if link.is_empty() { link } else { format!("; {link}") };
                    say(&format!("{} of {}{link}", units::bytes(done), units::bytes(total)));
                }
            }
            Event::Link(link) => {
                lock(&self.speed).of(link, Instant::now());
            }
            Event::Upload { sent, total } => {
                lock(&self.speed).sent(*sent, *total);
                let Ok(mut last) = self.last.try_lock() else { return };
                if last.elapsed() >= HEARTBEAT {
                    *last = Instant::now();
                    say(&lock(&self.speed).sent);
                }
            }
            Event::Layer { name, layer, layers, done, total, tokens } => {
                if *done == 0 {
                    lock(&self.passes).replace(Instant::now());
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
                    let since = *lock(&self.passes);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_speed_of_a_link_is_that_of_the_last_interval() {
        let (mut speed, start) = (Speed::default(), Instant::now());
        let mut at = |ms, bytes| {
            let link = Link { bytes, requests: 3 };
            speed.of(&link, start + Duration::from_millis(ms)).to_owned()
        };
        let told = |bytes| format!("link {}/s, 3 requests", units::bytes(bytes));
        assert_eq!(at(0, 0), "");
        assert_eq!(at(900, 90 << 20), "");
        assert_eq!(at(1000, 100 << 20), told(100 << 20));
        assert_eq!(at(1500, 100 << 20), told(100 << 20));
        assert_eq!(at(3000, 110 << 20), told(5 << 20));
        // Another pass.
        assert_eq!(at(4000, 1 << 20), told(5 << 20));
        assert_eq!(at(5000, 3 << 20), told(2 << 20));
    }
}
