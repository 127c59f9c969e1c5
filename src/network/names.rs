//! The tensors of a checkpoint as a description uses them up: what is left over was not understood.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use super::code;
use super::parts::{Layout, Linear, Part};
use super::weights::Weights;
use crate::finding::Finding;

/// Tensors of layers that take no part in the arithmetic: masks and tables that are computed anyway.
const COMPUTED: &[&str] = &[
    "rotary_emb.inv_freq",
    "attn.bias",
    "attn.masked_bias",
    "attention.bias",
    "attention.masked_bias",
    "embeddings.position_ids",
];

/// Words in the names of lists that are no language model.
const OTHERS: &[&str] =
    &["visual", "vision", "image", "audio", "video", "speech", "talker", "code2wav", "token2wav", "mtp"];

/// Names, shapes, and which were used.
pub(super) struct Names<'a> {
    weights: &'a dyn Weights,
    all: BTreeSet<String>,
    used: RefCell<BTreeSet<String>>,
    /// What stands before the number of a layer, with its dot.
    list: String,
    /// What stands before that list's own name.
    root: String,
}

fn missing(name: &str) -> Finding {
    Finding::error(
        code::MISSING_TENSOR,
        format!("the checkpoint has no tensor `{name}`, which the model needs to run"),
    )
    .help("Get the checkpoint again, or look whether `config.json` belongs to it.")
}

impl<'a> Names<'a> {
    /// Finds the list of layers: one of at least `layers` numbered modules, in which something is as wide as the stream.
    pub(super) fn new(weights: &'a dyn Weights, layers: usize, hidden: usize) -> Result<Self, Finding> {
        let all: BTreeSet<String> = weights.names().into_iter().collect();
        let mut lists: BTreeMap<&str, (BTreeSet<usize>, bool)> = BTreeMap::new();
        for name in &all {
            let Some((list, number)) = list_of(name) else { continue };
            let entry = lists.entry(list).or_default();
            entry.0.insert(number);
            entry.1 |= !entry.1 && weights.shape(name).is_some_and(|shape| shape.contains(&hidden));
        }
        let fits = |list: &&str, numbers: &BTreeSet<usize>, is_wide: bool| {
            is_wide
                && (0..layers).all(|number| numbers.contains(&number))
                && !OTHERS.iter().any(|word| list.split(['.', '_']).any(|part| part == *word))
        };
        let found: Vec<&str> = lists
            .iter()
            .filter(|(list, (numbers, wide))| fits(list, numbers, *wide))
            .map(|(list, _)| *list)
            .collect();
        let [list] = found[..] else {
            let what = if found.is_empty() { "no list" } else { "several lists" };
            return Err(Finding::error(
                code::NOT_ADMITTED,
                format!("the checkpoint has {what} of {layers} layers that are {hidden} wide, so its layers are not known"),
            )
            .help("Look whether `config.json` belongs to the checkpoint. A file of statistics made elsewhere still works."));
        };
        let list = format!("{list}.");
        let root =
            list[..list.len() - 1].rsplit_once('.').map_or(String::new(), |(root, _)| format!("{root}."));
        Ok(Self { weights, used: RefCell::default(), list, root, all: all.clone() })
    }

