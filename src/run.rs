//! Execution: streams a plan's weights once, judges the measurements, and publishes the exports that passed.
//!
//! The only module that sees all the others.

pub mod calibrate;
mod card;
mod carried;
mod chosen_codes;
pub mod compare;
pub mod conditions;
mod context;
pub mod evaluate;
pub(crate) mod event;
mod executor;
mod finish;
pub mod fix;
pub(crate) mod incremental;
mod kept;
pub mod lockfile;
mod made;
mod missing;
mod model_pass;
mod outcome;
pub mod parts;
mod preflight;
pub mod prepare;
pub mod rounding;
pub(crate) mod stream;
mod sums;
pub mod sweep;
#[cfg(feature = "cloud")]
mod targets;
#[cfg(feature = "cloud")]
mod to_store;
pub mod verify;
mod workers;

pub use crate::cancel::Cancel;
pub use crate::run::incremental::record::sealed as sealed_record;
pub use event::{Event, Link, Listener, Silent};
pub use executor::{restore, run};
pub use outcome::{Options, Outcome, Work};
pub use preflight::preflight;
