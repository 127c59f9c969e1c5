//! The identity of a blob.

use std::fs::Metadata;

use serde::{Deserialize, Serialize};

use crate::fs::identity::FileIdentity;

/// Tells a blob from another one in its place without reading it. It is compared, hashed and recorded; only its source
/// knows what it is made of.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Identity {
    kind: Kind,
    /// The hash of its content, if its place is named by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    content: Option<String>,
}

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
        Self { kind: Kind::File(FileIdentity::of(metadata)), content: None }
    }

    /// The same of a file whose place is named by the hash of its content.
    #[must_use]
    pub fn with_content(self, hash: Option<String>) -> Self {
        Self { content: hash, ..self }
    }

    /// The identity of the same file by later metadata.
    #[must_use]
    pub fn by(&self, metadata: &Metadata) -> Self {
        Self::of_file(metadata).with_content(self.content.clone())
    }

    /// The identity of a blob whose source gives every version of it another name: an ETag, or a commit and a hash.
    #[must_use]
    pub fn of_version(version: impl Into<String>) -> Self {
        Self { kind: Kind::Version(version.into()), content: None }
    }

    /// What of it is the same on every machine that reads the blob, as a text.
    #[must_use]
    pub fn anywhere(&self) -> String {
        match &self.kind {
            Kind::File(file) => {
                if let Some(content) = &self.content {
                    return content.clone();
                }
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
        match &self.kind {
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

    #[test]
    fn elsewhere_a_file_is_known_by_its_hash_or_by_length_and_time() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str, seconds: u64| {
            let path = folder.path().join(name);
            std::fs::write(&path, "text").unwrap();
            let file = std::fs::File::options().write(true).open(&path).unwrap();
            file.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds)).unwrap();
            Identity::of_file(&std::fs::metadata(&path).unwrap())
        };
        let (one, copy, other) = (at("one", 9), at("copy", 9), at("other", 8));
        assert!(one.anywhere() == copy.anywhere() && one.anywhere() != other.anywhere());
        let with = |identity: &Identity, hash: &str| identity.clone().with_content(Some(hash.to_owned()));
        assert_eq!(with(&one, "ab").anywhere(), with(&other, "ab").anywhere());
        assert_ne!(with(&one, "ab").anywhere(), with(&copy, "cd").anywhere());
    }
}
