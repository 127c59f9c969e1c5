//! The sources in object stores: `s3://bucket/prefix` and `gs://bucket/prefix`.

use super::{Opened, Scheme};

/// A prefix in a bucket of S3, or of a service that speaks like it.
pub(super) const S3: Scheme = scheme("s3://");

/// A prefix in a bucket of Google Cloud Storage.
pub(super) const GS: Scheme = scheme("gs://");

const fn scheme(prefix: &'static str) -> Scheme {
    Scheme { prefix, path: |_, _| Ok(None), arrives: |_| Vec::new(), open: |word, _, _| open(word) }
}

#[cfg(feature = "cloud")]
fn open(word: &str) -> Opened {
    super::cloud::objects::open(word)
}

#[cfg(not(feature = "cloud"))]
fn open(word: &str) -> Opened {
    use super::code;
    use crate::exit::Exit;
    use crate::finding::{Failure, Finding};

    let message = format!("`{word}`: this build of monoquant does not read from object stores");
    let finding = Finding::error(code::NOT_BUILT, message).help(
        "Build it with `cargo build --release --locked --features cloud`, or give the folder of a copy.",
    );
    Err(Failure::new(Exit::BadModel, finding))
}

#[cfg(all(test, not(feature = "cloud")))]
mod tests {
    use super::*;

    #[test]
    fn a_build_without_the_feature_says_how_to_have_it() {
        let failure = open("s3://bucket/model").unwrap_err();
        assert!(failure.findings[0].help.join("").contains("--features cloud"), "{failure}");
    }
}
