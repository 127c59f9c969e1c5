//! Recipe-driven weight quantization: a YAML file, kept in version control, says how a Hugging Face model directory
//! is quantized to INT4 or INT8, and one command does it.
//!
//! The flow of a recipe through the folders; `docs/architecture.md` draws it:
//!
//! 1. [`recipe`]: text becomes a typed [`recipe::Recipe`]; every mistake is found and shown at its word.
//! 2. [`stage`]: parameters of the stages. Their doc comments are the reference and the JSON Schema.
//! 3. [`model`]: headers, config, layer types ([`layer`]); positioned reads of weights.
//! 4. [`mod@format`]: how a matrix is stored (encodings), and how tensors lie in files (containers).
//! 5. [`plan`]: for every tensor a decision and the rule that made it, for every output byte its place.
//! 6. [`quant`]: scales, zero points, codes, packing, distortion; pure functions on slices.
//! 7. [`run`]: one pass over the weights in tiles.
//! 8. [`gates`]: the verdict on what was measured.
//! 9. [`publish`]: a staged directory, published in one step.
//! 10. [`report`]: the results as data; [`show`] and `watch` present them to people.
//!
//! The feature `cli`, which is on by default, adds the command line and `watch`. Without it nothing for terminals is linked.
//!
//! Beside them, [`network`] runs a model layer by layer in F32.
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
#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests make files and look at them"))]
#![deny(unreachable_pub)]

pub mod calibration;
pub mod cancel;
#[cfg(feature = "cli")]
pub mod cli;
pub mod digest;
pub mod exit;
pub mod finding;
pub mod format;
pub mod fs;
pub mod gates;
pub mod ids;
pub mod layer;
pub mod model;
#[expect(
    clippy::too_many_arguments,
    reason = "the mathematics take matrices, their sizes and their steps one by one"
)]
pub mod network;
pub mod plan;
pub mod publish;
#[expect(
    clippy::too_many_arguments,
    reason = "kernels take slices, sizes and tables one by one, so that they stay in registers"
)]
pub mod quant;
pub mod recipe;
pub mod report;
pub mod run;
pub mod show;
pub mod stage;
mod sync;
pub mod text;
mod threads;
#[cfg(feature = "cli")]
pub mod watch;
