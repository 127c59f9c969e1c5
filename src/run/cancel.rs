//! A switch that ends a run at the next tile.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::exit::Exit;
use crate::finding::{Failure, Finding};

/// Shared between a run and whoever may end it; clones are the same switch.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Asks the run to end.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether the run was asked to end.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Goes on, or fails as interrupted.
    ///
    /// # Errors
    /// [`Exit::Interrupted`] where the run was asked to end.
    pub fn check(&self) -> Result<(), Failure> {
        if !self.is_cancelled() {
            return Ok(());
        }
        let finding = Finding::error("run::interrupted", "interrupted")
            .help("Nothing was published; what was there before is untouched. The next run goes on where this one ended.");
        Err(Failure::new(Exit::Interrupted, finding))
    }
}
