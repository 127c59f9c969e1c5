//! `monoquant fix`.

use clap::Args;
use serde_json::json;
use similar::TextDiff;

use super::output::Output;
use super::recipe_args::{limits, loaded};
use super::run::listener;
use super::signals::Signals;
use super::workspace::from_root;
use super::{Format, RecipeArgs};
use crate::exit::Exit;
use crate::finding::{Failure, diagnostics};
use crate::recipe::Overrides;
use crate::run::Options;
use crate::run::fix::{self, Mend};
use crate::text::units::{bytes, decibels};

#[derive(Debug, Args)]
pub(super) struct FixArgs {
    #[command(flatten)]
    recipe: RecipeArgs,
}

pub(super) fn fix(args: &FixArgs, output: &Output, signals: &Signals) -> Result<Exit, Failure> {
    let options = Options::default();
    let listener = listener(output);
    let running = signals.running(&options.cancel);
    let loaded = loaded(&args.recipe)?;
    let follow_links = args.recipe.links.follow_links.clone();
    let overrides = Overrides { follow_links, ..args.recipe.overrides.overrides() };
    let found = fix::fix(&loaded, &overrides, limits(&args.recipe), &options, listener.as_ref())?;
    drop(listener);
    drop(running);
    let is_json = output.format() == Format::Json;
    let found = match found {
        Mend::NotNeeded => {
            if is_json {
                output.json(&json!({"change": null, "patch": null, "findings": []}));
            } else if !output.is_quiet() {
                output.say("every gate passes: there is nothing to mend");
            }
            return Ok(Exit::Done);
        }
        Mend::None(before) => return Err(fix::none(before)),
        Mend::Found(found) => found,
    };
    let name = from_root(&args.recipe.recipe);
    let diff = TextDiff::from_lines(loaded.source.text.as_str(), &found.text);
    let patch = diff.unified_diff().header(&format!("a/{name}"), &format!("b/{name}")).to_string();
    if is_json {
        output.json(&json!({
            "change": found.words,
            "patch": patch,
            "bytes": {"before": found.bytes.0, "after": found.bytes.1},
            "sqnr_db": {"before": found.sqnr_db.0, "after": found.sqnr_db.1},
            "findings": diagnostics(&found.before),
        }));
        return Ok(Exit::Done);
    }
    if !output.is_quiet() {
        output.say(&format!(
            "{}: {} → {}, SQNR {} → {}; every gate passes with this change",
            found.words,
            bytes(found.bytes.0),
            bytes(found.bytes.1),
            decibels(found.sqnr_db.0),
            decibels(found.sqnr_db.1)
        ));
    }
    output.result_unbroken(&patch);
    Ok(Exit::Done)
}
