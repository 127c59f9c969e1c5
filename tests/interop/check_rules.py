"""Every rule of the plan about engines is tried on the engine, both ways: what goes through loads, what is refused does not.

usage: check_rules.py transformers|vllm MONOQUANT MODELS VARIANTS OUT [CASE...]

MODELS is what make_small_models.py wrote, VARIANTS what make_variants.py wrote. A case is a model, what its quantize stage says, and what happens. With
the engine as target the plan must let through or refuse (or warn, where it depends on the machine) as the case says. What is refused is then written
all the same, by asking for the other engine, and must not load there: an error, or modules that are random or missing.

One JSON line a case; exit status 1 where one goes another way than the plan said. Run by the engine's own Python.
"""
import argparse, contextlib, glob, json, math, os, shutil, subprocess, sys

HERE = os.path.dirname(os.path.abspath(__file__))
RECIPE = """\
version: 1
name: rule
stages:
  - stage: load
    model: {model}
{stages}  - stage: export
    target: {target}
    path: {out}
"""

INT4, INT8 = "quantize-int4", "quantize-int8"


def stage(kind, **parameters):
    return f"  - stage: {kind}\n" + "".join(f"    {key}: {value}\n" for key, value in parameters.items())


def skips(**parameters):
    return stage("resolve-skips", on_unmatched="ignore", **parameters)


with open("/proc/cpuinfo") as cpuinfo:
    HAS_TILES = "amx_tile" in cpuinfo.read()
W8A8 = dict(activations="dynamic-token")
EXPERTS_TOO = skips(quantize_anyway="[Experts]")
# Heads that vLLM builds without quantization.
PLAIN_HEAD = skips(quantize_anyway="[lm_head]", skip_layer_types="[Experts]", skip_layer_names="[experts]") + stage(INT4, group_size=32)
BY_LAYER = stage(INT8, targets="[layers.0]") + stage(INT4, group_size=32)

# name: (model, stages, what the plan says, what the engine does). The plan lets it through (""), warns or refuses with a code; the engine "loads",
# "refuses", or loads "noise".
# Families that vLLM's CPU build opens as small models without a tokenizer: not those with GPU kernels alone (Kimi-Linear, Nemotron-H), or whose small
# config lacks a key that vLLM reads (DeepSeek-V3, LFM2, MiniMax-M2 and M3, Qwen3-VL-MoE). The second line has towers.
FAMILIES = ("mistral", "gemma2", "phi3", "opt", "lfm2-moe", "qwen2-moe", "glm4-moe", "qwen3-next",
            "gemma3", "gemma4", "mistral3", "qwen3-vl", "qwen3-5", "llama4")
