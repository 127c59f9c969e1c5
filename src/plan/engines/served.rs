//! Support of an export by the engines that compute with codes: the kernels that take its matrices, and the numbers
//! of GPUs between which it can be cut.

use std::collections::HashMap;

pub use super::kernels::Server;
use super::kernels::{KERNELS, Kernel, Unfit};
use super::parallel::{self, Cut, Heads, Kind, Limit, MOST, Parallel, Unit};
use crate::finding::Finding;
use crate::ids::StageId;
use crate::layer::LayerType;
use crate::model::LayerClass;
use crate::plan::Task;
use crate::plan::fused_modules::{FusedModules, experts_parent};
use crate::plan::layout::{ExportPlan, spec_at};
use crate::plan::output_tensor::Content;
use crate::recipe::Loaded;
use crate::stage::export::{Format, Target};
use crate::stage::{ActivationScheme, Stage};

/// More kinds of matrices than any model has. What is said of each takes memory.
const MAX_KINDS: usize = 10_000;

/// How many modules a message names.
const NAMED: usize = 5;

/// The support of one export by one engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Served {
    /// Index of the `export` stage.
    pub stage: StageId,
    /// The engine.
    pub server: Server,
    /// Its kernels that are for the schemes of the export.
    pub kernels: Vec<KernelUse>,
    /// Between how many GPUs it can cut the output.
    pub parallel: Parallel,
}

/// The support of an export's matrices by one kernel, with the matrices fused as the engine fuses them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelUse {
    /// Its name.
    pub name: &'static str,
    /// The machines that it runs on.
    pub machines: &'static str,
    /// The shapes that it takes.
    pub needs: &'static str,
    /// How many matrices it takes, of those whose scheme it is for.
    pub takes: usize,
    /// How many there are in all.
    pub of: usize,
    /// The first matrix whose shape it does not take, and why.
    pub refused: Option<(String, String)>,
}

/// The plan's statements about engines, apart from the rules.
#[derive(Debug, Default)]
pub(in crate::plan) struct Outlook {
    pub served: Vec<Served>,
    pub findings: Vec<Finding>,
    pub notes: Vec<String>,
}

/// Looks at every export that is for vLLM or SGLang.
pub(in crate::plan) fn look_at(content: Content<'_>, exports: &[ExportPlan]) -> Outlook {
    let mut outlook = Outlook::default();
    for export in exports.iter().filter(|export| export.format == Format::CompressedTensors) {
        let servers: &[Server] = match export.target {
            Target::Vllm => &[Server::Vllm],
            Target::Sglang => &[Server::Sglang],
            Target::Any => &[Server::Vllm, Server::Sglang],
            Target::Transformers => continue,
        };
        let units = units(content, export.stage);
        if units.is_empty() {
            continue;
        }
        let heads = Heads::of(&content.model.config, units.iter().any(|unit| unit.is_expert));
        for &server in servers {
            outlook.served.push(Served {
                stage: export.stage,
                server,
                kernels: kernels(server, &units),
                parallel: parallel::parallel(server, &units, &heads),
            });
        }
        outlook.findings.extend(shapes_without_kernel(content.loaded, export, &units));
        outlook.findings.extend(asked_for(content.loaded, export, servers, &units, &heads));
        outlook.notes.extend(unusual_shape(servers, &units));
    }
    outlook.notes.dedup();
    outlook
}

/// The modules that an engine makes of the quantized matrices of an export: those alike once. None if there are more kinds of
/// them than any model has.
fn units(content: Content<'_>, stage: StageId) -> Vec<Unit> {
    let is_fused = |group: &&FusedModules| !group.are_experts();
    let mut is_in_group = content.model.tensors.map(|_| false);
    for member in content.fused_modules.iter().filter(is_fused).flat_map(FusedModules::members) {
        is_in_group[member] = true;
    }
    let mut units = Units::default();
    for task in content.tasks.iter().filter(|task| !is_in_group[task.tensor()]) {
        units.extend(unit(content, task, stage));
    }
    for group in content.fused_modules.iter().filter(is_fused) {
        let mut fused: Option<Unit> = None;
        for member in group.members() {
            for task in content.tasks_of(member).map(|task| &content.tasks[task]) {
                let Some(unit) = unit(content, task, stage) else { continue };
                match &mut fused {
                    Some(known) => known.parts.extend(unit.parts),
                    None => fused = Some(unit),
                }
            }
        }
        if let Some(unit) = &mut fused {
            unit.parts.sort();
        }
        units.extend(fused);
    }
    units.all
}

