use std::fs;
use std::path::Path as File;
use std::sync::atomic::Ordering;
use std::thread;

use object_store::memory::InMemory;

use super::*;
use crate::report::FileRecord;

/// An output on this machine, and a bucket.
struct Lab {
    folder: tempfile::TempDir,
    bucket: Arc<InMemory>,
}

const PREFIX: &str = "models/tiny";

/// More than one part, one part, nothing, and files beside them.
const LENGTHS: [(&str, usize); 5] = [
    ("model-00001-of-00003.safetensors", (8 << 20) + 5),
    ("model-00002-of-00003.safetensors", 100),
    ("model-00003-of-00003.safetensors", 0),
    ("deep/tokenizer.json", 50),
    ("config.json", 20),
];

impl Lab {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (name, len) in LENGTHS {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, (0..len).map(|at| (at % 251) as u8).collect::<Vec<_>>()).unwrap();
        }
        Self { folder, bucket: Arc::new(InMemory::new()) }
    }

    fn store(&self, plan: &str) -> Store {
        let bucket: Arc<dyn Bucket> = Arc::clone(&self.bucket) as Arc<dyn Bucket>;
        Store::new("s3://lab/models/tiny", bucket, Path::from(PREFIX), plan.to_owned())
    }

    /// A process that dies after so many requests.
    fn dying(&self, plan: &str, requests: usize) -> Store {
        Store { left: requests.into(), ..self.store(plan) }
    }

    fn files(&self) -> Vec<Local> {
        LENGTHS.map(|(name, _)| self.file(name)).into_iter().collect()
    }

    fn file(&self, name: &str) -> Local {
        let Sum { bytes, crc64nvme } = Sum::of(&fs::read(self.folder.path().join(name)).unwrap());
        Local::new(self.folder.path(), FileRecord { name: name.to_owned(), bytes, crc64nvme, blake3: None })
    }

    fn publish(&self, store: &Store) -> Result<(), Failure> {
        quietly(|going| store.publish(&self.files(), Vec::new(), going))
    }

    /// Uploads one file as a group of its own.
    fn upload(&self, store: &Store, file: &Local, told: &str) -> Result<Group, Failure> {
        quietly(|going| store.uploaded(std::slice::from_ref(file), told, going))
    }

    /// The names below the prefix, without those that are not for readers.
    fn visible(&self) -> Vec<String> {
        let keys = self.store("any").list(&Path::from(PREFIX)).unwrap();
        let names = keys.iter().map(|key| key.as_ref()[PREFIX.len() + 1..].to_owned());
        let mut names: Vec<String> = names.filter(|name| !name.starts_with(OURS)).collect();
        names.sort();
        names
    }

    fn assert_published(&self) {
        let mut names = LENGTHS.map(|(name, _)| name);
        names.sort_unstable();
        assert_eq!(self.visible(), names);
        for name in names {
            let there = self.store("any").file(name).unwrap();
            assert!(there == fs::read(File::new(self.folder.path()).join(name)).unwrap(), "{name}");
        }
    }

    /// A reader takes what has a `config.json` for a model: then everything must be there.
    fn assert_absent_or_whole(&self) {
        if self.visible().iter().any(|name| name == LAST) {
            self.assert_published();
        }
    }
}

/// Does something that uploads files and that nobody ends or watches.
fn quietly<T>(upload: impl FnOnce(&Going<'_>) -> T) -> T {
    upload(&Going { cancel: &Cancel::default(), sent: &|_| {} })
}

fn code(failure: &Failure) -> (&'static str, Exit) {
    (failure.findings[0].code, failure.exit)
}

#[test]
fn a_publication_is_whole_and_done_again_without_harm() {
    let lab = Lab::new();
    let store = lab.store("p");
    assert!(store.claim().unwrap() && !store.claim().unwrap());
    assert!(store.published().unwrap().is_none());
    lab.publish(&store).unwrap();
    lab.assert_published();
    let manifest = store.published().unwrap().unwrap();
    let config = fs::read(lab.folder.path().join(LAST)).unwrap();
    assert!(manifest.has(LAST, &config) && !manifest.has(LAST, b"{}") && !manifest.has("other", &config));
    let before = store.list(&Path::from(PREFIX)).unwrap();
    lab.publish(&store).unwrap();
    assert_eq!(store.list(&Path::from(PREFIX)).unwrap(), before);
    assert!(store.list(&store.own("uploads").unwrap()).unwrap().is_empty());
}

#[test]
fn a_process_may_die_after_any_request_and_another_goes_on() {
    // So many requests make a publication.
    let lab = Lab::new();
    let counted = lab.dying("p", 10_000);
    lab.publish(&counted).unwrap();
    let all = 10_000 - counted.left.load(Ordering::SeqCst);
    assert!(all > 20, "{all}");
    for requests in 0..all {
        let lab = Lab::new();
        lab.publish(&lab.dying("p", requests)).unwrap_err();
        lab.assert_absent_or_whole();
        // The next one dies, too, and the third does not.
        let _ = lab.publish(&lab.dying("p", all / 2));
        lab.assert_absent_or_whole();
        lab.publish(&lab.store("p")).unwrap();
        lab.assert_published();
        let store = lab.store("p");
        assert!(store.list(&store.own("uploads").unwrap()).unwrap().is_empty(), "after {requests}");
    }
}

#[test]
fn processes_of_one_plan_may_publish_at_once() {
    for _ in 0..5 {
        let lab = Lab::new();
        let ended: Vec<Result<(), Failure>> = thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| lab.publish(&lab.store("p")))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        for ended in ended {
            ended.unwrap();
        }
        lab.assert_published();
    }
}

