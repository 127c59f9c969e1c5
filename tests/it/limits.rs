//! Limits that a system sets to a process: open files, threads, memory, the length of files, room on a disk.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use monoquant::plan::Limits;
use monoquant::recipe::Overrides;
use monoquant::run::{Cancel, Event, Options, run};

use crate::support::{Ended, Model, Workspace, files, folder_of_the_first, plan_with};

const INT4: &str = "  - stage: quantize-int4\n    group_size: 32\n  - stage: validate\n";

/// As many files as the largest models have.
const SHARDS: usize = 163;

/// A model of very many small files, of which nearly as many are no weights.
fn sharded() -> Workspace {
    let mut model = Model::llama().with_config("num_hidden_layers", SHARDS.into());
    let least = 2 * SHARDS - 21;
    for layer in 2..2 + least {
        model.add(&format!("model.layers.{layer}.mlp.down_proj.weight"), &[32, 64]);
    }
    let workspace = Workspace::with(&model.in_shards(SHARDS));
    for number in 0..100 {
        workspace.write(&format!("model/extra/{number}.json"), format!("{{\"number\": {number}}}"));
    }
    workspace
}

/// The binary in a shell that sets limits first.
fn shell(workspace: &Workspace, limits: &str, args: &[&str]) -> Command {
    let mut command = workspace.program("sh");
    command.args(["-c", &format!("{limits} || exit 99; exec \"$0\" \"$@\"")]);
    command.arg(env!("CARGO_BIN_EXE_monoquant")).args(args);
    command
}

/// Runs the binary under limits of the shell.
fn limited(workspace: &Workspace, limits: &str, args: &[&str]) -> Ended {
    let output = shell(workspace, limits, args).output().expect("a shell");
    assert_ne!(output.status.code(), Some(99), "{limits} is not possible here");
    workspace.ended(output)
}

fn out(workspace: &Workspace) -> BTreeMap<String, Vec<u8>> {
    files(&workspace.path("out"))
}

/// Interrupts a run in the middle of its weights, so that the next one takes up what is finished.
fn interrupt(workspace: &Workspace) {
    let plan = workspace.plan(&workspace.path("recipe.yaml")).expect("a plan");
    let cancel = Cancel::default();
    let switch = cancel.clone();
    let listener = move |event: &Event| {
        if matches!(event, Event::Tensor { tensor, .. } if tensor.index() > SHARDS) {
            switch.cancel();
        }
    };
    let options = Options { cancel, fresh: true, ..Options::default() };
    run(&plan, &options, &listener).expect_err("it was interrupted");
    assert!(workspace.path(".out.monoquant-staging").exists());
}

#[test]
fn any_number_of_shards_is_read_and_written_with_few_open_files() {
    let workspace = sharded();
    let digest = "    digest: blake3\n";
    let recipe = |rest: &str| {
        let text =
            format!("  - stage: load\n    model: model\n{INT4}  - stage: export\n    path: out\n{rest}");
        workspace.whole_recipe(&text)
    };
    let run = ["run", "recipe.yaml", "--threads", "32"];
    let with = |arg: &'static str| [&run[..], &[arg]].concat();
    recipe(digest);
    workspace.monoquant(run).exits(0);
    let whole = out(&workspace);
    assert_eq!(whole.keys().filter(|name| name.ends_with(".safetensors")).count(), SHARDS);
    assert!(whole.contains_key("extra/99.json"));
    // Few large files, so that everything is taken over by copying.
    recipe(&format!("{digest}    shards: 100GB\n"));
    workspace.monoquant(with("--fresh")).exits(0);
    let joined = out(&workspace);
    for limits in ["ulimit -n 256", "ulimit -n 64", "ulimit -n 28"] {
        let done = |args: &[&str]| limited(&workspace, limits, args).exits(0);
        recipe(digest);
        done(&with("--fresh"));
        assert_eq!(out(&workspace), whole, "{limits}");
        assert!(done(&run).stdout.contains("up to date"), "{limits}");
        if limits == "ulimit -n 64" {
            done(&with("--durable"));
        }
        done(&["verify", "out"]);
        done(&["plan", "recipe.yaml"]);
        done(&["inspect", "model"]);
        done(&["inspect", "out"]);
        // Looked at byte by byte, since the times are other ones.
        for (name, bytes) in &whole {
            fs::write(workspace.path("out").join(name), bytes).expect("a file");
        }
        assert!(done(&run).stdout.contains("up to date"), "{limits}");
        interrupt(&workspace);
        done(&run);
        assert_eq!(out(&workspace), whole, "{limits}: taken up");
        recipe(&format!("{digest}    shards: 100GB\n"));
        done(&run);
        assert_eq!(out(&workspace), joined, "{limits}: taken over");
        recipe(digest);
        done(&run);
        assert_eq!(out(&workspace), whole, "{limits}: taken over");
    }
}