/// Kinds of modules that an engine makes of an export.
#[derive(Default)]
struct Units {
    all: Vec<Unit>,
    /// By what they have in common with others.
    known: HashMap<Kind, usize>,
    is_too_much: bool,
}

impl Extend<Unit> for Units {
    fn extend<T: IntoIterator<Item = Unit>>(&mut self, units: T) {
        for unit in units {
            match self.known.get(&unit.kind()) {
                _ if self.is_too_much => {}
                Some(&known) => self.all[known].count += 1,
                None if self.all.len() == MAX_KINDS => {
                    self.is_too_much = true;
                    self.all.clear();
                }
                None => {
                    self.known.insert(unit.kind(), self.all.len());
                    self.all.push(unit);
                }
            }
        }
    }
}

/// The module that a quantized task is in an export.
fn unit(content: Content<'_>, task: &Task, stage: StageId) -> Option<Unit> {
    let spec = spec_at(&content.decisions[task.tensor()], stage)?;
    let view = task.matrix(content.model)?;
    let LayerClass { kind, role, .. } = content.classes[task.tensor()];
    let name = task.module(content.model).to_owned();
    let is_expert = kind == LayerType::Experts || experts_parent(&name).is_some();
    let last = parallel::last_part(&name);
    // The head's rows are filled up to what the GPUs share; towers and the like are whole on each.
    let cut = if role.is_some() && !is_expert {
        Cut::Not
    } else {
        parallel::cut(&name, view.rows, view.cols, content.model.config.hidden_size())
    };
    let parts = match last {
        // Engines make one matrix of them.
        "gate_proj" | "up_proj" | "w1" | "w3" if is_expert => {
            ["gate_proj", "up_proj"].map(|last| (last.to_owned(), view.rows)).to_vec()
        }
        _ if is_expert => vec![("down_proj".to_owned(), view.rows)],
        _ => vec![(last.to_owned(), view.rows)],
    };
    Some(Unit {
        name,
        parts,
        cols: view.cols,
        scheme: spec.scheme,
        activations: spec.activations,
        cut,
        is_expert,
        count: 1,
    })
}

fn kernels(server: Server, units: &[Unit]) -> Vec<KernelUse> {
    let of = units.iter().map(|unit| unit.count).sum();
    let use_of = |kernel: &Kernel| {
        let mut of_this = KernelUse {
            name: kernel.name,
            machines: kernel.machines,
            needs: kernel.needs,
            takes: 0,
            of,
            refused: None,
        };
        let mut is_for_any = false;
        for unit in units {
            match (kernel.takes)(&unit.matrix()) {
                Ok(()) => {
                    of_this.takes += unit.count;
                    is_for_any = true;
                }
                Err(Unfit::Scheme) => {}
                Err(Unfit::Shape(why)) => {
                    of_this.refused.get_or_insert((unit.name.clone(), why));
                    is_for_any = true;
                }
            }
        }
        is_for_any.then_some(of_this)
    };
    KERNELS.iter().filter(|kernel| kernel.server == server).filter_map(use_of).collect()
}

/// Shapes that no kernel of SGLang takes even on one GPU: the model loads and its first matmul fails. vLLM pads.
fn shapes_without_kernel(loaded: &Loaded, export: &ExportPlan, units: &[Unit]) -> Option<Finding> {
    if export.target != Target::Sglang {
        return None;
    }
    let refused: Vec<(&Unit, String)> = units
        .iter()
        .filter_map(|unit| Some((unit, parallel::refused_by_all(Server::Sglang, &unit.matrix())?)))
        .collect();
    let (first, why) = refused.first()?;
    let count: usize = refused.iter().map(|(unit, _)| unit.count).sum();
    let more = if count > 1 { format!(" and {} more", count - 1) } else { String::new() };
    Some(
        Finding::error(
            "plan::sglang-shape",
            format!("no kernel of SGLang takes `{}`{more}: {why}", first.name),
        )
        .at_opt(loaded.stage_place(export.stage), "exported for sglang")
        .help("Leave it alone with `modules_to_not_convert`, or export with `target: vllm`, which pads."),
    )
}

