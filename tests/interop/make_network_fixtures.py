"""What small models of many families compute: hidden states after every layer and logits, in float32, by the real transformers classes.

usage: make_network_fixtures.py OUT [NAME...]

Each goes to OUT/NAME.safetensors: `tokens`, `hidden.0` (before the first layer), `hidden.N` (after layer N), `logits`; for layers with experts `chosen.N`
and `shares.N`, [tokens, chosen]: the experts of each token in rising order, and how much each counts; the metadata hold config.json and
the names and shapes of the checkpoint's tensors. The weights are not in it: each is computed from its tensor's name and its index there
(`weights`; the Rust test does the same), so that the files stay small. Attention is the eager one, experts are run one by one.
"""
import argparse, json, os, shutil, sys, tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
import numpy as np
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
VOCAB, TOKENS = 96, 20
IDS = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2)


def dense(**kw):
    return {**dict(vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                   max_position_embeddings=64, tie_word_embeddings=False), **IDS, **kw}


def rope(kind, **kw):
    return dict(rope_parameters=dict(rope_type=kind, rope_theta=1e4, **kw))


MOE = dict(num_experts=6, num_experts_per_tok=2, moe_intermediate_size=16)
MLA = dict(kv_lora_rank=12, q_lora_rank=16, qk_rope_head_dim=4, qk_nope_head_dim=8, v_head_dim=6, num_key_value_heads=4)
ROUTED = dict(n_routed_experts=8, num_experts_per_tok=3, moe_intermediate_size=16, n_group=4, topk_group=2, first_k_dense_replace=1, routed_scaling_factor=1.5)
DELTA = dict(linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=8, linear_value_head_dim=6, head_dim=16)
SLIDING = dict(sliding_window=6)
MIXED = ["sliding_attention", "full_attention"]
BERT = dict(vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=64)

