//! Integration tests: one binary, a file a topic.

#![expect(clippy::disallowed_methods, reason = "tests make files and look at them")]

mod architecture;
mod bad_recipes;
mod calibration;
mod card;
mod compare;
mod corpora;
mod determinism;
mod engine_rules;
mod environment;
mod exit_codes;
mod expert_runs;
mod families;
mod float4;
mod float8;
mod gates;
mod golden;
mod hostile;
#[cfg(feature = "cloud")]
mod hub;
mod imatrix;
mod incremental;
mod init;
mod layers;
mod layouts;
mod left_behind;
mod library;
#[cfg(unix)]
mod limits;
mod model_runs;
mod network;
mod pages;
mod parts;
mod peer;
mod plan_errors;
mod prequantized;
mod publish;
mod published;
mod reading;
mod readme;
mod reports;
mod rounding;
mod run;
mod scales;
mod schema;
mod screen;
mod security_page;
mod served;
mod siblings;
mod signals;
mod skips;
mod sources;
mod statistics_files;
#[cfg(feature = "cloud")]
mod store_parts;
mod stores;
mod streaming;
mod support;
mod tokenizers;
mod trust;
mod verify;
mod watch;
mod workflows;
