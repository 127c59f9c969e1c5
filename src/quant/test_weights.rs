//! Weights for tests: deterministic, without a dependency.

/// A stream of 64-bit numbers (splitmix64).
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in 0 … 1, both ends excluded.
    pub(crate) fn uniform(&mut self) -> f64 {
        ((self.next() >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    }

    /// Standard Gaussian (Box and Muller).
    pub(crate) fn gaussian(&mut self) -> f64 {
        let radius = (-2.0 * self.uniform().ln()).sqrt();
        radius * (2.0 * std::f64::consts::PI * self.uniform()).cos()
    }
}

/// Standard Gaussian weights.
pub(crate) fn gaussian(count: usize, seed: u64) -> Vec<f32> {
    let mut numbers = Numbers(seed);
    (0..count).map(|_| numbers.gaussian() as f32).collect()
}

/// Weights of small variance with rare large ones.
pub(crate) fn heavy(count: usize, seed: u64) -> Vec<f32> {
    let mut numbers = Numbers(seed);
    (0..count)
        .map(|_| {
            let x = numbers.gaussian() * 0.02;
            (if numbers.uniform() < 0.005 { x * 25.0 } else { x }) as f32
        })
        .collect()
}
