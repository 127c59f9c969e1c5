"""monoquant and llm-compressor on the same directories, tensor by tensor.

usage: compare_peer.py MONOQUANT OUT MODEL_DIR... [--schemes W4A16,W4A16_ASYM,W8A16,W8A8]

For each model and scheme both quantize what llm-compressor's usual ignore list leaves (heads, embeddings and norms are left alone). Then:

  tensors     the same names, dtypes and shapes, in the same files; routers apart, which the peer packs and no engine loads then
  config      the same meaning: schemes, activations, formats
  scales      and zero points, weight_shape and untouched tensors are bit for bit the same
  codes       are at most one apart from the peer's, and are those of the quotient in f32 (the peer's CPU path rounds it to the weight's dtype first)
  SQNR        is at least the peer's in every tensor

One JSON line a comparison; exit status 1 where something does not hold.
"""
import argparse, glob, json, math, os, subprocess, sys

os.environ.update(HF_HUB_OFFLINE="1", TQDM_DISABLE="1")
import torch
from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
from safetensors import safe_open

HERE = os.path.dirname(os.path.abspath(__file__))
STAGES = {
    "W4A16": "quantize-int4",
    "W4A16_ASYM": "quantize-int4\n    symmetric: false",
    "W8A16": "quantize-int8\n    granularity: group",
    "W8A8": "quantize-int8\n    activations: dynamic-token",
}
RECIPE = """\
version: 1
name: as-the-peer
stages:
  - stage: load
    model: {model}
  - stage: resolve-skips
    defaults: none
    modules_to_not_convert: [lm_head, 're:.*embed.*', 're:.*norm.*']
    on_unmatched: ignore
  - stage: {stage}
    indivisible: error
  - stage: export
    path: {out}
"""


def read(path):
    """Name → (file, tensor)."""
    out = {}
    for file in sorted(glob.glob(os.path.join(path, "*.safetensors"))):
        with safe_open(file, "pt") as f:
            out.update({name: (os.path.basename(file), f.get_tensor(name)) for name in f.keys()})
    return out


def meaning(path):
    """What of the quantization_config decides how a checkpoint is read."""
    with open(os.path.join(path, "config.json")) as f:
        config = json.load(f)["quantization_config"]
    keys = ("num_bits", "type", "symmetric", "strategy", "group_size", "dynamic")
    pick = lambda args: args and {k: args.get(k) for k in keys}
    groups = [(g["targets"], pick(g["weights"]), pick(g["input_activations"]), g["format"]) for g in config["config_groups"].values()]
    return config["quant_method"], config["quantization_status"], config["format"], groups


def codes(tensors, module, bits):
    if module + ".weight_packed" not in tensors:
        return tensors[module + ".weight"][1].int()
    shape = torch.Size(tensors[module + ".weight_shape"][1].tolist())
    return unpack_from_int32(tensors[module + ".weight_packed"][1], bits, shape).int()


def zero_points(tensors, module, bits, scale):
    packed = tensors.get(module + ".weight_zero_point")
    if packed is None:
        return torch.zeros(scale.shape)
    return unpack_from_int32(packed[1], bits, scale.shape, packed_dim=0).float()


def noise(weight, code, scale, zero):
    return ((code.double() - zero.double()) * scale.double() - weight.double()).square().sum().item()


def compare(source, ours, theirs, bits):
    problems, differing, total, worst = [], 0, 0, math.inf
    names = {n for n in theirs if n in ours or not is_router(n)}
    for name in sorted(set(ours) ^ names):
        module = name.rpartition(".")[0]
        if not is_router(name) and module + ".weight" not in ours:
            problems.append(f"{name} is on one side only")
    for name in sorted(n for n in names & set(ours) if not is_router(n)):
        (file_a, a), (file_b, b) = ours[name], theirs[name]
        if (file_a, a.dtype, a.shape) != (file_b, b.dtype, b.shape):
            problems.append(f"{name}: {file_a} {a.dtype} {list(a.shape)}, peer {file_b} {b.dtype} {list(b.shape)}")
        elif not name.endswith(".weight_packed") and a.dtype != torch.int8 and not torch.equal(a, b):
            problems.append(f"{name} differs")
    modules = [n.removesuffix(".weight_scale") for n in names & set(ours) if n.endswith(".weight_scale")]
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    for module in modules:
        weight = source[module + ".weight"][1]
        scale = ours[module + ".weight_scale"][1].float()
        zero = zero_points(ours, module, bits, scale)
        a, b = codes(ours, module, bits), codes(theirs, module, bits)
        size = weight.shape[1] // scale.shape[1]
        scale, zero = scale.repeat_interleave(size, 1), zero.repeat_interleave(size, 1)
        meant = (weight.float() / scale + zero).clamp(low, high).round().int()
        if not torch.equal(a, meant):
            problems.append(f"{module}: codes are not those of the quotient")
        if (a - b).abs().max() > 1:
            problems.append(f"{module}: codes more than one apart")
        differing += (a != b).sum().item()
        total += a.numel()
        x, y = noise(weight, a, scale, zero), noise(weight, b, scale, zero)
        worst = min(worst, 10 * math.log10(y / x))
        if x > y * (1 + 1e-9):
            problems.append(f"{module}: {x} of noise, peer {y}")
    return problems, {"modules": len(modules), "codes_that_differ": round(differing / max(total, 1), 6), "least_gain_db": round(worst, 6)}


def is_router(name):
    return name.split(".")[-2] in ("gate", "router", "shared_expert_gate")


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("monoquant")
    ap.add_argument("out")
    ap.add_argument("models", nargs="+")
    ap.add_argument("--schemes", default=",".join(STAGES))
    a = ap.parse_intermixed_args()
    failed = 0
    for model in a.models:
        source = read(model)
        for scheme in a.schemes.split(","):
            label = f"{os.path.basename(model)}-{scheme}"
            ours, theirs = os.path.join(a.out, label), os.path.join(a.out, label + "-peer")
            line = {"model": os.path.basename(model), "scheme": scheme}
            recipe = os.path.join(a.out, label + ".yaml")
            os.makedirs(a.out, exist_ok=True)
            with open(recipe, "w") as f:
                f.write(RECIPE.format(model=os.path.abspath(model), stage=STAGES[scheme], out=os.path.abspath(ours)))
            run = [subprocess.run(command, capture_output=True, text=True) for command in (
                [a.monoquant, "run", "--quiet", recipe],
                [sys.executable, os.path.join(HERE, "peer_quantize.py"), model, theirs, scheme])]
            problems = [(r.stdout + r.stderr)[-400:] for r in run if r.returncode]
            if not problems:
                problems, facts = compare(source, read(ours), read(theirs), 4 if scheme.startswith("W4") else 8)
                line.update(facts)
                if meaning(ours) != meaning(theirs):
                    problems.append(f"config: {meaning(ours)}, peer {meaning(theirs)}")
            failed += bool(problems)
            print(json.dumps({**line, "problems": problems}), flush=True)
    print(json.dumps({"failed": failed}))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
