//! Locks that survive a panic.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Takes a lock whose data is whole even if another worker has panicked: the panic ends the run anyway.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
