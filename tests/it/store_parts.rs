//! Outputs in a bucket that are made file by file: by one run, and by parts that share no directory.

use std::collections::BTreeMap;
use std::fs;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::stores::{command, run};
use crate::support::bucket::Bucket;
use crate::support::http::Run;
use crate::support::{Model, Workspace, files, root};

/// The command of a part, or of a join.
fn args<'a>(which: &[&'a str]) -> Vec<&'a str> {
    [&["run", "recipe.yaml", "--model", "s3://lab/m"][..], which].concat()
}

/// Machines that share nothing but a bucket.
struct Lab {
    bucket: Arc<Bucket>,
    endpoint: String,
    /// The files of the output that do not name their place, as one run to a folder makes them.
    expected: BTreeMap<String, Vec<u8>>,
    stages: &'static str,
}

const GATED: &str = "  - stage: quantize-int4\n  - stage: validate\n";
const DIGEST: &str = "    digest: sha256\n";

fn recipe(stages: &str, path: &str) -> String {
    format!(
        "version: 1\nname: test\nstages:\n  - stage: load\n    model: model\n{stages}  - stage: export\n    path: {path}\n{DIGEST}"
    )
}

fn is_compared(name: &str) -> bool {
    !name.starts_with("monoquant") && !["README.md", "SHA256SUMS"].contains(&name)
}

impl Lab {
    fn new(stages: &'static str, faults: Option<usize>) -> Self {
        let workspace = Workspace::with(&Model::llama().in_shards(4));
        workspace.write("recipe.yaml", recipe(stages, "out"));
        workspace.monoquant(["run", "recipe.yaml"]).exits(0);
        let mut expected = files(&workspace.path("out"));
        expected.retain(|name, _| is_compared(name));
        let (bucket, endpoint) = Bucket { faults, ..Bucket::of(&workspace) }.start();
        Self { bucket, endpoint, expected, stages }
    }

    /// Another machine.
    fn machine(&self) -> Workspace {
        let workspace = Workspace::new();
        workspace.write("recipe.yaml", recipe(self.stages, "s3://lab/o/tiny"));
        workspace
    }

    fn run(&self, machine: &Workspace, which: &[&str]) -> Run {
        run(machine, &self.endpoint, &args(which))
    }

    fn part(&self, machine: &Workspace, part: &str) -> String {
        let said = self.run(machine, &["--part", part]);
        assert_eq!(said.status, 0, "{part}: {}", said.said);
        said.said
    }

    fn start(&self, machine: &Workspace, which: &[&str]) -> Child {
        let mut command = command(machine, &self.endpoint, &args(which));
        command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the binary runs")
    }

    fn visible(&self) -> BTreeMap<String, Vec<u8>> {
        self.bucket.files("o/tiny")
    }

    fn objects(&self) -> usize {
        self.bucket.objects.lock().expect("a lock").len()
    }

    fn assert_published(&self) {
        let mut visible = self.visible();
        visible.retain(|name, _| is_compared(name));
        assert!(visible == self.expected, "{:?}", visible.keys());
        let machine = Workspace::new();
        let said = run(&machine, &self.endpoint, &["verify", "s3://lab/o/tiny"]);
        assert_eq!(said.status, 0, "{}", said.said);
    }

    fn uploads(&self) -> usize {
        self.bucket.uploads.lock().expect("a lock").len()
    }
}

/// What a machine has beside its recipe, but for locks.
fn left(machine: &Workspace) -> Vec<String> {
    let scratch = machine.path(".monoquant-scratch");
    let all = if scratch.exists() { files(&scratch) } else { BTreeMap::new() };
    all.into_keys().filter(|name| !name.ends_with("-lock")).collect()
}