TRANSFORMERS = {
    **{f"int4-{g}": ("variants/llama", stage(INT4, group_size=g), "", "loads") for g in (16, 32, 64, 128, 256)},
    "int4-channel": ("variants/llama", stage(INT4, granularity="channel"), "", "loads"),
    "int4-tensor": ("variants/llama", stage(INT4, granularity="tensor"), "", "loads"),
    "int4-asymmetric": ("variants/llama", stage(INT4, symmetric="false"), "", "loads"),
    "int4-asymmetric-channel": ("variants/llama", stage(INT4, symmetric="false", granularity="channel"), "", "loads"),
    "int4-asymmetric-tensor": ("variants/llama", stage(INT4, symmetric="false", granularity="tensor"), "", "loads"),
    "int8-channel": ("variants/llama", stage(INT8), "", "loads"),
    "int8-group": ("variants/llama", stage(INT8, granularity="group"), "", "loads"),
    "int8-asymmetric": ("variants/llama", stage(INT8, symmetric="false"), "", "loads"),
    "w8a8": ("variants/llama", stage(INT8, **W8A8), "", "loads"),
    "w8a8-group": ("variants/llama", stage(INT8, granularity="group", **W8A8), "", "loads"),
    "w8a8-asymmetric": ("variants/llama", stage(INT8, symmetric="false", **W8A8), "", "loads"),
    "w4a8": ("variants/llama", stage(INT4, **W8A8), "", "loads"),
    "head": ("variants/llama", skips(quantize_anyway="[lm_head]") + stage(INT4), "", "loads"),
    "by-layer": ("variants/llama", BY_LAYER, "", "loads"),
    "split-qkv": ("variants/llama", skips(modules_to_not_convert="[v_proj]") + stage(INT4), "", "loads"),
    "experts": ("mixtral", stage(INT4), "", "loads"),
    "experts-int8": ("mixtral", stage(INT8), "", "loads"),
    "experts-asymmetric": ("mixtral", stage(INT4, symmetric="false"), "plan::transformers-experts-scheme", "refuses"),
    "experts-w8a8": ("mixtral", stage(INT8, **W8A8), "plan::transformers-experts-scheme", "refuses"),
    "experts-by-layer": ("mixtral", BY_LAYER, "plan::several-expert-schemes", "refuses"),
    "experts-group-by-layer": ("mixtral", stage(INT4, targets="[layers.0]", group_size=64) + stage(INT4, group_size=32),
                               "plan::several-expert-schemes", "refuses"),
    "experts-other-than-attention": ("mixtral", stage(INT8, targets="[self_attn]") + stage(INT4), "", "loads"),
    "router": ("mixtral", skips(quantize_anyway="[Router]") + stage(INT4, targets="[Linear, Router]"), "plan::quantized-router", "noise"),
    **{f"stack-{m}": (m, EXPERTS_TOO + stage(INT4), "plan::stacked-experts", "noise") for m in ("gpt-oss", "granite-moe-hybrid")},
    "shared-expert-gate": ("qwen2-moe", skips(defaults="none", modules_to_not_convert="[lm_head, embed_tokens, mlp.gate]")
                           + stage(INT4, targets="[Linear, shared_expert_gate]"), "", "loads"),
    "several-schemes-v4": ("deepseek-v4", BY_LAYER, "plan::several-schemes", "refuses"),
    "several-schemes-v4-outputs": ("deepseek-v4", stage(INT8, targets="[wo_b]") + stage(INT4), "plan::several-schemes", "noise"),
    "several-schemes-m3": ("minimax-m3", BY_LAYER, "plan::several-schemes", "noise"),
    **{f"stack-{m}": (m, EXPERTS_TOO + stage(INT4), "plan::stacked-experts", "noise") for m in ("qwen3-vl-moe", "gemma4-moe")},
    **{f"stack-{m}-kept": (m, stage(INT4), "warn plan::experts-left-alone", "loads") for m in ("qwen3-vl-moe", "gemma4-moe", "gpt-oss", "granite-moe-hybrid")},
    "zero-point-words": ("variants/llama-764", stage(INT4, symmetric="false", granularity="channel"), "", "loads"),
    "plain-in-vllm-gpt-oss": ("gpt-oss", PLAIN_HEAD, "", "loads"),
    # Left alone beside quantized layers: merged from packed names alone.
    **{f"experts-kept-{m}": (m, skips(skip_layer_types="[Experts]", skip_layer_names="[experts]") + stage(INT4, group_size=32), "plan::kept-experts", "noise")
       for m in ("mixtral", "qwen3-moe", "qwen3-next", "qwen2-moe", "glm4-moe", "deepseek-v3")},
    "stack-llama4": ("llama4", stage(INT4), "", "loads"),
    "stack-llama4-kept": ("llama4", skips(skip_layer_types="[Experts]") + stage(INT4), "", "loads"),
    "stack-qwen3-5-moe-kept": ("qwen3-5-moe", skips(skip_layer_types="[Experts]") + stage(INT4), "", "loads"),
    "conv1d-gpt2": ("gpt2", stage(INT4, targets="[Conv1D]"), "plan::not-loadable-kind", None),
    "conv1d": ("lfm2", stage(INT4, targets="[Conv1d]", granularity="channel"), "plan::not-loadable-kind", None),
    "embedding": ("variants/llama", skips(quantize_anyway="[Embedding]") + stage(INT4, targets="[Linear, Embedding]"), "plan::not-loadable-kind", None),
}
VLLM = {
    **{f"int4-{g}": ("variants/llama", stage(INT4, group_size=g), "", "loads") for g in (32, 64, 128)},
    **{f"int4-{g}": ("variants/llama", stage(INT4, group_size=g), "warn plan::vllm-group-size", "loads") for g in (16, 256)},
    "int4-channel": ("variants/llama", stage(INT4, granularity="channel"), "", "loads"),
    "int4-tensor": ("variants/llama", stage(INT4, granularity="tensor"), "plan::vllm-tensor-scale", "refuses"),
    "int8-tensor": ("variants/llama", stage(INT8, granularity="tensor"), "plan::vllm-tensor-scale", "refuses"),
    "int4-asymmetric": ("variants/llama", stage(INT4, symmetric="false"), "", "loads"),
    "int4-asymmetric-channel": ("variants/llama", stage(INT4, symmetric="false", granularity="channel"), "", "loads"),
    # The note of the plan: no kernel on the CPU.
    "int8-channel": ("variants/llama", stage(INT8), "note", "refuses"),
    "int8-asymmetric": ("variants/llama", stage(INT8, symmetric="false"), "warn plan::vllm-int8-asymmetric", "refuses"),
    "w8a8": ("variants/llama", stage(INT8, **W8A8), "", "loads"),
    "w8a8-tensor": ("variants/llama", stage(INT8, granularity="tensor", **W8A8), "", "loads"),
    "w8a8-group": ("variants/llama", stage(INT8, granularity="group", **W8A8), "plan::vllm-w8a8-groups", "refuses"),
    "w8a8-asymmetric": ("variants/llama", stage(INT8, symmetric="false", **W8A8), "plan::vllm-w8a8-asymmetric", "refuses"),
    "w4a8": ("variants/llama", stage(INT4, **W8A8), "warn plan::vllm-w4a8", "loads"),
    "w4a8-channel": ("variants/llama", stage(INT4, granularity="channel", **W8A8), "warn plan::vllm-w4a8", "loads"),
    "w4a8-16": ("variants/llama", stage(INT4, group_size=16, **W8A8), "plan::vllm-w4a8-groups", "refuses"),
    "w4a8-tensor": ("variants/llama", stage(INT4, granularity="tensor", **W8A8), "plan::vllm-tensor-scale", "refuses"),
    "w4a8-asymmetric": ("variants/llama", stage(INT4, symmetric="false", **W8A8), "plan::vllm-w8a8-asymmetric", "refuses"),
    # What the tiles of AMX are needed for, in a process of its own.
    "w4a8-without-tiles": ("variants/llama", stage(INT4, **W8A8), "warn plan::vllm-w4a8", "crashes" if HAS_TILES else "loads"),
    "mixed": ("variants/llama", stage(INT8, targets="[layers.0]", **W8A8) + stage(INT4), "", "loads"),
    "mixed-by-module": ("variants/llama", stage(INT8, targets="[mlp]", **W8A8) + stage(INT4), "", "loads"),
    "head": ("variants/llama", skips(quantize_anyway="[lm_head]") + stage(INT4), "", "loads"),
    "untied-opt": ("untied/opt", stage(INT4), "", "loads"),
    "layer-kept": ("variants/llama", skips(modules_to_not_convert="[layers.0]") + stage(INT4), "", "loads"),
    # No kernel for quantized experts on the CPU; what is tried is that the others load beside plain ones.
    **{f"experts-kept-{m}": (m, skips(skip_layer_types="[Experts]", skip_layer_names="[experts]") + stage(INT4), "", "loads")
       for m in ("mixtral", "qwen3-moe")},
    **{f"family-{m}": (m, skips(skip_layer_types="[Experts]", skip_layer_names="[experts]") + stage(INT4, group_size=32), "", "loads") for m in FAMILIES},
    "experts-kept-gpt-oss": ("gpt-oss", stage(INT4), "warn plan::experts-left-alone", "loads"),
    # The rows of Mamba's in_proj are no multiple of 32 in the small model, which the note of the plan says.
    "experts-kept-granite": ("granite-moe-hybrid", skips(modules_to_not_convert="[mamba]") + stage(INT4), "warn plan::experts-left-alone", "loads"),
    "rows-of-33": ("granite-moe-hybrid", stage(INT4), "note", "refuses"),
    # The zero points of 764 rows fill no whole words. The CPU's product takes no such size in any scheme, so that limit is lifted here.
    "any-size-zero-point-words": ("variants/llama-764", stage(INT4, symmetric="false", granularity="channel"), "plan::vllm-zero-point-words", "noise"),
    "any-size-symmetric": ("variants/llama-764", stage(INT4, granularity="channel"), "note", "loads"),
    **{f"plain-{m.rpartition('/')[2]}": (m, PLAIN_HEAD, "plan::vllm-plain-module", "refuses") for m in ("qwen3-next", "gpt-oss", "untied/opt")},
    "split-qkv": ("variants/llama", skips(modules_to_not_convert="[v_proj]") + stage(INT4), "plan::split-siblings", "refuses"),
    "split-gate-up": ("variants/llama", stage(INT8, targets="[up_proj]", **W8A8) + stage(INT4), "plan::split-siblings", "refuses"),
}


