//! Rules that the small models of `tests/it/layers.rs` do not show.

use crate::model::TensorInfo;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};

use super::*;
use crate::format::Dtype;
use crate::format::source::folder::Folder;
use crate::model::config::Config;

/// A folder of BF16 tensors that exists nowhere.
pub(in crate::model) fn folder(config: Value, tensors: &[(&str, &[u64])]) -> ModelFolder {
    let tensors = tensors.iter().map(|(name, shape)| TensorInfo {
        name: (*name).into(),
        stored: Dtype::Bf16,
        dtype: Dtype::Bf16,
        shape: (*shape).into(),
        shard: crate::ids::ShardId::new(0),
        offset: 0,
        bytes: shape.iter().product::<u64>() * 2,
        encoded: None,
        part_of: None,
    });
    let source = Arc::new(Folder::at(Path::new(""), &[]));
    ModelFolder::from_parts(source, Vec::new(), tensors.collect(), Config { raw: config })
}

fn kinds(config: Value, tensors: &[(&str, &[u64])]) -> Vec<LayerType> {
    classify(&folder(config, tensors)).classes.iter().map(|class| class.kind).collect()
}

fn roles(config: Value, tensors: &[(&str, &[u64])]) -> Vec<Option<LayerType>> {
    classify(&folder(config, tensors)).classes.iter().map(|class| class.role).collect()
}

#[test]
fn gpt2_is_transposed_unless_its_shapes_say_otherwise() {
    let gpt2 = || json!({"model_type": "gpt2"});
    let wide: &[(&str, &[u64])] =
        &[("h.0.attn.c_attn.weight", &[64, 192]), ("h.0.mlp.c_fc.weight", &[64, 256])];
    let tall: &[(&str, &[u64])] =
        &[("h.0.attn.c_attn.weight", &[192, 64]), ("h.0.mlp.c_fc.weight", &[256, 64])];
    assert_eq!(kinds(gpt2(), wide), [LayerType::Conv1D; 2]);
    assert_eq!(kinds(gpt2(), tall), [LayerType::Linear; 2]);
    assert_eq!(kinds(json!({"model_type": "gpt_bigcode"}), wide), [LayerType::Linear; 2]);
}

#[test]
fn a_list_of_tables_is_told_from_a_chain_of_layers() {
    let tensors: &[(&str, &[u64])] = &[
        ("talker.codec_embedding.0.weight", &[416, 128]),
        ("talker.codec_embedding.1.weight", &[416, 128]),
        ("talker.lm_head.0.weight", &[416, 128]),
        ("time_embedding.0.weight", &[128, 64]),
        ("time_embedding.0.bias", &[128]),
    ];
    let (table, linear) = (LayerType::Embedding, LayerType::Linear);
    assert_eq!(kinds(json!({}), tensors)[..4], [table, table, linear, linear]);
}

#[test]
fn a_gate_is_a_router_by_name_and_shape() {
    let moe = || json!({"num_experts": 8});
    let gate: (&str, &[u64]) = ("l.0.mlp.gate.weight", &[8, 64]);
    assert_eq!(kinds(moe(), &[gate]), [LayerType::Router]);
    assert_eq!(kinds(moe(), &[("l.0.mlp.gate.weight", &[256, 64])]), [LayerType::Linear]);
    assert_eq!(kinds(moe(), &[("l.0.mlp.gate_proj.weight", &[8, 64])]), [LayerType::Linear]);
    assert_eq!(
        kinds(
            json!({"model_type": "ernie4_5_moe_vl", "moe_num_experts": [8, 8]}),
            &[("l.0.mlp.gate.weight", &[64, 8])]
        ),
        [LayerType::Router]
    );
    assert_eq!(kinds(moe(), &[("l.0.mlp.gate.weight", &[64, 8])]), [LayerType::Linear]);
    // Without a configuration the experts beside it tell.
    let beside: &[(&str, &[u64])] = &[gate, ("l.0.mlp.experts.7.w1.weight", &[32, 64])];
    assert_eq!(kinds(json!({}), beside)[0], LayerType::Router);
    let lonely = classify(&folder(json!({}), &[gate]));
    assert_eq!(lonely.classes.first().unwrap().kind, LayerType::Linear);
    assert_eq!(lonely.warnings[0].code, code::GATE);
}

