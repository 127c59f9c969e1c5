#!/usr/bin/env python3
"""Collects activation statistics of a model: for each linear layer the sum of squares of each input column over some text.

usage: collect.py MODEL TEXT OUT.safetensors [--samples N] [--length TOKENS] [--batch N]

The text is cut into consecutive samples of LENGTH tokens, which the model runs in float32. OUT holds `MODULE.in_sum2` (F32, one number a
column) and `MODULE.counts` (tokens seen), with the number of samples and tokens in its metadata: what monoquant's `calibration` reads. Stacked
experts get a row an expert, of the tokens that were routed to it. Needs torch, transformers and safetensors.
"""
import argparse
import os
import sys

import torch
import transformers
from safetensors.torch import save_file
from torch.overrides import TorchFunctionMode
from transformers.pytorch_utils import Conv1D

# Functions that multiply rows of inputs with the matrix of one expert.
PRODUCTS = {torch.nn.functional.linear, torch.matmul, torch.mm, torch.Tensor.matmul, torch.Tensor.mm, torch.Tensor.__matmul__}


class Sums(TorchFunctionMode):
    """Sums of squares and counts, by module: collected while it is entered."""

    def __init__(self, model):
        super().__init__()
        self.sums, self.counts, self.experts = {}, {}, {}
        head = model.get_output_embeddings()
        for name, module in model.named_modules():
            if isinstance(module, (torch.nn.Linear, Conv1D)) and module is not head:
                module.register_forward_pre_hook(lambda _, inputs, name=name: self.add(name, inputs[0]))
        for name, parameter in model.named_parameters():
            if parameter.dim() == 3:
                self.experts.update({matrix.data_ptr(): (name, expert, len(parameter)) for expert, matrix in enumerate(parameter)})

    def add(self, name, inputs, expert=None, experts=None):
        """Adds rows of inputs, those of one expert where the module is a stack of `experts`."""
        squares = inputs.detach().flatten(0, -2).double().square()
        if name not in self.sums:
            shape = (squares.shape[-1],) if experts is None else (experts, squares.shape[-1])
            self.sums[name] = torch.zeros(shape, dtype=torch.float64)
            self.counts[name] = torch.zeros(1 if experts is None else experts, dtype=torch.int64)
        self.sums[name][() if expert is None else expert] += squares.sum(0)
        self.counts[name][expert or 0] += len(squares)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        """Experts are no modules of their own: what their matrices are multiplied with is seen here."""
        if function in PRODUCTS and len(args) > 1 and args[1].dim() == 2 and args[1].data_ptr() in self.experts:
            name, expert, experts = self.experts[args[1].data_ptr()]
            self.add(name, args[0], expert, experts)
        return function(*args, **(kwargs or {}))

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

    # The class that the model was saved from, so that modules have the checkpoint's names; and experts one by one, since other
    # ways to run them hide what each of them sees.
    kind = getattr(transformers, transformers.AutoConfig.from_pretrained(options.model).architectures[0])
    model = kind.from_pretrained(options.model, dtype=torch.float32, experts_implementation="eager").eval()
    with open(options.text, encoding="utf-8") as file:
        tokens = torch.tensor(transformers.AutoTokenizer.from_pretrained(options.model)(file.read()).input_ids)
    if len(tokens) < options.length:
        parser.error(f"the text has {len(tokens)} tokens, less than one sample")
    samples = tokens[: len(tokens) // options.length * options.length].view(-1, options.length)[: options.samples]

    sums = Sums(model)
    with torch.no_grad(), sums:
        for batch in samples.split(options.batch):
            model.base_model(batch)
    metadata = {"samples": str(len(samples)), "tokens": str(samples.numel()), "source": os.path.basename(options.text)}
    sums.save(options.out, metadata)
    for stack in sorted({name for name, _, _ in sums.experts.values() if "experts" in name} - sums.sums.keys()):
        print(f"no statistics of {stack}: this model multiplies its experts in a way that is not seen", file=sys.stderr)
    print(f"{len(sums.sums)} modules, {len(samples)} samples, {samples.numel()} tokens")


if __name__ == "__main__":
    main()
