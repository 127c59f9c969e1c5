//! Change detection: waits for changes of the files that a recipe reads, and runs the recipe again.
//!
//! Folders are watched rather than files, because most editors save by renaming a new file over the old one. The
//! content of an event is not trusted. An event only asks to look again. A change is a difference of the recipe's
//! text or of a model file from the state that the last cycle saw. So a burst of events is one change, and writes of
//! monoquant itself are none.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};

use crate::cancel::Cancel;
use crate::exit::Exit;
use crate::finding::{Failure, Finding};
use crate::fs::identity::FileIdentity;
use crate::fs::paths::{self, links};
use crate::fs::regular;
use crate::sync::lock;

/// Without another event for so long, a change is complete.
const QUIET: Duration = Duration::from_millis(30);

/// A change that never becomes quiet is looked at after so long.
const AT_MOST: Duration = Duration::from_millis(500);

/// An editor may take so long between removing or emptying the old file and putting the new one in its place.
const GONE: Duration = Duration::from_millis(250);

/// Folders below a model's folder that are looked at.
const DEPTH: usize = 2;

/// The state of a cycle's inputs, as far as it is visible without reading weights.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Seen {
    /// The texts of the recipe and of other small files. None if a file is missing.
    texts: BTreeMap<PathBuf, Option<Vec<u8>>>,
    /// The model's files.
    files: BTreeMap<PathBuf, FileIdentity>,
}

/// The watched files and folders.
#[derive(Debug, Default)]
struct Watched {
    texts: Vec<PathBuf>,
    model: Option<PathBuf>,
    /// Other files that are read, large ones perhaps, and folders in which the model may arrive.
    others: Vec<PathBuf>,
    /// Our own folders, should they lie within the model's.
    outputs: Vec<PathBuf>,
    seen: Seen,
}

/// The inputs that the cycles declare.
#[derive(Debug)]
pub(crate) struct Inputs(Mutex<Watched>);

impl Inputs {
    fn new(recipe: &Path) -> Self {
        let watched = Watched { texts: vec![recipe.to_owned()], ..Watched::default() };
        Self(Mutex::new(watched))
    }

    /// Declares the folder or file of the model, the other files that are read, and the places of the outputs. Must
    /// be called before they are read, so that no later change goes unnoticed.
    pub(crate) fn set(&self, model: Option<PathBuf>, others: Vec<PathBuf>, outputs: Vec<PathBuf>) {
        let mut watched = lock(&self.0);
        let is_same = watched.model == model && watched.others == others && watched.outputs == outputs;
        (watched.model, watched.others, watched.outputs) = (model, others, outputs);
        let seen = look(&watched);
        if !is_same {
            watched.seen.files = seen.files;
        }
    }

    fn watched(&self) -> MutexGuard<'_, Watched> {
        lock(&self.0)
    }

    /// Records the current state as seen.
    fn look(&self) {
        let mut watched = self.watched();
        watched.seen = look(&watched);
    }

    /// Whether anything differs from what was seen.
    fn has_changed(&self) -> bool {
        let watched = self.watched();
        look(&watched) != watched.seen
    }

    /// Whether a small file is missing, or empty, as one is between its being opened and written anew.
    fn has_gone(&self) -> bool {
        self.watched().texts.iter().any(|path| regular::length(path).map_or(true, |length| length == 0))
    }

    /// Waits for a file that an editor is about to put in place.
    fn wait_while_gone(&self) {
        let gone = Instant::now();
        while self.has_gone() && gone.elapsed() < GONE {
            std::thread::sleep(QUIET);
        }
    }

    /// The folders to be watched: those of all files, that of the model's folder, which may be replaced as a whole, and those in it.
    fn folders(&self) -> Vec<PathBuf> {
        let watched = self.watched();
        let parent = |path: &PathBuf| path.parent().map(Path::to_owned).unwrap_or_default();
        let files = watched.texts.iter().chain(&watched.others);
        let mut out: Vec<PathBuf> = files.flat_map(|path| links(path)).map(|path| parent(&path)).collect();
        if let Some(model) = &watched.model {
            out.push(parent(model));
            out.push(model.clone());
            paths::folders_below(model, DEPTH, &watched.outputs, &mut out);
            // Files of the Hub's cache are links to files elsewhere.
            let files = watched.seen.files.keys();
            out.extend(files.filter_map(|path| Some(paths::real(path).ok()?.parent()?.to_owned())));
        }
        for path in &watched.others {
            paths::folders_below(path, DEPTH, &watched.outputs, &mut out);
        }
        for path in &mut out {
            // Of a folder that is not there, the nearest one in which it can appear.
            while !path.as_os_str().is_empty() && !paths::is_folder(path) && path.pop() {}
            if path.as_os_str().is_empty() {
                *path = PathBuf::from(".");
            }
        }
        out.sort();
        out.dedup();
        out.retain(|path| paths::is_folder(path));
        out
    }
}