# What no target lets through is written by calling a thing by another name: the router a Linear, the family one whose experts are merged.
DISGUISES = {"router": "    layer_types: {gate: Linear}\n", "stack-gpt-oss": "qwen3_5_moe", "stack-granite-moe-hybrid": "qwen3_5_moe",
             # As if its experts were not merged, or their being left alone would be refused first.
             "plain-qwen3-next": "llama"}


def untie(folder, out):
    """A copy of a model whose head is its embedding, with a head of its own."""
    from safetensors.torch import load_file, save_file

    tensors = {}
    for file in sorted(glob.glob(os.path.join(folder, "*.safetensors"))):
        tensors.update(load_file(file))
    embedding = next(name for name in tensors if name.endswith("embed_tokens.weight"))
    os.makedirs(out, exist_ok=True)
    save_file({**tensors, "lm_head.weight": tensors[embedding].clone()}, os.path.join(out, "model.safetensors"), metadata={"format": "pt"})
    with open(os.path.join(folder, "config.json")) as f:
        config = {**json.load(f), "tie_word_embeddings": False}
    with open(os.path.join(out, "config.json"), "w") as f:
        json.dump(config, f)
    return out


def find(model, models, variants, out):
    """The folder of a case's model."""
    kind, _, name = model.rpartition("/")
    if kind == "untied":
        return untie(os.path.join(models, name), os.path.join(out, "untied-" + name))
    return os.path.join(variants if kind else models, name)


