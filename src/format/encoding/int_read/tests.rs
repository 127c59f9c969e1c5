use half::bf16;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::bit_fields::pack;
use super::super::int_packed::IntPacked;
use super::super::int_plain::IntPlain;
use super::super::test_model::TestModel;
use super::super::{ReadEncoding, Recognized};
use super::*;

/// What some tool has quantized.
#[derive(Debug, Clone)]
struct Made {
    bits: u32,
    rows: usize,
    groups: usize,
    group: usize,
    /// One scale for all.
    is_tensor: bool,
    is_symmetric: bool,
    seed: Vec<u32>,
}

impl Made {
    fn draw(&self, n: usize) -> u32 {
        self.seed[n % 89].rotate_left((n / 89) as u32 % 32) & ((1 << self.bits) - 1)
    }

    /// Unsigned.
    fn code(&self, row: usize, column: usize) -> u32 {
        self.draw(row * self.groups * self.group + column)
    }

    fn zero_point(&self, row: usize, group: usize) -> u32 {
        match (self.is_symmetric, self.is_tensor) {
            (true, _) => 1 << (self.bits - 1),
            (_, true) => self.draw(3),
            _ => self.draw(3 + row * self.groups + group),
        }
    }

    fn scale(&self, row: usize, group: usize) -> f32 {
        let n = if self.is_tensor { 0 } else { row * self.groups + group };
        2_f32.powi((self.seed[n % 89] % 9) as i32 - 8)
    }

    fn weight(&self, row: usize, column: usize) -> f32 {
        let group = if self.is_tensor { 0 } else { column / self.group };
        (self.code(row, column) as f32 - self.zero_point(row, group) as f32) * self.scale(row, group)
    }

    fn config(&self) -> Value {
        let size = json!(self.group);
        json!({"quant_method": "compressed-tensors", "version": "0.19.0", "config_groups": {"group_0": {"weights": {
            "num_bits": self.bits, "type": "int", "symmetric": self.is_symmetric, "group_size": size}}}})
    }

    fn scales(&self) -> (Vec<u64>, Vec<u8>) {
        let bytes = |scale: f32| bf16::from_f32(scale).to_le_bytes();
        if self.is_tensor {
            return (vec![1], bytes(self.scale(0, 0)).to_vec());
        }
        let all =
            (0..self.rows).flat_map(|row| (0..self.groups).flat_map(move |of| bytes(self.scale(row, of))));
        (vec![self.rows as u64, self.groups as u64], all.collect())
    }

    fn signed_zeros(&self) -> Vec<u8> {
        let signed = |zero: u32| (zero as i32 - (1 << (self.bits - 1))) as u8;
        if self.is_tensor {
            return vec![signed(self.zero_point(0, 0))];
        }
        (0..self.rows)
            .flat_map(|row| (0..self.groups).map(move |of| signed(self.zero_point(row, of))))
            .collect()
    }

    fn packed(&self, packing: Packing) -> TestModel {
        let columns = self.groups * self.group;
        let codes: Vec<u8> = (0..self.rows)
            .flat_map(|row| {
                pack(
                    &(0..columns).map(|column| self.code(row, column)).collect::<Vec<_>>(),
                    self.bits,
                    packing,
                )
            })
            .collect();
        let words = packing.words(self.bits, columns as u64);
        let (shape, scales) = self.scales();
        let size: Vec<u8> = [self.rows as i64, columns as i64].iter().flat_map(|n| n.to_le_bytes()).collect();
        let mut model = TestModel::default()
            .with("m.weight_packed", Dtype::I32, &[self.rows as u64, words], codes)
            .with("m.weight_scale", Dtype::Bf16, &shape, scales)
            .with("m.weight_shape", Dtype::I64, &[2], size);
        if !self.is_symmetric && self.is_tensor {
            model = model.with("m.weight_zero_point", Dtype::I8, &[1], self.signed_zeros());
        } else if !self.is_symmetric {
            let of_group: Vec<Vec<u8>> = (0..self.groups)
                .map(|of| {
                    pack(
                        &(0..self.rows).map(|row| self.zero_point(row, of)).collect::<Vec<_>>(),
                        self.bits,
                        packing,
                    )
                })
                .collect();
            let lines = packing.words(self.bits, self.rows as u64) as usize;
            let zeros = (0..lines)
                .flat_map(|line| of_group.iter().flat_map(move |of| of[line * 4..line * 4 + 4].to_vec()));
            let shape = [lines as u64, self.groups as u64];
            model = model.with("m.weight_zero_point", Dtype::I32, &shape, zeros.collect());
        }
        model.declaration = Some(self.config());
        model
    }

