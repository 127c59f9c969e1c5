use half::f16;
use proptest::prelude::*;
use serde_json::json;

use super::super::gptq::Gptq;
use super::super::test_model::TestModel;
use super::*;

/// Where AutoAWQ puts the columns of the transposed matrix: nibble k of a word holds column ORDER[k] of eight.
const ORDER: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];

/// Packs a matrix [lines, rows], slowly.
fn packed(values: &[Vec<u32>]) -> Vec<u8> {
    let line = |line: &Vec<u32>| {
        let word = |eight: &[u32]| {
            let word = (0..8).fold(0_u32, |word, nibble| word | eight[ORDER[nibble]] << (4 * nibble));
            word.to_le_bytes()
        };
        line.chunks(8).flat_map(word).collect::<Vec<u8>>()
    };
    values.iter().flat_map(line).collect()
}

fn model(codes: &[Vec<u32>], zeros: &[Vec<u32>], scales: &[Vec<f32>]) -> TestModel {
    let (columns, groups, rows) = (codes.len() as u64, zeros.len() as u64, codes[0].len() as u64);
    let scales = scales.iter().flatten().flat_map(|scale| f16::from_f32(*scale).to_le_bytes()).collect();
    let mut model = TestModel::default()
        .with("m.qweight", Dtype::I32, &[columns, rows / 8], packed(codes))
        .with("m.qzeros", Dtype::I32, &[groups, rows / 8], packed(zeros))
        .with("m.scales", Dtype::F16, &[groups, rows], scales);
    model.declaration = Some(json!({"quant_method": "awq", "bits": 4, "version": "gemm"}));
    model
}

proptest! {
    #[test]
    fn weights_are_those_that_were_stored(
        (blocks, groups, group) in (1_usize..6, 1_usize..5, 1_usize..9),
        (from, count) in (0_usize..48, 0_usize..20),
        seed in prop::collection::vec(any::<u32>(), 89),
    ) {
        let (rows, columns) = (blocks * 8, groups * group);
        let draw = |n: usize| seed[n % 89].rotate_left((n / 89) as u32 % 32);
        let table = |lines: usize, at: usize| -> Vec<Vec<u32>> {
            (0..lines).map(|line| (0..rows).map(|row| draw(at + line * rows + row) & 15).collect()).collect()
        };
        let (codes, zeros) = (table(columns, 0), table(groups, 5));
        let scales: Vec<Vec<f32>> = zeros
            .iter()
            .enumerate()
            .map(|(n, line)| (0..line.len()).map(|row| 2_f32.powi((draw(n + row) % 9) as i32 - 8)).collect())
            .collect();
        let model = model(&codes, &zeros, &scales);
        let found = model.recognize(&Awq, "m.qweight").unwrap().unwrap();
        prop_assert_eq!(&found.shape, &[rows as u64, columns as u64]);
        prop_assert!(model.recognize(&Gptq, "m.qweight").is_none());
        let range = from.min(rows)..(from + count).min(rows);
        let read = model.rows("m.qweight", &found, range.start as u64..range.end as u64).unwrap();
        let mut read = read.iter();
        for row in range {
            for (column, codes) in codes.iter().enumerate() {
                let of = column / group;
                let meant = (codes[row] as f32 - zeros[of][row] as f32) * scales[of][row];
                prop_assert_eq!(read.next().unwrap(), &meant, "row {}, column {}", row, column);
            }
        }
    }
}

#[test]
fn contradictions_are_refused() {
    let line = vec![vec![7; 16]; 8];
    let fine = || model(&line, &line[..2], &[vec![1.0; 16], vec![1.0; 16]]);
    let with = |key: &str, value: Value| {
        let mut model = fine();
        model.declaration.as_mut().unwrap()[key] = value;
        model.recognize(&Awq, "m.qweight").unwrap().unwrap_err()
    };
    assert!(fine().recognize(&Awq, "m.qweight").unwrap().is_ok());
    assert!(with("bits", json!(8)).contains("says 8"));
    for layout in ["gemv", "gemv_fast", "marlin"] {
        assert!(with("version", json!(layout)).contains(layout));
    }
    let of_gptq = TestModel::default()
        .with("m.qweight", Dtype::I32, &[2, 8], vec![0; 64])
        .with("m.qzeros", Dtype::I32, &[1, 1], vec![0; 4])
        .with("m.scales", Dtype::F16, &[1, 8], vec![0; 16]);
    assert!(of_gptq.recognize(&Awq, "m.qweight").is_none());
    let odd = TestModel::default()
        .with("m.qweight", Dtype::I32, &[16, 3], vec![0; 192])
        .with("m.qzeros", Dtype::I32, &[1, 3], vec![0; 12])
        .with("m.scales", Dtype::F16, &[1, 16], vec![0; 32]);
    assert!(odd.recognize(&Awq, "m.qweight").unwrap().unwrap_err().contains("no layout"));
    let not_finite = model(&line, &line[..1], &[vec![f32::NAN; 16]]);
    let found = not_finite.recognize(&Awq, "m.qweight").unwrap().unwrap();
    assert!(not_finite.rows("m.qweight", &found, 3..4).unwrap_err().contains("no finite number"));
}
