//! Watch mode: waiting for changes, and comparing one cycle with the one before.

pub mod changes;
pub mod cycle;
