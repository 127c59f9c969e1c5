"""vLLM's CPU engine opens quantized directories unmodified, one after another in one process, and computes perplexities.

usage: check_vllm.py TEXT MODEL_DIR... [--windows N] [--leave-tiles]

One JSON line a model: ppl over the first N windows of 256 tokens and 8 greedy tokens, or the error with which vLLM refused. Exit status 1 where one
was refused. A model without a tokenizer is given token numbers that stand for nothing.

vLLM's INT4 product for the CPU is in its AVX-512 build alone. Elsewhere that one product is replaced by dequantize-and-multiply, on weights that vLLM's
own loader has read, checked and placed: what is tested then is the loading, not the kernel ("int4_kernel": "substituted").

Of models with towers the language model is opened. On x86 the tiles of AMX are asked for first: vLLM's attention uses them, and only some of its products
ask the system for them; in a model without those (int4 weights with int8 activations) it would end in an illegal instruction. --leave-tiles shows that.
"""
import argparse, contextlib, ctypes, gc, json, math, os, platform, sys

os.environ.update(HF_HUB_OFFLINE="1", TQDM_DISABLE="1", VLLM_NO_USAGE_STATS="1", VLLM_CPU_KVCACHE_SPACE="1", VLLM_LOGGING_LEVEL="ERROR",
                  VLLM_CPU_OMP_THREADS_BIND="nobind", VLLM_ENABLE_V1_MULTIPROCESSING="0")
LENGTH = 256


def substitute_int4_kernel():
    import torch
    from vllm.model_executor.kernels.linear.mixed_precision import cpu

    def unpack(words):  # eight unsigned nibbles a word, along dim 1
        return ((words.unsqueeze(-1) >> (4 * torch.arange(8))) & 15).flatten(1)

    def process(self, layer):
        columns, rows = self.config.partition_weight_shape
        codes = unpack(layer.weight_packed.data)[:, :columns].float()
        scale = layer.weight_scale.data.float()
        if self.config.zero_points:
            zero = unpack(layer.weight_zero_point.data.t().contiguous()).t()[:rows].float()
        else:
            zero = torch.full_like(scale, 8)
        codes = codes.view(rows, scale.shape[1], -1)
        layer.dense = ((codes - zero[..., None]) * scale[..., None]).flatten(1).to(layer.weight_scale.dtype)

    cpu.CPUWNA16LinearKernel.process_weights_after_loading = process
    cpu.CPUWNA16LinearKernel.apply_weights = (
        lambda self, layer, x, bias=None: torch.nn.functional.linear(x, layer.dense.to(x.dtype), bias))


@contextlib.contextmanager
def any_size():
    """Lets sizes through that the CPU's INT4 product does not take and a GPU's does, so that vLLM's loader can be seen at work on them."""
    from vllm.model_executor.kernels.linear.mixed_precision import cpu

    kernel = cpu.CPUWNA16LinearKernel
    kept = {name: kernel.__dict__[name] for name in ("can_implement", "process_weights_after_loading", "apply_weights")}
    substitute_int4_kernel()
    kernel.can_implement = classmethod(lambda cls, config: (True, None))
    try:
        yield
    finally:
        for name, method in kept.items():
            setattr(kernel, name, method)


def ask_for_tiles():
    """Asks Linux for the tile registers of AMX (arch_prctl ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA); a refusal means that there are none."""
    if platform.machine() == "x86_64":
        ctypes.CDLL(None).syscall(158, 0x1023, 18)


def prepare(tiles=True):
    """Which INT4 kernel will run."""
    if tiles:
        ask_for_tiles()
    with open("/proc/cpuinfo") as f:
        has_avx512 = "avx512f" in f.read()
    if not has_avx512:
        substitute_int4_kernel()
    return "vllm" if has_avx512 else "substituted"


def measure(path, text, windows):
    """Perplexity and greedy tokens of a directory, opened by vLLM."""
    from vllm import LLM, SamplingParams
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

    bare = not any(os.path.exists(os.path.join(path, f)) for f in ("tokenizer.json", "tokenizer.model", "vocab.json"))
    with open(os.path.join(path, "config.json")) as f:
        has_towers = "vision_config" in json.load(f)
    llm = None
    try:
        llm = LLM(model=path, enforce_eager=True, max_model_len=256 if bare else 512, dtype="bfloat16", skip_tokenizer_init=bare,
                  language_model_only=has_towers)
        length = 128 if bare else LENGTH  # the small models have 256 positions
        ids = list(range(3, 3 + length)) if bare else llm.get_tokenizer()(text).input_ids
        count = min(windows, len(ids) // length)
        prompts = [{"prompt_token_ids": ids[i * length:(i + 1) * length]} for i in range(count)]
        total = tokens = 0
        sampling = SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False)
        for result in llm.generate(prompts, sampling, use_tqdm=False):
            for entry in result.prompt_logprobs[1:]:
                total -= next(iter(entry.values())).logprob
                tokens += 1
        sampling = SamplingParams(max_tokens=8, temperature=0, detokenize=False)
        got = llm.generate([{"prompt_token_ids": list(range(10, 40))}], sampling, use_tqdm=False)
        return {"ppl": round(math.exp(total / tokens), 4), "tokens": tokens, "greedy": list(got[0].outputs[0].token_ids)}
    finally:
        del llm
        cleanup_dist_env_and_memory()
        gc.collect()


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("text")
    ap.add_argument("models", nargs="+")
    ap.add_argument("--windows", type=int, default=8)
    ap.add_argument("--leave-tiles", action="store_true")
    a = ap.parse_intermixed_args()
    with open(a.text, encoding="utf-8") as f:
        text = f.read()
    kernel = prepare(tiles=not a.leave_tiles)
    refused = 0
    for path in a.models:
        line = {"model": path, "int4_kernel": kernel}
        try:
            line.update(measure(path, text, a.windows))
            if not math.isfinite(line["ppl"]):
                raise ValueError("the perplexity is not finite")
        except (Exception, SystemExit) as error:
            refused += 1
            line["error"] = f"{type(error).__name__}: {error}"[:400]
        print(json.dumps(line), flush=True)
    # The engine's threads would outlive the interpreter.
    sys.stdout.flush()
    os._exit(1 if refused else 0)


if __name__ == "__main__":
    main()
