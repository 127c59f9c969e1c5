//! What several topics need.

pub mod headers;
