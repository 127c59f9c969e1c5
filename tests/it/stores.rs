//! Models in object stores, and outputs there, with a server that speaks as much of S3 as that takes.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::sync::atomic::Ordering;

use crate::support::bucket::Bucket;
use crate::support::http::Run;
use crate::support::{Model, Workspace, files};

/// A command that speaks to a store.
pub fn command(workspace: &Workspace, endpoint: &str, args: &[&str]) -> Command {
    let mut command = workspace.command(args.iter().copied());
    command
        .env("AWS_ENDPOINT_URL", endpoint)
        .env("AWS_ALLOW_HTTP", "true")
        .env("AWS_ACCESS_KEY_ID", "key")
        .env("AWS_SECRET_ACCESS_KEY", "secret-of-the-test");
    command
}

pub fn run(workspace: &Workspace, endpoint: &str, args: &[&str]) -> Run {
    let mut command = command(workspace, endpoint, args);
    let (status, said) = workspace.ended(command.output().expect("the binary runs")).told();
    Run { status, said }
}

const RUN: [&str; 4] = ["run", "recipe.yaml", "--model", "s3://lab/m"];

fn weights(workspace: &Workspace) -> BTreeMap<String, Vec<u8>> {
    let mut files = files(&workspace.path("out"));
    files.retain(|name, _| {
        name.ends_with(".safetensors") || name == "config.json" || name == "tokenizer.json"
    });
    files
}

fn made() -> (Workspace, BTreeMap<String, Vec<u8>>) {
    let workspace = Workspace::with(&Model::llama());
    let recipe = workspace.recipe("  - stage: quantize-int4\n  - stage: validate\n");
    workspace.run(&recipe).exits(0);
    let written = weights(&workspace);
    fs::remove_dir_all(workspace.path("out")).expect("the output");
    (workspace, written)
}

#[test]
fn a_model_in_a_bucket_gives_the_bytes_of_one_in_a_folder_whatever_the_network_does() {
    for faults in [None, Some(2), Some(3), Some(7)] {
        let (workspace, expected) = made();
        let (bucket, endpoint) = Bucket { faults, ..Bucket::of(&workspace) }.start();
        let said = run(&workspace, &endpoint, &RUN);
        assert_eq!(said.status, 0, "{faults:?}: {}", said.said);
        assert!(weights(&workspace) == expected, "{faults:?}");
        assert!(!said.said.contains("secret-of-the-test"));
        // Tags say that nothing has changed.
        let before = bucket.requests.load(Ordering::SeqCst);
        let said = run(&workspace, &endpoint, &RUN);
        assert!(said.status == 0 && said.said.contains("up to date"), "{}", said.said);
        let asked = bucket.requests.load(Ordering::SeqCst) - before;
        assert!(faults.is_some() || asked < 40, "{asked} requests");
    }
}

#[test]
fn an_object_that_changes_during_a_run_is_an_error() {
    let (workspace, _) = made();
    let (_, endpoint) = Bucket { exchanged: Some(0), ..Bucket::of(&workspace) }.start();
    let said = run(&workspace, &endpoint, &RUN);
    assert_eq!(said.status, 3, "{}", said.said);
    assert!(said.said.contains("model::changed"), "{}", said.said);
    assert!(!workspace.path("out").exists());
}

#[test]
fn answers_of_a_store_are_told_by_name_and_status() {
    let (workspace, _) = made();
    let cases = [
        ((403, "AccessDenied"), 3, "access is denied"),
        ((403, "ExpiredToken"), 3, "the credentials have expired"),
        ((403, "InvalidAccessKeyId"), 3, "the credentials are wrong"),
        ((403, "SignatureDoesNotMatch"), 3, "the credentials are wrong"),
        ((404, "NoSuchBucket"), 3, "there is no such bucket"),
    ];
    for (refuses, status, words) in cases {
        let (_, endpoint) = Bucket { refuses: Some(refuses), ..Bucket::default() }.start();
        let said = run(&workspace, &endpoint, &RUN);
        assert_eq!(said.status, status, "{refuses:?}: {}", said.said);
        assert!(said.said.contains(words) && said.said.contains(refuses.1), "{refuses:?}: {}", said.said);
        assert!(!said.said.contains("secret-of-the-test"));
    }
    let (_, endpoint) = Bucket::of(&workspace).start();
    for (model, words) in [("s3://lab/n", "nothing at `s3://lab/n`"), ("s3://other/m", "no such bucket")] {
        let said = run(&workspace, &endpoint, &["plan", "recipe.yaml", "--model", model]);
        assert!(said.status == 3 && said.said.contains(words), "{}", said.said);
    }
    let mut command = workspace.command(RUN);
    command
        .env("AWS_ENDPOINT_URL", &endpoint)
        .env("AWS_ACCESS_KEY_ID", "k")
        .env("AWS_SECRET_ACCESS_KEY", "s");
    let ended = workspace.ended(command.output().expect("the binary runs"));
    assert!(ended.exits(3).stderr.contains("AWS_ALLOW_HTTP"));
}

