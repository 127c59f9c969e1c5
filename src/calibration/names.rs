//! Names of a Hugging Face module in a file of statistics: those of llama.cpp in an importance matrix (Llama,
//! Mistral, Qwen 2 and 3, Gemma, Phi-3, Mixtral, Qwen MoE, Granite MoE and GPT-2), and those under which transformers
//! runs it.

/// Segments that may come before the layers of a text decoder. Others are towers and extra predictors, of which an importance
/// matrix says nothing.
const PREFIXES: &[&[&str]] = &[
    &[],
    &["model"],
    &["transformer"],
    &["language_model"],
    &["model", "language_model"],
    &["language_model", "model"],
];

/// The names of a module in an importance matrix, likeliest first, and its number if it is one of several experts.
/// Empty if none is known. Modules that are fused on either side share their input, and so their numbers.
#[must_use]
pub fn in_importance_matrix(module: &str) -> (Vec<String>, Option<usize>) {
    let none = (Vec::new(), None);
    let segments: Vec<&str> = module.split('.').collect();
    let Some(at) = segments.iter().position(|segment| matches!(*segment, "layers" | "h" | "lm_head")) else {
        return none;
    };
    let (prefix, rest) = segments.split_at(at);
    if !PREFIXES.contains(&prefix) {
        return none;
    }
    match rest {
        // The head is the embedding if the two are tied.
        ["lm_head"] => (vec!["output".to_owned(), "token_embd".to_owned()], None),
        ["layers" | "h", layer, rest @ ..] => {
            let (parts, expert) = parts(rest);
            (parts.iter().map(|part| format!("blk.{layer}.{part}")).collect(), expert)
        }
        _ => none,
    }
}

const GATE: &[&str] = &["ffn_gate_exps", "ffn_gate_up_exps", "ffn_up_exps"];
const UP: &[&str] = &["ffn_up_exps", "ffn_gate_up_exps", "ffn_gate_exps"];
const DOWN: &[&str] = &["ffn_down_exps"];

fn parts(rest: &[&str]) -> (&'static [&'static str], Option<usize>) {
    let names: &[&str] = match rest {
        ["self_attn", "q_proj"] => &["attn_q", "attn_qkv"],
        ["self_attn", "k_proj"] => &["attn_k", "attn_qkv"],
        ["self_attn", "v_proj"] => &["attn_v", "attn_qkv"],
        ["self_attn", "qkv_proj"] | ["attn", "c_attn"] => &["attn_qkv", "attn_q"],
        ["self_attn", "o_proj"] | ["attn", "c_proj"] => &["attn_output"],
        ["mlp", "gate_proj"] => &["ffn_gate"],
        ["mlp", "up_proj" | "c_fc"] => &["ffn_up"],
        ["mlp", "gate_up_proj"] => &["ffn_up", "ffn_gate"],
        ["mlp", "down_proj" | "c_proj"] => &["ffn_down"],
        ["mlp", "shared_expert" | "shared_experts", "gate_proj"] => &["ffn_gate_shexp"],
        ["mlp", "shared_expert" | "shared_experts", "up_proj"] => &["ffn_up_shexp"],
        ["mlp", "shared_expert" | "shared_experts", "down_proj"] => &["ffn_down_shexp"],
        ["mlp" | "block_sparse_moe", "gate"] => &["ffn_gate_inp"],
        ["mlp", "shared_expert_gate"] => &["ffn_gate_inp_shexp"],
        // A stack as a whole.
        ["mlp" | "block_sparse_moe", "experts", "gate_up_proj" | "gate_proj"]
        | ["block_sparse_moe", "input_linear"] => GATE,
        ["mlp" | "block_sparse_moe", "experts", "up_proj"] => UP,
        ["mlp" | "block_sparse_moe", "experts", "down_proj"] | ["block_sparse_moe", "output_linear"] => DOWN,
        ["mlp" | "block_sparse_moe", "experts", expert, part] => {
            let names = match *part {
                "gate_proj" | "w1" => GATE,
                "up_proj" | "w3" => UP,
                "down_proj" | "w2" => DOWN,
                _ => &[],
            };
            return (names, expert.parse().ok());
        }
        _ => &[],
    };
    (names, None)
}

/// How checkpoints begin their names, and how transformers begins those of the modules that it makes of them.
const RENAMED: &[(&str, &str)] = &[
    ("language_model.model.", "model.language_model."),
    ("backbone.", "model."),
    ("language_model.lm_head", "lm_head"),
];

/// Other names under which a library may run a module of a checkpoint, and its number if it is one of several
/// experts. Experts that are stored one by one are run as stacks, and some families have other names in memory than
/// in the file.
#[must_use]
pub fn when_run(module: &str) -> (Vec<String>, Option<usize>) {
    let (mut names, expert) = of_stacks(module);
    let renamed = |name: &str| {
        let (from, to) = RENAMED.iter().find(|(from, _)| name.starts_with(from))?;
        Some(name.replacen(from, to, 1))
    };
    let others: Vec<String> = names.iter().filter_map(|name| renamed(name)).collect();
    names.extend(others);
    if expert.is_none() {
        names.extend(renamed(module));
    }
    (names, expert)
}

