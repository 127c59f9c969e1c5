//! The identity of a file, as its metadata show it.

use std::fs::Metadata;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// Metadata that distinguish a file from its replacement without reading it. Zero if the system has no such number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub(crate) struct FileIdentity {
    /// Bytes.
    pub len: u64,
    /// Last change of the contents, nanoseconds since 1970.
    pub mtime_ns: i128,
    /// Device.
    pub dev: u64,
    /// Inode.
    pub ino: u64,
    /// Last change of contents or attributes, nanoseconds since 1970.
    pub ctime_ns: i128,
}

/// A change shows in the times of a file unless it falls into the same clock tick as the previous change. File
/// systems either count in seconds, or take the time of the system's last tick.
const COARSE_TICK_NS: i128 = 2_000_000_000;
const TICK_NS: i128 = 20_000_000;

impl FileIdentity {
    /// Whether the file had been unchanged for long enough when it was looked at. If so, any later change shows in
    /// its times, even on file systems that count in seconds.
    #[must_use]
    pub(crate) fn is_settled(&self) -> bool {
        self.settles_in(COARSE_TICK_NS).is_zero()
    }

    /// The time until any later change shows in the times of a file that was looked at right after it was written.
    #[must_use]
    pub(crate) fn tick_left(&self) -> Duration {
        let is_coarse = self.ctime_ns % 1_000_000_000 == 0;
        self.settles_in(if is_coarse { COARSE_TICK_NS } else { TICK_NS })
    }

    /// What of it is the same on every machine that sees the file: its length and the time of its last change.
    #[must_use]
    pub(crate) fn anywhere(&self) -> (u64, i128) {
        (self.len, self.mtime_ns)
    }

    fn settles_in(&self, tick_ns: i128) -> Duration {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = i128::try_from(now.as_nanos()).unwrap_or(0);
        let left = self.mtime_ns.max(self.ctime_ns) + tick_ns - now;
        u64::try_from(left.max(0)).map_or(Duration::MAX, Duration::from_nanos)
    }

    /// The identity of what is at a path, links not followed. None if the system does not say.
    #[must_use]
    pub(crate) fn at(path: &Path) -> Option<Self> {
        std::fs::symlink_metadata(path).ok().as_ref().map(Self::of)
    }

    /// The identity that file metadata shows.
    #[must_use]
    pub(crate) fn of(metadata: &Metadata) -> Self {
        #[cfg(unix)]
        {
            use std::os::unix::fs::MetadataExt;
            let nanoseconds = |s: i64, ns: i64| i128::from(s) * 1_000_000_000 + i128::from(ns);
            Self {
                len: metadata.len(),
                mtime_ns: nanoseconds(metadata.mtime(), metadata.mtime_nsec()),
                dev: metadata.dev(),
                ino: metadata.ino(),
                ctime_ns: nanoseconds(metadata.ctime(), metadata.ctime_nsec()),
            }
        }
        #[cfg(not(unix))]
        {
            let since_1970 = metadata.modified().ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok());
            let mtime_ns = since_1970.and_then(|d| i128::try_from(d.as_nanos()).ok()).unwrap_or(0);
            Self { len: metadata.len(), mtime_ns, ..Self::default() }
        }
    }
}
