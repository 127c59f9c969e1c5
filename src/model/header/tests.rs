//! Damaged, hostile, or merely odd headers.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

/// A file with this header and `data` bytes of data.
fn file(header: &[u8], data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header);
    bytes.resize(bytes.len() + data, 0);
    bytes
}

fn read_bytes(bytes: &[u8]) -> Result<Header, Vec<Finding>> {
    read(bytes, bytes.len() as u64, "m.safetensors")
}

fn read_json(header: &str, data: usize) -> Result<Header, Vec<Finding>> {
    read_bytes(&file(header.as_bytes(), data))
}

fn codes(result: Result<Header, Vec<Finding>>) -> Vec<&'static str> {
    result.expect_err("refused").into_iter().map(|finding| finding.code).collect()
}

fn entry(dtype: &str, shape: &[u64], start: u64, end: u64) -> Value {
    json!({"dtype": dtype, "shape": shape, "data_offsets": [start, end]})
}

#[test]
fn tensors_are_ordered_by_offset_and_metadata_by_key() {
    let header = json!({
        "__metadata__": {"z": "1", "dtype": "is a key like any other"},
        "late": entry("F32", &[2], 8, 16),
        "early": entry("BF16", &[2, 2], 0, 8),
        "odd": {"dtype": "U8", "shape": [0], "data_offsets": [16, 16], "skipped": {"y": [1.5, null]}},
    });
    let text = format!("{header}   ");
    let header = read_json(&text, 16).unwrap();
    let names: Vec<String> = header.tensors().map(|t| t.name.to_string()).collect();
    assert_eq!(names, ["early", "late", "odd"]);
    let start = 8 + text.len() as u64;
    let tensor = header.tensors().nth(1).unwrap();
    assert_eq!((header.data_start, tensor.offset, tensor.bytes), (start, start + 8, 8));
    assert_eq!(header.metadata.keys().collect::<Vec<_>>(), ["dtype", "z"]);
}

#[test]
fn empty_tensors_scalars_and_empty_headers_are_legal() {
    assert_eq!(read_json("{}", 0).unwrap().tensors().len(), 0);
    let header = json!({
        "none": entry("F32", &[0, 7], 0, 0),
        "one": entry("F16", &[], 0, 2),
        "end": entry("I8", &[3, 0], 2, 2),
    });
    let header = read_json(&header.to_string(), 2).unwrap();
    assert_eq!(header.tensors().map(|t| t.bytes).sum::<u64>(), 2);
}

#[test]
fn lengths_are_bounded() {
    for length in [u64::MAX, u64::MAX - 7, 1 << 63, MAX_HEADER + 1, 11] {
        let mut bytes = length.to_le_bytes().to_vec();
        bytes.extend_from_slice(b"{}        ");
        assert_eq!(codes(read_bytes(&bytes)), [code::HEADER], "{length}");
    }
    for bytes in [&b""[..], b"1234567"] {
        assert_eq!(codes(read_bytes(bytes)), [code::LENGTH]);
    }
    // The file was longer when its length was asked for.
    assert_eq!(codes(read(&file(b"{}", 0)[..9], 10, "m")), [code::HEADER]);
}

#[test]
fn a_git_lfs_pointer_is_recognised() {
    let finding = &read_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n").unwrap_err()[0];
    assert!(finding.message.contains("Git LFS"), "{}", finding.message);
}

#[test]
fn a_short_file_says_how_much_is_missing() {
    let header = json!({"a": entry("F32", &[4], 0, 16), "b": entry("F32", &[4], 16, 32)}).to_string();
    let findings = read_json(&header, 20).unwrap_err();
    assert_eq!(findings.len(), 1);
    assert!(findings[0].message.contains("12 bytes short"), "{}", findings[0].message);
    assert_eq!(codes(read_json(&header, 33)), [code::LENGTH]);
}

#[test]
fn what_is_not_the_json_of_a_header_is_refused() {
    let deep = "[".repeat(100_000);
    let nested = format!("{{\"a\": {}", "{\"a\": ".repeat(50_000));
    let ignored = format!("{{\"a\": {{\"x\": {}{}}}}}", "[".repeat(10_000), "]".repeat(10_000));
    let texts = [
        "",
        "[]",
        "{",
        r#"{"\u001b[31m": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}"#,
        "null",
        "{}x",
        "{\"a\": 1}",
        "{\"a\": {}}",
        &deep,
        &nested,
        &ignored,
        r#"{"__metadata__": {"a": 1}}"#,
        r#"{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}"#,
        r#"{"a": {"dtype": "F32", "shape": [1.5], "data_offsets": [0, 4]}}"#,
        r#"{"a": {"dtype": "F32", "shape": [1e3], "data_offsets": [0, 4]}}"#,
        r#"{"a": {"dtype": "F32", "shape": [18446744073709551616], "data_offsets": [0, 4]}}"#,
        r#"{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}"#,
        r#"{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 4]}}"#,
        r#"{"a": {"dtype": "F32", "shape": [1], "shape": [1], "data_offsets": [0, 4]}}"#,
    ];
    for text in texts {
        let short: String = text.chars().take(60).collect();
        assert_eq!(codes(read_json(text, 4)), [code::HEADER], "{short}");
    }
    assert_eq!(codes(read_bytes(&file(b"{\"\xff\xfe\": 1}", 0))), [code::HEADER]);
}

