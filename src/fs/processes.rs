//! Processes and starts of the system, as the files of the kernel show them. Empty if it has no such files.

use std::fs;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use super::regular::{self, limit};

fn word(path: &str) -> Option<String> {
    regular::read_text(Path::new(path), limit::WORD).ok().map(|text| text.trim().to_owned())
}

/// The name of this machine.
#[must_use]
pub(crate) fn host() -> String {
    word("/proc/sys/kernel/hostname").unwrap_or_default()
}

/// A name that no other process uses, on any machine.
#[must_use]
pub(crate) fn own_name() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    let text = format!("{} {} {now}", host(), std::process::id());
    format!("work-{}", &blake3::hash(text.as_bytes()).to_hex()[..16])
}

/// An identifier of the current start of the system.
#[must_use]
pub(crate) fn boot() -> String {
    word("/proc/sys/kernel/random/boot_id").unwrap_or_default()
}

/// The start of the system and the name space that a process number belongs to.
#[must_use]
pub(crate) fn place() -> String {
    match (boot(), fs::read_link("/proc/self/ns/pid")) {
        (boot, Ok(space)) if !boot.is_empty() && started(std::process::id()).is_some() => {
            format!("{boot} {}", space.display())
        }
        _ => String::new(),
    }
}

/// The start time of a process. None if no process with this number is alive.
#[must_use]
pub(crate) fn started(process: u32) -> Option<String> {
    let text = word(&format!("/proc/{process}/stat"))?;
    // The name in the second field may hold blanks and brackets; the start is the 22nd field.
    let (_, fields) = text.rsplit_once(')')?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    // A process that has ended stays in the table until its parent asks what became of it.
    let has_ended = fields.first().is_none_or(|state| ["Z", "X", "x"].contains(state));
    fields.get(19).filter(|_| !has_ended).map(|started| (*started).to_owned())
}
