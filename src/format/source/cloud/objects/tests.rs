use object_store::memory::InMemory;
use object_store::{PutPayload, path::Path};

use super::*;
use crate::exit::Exit;
use crate::format::source::Reader;

fn put(store: &Arc<InMemory>, path: &str, bytes: Vec<u8>) {
    let (store, path) = (Arc::clone(store), Path::from(path));
    wait(async move { store.put(&path, PutPayload::from(bytes)).await }).unwrap().unwrap();
}

fn list(store: &Arc<InMemory>, prefix: &str) -> Result<Objects, Failure> {
    let word = format!("s3://bucket/{prefix}");
    Objects::list(&word, Arc::clone(store) as Arc<dyn ObjectStore>, Path::from(prefix))
}

fn shown(source: &Objects) -> Vec<String> {
    source.list().into_iter().map(|entry| format!("{} {:?}", entry.path, entry.kind)).collect()
}

#[test]
fn the_objects_below_a_prefix_are_listed_like_files() {
    let store = Arc::new(InMemory::new());
    for (path, bytes) in [
        ("m/config.json", 2),
        ("m/deep/er/a.bin", 3),
        ("m/deep", 0),
        ("m/.monoquant/claim", 1),
        ("m/.hidden", 1),
        ("mm/config.json", 9),
        ("other", 1),
    ] {
        put(&store, path, vec![7; bytes]);
    }
    let source = list(&store, "m").unwrap();
    assert_eq!(
        shown(&source),
        [
            r#".hidden Skipped("hidden")"#,
            "config.json Blob(2)",
            "deep/er/a.bin Blob(3)",
            r#".monoquant/ Skipped("hidden")"#,
            "deep Folder",
            "deep/er Folder",
        ]
    );
    assert_eq!(source.place("config.json"), "s3://bucket/m/config.json");
    assert_eq!(source.read("config.json", 10).unwrap(), [7, 7]);
    assert_eq!(source.read("config.json", 1).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
    assert_eq!(source.open("nothing").unwrap_err().kind(), io::ErrorKind::NotFound);
}

#[test]
fn a_prefix_may_be_one_object_with_others_beside_it() {
    let store = Arc::new(InMemory::new());
    put(&store, "m/model.safetensors", vec![1; 5]);
    put(&store, "m/config.json", vec![2; 3]);
    let source = list(&store, "m/model.safetensors").unwrap();
    assert_eq!(source.single(), Some("model.safetensors"));
    assert_eq!(shown(&source), ["model.safetensors Blob(5)"]);
    assert_eq!(source.read("config.json", 10).unwrap(), [2; 3]);
    assert_eq!(source.place("config.json"), "s3://bucket/m/config.json");
}

#[test]
fn a_prefix_without_objects_is_told() {
    let store = Arc::new(InMemory::new());
    put(&store, "m/config.json", vec![1]);
    for prefix in ["n", "m/config", ""] {
        let failure = list(&store, prefix);
        assert_eq!(failure.is_err(), !prefix.is_empty(), "{prefix}");
        if let Err(failure) = failure {
            assert_eq!((failure.exit, failure.findings[0].code), (Exit::BadModel, code::NOT_FOUND));
        }
    }
    assert!(list(&Arc::new(InMemory::new()), "").is_err());
}

#[test]
fn an_object_is_read_in_ranges_of_one_version() {
    let store = Arc::new(InMemory::new());
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|n| (n / 7) as u8).collect();
    put(&store, "m/a", bytes.clone());
    let source = list(&store, "m").unwrap();
    let blob = source.open("a").unwrap();
    let mut read = Vec::new();
    io::Read::read_to_end(&mut Reader::new(&*blob), &mut read).unwrap();
    assert!(read == bytes);
    let mut some = vec![0; 2_000_000];
    blob.read_exact_at(900_000, &mut some).unwrap();
    assert!(some == bytes[900_000..2_900_000]);
    assert_eq!(blob.read_exact_at(2_000_000, &mut some).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    assert_eq!(blob.read_at(3_000_000, &mut some).unwrap(), 0);
    assert_eq!(blob.identity_now().unwrap(), *blob.identity());
    // Same length, other bytes.
    put(&store, "m/a", vec![1; bytes.len()]);
    assert!(Replaced::is(&blob.read_exact_at(0, &mut some).unwrap_err()));
    assert_ne!(list(&store, "m").unwrap().open("a").unwrap().identity(), blob.identity());
}

#[test]
fn what_is_there_now_is_asked_for_again() {
    let store = Arc::new(InMemory::new());
    put(&store, "m/a", vec![1; 10]);
    put(&store, "m/b", vec![1; 10]);
    let source = list(&store, "m").unwrap();
    let (a, b) = (source.open("a").unwrap(), source.open("b").unwrap());
    put(&store, "m/a", vec![2; 10]);
    let (gone, path) = (Arc::clone(&store), Path::from("m/b"));
    wait(async move { gone.delete(&path).await }).unwrap().unwrap();
    assert_ne!(a.identity_now().unwrap(), *a.identity());
    assert!(Replaced::is(&b.identity_now().unwrap_err()));
}

#[test]
fn words_that_name_no_bucket_are_told() {
    for word in ["s3://", "s3:///x", "s3://b/a//b"] {
        assert_eq!(open(word).unwrap_err().findings[0].code, code::NOT_FOUND, "{word}");
    }
}
