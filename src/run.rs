//! Doing it: streams a plan's weights once, judges what was measured, and publishes what passed.
//!
//! The only module that sees all the others.

mod carried;
pub mod event;
mod executor;
mod finish;
pub mod incremental;
mod made;
pub mod stream;
pub mod verify;
mod workers;

pub use crate::cancel::Cancel;
pub use crate::run::incremental::record::sealed as sealed_record;
pub use event::{Event, Listener, Silent};
pub use executor::{Options, Outcome, Work, disk_needed, preflight, restore, run};