#[test]
fn nothing_is_visible_before_all_uploads_are_recorded() {
    let lab = Lab::new();
    let store = lab.store("p");
    store.claim().unwrap();
    let files: Vec<Local> = lab.files().into_iter().filter(Local::is_uploaded).collect();
    let groups: Vec<Group> = files.iter().map(|file| lab.upload(&store, file, "told").unwrap()).collect();
    assert_eq!((groups.len(), lab.visible().len()), (3, 0));
    // A second process takes the groups of the first.
    for (file, group) in files.iter().zip(&groups) {
        assert_eq!(lab.upload(&lab.store("p"), file, "other").unwrap(), *group);
    }
    assert_eq!(lab.store("p").groups().unwrap(), groups);
    let cancel = Cancel::default();
    cancel.cancel();
    let ended = lab.store("p").publish(&lab.files(), Vec::new(), &Going { cancel: &cancel, sent: &|_| {} });
    assert_eq!(ended.unwrap_err().exit, Exit::Interrupted);
    assert!(lab.visible().is_empty());
    // With what is uploaded, the files are no longer needed here.
    for file in &files {
        fs::write(&file.path, "gone").unwrap();
    }
    let small: Vec<Local> =
        lab.files().into_iter().filter(|file| !file.name.ends_with(".safetensors")).collect();
    quietly(|going| lab.store("p").publish(&small, groups, going)).unwrap();
    assert_eq!(lab.visible().len(), LENGTHS.len());
    assert!(store.list(&store.own("uploads").unwrap()).unwrap().is_empty());
}

#[test]
fn what_a_failed_run_has_uploaded_is_discarded_but_not_what_is_published() {
    let lab = Lab::new();
    let store = lab.store("p");
    store.claim().unwrap();
    for file in lab.files().iter().filter(|file| file.is_uploaded()) {
        lab.upload(&store, file, "").unwrap();
    }
    lab.store("p").discard().unwrap();
    assert!(store.list(&Path::from(PREFIX)).unwrap().is_empty());
    lab.publish(&lab.store("p")).unwrap();
    lab.store("p").discard().unwrap();
    lab.assert_published();
}

#[test]
fn files_of_other_codes_take_the_place_of_those_that_are_not_published() {
    let lab = Lab::new();
    let store = lab.store("p");
    store.claim().unwrap();
    let name = "model-00002-of-00003.safetensors";
    lab.upload(&store, &lab.file(name), "first").unwrap();
    fs::write(lab.folder.path().join(name), "others").unwrap();
    let second = lab.upload(&lab.store("p"), &lab.file(name), "second").unwrap();
    assert_eq!((second.told.as_str(), store.groups().unwrap()), ("second", vec![second.clone()]));
    lab.publish(&store).unwrap();
    assert!(store.file(name).unwrap() == b"others");
    fs::write(lab.folder.path().join(name), "too late").unwrap();
    let late = lab.upload(&lab.store("p"), &lab.file(name), "third").unwrap_err();
    assert_eq!(code(&late).0, code::CLAIMED);
    // A file that is not what it was.
    fs::write(lab.folder.path().join("model-00003-of-00003.safetensors"), "x").unwrap();
    let file = lab.file("model-00003-of-00003.safetensors");
    fs::write(&file.path, "y").unwrap();
    assert_eq!(lab.upload(&Lab::new().store("p"), &file, "").unwrap_err().exit, Exit::OutputDamaged);
}