#[test]
fn a_shard_that_is_exchanged_while_it_is_closed_is_never_read() {
    const NAME: &str = "limits::a_shard_that_is_exchanged_while_it_is_closed_is_never_read";
    let Some(root) = folder_of_the_first() else {
        let workspace = sharded();
        workspace.recipe(INT4);
        let output = workspace.again(NAME, "ulimit -n 64");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        assert_eq!(workspace.names(), ["model", "recipe.yaml"]);
        return;
    };
    let recipe = root.join("recipe.yaml");
    let plan = plan_with(&recipe, &Overrides::default(), Limits::default()).expect("a plan");
    let shard = root.join("model/model-00100-of-00163.safetensors");
    // A copy with other weights, of the same length and time, and perhaps even of the same inode.
    let exchange = |event: &Event| {
        if matches!(event, Event::Tile { tensor, .. } if tensor.index() == 3) {
            let modified = fs::metadata(&shard).and_then(|metadata| metadata.modified()).expect("a time");
            let mut bytes = fs::read(&shard).expect("a shard");
            let end = bytes.len() - 1;
            bytes[end] ^= 1;
            fs::remove_file(&shard).expect("a shard");
            fs::write(&shard, bytes).expect("a shard");
            let file = fs::File::options().write(true).open(&shard).expect("a shard");
            file.set_modified(modified).expect("a time");
        }
    };
    let failure = run(&plan, &Options::default(), &exchange).expect_err("the shard is another one");
    assert_eq!(failure.findings[0].code, monoquant::model::code::CHANGED, "{failure}");
    assert!(failure.findings[0].message.contains("model-00100-of-00163"), "{failure}");
}

#[test]
fn a_thousand_threads_are_as_many_as_can_be_started() {
    let workspace = Workspace::with(&Model::llama());
    workspace.recipe(INT4);
    let args = ["run", "recipe.yaml", "--threads", "1000", "--fresh"];
    let said = workspace.monoquant(["run", "recipe.yaml", "--threads", "4"]).exits(0);
    assert!(!said.stderr.contains("run::threads"), "{}", said.stderr);
    let usual = out(&workspace);
    // This machine may let a thousand start or not.
    workspace.monoquant(args).exits(0);
    assert_eq!(out(&workspace), usual);
    if cfg!(target_os = "linux") {
        let number = r"run::threads.*\D(\d+) of 1000 threads could be started: .*`ulimit -u`";
        let number = regex::Regex::new(number).expect("a pattern");
        // The last one leaves no room for a thread beside the one that listens for Ctrl-C.
        for (kilobytes, is_any) in [(1_500_000, true), (600_000, true), (250_000, false)] {
            let limits = format!("ulimit -v {kilobytes}");
            let said = limited(&workspace, &limits, &args).exits(0);
            let text = said.stderr.replace('\n', " ");
            let found = number.captures(&text).expect(&said.stderr);
            assert_eq!(&found[1] != "0", is_any, "{limits}: {}", said.stderr);
            assert_eq!(out(&workspace), usual, "{limits}");
        }
    }
    workspace.monoquant(["verify", "out"]).exits(0);
}

