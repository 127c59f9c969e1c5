//! What the system lets this process have of files.

use std::io::Error;

/// How many files may be open; none if there is no limit.
#[must_use]
pub(crate) fn open_files() -> Option<u64> {
    #[cfg(unix)]
    {
        rustix::process::getrlimit(rustix::process::Resource::Nofile).current
    }
    #[cfg(not(unix))]
    {
        None
    }
}

/// Bytes of the longest file that may be written; none if there is no limit.
#[must_use]
pub(crate) fn longest_file() -> Option<u64> {
    #[cfg(unix)]
    {
        rustix::process::getrlimit(rustix::process::Resource::Fsize).current
    }
    #[cfg(not(unix))]
    {
        None
    }
}

/// Makes writing beyond the longest file an error, where the system would end the process by a signal. To be called before there
/// are other threads.
#[cfg_attr(not(feature = "cli"), allow(dead_code, reason = "only the command uses it"))]
pub(crate) fn outlive_long_files() {
    #[cfg(unix)]
    {
        use nix::sys::signal::{SigSet, Signal};
        // A signal that is blocked waits for ever. If it cannot be blocked, the next run takes up what is finished.
        let _ = SigSet::from(Signal::SIGXFSZ).thread_block();
    }
}

/// Whether an error says that the process, or the system, has as many files open as it may.
#[must_use]
pub(crate) fn is_out_of_files(error: &Error) -> bool {
    #[cfg(unix)]
    {
        use rustix::io::Errno;
        [Errno::MFILE, Errno::NFILE].iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
    }
    #[cfg(not(unix))]
    {
        let _ = error;
        false
    }
}
