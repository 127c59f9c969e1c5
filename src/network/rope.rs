//! Rotary positions: the frequencies of the kinds that `config.json` names, as transformers computes them, and the turning of rows.

use super::code;
use super::keys::Keys;
use super::parts::Rope;
use crate::finding::Finding;

/// What frequencies depend on beside their own keys.
#[derive(Debug, Clone, Copy)]
pub(super) struct Size {
    /// Columns of a head.
    pub(super) head: usize,
    /// Columns of a head that are turned, where the configuration says it itself.
    pub(super) turned: Option<usize>,
    /// `partial_rotary_factor` where neither says it.
    pub(super) share: f64,
    /// `max_position_embeddings`.
    pub(super) positions: usize,
    /// `original_max_position_embeddings`, if it is beside it.
    pub(super) original: Option<usize>,
    /// `rope_theta` where neither says it.
    pub(super) base: f64,
}

#[expect(clippy::cast_precision_loss, reason = "positions and widths are far below 2⁵²")]
const fn float(count: usize) -> f64 {
    count as f64
}

#[expect(clippy::cast_possible_truncation, reason = "rounding to F32 is the purpose")]
const fn single(x: f64) -> f32 {
    x as f32
}

/// Plain frequencies: base^(−2i / columns), of which the power is taken in F32 as torch does.
fn plain(base: f64, columns: usize) -> Vec<f32> {
    (0..columns / 2).map(|i| 1.0 / power(base, 2 * i, columns)).collect()
}

fn power(base: f64, index: usize, columns: usize) -> f32 {
    single(base.powf(f64::from(single(float(index)) / single(float(columns)))))
}

/// Frequencies of the kind that `keys` names; `rope_parameters`, or the older `rope_scaling`, may be missing.
pub(super) fn frequencies(
    scaling: Option<&Keys<'_>>,
    size: Size,
    theta: Option<f64>,
) -> Result<Rope, Finding> {
    let nothing = serde_json::json!({});
    let empty = Keys::new(&nothing)?;
    let keys = scaling.unwrap_or(&empty);
    keys.ignore(&["mrope_section", "mrope_interleaved"]);
    let kind = match keys.text("rope_type")? {
        Some(kind) => kind,
        None => keys.text("type")?.unwrap_or("default"),
    };
    keys.ignore(&["type"]);
    let base = keys.number_or_none("rope_theta")?.or(theta).unwrap_or(size.base);
    let share = keys.number_or("partial_rotary_factor", size.share)?;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of a head's width")]
    let columns = size.turned.unwrap_or((float(size.head) * share) as usize);
    if columns == 0 || columns > size.head || !columns.is_multiple_of(2) || base <= 0.0 {
        return Err(Finding::error(
            code::BAD_KEY,
            format!(
                "rotary positions over {columns} of {} columns with a base of {base} are not known",
                size.head
            ),
        ));
    }
    let original = keys.count_or_none("original_max_position_embeddings")?.or(size.original);
    let mut rope = Rope { frequencies: plain(base, columns), long: None, factor: 1.0 };
    match kind {
        "default" | "mrope" => keys.ignore(&["factor", "attention_factor"]),
        "linear" => {
            let factor = single(keys.number("factor")?);
            rope.frequencies.iter_mut().for_each(|f| *f /= factor);
        }
        "llama3" => llama3(&mut rope, keys, float(original.unwrap_or(size.positions)))?,
        "yarn" => yarn(&mut rope, keys, base, columns, size.positions, original)?,
        "longrope" | "su" => longrope(&mut rope, keys, base, columns, size.positions, original)?,
        // The base changes only beyond the positions that the model has, and windows are never that long.
        "dynamic" => keys.ignore(&["factor", "alpha"]),
        other => {
            return Err(Finding::error(
                code::NOT_ADMITTED,
                format!("rotary positions of the kind `{other}` are not known"),
            ));
        }
    }
    keys.unread("rope_parameters.")?;
    Ok(rope)
}

fn llama3(rope: &mut Rope, keys: &Keys<'_>, original: f64) -> Result<(), Finding> {
    let factor = keys.number("factor")?;
    let (low, high) = (keys.number("low_freq_factor")?, keys.number("high_freq_factor")?);
    for frequency in &mut rope.frequencies {
        let plain = f64::from(*frequency);
        let length = 2.0 * std::f64::consts::PI / plain;
        let smooth = (original / length - low) / (high - low);
        *frequency = single(if length < original / high {
            plain
        } else if length > original / low {
            plain / factor
        } else {
            (1.0 - smooth) * plain / factor + smooth * plain
        });
    }
    Ok(())
}