/// A number of processes is counted by user, and root has no limit: where this is run by root, a user of its own runs the binary.
#[test]
fn a_limit_of_processes_means_fewer_threads() {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;

    let workspace = Workspace::with(&Model::llama());
    workspace.recipe(INT4);
    workspace.monoquant(["run", "recipe.yaml"]).exits(0);
    let usual = out(&workspace);
    fs::remove_dir_all(workspace.path("out")).expect("the output");
    for name in files(&workspace.path("model")).keys() {
        let readable = fs::Permissions::from_mode(0o644);
        fs::set_permissions(workspace.path("model").join(name), readable).expect("permissions");
    }
    // The binary may lie where another user may not look.
    fs::copy(env!("CARGO_BIN_EXE_monoquant"), workspace.path("mq")).expect("a copy of the binary");
    fs::set_permissions(workspace.root(), fs::Permissions::from_mode(0o777)).expect("permissions");
    let user = 20_000 + std::process::id() % 40_000;
    let run = |processes: usize, as_another: bool| {
        // Shells differ in the letter.
        let limits = format!("{{ ulimit -u {processes} 2>/dev/null || ulimit -p {processes}; }}");
        let mut command = workspace.program("sh");
        command.args(["-c", &format!("{limits} || exit 99; exec \"$@\""), "sh"]);
        command.args(["./mq", "run", "recipe.yaml", "--threads", "16", "--output", "of-another"]);
        if as_another {
            command.uid(user).gid(user);
        }
        workspace.ended(command.output().expect("a shell"))
    };
    if !rustix::process::geteuid().is_root() {
        let said = run(1, false).exits(0);
        assert!(said.stderr.contains("run::threads"), "{}", said.stderr);
        return;
    }
    for processes in [1, 2, 3, 4, 8, 12] {
        let said = run(processes, true).exits(0);
        let text = said.stderr.replace('\n', " ");
        assert!(text.contains("run::threads") && text.contains("of 16 threads"), "{processes}: {text}");
        assert_eq!(tensors_of(&files(&workspace.path("of-another"))), tensors_of(&usual), "{processes}");
        fs::remove_dir_all(workspace.path("of-another")).expect("the output");
    }
}

/// The weight files of an output: its report and recipe tell where it is.
fn tensors_of(files: &BTreeMap<String, Vec<u8>>) -> Vec<(&String, &Vec<u8>)> {
    files.iter().filter(|(name, _)| name.ends_with(".safetensors")).collect()
}

#[test]
fn without_a_single_thread_everything_works_and_a_run_says_so() {
    let workspace = Workspace::with(&Model::llama());
    workspace.recipe(INT4);
    workspace.monoquant(["run", "recipe.yaml"]).exits(0);
    let before = out(&workspace);
    // A stack that is larger than the address space.
    let none = |args: &[&str]| {
        let mut command = workspace.command(args);
        let output = command.env("RUST_MIN_STACK", (1_u64 << 50).to_string()).output();
        workspace.ended(output.expect("the binary runs"))
    };
    for args in [["plan", "recipe.yaml"], ["check", "recipe.yaml"], ["inspect", "model"], ["verify", "out"]] {
        none(&args).exits(0);
    }
    let said = none(&["run", "recipe.yaml", "--fresh"]).exits(0);
    assert!(said.stderr.contains("run::threads"), "{}", said.stderr);
    assert!(said.stderr.contains("ulimit -u"), "{}", said.stderr);
    assert_eq!(out(&workspace), before);
    assert_eq!(workspace.names(), ["model", "out", "recipe.yaml"]);
}

#[test]
fn a_file_longer_than_the_limit_is_told_before_anything_is_written() {
    let workspace = Workspace::with(&Model::llama());
    workspace.recipe(INT4);
    workspace.write("model/vocabulary.txt", vec![b'a'; 3 << 20]);
    // 2 MiB or 1 MiB: some shells count in KiB, others in 512 bytes. The file that is carried over is too long for both.
    for (limits, name) in
        [("ulimit -f 8", "model-00001-of-00002.safetensors"), ("ulimit -f 2048", "vocabulary.txt")]
    {
        for command in ["plan", "run"] {
            let said = limited(&workspace, limits, &[command, "recipe.yaml"]).exits(4);
            for part in ["export::file-size", name, "ulimit -f", "shards"] {
                assert!(said.stderr.contains(part), "{command}: {part}: {}", said.stderr);
            }
        }
    }
    assert_eq!(workspace.names(), ["model", "recipe.yaml"]);
}