fn look(watched: &Watched) -> Seen {
    let mut seen = Seen::default();
    for path in &watched.texts {
        seen.texts.insert(path.clone(), crate::recipe::text_of(path).map(String::into_bytes));
    }
    for path in watched.model.iter().chain(&watched.others) {
        paths::files_below(path, DEPTH + 1, &watched.outputs, &mut seen.files);
    }
    seen
}

/// A message that the loop waits for.
enum Message<T> {
    /// Something may have changed.
    Event,
    /// A cycle has ended.
    Done(T),
    /// The person has had enough.
    Interrupt,
    /// The person asks for something else.
    Asked(Asked),
}

/// A request to a watch that goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    /// To run again, although nothing has changed.
    Again,
    /// To compare with the last result from now on.
    Pin,
    /// To show the last result again: the terminal has another size.
    Redraw,
}

/// What a watch has to tell.
pub(crate) enum Told<T> {
    /// A cycle has ended, and took so long.
    Ended(T, Duration),
    /// The person asks for something.
    Asked(Asked),
}

/// Steers a watch from elsewhere: a signal handler, or keys.
#[derive(Debug, Clone)]
pub(crate) struct Remote<T>(Sender<Message<T>>);

impl<T> Remote<T> {
    /// Asks the watch to end.
    pub(crate) fn interrupt(&self) {
        // A watch that is over needs no interruption.
        let _ = self.0.send(Message::Interrupt);
    }

    /// Asks the watch for something else.
    pub(crate) fn ask(&self, asked: Asked) {
        let _ = self.0.send(Message::Asked(asked));
    }
}

/// A watch that has not begun.
pub(crate) struct Watch<T> {
    sender: Sender<Message<T>>,
    receiver: Receiver<Message<T>>,
    poll: Option<Duration>,
}