/// Whether the output can be cut as the recipe asks.
fn asked_for(
    loaded: &Loaded,
    export: &ExportPlan,
    servers: &[Server],
    units: &[Unit],
    heads: &Heads,
) -> Vec<Finding> {
    let Stage::Export(stage) = &loaded.recipe.stages[export.stage] else { return Vec::new() };
    let Some(gpus) = stage.tensor_parallel.map(std::num::NonZeroU64::get) else { return Vec::new() };
    let place = loaded.place(&format!("/stages/{}/tensor_parallel", export.stage));
    let refused: Vec<(Server, Vec<Limit>)> = servers
        .iter()
        .map(|&server| (server, parallel::limits(server, units, heads, gpus).collect::<Vec<_>>()))
        .filter(|(_, limits)| !limits.is_empty())
        .collect();
    // The same is in the way of both, mostly.
    let alike = refused.windows(2).all(|pair| pair[0].1 == pair[1].1);
    let told = if alike { refused.len().min(1) } else { refused.len() };
    let finding = |(server, limits): &(Server, Vec<Limit>)| {
        let message = match refused.len() {
            2 if alike => format!("neither vLLM nor SGLang can cut the output between {gpus} GPUs"),
            _ => format!("{} cannot cut the output between {gpus} GPUs", server.name()),
        };
        // With any engine for a target, one that can is enough.
        let finding = match refused.len() == servers.len() {
            true => Finding::error("plan::tensor-parallel", message),
            false => Finding::warning("plan::tensor-parallel", message),
        };
        let mut helps: Vec<&str> = limits.iter().map(|limit| limit.help).collect();
        helps.dedup();
        let sizes = parallel::parallel(*server, units, heads).sizes;
        let sizes: Vec<String> = sizes.iter().map(u64::to_string).collect();
        let numbers = match sizes.is_empty() {
            true => format!("No number up to {MOST} works."),
            false => format!("Numbers that work: {}.", sizes.join(", ")),
        };
        let more = limits.len().saturating_sub(NAMED);
        let more = (more > 0).then(|| format!("  and {more} more kinds"));
        finding
            .at_opt(place.clone(), "asked for here")
            .help("In the way:")
            .help_lines(limits.iter().take(NAMED).map(|limit| format!("  {limit}")).chain(more))
            .help_lines(helps.into_iter().take(NAMED).map(str::to_owned).chain([numbers]))
    };
    refused.iter().take(told).map(finding).collect()
}

/// A shape that kernels do not take as it is: which of them do.
fn unusual_shape(servers: &[Server], units: &[Unit]) -> Option<String> {
    let is_unusual = |unit: &&Unit| {
        let matrix = unit.matrix();
        let is_even = matrix.cols.is_multiple_of(128) && matrix.rows.is_multiple_of(64);
        unit.activations == ActivationScheme::None && !is_even
    };
    let mut unusual = units.iter().filter(is_unusual);
    let (first, others) = (unusual.next()?, unusual.count());
    let matrix = first.matrix();
    let takers: Vec<String> = servers
        .iter()
        .map(|&server| {
            let takes = |kernel: &&Kernel| kernel.server == server && (kernel.takes)(&matrix).is_ok();
            let names: Vec<&str> = KERNELS.iter().filter(takes).map(|kernel| kernel.name).collect();
            match names.is_empty() {
                true => format!("none of {}'s", server.name()),
                false => format!("{}'s {}", server.name(), names.join(", ")),
            }
        })
        .collect();
    let takers = takers.join("; ");
    let fused = if first.parts.len() > 1 { " with what is fused with it" } else { "" };
    let others = match others {
        0 => String::new(),
        1 => ", and there is 1 more such shape".to_owned(),
        count => format!(", and there are {count} more such shapes"),
    };
    Some(format!(
        "`{}` has {} rows{fused} and {} columns, no multiples of 64 and 128; kernels that take it: {takers}{others}",
        first.name, matrix.rows, matrix.cols
    ))
}