#[test]
fn a_file_that_grows_beyond_the_limit_is_an_error_and_leaves_what_was_there() {
    // A file a tensor: the record and the report are longer than any weight file.
    let mut model = Model::llama();
    for number in 0..400 {
        model.add(&format!("model.layers.0.more.{number}.bias"), &[4]);
    }
    let workspace = Workspace::with(&model.in_shards(421));
    workspace.recipe("  - stage: quantize-int8\n");
    workspace.monoquant(["run", "recipe.yaml"]).exits(0);
    let good = out(&workspace);
    let weights = tensors_of(&good).iter().map(|(_, bytes)| bytes.len()).max().expect("a file");
    let report = good["monoquant-report.json"].len();
    assert!(report > 2 * weights + 4096, "{weights} {report}");
    let limits = format!("ulimit -f {}", weights.div_ceil(512) + 1);
    for args in [&["run", "recipe.yaml", "--fresh"][..], &["run", "recipe.yaml", "--fresh", "--durable"]] {
        let said = limited(&workspace, &limits, args).exits(4);
        assert!(
            said.stderr.contains("export::file-size") && said.stderr.contains("ulimit -f"),
            "{}",
            said.stderr
        );
        assert_eq!(out(&workspace), good);
        assert_eq!(workspace.names(), ["model", "out", "recipe.yaml"]);
    }
    // Not even the lock can be written, and a result cannot be told.
    let said = limited(&workspace, "ulimit -f 0", &["run", "recipe.yaml", "--fresh"]).exits(4);
    assert!(said.stderr.contains("export::file-size"), "{}", said.stderr);
    let file = fs::File::create(workspace.path("told")).expect("a file");
    let mut plan = shell(&workspace, "ulimit -f 0", &["inspect", "model"]);
    assert_eq!(plan.stdout(file).status().expect("a shell").code(), Some(4));
    assert_eq!(out(&workspace), good);
    assert_eq!(workspace.names(), ["model", "out", "recipe.yaml", "told"]);
}

/// Needs a disk of its own, which only root can make, or whoever may have a user namespace.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_named_before_and_while_it_is_written() {
    let workspace = Workspace::with(&Model::llama());
    workspace.recipe(INT4);
    workspace.monoquant(["run", "recipe.yaml"]).exits(0);
    let good = out(&workspace);
    fs::create_dir(workspace.path("small")).expect("a folder");
    let on_a_disk_of = |bytes: u64| {
        let script = format!(
            "mount -t tmpfs -o size={bytes} tmpfs small 2>/dev/null || exit 98
             \"$0\" run recipe.yaml --output small/out; status=$?; ls -A small; exit $status"
        );
        let unshare = if rustix::process::geteuid().is_root() { "-m" } else { "-rm" };
        let mut command = workspace.program("unshare");
        command.args([unshare, "sh", "-c", &script, env!("CARGO_BIN_EXE_monoquant")]).output()
    };
    let weights: u64 = tensors_of(&good).iter().map(|(_, bytes)| bytes.len() as u64).sum();
    // The weights fit to the byte, their report does not.
    for (bytes, code) in [(weights / 2, "export::no-space"), (weights + (4 << 10), "export::cannot-write")] {
        let output = match on_a_disk_of(bytes) {
            Ok(output) if output.status.code() != Some(98) && output.status.code() != Some(1) => output,
            _ => {
                let told =
                    "a_full_disk_is_named_before_and_while_it_is_written: not tested, no mounts here\n";
                std::io::Write::write_all(&mut std::io::stderr(), told.as_bytes()).expect("standard error");
                return;
            }
        };
        let said = workspace.ended(output).exits(4);
        assert!(said.stderr.contains(code), "{bytes}: {}", said.stderr);
        assert!(code == "export::no-space" || said.stderr.contains("no space left"), "{}", said.stderr);
        assert_eq!(said.stdout, "", "something is left");
    }
    assert_eq!(fs::read_dir(workspace.path("small")).expect("a folder").count(), 0);
    assert_eq!(out(&workspace), good);
}
