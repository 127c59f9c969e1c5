use std::fs;

use super::*;

fn tensor(name: &str) -> Finished {
    Finished {
        name: name.into(),
        numbers: fingerprint("1"),
        output: fingerprint("2"),
        source: Box::new([3]),
        tasks: Box::new([None, Some(Distortion { count: 4, signal: 0.1, ..Distortion::default() })]),
        not_finite: None,
        parts: Box::new([WrittenPart { file: FileId::new(0), offset: 8, bytes: 4, checksum: u64::MAX }]),
    }
}

fn fingerprint(text: &str) -> Fingerprint {
    serde_json::from_value(format!("{text:0>32}").into()).unwrap()
}

fn made() -> Header {
    let checks = Checks { finite: true, round_trip: true, measure: true };
    Header::new(checks, fingerprint("0"))
}

/// A record or a journal of three tensors, as text.
fn written(folder: &Path, is_complete: bool) -> (PathBuf, String) {
    let target = folder.join("out");
    let tensors = ["a", "b", "c"].map(tensor);
    let path = if is_complete {
        let path = hidden::record(&target);
        let mut each = tensors.into_iter();
        write(&path, &hidden::new(&target), &made(), Tensors::Each(3, &mut each)).unwrap();
        path
    } else {
        let journal = Journal::begin(&target, &made()).unwrap();
        tensors.iter().try_for_each(|tensor| journal.add(tensor)).unwrap();
        hidden::journal(&target)
    };
    let text = fs::read_to_string(&path).unwrap();
    (path, text)
}

fn names(path: &Path) -> Option<String> {
    match read(path, Some) {
        Found::Record(_, finished) => Some(finished.iter().map(|tensor| tensor.name.as_str()).collect()),
        _ => None,
    }
}

#[test]
fn what_was_written_is_read_and_lines_are_json() {
    let folder = tempfile::tempdir().unwrap();
    for is_complete in [true, false] {
        let (path, text) = written(folder.path(), is_complete);
        let Found::Record(found, finished) = read(&path, Some) else { panic!("it is there") };
        assert_eq!(finished, ["a", "b", "c"].map(tensor));
        assert_eq!(found, Header { tensors: is_complete.then_some(3), ..made() });
        for line in text.lines() {
            assert!(serde_json::from_str::<serde_json::Value>(line).unwrap()["hash"].is_string());
        }
    }
}

#[test]
fn a_record_is_made_of_a_journal_that_nobody_changed() {
    let folder = tempfile::tempdir().unwrap();
    let (path, text) = written(folder.path(), true);
    let target = folder.path().join("out");
    let journal = Journal::begin(&target, &made()).unwrap();
    ["a", "b", "c"].iter().try_for_each(|name| journal.add(&tensor(name))).unwrap();
    let again = || write(&path, &hidden::new(&target), &made(), Tensors::Of(&journal));
    again().unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), text);
    let lines = fs::read_to_string(hidden::journal(&target)).unwrap();
    let short: Vec<&str> = lines.split_inclusive('\n').take(3).collect();
    for changed in [lines.replacen("\"b\"", "\"x\"", 1), short.concat(), String::new()] {
        fs::write(hidden::journal(&target), changed).unwrap();
        assert!(again().is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
    }
}

#[test]
fn a_record_with_any_byte_changed_or_line_missing_is_none() {
    let folder = tempfile::tempdir().unwrap();
    let (path, text) = written(folder.path(), true);
    for at in (0..text.len()).step_by(7) {
        let mut bytes = text.clone().into_bytes();
        bytes[at] ^= 1;
        fs::write(&path, &bytes).unwrap();
        assert_eq!(names(&path), None, "byte {at}");
    }
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    for left_out in 0..lines.len() {
        let left: Vec<&str> =
            lines.iter().enumerate().filter(|(n, _)| *n != left_out).map(|(_, l)| *l).collect();
        fs::write(&path, left.concat()).unwrap();
        assert_eq!(names(&path), None, "line {left_out}");
    }
    let swapped = [lines[0], lines[2], lines[1], lines[3]].concat();
    for text in [swapped, format!("{text}{}", lines[1]), text[..text.len() - 1].to_owned()] {
        fs::write(&path, text).unwrap();
        assert_eq!(names(&path), None);
    }
}

#[test]
fn a_journal_ends_at_the_first_line_that_is_not_whole() {
    let folder = tempfile::tempdir().unwrap();
    let (path, text) = written(folder.path(), false);
    let end = text.find("\n").unwrap() + 1;
    for cut in end..text.len() {
        fs::write(&path, &text[..cut]).unwrap();
        let whole = text[..cut].matches('\n').count() - 1;
        assert_eq!(names(&path).as_deref(), Some(&"abc"[..whole]), "{cut} bytes");
    }
    fs::write(&path, &text[..end - 1]).unwrap();
    assert_eq!(names(&path), None);
}

#[test]
fn another_build_or_version_is_named_and_not_believed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("record");
    let said = |change: fn(&mut Header)| {
        let mut header = made();
        change(&mut header);
        fs::write(&path, sealed(&[serde_json::to_string(&header).unwrap()])).unwrap();
        match read(&path, Some) {
            Found::OfAnother(what) => what,
            found => format!("{found:?}"),
        }
    };
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(said(|header| header.build = "0".repeat(16)), format!("another build of version {version}"));
    assert_eq!(said(|header| header.record_version = 1), format!("another build of version {version}"));
    assert_eq!(said(|header| header.monoquant = "9.9.9".to_owned()), "version 9.9.9");
    assert!(said(|_| {}).starts_with("Record"));
}