    /// A tensor's shape, if there is one of this name.
    pub(super) fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.weights.shape(name)
    }

    fn take(&self, name: String) -> Option<String> {
        if !self.all.contains(&name) {
            return None;
        }
        self.used.borrow_mut().insert(name.clone());
        Some(name)
    }

    /// A tensor of a layer.
    pub(super) fn in_layer(&self, layer: usize, rest: &str) -> Option<String> {
        self.take(format!("{}{layer}.{rest}", self.list))
    }

    /// The first of some tensors beside the layers: below the root, or the parts around it up to the top.
    pub(super) fn outside(&self, rests: &[&str]) -> Option<String> {
        let mut root = self.root.as_str();
        loop {
            if let Some(found) = rests.iter().find_map(|rest| self.take(format!("{root}{rest}"))) {
                return Some(found);
            }
            if root.is_empty() {
                return None;
            }
            root = root[..root.len() - 1].rfind('.').map_or("", |dot| &root[..=dot]);
        }
    }

    /// Whether some tensor of a layer starts like this.
    pub(super) fn has(&self, layer: usize, rest: &str) -> bool {
        let start = format!("{}{layer}.{rest}", self.list);
        self.all.range(start.clone()..).next().is_some_and(|name| name.starts_with(&start))
    }

    /// Checks a vector's length.
    pub(super) fn vector(&self, name: &str, length: usize) -> Result<(), Finding> {
        let shape = self.shape(name).unwrap_or_default();
        if shape.iter().product::<usize>() == length && !shape.is_empty() {
            return Ok(());
        }
        Err(wrong_shape(name, &shape, &format!("{length} numbers")))
    }

    /// A matrix with its bias.
    pub(super) fn matrix(
        &self,
        weight: Option<String>,
        wanted: &str,
        (rows, columns): (usize, usize),
        layout: Layout,
    ) -> Result<Linear, Finding> {
        let tensor = weight.ok_or_else(|| missing(wanted))?;
        let shape = self.shape(&tensor).unwrap_or_default();
        let expected = if layout == Layout::OutIn { [rows, columns] } else { [columns, rows] };
        if shape != expected {
            return Err(wrong_shape(&tensor, &shape, &format!("{expected:?}")));
        }
        let bias = tensor.strip_suffix(".weight").and_then(|module| self.take(format!("{module}.bias")));
        if let Some(bias) = &bias {
            self.vector(bias, rows)?;
        }
        Ok(Linear { tensor, part: Part::Whole, layout, columns, rows, bias })
    }

    /// A matrix of a layer: the first of some modules that is there.
    pub(super) fn linear(
        &self,
        layer: usize,
        modules: &[&str],
        size: (usize, usize),
    ) -> Result<Linear, Finding> {
        let found = modules.iter().find_map(|module| self.in_layer(layer, &format!("{module}.weight")));
        let wanted = format!("{}{layer}.{}.weight", self.list, modules.first().copied().unwrap_or_default());
        self.matrix(found, &wanted, size, Layout::OutIn)
    }

    /// The error of a tensor of a layer that is missing.
    pub(super) fn missing(&self, layer: usize, rest: &str) -> Finding {
        missing(&format!("{}{layer}.{rest}", self.list))
    }

    /// The error of a tensor beside the layers that is missing.
    pub(super) fn missing_outside(&self, rest: &str) -> Finding {
        missing(&format!("{}{rest}", self.root))
    }

    /// Fails with tensors of the layers that were not used; gives the parts of the checkpoint that lie elsewhere.
    pub(super) fn unused(&self, layers: usize) -> Result<Vec<String>, Finding> {
        let used = self.used.borrow();
        let mut parts: BTreeMap<String, usize> = BTreeMap::new();
        let mut unknown = Vec::new();
        for name in self.all.iter().filter(|name| !used.contains(*name)) {
            if COMPUTED.iter().any(|end| name.ends_with(end)) {
                continue;
            }
            let number =
                name.strip_prefix(&self.list).and_then(|rest| rest.split('.').next()?.parse::<usize>().ok());
            match number {
                Some(number) if number < layers => unknown.push(name.clone()),
                Some(number) => *parts.entry(format!("{}{number}", self.list)).or_default() += 1,
                None => *parts.entry(name.split('.').take(2).collect::<Vec<_>>().join(".")).or_default() += 1,
            }
        }
        if let Some(first) = unknown.first() {
            let others =
                if unknown.len() > 1 { format!(" and {} others", unknown.len() - 1) } else { String::new() };
            return Err(Finding::error(
                code::UNKNOWN_TENSOR,
                format!("`{first}`{others} take part in what a layer computes, in a way that is not known"),
            )
            .help(
                "The model is not run. A file of statistics made elsewhere still works: `calibration: file`.",
            ));
        }
        Ok(parts.into_iter().map(|(part, count)| format!("{part} ({count} tensors)")).collect())
    }
}

/// The error of a tensor of another shape than the configuration says.
pub(super) fn wrong_shape(name: &str, shape: &[usize], expected: &str) -> Finding {
    Finding::error(code::WRONG_SHAPE, format!("`{name}` is {shape:?}, and `config.json` asks for {expected}"))
        .help("Look whether `config.json` belongs to the checkpoint.")
}

/// The list a name is in, and its number there.
fn list_of(name: &str) -> Option<(&str, usize)> {
    let mut start = 0;
    for part in name.split('.') {
        if start > 0
            && let Ok(number) = part.parse()
        {
            return Some((&name[..start - 1], number));
        }
        start += part.len() + 1;
    }
    None
}
