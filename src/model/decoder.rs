//! Language model detection: the tensors that are the model proper. These are the blocks that repeat. If there are
//! several stacks of blocks, they are those that the configuration's text part describes.
//!
//! A stack is a list of numbered modules, `prefix.0.…`, `prefix.1.…`. The language model is found by its description:
//! its number of layers, its width, and the place of its vocabulary. All other stacks are towers, projectors, talkers
//! and vocoders, under any name. If no language model is described (encoders, vision models, diffusion transformers),
//! every stack is the model.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::code;
use super::facts::{TensorFacts, Tensors};
use crate::finding::Finding;
use crate::layer::LayerType;

/// More lists than any model has: of a file with so many nothing can be told by them, and they are not to fill the memory.
const MAX_LISTS: usize = 1 << 16;

/// How many numbers of a name are looked at: a list of lists of lists is as deep as families nest their blocks.
const MAX_NESTED: usize = 3;

/// Rows by which a table may be longer than the vocabulary, so that it is a round number.
const MAX_PADDING: u64 = 1024;

/// Words in a stack's name that hint at its purpose, if nothing else tells stacks apart.
const HINTS_OF_TEXT: &[&str] = &["language", "llm", "text", "decoder", "thinker"];
const HINTS_OF_TOWERS: &[&str] =
    &["vis", "image", "audio", "video", "speech", "encoder", "talker", "token2wav"];

/// The place of a tensor in the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// In a block of the model, with its number.
    Block(u64),
    /// In a part of its own beside the language model, with blocks of its own.
    Tower,
    /// In a part of its own beside the language model and its towers.
    Projector,
    /// In a part with one row for each token or label.
    Head,
    /// In none of the blocks.
    Outside,
    /// Nothing is known: there are no blocks.
    Unknown,
}

/// The stacks that are the model, and the parts beside them.
pub(super) struct Decoder<'a> {
    /// The names of the chosen lists.
    lists: HashSet<&'a str>,
    /// The modules above the chosen lists, and the lists themselves.
    above: HashSet<&'a str>,
    /// The parts outside of the blocks, by the shortest name that leads to no chosen list.
    parts: HashMap<&'a str, Part>,
    /// Whether a language model is described, and some lists are what is described.
    pub(super) is_told: bool,
    /// Whether some part has blocks of its own, beside a language model.
    has_towers: bool,
    /// Whether encoder and decoder have layers of their own.
    pub(super) is_encoder_decoder: bool,
    /// A description of the stacks that were taken for the language model, if the model has other parts beside it.
    pub(super) words: Option<String>,
    /// The warning about an uncertain choice.
    pub(super) warning: Option<Finding>,
}

/// Known facts about a part outside of the blocks.
#[derive(Debug, Clone, Copy, Default)]
struct Part {
    has_blocks: bool,
    has_matrices: bool,
    has_outputs: bool,
}

/// A list of numbered modules.
#[derive(Default)]
struct List {
    numbers: BTreeSet<u64>,
    matrices: u64,
    /// How many matrices have an axis of a size.
    axes: HashMap<u64, u64>,
    /// The sizes of norms.
    norms: BTreeSet<u64>,
}

impl List {
    /// More than a chain of single layers.
    fn has_blocks(&self) -> bool {
        self.matrices >= 2 * self.numbers.len() as u64
    }

    /// Whether the stream through the blocks is so wide: nearly every matrix reads or writes it, or many do and a norm has its
    /// size. (The inner width of a narrower tower's MLP may be the same.)
    fn is_wide(&self, width: u64) -> bool {
        let hits = self.axes.get(&width).copied().unwrap_or(0);
        4 * hits > 3 * self.matrices || (self.norms.contains(&width) && 10 * hits >= 3 * self.matrices)
    }

    /// How well the number of blocks fits: as many as described, as many and extra prediction layers, or not.
    fn fits_depth(&self, depths: &BTreeSet<u64>) -> u8 {
        let count = self.numbers.len() as u64;
        if depths.contains(&count) {
            return 3;
        }
        let has_extra =
            |depth: &u64| count > *depth && count - depth <= 8 && self.numbers.contains(&(depth - 1));
        match depths.iter().any(|depth| *depth > 1 && has_extra(depth)) {
            true => 2,
            false => u8::from(depths.is_empty()),
        }
    }
}

