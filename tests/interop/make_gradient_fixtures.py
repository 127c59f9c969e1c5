"""Gradients of small models of some families, in float32, by torch: what the backward pass is held against.

usage: make_gradient_fixtures.py OUT [NAME...]

The models are those of `make_network_fixtures.py`, with the same tokens. The loss is -log p of a label at each position, summed: (17 i + 4) mod 80 at
position i. Each goes to OUT/NAME.safetensors: `gradient.N`, of the stream after layer N (0: before the first); `squares.MODULE`, of the outputs of each
Linear in a layer the sum of the gradients' squares over the tokens, output by output.
"""
import argparse, os, sys

import torch
from make_network_fixtures import layers_of, opened, tokens_of
from safetensors.torch import save_file

NAMES = ["llama", "llama-tied-biased", "mistral", "gemma2", "gemma3-text", "phi3", "qwen3", "granite", "cohere2", "gpt2", "gpt-neox", "lfm2", "qwen2-moe", "deepseek-v3", "gpt-oss"]


def build(name, out):
    model, _, _ = opened(name)
    tokens, states, outputs = tokens_of(name), {}, {}
    layers = layers_of(model)

    def keep(store, key, tensor):
        tensor.retain_grad()
        store[key] = tensor

    first = lambda x: x[0] if isinstance(x, tuple) else x
    layers[0].register_forward_pre_hook(lambda _, args, kwargs: keep(states, "gradient.0", args[0] if args else kwargs["hidden_states"]), with_kwargs=True)
    for i, layer in enumerate(layers):
        layer.register_forward_hook(lambda _, __, output, i=i: keep(states, f"gradient.{i + 1}", first(output)))
    names = {id(m): n for n, m in model.named_modules()}
    for layer in layers:
        for module in layer.modules():
            if isinstance(module, torch.nn.Linear):
                module.register_forward_hook(lambda m, _, output: keep(outputs, f"squares.{names[id(m)]}", output))
    logits = model(tokens).logits[0].float()
    labels = (torch.arange(tokens.shape[1]) * 17 + 4) % 80
    torch.nn.functional.cross_entropy(logits, labels, reduction="sum").backward()
    found = {k: v.grad[0].contiguous().clone() for k, v in states.items()}
    found |= {k: v.grad.reshape(-1, v.shape[-1]).square().sum(0) for k, v in outputs.items() if v.grad is not None}
    save_file(found, os.path.join(out, f"{name}.safetensors"))
    return len(found)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("names", nargs="*")
    options = parser.parse_args()
    os.makedirs(options.out, exist_ok=True)
    torch.set_num_threads(1)
    for name in options.names or NAMES:
        print(name, build(name, options.out), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
