//! Comparisons of two quantized models, A and B: sizes, quality and each layer, by difference.

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::evaluation::{Crossed, Evaluation};
use super::{Report, TensorRecord};
use crate::text::units::{bytes, decibels};

/// Two models side by side. Differences are B's number less A's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Comparison {
    /// The model that the other is compared with.
    pub a: Side,
    /// The model that is compared.
    pub b: Side,
    /// The difference of the models' SQNR in dB: negative if B is worse. None if one has no SQNR.
    pub sqnr_change_db: Option<f64>,
    /// The growth of the weight files from A to B, in percent.
    pub growth_percent: Option<f64>,
    /// The rise of the mean KL divergence from A to B, in percent. None unless both were evaluated on the same text.
    pub kl_rise_percent: Option<f64>,
    /// Energy of A's weights over energy of the difference between A's and B's weights, in dB. None if reports were
    /// compared, or nothing differs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub difference_db: Option<f64>,
    /// The layers that differ, the largest drop of SQNR first.
    pub layers: Vec<LayerChange>,
    /// How many layers are alike in both.
    pub unchanged: usize,
    /// Quantized layers that only A has.
    pub only_in_a: Vec<String>,
    /// Quantized layers that only B has.
    pub only_in_b: Vec<String>,
}

/// One of the two models.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Side {
    /// Its name, as it was given, without folders of the machine.
    pub name: String,
    /// Bytes of its weight files. None if the report is of a run without an output.
    pub bytes: Option<u64>,
    /// Quantized layers.
    pub quantized: usize,
    /// The SQNR of the model in dB.
    pub sqnr_db: Option<f64>,
    /// The lowest SQNR of a layer in dB.
    pub min_sqnr_db: Option<f64>,
    /// The mean KL divergence from the original, if both were evaluated on the same text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kl: Option<f64>,
}

/// A layer in both models.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LayerChange {
    /// The tensor.
    pub name: String,
    /// In A.
    pub a: Layer,
    /// In B.
    pub b: Layer,
    /// The difference of SQNR in dB: negative if B is worse.
    pub sqnr_change_db: Option<f64>,
    /// As in the comparison, of this layer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub difference_db: Option<f64>,
}

/// A layer in one model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Layer {
    /// Its scheme in words. None if it is not quantized.
    pub scheme: Option<String>,
    /// Its SQNR in dB. None if it was not measured, or nothing was lost.
    pub sqnr_db: Option<f64>,
    /// Its bytes in the first output.
    pub bytes: Option<u64>,
}

/// Bounds of what B may be worse in than A.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Bounds {
    /// The largest drop of the model's SQNR, in dB.
    pub max_drop: Option<f64>,
    /// The largest rise of the mean KL divergence, in percent.
    pub max_kl_rise: Option<f64>,
    /// The largest growth of the weight files, in percent.
    pub max_growth: Option<f64>,
}

impl Comparison {
    /// Compares two reports, each with its name.
    #[must_use]
    pub fn of(a: (&str, &Report), b: (&str, &Report)) -> Self {
        let sides = (Side::of(a.0, a.1), Side::of(b.0, b.1));
        let kl = same_text(&a.1.evaluations, &b.1.evaluations);
        let (mut side_a, mut side_b) = sides;
        if let Some((in_a, in_b)) = kl {
            (side_a.kl, side_b.kl) = (Some(in_a), Some(in_b));
        }
        let by_name = |report: &Report| -> BTreeMap<String, Layer> {
            let quantized = report.tensors.iter().filter(|tensor| tensor.action != "consumed");
            quantized.map(|tensor| (tensor.name.clone(), Layer::of(tensor))).collect()
        };
        let layers = (by_name(a.1), by_name(b.1));
        Self::between((side_a, layers.0), (side_b, layers.1), &BTreeMap::new())
    }

