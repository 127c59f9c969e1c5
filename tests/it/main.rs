//! Integration tests: one binary, a file a topic.

mod architecture;
mod bad_recipes;
mod calibration;
mod determinism;
mod engine_rules;
mod exit_codes;
mod families;
mod gates;
mod golden;
mod hostile;
mod imatrix;
mod incremental;
mod layers;
mod library;
mod peer;
mod plan_errors;
mod publish;
mod readme;
mod run;
mod schema;
mod skips;
mod sources;
mod statistics_files;
mod streaming;
mod support;
mod watch;