impl<T: Send + 'static> Watch<T> {
    /// Watches by the system's events, or by polling if an interval is given.
    #[must_use]
    pub(crate) fn new(poll: Option<Duration>) -> Self {
        let (sender, receiver) = channel();
        Self { sender, receiver, poll }
    }

    /// The handle that steers the watch.
    #[must_use]
    pub(crate) fn remote(&self) -> Remote<T> {
        Remote(self.sender.clone())
    }

    /// Runs `cycle` now and after every change, and tells each result, until it is interrupted. A change during a
    /// cycle cancels that cycle and begins the next. The result of the cancelled cycle is not told.
    ///
    /// # Errors
    /// If files cannot be watched.
    pub(crate) fn run(
        self,
        recipe: &Path,
        cycle: impl Fn(&Inputs, &Cancel) -> T + Sync,
        mut tell: impl FnMut(Told<T>),
    ) -> Result<(), Failure> {
        let inputs = Inputs::new(recipe);
        let mut watcher = match self.poll {
            Some(_) => None,
            None => Some(Watching::start(&self.sender)?),
        };
        let mut follow = |inputs: &Inputs| {
            if let Some(watcher) = &mut watcher {
                watcher.follow(inputs);
            }
        };
        loop {
            inputs.wait_while_gone();
            inputs.look();
            follow(&inputs);
            let (cancel, start) = (Cancel::default(), Instant::now());
            let ended = std::thread::scope(|scope| {
                let cycle = || {
                    // Should the cycle panic, the loop must not wait for it for ever.
                    let done =
                        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| cycle(&inputs, &cancel)));
                    let _ = match done {
                        Ok(done) => self.sender.send(Message::Done(done)),
                        Err(panic) => {
                            let _ = self.sender.send(Message::Interrupt);
                            std::panic::resume_unwind(panic);
                        }
                    };
                };
                std::thread::Builder::new().spawn_scoped(scope, cycle).map_err(|error| no_thread(&error))?;
                Ok(self.wait_for_the_cycle(&inputs, &cancel, &mut tell))
            })?;
            follow(&inputs);
            match ended {
                Ended::Interrupted => return Ok(()),
                Ended::Changed => continue,
                Ended::Done(done) => tell(Told::Ended(done, start.elapsed())),
            }
            if !self.wait_for_a_change(&inputs, &mut follow, &mut tell) {
                return Ok(());
            }
        }
    }

    /// The next message. If a polling interval is set, an event arrives after each interval.
    fn receive(&self) -> Message<T> {
        let received = match self.poll {
            Some(every) => self.receiver.recv_timeout(every),
            None => self.receiver.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match received {
            Ok(message) => message,
            Err(RecvTimeoutError::Timeout) => Message::Event,
            Err(RecvTimeoutError::Disconnected) => Message::Interrupt,
        }
    }

    fn wait_for_the_cycle(
        &self,
        inputs: &Inputs,
        cancel: &Cancel,
        tell: &mut impl FnMut(Told<T>),
    ) -> Ended<T> {
        let mut has_changed = false;
        loop {
            match self.receive() {
                Message::Done(_) if has_changed => return Ended::Changed,
                Message::Done(done) => return Ended::Done(done),
                Message::Interrupt => {
                    cancel.cancel();
                    return Ended::Interrupted;
                }
                // A cycle goes on, and what is drawn now would be drawn into its progress.
                Message::Asked(Asked::Pin) => tell(Told::Asked(Asked::Pin)),
                Message::Asked(_) => {}
                Message::Event if has_changed => {}
                Message::Event => match self.settle() {
                    Settled::Quiet => {
                        has_changed = inputs.has_changed();
                        if has_changed {
                            cancel.cancel();
                        }
                    }
                    Settled::Done(done) => return Ended::Done(done),
                    Settled::Interrupted => {
                        cancel.cancel();
                        return Ended::Interrupted;
                    }
                },
            }
        }
    }

    /// Waits for a change. False if the watch is to end.
    fn wait_for_a_change(
        &self,
        inputs: &Inputs,
        follow: &mut impl FnMut(&Inputs),
        tell: &mut impl FnMut(Told<T>),
    ) -> bool {
        loop {
            // A change between the end of a cycle and now needs no event.
            if inputs.has_changed() {
                inputs.wait_while_gone();
                if inputs.has_changed() {
                    return true;
                }
            }
            match self.receive() {
                Message::Event | Message::Done(_) => {
                    if matches!(self.settle(), Settled::Interrupted) {
                        return false;
                    }
                    // A folder may have appeared in which files will.
                    follow(inputs);
                }
                Message::Interrupt => return false,
                Message::Asked(asked) => {
                    tell(Told::Asked(asked));
                    if asked == Asked::Again {
                        return true;
                    }
                }
            }
        }
    }

    /// Waits until there are no more events.
    fn settle(&self) -> Settled<T> {
        let start = Instant::now();
        while start.elapsed() < AT_MOST {
            match self.receiver.recv_timeout(QUIET) {
                Ok(Message::Event) => {}
                Ok(Message::Done(done)) => return Settled::Done(done),
                Ok(Message::Interrupt) => return Settled::Interrupted,
                Ok(asked @ Message::Asked(_)) => {
                    // It is for whoever waits next.
                    let _ = self.sender.send(asked);
                    break;
                }
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
            }
        }
        Settled::Quiet
    }
}

/// How waiting for a cycle ended.
enum Ended<T> {
    Done(T),
    Changed,
    Interrupted,
}

/// How a burst of events ended.
enum Settled<T> {
    Quiet,
    Done(T),
    Interrupted,
}

/// Without a thread beside the one that waits there is no cycle.
fn no_thread(error: &std::io::Error) -> Failure {
    let finding = Finding::error("watch::unavailable", format!("cannot start a thread: {error}"))
        .help("Allow more processes (`ulimit -u`) or more memory (`ulimit -v`), or run without `--watch`.");
    Failure::new(Exit::CannotWrite, finding)
}

/// The system's watcher, and the folders that it watches.
struct Watching {
    watcher: RecommendedWatcher,
    folders: Vec<PathBuf>,
}

impl Watching {
    fn start<T: Send + 'static>(sender: &Sender<Message<T>>) -> Result<Self, Failure> {
        let sender = sender.clone();
        let made = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // Reading a file, as cycles do, changes nothing.
            let is_access = event.is_ok_and(|event| matches!(event.kind, EventKind::Access(_)));
            if !is_access {
                let _ = sender.send(Message::Event);
            }
        });
        let watcher = made.map_err(|error| {
            let finding = Finding::error("watch::unavailable", format!("cannot watch files: {error}"))
                .help("`--poll` looks at the files every second instead.");
            Failure::new(Exit::Internal, finding)
        })?;
        Ok(Self { watcher, folders: Vec::new() })
    }

    /// Watches the folders of what is read now. One that was replaced by another of its name is watched anew.
    fn follow(&mut self, inputs: &Inputs) {
        let folders = inputs.folders();
        for folder in self.folders.drain(..) {
            let _ = self.watcher.unwatch(&folder);
        }
        for folder in folders {
            // One that has gone in the meantime shows in its parent.
            if self.watcher.watch(&folder, RecursiveMode::NonRecursive).is_ok() {
                self.folders.push(folder);
            }
        }
    }
}