# name: (class, config class, arguments)
MODELS = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", dense()),
    "llama-tied-biased": ("LlamaForCausalLM", "LlamaConfig", dense(tie_word_embeddings=True, attention_bias=True, mlp_bias=True, head_dim=12)),
    "llama-linear": ("LlamaForCausalLM", "LlamaConfig", dense(**rope("linear", factor=4.0))),
    "llama-dynamic": ("LlamaForCausalLM", "LlamaConfig", dense(**rope("dynamic", factor=4.0))),
    "llama-llama3": ("LlamaForCausalLM", "LlamaConfig", dense(
        **rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16))),
    "llama-yarn": ("LlamaForCausalLM", "LlamaConfig", dense(head_dim=16, **rope("yarn", factor=4.0, original_max_position_embeddings=16))),
    "mistral": ("MistralForCausalLM", "MistralConfig", dense(**SLIDING, head_dim=12)),
    "ministral": ("MinistralForCausalLM", "MinistralConfig", dense(**SLIDING, head_dim=12, layer_types=MIXED)),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", dense()),
    "qwen2-sliding": ("Qwen2ForCausalLM", "Qwen2Config", dense(**SLIDING, use_sliding_window=True, max_window_layers=1)),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", dense(head_dim=16)),
    "gemma": ("GemmaForCausalLM", "GemmaConfig", dense(head_dim=12, tie_word_embeddings=True)),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", dense(head_dim=12, tie_word_embeddings=True, **SLIDING, query_pre_attn_scalar=20, attn_logit_softcapping=2.0,
                                                          final_logit_softcapping=3.0)),
    "gemma3-text": ("Gemma3ForCausalLM", "Gemma3TextConfig", dense(head_dim=12, tie_word_embeddings=True, **SLIDING, layer_types=MIXED)),
    "gemma3": ("Gemma3ForConditionalGeneration", "Gemma3Config", dict(
        text_config=dense(head_dim=12, tie_word_embeddings=True, **SLIDING, layer_types=MIXED),
        vision_config=dict(hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=16),
        mm_tokens_per_image=4, boi_token_index=90, eoi_token_index=91, image_token_index=92)),
    "phi3": ("Phi3ForCausalLM", "Phi3Config", dense(**SLIDING)),
    "phi3-partial": ("Phi3ForCausalLM", "Phi3Config", dense(head_dim=16, rope_parameters=dict(rope_type="default", rope_theta=1e4, partial_rotary_factor=0.75))),
    "phi3-longrope-short": ("Phi3ForCausalLM", "Phi3Config", dense(original_max_position_embeddings=32, rope_parameters=dict(
        rope_type="longrope", rope_theta=1e4, short_factor=[1.0, 1.1, 1.2, 1.3], long_factor=[1.5, 2.0, 3.0, 4.0], original_max_position_embeddings=32))),
    "phi3-longrope-long": ("Phi3ForCausalLM", "Phi3Config", dense(original_max_position_embeddings=16, rope_parameters=dict(
        rope_type="longrope", rope_theta=1e4, short_factor=[1.0, 1.1, 1.2, 1.3], long_factor=[1.5, 2.0, 3.0, 4.0], original_max_position_embeddings=16))),
    "granite": ("GraniteForCausalLM", "GraniteConfig", dense(embedding_multiplier=3.0, residual_multiplier=0.5, attention_multiplier=0.4, logits_scaling=2.0)),
    "granite-moe": ("GraniteMoeForCausalLM", "GraniteMoeConfig", dense(embedding_multiplier=3.0, residual_multiplier=0.5, attention_multiplier=0.4,
                                                                       logits_scaling=2.0, num_local_experts=6, num_experts_per_tok=2)),
    "olmo2": ("Olmo2ForCausalLM", "Olmo2Config", dense()),
    "olmo3": ("Olmo3ForCausalLM", "Olmo3Config", dense(**SLIDING, layer_types=MIXED)),
    "olmoe": ("OlmoeForCausalLM", "OlmoeConfig", dense(num_experts=6, num_experts_per_tok=2)),
    "smollm3": ("SmolLM3ForCausalLM", "SmolLM3Config", dense(num_hidden_layers=4)),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", dense(num_local_experts=6)),
    "qwen2-moe": ("Qwen2MoeForCausalLM", "Qwen2MoeConfig", dense(**MOE, shared_expert_intermediate_size=24)),
    "qwen3-moe": ("Qwen3MoeForCausalLM", "Qwen3MoeConfig", dense(**MOE, head_dim=16, mlp_only_layers=[0], norm_topk_prob=True)),
    "deepseek-v3": ("DeepseekV3ForCausalLM", "DeepseekV3Config", dense(**MLA, **ROUTED)),
    "deepseek-v3-yarn": ("DeepseekV3ForCausalLM", "DeepseekV3Config", dense(**{**MLA, "q_lora_rank": None}, **ROUTED, **rope(
        "yarn", factor=4.0, original_max_position_embeddings=16, mscale=1.0, mscale_all_dim=0.8))),
    "glm4-moe": ("Glm4MoeForCausalLM", "Glm4MoeConfig", dense(**ROUTED, head_dim=16, attention_bias=True, use_qk_norm=True)),
    "minimax-m2": ("MiniMaxM2ForCausalLM", "MiniMaxM2Config", dense(head_dim=16, intermediate_size=16, num_local_experts=6, num_experts_per_tok=2,
                                                                  rope_parameters=dict(rope_type="default", rope_theta=1e4, partial_rotary_factor=0.5))),
    "gpt-oss": ("GptOssForCausalLM", "GptOssConfig", dense(head_dim=16, intermediate_size=16, num_local_experts=6, num_experts_per_tok=2, **SLIDING, layer_types=MIXED,
                                                           **rope("yarn", factor=4.0, original_max_position_embeddings=16, truncate=False))),
    "qwen3-next": ("Qwen3NextForCausalLM", "Qwen3NextConfig", dense(**MOE, **DELTA, shared_expert_intermediate_size=24, layer_types=["linear_attention", "full_attention"])),
    "qwen3-5": ("Qwen3_5ForCausalLM", "Qwen3_5TextConfig", dense(**DELTA, layer_types=["linear_attention", "full_attention"])),
    "lfm2": ("Lfm2ForCausalLM", "Lfm2Config", dense(layer_types=["conv", "full_attention"], block_multiple_of=16, tie_word_embeddings=True)),
    "lfm2-moe": ("Lfm2MoeForCausalLM", "Lfm2MoeConfig", dense(**MOE, layer_types=["conv", "full_attention"], num_dense_layers=1, tie_word_embeddings=True)),
    "cohere": ("CohereForCausalLM", "CohereConfig", dense(tie_word_embeddings=True)),
    "cohere-qk-norm": ("CohereForCausalLM", "CohereConfig", dense(tie_word_embeddings=True, use_qk_norm=True)),
    "cohere2": ("Cohere2ForCausalLM", "Cohere2Config", dense(tie_word_embeddings=True, **SLIDING, layer_types=MIXED)),
    "exaone4": ("Exaone4ForCausalLM", "Exaone4Config", dense(**SLIDING, layer_types=MIXED)),
    "glm": ("GlmForCausalLM", "GlmConfig", dense(head_dim=16, attention_bias=True)),
    "glm4": ("Glm4ForCausalLM", "Glm4Config", dense(head_dim=16, attention_bias=True)),
    "seed-oss": ("SeedOssForCausalLM", "SeedOssConfig", dense(head_dim=16)),
    "ernie4-5": ("Ernie4_5ForCausalLM", "Ernie4_5Config", dense(head_dim=16)),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", dict(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2)),
    "opt": ("OPTForCausalLM", "OPTConfig", dict(vocab_size=VOCAB, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=64,
                                                word_embed_proj_dim=32, **IDS)),
    "gpt-neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", dict(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=64, **IDS)),
    "gpt-neox-serial": ("GPTNeoXForCausalLM", "GPTNeoXConfig", dict(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=64, use_parallel_residual=False,
        rope_parameters=dict(rope_type="default", rope_theta=1e4, partial_rotary_factor=1.0), **IDS)),
    "phi": ("PhiForCausalLM", "PhiConfig", dense()),
    "stablelm": ("StableLmForCausalLM", "StableLmConfig", dense(use_qkv_bias=True)),
    "starcoder2": ("Starcoder2ForCausalLM", "Starcoder2Config", dense(**SLIDING, tie_word_embeddings=True)),
    "arcee": ("ArceeForCausalLM", "ArceeConfig", dense()),
    "bert": ("BertForMaskedLM", "BertConfig", BERT),
    "bert-bare": ("BertModel", "BertConfig", BERT),
    "roberta": ("RobertaForMaskedLM", "RobertaConfig", dict(**BERT, **{**IDS, "pad_token_id": 1, "bos_token_id": 0})),
    "xlm-roberta": ("XLMRobertaForMaskedLM", "XLMRobertaConfig", dict(**BERT, **{**IDS, "pad_token_id": 1, "bos_token_id": 0})),
}


