//! From `config.json` and the tensors' names and shapes to a [`Description`].

use serde_json::{Value, json};

use super::code;
use super::description::Description;
use super::families::{self, EmbeddingScale, Family, Turned};
use super::keys::Keys;
use super::names::Names;
use super::op::{Op, Program, Slot};
use super::parts::{Activation, Embedding, Head, Join, Layout, Linear, Norm, NormKind};
use super::rules::rules;
use super::shape::{Rule, Shape, refused};
use super::weights::Weights;
use crate::finding::Finding;

/// The stream between layers.
pub(super) const STREAM: Slot = 0;

/// A layer while it is described.
pub(super) struct Layer<'a> {
    pub(super) family: &'a Family,
    pub(super) keys: &'a Keys<'a>,
    pub(super) names: &'a Names<'a>,
    pub(super) shape: Shape,
    pub(super) rule: Rule,
    pub(super) index: usize,
    ops: Vec<Op>,
    slots: usize,
}

impl Description {
    /// Describes a model.
    ///
    /// # Errors
    /// Its family is not known, a key or a tensor is not understood, or the two contradict each other.
    pub fn new(config: &Value, weights: &dyn Weights) -> Result<Self, Finding> {
        let keys = Keys::new(config)?;
        let kind = keys.family()?;
        let family = families::find(kind)
            .ok_or_else(|| refused(format!("models of the type `{kind}` cannot be run")))?;
        let shape = Shape::new(&keys, family)?;
        let names = Names::new(weights, shape.layers, shape.hidden)?;
        let vocabulary = keys.count(&["vocab_size"])?;
        let embedding = embedding(&keys, family, &names, shape, vocabulary)?;
        let (rules, ropes) = rules(&keys, family, &names, shape)?;
        let mut layers = Vec::with_capacity(shape.layers);
        for (index, rule) in rules.into_iter().enumerate() {
            let mut layer =
                Layer { family, keys: &keys, names: &names, shape, rule, index, ops: Vec::new(), slots: 1 };
            layer.describe()?;
            layers.push(layer.finish());
        }
        let norm = final_norm(&names, family, shape)?;
        let head = head(&keys, family, &names, shape, vocabulary, &embedding)?;
        keys.ignore(family.neutral);
        keys.unread("")?;
        let left_out = names.unused(shape.layers)?;
        Ok(Self {
            family: kind.to_owned(),
            hidden: shape.hidden,
            vocabulary,
            positions: shape.positions,
            embedding,
            layers,
            norm,
            head,
            ropes,
            is_encoder: family.is_encoder,
            left_out,
        })
    }
}

impl Shape {
    fn new(keys: &Keys<'_>, family: &Family) -> Result<Self, Finding> {
        let hidden = keys.count(&["hidden_size", "n_embd"])?;
        let heads = keys.count(&["num_attention_heads", "n_head"])?;
        let head = keys.count_or("head_dim", hidden / heads)?;
        let key_heads = keys.count_or("num_key_value_heads", heads)?;
        let inner = match keys.count_or_none("n_inner")? {
            Some(inner) => inner,
            None if family.is_turned => 4 * hidden,
            None => keys.count(&["intermediate_size", "ffn_dim"])?,
        };
        if key_heads == 0 || !heads.is_multiple_of(key_heads) {
            return Err(Finding::error(
                code::BAD_KEY,
                format!("{heads} heads cannot share {key_heads} heads of keys and values"),
            ));
        }
        let mut epsilon = None;
        for key in ["rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps", "norm_epsilon"] {
            epsilon = epsilon.or(keys.number_or_none(key)?);
        }
        keys.ignore(&["block_norm_eps"]);
        let mut activation = None;
        for key in ["hidden_activation", "hidden_act", "activation_function"] {
            activation = activation.or(keys.text(key)?.map(|name| (key, name)));
        }
        #[expect(clippy::cast_possible_truncation, reason = "torch computes with it in F32")]
        let epsilon = epsilon.unwrap_or(family.epsilon) as f32;
        Ok(Self {
            layers: keys.count(&["num_hidden_layers", "n_layer"])?,
            hidden,
            heads,
            key_heads,
            head,
            inner,
            positions: keys.count(&["max_position_embeddings", "n_positions"])?,
            epsilon,
            activation: activation.map_or(Ok(family.activation), |(key, name)| by_name(key, name))?,
        })
    }
}

