//! What holds for the mesh as a whole.

use crate::path::Normalization;

/// What every proxy of the mesh does alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MeshWide {
    /// How paths are normalised before they are matched and forwarded.
    pub normalization: Normalization,
}
