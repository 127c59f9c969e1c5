//! Attention, and what stands in its place.

use serde_json::json;

use super::build::Layer;
use super::code;
use super::families::Mixer;
use super::op::{Op, Slot};
use super::parts::{Activation, Attention, NormKind};
use crate::finding::Finding;

const QUERY: &[&str] = &["self_attn.q_proj", "attention.self.query"];
const KEY: &[&str] = &["self_attn.k_proj", "attention.self.key"];
const VALUE: &[&str] = &["self_attn.v_proj", "attention.self.value"];
const FUSED: &[&str] = &["self_attn.qkv_proj", "attn.c_attn", "attention.query_key_value"];
const OUT: &[&str] = &[
    "self_attn.o_proj",
    "self_attn.out_proj",
    "self_attn.dense",
    "attention.output.dense",
    "attention.dense",
    "attn.c_proj",
];
const QUERY_NORM: &[&str] = &["self_attn.q_norm", "self_attn.q_layernorm"];
const KEY_NORM: &[&str] = &["self_attn.k_norm", "self_attn.k_layernorm"];

#[expect(clippy::cast_possible_truncation, reason = "torch computes with it in F32")]
const fn single(x: f64) -> f32 {
    x as f32
}

#[expect(clippy::cast_precision_loss, reason = "widths are far below 2⁵²")]
const fn float(count: usize) -> f64 {
    count as f64
}

