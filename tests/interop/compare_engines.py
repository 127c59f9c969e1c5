"""vLLM and transformers agree about the perplexity of what monoquant writes, to within one percent.

usage: compare_engines.py MONOQUANT VARIANTS OUT --transformers PYTHON --vllm PYTHON [--windows N] [LABEL...]

VARIANTS is what make_variants.py wrote. Every variant is quantized in every scheme that vLLM's CPU engine has a kernel for, opened by both engines, each
in its own environment, and measured on the first windows of held-out.txt. A label is VARIANT-SCHEME. One JSON line each; exit status 1 where one differs.
"""
import argparse, json, os, subprocess, sys

HERE = os.path.dirname(os.path.abspath(__file__))
TEXT = os.path.join(HERE, "..", "..", "examples", "calibration", "held-out.txt")
RECIPE = """\
version: 1
name: engines
stages:
  - stage: load
    model: {model}
{stages}
  - stage: export
    target: vllm
    path: {out}
"""
INT4 = "  - stage: quantize-int4\n    "
W8A8 = "  - stage: quantize-int8\n    activations: dynamic-token"
SCHEMES = {
    "int4-g128": INT4 + "group_size: 128",
    "int4-g32": INT4 + "group_size: 32",
    "int4-channel": INT4 + "granularity: channel",
    "int4-asym-g128": INT4 + "symmetric: false",
    "int4-asym-g32": INT4 + "symmetric: false\n    group_size: 32",
    "int4-asym-channel": INT4 + "symmetric: false\n    granularity: channel",
    # Weights-only int8 has no kernel on the CPU, so the int8 half is W8A8.
    "mixed": W8A8 + "\n    targets: [layers.0, down_proj]\n" + INT4 + "group_size: 128",
    "w8a8": W8A8,
}


def lines(command):
    done = subprocess.run(command, capture_output=True, text=True)
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if not found:
        sys.exit(f"{command[:2]}: {done.stderr[-2000:]}")
    return {line["model"]: line for line in found}


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("monoquant")
    ap.add_argument("variants")
    ap.add_argument("out")
    ap.add_argument("labels", nargs="*")
    ap.add_argument("--transformers", required=True)
    ap.add_argument("--vllm", required=True)
    ap.add_argument("--windows", default="8")
    a = ap.parse_intermixed_args()
    os.makedirs(a.out, exist_ok=True)
    paths = {}
    # The rows of llama-764 have no kernel on the CPU: it is for the rules.
    for variant in sorted(n for n in os.listdir(a.variants) if os.path.isdir(os.path.join(a.variants, n)) and n != "llama-764"):
        for scheme, stages in SCHEMES.items():
            label = f"{variant}-{scheme}"
            if a.labels and label not in a.labels:
                continue
            out = paths[label] = os.path.abspath(os.path.join(a.out, label))
            with open(out + ".yaml", "w") as f:
                f.write(RECIPE.format(model=os.path.abspath(os.path.join(a.variants, variant)), stages=stages, out=out))
            subprocess.run([a.monoquant, "run", "--quiet", out + ".yaml"], check=True)
    models = list(paths.values())
    reference = lines([a.transformers, os.path.join(HERE, "perplexity.py"), TEXT, *models, "--windows", a.windows])
    found = lines([a.vllm, os.path.join(HERE, "check_vllm.py"), TEXT, *models, "--windows", a.windows])
    failed = 0
    for label, path in paths.items():
        line = {"label": label, "transformers": reference.get(path, {}).get("ppl"), "vllm": found.get(path, {}).get("ppl")}
        line["int4_kernel"] = found.get(path, {}).get("int4_kernel")
        ok = bool(line["transformers"] and line["vllm"])
        if ok:
            line["ratio"] = round(line["vllm"] / line["transformers"], 5)
            ok = abs(line["ratio"] - 1) <= 0.01
        else:
            line["error"] = found.get(path, {}).get("error")
        failed += not ok
        print(json.dumps({**line, "ok": ok}), flush=True)
    print(json.dumps({"failed": failed}))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
