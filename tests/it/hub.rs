//! Models of the Hub that are not in its cache, read from a server that speaks as much of the Hub's API as that takes.

use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::json;
use sha2::{Digest, Sha256};

use crate::support::http::{Answer, Request, Run, serve};
use crate::support::{self, Model, Workspace, files};

const TOKEN: &str = "hf_secret";
const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A Hub with one model, `org/tiny`, and the host of its large files.
#[derive(Default)]
struct Hub {
    files: BTreeMap<String, Vec<u8>>,
    is_gated: bool,
    /// Every so many requests there is a fault: too busy, or a body that is cut off.
    faults: Option<usize>,
    /// Requests that an address of a large file lasts.
    lasts: Option<usize>,
    requests: AtomicUsize,
    /// Of each large file the number of addresses that were given out, and the requests of the last one.
    signed: Mutex<BTreeMap<String, (usize, usize)>>,
    /// Where the large files are.
    store: Mutex<String>,
    /// Faults of the client.
    wrong: Mutex<Vec<String>>,
}

fn is_large(path: &str) -> bool {
    path.ends_with(".safetensors")
}

fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Hub {
    fn of(workspace: &Workspace) -> Self {
        Self { files: files(&workspace.path("model")), ..Self::default() }
    }

    /// Starts both servers; the address of the Hub.
    fn start(self) -> (Arc<Self>, String) {
        let hub = Arc::new(self);
        let store = Arc::clone(&hub);
        *hub.store.lock().expect("a lock") = serve(move |request| store.faulty(request, Self::large));
        let api = Arc::clone(&hub);
        (Arc::clone(&hub), serve(move |request| api.faulty(request, Self::api)))
    }

    fn faulty(&self, request: &Request, answer: fn(&Self, &Request) -> Answer) -> Answer {
        let number = self.requests.fetch_add(1, Ordering::SeqCst);
        let kind =
            self.faults.map_or(2, |every| if number % every == every - 1 { number / every % 2 } else { 2 });
        if kind == 0 {
            return Answer::new(503, "busy");
        }
        Answer { is_cut: kind == 1, ..answer(self, request) }
    }

    fn api(&self, request: &Request) -> Answer {
        if self.is_gated && request.header("authorization") != Some(&format!("Bearer {TOKEN}")) {
            return Answer::new(401, "{}").with("X-Error-Code", "GatedRepo");
        }
        let (path, _) = request.target.split_once('?').unwrap_or((&request.target, ""));
        if path == "/api/models/org/tiny/revision/main" {
            return Answer::new(200, json!({"sha": COMMIT}).to_string());
        }
        if path == format!("/api/models/org/tiny/tree/{COMMIT}") {
            // A page for each file.
            let page: usize =
                request.target.split_once("page=").map_or(0, |(_, page)| page.parse().expect("a page"));
            let (name, bytes) = self.files.iter().nth(page).expect("a page that was named");
            let mut entry =
                json!({"type": "file", "path": name, "size": bytes.len(), "oid": format!("git-{name}")});
            if is_large(name) {
                entry["lfs"] = json!({"oid": hash(bytes), "size": bytes.len(), "pointerSize": 135});
            }
            let answer = Answer::new(200, json!([entry]).to_string());
            let more = format!("<{path}?recursive=true&page={}>; rel=\"next\"", page + 1);
            return if page + 1 < self.files.len() { answer.with("Link", more) } else { answer };
        }
        let Some(name) = path.strip_prefix(&format!("/org/tiny/resolve/{COMMIT}/")) else {
            let code =
                if path.starts_with("/api/models/org/tiny/") { "RevisionNotFound" } else { "RepoNotFound" };
            return Answer::new(if code == "RepoNotFound" { 401 } else { 404 }, "{}")
                .with("X-Error-Code", code);
        };
        let bytes = &self.files[name];
        if !is_large(name) {
            return Answer::of(bytes, request);
        }
        let mut signed = self.signed.lock().expect("a lock");
        let signed = signed.entry(name.to_owned()).or_default();
        *signed = (signed.0 + 1, 0);
        let to = format!("{}/{name}?signed={}", self.store.lock().expect("a lock"), signed.0);
        Answer::new(302, "").with("Location", to).with("X-Linked-ETag", format!("\"{}\"", hash(bytes)))
    }

    fn large(&self, request: &Request) -> Answer {
        if request.header("authorization").is_some() {
            self.wrong.lock().expect("a lock").push("the token was sent to another host".to_owned());
        }
        let (path, query) = request.target.split_once('?').expect("a signed address");
        let number: usize = query.strip_prefix("signed=").expect("a number").parse().expect("a number");
        let mut signed = self.signed.lock().expect("a lock");
        let signed = signed.entry(path.trim_start_matches('/').to_owned()).or_default();
        signed.1 += 1;
        if self.lasts.is_some_and(|lasts| number < signed.0 || signed.1 > lasts) {
            return Answer::new(403, "<Error><Code>AccessDenied</Code></Error>");
        }
        Answer::of(&self.files[path.trim_start_matches('/')], request)
    }

    fn check(&self) {
        assert_eq!(*self.wrong.lock().expect("a lock"), Vec::<String>::new());
    }
}

/// A workspace with a model, and what one run of it from the folder writes.
fn made() -> (Workspace, BTreeMap<String, Vec<u8>>) {
    let workspace = Workspace::with(&Model::llama());
    let recipe = workspace.recipe("  - stage: quantize-int4\n  - stage: validate\n");
    workspace.run(&recipe).exits(0);
    let written = written(&workspace);
    fs::remove_dir_all(workspace.path("out")).expect("the output");
    (workspace, written)
}

