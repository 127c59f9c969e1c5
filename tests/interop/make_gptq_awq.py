"""Makes GPTQ and AWQ checkpoints of a directory, by AutoRound's exports (rounded to nearest, int4, groups of 128).

usage: make_gptq_awq.py SRC OUT    writes a directory of each kind below OUT/gptq, OUT/gptq-asymmetric and OUT/awq
"""
import argparse, os

os.environ.update(HF_HUB_OFFLINE="1", TQDM_DISABLE="1")
import torch
from auto_round import AutoRound
from transformers import AutoModelForCausalLM, AutoTokenizer

# Name: AutoRound's format, and whether codes are symmetric.
KINDS = {"gptq": ("auto_gptq", True), "gptq-asymmetric": ("auto_gptq", False), "awq": ("auto_awq", False)}


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("src")
    ap.add_argument("out")
    a = ap.parse_args()
    for name, (form, symmetric) in KINDS.items():
        model = AutoModelForCausalLM.from_pretrained(a.src, dtype=torch.float16)
        tokenizer = AutoTokenizer.from_pretrained(a.src)
        rounder = AutoRound(model, tokenizer, bits=4, group_size=128, sym=symmetric, iters=0, disable_opt_rtn=True)
        rounder.quantize_and_save(os.path.join(a.out, name), format=form)


if __name__ == "__main__":
    main()
