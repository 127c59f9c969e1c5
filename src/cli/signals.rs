//! Signals: the first asks for the end of the process, which comes within a second, whatever the process is waiting for.
//!
//! All commands listen, so that each ends with the same exit status, also if it was started in the background by a shell that has
//! Ctrl-C ignored. A command that holds nothing ends at once. A run is asked to end by itself, and keeps what it has finished; one
//! that does not, because a disk or a reader of its output hangs, is ended. Publishing is the one thing that is waited for.

#![cfg_attr(unix, expect(unsafe_code, reason = "setting the action of a signal is an unsafe function"))]

use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

#[cfg(unix)]
use nix::sys::signal::Signal;

use super::output::Output;
use crate::exit::Exit;
use crate::finding::Finding;
use crate::run::Cancel;
use crate::show::progress;

/// How long a run has to end by itself.
const GRACE: Duration = Duration::from_millis(700);

/// How long is waited until it is said that a run was ended: who should read it may be what hangs.
const SAYING: Duration = Duration::from_millis(50);

/// The signals that end a process.
#[cfg(unix)]
const SIGNALS: [Signal; 3] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];

/// What the process does about signals; clones are the same.
#[derive(Clone, Default)]
pub(super) struct Signals(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    /// When the first signal came.
    first: Option<Instant>,
    /// The run that goes on.
    run: Option<Cancel>,
    /// What goes on beside runs, and is to be told of a signal.
    other: Option<Box<dyn Fn() + Send>>,
}

/// A run that is asked to end by signals, for as long as this lives.
pub(super) struct Running(Signals);

impl Signals {
    /// Listens from now on. If that cannot be, signals do what they do by default: they end the process.
    pub(super) fn listen(output: Output) -> Self {
        let signals = Self::default();
        let output = Arc::new(output);
        let listening = {
            let signals = signals.clone();
            keeping_hangups_ignored(|| ctrlc::set_handler(move || signals.came(&output)))
        };
        match listening {
            Ok(()) => leave_signals_to_the_listener(),
            Err(_) => end_on_signals(),
        }
        signals
    }

    /// Says what a signal is to end.
    pub(super) fn running(&self, cancel: &Cancel) -> Running {
        let mut state = self.state();
        if state.first.is_some() {
            cancel.cancel();
        }
        state.run = Some(cancel.clone());
        Running(self.clone())
    }

    /// Says what is to be told of a signal beside the run that goes on, if there is one.
    pub(super) fn tell(&self, other: impl Fn() + Send + 'static) {
        self.state().other = Some(Box::new(other));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A signal came.
    fn came(&self, output: &Arc<Output>) {
        let mut state = self.state();
        let first = state.first;
        state.first = first.or_else(|| Some(Instant::now()));
        if let Some(run) = &state.run {
            run.cancel();
        }
        if let Some(other) = &state.other {
            other();
        }
        let holds_nothing = state.run.is_none() && state.other.is_none();
        drop(state);
        match first {
            _ if holds_nothing => exit(),
            // Signals come in pairs, from a terminal's group and from whoever started the process. Only one that comes later
            // is from a person who does not want to wait for what is being published.
            Some(first) if first.elapsed() > GRACE => exit(),
            Some(_) => {}
            None => {
                let (signals, output) = (self.clone(), output.clone());
                let watching = std::thread::Builder::new().spawn({
                    let (signals, output) = (signals.clone(), output.clone());
                    move || signals.end(&output)
                });
                if watching.is_err() {
                    signals.end(&output);
                }
            }
        }
    }

    /// Ends the process if it does not end by itself.
    fn end(&self, output: &Arc<Output>) {
        std::thread::sleep(GRACE);
        let run = self.state().run.clone();
        if run.is_some_and(|run| run.settle()) {
            // It has published, and may still say so.
            std::thread::sleep(GRACE);
        }
        if self.state().run.is_some() {
            say_that_it_was_ended(output);
        }
        exit();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.state().run = None;
    }
}

fn say_that_it_was_ended(output: &Arc<Output>) {
    let (done, is_done) = channel();
    let output = output.clone();
    let saying = std::thread::Builder::new().spawn(move || {
        let finding = Finding::error("run::interrupted", "interrupted while it was waiting for something")
            .help(
                "Outputs are published as a whole or not at all. The next run goes on where this one ended.",
            );
        progress::break_off();
        output.findings(&[finding]);
        let _ = done.send(());
    });
    if saying.is_ok() {
        let _ = is_done.recv_timeout(SAYING);
    }
}

fn exit() -> ! {
    // A bar that is broken off leaves its line to whoever writes next.
    progress::break_off();
    super::keys::restore();
    #[expect(clippy::exit, reason = "a person waits; the next run clears up or goes on from what is there")]
    std::process::exit(Exit::Interrupted.code().into())
}

/// Sets handlers for signals; what was started by `nohup` stays deaf to the end of its terminal.
fn keeping_hangups_ignored<T>(set: impl FnOnce() -> T) -> T {
    #[cfg(unix)]
    {
        use nix::sys::signal::{SigHandler, signal};
        // SAFETY: to ignore a signal installs no handler, so no code runs at a time when it must not.
        let ignore = || unsafe { signal(Signal::SIGHUP, SigHandler::SigIgn) };
        let before = ignore();
        let done = set();
        if matches!(before, Ok(SigHandler::SigIgn)) {
            let _ = ignore();
        }
        done
    }
    #[cfg(not(unix))]
    set()
}

/// Keeps signals from this thread and from all that it starts: what they read and write is not broken off.
fn leave_signals_to_the_listener() {
    #[cfg(unix)]
    {
        let mut signals = nix::sys::signal::SigSet::empty();
        SIGNALS.into_iter().for_each(|each| signals.add(each));
        // Without it a slow file system may give an error for what a signal broke off, and the run ends with that.
        let _ = signals.thread_block();
    }
}

/// Lets signals end the process as they do when nobody listens to them.
fn end_on_signals() {
    #[cfg(unix)]
    {
        use nix::sys::signal::{SigHandler, signal};
        for each in SIGNALS {
            // SAFETY: the default installs no handler, so no code runs at a time when it must not.
            let _ = unsafe { signal(each, SigHandler::SigDfl) };
        }
    }
}