    /// Compares two models by their layers. `differences` holds, for layers whose weights were compared, the energy of
    /// the difference in dB.
    #[must_use]
    pub fn between(
        (a, of_a): (Side, BTreeMap<String, Layer>),
        (b, of_b): (Side, BTreeMap<String, Layer>),
        differences: &BTreeMap<String, Option<f64>>,
    ) -> Self {
        let only = |of: &BTreeMap<String, Layer>, other: &BTreeMap<String, Layer>| -> Vec<String> {
            let own = of.iter().filter(|(name, layer)| layer.scheme.is_some() && !other.contains_key(*name));
            own.map(|(name, _)| name.clone()).collect()
        };
        let (only_in_a, only_in_b) = (only(&of_a, &of_b), only(&of_b, &of_a));
        let quantized = |layer: &Layer| layer.scheme.is_some();
        let shared: BTreeSet<&String> = of_a
            .iter()
            .filter(|(name, layer)| of_b.get(*name).is_some_and(|b| quantized(layer) || quantized(b)))
            .map(|(name, _)| name)
            .collect();
        let mut layers: Vec<LayerChange> = Vec::new();
        for name in &shared {
            let (in_a, in_b) = (&of_a[*name], &of_b[*name]);
            let difference_db = differences.get(*name).copied().flatten();
            if in_a != in_b || difference_db.is_some() {
                layers.push(LayerChange {
                    name: (*name).clone(),
                    sqnr_change_db: change(in_a.sqnr_db, in_b.sqnr_db),
                    a: in_a.clone(),
                    b: in_b.clone(),
                    difference_db,
                });
            }
        }
        let worst = |layer: &LayerChange| layer.sqnr_change_db.or(layer.difference_db).unwrap_or(f64::MAX);
        layers.sort_by(|a, b| worst(a).total_cmp(&worst(b)).then_with(|| a.name.cmp(&b.name)));
        Self {
            sqnr_change_db: change(a.sqnr_db, b.sqnr_db),
            growth_percent: a.bytes.zip(b.bytes).and_then(|(a, b)| percent(a as f64, b as f64)),
            kl_rise_percent: a.kl.zip(b.kl).and_then(|(a, b)| percent(a, b)),
            difference_db: None,
            unchanged: shared.len() - layers.len(),
            a,
            b,
            layers,
            only_in_a,
            only_in_b,
        }
    }

    /// The bounds that B does not keep. A number that does not exist for both keeps none.
    #[must_use]
    pub fn crossed(&self, bounds: &Bounds) -> Vec<Crossed> {
        let mut out = Vec::new();
        let sides = |of: fn(&Side) -> Option<f64>, shown: fn(Option<f64>) -> String| {
            format!("{} → {}", shown(of(&self.a)), shown(of(&self.b)))
        };
        let mut hold = |key: &'static str, bound: Option<f64>, found: Option<f64>, what: &str, of: String| {
            let Some(bound) = bound else { return };
            let unit = if key == "max_drop" { "dB" } else { "%" };
            let message = match found {
                // Sums of floating-point numbers differ in their last digits between builds.
                Some(found) if found <= bound + 1e-9 => return,
                Some(found) => format!("{what} by {found:.2} {unit} ({of}), more than {bound} {unit}"),
                None => format!("{} and {} cannot be compared: {of}", self.a.name, self.b.name),
            };
            out.push(Crossed { key, message });
        };
        let drop = self.sqnr_change_db.map(|change| -change);
        hold("max_drop", bounds.max_drop, drop, "the model's SQNR drops", sides(|s| s.sqnr_db, decibels));
        let kl = |kl: Option<f64>| kl.map_or_else(|| "no KL".to_owned(), |kl| format!("{kl:.6}"));
        hold(
            "max_kl_rise",
            bounds.max_kl_rise,
            self.kl_rise_percent,
            "the mean KL divergence rises",
            sides(|s| s.kl, kl),
        );
        let size = |size: Option<f64>| size.map_or_else(|| "no size".to_owned(), |size| bytes(size as u64));
        let growth = sides(|s| s.bytes.map(|bytes| bytes as f64), size);
        hold("max_growth", bounds.max_growth, self.growth_percent, "the weight files grow", growth);
        out
    }
}

impl Side {
    fn of(name: &str, report: &Report) -> Self {
        let quality = report.quality.as_ref();
        Self {
            name: name.to_owned(),
            bytes: report.sizes.outputs.first().copied(),
            quantized: report.balance.quantized,
            sqnr_db: quality.and_then(|quality| quality.sqnr_db),
            min_sqnr_db: quality.and_then(|quality| quality.min_sqnr_db),
            kl: None,
        }
    }
}

