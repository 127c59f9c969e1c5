//! The documented exit statuses. One table, tested end to end.

/// Exit status of the `monoquant` process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Exit {
    /// Done, and every gate passed.
    Done = 0,
    /// A quality gate with `on_failure: error` failed; nothing was published after it.
    GateFailed = 1,
    /// The recipe or the command line is wrong.
    BadRecipe = 2,
    /// The input model is wrong or damaged.
    BadModel = 3,
    /// The output cannot be written: no space, no permission, locked, not ours to replace, or beyond a limit of the process.
    CannotWrite = 4,
    /// The written output failed its own check.
    OutputDamaged = 5,
    /// A bug in monoquant.
    Internal = 70,
    /// Something is not there yet; the same command may succeed later. The number is that of `EX_TEMPFAIL` in sysexits.h.
    TryAgain = 75,
    /// Interrupted by a signal.
    Interrupted = 130,
}

impl Exit {
    /// The number given to the operating system.
    #[must_use]
    pub fn code(self) -> u8 {
        self as u8
    }
}
