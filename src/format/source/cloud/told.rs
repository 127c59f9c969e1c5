//! Errors of object stores, in words for people.

use std::io;

use object_store::Error;

use crate::format::source::{Trouble, code};
use crate::fs::handles::Replaced;

/// The text between two words.
fn between<'t>(text: &'t str, before: &str, after: &str) -> Option<&'t str> {
    let (_, rest) = text.split_once(before)?;
    rest.split_once(after).map(|(found, _)| found)
}

/// An error and all that caused it, as one text.
fn whole(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}

/// An error of a store as one of a read.
pub(super) fn told(error: &Error) -> io::Error {
    match error {
        Error::Precondition { .. } => Replaced.into(),
        other => trouble(other).into(),
    }
}

/// An error of a store, told by the status and the code of its answer.
pub(crate) fn trouble(error: &Error) -> Trouble {
    let text = whole(error);
    let status = between(&text, "status code: ", " ").and_then(|status| status.parse::<u16>().ok());
    let said = between(&text, "<Code>", "</Code>").unwrap_or_default();
    let answer = match (status, said) {
        (Some(status), "") => format!("the store answered with status {status}"),
        (Some(status), said) => format!("the store answered {said} (status {status})"),
        (None, "") => text.clone(),
        (None, said) => format!("the store answered {said}"),
    };
    let of = |code, what: &str, help: &str| Trouble {
        code,
        what: format!("{what}: {answer}"),
        help: help.to_owned(),
    };
    let denied = |what: &str, help: &str| of(code::DENIED, what, help);
    match said {
        "NoSuchBucket" => {
            return of(
                code::NOT_FOUND,
                "there is no such bucket",
                "Check its name, and the endpoint or region.",
            );
        }
        "ExpiredToken" | "ExpiredTokenException" | "TokenRefreshRequired" => {
            return denied("the credentials have expired", "Renew them, and run the command again.");
        }
        "InvalidAccessKeyId" | "SignatureDoesNotMatch" | "InvalidToken" | "AuthorizationHeaderMalformed" => {
            return denied(
                "the credentials are wrong",
                "Check the key, the secret and the region in the environment.",
            );
        }
        "PermanentRedirect" => {
            return of(
                code::IO,
                "the bucket is in another region",
                "Set `AWS_REGION` to the region of the bucket.",
            );
        }
        _ => {}
    }
    if text.contains("169.254.169.254") || text.contains("metadata.google") {
        return no_credentials();
    }
    match (error, status) {
        (Error::PermissionDenied { .. } | Error::Unauthenticated { .. }, _) | (_, Some(401 | 403)) => denied(
            "access is denied",
            "The credentials of the environment need the right to list and to read it, and for an output to write and delete there.",
        ),
        (Error::NotFound { .. }, _) | (_, Some(404)) => {
            of(code::NOT_FOUND, "it is not there", "Check the name.")
        }
        (_, Some(301 | 307)) => {
            of(code::IO, "the bucket is in another region", "Set `AWS_REGION` to the region of the bucket.")
        }
        (_, Some(status)) if status < 500 && status != 408 && status != 429 => {
            of(code::IO, "the store refused the request", "Check the name, the endpoint and the region.")
        }
        (Error::Generic { .. }, _) if text.contains("URL scheme is not allowed") => of(
            code::IO,
            "the endpoint is not encrypted",
            "Use an endpoint with `https://`, or allow it with `AWS_ALLOW_HTTP=true`.",
        ),
        _ => Trouble::temporary(answer),
    }
}

/// That the environment names no credentials, and this machine has none of its own.
pub(super) fn no_credentials() -> Trouble {
    Trouble {
        code: code::DENIED,
        what: "there are no credentials for it".to_owned(),
        help: "Set `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY` (profiles of ~/.aws are not read: \
               `aws configure export-credentials --format env` prints them), or `AWS_SKIP_SIGNATURE=true` for a public bucket. \
               Roles of containers and instances are found by themselves."
            .to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Trouble {
        trouble(&Error::Generic { store: "S3", source: text.to_owned().into() })
    }

    #[test]
    fn answers_are_told_by_code_and_status() {
        let answer = |status: &str, code: &str| {
            of(&format!(
                "Error performing GET http://x in 3ms, after 10 retries, max_retries: 10, retry_timeout: 60s  - Server \
                 returned non-2xx status code: {status}: <?xml version='1.0'?><Error><Code>{code}</Code></Error>"
            ))
        };
        let busy = answer("503 Service Unavailable", "SlowDown");
        assert_eq!(
            (busy.code, busy.what.as_str()),
            (code::UNREACHABLE, "the store answered SlowDown (status 503)")
        );
        assert_eq!(answer("404 Not Found", "NoSuchBucket").code, code::NOT_FOUND);
        for said in ["ExpiredToken", "InvalidAccessKeyId", "AccessDenied"] {
            let trouble = answer("403 Forbidden", said);
            assert_eq!(trouble.code, code::DENIED);
            assert!(trouble.what.contains(said), "{trouble}");
        }
        assert!(answer("403 Forbidden", "ExpiredToken").what.contains("expired"));
        assert_eq!(of("error sending request: connection refused").code, code::UNREACHABLE);
        assert!(of("PUT http://169.254.169.254/latest/api/token").what.contains("no credentials"));
    }

    #[test]
    fn another_version_is_told_as_such() {
        let error = Error::Precondition { path: "a".into(), source: "412".into() };
        assert!(Replaced::is(&told(&error)));
    }
}