def set_model_type(folder, model_type):
    path = os.path.join(folder, "config.json")
    with open(path) as f:
        config = json.load(f)
    before, config["model_type"] = config["model_type"], model_type
    with open(path, "w") as f:
        json.dump(config, f)
    return before


def write_anyway(binary, name, stages, folder, out, recipe):
    """Writes what the plan refuses for the engine, for another one or under a disguise."""
    stages = stages.replace(f"stage: {INT4}\n", f"stage: {INT4}\n    siblings: ignore\n").replace(f"stage: {INT8}\n", f"stage: {INT8}\n    siblings: ignore\n")
    disguise = DISGUISES.get(name, "")
    if disguise.startswith(" "):
        return quantize(binary, out + ".yaml", recipe(disguise + stages, folder))
    if not disguise:
        return quantize(binary, out + ".yaml", recipe(stages, folder))
    copy = out + "-source"
    shutil.copytree(folder, copy, dirs_exist_ok=True)
    real = set_model_type(copy, disguise)
    done = quantize(binary, out + ".yaml", recipe(stages, copy))
    shutil.rmtree(copy)
    if done[0] == 0:
        set_model_type(out, real)
    return done


def quantize(binary, recipe, text):
    with open(recipe, "w") as f:
        f.write(text)
    said = ""
    for command in ("plan", "run"):
        done = subprocess.run([binary, command, "--color", "never", recipe], capture_output=True, text=True)
        said += done.stdout + done.stderr
        if done.returncode:
            break
    return done.returncode, said


def with_transformers(path, original, text):
    """What transformers makes of a directory: loads, refuses or noise; against the same weights written plainly."""
    import check_models
    import torch

    try:
        got, info = check_models.load(path)
        expected, _ = check_models.load(path + "-plain")
        # Missing keys are random weights, however small the layer's part in the logits is.
        if info.get("missing_keys"):
            return "noise", f"missing {len(info['missing_keys'])}: {info['missing_keys'][:2]}"
        a, b = check_models.logits(expected), check_models.logits(got)
    except Exception as error:
        return "refuses", f"{type(error).__name__}: {error}"[:200]
    difference = ((a - b).float().norm() / a.float().norm()).item()
    limit = 0.05 if any(getattr(m, "quantization_scheme", None) and m.quantization_scheme.input_activations for m in got.modules()) else 1e-5
    return ("loads" if difference <= limit else "noise"), f"logits differ by {difference:.2g}"