/// An activation by transformers' name for it.
fn by_name(key: &str, name: &str) -> Result<Activation, Finding> {
    Ok(match name {
        "silu" | "swish" => Activation::Silu,
        "gelu" | "gelu_python" => Activation::Gelu,
        "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" | "gelu_python_tanh" => Activation::GeluTanh,
        "relu" => Activation::Relu,
        "relu2" => Activation::ReluSquared,
        "sigmoid" => Activation::Sigmoid,
        "tanh" => Activation::Tanh,
        _ => return Err(refused(format!("`{key}: {name}` in `config.json` is no activation that is known"))),
    })
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "torch computes with it in F32"
)]
fn embedding(
    keys: &Keys<'_>,
    family: &Family,
    names: &Names<'_>,
    shape: Shape,
    vocabulary: usize,
) -> Result<Embedding, Finding> {
    let tables =
        &["embed_tokens.weight", "wte.weight", "embed_in.weight", "embeddings.word_embeddings.weight"];
    let tokens = names.outside(tables).ok_or_else(|| names.missing_outside(tables[0]))?;
    let found = names.shape(&tokens).unwrap_or_default();
    if found.len() != 2 || found[1] != shape.hidden || found[0] < vocabulary {
        let expected = format!("[{vocabulary}, {}]", shape.hidden);
        return Err(super::names::wrong_shape(&tokens, &found, &expected));
    }
    let scale = match family.embedding {
        EmbeddingScale::Root => (shape.hidden as f32).sqrt(),
        EmbeddingScale::Plain => keys.number_or("embedding_multiplier", 1.0)? as f32,
    };
    let first = if family.first_position == usize::MAX {
        keys.count_or("pad_token_id", 1)? + 1
    } else {
        family.first_position
    };
    let tables = &["wpe.weight", "embed_positions.weight", "embeddings.position_embeddings.weight"];
    let positions = if family.turned == Turned::None { names.outside(tables) } else { None };
    if family.turned == Turned::None && positions.is_none() {
        return Err(names.missing_outside(tables[0]));
    }
    if let Some(table) = &positions {
        let found = names.shape(table).unwrap_or_default();
        let rows = if family.is_encoder { shape.positions } else { shape.positions + first };
        if found != [rows, shape.hidden] {
            return Err(super::names::wrong_shape(table, &found, &format!("[{rows}, {}]", shape.hidden)));
        }
    }
    keys.ignore(&["type_vocab_size"]);
    keys.only("position_embedding_type", &json!("absolute"))?;
    keys.only("embedding_size", &json!(shape.hidden))?;
    keys.only("word_embed_proj_dim", &json!(shape.hidden))?;
    let norm = family.is_encoder.then(|| names.outside(&["embeddings.LayerNorm.weight"])).flatten();
    Ok(Embedding {
        tokens,
        scale,
        positions: positions.map(|table| (table, first)),
        types: names.outside(&["embeddings.token_type_embeddings.weight"]),
        norm: norm.map(|weight| outer_norm(names, weight, family.norm, shape)).transpose()?,
    })
}

/// A norm beside the layers, whose bias lies beside its weight.
fn outer_norm(names: &Names<'_>, weight: String, kind: NormKind, shape: Shape) -> Result<Norm, Finding> {
    names.vector(&weight, shape.hidden)?;
    let bias = weight.strip_suffix("weight").map(|start| format!("{start}bias"));
    let bias = bias.and_then(|name| names.outside(&[&name]));
    let (epsilon, width) = (shape.epsilon, shape.hidden);
    Ok(Norm { kind, weight: Some(weight), bias, epsilon, width, columns: width })
}

fn final_norm(names: &Names<'_>, family: &Family, shape: Shape) -> Result<Option<Norm>, Finding> {
    if family.is_encoder {
        return Ok(None);
    }
    let found = names.outside(&[
        "norm.weight",
        "final_layernorm.weight",
        "final_layer_norm.weight",
        "ln_f.weight",
        "embedding_norm.weight",
    ]);
    let weight = found.ok_or_else(|| names.missing_outside("norm.weight"))?;
    outer_norm(names, weight, family.norm, shape).map(Some)
}

