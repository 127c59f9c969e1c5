//! What a test needs: a temporary workspace with recipes and small models made in code, the real binary with a clean
//! environment, and the library in process.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::SystemTime;

use monoquant::finding::Failure;
use monoquant::plan::{Limits, Plan};
use monoquant::recipe::Overrides;
use monoquant::report::Report;
use monoquant::run::{Options, Outcome, Silent};
use tempfile::TempDir;

#[cfg(feature = "cloud")]
pub mod bucket;
pub mod headers;
#[cfg(feature = "cloud")]
pub mod http;
pub mod layout;
pub mod memory;
mod model;
pub mod statistics;

pub use model::{Model, gaussian};

/// The repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// How often a test does again what takes long: `quick` times, or, where `MONOQUANT_ROUNDS` is a number, that many times as often.
/// The checks of a change (`.ci/run`) ask for more than the test command.
pub fn rounds(quick: usize) -> usize {
    let times = std::env::var("MONOQUANT_ROUNDS").ok();
    quick * times.map_or(1, |times| times.parse().expect("MONOQUANT_ROUNDS is a number"))
}

/// The seed of the recipe's properties: the number in `MONOQUANT_SEED`, or another one in each run of the tests. It is printed, which
/// a test that passes does not show.
#[expect(clippy::print_stdout, reason = "the test that fails shows it")]
pub fn seed() -> u64 {
    static SEED: OnceLock<u64> = OnceLock::new();
    let seed = *SEED.get_or_init(|| match std::env::var("MONOQUANT_SEED") {
        Ok(text) => text.parse().expect("MONOQUANT_SEED is a number"),
        Err(_) => RandomState::new().hash_one(SystemTime::now()),
    });
    println!("MONOQUANT_SEED={seed} draws the same inputs");
    seed
}

/// Whether what the tests compare with is written anew, for the review. One switch for insta's snapshots and all other files.
pub fn is_updating() -> bool {
    std::env::var_os("INSTA_UPDATE").is_some_and(|update| update == "always")
}

/// Compares a text with the reviewed one in a file, or writes the file anew.
///
/// # Errors
/// If they differ.
pub fn compare(path: &Path, found: &str) -> Result<(), String> {
    if is_updating() {
        fs::write(path, found).expect("a file of the repository");
    }
    let reviewed = fs::read_to_string(path).unwrap_or_default();
    if found == reviewed {
        return Ok(());
    }
    let (mut found, mut reviewed, mut line) = (found.lines(), reviewed.lines(), 0);
    loop {
        let (found, reviewed) = (found.next(), reviewed.next());
        line += 1;
        if found != reviewed || found.is_none() {
            let show = |line: Option<&str>| line.unwrap_or("(the end)").to_owned();
            return Err(format!(
                "{}:{line} differs; INSTA_UPDATE=always writes it anew\n  reviewed: {}\n  found:    {}",
                path.display(),
                show(reviewed),
                show(found)
            ));
        }
    }
}

/// Compares a text with the reviewed one in a file of the repository.
pub fn assert_reviewed(path: impl AsRef<Path>, found: &str) {
    if let Err(difference) = compare(&root().join(path), found) {
        panic!("{difference}");
    }
}

/// Makes a symbolic link.
pub fn symlink(target: impl AsRef<Path>, link: impl AsRef<Path>) {
    #[cfg(unix)]
    let made = std::os::unix::fs::symlink(target, link);
    #[cfg(windows)]
    let made = {
        let (target, link) = (target.as_ref(), link.as_ref());
        if link.parent().is_some_and(|folder| folder.join(target).is_dir()) {
            std::os::windows::fs::symlink_dir(target, link)
        } else {
            std::os::windows::fs::symlink_file(target, link)
        }
    };
    made.expect("a link");
}

/// Tells a test that is run by another one where that one works.
#[cfg(unix)]
const AGAIN: &str = "MONOQUANT_TEST_AGAIN";

/// The workspace of the test that has run this one by [`Workspace::again`], where one has.
#[cfg(unix)]
pub fn folder_of_the_first() -> Option<PathBuf> {
    std::env::var_os(AGAIN).map(PathBuf::from)
}

