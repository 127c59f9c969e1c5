//! Watch mode: waiting for changes, and comparing one cycle with the one before.

pub(crate) mod changes;
pub(crate) mod cycle;
