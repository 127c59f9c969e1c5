use half::f16;
use proptest::prelude::*;
use serde_json::json;

use super::super::bit_fields::pack;
use super::super::test_model::TestModel;
use super::*;

/// A matrix as some tool would store it.
#[derive(Debug, Clone)]
struct Stored {
    bits: u32,
    /// Unsigned codes by row.
    codes: Vec<Vec<u32>>,
    /// Zero points by group, then by row.
    zeros: Vec<Vec<u32>>,
    /// Scales by group, then by row.
    scales: Vec<Vec<f32>>,
    group: usize,
    /// The group of each column.
    order: Vec<i32>,
    is_v2: bool,
}

impl Stored {
    fn model(&self) -> TestModel {
        let (rows, columns, groups) = (self.codes.len(), self.order.len(), self.zeros.len());
        let packed: Vec<Vec<u8>> =
            self.codes.iter().map(|row| pack(row, self.bits, Packing::Dense)).collect();
        let words = packed[0].len() / 4;
        let codes = (0..words).flat_map(|word| {
            packed.iter().flat_map(move |row| row[word * 4..word * 4 + 4].to_vec()).collect::<Vec<u8>>()
        });
        let less = u32::from(!self.is_v2);
        let zeros = self.zeros.iter().flat_map(|of_rows| {
            let stored: Vec<u32> = of_rows.iter().map(|zero| zero - less).collect();
            pack(&stored, self.bits, Packing::Dense)
        });
        let zero_words = rows as u64 * u64::from(self.bits) / 32;
        let scales = self.scales.iter().flatten().flat_map(|scale| f16::from_f32(*scale).to_le_bytes());
        let order = self.order.iter().flat_map(|of| of.to_le_bytes());
        let mut model = TestModel::default()
            .with("m.qweight", Dtype::I32, &[words as u64, rows as u64], codes.collect())
            .with("m.scales", Dtype::F16, &[groups as u64, rows as u64], scales.collect())
            .with("m.qzeros", Dtype::I32, &[groups as u64, zero_words], zeros.collect())
            .with("m.g_idx", Dtype::I32, &[columns as u64], order.collect());
        let format = if self.is_v2 { "gptq_v2" } else { "gptq" };
        model.declaration = Some(json!({
            "quant_method": "gptq", "bits": self.bits, "group_size": self.group, "sym": false,
            "desc_act": true, "checkpoint_format": format,
        }));
        model
    }
}

fn stored() -> impl Strategy<Value = Stored> {
    let bits = prop::sample::select(vec![2_u32, 3, 4, 8]);
    let sizes = (bits, 1_usize..4, 1_usize..4, prop::sample::select(vec![8_usize, 16, 32]));
    (sizes, any::<bool>(), any::<bool>(), prop::collection::vec(any::<u32>(), 97)).prop_map(
        |((bits, row_blocks, blocks, group), is_v2, is_shuffled, seed)| {
            let (rows, columns) = (row_blocks * 32, blocks * 32);
            let groups = columns / group;
            let draw = |n: usize| seed[n % 97].rotate_left((n / 97) as u32 % 32);
            let top = (1 << bits) - 1;
            let in_order = |column: usize| (column / group) as i32;
            let shuffled = |column: usize| ((draw(column) as usize) % groups) as i32;
            Stored {
                bits,
                codes: (0..rows)
                    .map(|row| (0..columns).map(|column| draw(row * columns + column) & top).collect())
                    .collect(),
                // From 1 on, and not the largest one less one.
                zeros: (0..groups)
                    .map(|of| (0..rows).map(|row| 1 + draw(7 + of * rows + row) % top).collect())
                    .collect(),
                scales: (0..groups)
                    .map(|of| (0..rows).map(|row| 2_f32.powi((draw(of + row) % 9) as i32 - 8)).collect())
                    .collect(),
                group,
                order: (0..columns).map(|c| if is_shuffled { shuffled(c) } else { in_order(c) }).collect(),
                is_v2,
            }
        },
    )
}

proptest! {
    /// Any rows are (code − zero point) × scale, from the bytes that they need and no others.
    #[test]
    fn weights_are_those_that_were_stored(stored in stored(), from in 0_usize..96, count in 0_usize..40) {
        let model = stored.model();
        let found = model.recognize(&Gptq, "m.qweight").unwrap().unwrap();
        let (rows, columns) = (stored.codes.len(), stored.order.len());
        prop_assert_eq!(&found.shape, &[rows as u64, columns as u64]);
        prop_assert_eq!((found.name.as_deref(), found.dtype), (Some("m.weight"), Dtype::F16));
        prop_assert_eq!(found.parts.len() + found.unused.len(), 3);
        let range = from.min(rows)..(from + count).min(rows);
        let read = model.rows("m.qweight", &found, range.start as u64..range.end.max(range.start) as u64).unwrap();
        let mut read = read.iter();
        for row in range {
            for column in 0..columns {
                let group = stored.order[column] as usize;
                let difference = stored.codes[row][column] as f32 - stored.zeros[group][row] as f32;
                let meant = difference * stored.scales[group][row];
                prop_assert_eq!(read.next().unwrap(), &meant, "row {}, column {}", row, column);
            }
        }
    }
}

