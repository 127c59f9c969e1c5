//! The committed schema is the generated one, and the shipped recipes satisfy it without a warning.

use std::path::PathBuf;

use monoquant::recipe::{self, Overrides, schema, schema_text};

use crate::support::{assert_reviewed, root};

const MODELINE: &str = "# yaml-language-server: $schema=../schemas/recipe.schema.json";

fn shipped() -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = root()
        .join("recipes")
        .read_dir()
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .collect();
    paths.sort();
    assert!(paths.len() >= 7, "only {} recipes", paths.len());
    paths
}

#[test]
fn the_committed_schema_is_up_to_date() {
    assert_reviewed("schemas/recipe.schema.json", &schema_text());
}

#[test]
fn the_committed_reference_is_up_to_date() {
    assert_reviewed("docs/reference.md", &recipe::reference::reference_text());
}

#[test]
fn shipped_recipes_load_without_a_warning() {
    for path in shipped() {
        let text = std::fs::read_to_string(&path).unwrap();
        let mut lines = text.lines();
        assert_eq!(lines.next(), Some(MODELINE), "{}", path.display());
        assert!(
            lines.next().is_some_and(|line| line.starts_with("# ")),
            "{} says not when to choose it",
            path.display()
        );
        let loaded = recipe::load(&path, &Overrides::default()).unwrap_or_else(|failure| panic!("{failure}"));
        assert!(loaded.warnings.is_empty(), "{}: {:?}", path.display(), loaded.warnings);
        let stem = path.file_stem().unwrap().to_str().unwrap();
        assert_eq!(loaded.recipe.name.as_deref(), Some(stem));
    }
}

#[test]
fn shipped_recipes_satisfy_the_schema_in_another_yaml_reader() {
    // Read by the YAML writer's own reader, so that the recipes do not depend on how the located reader types scalars.
    let validator = jsonschema::validator_for(&schema()).unwrap();
    for path in shipped() {
        let text = std::fs::read_to_string(&path).unwrap();
        let value: serde_json::Value = serde_yaml::from_str(&text).unwrap();
        let errors: Vec<String> = validator.iter_errors(&value).map(|error| error.to_string()).collect();
        assert!(errors.is_empty(), "{}: {errors:?}", path.display());
    }
}
