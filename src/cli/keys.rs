//! Keys that are pressed while a watch goes on, without Enter, and the size of the terminal.

#[cfg(unix)]
pub(super) use unix::{Keys, restore};

/// A key, or what else a terminal has to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pressed {
    /// A character.
    Key(u8),
    /// The terminal has another size than before.
    Resized,
}

#[cfg(unix)]
mod unix {
    use std::io;
    use std::sync::Mutex;

    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use rustix::process::getpgrp;
    use rustix::stdio::stdin;
    use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcgetpgrp, tcsetattr};

    use super::Pressed;
    use crate::sync::lock;

    /// How often the size of the terminal is looked at.
    const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 300_000_000 };

    /// How the terminal was before.
    static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

    /// A terminal that gives each key at once, for as long as this lives.
    pub(in crate::cli) struct Keys(());

    impl Keys {
        /// Listens to the keys of the terminal. None if standard input is none, or belongs to another job.
        pub(in crate::cli) fn listen(pressed: impl Fn(Pressed) + Send + 'static) -> Option<Self> {
            // Changing a terminal from the background stops the process.
            if tcgetpgrp(stdin()).ok()? != getpgrp() {
                return None;
            }
            let before = tcgetattr(stdin()).ok()?;
            let mut modes = before.clone();
            // Ctrl-C still makes a signal.
            modes.local_modes.remove(LocalModes::ICANON | LocalModes::ECHO);
            *lock(&BEFORE) = Some(before);
            let keys = Self(());
            tcsetattr(stdin(), OptionalActions::Now, &modes).ok()?;
            // It ends with the process.
            std::thread::Builder::new().spawn(move || follow(&pressed)).ok()?;
            Some(keys)
        }
    }

    impl Drop for Keys {
        fn drop(&mut self) {
            restore();
        }
    }

    /// Gives the terminal back as it was.
    pub(in crate::cli) fn restore() {
        if let Some(before) = lock(&BEFORE).take() {
            let _ = tcsetattr(stdin(), OptionalActions::Now, &before);
        }
    }

    fn follow(pressed: &dyn Fn(Pressed)) {
        let size = || terminal_size::terminal_size_of(io::stdout());
        let mut last = size();
        loop {
            let ready = poll(&mut [PollFd::new(&stdin(), PollFlags::IN)], Some(&LOOK));
            if size() != last {
                last = size();
                pressed(Pressed::Resized);
            }
            match ready {
                Ok(0) | Err(rustix::io::Errno::INTR) => continue,
                Ok(_) => {}
                Err(_) => return,
            }
            let mut keys = [0; 16];
            match rustix::io::read(stdin(), &mut keys) {
                Ok(0) => return,
                // An arrow or another key that is no character.
                Ok(_) if keys[0] == 0x1b => {}
                Ok(count) => keys[..count].iter().for_each(|key| pressed(Pressed::Key(*key))),
                Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => {}
                Err(_) => return,
            }
        }
    }
}

/// Elsewhere only Ctrl-C is heard.
#[cfg(not(unix))]
pub(super) struct Keys(());

#[cfg(not(unix))]
impl Keys {
    pub(super) fn listen(_: impl Fn(Pressed) + Send + 'static) -> Option<Self> {
        None
    }
}

#[cfg(not(unix))]
pub(super) fn restore() {}
