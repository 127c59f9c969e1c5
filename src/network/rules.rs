//! Which layers see how far, and by which angles positions turn them.

use super::code;
use super::families::{self, Family, Turned, Windows};
use super::keys::Keys;
use super::names::Names;
use super::parts::Rope;
use super::rope::{self, Size};
use super::shape::{Rule, Shape, refused};
use crate::finding::Finding;

/// What each layer's rule is, and the angles that they name.
pub(super) fn rules(
    keys: &Keys<'_>,
    family: &Family,
    names: &Names<'_>,
    shape: Shape,
) -> Result<(Vec<Rule>, Vec<Rope>), Finding> {
    let layers = shape.layers;
    let listed = keys.texts("layer_types")?;
    if listed.as_ref().is_some_and(|types| types.len() < layers) {
        return Err(Finding::error(code::BAD_KEY, format!("`layer_types` names fewer than {layers} layers")));
    }
    let window = if family.windows == Windows::None { None } else { keys.count_or_none("sliding_window")? };
    let period = match keys.get("sliding_window_pattern").or_else(|| keys.get("_sliding_window_pattern")) {
        Some(value) => value.as_u64().and_then(|period| usize::try_from(period).ok()),
        None => None,
    };
    let uses = family.windows != Windows::From || keys.flag("use_sliding_window", false)?;
    let from = if family.windows == Windows::From { keys.count_or("max_window_layers", 0)? } else { 0 };
    let is_windowed = |layer: usize| match (&listed, family.windows) {
        (_, Windows::None) => false,
        (_, Windows::All) => true,
        (Some(types), Windows::AllBut(_)) => types[layer] == "sliding_attention",
        (None, Windows::AllBut(every)) => {
            let every = period.unwrap_or(every);
            every == 1 || !(layer + 1).is_multiple_of(every)
        }
        (Some(types), Windows::From) => uses && types[layer] == "sliding_attention",
        (None, Windows::From) => uses && layer >= from,
    };
    let named = if family.turned == Turned::Named { keys.numbers("no_rope_layers")? } else { None };
    let every = if family.turned == Turned::Named { keys.count_or("no_rope_layer_interval", 4)? } else { 0 };
    let is_turned = |layer: usize| match family.turned {
        Turned::All => true,
        Turned::None => false,
        Turned::Windowed => is_windowed(layer),
        Turned::WindowedIfAny => window.is_none() || is_windowed(layer),
        Turned::Named => match &named {
            Some(list) => list.get(layer).is_none_or(|x| *x != 0.0),
            None => !(layer + 1).is_multiple_of(every),
        },
    };
    let (ropes, local) = ropes(keys, family, shape)?;
    let known = ["full_attention", "sliding_attention", "linear_attention", "conv"];
    let rule = |layer: usize| {
        let kind = listed.as_ref().map(|types| types[layer]);
        if let Some(kind) = kind.filter(|kind| !known.contains(kind)) {
            return Err(refused(format!("layers of the type `{kind}` are not known")));
        }
        let attends = ["self_attn.", "attention.", "attn."].iter().any(|start| names.has(layer, start));
        let windowed = is_windowed(layer).then_some(window).flatten();
        let rope = is_turned(layer).then(|| if windowed.is_some() { local } else { 0 });
        Ok(Rule { window: windowed, rope, attends })
    };
    Ok(((0..layers).map(rule).collect::<Result<_, _>>()?, ropes))
}

/// The angles of full layers, then if they differ those of layers with a window; and the number of the latter.
fn ropes(keys: &Keys<'_>, family: &Family, shape: Shape) -> Result<(Vec<Rope>, usize), Finding> {
    if family.turned == Turned::None {
        return Ok((Vec::new(), 0));
    }
    let own = keys.inside("rope_parameters");
    let older = keys.inside("rope_scaling");
    let theta = keys.number_or_none("rope_theta")?.or(keys.number_or_none("rotary_emb_base")?);
    let mut share = None;
    for key in ["partial_rotary_factor", "rotary_pct"] {
        share = share.or(keys.number_or_none(key)?);
    }
    let latent = family.mixer == families::Mixer::Latent;
    let size = Size {
        head: if latent { keys.count(&["qk_rope_head_dim"])? } else { shape.head },
        turned: keys.count_or_none("rotary_dim")?,
        share: share.unwrap_or(family.share),
        positions: shape.positions,
        original: keys.count_or_none("original_max_position_embeddings")?,
        base: family.base,
    };
    let by_type = own
        .as_ref()
        .filter(|own| own.get("full_attention").is_some() || own.get("sliding_attention").is_some());
    if let Some(own) = by_type {
        let full = rope::frequencies(own.inside("full_attention").as_ref(), size, theta)?;
        let local = rope::frequencies(own.inside("sliding_attention").as_ref(), size, None)?;
        own.unread("rope_parameters.")?;
        return Ok((vec![full, local], 1));
    }
    let full = rope::frequencies(own.as_ref().or(older.as_ref()), size, theta)?;
    // Older files: layers with a window have a base of their own, or the plain one (Gemma 3, OLMo 3).
    let local = keys.number_or_none("rope_local_base_freq")?;
    let plain = family.types.contains(&"olmo3").then_some(theta.unwrap_or(family.base));
    let gemma = family.types.contains(&"gemma3_text").then_some(1e4);
    match local.or(gemma).or(plain) {
        Some(base) => Ok((vec![full, rope::frequencies(None, size, Some(base))?], 1)),
        None => Ok((vec![full], 0)),
    }
}