/// A temporary folder in which a test works.
pub struct Workspace {
    folder: TempDir,
}

impl Workspace {
    pub fn new() -> Self {
        Self { folder: tempfile::tempdir().expect("a temporary folder") }
    }

    /// A workspace with a model in `model`.
    pub fn with(model: &Model) -> Self {
        let workspace = Self::new();
        model.write(&workspace.path("model"));
        workspace
    }

    pub fn root(&self) -> &Path {
        self.folder.path()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("a path below the workspace")).expect("a folder");
        fs::write(&path, text).expect("a file in the workspace");
        path
    }

    /// Writes `recipe.yaml`: the stages given between `load` of `model` and `export` to `out`.
    pub fn recipe(&self, stages: &str) -> PathBuf {
        self.whole_recipe(&format!(
            "  - stage: load\n    model: model\n{stages}  - stage: export\n    path: out\n"
        ))
    }

    /// Writes `recipe.yaml` with all of its stages given.
    pub fn whole_recipe(&self, stages: &str) -> PathBuf {
        self.write("recipe.yaml", format!("version: 1\nname: test\nstages:\n{stages}"))
    }

    /// The binary, in the workspace, with nothing of the caller's environment that could change what it says: not `CI` either,
    /// which would have it take nothing over.
    pub fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = self.program(env!("CARGO_BIN_EXE_monoquant"));
        command.args(args);
        command
    }

    /// Any program, as [`Workspace::command`].
    pub fn program(&self, name: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(name);
        command.current_dir(self.root()).env_clear();
        command.env("COLUMNS", "100").env("NO_COLOR", "1").env("HF_HUB_OFFLINE", "1").stdin(Stdio::null());
        command
    }

    /// Runs the binary.
    pub fn monoquant<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Ended {
        self.ended(self.command(args).output().expect("the binary runs"))
    }

    /// Runs a test once more, as the only one of a process, which begins in this workspace: see [`folder_of_the_first`]. A shell
    /// sets limits first.
    #[cfg(unix)]
    pub fn again(&self, test: &str, limits: &str) -> Output {
        let mut command = self.program("sh");
        command.args(["-c", &format!("{limits} || exit 99; exec \"$0\" \"$@\"")]);
        command.arg(std::env::current_exe().expect("this program")).args(["--exact", test, "--nocapture"]);
        command.env(AGAIN, self.root()).output().expect("a shell")
    }

    /// What a process said.
    pub fn ended(&self, output: Output) -> Ended {
        let text = |bytes: Vec<u8>| self.filtered(&String::from_utf8(bytes).expect("output is UTF-8"));
        Ended { status: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    /// Runs a recipe with the binary.
    pub fn run(&self, recipe: &Path) -> Ended {
        self.monoquant([OsStr::new("run"), recipe.as_os_str()])
    }

    /// Text without what differs from run to run or from machine to machine: paths, versions and free space.
    pub fn filtered(&self, text: &str) -> String {
        let mut text = text.to_owned();
        // `--output` is told relative to the recipe's folder.
        let name = self.root().file_name().expect("a name").to_string_lossy().into_owned();
        let relative = format!(r"(\.\./)+([\w./-]*/)?{}", regex::escape(&name));
        text = regex::Regex::new(&relative).expect("a pattern").replace_all(&text, "[work]").into_owned();
        let canonical = self.root().canonicalize().expect("the workspace is there");
        for path in [canonical.as_path(), self.root()] {
            text = text.replace(&path.display().to_string(), "[work]");
        }
        text = text.replace(&root().display().to_string(), "[repo]");
        text = text.replace(concat!("monoquant ", env!("CARGO_PKG_VERSION")), "monoquant [version]");
        let took = regex::Regex::new(r"(?m)^  took  .*$").expect("a pattern");
        text = took.replace_all(&text, "  took  [time]").into_owned();
        let free = regex::Regex::new(r"of [0-9.]+ [KMGT]?i?B free").expect("a pattern");
        free.replace_all(&text, "of [size] free").into_owned()
    }

    /// Plans a recipe in process.
    pub fn plan(&self, recipe: &Path) -> Result<Plan, Failure> {
        plan_with(recipe, &Overrides::default(), Limits { threads: Some(2), memory: None })
    }

    /// Plans and runs a recipe in process.
    pub fn run_in_process(&self, recipe: &Path) -> Result<Outcome, Failure> {
        monoquant::run::run(&self.plan(recipe)?, &Options::default(), &Silent)
    }

    /// The findings of a plan, drawn; of a good plan its warnings.
    pub fn plan_findings(&self, recipe: &Path) -> String {
        let findings = match self.plan(recipe) {
            Ok(plan) => plan.warnings,
            Err(failure) => failure.findings,
        };
        self.drawn(&findings)
    }

    /// Findings as a terminal of 100 columns shows them.
    pub fn drawn(&self, findings: &[monoquant::finding::Finding]) -> String {
        use monoquant::show::graphical::{Style, render};
        self.filtered(&render(findings, Style { color: false, unicode: true, width: 100 }))
    }

    /// The names in the workspace's folder, hidden ones too, but for the records beside published outputs.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.root())
            .expect("the workspace")
            .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
            .filter(|name| !name.ends_with(".monoquant-record"))
            .collect();
        names.sort();
        names
    }
}

