//! Tensors and files of a model, as their headers describe them.

use std::collections::BTreeMap;
use std::fs::Metadata;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::dtype::Dtype;
use super::name::Name;
use super::shape::Shape;

/// A tensor, from the header of its file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// The name in the file.
    pub name: Name,
    /// The type of the bytes in the file.
    pub stored: Dtype,
    /// The type that the weights mean: BF16 for a scaled FP8 weight, otherwise as stored.
    pub dtype: Dtype,
    /// Sizes of the axes; empty for a scalar.
    pub shape: Shape,
    /// The file that holds it, an index into the folder's shards.
    pub shard: u32,
    /// The first byte, counted from the start of the file.
    pub offset: u64,
    /// Bytes in the file.
    pub bytes: u64,
    /// The scales without which an FP8 weight means nothing.
    pub fp8: Option<Fp8Scales>,
    /// The FP8 weight that this tensor is a scale of. The scale is consumed when that weight is read, and is not a
    /// layer's parameter.
    pub scale_of: Option<u32>,
}

impl TensorInfo {
    /// The file that holds it, an index into the folder's shards.
    #[must_use]
    pub fn shard(&self) -> usize {
        self.shard as usize
    }

    /// The module: the name without its last part; empty if there is only one part.
    #[must_use]
    pub fn module(&self) -> &str {
        self.name.rsplit_once('.').map_or("", |(module, _)| module)
    }

    /// The last part of the name, such as `weight`.
    #[must_use]
    pub fn parameter(&self) -> &str {
        self.name.rsplit_once('.').map_or(&self.name, |(_, parameter)| parameter)
    }

    /// How many elements. The header was refused if that overflows.
    #[must_use]
    pub fn elements(&self) -> u64 {
        self.shape.iter().product()
    }

    /// The type in which rows are delivered to be quantized ([`super::read`]): F32 for F64, otherwise the
    /// dtype.
    #[must_use]
    pub fn working_dtype(&self) -> Dtype {
        if self.dtype == Dtype::F64 { Dtype::F32 } else { self.dtype }
    }

    /// Dtype and shape as messages show them: `BF16 [256, 64]`.
    #[must_use]
    pub fn describe(&self) -> String {
        format!("{} {:?}", self.stored, self.shape)
    }
}

/// The location of an FP8 weight's scales, and the weights that share one scale. A weight is code × scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fp8Scales {
    /// The scale tensor, an index into the folder's tensors.
    pub tensor: u32,
    /// Which weights share a scale.
    pub layout: Fp8Layout,
}

/// Which elements of an FP8 weight [out, in] share a scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fp8Layout {
    /// All: the scale is `[]` or `[1]`.
    Tensor,
    /// One scale per row: the scale tensor is `[out]` or `[out, 1]`.
    Channel,
    /// One scale per block of `rows` × `columns`: the scale tensor is [ceil(out / rows), ceil(in / columns)].
    Block {
        /// Rows of a block.
        rows: u32,
        /// Columns of a block.
        columns: u32,
    },
}

/// One safetensors file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shard {
    /// The name relative to the model's folder, with `/`.
    pub name: String,
    /// The path to open.
    pub path: PathBuf,
    /// Bytes of the file.
    pub len: u64,
    /// The first byte after the header.
    pub data_start: u64,
    /// `__metadata__` of the header, ordered by key.
    pub metadata: BTreeMap<String, String>,
    /// Tells whether the file is still the one whose header was read.
    pub identity: FileIdentity,
}

/// Metadata that distinguish a file from its replacement without reading it. Zero if the system has no such number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct FileIdentity {
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
    pub fn is_settled(&self) -> bool {
        self.settles_in(COARSE_TICK_NS).is_zero()
    }

    /// The time until any later change shows in the times of a file that was looked at right after it was written.
    #[must_use]
    pub fn tick_left(&self) -> Duration {
        let is_coarse = self.ctime_ns % 1_000_000_000 == 0;
        self.settles_in(if is_coarse { COARSE_TICK_NS } else { TICK_NS })
    }

    fn settles_in(&self, tick_ns: i128) -> Duration {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = i128::try_from(now.as_nanos()).unwrap_or(0);
        let left = self.mtime_ns.max(self.ctime_ns) + tick_ns - now;
        u64::try_from(left.max(0)).map_or(Duration::MAX, Duration::from_nanos)
    }

    /// The identity that file metadata shows.
    #[must_use]
    pub fn of(metadata: &Metadata) -> Self {
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
