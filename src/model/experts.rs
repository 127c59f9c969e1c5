//! 3-D expert stacks as the matrices they hold: which axis is which, and where each matrix [out, in] lies.
//!
//! Families store the same two stacks as [E, out, in] or as [E, in, out], with gate and up as halves or interleaved.
//! Nothing in the file says which. The text decoder's width does, since one side of every expert has it.

use super::code;
use super::folder::ModelFolder;
use super::matrix_view::{MatrixView, StackLayout};
use super::tensor::TensorInfo;
use crate::finding::Finding;
use crate::ids::TensorId;

/// The projections that a stack holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExpertPart {
    /// Gate and up projection in one: `gate_up_proj`, Granite's `input_linear`.
    GateUp,
    /// `gate_proj`.
    Gate,
    /// `up_proj`.
    Up,
    /// `down_proj`, Granite's `output_linear`.
    Down,
}

impl ExpertPart {
    const NAMES: &[(&str, ExpertPart)] = &[
        ("gate_up_proj", ExpertPart::GateUp),
        ("input_linear", ExpertPart::GateUp),
        ("gate_proj", ExpertPart::Gate),
        ("up_proj", ExpertPart::Up),
        ("down_proj", ExpertPart::Down),
        ("output_linear", ExpertPart::Down),
    ];

    /// Matrices of the width I side by side in the output dimension.
    fn width(self) -> u64 {
        if self == ExpertPart::GateUp { 2 } else { 1 }
    }
}

/// One expert's matrix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpertMatrix {
    /// The expert, from 0.
    pub expert: u64,
    /// The module it becomes: `{prefix}.experts.{e}.gate_proj`; its tensor is that and `.weight`.
    pub module: String,
    /// Its position in the stack.
    pub view: MatrixView,
}

/// A 3-D tensor of experts, understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpertStack {
    /// The projection that it holds.
    pub part: ExpertPart,
    /// Stored as [E, in, out] instead of [E, out, in].
    pub is_transposed: bool,
    /// Gate in the even and up in the odd columns, instead of in the first and second half.
    pub is_interleaved: bool,
    /// Experts.
    pub experts: u64,
    /// The fact that decided about the axes, if the shapes alone did not.
    pub note: Option<String>,
    /// Every expert's matrices, ordered by expert, gate before up.
    pub matrices: Vec<ExpertMatrix>,
}

/// More experts than any layer has. Each is a matrix of its own, whatever its size.
const MAX_EXPERTS: u64 = 1 << 16;

/// Understands the stack `tensor` of the folder.
///
/// # Errors
/// The tensor is no stack of a known name, or its shape contradicts the configuration or its companion's.
pub fn stack(folder: &ModelFolder, tensor: TensorId) -> Result<ExpertStack, Finding> {
    let info = &folder.tensors[tensor];
    let &[experts, a, b] = &info.shape[..] else {
        return Err(contradiction(info, "a stack of experts has three axes"));
    };
    if info.elements() == 0 {
        return Err(contradiction(info, "it is empty"));
    }
    if experts > MAX_EXPERTS {
        return Err(contradiction(info, &format!("no model has more than {MAX_EXPERTS} in one layer")));
    }
    let Some(name) = StackName::of(info) else {
        let known: Vec<&str> = ExpertPart::NAMES.iter().map(|(name, _)| *name).collect();
        return Err(contradiction(info, &format!("stacks are known by the names {}", known.join(", "))));
    };
    let (is_transposed, note) = orientation(folder, info, &name, [a, b])?;
    // Only gpt-oss interleaves, and only gpt-oss has a bias there, or codes of a stack.
    let has_bias = || folder.parameter_of(info.module(), "gate_up_proj_bias").is_some();
    let is_interleaved =
        name.part == ExpertPart::GateUp && (info.plain_is_transposed() || is_transposed && has_bias());
    let (out, cols) = if is_transposed { (b, a) } else { (a, b) };
    let parts: &[&str] = match name.part {
        ExpertPart::GateUp => &["gate_proj", "up_proj"],
        ExpertPart::Gate => &["gate_proj"],
        ExpertPart::Up => &["up_proj"],
        ExpertPart::Down => &["down_proj"],
    };
    let width = name.part.width();
    if !out.is_multiple_of(width) {
        return Err(contradiction(
            info,
            &format!("{out} outputs cannot be a gate and an up projection of one size"),
        ));
    }
    let layout = StackLayout { parts: width, rows: out / width, cols, is_transposed, is_interleaved };
    let mut matrices = Vec::new();
    for expert in 0..experts {
        for (number, part) in (0u64..).zip(parts) {
            // All products are below the tensor's size, which was checked.
            let view = layout.view(expert, number);
            matrices.push(ExpertMatrix { expert, module: name.expert_module(expert, part), view });
        }
    }
    Ok(ExpertStack { part: name.part, is_transposed, is_interleaved, experts, note, matrices })
}

/// The experts of a stack [E, out, in], each as one matrix whatever it holds.
#[must_use]
pub fn whole(info: &TensorInfo) -> Vec<ExpertMatrix> {
    let &[experts, rows, cols] = &info.shape[..] else { return Vec::new() };
    let view = |expert: u64| MatrixView {
        first: expert * rows * cols,
        rows,
        cols,
        row_stride: cols,
        column_stride: 1,
    };
    let module = |expert: u64| format!("{}.{expert}", info.name);
    (0..experts).map(|expert| ExpertMatrix { expert, module: module(expert), view: view(expert) }).collect()
}

