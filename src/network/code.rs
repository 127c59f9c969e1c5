//! The stable codes of this module's errors.

pub(super) const NOT_ADMITTED: &str = "network::not-admitted";
pub(super) const UNKNOWN_KEY: &str = "network::unknown-key";
pub(super) const BAD_KEY: &str = "network::bad-key";
pub(super) const MISSING_TENSOR: &str = "network::missing-tensor";
pub(super) const UNKNOWN_TENSOR: &str = "network::unknown-tensor";
pub(super) const WRONG_SHAPE: &str = "network::wrong-shape";
pub(super) const TOO_LONG: &str = "network::too-long";
pub(super) const BAD_TOKEN: &str = "network::token-out-of-range";
pub(super) const NOT_FINITE: &str = "network::not-finite";
pub(super) const MOMENTS: &str = "network::bad-moments";
pub(super) const SPILL: &str = "network::spill";
pub(super) const NO_GRADIENTS: &str = "network::no-gradients";
