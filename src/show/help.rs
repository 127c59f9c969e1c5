//! The help of findings as terminals and logs show it.

use crate::finding::Finding;
use crate::text;

/// The lines of a finding's help as a terminal or a log shows them, with something between two of them.
pub(super) fn visible_help(finding: &Finding, between: &str) -> String {
    finding.help.iter().map(|line| text::visible(line)).collect::<Vec<_>>().join(between)
}