/// The workspace's recipe with its output at a prefix, and what a run to a folder makes of it.
fn to_store() -> (Workspace, BTreeMap<String, Vec<u8>>) {
    let workspace = Workspace::with(&Model::llama());
    let stages = "  - stage: load\n    model: model\n  - stage: quantize-int4\n  - stage: validate\n";
    let recipe =
        |path: &str| workspace.whole_recipe(&format!("{stages}  - stage: export\n    path: {path}\n"));
    workspace.run(&recipe("out")).exits(0);
    let mut expected = files(&workspace.path("out"));
    expected.retain(|name, _| !names_its_place(name));
    fs::remove_dir_all(workspace.path("out")).expect("the output");
    recipe("s3://lab/o/tiny");
    (workspace, expected)
}

fn names_its_place(name: &str) -> bool {
    name.starts_with("monoquant") || name == "README.md"
}

/// The files of an output at a prefix that do not name their place.
fn published(bucket: &Bucket) -> BTreeMap<String, Vec<u8>> {
    let mut files = bucket.files("o/tiny");
    files.retain(|name, _| !names_its_place(name));
    files
}

const TO_STORE: [&str; 2] = ["run", "recipe.yaml"];

#[test]
fn an_output_in_a_bucket_is_that_of_a_folder_whatever_the_network_does() {
    for faults in [None, Some(3), Some(4), Some(7)] {
        let (workspace, expected) = to_store();
        let (bucket, endpoint) = Bucket { faults, ..Bucket::default() }.start();
        let said = run(&workspace, &endpoint, &TO_STORE);
        assert_eq!(said.status, 0, "{faults:?}: {}", said.said);
        assert!(said.said.contains("s3://lab/o/tiny"), "{}", said.said);
        assert!(published(&bucket) == expected, "{faults:?}");
        assert!(bucket.files("o/tiny").contains_key("monoquant-report.json"));
        // An upload whose beginning was not answered is known to nobody.
        assert!(faults.is_some() || bucket.uploads.lock().expect("a lock").is_empty());
        let left = files(&workspace.path(".monoquant-scratch"));
        assert!(left.keys().all(|name| name.ends_with("-lock")), "{:?}", left.keys());
        let before = bucket.objects.lock().expect("a lock").len();
        let said = run(&workspace, &endpoint, &TO_STORE);
        assert!(said.status == 0 && said.said.contains("up to date"), "{}", said.said);
        let said = run(&workspace, &endpoint, &["run", "recipe.yaml", "--fresh"]);
        assert_eq!(said.status, 0, "{}", said.said);
        assert_eq!(bucket.objects.lock().expect("a lock").len(), before);
        for command in
            [&["verify", "s3://lab/o/tiny"][..], &["compare", "s3://lab/o/tiny", "s3://lab/o/tiny"]]
        {
            let said = run(&workspace, &endpoint, command);
            assert_eq!(said.status, 0, "{command:?}: {}", said.said);
        }
        // Others do not touch it.
        let recipe = fs::read_to_string(workspace.path("recipe.yaml")).expect("the recipe");
        workspace.write("recipe.yaml", recipe.replace("quantize-int4", "quantize-int8"));
        let said = run(&workspace, &endpoint, &TO_STORE);
        assert!(said.status == 4 && said.said.contains("export::claimed"), "{}", said.said);
        assert!(published(&bucket) == expected, "{faults:?}");
    }
}

