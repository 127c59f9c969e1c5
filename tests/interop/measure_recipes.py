"""Perplexity of the trained model before and after every recipe that is shipped, as a table for the README.

usage: measure_recipes.py MONOQUANT OUT [--repository DIR] [--windows N]

Runs each recipe of DIR/recipes on DIR/examples/tiny-llama and measures the result on held-out.txt with transformers in float32. Beside the recipes stand
their INT4 schemes with the other observer. Exit status 1 where INT8 is not within 0.5 % of the original, or `mse` is worse than `minmax`.
"""
import argparse, glob, os, subprocess, sys

import perplexity

HERE = os.path.dirname(os.path.abspath(__file__))
# Label → (recipe, overrides).
BESIDE = {
    "llama-int4, `observer: mse`": ("llama-int4", ["quantize-int4.observer=mse"]),
    "llama-int4-mse, `observer: minmax`": ("llama-int4-mse", ["quantize-int4.observer=minmax"]),
    "llama-int4, `scales: positive`": ("llama-int4", ["quantize-int4.scales=positive"]),
    "llama-int4, `observer: mse`, `scales: positive`": ("llama-int4", ["quantize-int4.observer=mse", "quantize-int4.scales=positive"]),
    "llama-int4-mse, `scales: positive`": ("llama-int4-mse", ["quantize-int4.scales=positive"]),
    "llama-int4-gptq, `scales: positive`": ("llama-int4-gptq", ["quantize-int4.scales=positive"]),
    "llama-int4-guided, `scales: positive`": ("llama-int4-guided", ["quantize-int4.scales=positive"]),
    "llama-int4-asymmetric, `observer: mse`": ("llama-int4-asymmetric", ["quantize-int4.observer=mse"]),
}


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("monoquant")
    ap.add_argument("out")
    ap.add_argument("--repository", default=os.path.join(HERE, "..", ".."))
    ap.add_argument("--windows", type=int)
    a = ap.parse_args()
    torch = perplexity.torch
    tiny = os.path.join(a.repository, "examples", "tiny-llama")
    with open(os.path.join(HERE, "..", "..", "examples", "calibration", "held-out.txt"), encoding="utf-8") as f:
        ids = torch.tensor(perplexity.AutoTokenizer.from_pretrained(tiny)(f.read()).input_ids)
    count = min(a.windows or len(ids), len(ids) // perplexity.LENGTH)
    windows = ids[: count * perplexity.LENGTH].view(count, perplexity.LENGTH)
    original = perplexity.load(tiny)
    reference = list(perplexity.log_probabilities(original, windows))

    def row(label, path, model):
        size = sum(os.path.getsize(f) for f in glob.glob(os.path.join(path, "*.safetensors")))
        found = perplexity.measure(model, windows, reference)
        print(f"| {label} | {size:,} | {found['ppl']:.4f} | {found['ratio']:.4f} | {found['kl']:.6f} |", flush=True)
        return found["ratio"]

    print("| recipe | bytes | perplexity | ratio | KL |\n| --- | ---: | ---: | ---: | ---: |")
    row("none: BF16", tiny, original)
    # The others are for models that are quantized already.
    of_tiny = [f for f in glob.glob(os.path.join(a.repository, "recipes", "*.yaml")) if "examples/tiny-llama" in open(f, encoding="utf-8").read()]
    recipes = sorted(os.path.basename(f).removesuffix(".yaml") for f in of_tiny)
    runs = {f"`{name}`": (name, []) for name in recipes} | BESIDE
    ratios = {}
    for label, (name, overrides) in runs.items():
        out = os.path.abspath(os.path.join(a.out, name + "".join(f"-{value.split('=')[1]}" for value in overrides)))
        options = [word for value in overrides for word in ("--set", value)]
        recipe = os.path.join(a.repository, "recipes", name + ".yaml")
        subprocess.run([a.monoquant, "run", "--quiet", recipe, "--model", tiny, "--output", out, *options], check=True)
        ratios[label] = row(label, out, perplexity.load(out))
    wrong = [f"{name} is not within 0.5 %" for name in ("`llama-int8`", "`llama-w8a8`") if abs(ratios[name] - 1) > 0.005]
    for minmax, mse in (("`llama-int4`", "llama-int4, `observer: mse`"), ("llama-int4-mse, `observer: minmax`", "`llama-int4-mse`")):
        if ratios[mse] > ratios[minmax]:
            wrong.append(f"{mse} is worse than {minmax}")
    print("\n".join(wrong), file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