#[test]
fn a_right_to_write_is_tried_before_the_work() {
    let lab = Lab::new();
    let store = lab.store("p");
    store.try_to_write(true).unwrap();
    assert!(store.list(&Path::from(PREFIX)).unwrap().is_empty());
    lab.store("other").claim().unwrap();
    store.try_to_write(false).unwrap();
    assert_eq!(code(&store.try_to_write(true).unwrap_err()).0, code::CLAIMED);
    lab.store("other").withdraw().unwrap();
    store.create(&store.key("notes.txt").unwrap(), b"mine").unwrap();
    assert_eq!(code(&store.try_to_write(false).unwrap_err()).0, code::OCCUPIED);
}

#[test]
fn a_prefix_is_of_one_plan_and_is_given_back_by_a_run_that_published_nothing() {
    let lab = Lab::new();
    let (first, second) = (lab.store("first"), lab.store("second"));
    assert!(first.claim().unwrap());
    assert_eq!(code(&second.claim().unwrap_err()), (code::CLAIMED, Exit::CannotWrite));
    assert_eq!(code(&lab.publish(&second).unwrap_err()), (code::CLAIMED, Exit::CannotWrite));
    first.withdraw().unwrap();
    assert!(lab.store("any").list(&Path::from(PREFIX)).unwrap().is_empty(), "nothing is left");
    assert!(second.claim().unwrap());
    // The first is at its end meanwhile: it does not publish.
    assert_eq!(code(&lab.publish(&first).unwrap_err()).0, code::CLAIMED);
    lab.publish(&second).unwrap();
    // What is published is not given back.
    second.withdraw().unwrap();
    assert_eq!(code(&first.claim().unwrap_err()).0, code::CLAIMED);
    lab.assert_published();
}

#[test]
fn nothing_is_ever_replaced() {
    let lab = Lab::new();
    let store = lab.store("p");
    store.create(&store.key("notes.txt").unwrap(), b"mine").unwrap();
    assert_eq!(code(&store.claim().unwrap_err()), (code::OCCUPIED, Exit::CannotWrite));
    assert!(store.read(&store.claim_key().unwrap()).unwrap().is_none());

    // The same weights with another recipe beside them.
    let lab = Lab::new();
    lab.publish(&lab.store("p")).unwrap();
    fs::write(lab.folder.path().join("deep/tokenizer.json"), "another").unwrap();
    assert_eq!(code(&lab.publish(&lab.store("p")).unwrap_err()).0, code::CLAIMED);
    assert!(lab.store("p").file("deep/tokenizer.json").unwrap().len() == 50);

    // Somebody has put a file there after the claim.
    for name in ["model-00002-of-00003.safetensors", "deep/tokenizer.json"] {
        let lab = Lab::new();
        let store = lab.store("p");
        store.claim().unwrap();
        store.create(&store.key(name).unwrap(), b"mine").unwrap();
        assert_eq!(code(&lab.publish(&store).unwrap_err()).0, code::CLAIMED, "{name}");
        assert!(store.file(name).unwrap() == b"mine" && store.published().unwrap().is_none());
    }
}

#[test]
fn an_object_that_is_removed_while_it_is_read_is_absent() {
    let answer = |code: &str| Error::Generic {
        store: "S3",
        source: format!(
            "Server returned non-2xx status code: 404 Not Found: <Error><Code>{code}</Code></Error>"
        )
        .into(),
    };
    assert!(is_absent(&answer("NoSuchKey")) && !is_absent(&answer("NoSuchBucket")));
    assert!(!is_absent(&Error::PermissionDenied { path: "p".into(), source: "no".into() }));
}

#[test]
fn names_that_no_store_holds_and_records_of_others_are_told() {
    let lab = Lab::new();
    let store = lab.store("p");
    assert_eq!(code(&store.key("a//b").unwrap_err()).0, code::STORE);
    let file = lab.file("model-00002-of-00003.safetensors");
    let key = store.own("files/model-00002-of-00003.safetensors.json").unwrap();
    store.create(&key, b"{").unwrap();
    assert_eq!(code(&lab.upload(&store, &file, "").unwrap_err()).0, code::OCCUPIED);
    let trouble = Trouble::temporary("it sleeps");
    assert_eq!(code(&failed("s3://lab/m", &trouble)), (code::UNREACHABLE, Exit::TryAgain));
}
