//! The numbers of the charts, in the units of their SVG.

use indexmap::IndexMap;
use serde_json::{Value, json};

use super::kind_of;
use crate::report::{Report, TensorRecord};
use crate::text::units::bytes;
use crate::text::visible;

/// Width of a chart.
const WIDTH: f64 = 1000.0;

/// Height of the chart of quality.
const HEIGHT: f64 = 320.0;

/// Room for the numbers at the left of the chart of quality.
const LEFT: f64 = 50.0;

/// Dots beyond which they are drawn smaller.
const CROWDED: usize = 2000;

/// Colours that there are; further kinds share the last.
const COLOURS: usize = 8;

/// Where the bytes went: per scheme or reason, bytes before and after. None if there are none.
pub(super) fn sizes(report: &Report) -> Value {
    let mut parts: IndexMap<String, (u64, u64)> = IndexMap::new();
    for tensor in &report.tensors {
        let name = match &tensor.scheme {
            Some(scheme) => scheme.to_string(),
            None => format!("{}: {}", tensor.action, visible(&tensor.reason)),
        };
        let part = parts.entry(name).or_default();
        part.0 += tensor.bytes_in;
        part.1 += tensor.bytes_out.first().copied().unwrap_or(0);
    }
    let mut parts: Vec<(String, (u64, u64))> = parts.into_iter().collect();
    parts.sort_by(|a, b| b.1.0.cmp(&a.1.0).then_with(|| a.0.cmp(&b.0)));
    let whole = parts.iter().map(|(_, (before, after))| (*before, *after));
    let (before, after) = whole.fold((0, 0), |sum, part| (sum.0 + part.0, sum.1 + part.1));
    let most = before.max(after);
    if most == 0 {
        return Value::Null;
    }
    let scale = |bytes: u64| bytes as f64 / most as f64 * WIDTH;
    let mut at = (0, 0);
    let shown: Vec<Value> = parts
        .iter()
        .enumerate()
        .map(|(index, (name, (before, after)))| {
            let starts = (at.0, at.1);
            at = (at.0 + before, at.1 + after);
            json!({
                "name": name,
                "colour": index.min(COLOURS - 1),
                "before": bytes(*before),
                "after": bytes(*after),
                "x_before": round(scale(starts.0)),
                "width_before": round(scale(*before)),
                "x_after": round(scale(starts.1)),
                "width_after": round(scale(*after)),
            })
        })
        .collect();
    json!({"parts": shown, "before": bytes(before), "after": bytes(after)})
}

/// The SQNR of each quantized tensor by its layer, with thresholds and what schemes reach. None if nothing was measured.
pub(super) fn quality(report: &Report) -> Value {
    // Each: the layer, the SQNR and what its scheme reaches.
    let mut kinds: IndexMap<String, Vec<(f64, f64, Option<f64>)>> = IndexMap::new();
    for tensor in &report.tensors {
        let Some(metrics) = &tensor.metrics else { continue };
        let Some(sqnr) = metrics.sqnr_db else { continue };
        kinds.entry(kind_of(tensor)).or_default().push((layer_of(tensor), sqnr, metrics.expected_sqnr_db));
    }
    let points = || kinds.values().flatten();
    let last = points().map(|point| point.0).fold(0.0, f64::max);
    let thresholds = thresholds(report);
    let values = points()
        .flat_map(|point| [Some(point.1), point.2])
        .flatten()
        .chain(thresholds.iter().map(|(_, at)| *at));
    let (low, high) =
        values.fold((f64::MAX, f64::MIN), |(low, high), value| (low.min(value), high.max(value)));
    if low > high {
        return Value::Null;
    }
    let (low, high) = ((low - 1.0).floor(), (high + 1.0).ceil());
    let x = |layer: f64| round(LEFT + 10.0 + layer / last.max(1.0) * (WIDTH - LEFT - 20.0));
    let y = |value: f64| round(HEIGHT - (value - low) / (high - low) * HEIGHT);
    // Dots are strokes of no length in one path for each kind: as many elements as kinds, however many layers there are.
    let dot = |layer: f64, value: f64| format!("M{} {}h0", x(layer), y(value));
    let shown: Vec<Value> = kinds
        .iter()
        .enumerate()
        .map(|(index, (name, points))| {
            let worst = points.iter().map(|point| point.1).fold(f64::MAX, f64::min);
            json!({
                "name": name,
                "colour": index.min(COLOURS - 1),
                "path": points.iter().map(|point| dot(point.0, point.1)).collect::<String>(),
                "worst": format!("{worst:.1} dB"),
                "count": points.len(),
            })
        })
        .collect();
    let mut reached: Vec<(f64, f64)> = points().filter_map(|point| Some((point.0, point.2?))).collect();
    reached.sort_by(|a, b| a.0.total_cmp(&b.0).then_with(|| a.1.total_cmp(&b.1)));
    reached.dedup();
    let step =
        [1.0, 2.0, 5.0, 10.0, 20.0].into_iter().find(|step| (high - low) / step <= 8.0).unwrap_or(50.0);
    let first = (low / step).ceil();
    let ticks = (0..10).map(|n| (first + f64::from(n)) * step).take_while(|tick| *tick <= high);
    json!({
        "kinds": shown,
        "stroke": if points().count() > CROWDED { 3 } else { 7 },
        "reached": reached.iter().map(|(layer, value)| format!("M{} {}h6", x(*layer) - 3.0, y(*value))).collect::<String>(),
        "ticks": ticks.map(|tick| json!({"y": y(tick), "text": format!("{tick:.0} dB")})).collect::<Vec<_>>(),
        "thresholds": thresholds.iter().map(|(name, at)| json!({"name": name, "y": y(*at), "text": format!("{at} dB")})).collect::<Vec<_>>(),
        "first_layer": "0",
        "last_layer": format!("{last:.0}"),
    })
}

/// The thresholds of the recipe's gates.
fn thresholds(report: &Report) -> Vec<(&'static str, f64)> {
    let stages = report.recipe.get("stages").and_then(Value::as_array);
    let mut out: Vec<(&'static str, f64)> = Vec::new();
    for stage in stages.into_iter().flatten().filter(|stage| stage["stage"] == "check-warnings") {
        for (key, name) in [("sqnr_error_threshold", "error"), ("sqnr_warning_threshold", "warning")] {
            if let Some(at) = stage.get(key).and_then(Value::as_f64)
                && !out.contains(&(name, at))
            {
                out.push((name, at));
            }
        }
    }
    out
}

/// The layer that a tensor is in: the first number in its name. Before the first if there is none.
fn layer_of(tensor: &TensorRecord) -> f64 {
    tensor.name.split('.').find_map(|part| part.parse::<u32>().ok()).map_or(0.0, f64::from)
}

/// With two digits behind the point, so that the page stays small.
fn round(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}