/// The description of the language model.
struct Description {
    width: Option<u64>,
    depths: BTreeSet<u64>,
    /// Modules of the tables and heads of its vocabulary.
    tables: Vec<String>,
    heads: Vec<String>,
}

/// How well a list fits a description; more is better, the first difference decides.
type Fit = (u8, u8, bool, usize, usize, u8);

impl<'a> Decoder<'a> {
    /// Finds the model's stacks. Linear in the number of tensors.
    pub(super) fn of(tensors: &Tensors<'a, '_>, vocabulary: Option<u64>) -> Self {
        let folder = tensors.folder;
        let lists = lists(tensors);
        let described = describe(tensors, vocabulary);
        let mut warning = None;
        let chosen = described.as_ref().and_then(|description| {
            let chosen = choose(&lists, description, folder.config.is_encoder_decoder());
            if chosen.is_none() && lists.len() > 1 {
                warning = Some(unfit(&lists));
            }
            chosen
        });
        let is_told = chosen.is_some();
        let chosen = chosen.unwrap_or_else(|| every_stack(&lists));
        let is_encoder_decoder = folder.config.is_encoder_decoder()
            || chosen.iter().any(|list| encoder_of(list, |name| chosen.contains(&name)).is_some());
        let mut above: HashSet<&str> = HashSet::from([""]);
        for list in &chosen {
            above.extend(list.match_indices('.').map(|(at, _)| &list[..at]));
            above.insert(list);
        }
        let mut decoder = Self {
            lists: chosen.iter().copied().collect(),
            above,
            parts: HashMap::new(),
            is_told,
            has_towers: false,
            is_encoder_decoder,
            words: None,
            warning,
        };
        decoder.find_parts(tensors, vocabulary);
        decoder.has_towers = is_told && decoder.parts.values().any(|part| part.has_blocks);
        if decoder.has_towers {
            decoder.words = Some(decoder.in_words(&lists, described.and_then(|d| d.width)));
        }
        decoder
    }

    fn find_parts(&mut self, tensors: &Tensors<'a, '_>, vocabulary: Option<u64>) {
        let labels = tensors.folder.config.labels();
        for (tensor, kind) in tensors.iter() {
            let name = tensor.info.name.as_str();
            if self.block(name).is_some() {
                continue;
            }
            let (shape, is_table) = (&tensor.info.shape[..], kind == LayerType::Embedding);
            let rows = shape.first().copied().filter(|_| !is_table);
            let is_output = rows.is_some_and(|rows| {
                Some(rows) == vocabulary || (kind == LayerType::Linear && Some(rows) == labels)
            });
            let Some(part) = self.part_name(name) else { continue };
            let part = self.parts.entry(part).or_default();
            part.has_blocks |= numbered(name).next().is_some();
            part.has_matrices |= shape.len() == 2 && !is_table;
            part.has_outputs |= is_output;
        }
    }

    /// The place of a tensor.
    pub(super) fn place(&self, name: &str) -> Place {
        if self.lists.is_empty() {
            return Place::Unknown;
        }
        if let Some(number) = self.block(name) {
            return Place::Block(number);
        }
        let part = self.part_name(name).and_then(|part| self.parts.get(part)).copied().unwrap_or_default();
        match part {
            Part { has_blocks: true, .. } if self.has_towers => Place::Tower,
            Part { has_outputs: true, .. } => Place::Head,
            Part { has_matrices: true, .. } if self.has_towers => Place::Projector,
            _ => Place::Outside,
        }
    }

    /// The number of the block that a tensor is in.
    fn block(&self, name: &str) -> Option<u64> {
        numbered(name).find(|(list, ..)| self.lists.contains(list)).map(|(_, number, _)| number)
    }

