"""Perplexity of model directories on a text: windows of 256 tokens that do not overlap, float32 compute.

usage: perplexity.py TEXT MODEL_DIR... [--windows N] [--reference DIR]

Within a window every token but the first is predicted. One JSON line a model: ppl, tokens (predicted), the bytes of its safetensors files, and with
--reference the ratio of the perplexities and the mean KL(reference || model) in nats a token, over the same positions.
"""
import argparse, glob, json, math, os

os.environ.update(HF_HUB_OFFLINE="1", TQDM_DISABLE="1")
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

logging.set_verbosity_error()
logging.disable_progress_bar()
LENGTH, BATCH = 256, 8


def load(path):
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def log_probabilities(model, windows):
    with torch.no_grad():
        for x in windows.split(BATCH):
            yield model(x).logits[:, :-1].float().log_softmax(-1)


def measure(model, windows, reference=None):
    """`reference`: the log probabilities of another model over the same windows."""
    nll = base = kl = 0.0
    tokens = windows[:, 1:].numel()
    for i, (x, logp) in enumerate(zip(windows.split(BATCH), log_probabilities(model, windows))):
        wanted = x[:, 1:, None]
        nll -= logp.gather(-1, wanted).double().sum().item()
        if reference is not None:
            base -= reference[i].gather(-1, wanted).double().sum().item()
            kl += (reference[i].exp() * (reference[i] - logp)).sum(-1).double().sum().item()
    out = {"ppl": round(math.exp(nll / tokens), 4), "tokens": tokens}
    if reference is not None:
        out["ratio"] = round(math.exp((nll - base) / tokens), 4)
        out["kl"] = round(kl / tokens, 6)
    return out


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("text")
    ap.add_argument("models", nargs="+")
    ap.add_argument("--windows", type=int)
    ap.add_argument("--reference")
    a = ap.parse_intermixed_args()
    with open(a.text, encoding="utf-8") as f:
        ids = torch.tensor(AutoTokenizer.from_pretrained(a.reference or a.models[0])(f.read()).input_ids)
    count = min(a.windows or len(ids), len(ids) // LENGTH)
    windows = ids[: count * LENGTH].view(count, LENGTH)
    reference = list(log_probabilities(load(a.reference), windows)) if a.reference else None
    for path in a.models:
        size = sum(os.path.getsize(f) for f in glob.glob(os.path.join(path, "*.safetensors")))
        print(json.dumps({"model": path, "bytes": size, **measure(load(path), windows, reference)}), flush=True)


if __name__ == "__main__":
    main()
