//! A recipe: from a pull request, and the overrides of a command line.

use std::path::Path;

use monoquant::plan;
use monoquant::recipe::{self, Loaded, Overrides};
use monoquant::stage::Stage;

use super::folder::{self, Folder};
use super::{Target, findings};

/// A recipe's text. Lines that begin with `#set ` are overrides. What is loaded is written out and read again, which gives the
/// same recipe; it is planned for a small model.
pub struct Recipe(Folder);

impl Target for Recipe {
    fn new() -> Self {
        Self(Folder::new())
    }

    fn try_on(&self, input: &[u8]) {
        let text = String::from_utf8_lossy(input);
        let set = text.lines().filter_map(|line| line.strip_prefix("#set ")).map(str::to_owned);
        let overrides = Overrides { set: set.take(4).collect(), ..Overrides::default() };
        let env = |name: &str| match name {
            "EMPTY" => Some(String::new()),
            "HOME" => Some("/home/é ${HOME}".to_owned()),
            "SIZE" => Some("64".to_owned()),
            _ => None,
        };
        let base = self.0.path("");
        match recipe::from_text("recipe.yaml", &text, &base, &overrides, &env) {
            Ok(loaded) => {
                findings::check(&loaded.warnings);
                assert!(!loaded.warnings.iter().any(monoquant::finding::Finding::is_error));
                check_places(&loaded);
                check_written(&loaded, &base);
                self.plan(loaded);
            }
            Err(failure) => findings::check_failure(&failure),
        }
    }
}

impl Recipe {
    /// Plans the recipe for the small model: only what it says of files is replaced.
    fn plan(&self, mut loaded: Loaded) {
        for (index, stage) in loaded.recipe.stages.iter_mut().enumerate() {
            match stage {
                Stage::Load(load) => {
                    load.model = "model".to_owned();
                    load.calibration = None;
                }
                Stage::QuantizeInt4(stage) => stage.calibration = None,
                Stage::QuantizeInt8(stage) => stage.calibration = None,
                Stage::Export(export) => export.path = format!("out-{index}"),
                _ => {}
            }
        }
        match plan::plan(loaded, folder::limits()) {
            Ok(plan) => folder::check_plan(&plan),
            Err(failure) => findings::check_failure(&failure),
        }
    }
}

fn check_places(loaded: &Loaded) {
    for index in 0..=loaded.recipe.stages.len() {
        for pointer in [format!("/stages/{index}"), format!("/stages/{index}/targets/0"), "/name".to_owned()]
        {
            for place in [loaded.place(&pointer), loaded.key_place(&pointer)].into_iter().flatten() {
                assert!(place.start <= place.end && place.end <= place.source.text.len());
            }
            let _ = loaded.says(&pointer);
        }
    }
}

/// Written out and read again, with no variable and no override, it is the same recipe.
fn check_written(loaded: &Loaded, base: &Path) {
    let text = recipe::emit(&loaded.recipe).expect("a recipe can be written");
    let again = recipe::from_text("again.yaml", &text, base, &Overrides::default(), &|_| None);
    let again = again.unwrap_or_else(|failure| panic!("{failure}\n{text}"));
    assert_eq!(again.recipe, loaded.recipe, "{text}");
}