impl Layer {
    fn of(tensor: &TensorRecord) -> Self {
        Self {
            scheme: tensor.scheme.as_ref().map(ToString::to_string),
            sqnr_db: tensor.metrics.as_ref().and_then(|metrics| metrics.sqnr_db),
            bytes: tensor.bytes_out.first().copied(),
        }
    }
}

/// The mean divergences of the first evaluations on the same text.
fn same_text(a: &[Evaluation], b: &[Evaluation]) -> Option<(f64, f64)> {
    a.iter().find_map(|in_a| {
        let same = |in_b: &&Evaluation| {
            (&in_a.texts, in_a.samples, in_a.tokens) == (&in_b.texts, in_b.samples, in_b.tokens)
        };
        let in_b = b.iter().find(same)?;
        Some((in_a.kl.as_ref()?.mean, in_b.kl.as_ref()?.mean))
    })
}

fn change(a: Option<f64>, b: Option<f64>) -> Option<f64> {
    Some(b? - a?)
}

/// The growth from one number to another in percent. None from nothing to something.
fn percent(a: f64, b: f64) -> Option<f64> {
    if a == b {
        return Some(0.0);
    }
    (a != 0.0).then(|| (b / a - 1.0) * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(sqnr: f64) -> Layer {
        Layer { scheme: Some("int4".to_owned()), sqnr_db: Some(sqnr), bytes: Some(8) }
    }

    fn side(name: &str, bytes: u64, sqnr_db: Option<f64>) -> Side {
        Side { name: name.to_owned(), bytes: Some(bytes), quantized: 2, sqnr_db, min_sqnr_db: None, kl: None }
    }

    fn layers<const N: usize>(of: [(&str, Layer); N]) -> BTreeMap<String, Layer> {
        of.into_iter().map(|(name, layer)| (name.to_owned(), layer)).collect()
    }

    #[test]
    fn layers_that_differ_come_worst_first() {
        let a = layers([("a", layer(20.0)), ("b", layer(20.0)), ("c", layer(20.0)), ("x", layer(1.0))]);
        let b = layers([("a", layer(19.5)), ("b", layer(17.0)), ("c", layer(20.0)), ("y", layer(1.0))]);
        let sides = (side("a", 100, Some(20.0)), side("b", 110, Some(18.5)));
        let found = Comparison::between((sides.0, a), (sides.1, b), &BTreeMap::new());
        let names: Vec<_> = found.layers.iter().map(|layer| layer.name.as_str()).collect();
        assert_eq!((names, found.unchanged), (vec!["b", "a"], 1));
        assert_eq!((found.only_in_a, found.only_in_b), (vec!["x".to_owned()], vec!["y".to_owned()]));
        assert_eq!(found.sqnr_change_db, Some(-1.5));
        assert!((found.growth_percent.unwrap() - 10.0).abs() < 1e-9);
    }

    #[test]
    fn bounds_are_kept_up_to_themselves_and_not_by_missing_numbers() {
        let between =
            |a: Side, b: Side| Comparison::between((a, layers([])), (b, layers([])), &BTreeMap::new());
        let found = between(side("a", 100, Some(20.0)), side("b", 110, Some(18.5)));
        let crossed = |max_drop, max_growth| {
            let keys = found.crossed(&Bounds { max_drop, max_growth, ..Bounds::default() });
            keys.into_iter().map(|crossed| crossed.key).collect::<Vec<_>>()
        };
        assert_eq!(crossed(Some(1.5), Some(10.0)), Vec::<&str>::new());
        assert_eq!(crossed(Some(1.4), Some(9.0)), ["max_drop", "max_growth"]);
        assert_eq!(found.crossed(&Bounds { max_kl_rise: Some(1.0), ..Bounds::default() }).len(), 1);
        let unmeasured = between(side("a", 0, None), side("b", 1, None));
        let bounds = Bounds { max_drop: Some(100.0), max_growth: Some(100.0), max_kl_rise: None };
        assert_eq!(unmeasured.crossed(&bounds).len(), 2);
    }
}