def with_vllm(path, original, text):
    """What vLLM makes of it: loads, refuses, crashes or noise; against the perplexity of the unquantized model, or of the same weights written plainly."""
    import check_vllm

    if path.endswith("-without-tiles"):
        command = [sys.executable, os.path.join(HERE, "check_vllm.py"), os.path.join(HERE, "..", "..", "examples", "calibration", "held-out.txt"), path, "--windows", "2", "--leave-tiles"]
        status = subprocess.run(command, capture_output=True).returncode
        return "crashes" if status < 0 else "refuses" if status else "loads", f"status {status}"
    exact = "-any-size-" in path
    try:
        with check_vllm.any_size() if exact else contextlib.nullcontext():
            found = check_vllm.measure(path, text, 2)["ppl"]
    except (Exception, SystemExit) as error:
        return "refuses", f"{type(error).__name__}: {error}"[:200]
    if exact:
        ratio = found / check_vllm.measure(path + "-plain", text, 2)["ppl"]
        return ("loads" if abs(ratio - 1) < 0.01 else "noise"), f"perplexity {found}, {ratio:.4f} of that of the same weights written plainly"
    if original not in BASES:
        BASES[original] = check_vllm.measure(original, text, 2)["ppl"]
    ratio = found / BASES[original]
    return ("loads" if math.isfinite(ratio) and 0.9 < ratio < 1.3 else "noise"), f"perplexity {found}, {ratio:.4f} of the original's"


BASES = {}


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("engine", choices=["transformers", "vllm"])
    ap.add_argument("monoquant")
    ap.add_argument("models")
    ap.add_argument("variants")
    ap.add_argument("out")
    ap.add_argument("cases", nargs="*")
    a = ap.parse_intermixed_args()
    cases, open_with, other = (TRANSFORMERS, with_transformers, "vllm") if a.engine == "transformers" else (VLLM, with_vllm, "transformers")
    if a.engine == "vllm":
        import check_vllm

        check_vllm.prepare()
    os.makedirs(a.out, exist_ok=True)
    with open(os.path.join(HERE, "..", "..", "examples", "calibration", "held-out.txt"), encoding="utf-8") as f:
        text = f.read()
    failed = 0
    for name in a.cases or cases:
        model, stages, plan, engine = cases[name]
        folder = find(model, a.models, a.variants, a.out)
        out = os.path.abspath(os.path.join(a.out, f"{a.engine}-{name}"))
        recipe = lambda target, stages=stages, folder=folder: RECIPE.format(model=os.path.abspath(folder), stages=stages, target=target, out=out)
        code, said = quantize(a.monoquant, out + ".yaml", recipe(a.engine))
        wanted = plan.removeprefix("warn ")
        problems = []
        if plan.startswith("plan::"):
            if code != 2 or wanted not in said:
                problems.append(f"the plan lets it through: {said[:200]}")
            anyway = lambda stages, folder: recipe(other, stages, folder)
            code, said = write_anyway(a.monoquant, name, stages, folder, out, anyway) if engine else (0, "")
        elif plan and "note" not in plan and wanted not in said:
            problems.append(f"no {wanted}: {said[:200]}")
        elif "note" in plan and "note: " not in said:
            problems.append(f"no note: {said[:200]}")
        elif not plan and "plan::" in said:
            problems.append(f"warned: {said[:200]}")
        line = {"case": name, "plan": plan or "lets through"}
        if code:
            problems.append(f"cannot be written: {said[:300]}")
        elif engine:
            if a.engine == "transformers" or "any-size" in name:
                plain = recipe("any").replace(out, out + "-plain").replace("    target: any", "    format: dequantized")
                quantize(a.monoquant, out + ".yaml", plain)
            line["engine"], line["because"] = open_with(out, folder, text)
            if line["engine"] != engine:
                problems.append(f"the engine {line['engine']}, expected: {engine}")
        failed += bool(problems)
        print(json.dumps({**line, "problems": problems}), flush=True)
        shutil.rmtree(out, ignore_errors=True)
        shutil.rmtree(out + "-plain", ignore_errors=True)
    print(json.dumps({"failed": failed}), flush=True)
    os._exit(1 if failed else 0)


if __name__ == "__main__":
    main()