fn written(workspace: &Workspace) -> BTreeMap<String, Vec<u8>> {
    let mut files = files(&workspace.path("out"));
    // Reports, cards and recipes name the model.
    files.retain(|name, _| is_large(name) || name == "config.json");
    files
}

fn run(workspace: &Workspace, endpoint: &str, args: &[&str], variables: &[(&str, &str)]) -> Run {
    let mut command = workspace.command(args.iter().copied());
    command
        .env("HF_ENDPOINT", endpoint)
        .env("HF_HUB_CACHE", workspace.path("cache"))
        .env_remove("HF_HUB_OFFLINE");
    command.envs(variables.iter().copied());
    let (status, said) = workspace.ended(command.output().expect("the binary runs")).told();
    Run { status, said }
}

const RUN: [&str; 4] = ["run", "recipe.yaml", "--model", "hf://org/tiny"];

#[test]
fn a_model_that_is_not_in_the_cache_is_read_from_the_hub() {
    let (workspace, expected) = made();
    let (hub, endpoint) = Hub::of(&workspace).start();
    let said = run(&workspace, &endpoint, &RUN, &[("HF_TOKEN", TOKEN)]);
    assert_eq!(said.status, 0, "{}", said.said);
    assert!(written(&workspace) == expected);
    assert!(!workspace.path("cache").exists(), "nothing of the source is on the disk");
    hub.check();
    // The commit is pinned by a lock.
    assert_eq!(
        run(&workspace, &endpoint, &["lock", "recipe.yaml", "--model", "hf://org/tiny"], &[]).status,
        0
    );
    let lock = fs::read_to_string(workspace.path("monoquant.lock")).expect("the lock");
    assert!(lock.contains(COMMIT), "{lock}");
    // Hashes say that nothing has changed: no weight is read again.
    let before = hub.requests.load(Ordering::SeqCst);
    let said = run(&workspace, &endpoint, &RUN, &[]);
    assert!(said.status == 0 && said.said.contains("up to date"), "{}", said.said);
    let asked = hub.requests.load(Ordering::SeqCst) - before;
    assert!(asked < 60, "{asked} requests");
}

#[test]
fn faults_and_addresses_that_expire_change_nothing() {
    for (faults, lasts) in [(Some(3), None), (None, Some(1)), (Some(5), Some(2))] {
        let (workspace, expected) = made();
        let (hub, endpoint) = Hub { faults, lasts, ..Hub::of(&workspace) }.start();
        let said = run(&workspace, &endpoint, &RUN, &[("HF_TOKEN", TOKEN)]);
        assert_eq!(said.status, 0, "{faults:?} {lasts:?}: {}", said.said);
        assert!(written(&workspace) == expected);
        hub.check();
    }
}

#[test]
fn gated_repositories_want_a_token() {
    let (workspace, expected) = made();
    let (_, endpoint) = Hub { is_gated: true, ..Hub::of(&workspace) }.start();
    for (token, words) in [("", "set `HF_TOKEN`"), ("hf_other", "the token does not open it")] {
        let said = run(&workspace, &endpoint, &RUN, &[("HF_TOKEN", token)]);
        assert_eq!(said.status, 3, "{}", said.said);
        assert!(said.said.contains("gated") && said.said.contains(words), "{}", said.said);
        assert!(!said.said.contains("hf_other"));
    }
    let said = run(&workspace, &endpoint, &RUN, &[("HF_TOKEN", TOKEN)]);
    assert_eq!(said.status, 0, "{}", said.said);
    assert!(written(&workspace) == expected && !said.said.contains(TOKEN));
}

#[test]
fn names_and_revisions_that_are_not_there_are_told_and_a_silent_hub_is_tried_again() {
    let (workspace, _) = made();
    let (hub, endpoint) = Hub::of(&workspace).start();
    for (name, words) in [("hf://org/none", "no such model"), ("hf://org/tiny@v9", "no such revision")] {
        let said = run(&workspace, &endpoint, &["plan", "recipe.yaml", "--model", name], &[]);
        assert_eq!(said.status, 3, "{}", said.said);
        assert!(said.said.contains(words), "{}", said.said);
    }
    // Nobody is asked.
    let before = hub.requests.load(Ordering::SeqCst);
    let said = run(&workspace, &endpoint, &RUN, &[("HF_HUB_OFFLINE", "1")]);
    assert!(said.status == 3 && said.said.contains("HF_HUB_OFFLINE"), "{}", said.said);
    assert_eq!(hub.requests.load(Ordering::SeqCst), before);
    let (_, busy) = Hub { faults: Some(1), ..Hub::default() }.start();
    let said = run(&workspace, &busy, &RUN, &[]);
    assert_eq!(said.status, 75, "{}", said.said);
}

#[test]
fn a_model_in_the_cache_is_read_from_there() {
    let (workspace, _) = made();
    let (hub, endpoint) = Hub::of(&workspace).start();
    let snapshot = workspace.path("cache/models--org--tiny/snapshots").join(COMMIT);
    Model::llama().write(&snapshot);
    workspace.write("cache/models--org--tiny/refs/main", COMMIT);
    let said = run(&workspace, &endpoint, &RUN, &[]);
    assert_eq!(said.status, 0, "{}", said.said);
    assert_eq!(hub.requests.load(Ordering::SeqCst), 0);
    assert!(support::report(&workspace.path("out")).balance.balanced);
}
