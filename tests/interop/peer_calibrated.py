"""llm-compressor's rounding with calibration on a directory, to compare with.

usage: peer_calibrated.py SRC DST gptq|autoround TEXT [--samples N] [--group-size G] [--asymmetric]

INT4, lm_head left alone, the first N windows of 256 tokens of TEXT. One JSON line: seconds from the first byte of the model to the last of the output
(Python's start and imports are not in it), and the windows.
"""
import argparse, json, os, time

os.environ.update(HF_HUB_OFFLINE="1", TQDM_DISABLE="1")
import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.autoround import AutoRoundModifier
from llmcompressor.modifiers.quantization import GPTQModifier
from transformers import AutoModelForCausalLM, AutoTokenizer

LENGTH = 256


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("src")
    ap.add_argument("dst")
    ap.add_argument("method", choices=["gptq", "autoround"])
    ap.add_argument("text")
    ap.add_argument("--samples", type=int, default=128)
    ap.add_argument("--group-size", type=int, default=128)
    ap.add_argument("--asymmetric", action="store_true")
    a = ap.parse_args()
    start = time.perf_counter()
    # BF16 arithmetic is slow on most CPUs.
    model = AutoModelForCausalLM.from_pretrained(a.src, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(a.src)
    with open(a.text, encoding="utf-8") as f:
        ids = torch.tensor(tokenizer(f.read()).input_ids)
    count = min(a.samples, len(ids) // LENGTH)
    windows = ids[: count * LENGTH].view(count, LENGTH).tolist()
    data = Dataset.from_dict({"input_ids": windows, "attention_mask": [[1] * LENGTH] * count})
    weights = QuantizationArgs(num_bits=4, type="int", strategy="group", group_size=a.group_size, symmetric=not a.asymmetric)
    scheme = {"config_groups": {"group_0": QuantizationScheme(targets=["Linear"], weights=weights)}, "ignore": ["lm_head"]}
    recipe = GPTQModifier(**scheme) if a.method == "gptq" else AutoRoundModifier(iters=200, enable_torch_compile=False, **scheme)
    # AutoRound's own batches are of 8, and it takes no larger ones.
    batch = 16 if a.method == "gptq" else 8
    oneshot(model=model, tokenizer=tokenizer, dataset=data, recipe=recipe, batch_size=batch, max_seq_length=LENGTH,
            num_calibration_samples=count, shuffle_calibration_samples=False)
    # Weights and scales in BF16, as a BF16 run has them.
    model.to(torch.bfloat16).save_pretrained(a.dst, save_compressed=True)
    tokenizer.save_pretrained(a.dst)
    print(json.dumps({"seconds": round(time.perf_counter() - start, 2), "samples": count}))


if __name__ == "__main__":
    main()
