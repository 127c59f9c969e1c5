//! The identity of a blob.

use std::fs::Metadata;

use serde::{Deserialize, Serialize};

use crate::fs::identity::FileIdentity;

/// Tells a blob from another one in its place without reading it. It is compared, hashed and recorded; only its source
/// knows what it is made of.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Identity(Kind);

#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Kind {
    File(FileIdentity),
    Version(String),
}

impl Identity {
    /// The identity of a file, by its metadata.
    #[must_use]
    pub fn of_file(metadata: &Metadata) -> Self {
        Self(Kind::File(FileIdentity::of(metadata)))
    }

    /// The identity of a blob whose source gives every version of it another name: an ETag, or a commit and a hash.
    #[must_use]
    pub fn of_version(version: impl Into<String>) -> Self {
        Self(Kind::Version(version.into()))
    }

    /// What of it is the same on every machine that reads the blob, as a text.
    #[must_use]
    pub fn anywhere(&self) -> String {
        match &self.0 {
            Kind::File(file) => {
                let (len, mtime_ns) = file.anywhere();
                format!("{len} {mtime_ns}")
            }
            Kind::Version(version) => version.clone(),
        }
    }

    /// Whether any change after it was looked at shows in the identity. That of a file that has just been written may
    /// stay the same.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        match &self.0 {
            Kind::File(file) => file.is_settled(),
            Kind::Version(_) => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_survive_a_record() {
        let metadata = std::fs::metadata(env!("CARGO_MANIFEST_DIR")).unwrap();
        for identity in [Identity::of_file(&metadata), Identity::of_version("\"abc\"")] {
            let text = serde_json::to_string(&identity).unwrap();
            assert_eq!(serde_json::from_str::<Identity>(&text).unwrap(), identity, "{text}");
        }
        assert_ne!(Identity::of_version("a"), Identity::of_version("b"));
    }
}
