//! Layer classes: the inferred kind and role of a tensor, and the rules that gave them.

use crate::layer::LayerType;

/// The inferred class of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerClass {
    /// Its kind.
    pub kind: LayerType,
    /// The rule that gave the kind.
    pub kind_rule: Because,
    /// Its role, if it has one.
    pub role: Option<LayerType>,
    /// The rule that gave the role.
    pub role_rule: Option<Because>,
}

/// The rule that gave a kind or a role: its place in one of the tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Because {
    /// That of a kind.
    Kind(u8),
    /// That of a role.
    Role(u8),
    /// The recipe says so.
    Recipe,
}