    fn plain(&self) -> TestModel {
        let columns = self.groups * self.group;
        let signed = |code: u32| (code as i32 - (1 << (self.bits - 1))) as u8;
        let codes = (0..self.rows * columns).map(|n| signed(self.code(n / columns, n % columns))).collect();
        let (shape, scales) = self.scales();
        let mut model = TestModel::default()
            .with("m.weight", Dtype::I8, &[self.rows as u64, columns as u64], codes)
            .with("m.weight_scale", Dtype::Bf16, &shape, scales);
        if !self.is_symmetric {
            model = model.with("m.weight_zero_point", Dtype::I8, &shape, self.signed_zeros());
        }
        model.declaration = Some(self.config());
        model
    }
}

fn made() -> impl Strategy<Value = Made> {
    let sizes = (2_u32..=8, 1_usize..40, 1_usize..4, prop::sample::select(vec![5_usize, 8, 13, 32]));
    (sizes, any::<bool>(), any::<bool>(), prop::collection::vec(any::<u32>(), 89)).prop_map(
        |((bits, rows, groups, group), is_tensor, is_symmetric, seed)| {
            let (groups, group) = if is_tensor { (1, groups * group) } else { (groups, group) };
            Made { bits, rows, groups, group, is_tensor, is_symmetric, seed }
        },
    )
}

fn check(
    made: &Made,
    model: &TestModel,
    encoding: &dyn ReadEncoding,
    codes: &str,
    rows: std::ops::Range<usize>,
) {
    let found: Recognized = model.recognize(encoding, codes).unwrap().unwrap();
    let columns = made.groups * made.group;
    assert_eq!(found.shape, [made.rows as u64, columns as u64]);
    assert_eq!(found.dtype, Dtype::Bf16);
    let read = model.rows(codes, &found, rows.start as u64..rows.end as u64).unwrap();
    let mut read = read.iter();
    for row in rows {
        for column in 0..columns {
            assert_eq!(read.next(), Some(&made.weight(row, column)), "row {row}, column {column}");
        }
    }
}

proptest! {
    #[test]
    fn weights_are_those_that_were_stored(made in made(), from in 0_usize..40, count in 0_usize..20) {
        let rows = from.min(made.rows)..(from + count).min(made.rows);
        check(&made, &made.packed(Packing::Dense), &IntPacked, "m.weight_packed", rows.clone());
        let mut old = made.packed(Packing::Padded);
        old.declaration.as_mut().unwrap()["version"] = json!("0.17.0");
        check(&made, &old, &IntPacked, "m.weight_packed", rows.clone());
        check(&made, &made.plain(), &IntPlain, "m.weight", rows);
    }
}

#[test]
fn the_width_of_codes_must_be_certain() {
    let seed = (0..89).collect();
    let of_bits =
        |bits| Made { bits, rows: 4, groups: 1, group: 16, is_tensor: false, is_symmetric: true, seed };
    let made: Made = of_bits(3);
    // 16 codes of 3 bits take two words in both packings.
    let mut model = made.packed(Packing::Dense);
    let read = |model: &TestModel| model.recognize(&IntPacked, "m.weight_packed").unwrap();
    assert!(read(&model).is_ok());
    model.declaration.as_mut().unwrap()["version"] = Value::Null;
    assert!(read(&model).unwrap_err().contains("tells how they are packed"));
    let bits = |model: &mut TestModel, bits: u32| {
        model.declaration.as_mut().unwrap()["config_groups"]["group_0"]["weights"]["num_bits"] = json!(bits);
    };
    bits(&mut model, 5);
    assert!(read(&model).unwrap_err().contains("no `num_bits`"));
    // Without a declaration only what fits in one way is read: two words of 16 codes may be 3 or 4 bits.
    model.declaration = None;
    assert!(read(&model).unwrap_err().contains("several widths"));
}