#[test]
fn norms_are_told_by_what_lies_beside_them() {
    let tensors: &[(&str, &[u64])] = &[
        ("a.norm.weight", &[8]),
        ("b.LayerNorm.weight", &[8]),
        ("b.LayerNorm.bias", &[8]),
        ("c.batch_norm.weight", &[8]),
        ("c.batch_norm.bias", &[8]),
        ("c.batch_norm.running_mean", &[8]),
        ("ln_f.weight", &[8]),
        ("ln", &[8]),
    ];
    use LayerType::{BatchNorm1d, LayerNorm, Other, RMSNorm};
    assert_eq!(
        kinds(json!({}), tensors),
        [RMSNorm, LayerNorm, Other, BatchNorm1d, Other, Other, RMSNorm, Other]
    );
}

#[test]
fn tables_and_what_only_sounds_like_them() {
    let shape: &[u64] = &[32, 8];
    for name in [
        "embed_tokens",
        "word_embeddings",
        "wte",
        "shared",
        "shard_3",
        "relative_attention_bias",
        "pos_embed",
    ] {
        assert_eq!(
            kinds(json!({}), &[(&format!("m.{name}.weight"), shape)]),
            [LayerType::Embedding],
            "{name}"
        );
    }
    for name in ["embed_out", "embedding_projection", "patch_embedding.linear", "embed.dense_h", "shard_x"] {
        assert_eq!(kinds(json!({}), &[(&format!("m.{name}.weight"), shape)]), [LayerType::Linear], "{name}");
    }
}

#[test]
fn towers_count_only_beside_a_decoder() {
    let tower: (&str, &[u64]) = ("vision_model.encoder.layers.0.fc1.weight", &[32, 8]);
    let decoder: (&str, &[u64]) = ("language_model.layers.0.mlp.up_proj.weight", &[32, 16]);
    assert_eq!(roles(json!({}), &[tower]), [None]);
    assert_eq!(roles(json!({}), &[tower, decoder]), [None, None], "nothing says which is which");
    let config = json!({"text_config": {"hidden_size": 16, "num_hidden_layers": 1, "vocab_size": 100}});
    assert_eq!(roles(config, &[tower, decoder]), [Some(LayerType::Tower), None]);
}

#[test]
fn layers_beyond_the_last_are_extra() {
    let shape: &[u64] = &[32, 8];
    let config = || json!({"text_config": {"hidden_size": 8, "num_hidden_layers": 2, "vocab_size": 100}});
    let tensors: &[(&str, &[u64])] = &[
        ("model.layers.1.mlp.up_proj.weight", shape),
        ("model.layers.2.mlp.up_proj.weight", shape),
        ("audio.encoder.layers.7.fc1.weight", &[48, 12]),
        ("model.layers.x.up_proj.weight", shape),
    ];
    let (extra, tower, beside) = (LayerType::MTP, LayerType::Tower, LayerType::Projector);
    assert_eq!(roles(config(), tensors), [None, Some(extra), Some(tower), Some(beside)]);
    assert_eq!(roles(json!({"num_hidden_layers": 2}), tensors)[1], None, "of nothing that is described");
    let both = json!({"num_hidden_layers": 2, "is_encoder_decoder": true});
    assert_eq!(roles(both, &[("model.decoder.layers.3.fc1.weight", shape)]), [None]);
}

#[test]
fn heads_are_told_by_their_rows() {
    let shape: &[u64] = &[100, 8];
    let head = Some(LayerType::Head);
    assert_eq!(roles(json!({"vocab_size": 100}), &[("any.name.weight", shape)]), [head]);
    assert_eq!(roles(json!({}), &[("lm_head.weight", shape)]), [None]);
    let with_table: &[(&str, &[u64])] = &[("lm_head.weight", shape), ("model.embed_tokens.weight", shape)];
    assert_eq!(roles(json!({}), with_table), [head, None]);
}

#[test]
fn odd_names_are_no_trouble() {
    let names =
        ["", ".", "weight", ".weight", "a..weight", "experts.weight", "..", "layers", "a.layers", "mtp"];
    for name in names {
        for shape in [&[][..], &[0], &[2, 0], &[2, 2, 2], &[1; 9]] {
            assert_eq!(classify(&folder(json!({}), &[(name, shape)])).classes.len(), 1);
        }
    }
}
