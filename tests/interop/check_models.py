"""Every small model, quantized by one short recipe, opens unmodified in transformers and computes what it should.

usage: check_models.py MONOQUANT MODELS OUT [NAME...] [--recipe FILE] [--skip TYPE] [--skip-modules PATTERN] [--target PATTERN] [--set KEY=VALUE]...

MODELS is what make_small_models.py wrote. Each is quantized twice by the recipe below, as it stands and with `format: dequantized`. Held against
each other, by transformers' own classes:

  report    the tensors that it calls quantized are those that differ between the original and the dequantized files, the others are kept
  keys      nothing missing, mismatched or unexpected, but what the original has unexpected too (extra prediction layers)
  modules   the quantized modules are those whose weights differ between the original and the dequantized model
  weights   every parameter, once unpacked, is bit for bit that of the dequantized model
  logits    so are the outputs of one forward pass, of each stack that has one
  skipped   nothing that --skip-modules names is quantized, and something is that it does not name
  files     what is not weights is there

One JSON line a model; exit status 1 where one fails that EXCEPTIONS does not name, and where one passes that it does.
"""
import argparse, contextlib, glob, json, os, re, subprocess, sys, warnings

os.environ.update(HF_HUB_OFFLINE="1", TQDM_DISABLE="1")
import torch
import transformers
from safetensors import safe_open

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
warnings.filterwarnings("ignore")

RECIPE = """\
version: 1
name: any-model
stages:
  - stage: load
    model: ${MODEL}
  - stage: quantize-int4
    group_size: 32
  - stage: export
    path: ${OUT}
"""

# What does not hold, and why. `refused`: monoquant's plan says so. `forward`: this version of transformers cannot run the original either.
EXCEPTIONS = {
    "gpt2": ("refused", "GPT-2's Conv1D is no Linear: no engine has a quantized form of it"),
    "qwen3-omni": ("refused", "transformers has no plain experts beside quantized layers, so the talker's are wanted too (--target)"),
    "deepseek-v4": ("forward", "F32 and BF16 mixed in the class's own forward pass"),
    "qwen4-exp": ("forward", "the class's own forward pass fails with the small config"),
}


def quantize(binary, model, out, recipe, options):
    command = [binary, "run", recipe, "--quiet", "--model", model, "--output", out, *options]
    return subprocess.run(command, env={**os.environ, "MODEL": model, "OUT": out}, capture_output=True, text=True)


def differing(a, b):
    """Names of the tensors that differ between two directories."""
    def tensors(path):
        for file in sorted(glob.glob(os.path.join(path, "*.safetensors"))):
            with safe_open(file, "pt") as f:
                yield from ((name, f.get_tensor(name)) for name in f.keys())

    a, b = dict(tensors(a)), dict(tensors(b))
    return {name for name in a.keys() | b.keys() if name not in a or name not in b or not torch.equal(a[name], b[name])}


def load(path):
    config = transformers.AutoConfig.from_pretrained(path)
    klass = getattr(transformers, config.architectures[0])
    # The class's own method where it has one (Qwen2.5-Omni) gives no information about loading.
    model, info = transformers.PreTrainedModel.from_pretrained.__func__(klass, path, dtype="auto", output_loading_info=True)
    return model.eval(), {k: sorted(map(str, v)) for k, v in info.items() if v}


