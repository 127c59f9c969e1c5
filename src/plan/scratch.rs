//! The room that outputs need on this machine.

use super::{ExportPlan, Plan, parts};
use crate::ids::ExportId;
use crate::stage::Stage;

/// Units of files that are here at once while outputs are uploaded: one is made while the one before it is sent.
const AT_ONCE: usize = 2;

impl Plan {
    /// Whether each weight file is uploaded as soon as it is made, and removed here. That needs outputs that all go to object stores,
    /// and no stage that reads the weights again.
    #[must_use]
    pub fn uploads_as_made(&self) -> bool {
        self.exports.iter().all(|export| export.store.is_some())
            && !self.recipe().stages.iter().any(|stage| matches!(stage, Stage::Evaluate(_)))
    }

    /// Bytes that an output needs on this machine while it is made, except for the report, the recipe and the index.
    #[must_use]
    pub fn room_needed(&self, id: ExportId) -> u64 {
        let export: &ExportPlan = &self.exports[id];
        match self.uploads_as_made() {
            true => export.other_bytes(&self.model) + self.room_of_uploads(id, parts::units(self).iter()),
            false => export.disk_needed(&self.model),
        }
    }

    /// Bytes of the weight files of an output that are here at once while these units are made and uploaded.
    pub(crate) fn room_of_uploads<'u>(
        &self,
        id: ExportId,
        units: impl Iterator<Item = &'u parts::Unit>,
    ) -> u64 {
        let of = |unit: &parts::Unit| -> u64 {
            let files = unit.files.iter().filter(|(export, _)| *export == id);
            files.map(|&(_, file)| self.exports[id].files[file].bytes).sum()
        };
        let mut bytes: Vec<u64> = units.map(of).collect();
        bytes.sort_unstable();
        bytes.iter().rev().take(AT_ONCE).sum()
    }
}