    /// The shortest part of a name that does not lead to the chosen lists.
    fn part_name<'n>(&self, name: &'n str) -> Option<&'n str> {
        let ends = name.match_indices('.').map(|(at, _)| at).chain([name.len()]);
        ends.map(|end| &name[..end]).find(|part| !self.above.contains(part))
    }

    fn in_words(&self, lists: &HashMap<&str, List>, width: Option<u64>) -> String {
        let mut stacks: Vec<&str> = self.lists.iter().copied().collect();
        stacks.sort_unstable();
        let stacks: Vec<String> = stacks
            .into_iter()
            .map(|list| {
                let count = lists.get(list).map_or(0, |list| list.numbers.len());
                let blocks = if count == 1 { "block" } else { "blocks" };
                format!("`{list}` ({count} {blocks})")
            })
            .collect();
        let wide = width.map_or_else(String::new, |width| format!(", hidden size {width}"));
        let mut beside: Vec<&str> = self
            .parts
            .iter()
            .filter(|(_, p)| p.has_blocks || (p.has_matrices && !p.has_outputs))
            .map(|(n, _)| *n)
            .collect();
        beside.sort_unstable();
        let more = if beside.len() > 6 { format!(" and {} more", beside.len() - 6) } else { String::new() };
        let beside: Vec<String> = beside.into_iter().take(6).map(|name| format!("`{name}`")).collect();
        format!(
            "the language model is {}{wide}; beside it: {}{more}",
            stacks.join(" and "),
            beside.join(", ")
        )
    }
}

/// The lists that a name leads through, the outermost first: each with the number in it, and what comes after. A list of single
/// layers (`projector.0.weight`) is none.
fn numbered(name: &str) -> impl Iterator<Item = (&str, u64, &str)> {
    let mut start = 0;
    let found = name.split('.').filter_map(move |segment| {
        let (at, end) = (start, start + segment.len());
        start = end + 1;
        let first = segment.as_bytes().first()?;
        let number = first.is_ascii_digit().then(|| segment.parse::<u64>().ok())??;
        let rest = name.get(end + 1..)?;
        let list = &name[..at.saturating_sub(1)];
        let is_block = rest.contains('.') && list != "experts" && !list.ends_with(".experts");
        is_block.then_some((list, number, rest))
    });
    found.take(MAX_NESTED)
}

/// The lists of a model; none if there are more than any model has.
fn lists<'a>(tensors: &Tensors<'a, '_>) -> HashMap<&'a str, List> {
    let mut lists: HashMap<&str, List> = HashMap::new();
    for (tensor, kind) in tensors.iter() {
        let shape = &tensor.info.shape[..];
        for (list, number, _) in numbered(&tensor.info.name) {
            if lists.len() > MAX_LISTS {
                return HashMap::new();
            }
            let list = lists.entry(list).or_default();
            list.numbers.insert(number);
            match (kind, shape) {
                (LayerType::LayerNorm | LayerType::RMSNorm, [size]) => {
                    list.norms.insert(*size);
                }
                (LayerType::Linear | LayerType::Conv1D | LayerType::Experts, [.., a, b]) => {
                    list.matrices += 1;
                    *list.axes.entry(*a).or_default() += 1;
                    if a != b {
                        *list.axes.entry(*b).or_default() += 1;
                    }
                }
                _ => {}
            }
        }
    }
    lists.retain(|_, list| list.matrices > 0);
    lists
}

/// The description of a language model from the configuration, or from the token table if there is no configuration.
/// `None` if there is no language model.
fn describe(all: &Tensors<'_, '_>, vocabulary: Option<u64>) -> Option<Description> {
    let config = &all.folder.config;
    let is_scale = |t: &TensorFacts<'_>| t.parameter.starts_with("logit_scale") && t.info.elements() <= 1;
    if config.describes_encoders() || all.iter().any(|(tensor, _)| is_scale(&tensor)) {
        return None;
    }
    let vocabulary = vocabulary?;
    let is_vocabulary = |rows: u64| rows >= vocabulary && rows - vocabulary <= MAX_PADDING;
    let of_kind = |wanted: LayerType| {
        let tensors = all.iter().filter(move |(_, kind)| *kind == wanted).map(|(t, _)| t);
        tensors.filter_map(|t| match t.info.shape[..] {
            [rows, columns] if is_vocabulary(rows) => Some((t.info.module().to_owned(), columns)),
            _ => None,
        })
    };
    let tables: Vec<(String, u64)> = of_kind(LayerType::Embedding).collect();
    let heads: Vec<(String, u64)> = of_kind(LayerType::Linear).collect();
    let widths = tables.iter().chain(&heads).map(|(_, columns)| *columns);
    let width = config.hidden_size().or_else(|| widths.max());
    let modules = |list: Vec<(String, u64)>| list.into_iter().map(|(module, _)| module).collect();
    Some(Description { width, depths: config.depths(), tables: modules(tables), heads: modules(heads) })
}