#[expect(clippy::cast_possible_truncation, reason = "torch computes with it in F32")]
fn head(
    keys: &Keys<'_>,
    family: &Family,
    names: &Names<'_>,
    shape: Shape,
    vocabulary: usize,
    embedding: &Embedding,
) -> Result<Option<Head>, Finding> {
    let mut scale = 1.0 / keys.number_or("logits_scaling", 1.0)?;
    if family.types.contains(&"cohere") || family.types.contains(&"cohere2") {
        scale = keys.number_or("logit_scale", 0.0625)?;
    }
    let cap = keys.number_or_none("final_logit_softcapping")?.map(|cap| cap as f32);
    let is_tied = keys.is_tied(family.is_tied)?;
    let rows =
        |table: &str| names.shape(table).and_then(|shape| shape.first().copied()).unwrap_or(vocabulary);
    let whole = |tensor: String, bias: Option<String>| {
        let rows = rows(&tensor);
        let part = super::parts::Part::Whole;
        Linear { tensor, part, layout: Layout::OutIn, columns: shape.hidden, rows, bias }
    };
    let transform = if family.is_encoder {
        let dense = names.outside(&["cls.predictions.transform.dense.weight", "lm_head.dense.weight"]);
        let Some(dense) = dense else { return Ok(None) };
        let norm =
            names.outside(&["cls.predictions.transform.LayerNorm.weight", "lm_head.layer_norm.weight"]);
        let norm = norm.ok_or_else(|| names.missing_outside("lm_head.layer_norm.weight"))?;
        let bias = dense.strip_suffix("weight").map(|start| format!("{start}bias"));
        let mut dense = whole(dense, bias.and_then(|name| names.outside(&[&name])));
        dense.rows = shape.hidden;
        let gelu = if dense.tensor.starts_with("lm_head") { Activation::Gelu } else { shape.activation };
        Some((dense, gelu, outer_norm(names, norm, NormKind::Layer, shape)?))
    } else {
        None
    };
    let own = names.outside(&[
        "lm_head.weight",
        "embed_out.weight",
        "cls.predictions.decoder.weight",
        "lm_head.decoder.weight",
        "head.weight",
    ]);
    let bias = names.outside(&["lm_head.bias", "cls.predictions.bias", "cls.predictions.decoder.bias"]);
    let own = own.filter(|_| !is_tied);
    let matrix = whole(own.unwrap_or_else(|| embedding.tokens.clone()), bias);
    Ok(Some(Head { transform, matrix, scale: scale as f32, cap }))
}

