//! Integration tests: one binary, a file a topic.

mod bad_recipes;
mod golden;
mod layers;
mod schema;
mod support;
