//! Places of values in a recipe, for messages that come after parsing.

use crate::finding::Place;
use crate::ids::StageId;
use crate::recipe::Loaded;

/// The place of a value that the recipe sets, or of the stage's name if the value is a default.
#[must_use]
pub(crate) fn said_or_stage(loaded: &Loaded, stage: StageId, key: &str) -> Option<Place> {
    let pointer = format!("/stages/{stage}/{key}");
    if loaded.says(&pointer) { loaded.place(&pointer) } else { loaded.stage_place(stage) }
}

/// The line of a value, from 1. None if an override sets it.
#[must_use]
pub(crate) fn line(loaded: &Loaded, pointer: &str) -> Option<usize> {
    let place = loaded.place(pointer)?;
    (place.source == loaded.source).then(|| place.line_column().0)
}