impl Layer<'_> {
    pub(super) fn slot(&mut self) -> Slot {
        self.slots += 1;
        self.slots - 1
    }

    pub(super) fn push(&mut self, op: Op) {
        self.ops.push(op);
    }

    /// A product into a slot of its own.
    pub(super) fn product(&mut self, from: Slot, matrix: Linear) -> Slot {
        let to = self.slot();
        self.push(Op::Linear { from, to, matrix });
        to
    }

    /// A matrix by the first of some modules that is there.
    pub(super) fn linear(&self, modules: &[&str], rows: usize, columns: usize) -> Result<Linear, Finding> {
        if !self.family.is_turned {
            return self.names.linear(self.index, modules, (rows, columns));
        }
        let found =
            modules.iter().find_map(|module| self.names.in_layer(self.index, &format!("{module}.weight")));
        let wanted = modules.first().copied().unwrap_or_default();
        self.names.matrix(found, wanted, (rows, columns), Layout::InOut)
    }

    /// The first of some norms, over `width` columns at a time of `columns`, if it is there.
    pub(super) fn norm(
        &self,
        modules: &[&str],
        kind: NormKind,
        columns: usize,
        width: usize,
    ) -> Result<Option<Norm>, Finding> {
        let find = |module: &str| self.names.in_layer(self.index, &format!("{module}.weight"));
        let found = modules.iter().find_map(|module| Some((*module, find(module)?)));
        let Some((module, weight)) = found else { return Ok(None) };
        // Of the whole width, of one head, or of each head its own.
        let length: usize = self.names.shape(&weight).unwrap_or_default().iter().product();
        let per_head = self.names.shape(&weight).is_some_and(|shape| shape.len() == 2);
        let (width, length) = match length {
            _ if length == columns && !per_head => (columns, columns),
            _ if length == columns => (width, columns),
            _ => (width, width),
        };
        self.names.vector(&weight, length)?;
        let bias = self.names.in_layer(self.index, &format!("{module}.bias"));
        if let Some(bias) = &bias {
            self.names.vector(bias, length)?;
        }
        Ok(Some(Norm {
            kind,
            weight: Some(weight),
            bias,
            epsilon: self.shape.epsilon,
            width,
            columns: length,
        }))
    }

    /// A norm of the stream, if it is there.
    fn stream_norm(&self, modules: &[&str]) -> Result<Option<Norm>, Finding> {
        self.norm(modules, self.family.norm, self.shape.hidden, self.shape.hidden)
    }

    pub(super) fn normed(&mut self, from: Slot, norm: Option<Norm>) -> Slot {
        let Some(norm) = norm else { return from };
        let to = self.slot();
        self.push(Op::Norm { from, to, norm });
        to
    }

    /// The steps of the layer: where its norms are is seen by which there are.
    fn describe(&mut self) -> Result<(), Finding> {
        if self.family.is_encoder {
            return self.describe_encoder();
        }
        let before =
            self.stream_norm(&["input_layernorm", "ln_1", "self_attn_layer_norm", "operator_norm"])?;
        let after_mixer = self.stream_norm(&["post_self_attn_layernorm"])?;
        let middle =
            self.stream_norm(&["post_attention_layernorm", "ln_2", "final_layer_norm", "ffn_norm"])?;
        let before_mlp = self.stream_norm(&["pre_feedforward_layernorm"])?;
        let after_mlp = self.stream_norm(&["post_feedforward_layernorm", "post_mlp_layernorm"])?;
        let parallel = self.keys.flag("use_parallel_residual", self.family.is_parallel)?;
        #[expect(clippy::cast_possible_truncation, reason = "torch computes with it in F32")]
        let factor = self.keys.number_or("residual_multiplier", 1.0)? as f32;
        self.keys.only("do_layer_norm_before", &json!(true))?;
        self.keys.only("_remove_final_layer_norm", &json!(false))?;
        self.keys.only("layer_norm_elementwise_affine", &json!(true))?;

        if parallel {
            let inputs = self.normed(STREAM, before);
            let other = if middle.is_some() { self.normed(STREAM, middle) } else { inputs };
            let mixed = self.mixer(inputs)?;
            let fed = self.feed(other)?;
            self.push(Op::Add { from: mixed, to: STREAM, factor });
            self.push(Op::Add { from: fed, to: STREAM, factor });
            return Ok(());
        }
        // With a norm before the MLP the one in the middle belongs to attention's output (Gemma 2), and so it does where there
        // is none before attention (OLMo 2).
        let (after_mixer, before_mlp) = match (before_mlp, &before) {
            (Some(own), _) => (middle, Some(own)),
            (None, None) if after_mlp.is_some() => (middle, None),
            (None, _) => (after_mixer, middle),
        };
        if before.is_none() && after_mixer.is_none() {
            return Err(self.names.missing(self.index, "input_layernorm.weight"));
        }
        let inputs = self.normed(STREAM, before);
        let mixed = self.mixer(inputs)?;
        let mixed = self.normed(mixed, after_mixer);
        self.push(Op::Add { from: mixed, to: STREAM, factor });
        let inputs = self.normed(STREAM, before_mlp);
        let fed = self.feed(inputs)?;
        let fed = self.normed(fed, after_mlp);
        self.push(Op::Add { from: fed, to: STREAM, factor });
        Ok(())
    }

    /// Norms after each sum.
    fn describe_encoder(&mut self) -> Result<(), Finding> {
        let mixed = self.mixer(STREAM)?;
        self.push(Op::Add { from: mixed, to: STREAM, factor: 1.0 });
        for (name, is_last) in [("attention.output.LayerNorm", false), ("output.LayerNorm", true)] {
            let norm = self.stream_norm(&[name])?.ok_or_else(|| self.names.missing(self.index, name))?;
            if is_last {
                let fed = self.feed(STREAM)?;
                self.push(Op::Add { from: fed, to: STREAM, factor: 1.0 });
            }
            self.push(Op::Norm { from: STREAM, to: STREAM, norm });
        }
        Ok(())
    }

    /// How gate and up are joined in this layer.
    pub(super) fn join(&self) -> Result<Join, Finding> {
        if self.family.types.contains(&"gpt_oss") {
            return Ok(Join::Clamped { alpha: 1.702, limit: 7.0 });
        }
        Ok(Join::Product(self.shape.activation))
    }

    fn finish(self) -> Program {
        let mut last = vec![0; self.slots];
        for (index, op) in self.ops.iter().enumerate() {
            for slot in op.reads() {
                last[slot] = index;
            }
        }
        let frees = (0..self.ops.len())
            .map(|index| (1..self.slots).filter(|slot| last[*slot] == index).collect())
            .collect();
        Program { ops: self.ops, frees, slots: self.slots }
    }
}
