//! Recipes: YAML text becomes a typed [`Recipe`], or findings at the exact words.
//!
//! One parse gives a located tree in which every key and value knows its bytes. The tree gives the JSON value that
//! the schema checks, and that same value becomes the recipe. No weights and no model folder are touched here.

pub(crate) mod check;
mod editor;
mod environment;
pub(crate) mod load;
pub(crate) mod model;
mod order;
mod overrides;
pub(crate) mod places;
pub mod reference;
pub(crate) mod schema;
mod statistics;
mod text;
pub(crate) mod to_yaml;
mod tree;
pub(crate) mod unused_parameters;
mod written;

pub use crate::recipe::to_yaml::{emit, emit_with};
pub use load::{Loaded, from_text, load};
pub use model::Recipe;
pub use overrides::Overrides;
pub use schema::{schema, schema_text};
pub use text::text_of;
pub use written::Written;
pub(crate) use written::public_path;
#[cfg(feature = "cli")]
pub(crate) use {overrides::seen_from, text::MAX_BYTES};
