//! Paths from the root of the workspace, as CI knows them.

use std::path::{Path, PathBuf};

use crate::fs::paths;

/// The root of the workspace: that of GitHub or GitLab, or the current folder.
pub(super) fn root() -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    variable("GITHUB_WORKSPACE")
        .or_else(|| variable("CI_PROJECT_DIR"))
        .or_else(|| std::env::current_dir().ok())
}

/// A path from the root of the workspace, with `/`. Outside of it there is the name alone: the folders of a machine are nobody's
/// business.
pub(super) fn from_root(path: &Path) -> String {
    let whole = std::path::absolute(path).map(|path| crate::plan::normalized(&path));
    let below = |root: PathBuf| {
        let whole = whole.as_ref().ok()?;
        let real = || {
            whole
                .parent()
                .map(paths::canonical)?
                .join(whole.file_name()?)
                .strip_prefix(paths::canonical(&root))
                .ok()
                .map(Path::to_owned)
        };
        whole.strip_prefix(&root).ok().map(Path::to_owned).or_else(real)
    };
    let name = || PathBuf::from(path.file_name().unwrap_or_default());
    let relative = root().and_then(below).filter(|path| !path.as_os_str().is_empty()).unwrap_or_else(name);
    let parts: Vec<_> = relative.components().map(|part| part.as_os_str().to_string_lossy()).collect();
    parts.join("/")
}
