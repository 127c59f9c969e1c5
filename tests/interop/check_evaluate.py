"""Holds `monoquant evaluate` against transformers on the same windows: KL divergence to 1 %, perplexities to 0.1 %.

usage: check_evaluate.py MONOQUANT OUT [--repository DIR] [--windows N] [--output DIR...]

Quantizes DIR/examples/tiny-llama by recipes llama-int4 and llama-int4-mse, with signed and with positive scales, llama-int4-guided and llama-w8a8; with --output also measures directories that are
there, such as one of llm-compressor's GPTQ. With activation order (`weight_g_idx`), which compressed-tensors no longer loads, its codes are
decoded here and put into the original model. Exit status 1 where one figure differs.
"""
import argparse, glob, json, os, subprocess, sys

import perplexity
from safetensors import safe_open

HERE = os.path.dirname(os.path.abspath(__file__))
POSITIVE = ["--set", "quantize-int4.scales=positive"]
# Label → (recipe, overrides).
RECIPES = {
    "llama-int4": ("llama-int4", []),
    "llama-int4-positive": ("llama-int4", POSITIVE),
    "llama-int4-mse": ("llama-int4-mse", []),
    "llama-int4-mse-positive": ("llama-int4-mse", POSITIVE),
    "llama-int4-guided": ("llama-int4-guided", []),
    "llama-w8a8": ("llama-w8a8", []),
}


def unpacked(words, bits, count, axis):
    """Signed codes of 32-bit words along an axis, low bits first."""
    torch = perplexity.torch
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    words = words.movedim(axis, -1)
    codes = (words[..., None] >> shifts) & (2**bits - 1)
    return (codes.flatten(-2)[..., :count] - 2 ** (bits - 1)).movedim(-1, axis)


def load(folder, original):
    """A model directory; with activation order decoded here."""
    torch = perplexity.torch
    tensors = {}
    for file in glob.glob(os.path.join(folder, "*.safetensors")):
        with safe_open(file, "pt") as f:
            tensors.update({name: f.get_tensor(name) for name in f.keys()})
    if not any(name.endswith("weight_g_idx") for name in tensors):
        return perplexity.load(folder)
    model = perplexity.load(original)
    state = model.state_dict()
    for name in [name for name in tensors if name.endswith(".weight_packed")]:
        part = lambda word: tensors.get(name.replace("weight_packed", word))
        rows, columns = part("weight_shape").tolist()
        bits = 32 * tensors[name].shape[1] // columns
        groups = part("weight_g_idx").long()
        codes = unpacked(tensors[name], bits, columns, 1)
        if part("weight_zero_point") is not None:
            codes = codes - unpacked(part("weight_zero_point"), bits, rows, 0)[:, groups]
        scales = part("weight_scale")
        state[name.replace("weight_packed", "weight")] = (codes.to(scales.dtype) * scales[:, groups]).float()
    state.update({name: tensor.float() for name, tensor in tensors.items() if name in state and name.endswith("weight")})
    model.load_state_dict(state)
    return model


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("monoquant")
    ap.add_argument("out")
    ap.add_argument("--repository", default=os.path.join(HERE, "..", ".."))
    ap.add_argument("--windows", type=int)
    ap.add_argument("--output", nargs="*", default=[])
    a = ap.parse_args()
    torch = perplexity.torch
    tiny = os.path.join(a.repository, "examples", "tiny-llama")
    text = os.path.join(a.repository, "examples", "calibration", "held-out.txt")
    with open(text, encoding="utf-8") as f:
        ids = torch.tensor(perplexity.AutoTokenizer.from_pretrained(tiny)(f.read()).input_ids)
    count = min(a.windows or len(ids), len(ids) // perplexity.LENGTH)
    windows = ids[: count * perplexity.LENGTH].view(count, perplexity.LENGTH)
    original = perplexity.load(tiny)
    base = perplexity.measure(original, windows)["ppl"]
    reference = list(perplexity.log_probabilities(original, windows))
    folders = list(a.output)
    for label, (name, overrides) in RECIPES.items():
        out = os.path.abspath(os.path.join(a.out, label))
        recipe = os.path.join(a.repository, "recipes", name + ".yaml")
        subprocess.run([a.monoquant, "run", "--quiet", recipe, "--model", tiny, "--output", out, *overrides], check=True)
        folders.append(out)
    wrong = 0
    print("| output | KL, transformers | KL, monoquant | perplexity, transformers | perplexity, monoquant |\n| --- | ---: | ---: | ---: | ---: |")
    for folder in folders:
        command = [a.monoquant, "evaluate", folder, "--source", tiny, "--text", text, "--samples", str(count), "--format", "json"]
        ours = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        theirs = perplexity.measure(load(folder, tiny), windows, reference)
        kl, ppl = ours["kl"]["mean"], ours["perplexity"]["quantized"]
        print(f"| {os.path.basename(folder)} | {theirs['kl']:.6f} | {kl:.6f} | {theirs['ppl']:.4f} | {ppl:.4f} |", flush=True)
        near = abs(kl - theirs["kl"]) <= 0.01 * theirs["kl"] and abs(ppl - theirs["ppl"]) <= 0.001 * theirs["ppl"]
        wrong += not near or abs(ours["perplexity"]["source"] - base) > 0.001 * base
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