impl Layer<'_> {
    /// Attention, or what stands in its place.
    pub(super) fn mixer(&mut self, inputs: Slot) -> Result<Slot, Finding> {
        for key in ["attention_bias", "mlp_bias", "use_bias", "use_qkv_bias", "enable_bias", "qkv_bias"] {
            // Biases are where their tensors are.
            self.keys.flag(key, false)?;
        }
        self.keys.flag("use_qk_norm", false)?;
        self.keys.flag("qk_layernorm", false)?;
        self.keys.only("clip_qkv", &json!(null))?;
        self.keys.only("is_decoder", &json!(false))?;
        self.keys.only("scale_attn_weights", &json!(true))?;
        self.keys.only("scale_attn_by_inverse_layer_idx", &json!(false))?;
        self.keys.only("use_bidirectional_attention", &json!(false))?;
        self.keys.only("attn_output_gate", &json!(true))?;
        if !self.rule.attends {
            return if self.names.has(self.index, "linear_attn.") {
                self.delta(inputs)
            } else {
                self.convolution(inputs)
            };
        }
        let shape = self.shape;
        let (queries, keys, values, gate) = match self.family.mixer {
            Mixer::Latent => return self.latent(inputs),
            Mixer::ByHead => {
                let width = shape.heads * shape.head;
                let all = self.product(inputs, self.linear(FUSED, 3 * width, shape.hidden)?);
                let parts = [self.slot(), self.slot(), self.slot()];
                let to = parts.map(|slot| (slot, shape.head)).to_vec();
                self.push(Op::Split { from: all, to, period: 3 * shape.head });
                (parts[0], parts[1], parts[2], None)
            }
            Mixer::Plain | Mixer::Gated => self.projections(inputs)?,
        };
        let queries = self.head_norm(QUERY_NORM, queries, shape.heads)?;
        let keys = self.head_norm(KEY_NORM, keys, shape.key_heads)?;
        self.turn(queries, shape.head);
        self.turn(keys, shape.head);
        let mut scale = 1.0 / float(shape.head).sqrt();
        if let Some(scalar) = self.keys.number_or_none("query_pre_attn_scalar")? {
            scale = 1.0 / scalar.sqrt();
        }
        if let Some(multiplier) = self.keys.number_or_none("attention_multiplier")? {
            scale = multiplier;
        }
        let cap = self.keys.number_or_none("attn_logit_softcapping")?.map(single);
        let sinks = self.names.in_layer(self.index, "self_attn.sinks");
        if let Some(sinks) = &sinks {
            self.names.vector(sinks, shape.heads)?;
        }
        let attention = Attention {
            heads: shape.heads,
            key_heads: shape.key_heads,
            size: shape.head,
            value_size: shape.head,
            scale: single(scale),
            cap,
            window: self.rule.window,
            is_causal: !self.family.is_encoder,
            sinks,
        };
        let to = self.attend(queries, keys, values, attention);
        if let Some(gate) = gate {
            self.push(Op::Activate { slot: gate, with: Activation::Sigmoid });
            self.push(Op::Multiply { slot: to, with: gate });
        }
        let out = self.linear(OUT, shape.hidden, shape.heads * shape.head)?;
        Ok(self.product(to, out))
    }

    fn attend(&mut self, queries: Slot, keys: Slot, values: Slot, attention: Attention) -> Slot {
        let to = self.slot();
        self.push(Op::Attend { queries, keys, values, to, attention });
        to
    }

    fn turn(&mut self, slot: Slot, size: usize) {
        if let Some(rope) = self.rule.rope {
            self.push(Op::Rope { slot, rope, size, is_interleaved: self.family.is_interleaved });
        }
    }

    fn head_norm(&mut self, modules: &[&str], slot: Slot, heads: usize) -> Result<Slot, Finding> {
        let norm = self.norm(modules, self.family.norm, heads * self.shape.head, self.shape.head)?;
        Ok(self.normed(slot, norm))
    }

    /// Queries, keys, values and a gate, from matrices of their own or from one that holds all.
    fn projections(&mut self, inputs: Slot) -> Result<(Slot, Slot, Slot, Option<Slot>), Finding> {
        let shape = self.shape;
        let (width, narrow) = (shape.heads * shape.head, shape.key_heads * shape.head);
        if FUSED.iter().any(|module| self.names.has(self.index, &format!("{module}."))) {
            let all = self.product(inputs, self.linear(FUSED, width + 2 * narrow, shape.hidden)?);
            let parts = [self.slot(), self.slot(), self.slot()];
            let to = vec![(parts[0], width), (parts[1], narrow), (parts[2], narrow)];
            self.push(Op::Split { from: all, to, period: width + 2 * narrow });
            return Ok((parts[0], parts[1], parts[2], None));
        }
        let is_gated = self.family.mixer == Mixer::Gated;
        let query = self.linear(QUERY, if is_gated { 2 * width } else { width }, shape.hidden)?;
        let mut queries = self.product(inputs, query);
        let keys = self.product(inputs, self.linear(KEY, narrow, shape.hidden)?);
        let values = self.product(inputs, self.linear(VALUE, narrow, shape.hidden)?);
        let mut gate = None;
        if is_gated {
            let (left, right) = (self.slot(), self.slot());
            let to = vec![(left, shape.head), (right, shape.head)];
            self.push(Op::Split { from: queries, to, period: 2 * shape.head });
            (queries, gate) = (left, Some(right));
        }
        Ok((queries, keys, values, gate))
    }

    /// DeepSeek's attention: queries, keys and values come out of narrow latents, and only a part of each head is turned.
    fn latent(&mut self, inputs: Slot) -> Result<Slot, Finding> {
        let shape = self.shape;
        let (plain, turned) =
            (self.keys.count(&["qk_nope_head_dim"])?, self.keys.count(&["qk_rope_head_dim"])?);
        let (value, rank) = (self.keys.count(&["v_head_dim"])?, self.keys.count(&["kv_lora_rank"])?);
        let size = plain + turned;
        let is_interleaved = self.keys.flag("rope_interleave", true)?;
        let queries = match self.keys.count_or_none("q_lora_rank")? {
            None => self.product(inputs, self.linear(QUERY, shape.heads * size, shape.hidden)?),
            Some(rank) => {
                let narrow = self.product(inputs, self.linear(&["self_attn.q_a_proj"], rank, shape.hidden)?);
                let normed = self.latent_norm("self_attn.q_a_layernorm", narrow, rank)?;
                self.product(normed, self.linear(&["self_attn.q_b_proj"], shape.heads * size, rank)?)
            }
        };
        let narrow = self
            .product(inputs, self.linear(&["self_attn.kv_a_proj_with_mqa"], rank + turned, shape.hidden)?);
        let (latent, shared) = (self.slot(), self.slot());
        self.push(Op::Split {
            from: narrow,
            to: vec![(latent, rank), (shared, turned)],
            period: rank + turned,
        });
        let latent = self.latent_norm("self_attn.kv_a_layernorm", latent, rank)?;
        let wide = self.linear(&["self_attn.kv_b_proj"], shape.heads * (plain + value), rank)?;
        let wide = self.product(latent, wide);
        let (keys, values) = (self.slot(), self.slot());
        self.push(Op::Split { from: wide, to: vec![(keys, plain), (values, value)], period: plain + value });
        let (first, second) = (self.slot(), self.slot());
        self.push(Op::Split { from: queries, to: vec![(first, plain), (second, turned)], period: size });
        if let Some(rope) = self.rule.rope {
            self.push(Op::Rope { slot: second, rope, size: turned, is_interleaved });
            self.push(Op::Rope { slot: shared, rope, size: turned, is_interleaved });
        }
        let join = |left, right, to, right_is_shared| Op::Join {
            left,
            right,
            to,
            heads: shape.heads,
            left_is_shared: false,
            right_is_shared,
        };
        let (queries, whole) = (self.slot(), self.slot());
        self.push(join(first, second, queries, false));
        self.push(join(keys, shared, whole, true));
        let mut scale = 1.0 / float(size).sqrt();
        if let Some(rope) = self.keys.inside("rope_parameters").or_else(|| self.keys.inside("rope_scaling")) {
            let all = rope.number_or("mscale_all_dim", 0.0)?;
            let factor = rope.number_or("factor", 1.0)?;
            if all != 0.0 && factor > 1.0 {
                let mscale = 0.1 * all * factor.ln() + 1.0;
                scale *= mscale * mscale;
            }
        }
        let attention = Attention {
            heads: shape.heads,
            key_heads: shape.heads,
            size,
            value_size: value,
            scale: single(scale),
            cap: None,
            window: None,
            is_causal: true,
            sinks: None,
        };
        let to = self.attend(queries, whole, values, attention);
        let out = self.linear(OUT, shape.hidden, shape.heads * value)?;
        Ok(self.product(to, out))
    }

    fn latent_norm(&mut self, module: &str, slot: Slot, width: usize) -> Result<Slot, Finding> {
        let norm = self.norm(&[module], self.family.norm, width, width)?;
        let mut norm = norm.ok_or_else(|| self.names.missing(self.index, &format!("{module}.weight")))?;
        // These norms are built without the model's own number.
        norm.epsilon = 1e-6;
        Ok(self.normed(slot, Some(norm)))
    }

    /// LFM2's short convolution between two gates.
    fn convolution(&mut self, inputs: Slot) -> Result<Slot, Finding> {
        let hidden = self.shape.hidden;
        let width = self.keys.count_or("conv_L_cache", 3)?;
        self.keys.flag("conv_bias", false)?;
        let all = self.product(inputs, self.linear(&["conv.in_proj"], 3 * hidden, hidden)?);
        let (before, after, rows) = (self.slot(), self.slot(), self.slot());
        let to = vec![(before, hidden), (after, hidden), (rows, hidden)];
        self.push(Op::Split { from: all, to, period: 3 * hidden });
        self.push(Op::Multiply { slot: rows, with: before });
        let convolved = self.convolve("conv.conv", rows, hidden, width)?;
        self.push(Op::Multiply { slot: convolved, with: after });
        Ok(self.product(convolved, self.linear(&["conv.out_proj"], hidden, hidden)?))
    }

    fn convolve(&mut self, module: &str, from: Slot, columns: usize, width: usize) -> Result<Slot, Finding> {
        let weight = self.names.in_layer(self.index, &format!("{module}.weight"));
        let weight = weight.ok_or_else(|| self.names.missing(self.index, &format!("{module}.weight")))?;
        self.names.vector(&weight, columns * width)?;
        let bias = self.names.in_layer(self.index, &format!("{module}.bias"));
        let to = self.slot();
        self.push(Op::Convolve { from, to, weight, bias, width });
        Ok(to)
    }

    /// Qwen3-Next's linear attention: the gated delta rule.
    fn delta(&mut self, inputs: Slot) -> Result<Slot, Finding> {
        let hidden = self.shape.hidden;
        let key_heads = self.keys.count(&["linear_num_key_heads"])?;
        let heads = self.keys.count(&["linear_num_value_heads"])?;
        let (size, value) =
            (self.keys.count(&["linear_key_head_dim"])?, self.keys.count(&["linear_value_head_dim"])?);
        let width = self.keys.count(&["linear_conv_kernel_dim"])?;
        if !heads.is_multiple_of(key_heads) {
            return Err(Finding::error(
                code::BAD_KEY,
                format!("{heads} heads of values cannot share {key_heads} of keys"),
            ));
        }
        self.keys.only("mamba_ssm_dtype", &json!("float32"))?;
        let shared = heads / key_heads;
        let (keys_width, values_width) = (key_heads * size, heads * value);
        let convolved_width = 2 * keys_width + values_width;
        let slots = |layer: &mut Self| (layer.slot(), layer.slot());
        let (mixed, gate, beta, decay);
        if self.names.has(self.index, "linear_attn.in_proj_qkvz.") {
            let all = self.linear(&["linear_attn.in_proj_qkvz"], convolved_width + values_width, hidden)?;
            let all = self.product(inputs, all);
            let both = self.product(inputs, self.linear(&["linear_attn.in_proj_ba"], 2 * heads, hidden)?);
            let ((queries, keys), (values, z)) = (slots(self), slots(self));
            let wide = shared * value;
            let to = vec![(queries, size), (keys, size), (values, wide), (z, wide)];
            self.push(Op::Split { from: all, to, period: 2 * size + 2 * wide });
            (beta, decay) = slots(self);
            self.push(Op::Split {
                from: both,
                to: vec![(beta, shared), (decay, shared)],
                period: 2 * shared,
            });
            let (pair, three) = slots(self);
            for (left, right, to) in [(queries, keys, pair), (pair, values, three)] {
                self.push(Op::Join {
                    left,
                    right,
                    to,
                    heads: 1,
                    left_is_shared: false,
                    right_is_shared: false,
                });
            }
            (mixed, gate) = (three, z);
        } else {
            mixed = self.product(inputs, self.linear(&["linear_attn.in_proj_qkv"], convolved_width, hidden)?);
            gate = self.product(inputs, self.linear(&["linear_attn.in_proj_z"], values_width, hidden)?);
            beta = self.product(inputs, self.linear(&["linear_attn.in_proj_b"], heads, hidden)?);
            decay = self.product(inputs, self.linear(&["linear_attn.in_proj_a"], heads, hidden)?);
        }
        let convolved = self.convolve("linear_attn.conv1d", mixed, convolved_width, width)?;
        self.push(Op::Activate { slot: convolved, with: self.shape.activation });
        let ((queries, keys), (values, to)) = (slots(self), slots(self));
        let parts = vec![(queries, keys_width), (keys, keys_width), (values, values_width)];
        self.push(Op::Split { from: convolved, to: parts, period: convolved_width });
        let length = super::parts::Norm {
            kind: NormKind::Length,
            weight: None,
            bias: None,
            epsilon: 1e-6,
            width: size,
            columns: size,
        };
        for slot in [queries, keys] {
            self.push(Op::Norm { from: slot, to: slot, norm: length.clone() });
        }
        let tensor = |rest: &str| {
            let name =
                self.names.in_layer(self.index, rest).ok_or_else(|| self.names.missing(self.index, rest))?;
            self.names.vector(&name, heads).map(|()| name)
        };
        let (rates, offset) = (tensor("linear_attn.A_log")?, tensor("linear_attn.dt_bias")?);
        self.push(Op::Delta {
            queries,
            keys,
            values,
            beta,
            decay,
            to,
            rates,
            offset,
            heads,
            key_heads,
            size,
            value_size: value,
        });
        let norm = self.norm(&["linear_attn.norm"], NormKind::Rms, values_width, value)?;
        let normed = self.normed(to, norm);
        self.push(Op::Activate { slot: gate, with: Activation::Silu });
        self.push(Op::Multiply { slot: normed, with: gate });
        Ok(self.product(normed, self.linear(&["linear_attn.out_proj"], hidden, values_width)?))
    }
}
