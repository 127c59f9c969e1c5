"""A small Llama and what llm-compressor makes of it, with the SQNR that compressed-tensors' own decoder gives.

usage: make_compare_fixture.py DST   (tests/golden/llm-compressor; needs torch, transformers, llm-compressor)

DST/source is the model in BF16, DST/W4A16 the output of `model_free_ptq`, with llm-compressor's names and files, DST/sqnr.json the
SQNR in dB of each matrix and of all. `tests/it/compare.rs` asserts that `monoquant compare` measures the same.
"""
import json
import math
import os
import shutil
import sys

os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from compressed_tensors.compressors.pack_quantized import helpers
from llmcompressor import model_free_ptq
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

torch.set_num_threads(1)
to = sys.argv[1]
source, made = os.path.join(to, "source"), os.path.join(to, "W4A16")
for folder in (source, made):
    shutil.rmtree(folder, ignore_errors=True)
torch.manual_seed(20240611)
config = LlamaConfig(vocab_size=32, hidden_size=128, intermediate_size=256, num_hidden_layers=1, num_attention_heads=2,
                     num_key_value_heads=1, max_position_embeddings=64, tie_word_embeddings=False, bos_token_id=1, eos_token_id=2)
model = LlamaForCausalLM(config).to(torch.bfloat16)
with torch.no_grad():
    for name, weight in model.named_parameters():
        if name.endswith("down_proj.weight"):
            weight[:, 7] *= 12  # a column of outliers, so that layers differ
model.save_pretrained(source)
model_free_ptq(model_stub=source, save_directory=made, scheme="W4A16", ignore=["lm_head", "re:.*embed.*"],
               max_workers=1, device="cpu")

original = load_file(os.path.join(source, "model.safetensors"))
stored = load_file(os.path.join(made, "model.safetensors"))
found, signal_of_all, noise_of_all = {}, 0.0, 0.0
for name, packed in stored.items():
    if not name.endswith(".weight_packed"):
        continue
    module = name.removesuffix(".weight_packed")
    shape = torch.Size(stored[module + ".weight_shape"].tolist())
    codes = helpers.unpack_from_int32(packed, 4, shape).to(torch.float64)
    scale = stored[module + ".weight_scale"].to(torch.float64)
    weights = original[module + ".weight"].to(torch.float64)
    # In the type of the weights, as engines see them.
    decoded = (codes * scale.repeat_interleave(weights.shape[1] // scale.shape[1], dim=1)).to(torch.bfloat16).to(torch.float64)
    signal, noise = float((weights**2).sum()), float(((weights - decoded) ** 2).sum())
    found[module + ".weight"] = 10 * math.log10(signal / noise)
    signal_of_all, noise_of_all = signal_of_all + signal, noise_of_all + noise
result = {"model": 10 * math.log10(signal_of_all / noise_of_all), "matrices": dict(sorted(found.items()))}
with open(os.path.join(to, "sqnr.json"), "w") as file:
    json.dump(result, file, indent=2)
    file.write("\n")
print(json.dumps(result, indent=2))
