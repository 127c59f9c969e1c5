//! monoquant runs recipes: a YAML file, kept in version control, says how a Hugging Face model directory is quantized to INT4
//! or INT8, and one command does it.
//!
//! The flow, in the order of the modules:
//!
//! 1. [`recipe`]: what was written. Text becomes a typed [`recipe::Recipe`]; every mistake is found and shown at its word.
//! 2. [`stage`]: what each stage can say. The doc comments of its parameters are the reference and the JSON Schema.
//! 3. [`model`]: what is on disk. Headers, config, layer types ([`layer`]); positioned reads of weights.
//! 4. [`plan`]: what will be done. For every tensor a decision and the rule that made it, for every output byte its place.
//! 5. [`quant`]: the numbers. Scales, zero points, codes, packing, distortion; pure functions on slices.
//! 6. [`run`]: doing it. One pass over the weights in tiles, then the gates.
//! 7. [`export`]: what is left behind. A staged directory, published in one step.
//! 8. [`report`]: what is told, to people and to programs.
//!
//! ```no_run
//! use monoquant::{plan, recipe, run};
//!
//! # fn main() -> Result<(), monoquant::finding::Failure> {
//! let loaded = recipe::load(std::path::Path::new("recipes/llama-int4.yaml"), &recipe::Overrides::default())?;
//! let plan = plan::plan(loaded, plan::Limits::default())?;
//! let outcome = run::run(&plan, &run::Options::default(), &run::Silent)?;
//! println!("{}", outcome.report.verdict.summary);
//! # Ok(())
//! # }
//! ```

pub mod calibration;
pub mod cancel;
pub mod cli;
pub mod digest;
pub mod exit;
pub mod finding;
pub mod format;
pub mod fs;
pub mod gates;
pub mod layer;
pub mod model;
pub mod plan;
pub mod publish;
pub mod quant;
pub mod recipe;
pub mod report;
pub mod run;
pub mod show;
pub mod stage;
mod sync;
pub mod text;
mod threads;
pub mod watch;
