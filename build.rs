//! Names the build by a hash of its sources, dependencies and compiler: what one build has measured or written is not mixed with
//! the work of another, also where both call themselves by one version.

#![expect(clippy::disallowed_methods, reason = "it reads the sources that it names the build by")]

use std::env;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() -> io::Result<()> {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    let mut names = Vec::new();
    for name in ["build.rs", "Cargo.toml", "Cargo.lock", "src"] {
        // A packaged crate may come without a lock file.
        if root.join(name).exists() {
            println!("cargo::rerun-if-changed={name}");
            list(&root, Path::new(name), &mut names)?;
        }
    }
    names.sort();
    let mut hasher = DefaultHasher::new();
    for name in names {
        // A checkout may end its lines otherwise; the program is the same.
        let bytes = fs::read(root.join(&name))?;
        let text: Vec<u8> = bytes.into_iter().filter(|byte| *byte != b'\r').collect();
        name.iter().map(|part| part.to_string_lossy()).collect::<Vec<_>>().hash(&mut hasher);
        text.hash(&mut hasher);
    }
    let compiler = env::var_os("RUSTC").and_then(|rustc| Command::new(rustc).arg("-vV").output().ok());
    compiler.map(|output| output.stdout).unwrap_or_default().hash(&mut hasher);
    env::var_os("TARGET").hash(&mut hasher);
    println!("cargo::rustc-env=MONOQUANT_BUILD={:016x}", hasher.finish());
    Ok(())
}

/// Every file at or below a path.
fn list(root: &Path, path: &Path, names: &mut Vec<PathBuf>) -> io::Result<()> {
    if !root.join(path).is_dir() {
        names.push(path.to_owned());
        return Ok(());
    }
    for entry in fs::read_dir(root.join(path))? {
        list(root, &path.join(entry?.file_name()), names)?;
    }
    Ok(())
}
