//! The source that is a model of the Hub, `hf://org/name@revision`: a snapshot in the local cache, or else, in builds with
//! the feature `cloud`, the Hub itself.
//!
//! Nothing is downloaded into the cache. Its layout is that of `huggingface_hub`: `models--ORG--NAME/refs/REVISION` holds a
//! commit, `models--ORG--NAME/snapshots/COMMIT` its files. They are read as those of any folder.
#![expect(clippy::disallowed_methods, reason = "this is the source that looks into the cache")]

use std::env;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::{Opened, Scheme, code, folder};
use crate::exit::Exit;
use crate::finding::{Failure, Finding, nearest};
use crate::fs::regular::{self, limit};

/// The prefix of a model in the Hub cache.
const PREFIX: &str = "hf://";

/// A name on the Hub, with or without a revision.
pub(super) const SCHEME: Scheme = Scheme {
    prefix: PREFIX,
    path: |word, _| match find(word) {
        Ok(snapshot) => Ok(Some(snapshot)),
        Err(absent) if absent.may_be_at_the_hub() => Ok(None),
        Err(absent) => Err(absent.failure),
    },
    arrives,
    open: |word, _, follow| match find(word) {
        Ok(snapshot) => folder::open(&snapshot, follow),
        Err(absent) if absent.may_be_at_the_hub() => from_the_hub(word),
        Err(absent) => Err(absent.failure),
    },
};

/// Why there is no snapshot.
#[derive(Debug)]
struct Absent {
    failure: Failure,
    /// Whether the name is one, and only the cache does not have the model.
    is_not_cached: bool,
}

impl Absent {
    fn may_be_at_the_hub(&self) -> bool {
        cfg!(feature = "cloud") && self.is_not_cached && !is_offline()
    }
}

impl From<Failure> for Absent {
    fn from(failure: Failure) -> Self {
        Self { failure, is_not_cached: false }
    }
}

/// Whether the environment forbids to ask the Hub.
fn is_offline() -> bool {
    let value = env::var("HF_HUB_OFFLINE").unwrap_or_default();
    ["1", "on", "true", "yes"].contains(&value.to_ascii_lowercase().as_str())
}

/// The model at the Hub that a word stands for. Its name was looked at.
#[cfg(feature = "cloud")]
fn from_the_hub(word: &str) -> Opened {
    let name = word.strip_prefix(PREFIX).unwrap_or(word);
    let (repository, revision) = name.split_once('@').unwrap_or((name, "main"));
    super::cloud::hub::open(word, repository, revision)
}

#[cfg(not(feature = "cloud"))]
fn from_the_hub(word: &str) -> Opened {
    folder::open(&find(word).map_err(|absent| absent.failure)?, &[])
}

/// The cache, by the environment.
fn cache() -> Option<PathBuf> {
    cache_folder(|key| env::var_os(key).filter(|v| !v.is_empty()).map(PathBuf::from))
}

/// The folders of a repository in which a download puts references and snapshots.
fn arrives(word: &str) -> Vec<PathBuf> {
    let name = word.strip_prefix(PREFIX).unwrap_or(word);
    let (repository, _) = name.split_once('@').unwrap_or((name, ""));
    let (Some(cache), Some(parts)) = (cache(), parts(repository)) else { return Vec::new() };
    let folder = repository_folder(&cache, &parts);
    vec![folder.join("snapshots"), folder.join("refs")]
}

/// The snapshot that a word stands for.
fn find(word: &str) -> Result<PathBuf, Absent> {
    let name = word.strip_prefix(PREFIX).unwrap_or(word);
    match cache() {
        Some(cache) => snapshot(name, &cache),
        None => Err(fail(
            Finding::error(
                code::NOT_FOUND,
                format!("`{word}`: there is no home folder to find the Hub cache in"),
            )
            .help("Set `HF_HUB_CACHE` to the folder of the cache."),
        )
        .into()),
    }
}

/// The folder of the Hub cache, by the variables that `huggingface_hub` reads, in its order.
fn cache_folder(variable: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    let home = || variable("HOME").or_else(|| variable("USERPROFILE"));
    variable("HF_HUB_CACHE")
        .or_else(|| variable("HUGGINGFACE_HUB_CACHE"))
        .or_else(|| variable("HF_HOME").map(|folder| folder.join("hub")))
        .or_else(|| variable("XDG_CACHE_HOME").map(|folder| folder.join("huggingface/hub")))
        .or_else(|| home().map(|folder| folder.join(".cache/huggingface/hub")))
}

/// Whether a text can be the part of a name, or a folder's.
fn is_name(part: &str) -> bool {
    !part.is_empty()
        && !part.starts_with('.')
        && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
}

/// The parts of a repository's name. None if it is no name.
fn parts(repository: &str) -> Option<Vec<&str>> {
    let parts: Vec<&str> = repository.split('/').collect();
    (parts.len() <= 2 && parts.iter().all(|part| is_name(part))).then_some(parts)
}

fn repository_folder(cache: &Path, parts: &[&str]) -> PathBuf {
    cache.join(format!("models--{}", parts.join("--")))
}