fn small() -> Stored {
    Stored {
        bits: 4,
        codes: vec![(0..16).collect(); 8],
        zeros: vec![vec![8; 8]; 2],
        scales: vec![vec![1.0; 8]; 2],
        group: 8,
        order: (0..16).map(|column| column / 8).collect(),
        is_v2: false,
    }
}

fn refused(model: &TestModel) -> String {
    model.recognize(&Gptq, "m.qweight").unwrap().unwrap_err()
}

#[test]
fn symmetric_zero_points_tell_the_version() {
    for (is_v2, declared) in [(false, "gptq"), (false, "gptq_v2"), (true, "gptq"), (true, "gptq_v2")] {
        let mut model = Stored { is_v2, ..small() }.model();
        let config = model.declaration.as_mut().unwrap();
        config["checkpoint_format"] = json!(declared);
        config["sym"] = json!(true);
        let found = model.recognize(&Gptq, "m.qweight").unwrap().unwrap();
        let first = model.rows("m.qweight", &found, 0..1).unwrap();
        assert_eq!(first[..3], [-8.0, -7.0, -6.0], "{is_v2} {declared}");
    }
    let mut model = Stored { zeros: vec![vec![5; 8]; 2], ..small() }.model();
    model.declaration.as_mut().unwrap()["sym"] = json!(true);
    assert!(refused(&model).contains("sym: true"));
}

#[test]
fn contradictions_are_refused() {
    let with = |key: &str, value: Value| {
        let mut model = small().model();
        model.declaration.as_mut().unwrap()[key] = value;
        model
    };
    assert!(refused(&with("bits", json!(8))).contains("says 8"));
    assert!(refused(&with("checkpoint_format", json!("marlin"))).contains("marlin"));
    assert!(refused(&with("is_marlin_format", json!(true))).contains("Marlin"));
    let of_a_module = with("dynamic", json!({"m": {"bits": 4}}));
    assert!(of_a_module.recognize(&Gptq, "m.qweight").unwrap().is_ok());

    let beyond = Stored { order: vec![2; 16], ..small() }.model();
    assert!(refused(&beyond).contains("group 2 of 2"));
    let negative = Stored { order: vec![-1; 16], ..small() }.model();
    assert!(refused(&negative).contains("group -1"));

    let words = |count: usize| vec![0; count * 4];
    let alone = TestModel::default().with("m.qweight", Dtype::I32, &[2, 8], words(16));
    assert!(refused(&alone).contains("m.scales"));
    let of_bytes = TestModel::default()
        .with("m.qweight", Dtype::U8, &[2, 8], vec![0; 16])
        .with("m.scales", Dtype::F16, &[2, 8], vec![0; 32])
        .with("m.qzeros", Dtype::I32, &[2, 1], words(2));
    assert!(refused(&of_bytes).contains("U8"));
    for (scales, zeros) in [([3, 8], [3, 1]), ([2, 8], [1, 1]), ([2, 8], [2, 3])] {
        let count = |shape: [u64; 2]| (shape[0] * shape[1]) as usize;
        let model = TestModel::default()
            .with("m.qweight", Dtype::I32, &[2, 8], words(16))
            .with("m.scales", Dtype::F16, &scales, vec![0; count(scales) * 2])
            .with("m.qzeros", Dtype::I32, &zeros, words(count(zeros)));
        refused(&model);
    }
    // An order is declared, and there is none.
    let mut unordered = TestModel::default()
        .with("m.qweight", Dtype::I32, &[2, 8], words(16))
        .with("m.scales", Dtype::F16, &[2, 8], vec![0; 32])
        .with("m.qzeros", Dtype::I32, &[2, 1], words(2));
    unordered.declaration = Some(json!({"quant_method": "gptq", "desc_act": true}));
    assert!(refused(&unordered).contains("g_idx"));
}

#[test]
fn rows_that_mean_no_weights_are_refused() {
    // Stored as 15, less one.
    let model = Stored { zeros: vec![vec![16; 8]; 2], ..small() }.model();
    let found = model.recognize(&Gptq, "m.qweight").unwrap().unwrap();
    assert!(model.rows("m.qweight", &found, 0..1).unwrap_err().contains("16 or as 0"));
    let model = Stored { scales: vec![vec![f32::INFINITY; 8]; 2], ..small() }.model();
    let found = model.recognize(&Gptq, "m.qweight").unwrap().unwrap();
    assert!(model.rows("m.qweight", &found, 0..1).unwrap_err().contains("no finite number"));
}
