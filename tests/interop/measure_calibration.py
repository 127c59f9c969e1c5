"""What activation statistics gain: perplexity and KL divergence of the trained model for each observer, as a table for the README.

usage: measure_calibration.py MONOQUANT OUT [--repository DIR] [--windows N]

INT4 in groups of 128 and 32, symmetric and asymmetric, with `minmax`, `mse`, `mse` with statistics and `imatrix-mse`. Exit status 1 where a KL is more
than 0.5 % above the peer's for the same scheme, or `mse` with statistics is not the best.
"""
import argparse, os, subprocess, sys

import perplexity

HERE = os.path.dirname(os.path.abspath(__file__))
# llm-compressor's KL on the same model, text and settings (RTN, memoryless_mse, imatrix_mse with 128 samples); of its two ways to run the last, which
# differ in the type that they search in, the larger.
PEER = {
    (128, "true"): {"minmax": 0.011720, "mse": 0.010287, "imatrix-mse": 0.010108},
    (128, "false"): {"minmax": 0.009829, "mse": 0.008922, "imatrix-mse": 0.008904},
    (32, "true"): {"minmax": 0.008874, "mse": 0.007903, "imatrix-mse": 0.007703},
    (32, "false"): {"minmax": 0.006259, "mse": 0.005915, "imatrix-mse": 0.005975},
}
NOISE = 1.005


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
    reference = list(perplexity.log_probabilities(perplexity.load(tiny), windows))
    print("| scheme | observer | perplexity | ratio | KL | llm-compressor's KL |\n| --- | --- | ---: | ---: | ---: | ---: |", flush=True)
    failed = False
    for (group, symmetric), peer in PEER.items():
        found = {}
        for label, recipe, observer in [
            ("minmax", "llama-int4", "minmax"),
            ("mse", "llama-int4", "mse"),
            ("mse, statistics", "llama-int4-calibrated", "mse"),
            ("imatrix-mse", "llama-int4-calibrated", "imatrix-mse"),
        ]:
            path = os.path.abspath(os.path.join(a.out, f"g{group}-{symmetric}-{label.replace(', ', '-')}"))
            # Signs of scales are the peer's, which has none below zero.
            keys = {"group_size": group, "symmetric": symmetric, "observer": observer, "scales": "positive"}
            settings = [f"quantize-int4.{key}={value}" for key, value in keys.items()]
            command = [a.monoquant, "run", "-q", os.path.join(a.repository, "recipes", recipe + ".yaml"), "--output", path]
            subprocess.run(command + [part for setting in settings for part in ("--set", setting)], check=True)
            got = perplexity.measure(perplexity.load(path), windows, reference)
            found[label] = got["kl"]
            theirs = peer.get(label)
            scheme = f"groups of {group}, {'symmetric' if symmetric == 'true' else 'asymmetric'}"
            shown = f"{theirs:.6f}" if theirs else ""
            print(f"| {scheme} | `{label}` | {got['ppl']:.4f} | {got['ratio']:.4f} | {got['kl']:.6f} | {shown} |".replace("mse, statistics`", "mse` with statistics"), flush=True)
            if theirs and not a.windows and got["kl"] > theirs * NOISE:
                print(f"above the peer's: {label}", file=sys.stderr)
                failed = True
        if min(found, key=found.get) != "mse, statistics":
            print(f"not the best: mse with statistics, {found}", file=sys.stderr)
            failed = True
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
