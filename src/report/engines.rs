//! Engine support of an output, as plans and reports show it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ids::StageId;
use crate::plan::{Parallel, Plan};
use crate::text::units::counted;

/// How an engine that computes with codes serves an output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EngineRecord {
    /// `vLLM` or `SGLang`.
    pub engine: String,
    /// Its kernels that are for the schemes of the output.
    pub kernels: Vec<KernelRecord>,
    /// Between how many GPUs it can cut the output.
    pub tensor_parallel: ParallelRecord,
}

/// How far a kernel takes the matrices of an output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct KernelRecord {
    /// Its name.
    pub kernel: String,
    /// The machines that it runs on.
    pub machines: String,
    /// The shapes that it takes.
    pub needs: String,
    /// How many matrices it takes, fused as the engine fuses them.
    pub takes: usize,
    /// How many there are.
    pub of: usize,
    /// The first matrix whose shape it does not take, and why.
    pub refused: Option<String>,
}

/// Between how many GPUs an output can be cut by tensor parallelism.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ParallelRecord {
    /// The greatest power of two, up to 64. None if it cannot be loaded on one GPU either.
    pub up_to: Option<u64>,
    /// All numbers up to 64.
    pub sizes: Vec<u64>,
    /// The least power of two that does not work. None if all do.
    pub limit: Option<LimitRecord>,
}

/// The obstacle to a number of GPUs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LimitRecord {
    /// How many GPUs.
    pub size: u64,
    /// The module, the first of those alike. None if the obstacle is a number in the config.
    pub tensor: Option<String>,
    /// How many more are like it.
    pub more: usize,
    /// Why.
    pub why: String,
}

/// How engines serve the output of an `export` stage.
#[must_use]
pub(crate) fn of(plan: &Plan, stage: StageId) -> Vec<EngineRecord> {
    let served = plan.served.iter().filter(|served| served.stage == stage);
    served
        .map(|served| EngineRecord {
            engine: served.server.name().to_owned(),
            kernels: served
                .kernels
                .iter()
                .map(|kernel| KernelRecord {
                    kernel: kernel.name.to_owned(),
                    machines: kernel.machines.to_owned(),
                    needs: kernel.needs.to_owned(),
                    takes: kernel.takes,
                    of: kernel.of,
                    refused: kernel.refused.as_ref().map(|(name, why)| format!("{name}: {why}")),
                })
                .collect(),
            tensor_parallel: parallel(&served.parallel),
        })
        .collect()
}

fn parallel(parallel: &Parallel) -> ParallelRecord {
    ParallelRecord {
        up_to: parallel.up_to,
        sizes: parallel.sizes.clone(),
        limit: parallel.limit.as_ref().map(|limit| LimitRecord {
            size: limit.size,
            tensor: limit.tensor.clone(),
            more: limit.more,
            why: limit.why.clone(),
        }),
    }
}

/// The same in rows of the plan's last table: which kernels take every matrix, and between how many GPUs it can be cut.
pub(crate) fn rows(plan: &Plan, stage: StageId) -> Vec<Vec<String>> {
    let mut rows = Vec::new();
    let served: Vec<_> = plan.served.iter().filter(|served| served.stage == stage).collect();
    for served in &served {
        let all = served.kernels.iter().filter(|kernel| kernel.takes == kernel.of);
        let names: Vec<&str> = all.map(|kernel| kernel.name).collect();
        let text = if names.is_empty() { "none takes every matrix".to_owned() } else { names.join(", ") };
        rows.push(vec!["kernels".to_owned(), String::new(), served.server.name().to_owned(), text]);
    }
    let alike = served.windows(2).all(|pair| pair[0].parallel == pair[1].parallel);
    for served in served.iter().take(if alike { 1 } else { served.len() }) {
        let parallel = &served.parallel;
        let up_to = match parallel.up_to {
            Some(1) => "1 GPU".to_owned(),
            Some(size) => format!("up to {}", counted(size as usize, "GPU")),
            None => "no GPU".to_owned(),
        };
        let engine = if alike { String::new() } else { served.server.name().to_owned() };
        let why = parallel.limit.as_ref().map(|limit| format!("{}: {limit}", limit.size)).unwrap_or_default();
        rows.push(vec!["tensor parallel".to_owned(), up_to, engine, why]);
    }
    rows
}