#[test]
fn parts_that_share_no_directory_are_joined_by_their_records() {
    let lab = Lab::new(GATED, None);
    let machines: Vec<Workspace> = (0..6).map(|_| lab.machine()).collect();
    let said = lab.run(&machines[0], &["--join"]);
    assert!(said.status == 75 && said.said.contains("4 of 4 files are not there yet"), "{}", said.said);
    assert!(lab.part(&machines[0], "2/3").contains("2 made, 0 there before"));
    assert!(lab.part(&machines[1], "1/3").contains("1 made, 0 there before"));
    // The same part again, on another machine.
    assert!(lab.part(&machines[2], "2/3").contains("0 made, 2 there before"));
    let said = lab.run(&machines[3], &["--join"]);
    assert!(said.status == 75 && said.said.contains("1 of 4 files are not there yet"), "{}", said.said);
    // Another number of parts.
    assert!(lab.part(&machines[2], "0/1").contains("1 made, 3 there before"));
    assert!(lab.visible().is_empty() && lab.uploads() == 4, "nothing is visible early");
    // Two joins at once, on machines that have read no weight.
    let read = lab.bucket.ranges.load(Ordering::SeqCst);
    let joins = [3, 4].map(|machine| lab.start(&machines[machine], &["--join"]));
    for join in joins {
        let ended = join.wait_with_output().expect("it ends");
        assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    }
    assert_eq!(lab.bucket.ranges.load(Ordering::SeqCst), read, "a join reads no weight");
    lab.assert_published();
    assert_eq!(lab.uploads(), 0);
    // One that comes late does nothing.
    let (objects, machine) = (lab.objects(), &machines[5]);
    assert!(lab.part(machine, "2/3").contains("0 made"));
    assert!(!machine.path(".monoquant-scratch").exists() && lab.objects() == objects);
    let said = lab.run(machine, &["--join"]);
    assert!(said.status == 0 && said.said.contains("up to date"), "{}", said.said);
    machines.iter().for_each(|machine| assert!(left(machine).is_empty(), "{:?}", left(machine)));
}

#[test]
fn parts_and_runs_that_are_killed_are_gone_on_with_on_other_machines() {
    for which in [&["--part", "0/1"][..], &[]] {
        let lab = Lab::new(GATED, Some(9));
        let machine = lab.machine();
        for uploads in [1, 2] {
            let mut killed = lab.start(&machine, which);
            while lab.bucket.begun.load(Ordering::SeqCst) < uploads
                && killed.try_wait().expect("it is looked at").is_none()
            {
                std::thread::yield_now();
            }
            let _ = killed.kill();
            killed.wait().expect("it ends");
        }
        assert!(which.is_empty() || lab.visible().is_empty());
        let others = [lab.machine(), lab.machine()];
        if !which.is_empty() {
            // The same part twice at once.
            let parts = [0, 1].map(|machine| lab.start(&others[machine], which));
            for part in parts {
                let ended = part.wait_with_output().expect("it ends");
                assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
            }
            assert!(lab.visible().is_empty());
        }
        let next = if which.is_empty() { &machine } else { &others[1] };
        let said = lab.run(next, if which.is_empty() { &[] } else { &["--join"] });
        assert_eq!(said.status, 0, "{}", said.said);
        lab.assert_published();
        assert!(left(next).is_empty(), "{:?}", left(next));
    }
}

#[test]
fn a_failed_gate_keeps_what_parts_have_uploaded_and_a_mended_one_touches_no_weight() {
    const STRICT: &str = "  - stage: quantize-int4\n  - stage: check-warnings\n    sqnr_error_threshold: 90\n    sqnr_warning_threshold: 90\n    on_failure: error\n";
    let lab = Lab::new(GATED, None);
    let lab = Lab { stages: STRICT, ..lab };
    let machines = [lab.machine(), lab.machine()];
    lab.part(&machines[0], "0/1");
    let said = lab.run(&machines[1], &["--join"]);
    assert!(said.status == 1 && lab.visible().is_empty() && lab.uploads() == 4, "{}", said.said);
    machines[1].write("recipe.yaml", recipe(&STRICT.replace("90", "5"), "s3://lab/o/tiny"));
    let said = lab.run(&machines[1], &["--join"]);
    assert!(said.status == 0 && said.said.contains("no weight was touched"), "{}", said.said);
    lab.assert_published();
    // A run of its own leaves nothing of what did not pass.
    lab.bucket.objects.lock().expect("a lock").retain(|key, _| key.starts_with("m/"));
    let objects = lab.objects();
    let said = lab.run(&lab.machine(), &[]);
    assert!(said.status == 1 && lab.uploads() == 0 && lab.objects() == objects, "{}", said.said);
}

