use std::fs;
use std::sync::Arc;

use half::bf16;
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::format::source::folder::Folder;
use crate::ids::{IdVec, ShardId, TensorId};
use crate::model::encoded::EncodedReader;
use crate::model::{self, ModelFolder};

/// A model of one file with one tensor, whose bytes are these.
fn model_of(dtype: &str, shape: &[u64], bytes: &[u8]) -> (TempDir, ModelFolder) {
    model_with(&[("t.weight", dtype, shape, bytes)])
}

fn model_with(tensors: &[(&str, &str, &[u64], &[u8])]) -> (TempDir, ModelFolder) {
    let folder = tempfile::tempdir().unwrap();
    let mut header = serde_json::Map::new();
    let mut data = Vec::new();
    for (name, dtype, shape, bytes) in tensors {
        let start = data.len();
        data.extend_from_slice(bytes);
        let entry = serde_json::json!({"dtype": dtype, "shape": shape, "data_offsets": [start, data.len()]});
        header.insert((*name).to_owned(), entry);
    }
    let text = serde_json::Value::Object(header).to_string();
    let mut file = (text.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(text.as_bytes());
    file.extend_from_slice(&data);
    fs::write(folder.path().join("m.safetensors"), file).unwrap();
    let opened = model::open(Arc::new(Folder::at(folder.path(), &[])), &[], &[]).unwrap();
    (folder, opened)
}

fn words(n: u64) -> Vec<u8> {
    (0..n).flat_map(|i| u16::try_from(i).unwrap().to_le_bytes()).collect()
}

/// Rows of a view read by tiles of `tile` rows, as U16 values.
fn read_all(folder: &ModelFolder, view: MatrixView, tile: u64) -> Vec<u16> {
    let file = WeightFile::open(&*folder.source, &folder.shards[ShardId::new(0)]).unwrap();
    let reader = MatrixReader::new(&file, &folder.tensors[TensorId::new(0)], view).unwrap();
    let (mut all, mut out, mut scratch) = (Vec::new(), vec![1, 2, 3], vec![9]);
    let mut row = 0;
    while row < view.rows {
        reader.rows(row..row + tile, &mut out, &mut scratch).unwrap();
        all.extend(out.as_chunks().0.iter().map(|b| u16::from_le_bytes(*b)));
        row += tile;
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn any_view_is_read_as_its_formula_says(
        rows in 1u64..20, cols in 1u64..20, layout in 0usize..5, expert in 0u64..3, tile in 1u64..25,
    ) {
        // Row stride, column stride and elements to skip for: plain, lower half, transposed, its right half,
        // interleaved.
        let (row_stride, column_stride, skip) =
            [(cols, 1, 0), (cols, 1, rows * cols), (1, rows, 0), (1, 2 * rows, rows), (2, 2 * rows, 1)][layout];
        let size = if layout == 2 { rows * cols } else { 2 * rows * cols };
        let (_guard, folder) = model_of("BF16", &[3, size], &words(3 * size));
        let view = MatrixView { first: expert * size + skip, rows, cols, row_stride, column_stride };
        let expected: Vec<u16> = (0..rows)
            .flat_map(|r| (0..cols).map(move |c| expert * size + skip + r * row_stride + c * column_stride))
            .map(|element| u16::try_from(element).unwrap())
            .collect();
        prop_assert_eq!(read_all(&folder, view, tile), expected);
    }
}

#[test]
fn wide_transposed_matrices_are_read_in_batches() {
    // More than one batch of stretches.
    let (rows, cols) = (600u64, 300u64);
    let values: Vec<u8> = (0..rows * cols).flat_map(|i| ((i % 65_521) as u16).to_le_bytes()).collect();
    let (_guard, folder) = model_of("F16", &[cols, rows], &values);
    let view = MatrixView::transposed(&folder.tensors[TensorId::new(0)]).unwrap();
    let all = read_all(&folder, view, 500);
    for (r, c) in [(0, 0), (1, 0), (599, 299), (499, 250), (500, 7)] {
        assert_eq!(u64::from(all[(r * cols + c) as usize]), (c * rows + r) % 65_521, "{r}, {c}");
    }
}

#[test]
fn doubles_arrive_as_singles() {
    let bytes: Vec<u8> = (0..6).flat_map(|i| (f64::from(i) + 0.1).to_le_bytes()).collect();
    let (_guard, folder) = model_of("F64", &[2, 3], &bytes);
    let file = WeightFile::open(&*folder.source, &folder.shards[ShardId::new(0)]).unwrap();
    let view = MatrixView::whole(&folder.tensors[TensorId::new(0)]).unwrap();
    let reader = MatrixReader::new(&file, &folder.tensors[TensorId::new(0)], view).unwrap();
    let (mut out, mut scratch) = (Vec::new(), Vec::new());
    reader.rows(1..2, &mut out, &mut scratch).unwrap();
    let values: Vec<f32> = out.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    assert_eq!(values, [3.1, 4.1, 5.1]);
}

#[test]
fn fp8_arrives_as_bf16_with_its_scales() {
    // 130 rows, so that the second row of blocks is ragged; code 0x38 is 1.
    let scales: Vec<u8> = [2.0f32, 3.0].iter().flat_map(|s| s.to_le_bytes()).collect();
    let tensors: &[(&str, &str, &[u64], &[u8])] =
        &[("t.weight", "F8_E4M3", &[130, 2], &[0x38; 260]), ("t.weight_scale_inv", "F32", &[2, 1], &scales)];
    let (_guard, folder) = model_with(tensors);
    let file = WeightFile::open(&*folder.source, &folder.shards[ShardId::new(0)]).unwrap();
    let index = folder.find("t.weight").unwrap();
    let view = MatrixView::whole(&folder.tensors[index]).unwrap();
    assert!(MatrixReader::new(&file, &folder.tensors[index], view).is_err(), "never without scales");
    let files: IdVec<ShardId, WeightFile> = vec![file].into();
    let reader = EncodedReader::new(&folder, &files, index).unwrap();
    let (mut out, mut codes) = (Vec::new(), Vec::new());
    let ranges = reader.rows(&view.rows(127..130), &mut out, &mut codes).unwrap();
    assert_eq!((ranges.start, ranges.total(), codes), (254, 6, vec![0x38; 6]));
    let values: Vec<f32> = out.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect();
    assert_eq!(values, [2.0, 2.0, 3.0, 3.0, 3.0, 3.0]);
}

#[test]
fn a_file_cut_off_while_it_is_read_is_an_error_with_a_name() {
    let (guard, folder) = model_of("BF16", &[4, 4], &words(16));
    let file = WeightFile::open(&*folder.source, &folder.shards[ShardId::new(0)]).unwrap();
    let path = guard.path().join("m.safetensors");
    fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(folder.shards[ShardId::new(0)].len - 1)
        .unwrap();
    let view = MatrixView::whole(&folder.tensors[TensorId::new(0)]).unwrap();
    let reader = MatrixReader::new(&file, &folder.tensors[TensorId::new(0)], view).unwrap();
    let (mut out, mut scratch) = (Vec::new(), Vec::new());
    assert!(reader.rows(0..3, &mut out, &mut scratch).is_ok());
    let failure = reader.rows(3..4, &mut out, &mut scratch).unwrap_err();
    assert_eq!((failure.exit, failure.findings[0].code), (Exit::BadModel, code::SHORT_READ));
    assert!(failure.findings[0].message.contains("m.safetensors"));
    assert_eq!(
        WeightFile::open(&*folder.source, &folder.shards[ShardId::new(0)]).unwrap_err().findings[0].code,
        code::CHANGED
    );
    fs::remove_file(path).unwrap();
    assert_eq!(
        WeightFile::open(&*folder.source, &folder.shards[ShardId::new(0)]).unwrap_err().findings[0].code,
        code::IO
    );
}

#[test]
fn views_outside_of_their_tensor_are_refused() {
    let (_guard, folder) = model_of("BF16", &[4, 4], &words(16));
    let file = WeightFile::open(&*folder.source, &folder.shards[ShardId::new(0)]).unwrap();
    let whole = MatrixView::whole(&folder.tensors[TensorId::new(0)]).unwrap();
    for view in [
        MatrixView { rows: 5, ..whole },
        MatrixView { first: 1, ..whole },
        MatrixView { row_stride: u64::MAX, ..whole },
    ] {
        assert!(MatrixReader::new(&file, &folder.tensors[TensorId::new(0)], view).is_err(), "{view:?}");
    }
}
