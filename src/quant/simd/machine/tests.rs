use super::arrays::fused;
use super::*;
use crate::quant::Isa;
use crate::quant::simd::Job;
use crate::quant::test_weights::{Numbers, gaussian};

#[test]
fn fused_sums_without_the_instruction_are_those_with_it() {
    let mut numbers = Numbers(3);
    let mut number = |spread: u32| {
        let (bits, exponent) = (numbers.next(), 127 - spread / 2);
        f32::from_bits(bits as u32 & 0x807f_ffff | (exponent + (bits >> 40) as u32 % spread) << 23)
    };
    for i in 0..300_000 {
        let spread = [4, 30, 60, 250][i % 4];
        let (a, b, mut c) = (number(spread), number(spread), number(spread));
        // Sums in the middle between two neighbours, or next to it, and sums of which nothing is left.
        match i % 7 {
            0 => c = -a * b,
            1 => c = a * b * 3.0 * 2f32.powi(22),
            2 => c = a * b * 2f32.powi(-24),
            _ => {}
        }
        let (found, want) = (fused(a, b, c), a.mul_add(b, c));
        assert!(found.to_bits() == want.to_bits() || (found.is_nan() && want.is_nan()), "{a} {b} {c}");
    }
}

struct Turn<'a>(&'a [[f32; LANES]; LANES]);

impl Job for Turn<'_> {
    type Output = ([[f32; LANES]; LANES], [[f64; DOUBLES]; DOUBLES]);

    #[inline(always)]
    fn run<M: Machine>(self, machine: M) -> Self::Output {
        let (mut out, mut doubles) = ([[0.0; LANES]; LANES], [[0.0; DOUBLES]; DOUBLES]);
        let turned = machine.turn(std::array::from_fn(|i| machine.load(&self.0[i])));
        out.iter_mut().zip(turned).for_each(|(out, row)| machine.store(row, out));
        let rows =
            std::array::from_fn(|i| machine.load_doubles(&std::array::from_fn(|j| f64::from(self.0[i][j]))));
        doubles
            .iter_mut()
            .zip(machine.turn_doubles(rows))
            .for_each(|(out, row)| machine.store_doubles(row, out));
        (out, doubles)
    }
}

#[test]
fn rows_become_columns() {
    let rows = std::array::from_fn(|i| std::array::from_fn(|j| (16 * i + j) as f32));
    for isa in Isa::available() {
        let (turned, doubles) = isa.run(Turn(&rows));
        for (i, row) in turned.iter().enumerate() {
            assert_eq!(*row, std::array::from_fn(|j| (16 * j + i) as f32), "{isa:?}");
        }
        for (i, row) in doubles.iter().enumerate() {
            assert_eq!(*row, std::array::from_fn(|j| (16 * j + i) as f64), "{isa:?}");
        }
    }
}

struct LookUp<'a>(&'a [f32; 16], &'a [u8], &'a mut [f32]);

impl Job for LookUp<'_> {
    type Output = ();

    #[inline(always)]
    fn run<M: Machine>(self, machine: M) {
        machine.look_up(self.0, self.1, self.2);
    }
}

#[test]
fn nibbles_name_entries_low_ones_first() {
    let table = std::array::from_fn(|i| i as f32 - 8.5);
    let packed: Vec<u8> = (0..40u32).map(|i| (i * 37 + 11) as u8).collect();
    for isa in Isa::available() {
        for count in 0..=80 {
            let mut out = vec![0.0; count];
            isa.run(LookUp(&table, &packed, &mut out));
            for (i, &found) in out.iter().enumerate() {
                assert_eq!(found, table[usize::from(packed[i / 2] >> (i % 2 * 4) & 15)]);
            }
        }
    }
}

/// Numbers, bytes and nibbles of some bytes, in pairs.
struct Pairs<'a>(&'a [f32; 16], &'a [u8; 64]);

impl Job for Pairs<'_> {
    type Output = Vec<u32>;

    #[inline(always)]
    fn run<M: Machine>(self, m: M) -> Self::Output {
        let mut nibbles = [0; LANES];
        nibbles.copy_from_slice(&self.1[..LANES]);
        let [a, b] = m.bf16_pairs(self.1);
        let [c, d] = m.nibble_pairs(m.load(self.0), &nibbles);
        let mut bytes = [0; 2 * LANES];
        bytes.copy_from_slice(&self.1[..2 * LANES]);
        let [e, f] = m.byte_pairs(&bytes, 0x80);
        let [g, h] = m.f16_pairs(self.1);
        let mut bits = Vec::new();
        m.store_nibble_pairs([a, f], &mut nibbles);
        bits.extend(nibbles.map(u32::from));
        m.store_byte_pairs([c, m.mul(f, m.splat(f32::from_bits(1)))], &mut bytes);
        bits.extend(bytes.map(u32::from));
        let i = m.entries(m.load(self.0), m.mul(f, m.splat(f32::from_bits(1))));
        for x in [a, b, c, d, e, f, g, h, i] {
            let mut out = [0.0; LANES];
            m.store(x, &mut out);
            bits.extend(out.map(f32::to_bits));
        }
        bits
    }
}