#[test]
fn an_upload_that_a_rule_of_the_bucket_has_removed_is_made_again() {
    let lab = Lab::new(GATED, None);
    let machine = lab.machine();
    lab.part(&machine, "0/1");
    let first = *lab.bucket.uploads.lock().expect("a lock").keys().next().expect("an upload");
    lab.bucket.uploads.lock().expect("a lock").remove(&first);
    let said = lab.run(&machine, &["--join"]);
    assert!(said.status == 75 && said.said.contains("was removed"), "{}", said.said);
    assert!(!lab.visible().contains_key("config.json"));
    assert!(lab.part(&machine, "0/1").contains("1 made, 3 there before"));
    let said = lab.run(&machine, &["--join"]);
    assert_eq!(said.status, 0, "{}", said.said);
    lab.assert_published();
}

#[test]
fn the_plan_says_how_much_room_is_needed_here() {
    let lab = Lab::new(GATED, None);
    let machine = lab.machine();
    let planned = |args: &[&str]| {
        let said =
            run(&machine, &lab.endpoint, &[&["plan", "recipe.yaml", "--model", "s3://lab/m"], args].concat());
        assert_eq!(said.status, 0, "{}", said.said);
        said.said
    };
    assert!(planned(&[]).contains("weight files are uploaded as they are made"));
    let json: serde_json::Value = serde_json::from_str(&planned(&["--json"])).expect("JSON");
    let of = |key: &str| json["exports"][0][key].as_u64().expect("a number");
    assert!(of("disk_needed") < of("bytes"), "{json}");
}

/// The trained example, with its output at a prefix.
#[test]
fn weights_that_a_gate_reads_stay_until_it_has_read_them_and_a_model_runs_only_if_its_output_can_be_written()
{
    let workspace = Workspace::new();
    for (name, bytes) in files(&root().join("examples/tiny-llama")) {
        workspace.write(&format!("model/{name}"), bytes);
    }
    let text = fs::read_to_string(root().join("examples/calibration/held-out.txt")).expect("the text");
    workspace.write("held-out.txt", text.chars().take(5_000).collect::<String>());
    let quantize = "  - stage: quantize-int4\n    observer: mse\n";
    let evaluate = "  - stage: evaluate\n    text: [held-out.txt]\n    samples: 2\n    sequence_length: 32\n";
    workspace.write("recipe.yaml", recipe(&format!("{quantize}{evaluate}"), "s3://lab/o/tiny"));
    let (bucket, endpoint) = Bucket::default().start();
    let said = run(&workspace, &endpoint, &["plan", "recipe.yaml"]);
    assert!(said.said.contains("uploaded when all is made and judged"), "{}", said.said);
    let said = run(&workspace, &endpoint, &["run", "recipe.yaml"]);
    assert_eq!(said.status, 0, "{}", said.said);
    assert!(bucket.files("o/tiny").contains_key("config.json") && left(&workspace).len() <= 1);
    // Without a right to write.
    let calibrate =
        "  - stage: calibrate\n    text: [held-out.txt]\n    samples: 1\n    sequence_length: 32\n";
    workspace.write("recipe.yaml", recipe(&format!("{calibrate}{quantize}"), "s3://lab/o/other"));
    let (_, endpoint) = Bucket { is_read_only: true, ..Bucket::default() }.start();
    let said = run(&workspace, &endpoint, &["run", "recipe.yaml"]);
    assert!(said.status == 4 && said.said.contains("access is denied"), "{}", said.said);
    assert!(!said.said.contains("calibrate: 3"), "the model has not run: {}", said.said);
}
