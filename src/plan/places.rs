//! Where in a recipe something is said, for messages that come after parsing.

use crate::finding::Place;
use crate::recipe::Loaded;

/// The place of a value that the recipe says; the stage's name where it is a default.
#[must_use]
pub fn said_or_stage(loaded: &Loaded, stage: usize, key: &str) -> Option<Place> {
    let pointer = format!("/stages/{stage}/{key}");
    if loaded.says(&pointer) { loaded.place(&pointer) } else { loaded.stage_place(stage) }
}

/// The line of a value, from 1; none where an override says it.
#[must_use]
pub fn line(loaded: &Loaded, pointer: &str) -> Option<usize> {
    let place = loaded.place(pointer)?;
    (place.source == loaded.source).then(|| place.line_column().0)
}
