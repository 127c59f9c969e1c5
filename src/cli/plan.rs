//! `monoquant plan`.

use serde::Serialize;
use serde_json::{Value, json};

use super::output::Output;
use super::recipe_args::planned;
use super::{Format, RecipeArgs};
use crate::exit::Exit;
use crate::finding::Failure;
use crate::plan::parts::shares;
use crate::show::plan;

/// A plan as JSON, with what its parts have to do if that is asked for.
#[derive(Serialize)]
struct Told<P> {
    #[serde(flatten)]
    plan: P,
    #[serde(skip_serializing_if = "Option::is_none")]
    parts: Option<Vec<Value>>,
}

pub(super) fn plan(
    args: &RecipeArgs,
    (json, parts): (bool, Option<u32>),
    output: &Output,
) -> Result<Exit, Failure> {
    let plan = planned(args)?;
    if parts.is_some() {
        crate::run::parts::check(&plan)?;
    }
    let shares = parts.map(|parts| shares(&plan, parts as usize));
    if json || output.format() == Format::Json {
        let share = |(files, bytes): (usize, u64)| json!({"files": files, "bytes": bytes});
        let parts = shares.map(|shares| shares.into_iter().map(share).collect());
        output.json(&Told { plan: plan::json(&plan)?, parts });
    } else {
        output.findings(&plan.warnings);
        let mut text = plan::text_at(&plan, output.width(), output.is_verbose());
        if let Some(shares) = &shares {
            text.push_str(&crate::show::parts::text(shares, output.width()));
        }
        output.result(&text);
    }
    crate::run::preflight(&plan)?;
    Ok(Exit::Done)
}