fn yarn(
    rope: &mut Rope,
    keys: &Keys<'_>,
    base: f64,
    columns: usize,
    positions: usize,
    original: Option<usize>,
) -> Result<(), Finding> {
    let original = float(original.unwrap_or(positions));
    let factor = keys.number_or("factor", float(positions) / original)?;
    let scale = |mscale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 };
    let (mscale, all) = (keys.number_or("mscale", 0.0)?, keys.number_or("mscale_all_dim", 0.0)?);
    let inferred = if mscale != 0.0 && all != 0.0 { scale(mscale) / scale(all) } else { scale(1.0) };
    rope.factor = single(keys.number_or("attention_factor", inferred)?);
    let or = |key: &str, default: f64| keys.number_or(key, 0.0).map(|x| if x == 0.0 { default } else { x });
    let (fast, slow) = (or("beta_fast", 32.0)?, or("beta_slow", 1.0)?);
    let at = |turns: f64| {
        float(columns) * (original / (turns * 2.0 * std::f64::consts::PI)).ln() / (2.0 * base.ln())
    };
    let (mut low, mut high) = (at(fast), at(slow));
    if keys.flag("truncate", true)? {
        (low, high) = (low.floor(), high.ceil());
    }
    (low, high) = (low.max(0.0), high.min(float(columns) - 1.0));
    if low == high {
        high += 0.001;
    }
    for (i, frequency) in rope.frequencies.iter_mut().enumerate() {
        let ramp = single(((float(i) - low) / (high - low)).clamp(0.0, 1.0));
        let stretched = 1.0 / (single(factor) * power(base, 2 * i, columns));
        *frequency = stretched * ramp + *frequency * (1.0 - ramp);
    }
    Ok(())
}

fn longrope(
    rope: &mut Rope,
    keys: &Keys<'_>,
    base: f64,
    columns: usize,
    positions: usize,
    original: Option<usize>,
) -> Result<(), Finding> {
    let original = original.unwrap_or(positions);
    let factor = keys.number_or("factor", float(positions) / float(original))?;
    let inferred = if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / float(original).ln()).sqrt() };
    rope.factor = single(keys.number_or("attention_factor", inferred)?);
    keys.ignore(&["short_mscale", "long_mscale"]);
    let scaled = |key: &str| -> Result<Vec<f32>, Finding> {
        let factors = keys.numbers(key)?.unwrap_or_default();
        if factors.len() != columns / 2 {
            return Err(Finding::error(
                code::BAD_KEY,
                format!(
                    "`{key}` in `config.json` has {} numbers where {} are needed",
                    factors.len(),
                    columns / 2
                ),
            ));
        }
        let each = |(i, factor): (usize, &f64)| 1.0 / (single(*factor) * power(base, 2 * i, columns));
        Ok(factors.iter().enumerate().map(each).collect())
    };
    rope.long = Some((original, scaled("long_factor")?));
    rope.frequencies = scaled("short_factor")?;
    Ok(())
}

/// Cosines and sines of a window: [tokens, pairs].
#[derive(Debug, Clone)]
pub(super) struct Angles {
    pub(super) cosines: Vec<f32>,
    pub(super) sines: Vec<f32>,
    pub(super) pairs: usize,
}

impl Angles {
    pub(super) fn new(rope: &Rope, tokens: usize) -> Self {
        let frequencies = match &rope.long {
            Some((length, long)) if tokens > *length => long,
            _ => &rope.frequencies,
        };
        let angles =
            (0..tokens).flat_map(|position| frequencies.iter().map(move |f| single(float(position)) * f));
        let (cosines, sines) = angles.map(|a| (a.cos() * rope.factor, a.sin() * rope.factor)).unzip();
        Self { cosines, sines, pairs: frequencies.len() }
    }

    /// Turns all heads of all rows.
    pub(super) fn turn(&self, rows: &mut [f32], width: usize, size: usize, is_interleaved: bool) {
        self.turn_by(1.0, rows, width, size, is_interleaved);
    }

    /// Turns gradients of turned rows into those of the rows: the other way round.
    pub(super) fn turn_back(&self, rows: &mut [f32], width: usize, size: usize, is_interleaved: bool) {
        self.turn_by(-1.0, rows, width, size, is_interleaved);
    }

    fn turn_by(&self, sign: f32, rows: &mut [f32], width: usize, size: usize, is_interleaved: bool) {
        let pairs = self.pairs;
        for (position, row) in rows.chunks_exact_mut(width).enumerate() {
            let at = position * pairs..(position + 1) * pairs;
            let (cosines, sines) = (&self.cosines[at.clone()], &self.sines[at]);
            for head in row.chunks_exact_mut(size) {
                if is_interleaved {
                    for (pair, (c, s)) in head.chunks_exact_mut(2).zip(cosines.iter().zip(sines)) {
                        let s = sign * s;
                        (pair[0], pair[1]) = (pair[0] * c - pair[1] * s, pair[1] * c + pair[0] * s);
                    }
                } else {
                    let (first, second) = head[..2 * pairs].split_at_mut(pairs);
                    for ((a, b), (c, s)) in first.iter_mut().zip(second).zip(cosines.iter().zip(sines)) {
                        let s = sign * s;
                        (*a, *b) = (*a * c - *b * s, *b * c + *a * s);
                    }
                }
            }
        }
    }
}