/// Plans a recipe in process.
pub fn plan_with(recipe: &Path, overrides: &Overrides, limits: Limits) -> Result<Plan, Failure> {
    monoquant::plan::plan(monoquant::recipe::load(recipe, overrides)?, limits)
}

/// A process that has ended. What it said can be had once its exit status was checked.
#[must_use = "the exit status is to be checked"]
pub struct Ended {
    status: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Ended {
    /// Checks the exit status.
    #[track_caller]
    pub fn exits(self, status: i32) -> Said {
        assert_eq!(self.status, Some(status), "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        Said { stdout: self.stdout, stderr: self.stderr }
    }

    /// The exit status, and all that was said, on one line and without frames.
    #[cfg(feature = "cloud")]
    pub fn told(self) -> (i32, String) {
        let said = format!("{} {}", self.stdout, self.stderr);
        let words: Vec<&str> = said.split_whitespace().filter(|word| *word != "│").collect();
        (self.status.expect("it was not killed"), words.join(" "))
    }
}

/// What a process said.
pub struct Said {
    pub stdout: String,
    pub stderr: String,
}

impl Said {
    /// Standard output as JSON.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).expect("standard output is JSON")
    }
}

/// A report in an output directory.
pub fn report(output: &Path) -> Report {
    monoquant::report::read(&output.join(monoquant::report::FILE_NAME)).expect("the output has a report")
}

/// Every file below a folder, by its relative path.
pub fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    fn visit(folder: &Path, below: &Path, out: &mut BTreeMap<String, Vec<u8>>) {
        for entry in fs::read_dir(below).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                visit(folder, &path, out);
            } else {
                let name = path.strip_prefix(folder).expect("below the folder").display().to_string();
                out.insert(name, fs::read(&path).expect("a file"));
            }
        }
    }
    let mut out = BTreeMap::new();
    visit(folder, folder, &mut out);
    out
}

/// A tensor as the safetensors crate reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    pub file: String,
    pub dtype: String,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

/// Every tensor of a folder's safetensors files, read with the safetensors crate.
pub fn tensors(folder: &Path) -> BTreeMap<String, Stored> {
    let mut out = BTreeMap::new();
    for (file, bytes) in files(folder).into_iter().filter(|(name, _)| name.ends_with(".safetensors")) {
        let read = safetensors::SafeTensors::deserialize(&bytes).unwrap_or_else(|e| panic!("{file}: {e}"));
        for (name, view) in read.tensors() {
            let (dtype, shape) = (format!("{:?}", view.dtype()), view.shape().to_vec());
            let stored = Stored { file: file.clone(), dtype, shape, bytes: view.data().to_vec() };
            assert!(out.insert(name.clone(), stored).is_none(), "{name} is there twice");
        }
    }
    out
}

/// A file as JSON.
pub fn json(path: &Path) -> serde_json::Value {
    let bytes = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
