//! Doing it: streams a plan's weights once, judges what was measured, and publishes what passed.
//!
//! The only module that sees all the others.

pub mod cancel;
mod carried;
pub mod checksum;
pub mod event;
mod executor;
pub mod file_hash;
mod finish;
mod hashes;
mod made;
mod measured;
mod record;
mod reuse;
mod solvers;
mod source;
mod store;
mod stream;
mod take_over;
mod tiles;
pub mod verdict;
pub mod verify;
pub mod watch;
mod workers;

pub use cancel::Cancel;
pub use event::{Event, Listener, Silent};
pub use executor::{Options, Outcome, Work, disk_needed, preflight, restore, run};
pub use record::sealed as sealed_record;
