//! A file of second moments that layers are rounded with, in place of a pass of the model.

use std::path::PathBuf;

use crate::finding::Finding;
use crate::format::source::Identity;
use crate::ids::StageId;
use crate::network::MomentsFile;
use crate::recipe::Loaded;
use crate::stage::Stage;

/// A file of moments, as it was when it was planned with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GivenMoments {
    /// Where it is.
    pub path: PathBuf,
    /// Where it is, as the recipe has it.
    pub named: String,
    /// Tells it from another file in its place.
    pub identity: Identity,
}

impl GivenMoments {
    /// Opens the file that a `calibrate` stage names; none if it names none.
    ///
    /// # Errors
    /// It cannot be read, or is no file of moments.
    pub(super) fn open(loaded: &Loaded, calibrate: StageId) -> Result<Option<(Self, MomentsFile)>, Finding> {
        let Stage::Calibrate(stage) = &loaded.recipe.stages[calibrate] else { return Ok(None) };
        let Some(given) = &stage.moments else { return Ok(None) };
        let pointer = pointer(calibrate);
        let (path, named) =
            (loaded.resolve_path(given), loaded.written(&pointer).unwrap_or(given).to_owned());
        let file = MomentsFile::open_as(&path, &named)
            .map_err(|finding| finding.at_opt(loaded.place(&pointer), "named here"))?;
        Ok(Some((Self { path, named, identity: file.identity().clone() }, file)))
    }

    /// Opens it again.
    ///
    /// # Errors
    /// It cannot be read, or is another one by now.
    pub fn open_again(&self) -> Result<MomentsFile, Finding> {
        let file = MomentsFile::open_as(&self.path, &self.named)?;
        if *file.identity() != self.identity {
            let message =
                format!("the moments `{}` are another file than when the run was planned", self.named);
            return Err(Finding::error("plan::moments-changed", message).help("Run again."));
        }
        Ok(file)
    }
}

/// An error if a file has moments of nothing that is asked for.
pub(super) fn of_another_model(loaded: &Loaded, calibrate: StageId, given: &GivenMoments) -> Finding {
    let message = format!("`{}` has moments of no matrix that is rounded with them", given.named);
    Finding::error("plan::moments-of-another-model", message)
        .at_opt(loaded.place(&pointer(calibrate)), "named here")
        .help("`monoquant calibrate RECIPE -o FILE --moments FILE` makes those of this model.")
}

/// The place of the file in a recipe.
pub(super) fn pointer(calibrate: StageId) -> String {
    format!("/stages/{calibrate}/moments")
}
