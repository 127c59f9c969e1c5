//! `monoquant clean`.

use serde_json::json;

use super::output::Output;
use super::{CleanArgs, Format};
use crate::exit::Exit;
use crate::finding::Failure;
use crate::fs::exclusive::{self, Kind};
use crate::publish::files::cannot_write;
use crate::publish::lock::Lock;
use crate::publish::{hidden, staging};
use crate::stage::Stage;
use crate::text::units::counted;

pub(super) fn clean(args: &CleanArgs, output: &Output) -> Result<Exit, Failure> {
    let loaded = crate::recipe::load(&args.recipe, &args.overrides.overrides())?;
    crate::run::restore(&loaded)?;
    let mut removed = 0;
    for stage in &loaded.recipe.stages {
        let Stage::Export(export) = stage else { continue };
        let path = crate::plan::normalized(&loaded.output_path(&export.path));
        let lock = Lock::take(&path)?;
        let remains = [hidden::staging(&path), hidden::interrupted(&path), hidden::journal(&path)];
        removed += remains.iter().filter(|path| exclusive::is_there(path)).count();
        staging::clear(&path);
        let caches = [hidden::statistics(&path), hidden::evaluation(&path)];
        for file in caches.into_iter().chain((0..2).map(|model| hidden::activations(&path, model))) {
            if exclusive::kind(&file).is_ok_and(|kind| kind == Kind::File) {
                exclusive::remove_file(&file).map_err(|error| cannot_write("remove", &file, &error))?;
                removed += 1;
            }
        }
        for folder in [hidden::rounding(&path), hidden::parts(&path), hidden::trial(&path)] {
            if exclusive::kind(&folder).is_ok_and(|kind| kind == Kind::Folder) {
                exclusive::remove_folder(&folder).map_err(|error| cannot_write("remove", &folder, &error))?;
                removed += 1;
            }
        }
        drop(lock);
    }
    if output.format() == Format::Json {
        output.json(&json!({"removed": removed}));
    } else if !output.is_quiet() {
        output.result(&format!("{} removed", counted(removed, "thing")));
    }
    Ok(Exit::Done)
}