/// The stacks that an expert may be a row of, and its number. For a stack with a name of its own, the usual name.
fn of_stacks(module: &str) -> (Vec<String>, Option<usize>) {
    for (own, usual) in [("input_linear", "experts.gate_up_proj"), ("output_linear", "experts.down_proj")] {
        if let Some(block) = module.strip_suffix(own).filter(|block| block.ends_with("moe.")) {
            return (vec![format!("{block}{usual}")], None);
        }
    }
    let none = (Vec::new(), None);
    let Some((block, rest)) = module.rsplit_once(".experts.") else { return none };
    let Some((expert, part)) = rest.split_once('.') else { return none };
    let words: &[&str] = match part {
        "gate_proj" | "w1" => &["gate_up_proj", "gate_proj"],
        "up_proj" | "w3" => &["gate_up_proj", "up_proj"],
        "down_proj" | "w2" => &["down_proj"],
        _ => return none,
    };
    let mut blocks = vec![block.to_owned()];
    blocks.extend(block.strip_suffix(".block_sparse_moe").map(|layer| format!("{layer}.mlp")));
    let names =
        blocks.iter().flat_map(|block| words.iter().map(move |word| format!("{block}.experts.{word}")));
    (names.collect(), expert.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_have_their_names_in_llama_cpp() {
        for (module, names, expert) in [
            ("model.layers.3.self_attn.q_proj", &["blk.3.attn_q", "blk.3.attn_qkv"][..], None),
            ("model.layers.3.self_attn.k_proj", &["blk.3.attn_k", "blk.3.attn_qkv"], None),
            ("model.layers.3.self_attn.v_proj", &["blk.3.attn_v", "blk.3.attn_qkv"], None),
            ("model.layers.3.self_attn.o_proj", &["blk.3.attn_output"], None),
            ("model.layers.3.self_attn.qkv_proj", &["blk.3.attn_qkv", "blk.3.attn_q"], None),
            ("model.language_model.layers.12.mlp.down_proj", &["blk.12.ffn_down"], None),
            ("language_model.model.layers.12.mlp.up_proj", &["blk.12.ffn_up"], None),
            ("model.layers.0.mlp.gate_up_proj", &["blk.0.ffn_up", "blk.0.ffn_gate"], None),
            ("model.layers.0.block_sparse_moe.experts.7.w2", &["blk.0.ffn_down_exps"], Some(7)),
            (
                "model.layers.0.block_sparse_moe.experts.7.w1",
                &["blk.0.ffn_gate_exps", "blk.0.ffn_gate_up_exps", "blk.0.ffn_up_exps"],
                Some(7),
            ),
            (
                "model.layers.0.mlp.experts.3.up_proj",
                &["blk.0.ffn_up_exps", "blk.0.ffn_gate_up_exps", "blk.0.ffn_gate_exps"],
                Some(3),
            ),
            (
                "model.layers.0.mlp.experts.gate_up_proj",
                &["blk.0.ffn_gate_exps", "blk.0.ffn_gate_up_exps", "blk.0.ffn_up_exps"],
                None,
            ),
            ("model.layers.0.block_sparse_moe.output_linear", &["blk.0.ffn_down_exps"], None),
            ("model.layers.0.mlp.shared_expert.gate_proj", &["blk.0.ffn_gate_shexp"], None),
            ("model.layers.0.mlp.shared_expert_gate", &["blk.0.ffn_gate_inp_shexp"], None),
            ("model.layers.0.block_sparse_moe.gate", &["blk.0.ffn_gate_inp"], None),
            ("transformer.h.1.mlp.c_fc", &["blk.1.ffn_up"], None),
            ("h.1.attn.c_proj", &["blk.1.attn_output"], None),
            ("lm_head", &["output", "token_embd"], None),
            ("language_model.lm_head", &["output", "token_embd"], None),
            ("model.norm", &[], None),
            ("model.layers", &[], None),
            ("model.layers.0", &[], None),
            // Towers and extra predictors have layers too.
            ("vision_tower.vision_model.encoder.layers.0.self_attn.q_proj", &[], None),
            ("model.visual.layers.0.mlp.down_proj", &[], None),
            ("mtp.layers.0.self_attn.q_proj", &[], None),
        ] {
            let names = names.iter().map(|name| (*name).to_owned()).collect();
            assert_eq!(in_importance_matrix(module), (names, expert), "{module}");
        }
    }

    #[test]
    fn modules_may_be_run_under_other_names() {
        for (module, names, expert) in [
            (
                "model.layers.2.block_sparse_moe.experts.5.w3",
                &[
                    "model.layers.2.block_sparse_moe.experts.gate_up_proj",
                    "model.layers.2.block_sparse_moe.experts.up_proj",
                    "model.layers.2.mlp.experts.gate_up_proj",
                    "model.layers.2.mlp.experts.up_proj",
                ][..],
                Some(5),
            ),
            ("model.layers.2.mlp.experts.0.down_proj", &["model.layers.2.mlp.experts.down_proj"], Some(0)),
            (
                "backbone.layers.1.mixer.experts.3.down_proj",
                &["backbone.layers.1.mixer.experts.down_proj", "model.layers.1.mixer.experts.down_proj"],
                Some(3),
            ),
            ("backbone.layers.1.mixer.in_proj", &["model.layers.1.mixer.in_proj"], None),
            (
                "language_model.model.layers.0.mlp.up_proj",
                &["model.language_model.layers.0.mlp.up_proj"],
                None,
            ),
            (
                "model.layers.0.block_sparse_moe.input_linear",
                &["model.layers.0.block_sparse_moe.experts.gate_up_proj"],
                None,
            ),
            ("model.layers.2.mlp.experts.gate_up_proj", &[], None),
            ("model.layers.2.mlp.down_proj", &[], None),
        ] {
            let names = names.iter().map(|name| (*name).to_owned()).collect();
            assert_eq!(when_run(module), (names, expert), "{module}");
        }
    }
}