#[test]
fn pairs_are_even_and_odd_places() {
    let mut bytes = [0; 64];
    for (i, byte) in bytes.iter_mut().enumerate() {
        *byte = (i * 37 + 11) as u8;
    }
    let table: [f32; 16] = std::array::from_fn(|i| i as f32 - 7.5);
    let number = |i: usize| u32::from(bytes[2 * i]) << 16 | u32::from(bytes[2 * i + 1]) << 24;
    let nibble = |i: usize| table[usize::from(bytes[i / 2] >> (i % 2 * 4) & 15)].to_bits();
    let of =
        |f: &dyn Fn(usize) -> u32, first: usize| (0..LANES).map(|i| f(2 * i + first)).collect::<Vec<_>>();
    let byte = |i: usize| f32::from(bytes[i] ^ 0x80).to_bits();
    let half = |i: usize| f32::from(half::f16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]])).to_bits();
    let joined = (0..LANES).map(|i| number(2 * i) & 15 | (byte(2 * i + 1) & 15) << 4).collect();
    let bytes_in_pairs = (0..LANES).flat_map(|i| [nibble(2 * i) & 255, u32::from(bytes[2 * i + 1] ^ 0x80)]);
    let want = [
        joined,
        bytes_in_pairs.collect(),
        of(&number, 0),
        of(&number, 1),
        of(&nibble, 0),
        of(&nibble, 1),
        of(&byte, 0),
        of(&byte, 1),
        of(&half, 0),
        of(&half, 1),
        of(&|i| table[usize::from(bytes[i] & 15)].to_bits(), 1),
    ]
    .concat();
    for isa in Isa::available() {
        assert_eq!(isa.run(Pairs(&table, &bytes)), want, "{}", isa.name());
    }
}

/// Every operation on lanes, on inputs with equal and special values; NaN as one bit pattern.
struct All([[f32; LANES]; 3]);

impl Job for All {
    type Output = (Vec<u32>, Vec<u32>);

    #[inline(always)]
    fn run<M: Machine>(self, m: M) -> Self::Output {
        let [a, b, c] = self.0.map(|lanes| m.load(&lanes));
        let (replaced, equal) = m.replace_equal(a, b, c);
        let lanes = [
            m.add(a, b),
            m.sub(a, b),
            m.mul(a, b),
            m.fused(a, b, c),
            m.abs(a),
            m.max(a, b),
            m.min(a, b),
            m.splat(self.0[0][0]),
            replaced,
        ];
        let mut bits = Vec::new();
        for x in lanes {
            let mut out = [0.0; LANES];
            m.store(x, &mut out);
            bits.extend(out.map(|x| if x.is_nan() { u32::MAX } else { x.to_bits() }));
        }
        bits.extend([m.sum(c).to_bits(), m.greatest(c).to_bits(), equal]);
        let (mut rows, mut sums) = ([[0.0; LANES]; LANES], [0.0; LANES]);
        for (i, row) in rows.iter_mut().enumerate() {
            m.store(m.mul(c, m.splat(i as f32 - 4.3)), row);
        }
        m.sum_rows(&rows, &mut sums);
        for (row, sum) in rows.iter().zip(&sums) {
            assert_eq!(m.sum(m.load(row)).to_bits(), sum.to_bits());
        }
        bits.extend(sums.map(f32::to_bits));
        let limits = [0.5, 1.0, 2.0, 9.0, f32::INFINITY, f32::NAN];
        bits.extend(limits.map(|limit| u32::from(m.exceeds(a, limit))));
        bits.extend(limits.map(|limit| u32::from(m.exceeds(c, limit))));
        let (low, high) = (m.splat(-0.5), m.max(b, m.splat(-0.5)));
        let mask = m.outside(a, low, high);
        let (mut out, mut kept) = ([0.0; LANES], [0.0; LANES]);
        m.store(m.take_out(c, mask, &mut out), &mut kept);
        bits.push(mask);
        bits.extend(kept.map(f32::to_bits));
        bits.extend(out[..mask.count_ones() as usize].iter().map(|x| x.to_bits()));
        let mut most = [0.0; LANES];
        m.store(m.max_abs(m.abs(m.mul(c, c)), c), &mut most);
        bits.extend(most.map(f32::to_bits));
        let mut fused = [0.0; LANES];
        m.store(m.mul_add(a, b, c), &mut fused);
        let near = |i: usize| {
            let want = self.0[0][i] * self.0[1][i] + self.0[2][i];
            u32::from(want.is_nan() || want == fused[i] || (want - fused[i]).abs() < 1e-5)
        };
        (bits, (0..LANES).map(near).collect())
    }
}

#[test]
fn lanes_are_the_same_on_every_instruction_set() {
    for seed in 0..50 {
        let mut inputs = [0, 1, 2].map(|i| {
            let mut lanes = [0.0; LANES];
            lanes.copy_from_slice(&gaussian(LANES, 3 * seed + i));
            lanes
        });
        if seed % 2 == 1 {
            inputs[0][seed as usize % 16] = inputs[1][seed as usize % 16];
            inputs[0][(seed as usize + 3) % 16] = f32::NAN;
            inputs[1][(seed as usize + 5) % 16] = f32::INFINITY;
            inputs[2][(seed as usize + 7) % 16] = 0.0;
        }
        let (want, _) = All(inputs).run(PORTABLE);
        for isa in Isa::available() {
            let (found, near) = isa.run(All(inputs));
            assert_eq!(found, want, "{}", isa.name());
            assert_eq!(near, [1; LANES], "{}", isa.name());
        }
    }
}