def weights(name, shape):
    """The same numbers wherever they are computed: splitmix64 of an FNV-1a hash of the name, plus the index."""
    with np.errstate(over="ignore"):
        seed = np.uint64(0xCBF29CE484222325)
        for byte in name.encode():
            seed = (seed ^ np.uint64(byte)) * np.uint64(0x100000001B3)
        z = seed + (np.arange(int(np.prod(shape)), dtype=np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    x = (z >> np.uint64(40)).astype(np.float32) / np.float32(2**23) - np.float32(1)  # -1 … 1
    is_norm = any(word in name.lower() for word in ("norm", "ln_")) and name.endswith("weight")
    x = x * np.float32(0.25) + np.float32(1) if is_norm else x * np.float32(0.25)
    return torch.from_numpy(x.reshape(shape))


def read(path):
    out = {}
    for file in sorted(os.listdir(path)):
        if file.endswith(".safetensors"):
            with safe_open(os.path.join(path, file), "pt") as f:
                out.update({k: f.get_tensor(k) for k in f.keys()})
    return out


def layers_of(model):
    """The list of decoder or encoder layers: the longest path that is not in a tower."""
    lists = [(n, m) for n, m in model.named_modules() if isinstance(m, torch.nn.ModuleList)]
    lists = [(n, m) for n, m in lists if n.rsplit(".", 1)[-1] in ("layers", "h", "layer") and "vision" not in n]
    return lists[0][1]


def opened(name):
    """The model with computed weights, its configuration as it is saved, and the shapes of its tensors."""
    cls, cfg, arguments = MODELS[name]
    kind = getattr(transformers, cls)
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        model = kind._from_config(getattr(transformers, cfg)(**arguments), dtype=torch.float32).eval()
        for tensor in model.state_dict().values():
            if not torch.isfinite(tensor).all():
                tensor.zero_()
        model.save_pretrained(folder)
        saved = read(folder)
        shapes = {k: list(v.shape) for k, v in sorted(saved.items()) if v.is_floating_point()}
        fresh = {k: weights(k, shapes[k]) if k in shapes else v for k, v in saved.items()}
        shutil.copy(os.path.join(folder, "config.json"), os.path.join(folder, "kept"))
        for file in os.listdir(folder):
            if "safetensors" in file:
                os.remove(os.path.join(folder, file))
        save_file(fresh, os.path.join(folder, "model.safetensors"), metadata={"format": "pt"})
        model, info = kind.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True)
        wrong = {k: info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys") if info[k]}
        if wrong:
            raise ValueError(f"reopened differently: {wrong}")
        if hasattr(model, "set_experts_implementation"):
            model.set_experts_implementation("eager")
        model.eval()
        with open(os.path.join(folder, "kept"), encoding="utf-8") as f:
            config = json.load(f)
    return model, config, shapes


def tokens_of(name):
    return torch.from_numpy(np.random.default_rng(len(name)).integers(3, 80, TOKENS))[None]


def build(name, out):
    model, config, shapes = opened(name)
    tokens = tokens_of(name)
    states, layers = {}, layers_of(model)
    layers[0].register_forward_pre_hook(lambda _, args, kwargs: states.__setitem__("hidden.0", args[0] if args else kwargs["hidden_states"]), with_kwargs=True)
    for i, layer in enumerate(layers):
        layer.register_forward_hook(lambda _, __, output, i=i: states.__setitem__(f"hidden.{i + 1}", output[0] if isinstance(output, tuple) else output))
    chosen = {}

    def choose(module, args, i):
        order = args[1].sort(-1)
        shares = args[2] if args[2].shape == args[1].shape else args[2].gather(-1, args[1])
        chosen.update({f"chosen.{i}": order.values.int(), f"shares.{i}": shares.gather(-1, order.indices).float()})

    for i, layer in enumerate(layers):
        for path, module in layer.named_modules():
            if path.rsplit(".", 1)[-1] == "experts":
                module.register_forward_pre_hook(lambda module, args, i=i: choose(module, args, i))
    with torch.no_grad():
        result = model(tokens)
    if getattr(result, "logits", None) is not None:
        states["logits"] = result.logits
    states = {k: v[0].contiguous().clone() for k, v in states.items()}
    for k, v in states.items():
        if not torch.isfinite(v).all():
            raise ValueError(f"{k} is not finite")
    metadata = {"config": json.dumps(config), "tensors": json.dumps(shapes), "transformers": transformers.__version__}
    chosen = {k: v.contiguous() for k, v in chosen.items()}
    save_file({"tokens": tokens[0].int(), **states, **chosen}, os.path.join(out, f"{name}.safetensors"), metadata=metadata)
    largest = {k: round(v.abs().max().item(), 2) for k, v in states.items()}
    return {"name": name, "layers": len(layers), "largest": largest}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("names", nargs="*")
    options = parser.parse_args()
    os.makedirs(options.out, exist_ok=True)
    torch.set_num_threads(1)
    failed = 0
    for name in options.names or MODELS:
        try:
            line = build(name, options.out)
        except Exception as error:
            failed += 1
            line = {"name": name, "error": f"{type(error).__name__}: {error}"[:500]}
        print(json.dumps(line), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
