"""The trained tiny-llama as architectures of the same size, so that perplexities mean something in each.

usage: make_variants.py TINY_LLAMA OUT

  llama       as it is
  llama-tied  without its head: the embedding serves
  qwen2       with biases at q, k and v, small and random
  qwen3       with norms at q and k, their weights near one
  llama-764   with four neurons fewer in each MLP, so that rows come in no whole words of zero points

All but the first are worse language models than tiny-llama, and all are far from uniform: a layer that is loaded wrongly shows.
"""
import glob, json, os, shutil, sys

import torch
from safetensors.torch import load_file, save_file


def variant(name, tensors, config):
    random = torch.Generator().manual_seed(0)
    layers, head = config["num_hidden_layers"], config["head_dim"]
    tensors = dict(tensors)
    if name == "llama-tied":
        del tensors["lm_head.weight"]
        config["tie_word_embeddings"] = True
    if name == "llama-764":
        config["intermediate_size"] = 764
        for layer in range(layers):
            mlp = f"model.layers.{layer}.mlp"
            for part in ("gate", "up"):
                tensors[f"{mlp}.{part}_proj.weight"] = tensors[f"{mlp}.{part}_proj.weight"][:764].contiguous()
            tensors[f"{mlp}.down_proj.weight"] = tensors[f"{mlp}.down_proj.weight"][:, :764].contiguous()
    if name == "qwen2":
        config.update(architectures=["Qwen2ForCausalLM"], model_type="qwen2")
        for layer in range(layers):
            for part in "qkv":
                module = f"model.layers.{layer}.self_attn.{part}_proj"
                rows = tensors[module + ".weight"].shape[0]
                tensors[module + ".bias"] = (torch.randn(rows, generator=random) * 0.05).bfloat16()
    if name == "qwen3":
        config.update(architectures=["Qwen3ForCausalLM"], model_type="qwen3", attention_bias=False)
        for layer in range(layers):
            for part in "qk":
                weight = 1 + torch.randn(head, generator=random) * 0.05
                tensors[f"model.layers.{layer}.self_attn.{part}_norm.weight"] = weight.bfloat16()
    return tensors, config


def main():
    source, out = sys.argv[1:3]
    tensors = {}
    for file in sorted(glob.glob(os.path.join(source, "*.safetensors"))):
        tensors.update(load_file(file))
    for name in ("llama", "llama-tied", "llama-764", "qwen2", "qwen3"):
        path = os.path.join(out, name)
        os.makedirs(path, exist_ok=True)
        with open(os.path.join(source, "config.json")) as f:
            config = json.load(f)
        config.setdefault("head_dim", config["hidden_size"] // config["num_attention_heads"])
        made, config = variant(name, tensors, config)
        save_file(made, os.path.join(path, "model.safetensors"), metadata={"format": "pt"})
        with open(os.path.join(path, "config.json"), "w") as f:
            json.dump(config, f, indent=2)
        for file in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
            shutil.copy(os.path.join(source, file), path)


if __name__ == "__main__":
    main()
