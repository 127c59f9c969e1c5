#!/usr/bin/env python3
"""Collects activation statistics of a model: for each linear layer the sum of squares of each input column over some text.

usage: collect.py MODEL TEXT OUT.safetensors [--samples N] [--length TOKENS] [--batch N]

The text is cut into consecutive samples of LENGTH tokens, which the model runs in float32. OUT holds `MODULE.in_sum2` (F32, one number a
column) and `MODULE.counts` (tokens seen), with the number of samples and tokens in its metadata: what monoquant's `calibration` reads. Stacked
experts get a row an expert, counting the tokens that were routed to it. Needs torch, transformers and safetensors.
"""
import argparse
import os

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer


class Sums:
    """Sums of squares and counts, by module."""

    def __init__(self):
        self.sums, self.counts = {}, {}

    def add(self, name, inputs, expert=None, experts=None):
        """Adds rows of inputs, those of one expert where the module is a stack of `experts`."""
        squares = inputs.detach().flatten(0, -2).double().square()
        if name not in self.sums:
            shape = (squares.shape[-1],) if experts is None else (experts, squares.shape[-1])
            self.sums[name] = torch.zeros(shape, dtype=torch.float64)
            self.counts[name] = torch.zeros(1 if experts is None else experts, dtype=torch.int64)
        at = () if expert is None else (expert,)
        self.sums[name][at] += squares.sum(0)
        self.counts[name][0 if expert is None else expert] += len(squares)

    def watch(self, model):
        """Hooks every linear layer but the head, and every stack of experts."""
        head = model.get_output_embeddings()
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Linear) and module is not head:
                module.register_forward_pre_hook(lambda _, inputs, name=name: self.add(name, inputs[0]))
            elif getattr(module, "gate_up_proj", None) is not None and getattr(module, "act_fn", None) is not None:
                if isinstance(module.gate_up_proj, torch.nn.Parameter) and module.gate_up_proj.dim() == 3:
                    module.register_forward_pre_hook(lambda stack, inputs, name=name: self.add_experts(stack, inputs, name))

    def add_experts(self, stack, inputs, name):
        """A stack [experts, 2·inner, hidden] is called with hidden states and the experts chosen for each."""
        hidden, chosen = inputs[0].flatten(0, -2), inputs[1].flatten(0, -2)
        experts = len(stack.gate_up_proj)
        for expert in range(experts):
            rows = hidden[(chosen == expert).any(-1)]
            gate, up = torch.nn.functional.linear(rows, stack.gate_up_proj[expert]).chunk(2, dim=-1)
            self.add(f"{name}.gate_up_proj", rows, expert, experts)
            self.add(f"{name}.down_proj", stack.act_fn(gate) * up, expert, experts)

    def save(self, path, metadata):
        tensors = {}
        for name in sorted(self.sums):
            tensors[f"{name}.in_sum2"] = self.sums[name].float()
            tensors[f"{name}.counts"] = self.counts[name]
        save_file(tensors, path, metadata=metadata)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("text")
    parser.add_argument("out")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8)
    options = parser.parse_args()

    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
    with open(options.text, encoding="utf-8") as file:
        tokens = torch.tensor(AutoTokenizer.from_pretrained(options.model)(file.read()).input_ids)
    samples = tokens[: len(tokens) // options.length * options.length].view(-1, options.length)[: options.samples]

    sums = Sums()
    sums.watch(model)
    with torch.no_grad():
        for batch in samples.split(options.batch):
            model.base_model(batch)
    metadata = {"samples": str(len(samples)), "tokens": str(samples.numel()), "source": os.path.basename(options.text)}
    sums.save(options.out, metadata)
    print(f"{len(sums.sums)} modules, {len(samples)} samples, {samples.numel()} tokens")


if __name__ == "__main__":
    main()