/// The lists that fit a description. `None` if none fits.
fn choose<'a>(
    lists: &HashMap<&'a str, List>,
    description: &Description,
    is_encoder_decoder: bool,
) -> Option<Vec<&'a str>> {
    let mut fits: Vec<(Fit, &str)> =
        lists.iter().map(|(name, list)| (fit(name, list, description), *name)).collect();
    // Of lists in lists, the outer one.
    fits.sort_by(|a, b| b.0.cmp(&a.0).then(segments(a.1).cmp(&segments(b.1))).then(a.1.cmp(b.1)));
    let (best, first) = *fits.first()?;
    let (width, depth, _, table, head, _) = best;
    if lists.len() > 1 && width == 0 && depth < 2 && table < 2 && head < 2 {
        return None;
    }
    let is_inside =
        |name: &str, outer: &str| name.strip_prefix(outer).is_some_and(|rest| rest.starts_with('.'));
    let mut chosen: Vec<&str> = Vec::new();
    let mut add = |name: &'a str| {
        if !chosen.iter().any(|outer| is_inside(name, outer) || *outer == name || outer.is_empty()) {
            chosen.push(name);
        }
    };
    add(first);
    // A list that fits exactly as well as the first is part of the model, too.
    fits.iter().filter(|(other, _)| *other == best).for_each(|(_, name)| add(name));
    // Layers of several kinds may be in several lists beside each other, which are as many as described together.
    let parent = |name: &str| name.rsplit_once('.').map_or("", |(parent, _)| parent).to_owned();
    if depth < 2 {
        let beside = fits.iter().filter(|(other, name)| other.0 == width && parent(name) == parent(first));
        beside.for_each(|(_, name)| add(name));
    }
    // An encoder is like its decoder but for its name, or it lies beside it.
    if let Some(encoder) = encoder_of(first, |name| lists.contains_key(name))
        && let Some((encoder, _)) = lists.get_key_value(encoder.as_str())
        && (is_encoder_decoder || fits.iter().any(|(other, name)| name == encoder && other.0 == width))
    {
        add(encoder);
    }
    Some(chosen)
}

fn fit(name: &str, list: &List, description: &Description) -> Fit {
    let width = match description.width {
        Some(width) if !list.is_wide(width) => 0,
        _ => 1,
    };
    let near = |modules: &[String]| modules.iter().map(|module| shared(name, module)).max().unwrap_or(0);
    let has = |hints: &[&str]| name.split('.').any(|segment| hints.iter().any(|hint| segment.contains(hint)));
    let hint = 1 + u8::from(has(HINTS_OF_TEXT)) - u8::from(has(HINTS_OF_TOWERS));
    (
        width,
        list.fits_depth(&description.depths),
        list.has_blocks(),
        near(&description.tables),
        near(&description.heads),
        hint,
    )
}

/// How many leading parts two names share, and one for being there.
fn shared(a: &str, b: &str) -> usize {
    1 + a.split('.').zip(b.split('.')).take_while(|(a, b)| a == b).count()
}

fn segments(name: &str) -> usize {
    name.split('.').count()
}

/// The encoder's list that is called like a decoder's.
fn encoder_of(decoder: &str, is_there: impl Fn(&str) -> bool) -> Option<String> {
    let (before, after) = decoder.rsplit_once("decoder")?;
    let names = [decoder.replace("decoder", "encoder"), format!("{before}encoder{after}")];
    names.into_iter().find(|name| is_there(name))
}

/// Every list of blocks; if there is none, every list.
fn every_stack<'a>(lists: &HashMap<&'a str, List>) -> Vec<&'a str> {
    let blocks: Vec<&str> =
        lists.iter().filter(|(_, list)| list.has_blocks()).map(|(name, _)| *name).collect();
    if blocks.is_empty() { lists.keys().copied().collect() } else { blocks }
}

fn unfit(lists: &HashMap<&str, List>) -> Finding {
    let mut names: Vec<&str> = every_stack(lists);
    names.sort_unstable();
    let more = if names.len() > 4 { format!(" and {} more", names.len() - 4) } else { String::new() };
    let names: Vec<String> = names.into_iter().take(4).map(|name| format!("`{name}`")).collect();
    Finding::warning(
        code::DECODER,
        format!(
            "no stack of layers is what `config.json` says of the language model: {}{more} count as the model alike",
            names.join(", ")
        ),
    )
    .help("Say what is not to be quantized: `modules_to_not_convert` in `resolve-skips`.")
}

#[cfg(test)]
mod tests;
