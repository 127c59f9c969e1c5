//! Models in object stores, read from a server that speaks as much of S3 as that takes.

use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use crate::support::http::{Answer, Request, Run, serve};
use crate::support::{Model, Workspace, files};

/// A bucket called `lab`. A fault every so many requests: too busy, or a body that is cut off.
#[derive(Default)]
struct Bucket {
    objects: Mutex<BTreeMap<String, Vec<u8>>>,
    faults: Option<usize>,
    /// The code of an error that answers every request.
    refuses: Option<(u16, &'static str)>,
    /// After so many ranges of weights all objects are exchanged.
    exchanged: Option<usize>,
    requests: AtomicUsize,
    ranges: AtomicUsize,
}

fn tag(bytes: &[u8]) -> String {
    format!("\"{}\"", &blake3::hash(bytes).to_hex()[..32])
}

fn error(status: u16, code: &str) -> Answer {
    Answer::new(
        status,
        format!("<?xml version='1.0'?><Error><Code>{code}</Code><Message>no</Message></Error>"),
    )
}

impl Bucket {
    fn of(workspace: &Workspace) -> Self {
        let objects = files(&workspace.path("model")).into_iter();
        let objects = objects.map(|(name, bytes)| (format!("m/{name}"), bytes)).collect();
        Self { objects: Mutex::new(objects), ..Self::default() }
    }

    fn start(self) -> (Arc<Self>, String) {
        let bucket = Arc::new(self);
        let serving = Arc::clone(&bucket);
        (bucket, serve(move |request| serving.answer(request)))
    }

    fn answer(&self, request: &Request) -> Answer {
        let number = self.requests.fetch_add(1, Ordering::SeqCst);
        let kind =
            self.faults.map_or(2, |every| if number % every == every - 1 { number / every % 2 } else { 2 });
        if kind == 0 {
            return error(503, "SlowDown");
        }
        if let Some((status, code)) = self.refuses {
            return error(status, code);
        }
        let answer = self.found(request);
        Answer { is_cut: kind == 1 && request.method == "GET", ..answer }
    }

    fn found(&self, request: &Request) -> Answer {
        let (path, query) = request.target.split_once('?').unwrap_or((&request.target, ""));
        let Some(key) = path.strip_prefix("/lab") else { return error(404, "NoSuchBucket") };
        let mut objects = self.objects.lock().expect("a lock");
        if query.contains("list-type=2") {
            let listed = objects.iter().filter(|(key, _)| key.starts_with("m/")).map(|(key, bytes)| {
                format!(
                    "<Contents><Key>{key}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>{}</ETag>\
                     <Size>{}</Size></Contents>",
                    tag(bytes).replace('"', "&quot;"),
                    bytes.len()
                )
            });
            let listed: String = listed.collect();
            return Answer::new(
                200,
                format!(
                    "<ListBucketResult><Name>lab</Name><IsTruncated>false</IsTruncated>{listed}</ListBucketResult>"
                ),
            );
        }
        let key = key.trim_start_matches('/');
        let is_inside = request.header("range").is_some_and(|range| !range.starts_with("bytes=0-"));
        if key.ends_with(".safetensors")
            && is_inside
            && self.exchanged == Some(self.ranges.fetch_add(1, Ordering::SeqCst))
        {
            for bytes in objects.values_mut() {
                bytes.reverse();
            }
        }
        let Some(bytes) = objects.get(key) else { return error(404, "NoSuchKey") };
        if request.header("if-match").is_some_and(|wanted| wanted != tag(bytes)) {
            return error(412, "PreconditionFailed");
        }
        Answer::of(bytes, request)
            .with("ETag", tag(bytes))
            .with("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
    }
}

fn run(workspace: &Workspace, endpoint: &str, args: &[&str]) -> Run {
    let mut command = workspace.command(args.iter().copied());
    command
        .env("AWS_ENDPOINT_URL", endpoint)
        .env("AWS_ALLOW_HTTP", "true")
        .env("AWS_ACCESS_KEY_ID", "key")
        .env("AWS_SECRET_ACCESS_KEY", "secret-of-the-test");
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