/// The snapshot of `name`, which is `org/name` or `org/name@revision`, in a cache.
fn snapshot(name: &str, cache: &Path) -> Result<PathBuf, Absent> {
    let (repository, revision) = name.split_once('@').unwrap_or((name, "main"));
    let Some(parts) = parts(repository) else {
        return Err(fail(
            Finding::error(code::NOT_FOUND, format!("`{PREFIX}{name}` does not name a model of the Hub"))
                .help("Write `hf://org/name` or `hf://org/name@revision`."),
        )
        .into());
    };
    // A revision may have slashes (`refs/pr/1`), but must stay below the folder.
    if !revision.split('/').all(is_name) {
        return Err(fail(Finding::error(
            code::NOT_FOUND,
            format!("`{revision}` cannot be a revision of a model"),
        ))
        .into());
    }
    let download = if revision == "main" {
        format!("hf download {repository}")
    } else {
        format!("hf download {repository} --revision {revision}")
    };
    let folder = repository_folder(cache, &parts);
    let reference = folder.join("refs").join(revision);
    let unreadable = |why: String| {
        let message = format!("`{}` does not say which snapshot to read: {why}", reference.display());
        fail(Finding::error(code::IO, message).help(format!("Get the model again with `{download}`.")))
    };
    let commit = match regular::read_text(&reference, limit::WORD) {
        Ok(commit) => commit.trim().to_owned(),
        // A revision may be a commit itself.
        Err(error) if error.kind() == ErrorKind::NotFound && !reference.is_symlink() => revision.to_owned(),
        Err(error) => return Err(unreadable(error.to_string()).into()),
    };
    if commit.is_empty() {
        return Err(unreadable("it is empty".to_owned()).into());
    }
    if !is_name(&commit) && commit != revision {
        return Err(unreadable("it holds no name".to_owned()).into());
    }
    let snapshot = folder.join("snapshots").join(&commit);
    if is_name(&commit) && snapshot.is_dir() {
        return Ok(snapshot);
    }
    let message = format!("`{PREFIX}{name}` is not in the Hub cache at `{}`", cache.display());
    let how = match (cfg!(feature = "cloud"), is_offline()) {
        (true, true) => {
            format!("`HF_HUB_OFFLINE` is set, so the Hub is not asked; get it with `{download}`.")
        }
        _ => format!("Nothing is downloaded by itself; get it with `{download}`."),
    };
    let mut finding = Finding::error(code::NOT_FOUND, message).help(how);
    if let Some(near) = near_repository(&parts.join("--"), cache) {
        finding = finding.help(format!("The cache has `{PREFIX}{near}`."));
    }
    Err(Absent { failure: fail(finding), is_not_cached: true })
}

/// The model in the cache whose name is nearest.
fn near_repository(wanted: &str, cache: &Path) -> Option<String> {
    let mut names: Vec<String> = fs::read_dir(cache)
        .ok()?
        .flatten()
        .filter_map(|entry| Some(entry.file_name().to_str()?.strip_prefix("models--")?.to_owned()))
        .filter(|name| name != wanted)
        .collect();
    names.sort();
    nearest(wanted, names.iter().map(String::as_str)).map(|name| name.replacen("--", "/", 1))
}

fn fail(finding: Finding) -> Failure {
    Failure::new(Exit::BadModel, finding)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache() -> tempfile::TempDir {
        let cache = tempfile::tempdir().unwrap();
        let model = cache.path().join("models--org--tiny");
        fs::create_dir_all(model.join("refs/refs/pr")).unwrap();
        for commit in ["aaaa", "bbbb"] {
            fs::create_dir_all(model.join("snapshots").join(commit)).unwrap();
        }
        fs::write(model.join("refs/main"), "aaaa\n").unwrap();
        fs::write(model.join("refs/refs/pr/1"), "bbbb").unwrap();
        fs::write(model.join("refs/gone"), "cccc").unwrap();
        fs::write(model.join("refs/evil"), "../../..").unwrap();
        cache
    }

    #[test]
    fn revisions_lead_to_snapshots() {
        let cache = cache();
        for (name, commit) in
            [("org/tiny", "aaaa"), ("org/tiny@refs/pr/1", "bbbb"), ("org/tiny@bbbb", "bbbb")]
        {
            assert!(snapshot(name, cache.path()).unwrap().ends_with(format!("snapshots/{commit}")), "{name}");
        }
    }

    #[test]
    fn what_is_not_there_says_how_to_get_it() {
        let cache = cache();
        let failure = snapshot("org/tinny", cache.path()).unwrap_err().failure;
        assert_eq!(failure.exit, Exit::BadModel);
        let help = failure.findings[0].help.join("\n");
        assert!(help.contains("hf download org/tinny") && help.contains("hf://org/tiny"), "{help}");
        let failure = snapshot("org/tiny@gone", cache.path()).unwrap_err().failure;
        assert!(failure.findings[0].help.join("\n").contains("--revision gone"));
    }

    #[test]
    fn names_cannot_leave_the_cache() {
        let cache = cache();
        for name in
            ["../x", "a/b/c", "", "org/", "org/tiny@../../..", "org/tiny@evil", "/etc", "org/..", "org/tiny@"]
        {
            let absent = snapshot(name, cache.path()).unwrap_err();
            assert!(!absent.is_not_cached, "{name}");
        }
    }

    #[test]
    fn the_cache_is_where_the_variables_say() {
        let of = |set: &[(&str, &str)]| {
            cache_folder(|key| set.iter().find(|(k, _)| *k == key).map(|(_, v)| PathBuf::from(v)))
        };
        let all = [("HF_HUB_CACHE", "/a"), ("HF_HOME", "/b"), ("XDG_CACHE_HOME", "/c"), ("HOME", "/d")];
        assert_eq!(of(&all), Some("/a".into()));
        assert_eq!(of(&all[1..]), Some("/b/hub".into()));
        assert_eq!(of(&all[2..]), Some("/c/huggingface/hub".into()));
        assert_eq!(of(&all[3..]), Some("/d/.cache/huggingface/hub".into()));
        assert_eq!(of(&[]), None);
    }
}