def noise(model, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(model.dtype)


def outputs(model):
    """What a model computes, from inputs that are always the same: one tensor for each of its stacks that can be asked alone."""
    config, text = model.config, model.config.get_text_config()
    ids = torch.arange(3, 35)[None] % text.vocab_size
    if config.model_type == "whisper":
        frames = noise(model, 1, config.num_mel_bins, 2 * config.max_source_positions)
        return [model(input_features=frames, decoder_input_ids=ids).logits]
    if config.model_type == "clip":
        size = config.vision_config.image_size
        out = model(input_ids=ids, pixel_values=noise(model, 1, 3, size, size))
        return [out.text_embeds, out.image_embeds]
    if "omni" in config.model_type and getattr(model, "hf_quantizer", None):
        # Omni has no pass of the whole, the first of which unpacks codes elsewhere. `dequantize=True` does this while loading.
        model.hf_quantizer.compressor.decompress_model(model=model)
    if config.model_type == "qwen2_5_omni":
        talker = config.talker_config
        reply = noise(model, 1, 32, talker.embedding_size)
        return [model.thinker(input_ids=ids).logits, model.talker(input_ids=ids % talker.vocab_size, thinker_reply_part=reply).logits]
    if config.model_type == "qwen3_omni_moe":
        hidden = noise(model, 1, 32, config.talker_config.text_config.hidden_size)
        positions = torch.arange(32)[None, None].expand(3, 1, -1)
        codes = noise(model, 1, 2, config.talker_config.code_predictor_config.hidden_size)
        return [model.thinker(input_ids=ids).logits, model.talker(inputs_embeds=hidden, position_ids=positions).logits,
                model.talker.code_predictor(inputs_embeds=codes).logits]
    return [model(input_ids=ids).logits]


def logits(model):
    torch.manual_seed(0)
    with torch.no_grad():
        return torch.cat([out.flatten().float() for out in outputs(model)])


def stack_experts(found, wanted):
    """Llama 4 has a module an expert beside a quantization config, and stacks [E, in, out] without one."""
    for name, stack in wanted.items():
        base, _, part = name.rpartition(".")
        if name in found or part not in ("gate_up_proj", "down_proj"):
            continue
        parts = ["gate_proj", "up_proj"] if part == "gate_up_proj" else ["down_proj"]
        names = [[f"{base}.{e}.{p}.weight" for p in parts] for e in range(stack.shape[0])]
        if all(n in found for expert in names for n in expert):
            found[name] = torch.stack([torch.cat([found[n].T for n in expert], 1) for expert in names])


def check(original, packed, plain, report, skipped):
    """Three models of one origin: as published, quantized, and quantized then written as plain weights. Gives what does not hold."""
    problems, facts = [], {}
    ref, ref_info = load(original)
    deq, deq_info = load(plain)
    got, got_info = load(packed)
    # transformers drops extra prediction layers by a fixed layer number and reports those of another depth.
    extra = tuple(t["name"].rsplit(".", 1)[0] for t in report["tensors"] if t["role"] == "MTP")
    for model_info, what in ((deq_info, "dequantized"), (got_info, "quantized")):
        for kind, keys in model_info.items():
            new = sorted(k for k in set(keys) - set(ref_info.get(kind, [])) if kind != "unexpected_keys" or not k.startswith(extra))
            if new:
                problems.append(f"{what}: {kind}: {len(new)}, {new[:3]}")
    facts["mtp_unexpected"] = len(ref_info.get("unexpected_keys", []))

    before, after = ref.state_dict(), deq.state_dict()
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    schemes = {n for n, m in got.named_modules() if getattr(m, "quantization_scheme", None) is not None}
    want = {k.removesuffix(".weight") for k in changed if ".experts." not in k}
    facts["quantized_modules"] = len(schemes)
    linear = {n for n in schemes if ".experts" not in n}
    if linear != want:
        problems.append(f"modules: not quantized {sorted(want - linear)[:3]}, quantized and unchanged {sorted(linear - want)[:3]}")
    reported, changed = {t["name"] for t in report["tensors"] if t["action"] == "quantized"}, differing(original, plain)
    facts["reported"] = len(reported)
    if skipped:
        hit = sorted(name for name in reported if re.match(skipped.removeprefix("re:"), name))
        if hit or not reported:
            problems.append(f"skipped: {len(hit)} of {len(reported)} quantized tensors are named by {skipped}, {hit[:3]}")
    left = {file for file in os.listdir(original) if ".safetensors" not in file} - set(os.listdir(packed))
    if left:
        problems.append(f"files: {sorted(left)} are not carried over")
    if reported != changed:
        problems.append(f"report: {sorted(reported ^ changed)[:3]} in the report or changed, not both")

    try:
        a = logits(ref)
        b, c = logits(deq), logits(got)
    except Exception as error:
        facts["forward"] = f"{type(error).__name__}: {error}"[:200]
        a = None
        with contextlib.suppress(Exception):
            logits(got)  # codes are unpacked before the pass itself fails
    if a is not None:
        facts["lost"] = round(((a - b).norm() / a.norm()).item(), 4)
        facts["difference"] = ((b - c).float().norm() / b.float().norm()).item()
        if not torch.isfinite(c).all() or facts["difference"] > 1e-5:
            problems.append(f"logits differ by {facts['difference']}")
        if facts["lost"] == 0:
            problems.append("nothing was lost: was anything quantized?")
    found = got.state_dict()
    stack_experts(found, after)
    differ = [k for k in after if k not in found or found[k].shape != after[k].shape or not torch.equal(found[k], after[k])]
    facts["compared"] = len(after)
    if differ:
        problems.append(f"weights: {len(differ)} differ, {differ[:3]}")
    return facts, problems


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("monoquant")
    ap.add_argument("models")
    ap.add_argument("out")
    ap.add_argument("names", nargs="*")
    ap.add_argument("--recipe", help="another recipe, with ${MODEL} and ${OUT} in it")
    ap.add_argument("--skip", help="a layer type that is left alone")
    ap.add_argument("--skip-modules", help="modules that are left alone: a regular expression that begins with re:")
    ap.add_argument("--target", help="modules that are asked for beside Linear, such as a part beside the language model")
    ap.add_argument("--set", action="append", default=[])
    a = ap.parse_intermixed_args()
    os.makedirs(a.out, exist_ok=True)
    recipe = os.path.join(a.out, "recipe.yaml")
    with open(recipe, "w") as f:
        text = open(a.recipe).read() if a.recipe else RECIPE
        entries = {"skip_layer_types": a.skip, "modules_to_not_convert": a.skip_modules}
        lines = "".join(f"    {key}: [{json.dumps(entry)}]\n" for key, entry in entries.items() if entry)
        if lines:
            text = text.replace("  - stage: quant", f"  - stage: resolve-skips\n{lines}  - stage: quant", 1)
        if a.target:
            text = text.replace("    group_size: 32\n", f"    group_size: 32\n    targets: [Linear, {json.dumps(a.target)}]\n", 1)
        f.write(text)
    options = [word for value in a.set for word in ("--set", value)]
    failed = 0
    for name in a.names or sorted(n for n in os.listdir(a.models) if os.path.isdir(os.path.join(a.models, n))):
        original = os.path.join(a.models, name)
        packed, plain = os.path.join(a.out, name), os.path.join(a.out, name + "-plain")
        line = {"name": name}
        expected = EXCEPTIONS.get(name, (None, None)) if not a.target else (None, None)
        done = quantize(a.monoquant, original, packed, recipe, options)
        if done.returncode:
            line["refused"] = re.sub(r"\s+", " ", done.stdout + done.stderr).strip()[:300]
            ok = done.returncode == 2 and expected[0] == "refused"
        else:
            done = quantize(a.monoquant, original, plain, recipe, options + ["--set", "export.format=dequantized"])
            if done.returncode:
                line["problems"] = [(done.stdout + done.stderr)[:300]]
                ok = False
            else:
                with open(os.path.join(packed, "monoquant-report.json")) as f:
                    report = json.load(f)
                try:
                    facts, problems = check(original, packed, plain, report, a.skip_modules)
                except Exception as error:
                    facts, problems = {}, [f"{type(error).__name__}: {error}"[:500]]
                line.update(facts, problems=problems)
                ok = not problems and ("forward" in facts) == (expected[0] == "forward") and expected[0] != "refused"
        line["ok"] = ok
        failed += not ok
        print(json.dumps(line), flush=True)
    print(json.dumps({"failed": failed}))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