#[test]
fn columns_in_an_order_of_their_own_are_read_and_not_re_labelled() {
    let made = Made {
        bits: 4,
        rows: 11,
        groups: 3,
        group: 8,
        is_tensor: false,
        is_symmetric: false,
        seed: (0..89).map(|n| n * 0x9e37_79b9).collect(),
    };
    let order = |of: fn(i32) -> i32| (0..24).map(of).flat_map(i32::to_le_bytes).collect::<Vec<u8>>();
    let models = [(made.packed(Packing::Dense), "m.weight_packed"), (made.plain(), "m.weight")];
    for (model, codes) in models {
        let encoding: &dyn ReadEncoding = if codes == "m.weight" { &IntPlain } else { &IntPacked };
        assert!(model.recognize(encoding, codes).unwrap().unwrap().matrix.exact().is_ok());
        let model = model.with("m.weight_g_idx", Dtype::I32, &[24], order(|column| column % 3));
        let found = model.recognize(encoding, codes).unwrap().unwrap();
        assert!(found.matrix.exact().unwrap_err().contains("order of its columns"));
        let read = model.rows(codes, &found, 5..7).unwrap();
        for (n, weight) in read.into_iter().enumerate() {
            let (row, column) = (5 + n / 24, n % 24);
            let code = made.code(row, column) as f32 - made.zero_point(row, column % 3) as f32;
            assert_eq!(weight, code * made.scale(row, column % 3), "{codes}, row {row}, column {column}");
        }
    }
}

#[test]
fn contradictions_are_refused() {
    let shape = |sizes: [i64; 2]| sizes.iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<u8>>();
    let model = |size: [i64; 2], scales: &[u64]| {
        let count = scales.iter().product::<u64>() as usize;
        let mut model = TestModel::default()
            .with("m.weight_packed", Dtype::I32, &[4, 2], vec![0; 32])
            .with("m.weight_shape", Dtype::I64, &[2], shape(size))
            .with("m.weight_scale", Dtype::Bf16, scales, vec![0; count * 2]);
        model.declaration = Some(json!({"config_groups": {"g": {"weights": {"num_bits": 4}}}}));
        model
    };
    let refused = |model: &TestModel| model.recognize(&IntPacked, "m.weight_packed").unwrap().unwrap_err();
    assert!(refused(&model([5, 16], &[5, 1])).contains("[5, 16]"));
    assert!(refused(&model([4, -1], &[4, 1])).contains("no rows and columns"));
    assert!(refused(&model([4, i64::MAX], &[4, 1])).contains("no rows and columns"));
    assert!(refused(&model([4, 0], &[4, 1])).contains("[4, 0]"));
    assert!(refused(&model([4, 15], &[3, 1])).contains("[3, 1]"));
    let alone = TestModel::default().with("m.weight_packed", Dtype::I32, &[4, 2], vec![0; 32]);
    assert!(refused(&alone).contains("m.weight_scale"));

    let odd = model([4, 15], &[4, 1]).with("m.weight_zero_point", Dtype::I32, &[4, 1], vec![0; 16]);
    assert!(refused(&odd).contains("zero points"));
    let mut asymmetric = model([4, 15], &[4, 1]);
    asymmetric.declaration =
        Some(json!({"config_groups": {"g": {"weights": {"num_bits": 4, "symmetric": false}}}}));
    assert!(refused(&asymmetric).contains("symmetric: false"));
    let infinite = TestModel::default().with("m.weight", Dtype::I8, &[1, 4], vec![1; 4]).with(
        "m.weight_scale",
        Dtype::F32,
        &[1],
        f32::INFINITY.to_le_bytes().to_vec(),
    );
    let found = infinite.recognize(&IntPlain, "m.weight").unwrap().unwrap();
    assert!(infinite.rows("m.weight", &found, 0..1).unwrap_err().contains("no finite number"));
}