#[test]
fn duplicate_names_are_refused_everywhere() {
    let a = entry("F32", &[1], 0, 4);
    let b = entry("F32", &[1], 4, 8);
    assert!(codes(read_json(&format!("{{\"a\": {a}, \"a\": {b}}}"), 8)).contains(&code::DUPLICATE));
    // The same name in another spelling.
    assert!(codes(read_json(&format!("{{\"a\": {a}, \"\\u0061\": {b}}}"), 8)).contains(&code::DUPLICATE));
    let twice = r#"{"__metadata__": {"k": "1", "k": "2"}}"#;
    assert_eq!(codes(read_json(twice, 0)), [code::DUPLICATE]);
    assert_eq!(codes(read_json(r#"{"__metadata__": {}, "__metadata__": {}}"#, 0)), [code::DUPLICATE]);
}

#[test]
fn offsets_must_cover_the_data_once() {
    let of = |spans: &[(u64, u64)], data| {
        let entries = spans.iter().enumerate().map(|(i, &(start, end))| {
            (format!("t{i}"), entry("U8", &[end.saturating_sub(start)], start, end))
        });
        read_json(&Value::Object(entries.collect()).to_string(), data)
    };
    assert!(of(&[(0, 4), (4, 8)], 8).is_ok());
    assert_eq!(codes(of(&[(0, 5), (4, 8)], 8)), [code::OFFSETS], "overlap");
    assert_eq!(codes(of(&[(0, 8), (0, 8)], 8)), [code::OFFSETS], "the same bytes twice");
    assert_eq!(codes(of(&[(0, 8), (2, 4)], 8)), [code::OFFSETS], "one inside the other");
    assert_eq!(codes(of(&[(0, 3), (4, 8)], 8)), [code::OFFSETS], "hole");
    assert_eq!(codes(of(&[(1, 8)], 8)), [code::OFFSETS], "hole at the start");
    assert_eq!(codes(of(&[(0, 4)], 8)), [code::LENGTH], "data after the last tensor");
    assert!(codes(of(&[(8, 4)], 4)).contains(&code::OFFSETS), "end before start");
    assert!(codes(of(&[(0, 4), (4, u64::MAX)], 8)).contains(&code::LENGTH));
    assert!(codes(of(&[(u64::MAX - 1, u64::MAX)], 8)).contains(&code::LENGTH));
}

#[test]
fn shape_and_dtype_must_give_the_size() {
    let of = |dtype, shape: &[u64], end| read_json(&json!({"t": entry(dtype, shape, 0, end)}).to_string(), 8);
    assert_eq!(codes(of("F32", &[3], 8)), [code::OFFSETS]);
    assert_eq!(codes(of("F32", &[u64::MAX, 2], 8)), [code::OFFSETS]);
    assert_eq!(codes(of("F32", &[1 << 32, 1 << 32], 8)), [code::OFFSETS]);
    assert_eq!(codes(of("F4", &[15], 8)), [code::OFFSETS], "half a byte");
    assert!(of("F4", &[16], 8).is_ok());
    assert_eq!(codes(of("I4", &[16], 8)), [code::DTYPE]);
    assert_eq!(codes(of("bf16", &[4], 8)), [code::DTYPE]);
}

#[test]
fn many_problems_are_counted() {
    let entries = (0..100).map(|i| (format!("t{i:03}"), entry("Q8", &[1], i, i + 1)));
    let findings = read_json(&Value::Object(entries.collect()).to_string(), 100).unwrap_err();
    assert_eq!(findings.len(), MAX_FINDINGS + 1);
    assert!(findings[MAX_FINDINGS].message.contains("92 more"));
}

/// A valid file with a few tensors of all sorts.
fn valid() -> Vec<u8> {
    let header = json!({
        "__metadata__": {"format": "pt"},
        "model.layers.0.mlp.down_proj.weight": entry("BF16", &[4, 8], 0, 64),
        "model.layers.0.norm.weight": entry("F32", &[8], 64, 96),
        "scalar": entry("F64", &[], 96, 104),
        "empty": entry("I64", &[0, 3], 104, 104),
        "fp8": entry("F8_E4M3", &[8], 104, 112),
    });
    file(header.to_string().as_bytes(), 112)
}

/// Refused, or every tensor lies within the file and has the size of its shape.
fn check(bytes: &[u8]) -> Result<(), TestCaseError> {
    let Ok(header) = read_bytes(bytes) else { return Ok(()) };
    let mut end = header.data_start;
    for tensor in header.tensors() {
        prop_assert_eq!(tensor.offset, end);
        end += tensor.bytes;
        let elements = tensor.shape.iter().try_fold(1u64, |n, &axis| n.checked_mul(axis));
        prop_assert_eq!(elements.and_then(|n| n.checked_mul(tensor.dtype.bits())), Some(tensor.bytes * 8));
    }
    prop_assert_eq!(end, bytes.len() as u64);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn mutations_are_refused_or_in_range(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = valid();
        for (at, value) in edits {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        check(&bytes)?;
    }

    #[test]
    fn changed_numbers_are_refused_or_in_range(
        number in any::<prop::sample::Index>(),
        new in prop_oneof![0u64..200, any::<u64>()],
    ) {
        // Replaces one of the header's numbers, which flips of single bytes rarely do well.
        let text = String::from_utf8(valid()[8..].to_vec()).unwrap();
        let text = &text[..=text.rfind('}').unwrap()];
        let digits = numbers(text);
        let (start, end) = digits[number.index(digits.len())];
        let header = format!("{}{new}{}", &text[..start], &text[end..]);
        check(&file(header.as_bytes(), 112))?;
    }

    #[test]
    fn noise_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        check(&bytes)?;
        check(&file(&bytes, 8))?;
    }
}

/// The positions of numbers in a text.
fn numbers(text: &str) -> Vec<(usize, usize)> {
    let mut spans: Vec<(usize, usize)> = Vec::new();
    for (i, _) in text.bytes().enumerate().filter(|(_, b)| b.is_ascii_digit()) {
        match spans.last_mut() {
            Some((_, end)) if *end == i => *end = i + 1,
            _ => spans.push((i, i + 1)),
        }
    }
    spans
}