#[test]
fn an_output_in_a_bucket_is_verified_there() {
    let (workspace, _) = to_store();
    let recipe = fs::read_to_string(workspace.path("recipe.yaml")).expect("the recipe");
    workspace.write("recipe.yaml", format!("{recipe}    digest: sha256\n"));
    let (bucket, endpoint) = Bucket::default().start();
    assert_eq!(run(&workspace, &endpoint, &TO_STORE).status, 0);
    let verify = ["verify", "s3://lab/o/tiny"];
    assert_eq!(run(&workspace, &endpoint, &verify).status, 0);
    let change = |name: &str, change: &dyn Fn(&mut Vec<u8>)| {
        let key = format!("o/tiny/{name}");
        let object = bucket.objects.lock().expect("a lock")[&key].clone();
        change(&mut bucket.objects.lock().expect("a lock").get_mut(&key).expect("the object").bytes);
        let said = run(&workspace, &endpoint, &verify);
        assert!(said.status == 5 && said.said.contains(name), "{}", said.said);
        bucket.objects.lock().expect("a lock").insert(key, object);
    };
    let weights = bucket.files("o/tiny").into_keys().find(|name| name.ends_with(".safetensors"));
    change(&weights.expect("weights"), &|bytes| *bytes.last_mut().expect("a byte") ^= 1);
    change("tokenizer.json", &|bytes| bytes.push(b' '));
    change("SHA256SUMS", &|bytes| bytes[0] ^= 1);
    bucket.objects.lock().expect("a lock").remove("o/tiny/config.json");
    let said = run(&workspace, &endpoint, &verify);
    assert!(said.status == 5 && said.said.contains("not there"), "{}", said.said);
    let said = run(&workspace, &endpoint, &["verify", "s3://lab/m"]);
    assert_eq!(said.status, 3, "{}", said.said);
}

#[test]
fn a_failed_gate_leaves_nothing_in_a_bucket_and_other_gates_may_pass() {
    let gate = "  - stage: check-warnings\n    sqnr_warning_threshold: 90\n    sqnr_error_threshold: 80\n    on_failure: error\n";
    let workspace = Workspace::with(&Model::llama());
    workspace.whole_recipe(&format!(
        "  - stage: load\n    model: model\n  - stage: quantize-int4\n{gate}  - stage: export\n    path: s3://lab/o/tiny\n"
    ));
    let (bucket, endpoint) = Bucket::default().start();
    let said = run(&workspace, &endpoint, &TO_STORE);
    assert_eq!(said.status, 1, "{}", said.said);
    assert!(
        bucket.objects.lock().expect("a lock").is_empty()
            && bucket.uploads.lock().expect("a lock").is_empty()
    );
    let recipe = fs::read_to_string(workspace.path("recipe.yaml")).expect("the recipe");
    workspace.write("recipe.yaml", recipe.replace(gate, ""));
    let said = run(&workspace, &endpoint, &TO_STORE);
    assert_eq!(said.status, 0, "{}", said.said);
    assert!(bucket.files("o/tiny").contains_key("config.json"));
    // With the gates it is another output.
    workspace.write("recipe.yaml", recipe);
    let said = run(&workspace, &endpoint, &TO_STORE);
    assert!(said.status == 4 && said.said.contains("export::claimed"), "{}", said.said);
}

#[test]
fn what_keeps_an_output_out_of_a_bucket_is_told_before_the_work() {
    let (workspace, _) = to_store();
    let cases = [
        ((403, "ExpiredToken"), "the credentials have expired"),
        ((403, "SignatureDoesNotMatch"), "the credentials are wrong"),
        ((404, "NoSuchBucket"), "there is no such bucket"),
    ];
    for (refuses, words) in cases {
        let (_, endpoint) = Bucket { refuses: Some(refuses), ..Bucket::default() }.start();
        for command in ["plan", "run"] {
            let said = run(&workspace, &endpoint, &[command, "recipe.yaml"]);
            assert!(said.status == 4 && said.said.contains(words), "{command} {refuses:?}: {}", said.said);
            assert!(!said.said.contains("secret-of-the-test"));
        }
    }
    let (_, endpoint) = Bucket { is_read_only: true, ..Bucket::default() }.start();
    let said = run(&workspace, &endpoint, &TO_STORE);
    assert!(said.status == 4 && said.said.contains("access is denied"), "{}", said.said);
    assert!(!workspace.path(".monoquant-scratch").exists(), "no work was done");
    // Of somebody else.
    let (bucket, endpoint) = Bucket::default().start();
    bucket.objects.lock().expect("a lock").insert("o/tiny/notes".to_owned(), Default::default());
    let said = run(&workspace, &endpoint, &TO_STORE);
    assert!(said.status == 4 && said.said.contains("export::occupied"), "{}", said.said);
    assert_eq!(bucket.objects.lock().expect("a lock").len(), 1);
    let recipe = fs::read_to_string(workspace.path("recipe.yaml")).expect("the recipe");
    workspace.write("recipe.yaml", format!("{recipe}    overwrite: replace\n"));
    let planned = run(&workspace, &endpoint, &["plan", "recipe.yaml"]);
    assert!(planned.status == 2 && planned.said.contains("export::store-replace"), "{}", planned.said);
}
