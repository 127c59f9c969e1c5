//! The MLP of a layer, or its experts.

use super::build::Layer;
use super::code;
use super::op::{Op, Slot};
use super::parts::{Activation, Layout, Linear, Part, Router, Scores};
use crate::finding::Finding;

/// Experts: where their matrices are, and how wide they are.
struct Experts {
    count: usize,
    inner: usize,
    prefix: &'static str,
}

impl Layer<'_> {
    /// The MLP, or experts.
    pub(super) fn feed(&mut self, inputs: Slot) -> Result<Slot, Finding> {
        let hidden = self.shape.hidden;
        match self.experts()? {
            Some(experts) => self.mixture(inputs, &experts),
            None => {
                let inner = self.dense_width()?;
                self.dense(inputs, &["mlp.", "feed_forward.", ""], inner, hidden)
            }
        }
    }

    /// The width of a dense MLP; LFM2 computes it.
    fn dense_width(&self) -> Result<usize, Finding> {
        let inner = self.shape.inner;
        let multiplier = self.keys.number_or_none("block_ffn_dim_multiplier")?;
        let multiple = self.keys.count_or("block_multiple_of", 1)?.max(1);
        self.keys.ignore(&["block_ff_dim"]);
        if !self.keys.flag("block_auto_adjust_ff_dim", false)? {
            return Ok(inner);
        }
        let inner = 2 * inner / 3;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "as transformers rounds"
        )]
        let inner = multiplier.map_or(inner, |by| (inner as f64 * by) as usize);
        Ok(inner.div_ceil(multiple) * multiple)
    }

    /// A dense MLP below one of some prefixes: gated or plain.
    fn dense(
        &mut self,
        inputs: Slot,
        prefixes: &[&str],
        inner: usize,
        hidden: usize,
    ) -> Result<Slot, Finding> {
        let with = |words: &[&str]| -> Vec<String> {
            prefixes
                .iter()
                .flat_map(|prefix| words.iter().map(move |word| format!("{prefix}{word}")))
                .collect()
        };
        let linear = |layer: &Self, words: &[&str], rows, columns| {
            let names = with(words);
            layer.linear(&names.iter().map(String::as_str).collect::<Vec<_>>(), rows, columns)
        };
        let has = |layer: &Self, words: &[&str]| {
            with(words).iter().any(|name| layer.names.has(layer.index, &format!("{name}.")))
        };
        const FUSED: &[&str] = &["gate_up_proj", "input_linear"];
        const GATE: &[&str] = &["gate_proj", "w1"];
        const UP: &[&str] = &["up_proj", "w3", "c_fc", "fc1", "dense_h_to_4h", "intermediate.dense"];
        const DOWN: &[&str] =
            &["down_proj", "w2", "c_proj", "fc2", "dense_4h_to_h", "output_linear", "output.dense"];
        let joined = if has(self, FUSED) {
            let both = self.product(inputs, linear(self, FUSED, 2 * inner, hidden)?);
            let (gate, up, to) = (self.slot(), self.slot(), self.slot());
            self.push(Op::Split { from: both, to: vec![(gate, inner), (up, inner)], period: 2 * inner });
            let join = self.join()?;
            self.push(Op::Gate { gate, up, to, join });
            to
        } else if has(self, GATE) {
            let gate = self.product(inputs, linear(self, GATE, inner, hidden)?);
            let up = self.product(inputs, linear(self, UP, inner, hidden)?);
            let to = self.slot();
            let join = self.join()?;
            self.push(Op::Gate { gate, up, to, join });
            to
        } else {
            let up = self.product(inputs, linear(self, UP, inner, hidden)?);
            self.push(Op::Activate { slot: up, with: self.shape.activation });
            up
        };
        Ok(self.product(joined, linear(self, DOWN, hidden, inner)?))
    }

    /// The experts of this layer, if it has some.
    fn experts(&self) -> Result<Option<Experts>, Finding> {
        let mut count = None;
        for key in ["num_experts", "num_local_experts", "n_routed_experts"] {
            count = count.or(self.keys.count_or_none(key)?.filter(|count| *count > 0));
        }
        self.keys.ignore(&[
            "decoder_sparse_step",
            "mlp_only_layers",
            "first_k_dense_replace",
            "num_dense_layers",
            "mlp_layer_types",
        ]);
        self.keys.ignore(&["moe_intermediate_size", "shared_expert_intermediate_size", "n_shared_experts"]);
        let prefixes = ["mlp.", "block_sparse_moe.", "feed_forward."];
        let found = prefixes.into_iter().find(|prefix| {
            let at = |rest: &str| self.names.has(self.index, &format!("{prefix}{rest}"));
            at("experts.") || at("input_linear.")
        });
        let Some(prefix) = found else { return Ok(None) };
        let count = count.ok_or_else(|| {
            Finding::error(code::BAD_KEY, "`config.json` does not say how many experts there are")
        })?;
        let inner = self.keys.count_or("moe_intermediate_size", self.shape.inner)?;
        Ok(Some(Experts { count, inner, prefix }))
    }

    fn router(&self, experts: &Experts) -> Result<Router, Finding> {
        let chosen = self.keys.count(&["num_experts_per_tok"])?;
        let listed = self.keys.flag("norm_topk_prob", false)?;
        let normalize = self.family.normalize.unwrap_or(listed);
        #[expect(clippy::cast_possible_truncation, reason = "torch computes with it in F32")]
        let scale = self.keys.number_or("routed_scaling_factor", 1.0)? as f32;
        let groups = self.keys.count_or_none("n_group")?.zip(self.keys.count_or_none("topk_group")?);
        let uses = self.keys.flag("use_expert_bias", true)?;
        let prefix = experts.prefix;
        let corrections = ["gate.e_score_correction_bias", "e_score_correction_bias", "expert_bias"];
        let correction = corrections
            .iter()
            .find_map(|rest| self.names.in_layer(self.index, &format!("{prefix}{rest}")))
            .filter(|_| uses);
        if let Some(correction) = &correction {
            self.names.vector(correction, experts.count)?;
        }
        let fits =
            groups.is_none_or(|(all, some)| all > 0 && some <= all && experts.count.is_multiple_of(all));
        if chosen > experts.count || !fits {
            return Err(Finding::error(
                code::BAD_KEY,
                format!("tokens cannot choose {chosen} of {} experts as `config.json` says", experts.count),
            ));
        }
        Ok(Router {
            experts: experts.count,
            chosen,
            scores: self.family.scores,
            normalize: (normalize && self.family.scores != Scores::SoftmaxOfBest).then_some(self.family.tiny),
            scale,
            correction,
            groups,
        })
    }

    /// Experts, and beside them the shared one.
    fn mixture(&mut self, inputs: Slot, experts: &Experts) -> Result<Slot, Finding> {
        let (hidden, inner, prefix) = (self.shape.hidden, experts.inner, experts.prefix);
        let names = [format!("{prefix}gate"), format!("{prefix}router"), format!("{prefix}router.layer")];
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let logits = self.product(inputs, self.names.linear(self.index, &names, (experts.count, hidden))?);
        let router = self.router(experts)?;
        let (routing, gathered) = (self.slot(), self.slot());
        self.push(Op::Route { logits, to: routing, router });
        self.push(Op::Gather { from: inputs, routing, to: gathered });
        let (gate, up, joined) = (self.slot(), self.slot(), self.slot());
        let down = if self.names.has(self.index, &format!("{prefix}experts.0.")) {
            let pairs = [["gate_proj", "up_proj", "down_proj"], ["w1", "w3", "w2"]];
            let first =
                |words: &[&str; 3]| self.names.has(self.index, &format!("{prefix}experts.0.{}.", words[0]));
            let [gates, ups, downs] = *pairs.iter().find(|words| first(words)).unwrap_or(&pairs[0]);
            for (word, to) in [(gates, gate), (ups, up)] {
                let matrices = self.apart(experts, word, inner, hidden)?;
                self.push(Op::Experts { from: gathered, routing, to, matrices });
            }
            self.apart(experts, downs, hidden, inner)?
        } else {
            let (names, is_dealt) = self.stack_names(prefix);
            let matrices = self.stacked(experts, &names[0], 2 * inner, hidden)?;
            let both = self.slot();
            self.push(Op::Experts { from: gathered, routing, to: both, matrices });
            if is_dealt {
                self.push(Op::Deal { from: both, even: gate, odd: up });
            } else {
                self.push(Op::Split { from: both, to: vec![(gate, inner), (up, inner)], period: 2 * inner });
            }
            self.stacked(experts, &names[1], hidden, inner)?
        };
        let join = self.join()?;
        self.push(Op::Gate { gate, up, to: joined, join });
        let (products, to) = (self.slot(), self.slot());
        self.push(Op::Experts { from: joined, routing, to: products, matrices: down });
        self.push(Op::Scatter { from: products, routing, to });
        if let Some(shared) = self.shared(inputs, prefix)? {
            self.push(Op::Add { from: shared, to, factor: 1.0 });
        }
        Ok(to)
    }

    /// The expert that all tokens see, if there is one.
    fn shared(&mut self, inputs: Slot, prefix: &str) -> Result<Option<Slot>, Finding> {
        let hidden = self.shape.hidden;
        let found = ["shared_expert.", "shared_experts."]
            .into_iter()
            .map(|word| format!("{prefix}{word}"))
            .find(|start| self.names.has(self.index, start));
        let Some(start) = found else { return Ok(None) };
        let tensor = self.names.in_layer(self.index, &format!("{start}up_proj.weight"));
        let rows = tensor.and_then(|name| self.names.shape(&name)).and_then(|shape| shape.first().copied());
        let fed = self.dense(inputs, &[&start], rows.unwrap_or(0), hidden)?;
        let gate = format!("{prefix}shared_expert_gate");
        if self.names.has(self.index, &gate) {
            let gate = self.product(inputs, self.names.linear(self.index, &[&gate], (1, hidden))?);
            self.push(Op::Activate { slot: gate, with: Activation::Sigmoid });
            self.push(Op::Multiply { slot: fed, with: gate });
        }
        Ok(Some(fed))
    }

    /// Matrices of experts that have tensors of their own.
    fn apart(
        &self,
        experts: &Experts,
        word: &str,
        rows: usize,
        columns: usize,
    ) -> Result<Vec<Linear>, Finding> {
        (0..experts.count)
            .map(|expert| {
                let module = format!("{}experts.{expert}.{word}", experts.prefix);
                self.names.linear(self.index, &[&module], (rows, columns))
            })
            .collect()
    }

    /// The names of the two stacks, and whether gate and up are dealt column by column.
    fn stack_names(&self, prefix: &str) -> ([String; 2], bool) {
        if self.names.has(self.index, &format!("{prefix}input_linear.")) {
            return (
                [format!("{prefix}input_linear.weight"), format!("{prefix}output_linear.weight")],
                false,
            );
        }
        let names = ["gate_up_proj", "down_proj"].map(|word| format!("{prefix}experts.{word}"));
        let is_dealt = self.names.has(self.index, &format!("{prefix}experts.gate_up_proj_bias"));
        (names, is_dealt)
    }

    /// Matrices of a stack; which of its axes are inputs is seen by its shape, and by the family if both are as long.
    fn stacked(
        &self,
        experts: &Experts,
        rest: &str,
        rows: usize,
        columns: usize,
    ) -> Result<Vec<Linear>, Finding> {
        let tensor =
            self.names.in_layer(self.index, rest).ok_or_else(|| self.names.missing(self.index, rest))?;
        let shape = self.names.shape(&tensor).unwrap_or_default();
        let is_turned_family = ["gpt_oss", "qwen3_vl_moe_text"].iter().any(|kind| self.family_is(kind));
        let layout = if shape == [experts.count, rows, columns] && !(rows == columns && is_turned_family) {
            Layout::OutIn
        } else if shape == [experts.count, columns, rows] {
            Layout::InOut
        } else {
            let expected = format!("{:?}", [experts.count, rows, columns]);
            return Err(super::names::wrong_shape(&tensor, &shape, &expected));
        };
        let bias = self.names.in_layer(self.index, &format!("{rest}_bias"));
        if let Some(bias) = &bias {
            self.names.vector(bias, experts.count * rows)?;
        }
        let one = |expert| Linear {
            tensor: tensor.clone(),
            part: Part::Expert(expert),
            layout,
            columns,
            rows,
            bias: bias.clone(),
        };
        Ok((0..experts.count).map(one).collect())
    }

    fn family_is(&self, kind: &str) -> bool {
        self.keys.family().is_ok_and(|family| family == kind)
    }
}
