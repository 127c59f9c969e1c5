//! From a module's name in a Hugging Face checkpoint to its names in an importance matrix of llama.cpp: Llama, Mistral, Qwen 2
//! and 3, Gemma, Phi-3, Mixtral, Qwen MoE and GPT-2.

/// The names of a module in an importance matrix, likeliest first, and its number where it is one of several experts. Empty where
/// none is known. What is fused on either side shares its input, and so its numbers.
#[must_use]
pub fn in_importance_matrix(module: &str) -> (Vec<String>, Option<usize>) {
    let none = (Vec::new(), None);
    if module == "lm_head" || module.ends_with(".lm_head") {
        return (vec!["output".to_owned(), "token_embd".to_owned()], None);
    }
    let segments: Vec<&str> = module.split('.').collect();
    let Some(at) = segments.iter().position(|segment| matches!(*segment, "layers" | "h")) else {
        return none;
    };
    let (Some(layer), rest) = (segments.get(at + 1), segments.get(at + 2..).unwrap_or_default()) else {
        return none;
    };
    let (parts, expert) = parts(rest);
    (parts.iter().map(|part| format!("blk.{layer}.{part}")).collect(), expert)
}

fn parts(rest: &[&str]) -> (&'static [&'static str], Option<usize>) {
    let plain: &[&str] = match rest {
        ["self_attn", "q_proj"] => &["attn_q", "attn_qkv"],
        ["self_attn", "k_proj"] => &["attn_k", "attn_qkv"],
        ["self_attn", "v_proj"] => &["attn_v", "attn_qkv"],
        ["self_attn", "qkv_proj"] | ["attn", "c_attn"] => &["attn_qkv", "attn_q"],
        ["self_attn", "o_proj"] | ["attn", "c_proj"] => &["attn_output"],
        ["mlp", "gate_proj"] => &["ffn_gate"],
        ["mlp", "up_proj"] | ["mlp", "c_fc"] => &["ffn_up"],
        ["mlp", "gate_up_proj"] => &["ffn_up", "ffn_gate"],
        ["mlp", "down_proj"] | ["mlp", "c_proj"] => &["ffn_down"],
        ["mlp", "shared_expert", "gate_proj"] => &["ffn_gate_shexp"],
        ["mlp", "shared_expert", "up_proj"] => &["ffn_up_shexp"],
        ["mlp", "shared_expert", "down_proj"] => &["ffn_down_shexp"],
        ["mlp" | "block_sparse_moe", "gate"] => &["ffn_gate_inp"],
        ["mlp", "shared_expert_gate"] => &["ffn_gate_inp_shexp"],
        _ => &[],
    };
    let ["mlp" | "block_sparse_moe", "experts", expert, part] = rest else { return (plain, None) };
    let names: &[&str] = match *part {
        "gate_proj" | "w1" => &["ffn_gate_exps", "ffn_gate_up_exps", "ffn_up_exps"],
        "up_proj" | "w3" => &["ffn_up_exps", "ffn_gate_up_exps", "ffn_gate_exps"],
        "down_proj" | "w2" => &["ffn_down_exps"],
        _ => &[],
    };
    (names, expert.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_have_their_names_in_llama_cpp() {
        let first = |module: &str| {
            let (names, expert) = in_importance_matrix(module);
            (names.first().cloned().unwrap_or_default(), expert)
        };
        for (module, name, expert) in [
            ("model.layers.3.self_attn.q_proj", "blk.3.attn_q", None),
            ("model.layers.3.self_attn.qkv_proj", "blk.3.attn_qkv", None),
            ("model.language_model.layers.12.mlp.down_proj", "blk.12.ffn_down", None),
            ("model.layers.0.mlp.gate_up_proj", "blk.0.ffn_up", None),
            ("model.layers.0.block_sparse_moe.experts.7.w2", "blk.0.ffn_down_exps", Some(7)),
            ("model.layers.0.mlp.experts.3.up_proj", "blk.0.ffn_up_exps", Some(3)),
            ("model.layers.0.mlp.shared_expert.gate_proj", "blk.0.ffn_gate_shexp", None),
            ("model.layers.0.block_sparse_moe.gate", "blk.0.ffn_gate_inp", None),
            ("transformer.h.1.mlp.c_fc", "blk.1.ffn_up", None),
            ("lm_head", "output", None),
            ("model.norm", "", None),
            ("model.layers", "", None),
        ] {
            assert_eq!(first(module), (name.to_owned(), expert), "{module}");
        }
    }
}
