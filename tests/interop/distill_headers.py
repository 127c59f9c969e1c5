"""Distils small models to their headers and to the truth about their layers, for the tests of layer types.

usage: distill_headers.py MODELS OUT [NAME...]

MODELS is what make_small_models.py wrote. OUT/NAME.json gets: `about` (versions), `config` (config.json) and `shards` (file name → tensor name →
"DTYPE [shape] class"), where class is that of the module which holds the tensor once transformers has loaded the model.
Files and module trees have different names and axes, so tensors are matched by value: a tensor belongs to the parameter in which one of its
rows (or columns) occurs; weights are random, so rows do not repeat. What transformers does not load is copied from a layer that it does load
and so has that layer's class; the rest of it is in NOT_LOADED. Where nothing matches (scalars, constants) the class is "?".
"""
import glob, json, os, sys

os.environ["HF_HUB_OFFLINE"] = "1"
import torch
import transformers
from make_small_models import STACKS
from safetensors import safe_open

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

# Extra prediction layers: made without a model class by make_small_models.py, in the shapes of the published files.
NOT_LOADED = {"fc": "Linear", "eh_proj": "Linear", "head": "Linear", "embed_tokens": "Embedding", "norm": "RMSNorm", "enorm": "RMSNorm", "hnorm": "RMSNorm",
              "pre_fc_norm_embedding": "RMSNorm", "pre_fc_norm_hidden": "RMSNorm", "final_layernorm": "RMSNorm"}


def lines(t):
    """The rows and columns of a tensor as bytes, along its last two axes; the whole of one with a single axis. Very short ones could be anyone's."""
    t = t.detach().float()
    if t.dim() < 2:
        return {t.reshape(-1).numpy().tobytes()}
    shortest = 2 if t.dim() > 3 else 3
    t = t.reshape(-1, *t.shape[-2:])
    return {r.contiguous().numpy().tobytes() for m in t for part in (m, m.T) for r in part if len(r) >= shortest}


def distil(path):
    with open(os.path.join(path, "config.json")) as f:
        config = json.load(f)
    klass = getattr(transformers, config["architectures"][0])
    model = klass.from_pretrained(path, dtype="auto")
    owners = {}
    for name, t in model.state_dict(keep_vars=True).items():
        module = model.get_submodule(name.rpartition(".")[0])
        for line in lines(t):
            owners.setdefault(line, type(module).__name__)
    shards = {}
    for file in sorted(glob.glob(os.path.join(path, "*.safetensors"))):
        tensors = shards[os.path.basename(file)] = {}
        with safe_open(file, "pt") as f:
            # In the order of the data, which is what a reader sees.
            for name in f.offset_keys():
                dtype, shape = f.get_slice(name).get_dtype(), f.get_slice(name).get_shape()
                t = f.get_tensor(name)
                found = {owners[line] for line in lines(t) if line in owners} if t.numel() > 1 else set()
                module = name.rpartition(".")[0].rpartition(".")[2]
                klass = sorted(found)[0] if found else NOT_LOADED.get(module, "?")
                if len(found) > 1:
                    print(f"{path}: {name} is in {sorted(found)}", file=sys.stderr)
                if not found and t.dim() > 1:
                    print(f"{path}: {name} {list(t.shape)} is not loaded, taken for {klass}", file=sys.stderr)
                tensors[name] = f"{dtype} [{','.join(map(str, shape))}] {klass}"
    return {"about": f"transformers {transformers.__version__}, torch {torch.__version__.split('+')[0]}", "config": config, "shards": shards}


def main():
    source, out, names = sys.argv[1], sys.argv[2], sys.argv[3:]
    os.makedirs(out, exist_ok=True)
    for name in names or sorted(name for name in os.listdir(source) if os.path.isdir(os.path.join(source, name)) and name not in STACKS):
        data = distil(os.path.join(source, name))
        with open(os.path.join(out, name + ".json"), "w") as f:
            # One tensor a line, so that a change of one is a change of one line.
            json.dump(data, f, indent=0, separators=(",", ":"), ensure_ascii=False)
            f.write("\n")
        print(name, sum(map(len, data["shards"].values())), "tensors", flush=True)


if __name__ == "__main__":
    main()