/// A stack's name taken apart.
struct StackName<'a> {
    part: ExpertPart,
    /// The word that names the part.
    word: &'a str,
    /// The part of the name before the word: `model.layers.0.mlp.experts`.
    module: &'a str,
    /// The part of the name after the word: empty, or `.weight`.
    tail: &'a str,
}

impl<'a> StackName<'a> {
    fn of(info: &'a TensorInfo) -> Option<Self> {
        let (stem, tail) = match info.name.strip_suffix(".weight") {
            Some(stem) => (stem, ".weight"),
            None => (info.name.as_str(), ""),
        };
        let (module, word) = stem.rsplit_once('.')?;
        let part = ExpertPart::NAMES.iter().find(|(name, _)| *name == word)?.1;
        Some(Self { part, word, module, tail })
    }

    /// The stack of the same experts with another word.
    fn companion<'f>(&self, folder: &'f ModelFolder, words: &[&str]) -> Option<&'f TensorInfo> {
        let found =
            words.iter().find_map(|word| folder.by_name(&format!("{}.{word}{}", self.module, self.tail)));
        found.filter(|info| info.shape.len() == 3)
    }

    fn expert_module(&self, expert: u64, part: &str) -> String {
        let prefix = self.module.strip_suffix(".experts").unwrap_or(self.module);
        if prefix == "experts" {
            return format!("experts.{expert}.{part}");
        }
        format!("{prefix}.experts.{expert}.{part}")
    }
}

/// Whether a stack is stored as [E, in, out], and a note if that was not obvious.
fn orientation(
    folder: &ModelFolder,
    info: &TensorInfo,
    name: &StackName<'_>,
    [a, b]: [u64; 2],
) -> Result<(bool, Option<String>), Finding> {
    let hidden = folder.config.hidden_size();
    let is_down = name.part == ExpertPart::Down;
    let companion = if is_down {
        name.companion(folder, &["gate_up_proj", "input_linear", "gate_proj", "up_proj"])
    } else {
        name.companion(folder, &["down_proj", "output_linear"])
    };
    // The stack into the experts, with its width, and the one out of them: [.., in or out, ..] without the
    // first axis.
    let (inward, outward, width) = match companion {
        None if is_down => (None, Some([a, b]), 1),
        None => (Some([a, b]), None, name.part.width()),
        Some(other) => {
            let axes = [other.shape[1], other.shape[2]];
            let inward_part =
                if is_down { StackName::of(other).map_or(name.part, |n| n.part) } else { name.part };
            let (inward, outward) = if is_down { (axes, [a, b]) } else { ([a, b], axes) };
            (Some(inward), Some(outward), inward_part.width())
        }
    };
    // In an orientation both stacks must have the hidden size outside and one inner size between them.
    let fits = |transposed: bool| {
        let flip = |axes: [u64; 2]| if transposed { [axes[1], axes[0]] } else { axes };
        let (inward, outward) = (inward.map(flip), outward.map(flip));
        let outside = inward.map(|[_, h]| h).into_iter().chain(outward.map(|[h, _]| h));
        let is_hidden = outside.clone().all(|h| hidden.is_none_or(|hidden| h == hidden));
        let inner = match (inward, outward) {
            (Some([i, h]), Some([o, j])) => h == o && j.checked_mul(width) == Some(i),
            _ => true,
        };
        is_hidden && inner
    };
    match (fits(false), fits(true)) {
        (true, false) => Ok((false, None)),
        (false, true) => Ok((true, None)),
        (true, true) => {
            let is_transposed = family_transposes(folder);
            let order = if is_transposed { "[E, in, out]" } else { "[E, out, in]" };
            let note = format!(
                "`{}` {:?} fits both orders of axes; its family stores {order}",
                info.name, info.shape
            );
            Ok((is_transposed, Some(note)))
        }
        (false, false) => {
            let beside = companion.map_or(String::new(), |c| format!(" beside `{}` {:?}", c.name, c.shape));
            let hidden = hidden.map_or("unknown".to_owned(), |h| h.to_string());
            Err(contradiction(
                info,
                &format!("`{}`{beside} does not fit the hidden size {hidden}", name.word),
            ))
        }
    }
}

/// Families that store [E, in, out].
fn family_transposes(folder: &ModelFolder) -> bool {
    let text = folder.config.text().get("model_type").and_then(serde_json::Value::as_str);
    [folder.config.model_type(), text]
        .into_iter()
        .flatten()
        .any(|family| ["qwen3_vl_moe", "llama4", "gpt_oss"].iter().any(|known| family.starts_with(known)))
}

fn contradiction(info: &TensorInfo, why: &str) -> Finding {
    Finding::error(
        code::EXPERTS,
        format!("the experts `{}` ({}) cannot be split: {why}", info.name, info.describe()),
    )
    .help("Leave them alone with `skip_layer_types: [Experts]`, or report the family.")
}

#[cfg(test)]
mod tests;
