//! Troubles with a source that is not on this machine.

use std::io::{self, ErrorKind};

use super::code;
use crate::finding::Finding;

/// The error of a source that is reached over a network, in words for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct Trouble {
    /// The code of its finding: [`code::UNREACHABLE`] for what may be tried again, or another one of [`code`].
    pub code: &'static str,
    /// What is wrong, behind the name of what was to be read.
    pub what: String,
    /// What to do, in full sentences.
    pub help: String,
}

impl Trouble {
    /// A trouble that may be over when the command is run again.
    #[must_use]
    pub fn temporary(what: impl Into<String>) -> Self {
        let help = "The network or the store may be busy; the same command may succeed later.";
        Self { code: code::UNREACHABLE, what: what.into(), help: help.to_owned() }
    }

    /// The trouble that an error is, if it is one.
    #[must_use]
    pub fn of(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref()
    }

    /// Its finding about a place.
    #[must_use]
    pub fn finding(&self, place: &str) -> Finding {
        Finding::error(self.code, format!("cannot read `{place}`: {self}")).help(self.help.clone())
    }
}

impl From<Trouble> for io::Error {
    fn from(trouble: Trouble) -> Self {
        let kind = match trouble.code {
            code::NOT_FOUND => ErrorKind::NotFound,
            code::DENIED => ErrorKind::PermissionDenied,
            _ => ErrorKind::Other,
        };
        Self::new(kind, trouble)
    }
}

/// An error that is another one's likeness: several threads may have waited for the same bytes.
pub(super) fn likeness(error: &io::Error) -> io::Error {
    use crate::fs::handles::Replaced;
    match Trouble::of(error) {
        Some(trouble) => trouble.clone().into(),
        None if Replaced::is(error) => Replaced.into(),
        None => io::Error::new(error.kind(), error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::handles::Replaced;

    #[test]
    fn likenesses_are_told_like_the_first() {
        let error: io::Error = Trouble::temporary("it sleeps").into();
        let again = likeness(&error);
        assert_eq!(Trouble::of(&again), Trouble::of(&error));
        assert_eq!(again.to_string(), "it sleeps");
        assert!(Replaced::is(&likeness(&Replaced.into())));
        let plain = likeness(&io::Error::new(ErrorKind::UnexpectedEof, "short"));
        assert_eq!((plain.kind(), plain.to_string().as_str()), (ErrorKind::UnexpectedEof, "short"));
    }
}
