"""vLLM's CPU engine opens quantized directories unmodified, one after another in one process, and computes perplexities.

usage: check_vllm.py TEXT MODEL_DIR... [--windows N]

One JSON line a model: ppl over the first N windows of 256 tokens and 8 greedy tokens, or the error with which vLLM refused. Exit status 1 where one
was refused. A model without a tokenizer is given token numbers that stand for nothing.

vLLM's INT4 product for the CPU is in its AVX-512 build alone. Elsewhere that one product is replaced by dequantize-and-multiply, on weights that vLLM's
own loader has read, checked and placed: what is tested then is the loading, not the kernel ("int4_kernel": "substituted").
"""
import argparse, gc, json, math, os, sys

os.environ.update(HF_HUB_OFFLINE="1", TQDM_DISABLE="1", VLLM_NO_USAGE_STATS="1", VLLM_CPU_KVCACHE_SPACE="1", VLLM_LOGGING_LEVEL="ERROR",
                  VLLM_CPU_OMP_THREADS_BIND="nobind", VLLM_ENABLE_V1_MULTIPROCESSING="0")
LENGTH = 256


def substitute_int4_kernel():
    import torch
    from vllm.model_executor.kernels.linear.mixed_precision import cpu

    def unpack(words):  # eight unsigned nibbles a word, along dim 1
        return ((words.unsqueeze(-1) >> (4 * torch.arange(8))) & 15).flatten(1)

    def process(self, layer):
        codes = unpack(layer.weight_packed.data).float()
        scale = layer.weight_scale.data.float()
        if self.config.zero_points:
            zero = unpack(layer.weight_zero_point.data.t().contiguous()).t().float()
        else:
            zero = torch.full_like(scale, 8)
        group = codes.shape[1] // scale.shape[1]
        codes = codes.view(codes.shape[0], -1, group)
        layer.dense = ((codes - zero[..., None]) * scale[..., None]).flatten(1).to(layer.weight_scale.dtype)

    cpu.CPUWNA16LinearKernel.process_weights_after_loading = process
    cpu.CPUWNA16LinearKernel.apply_weights = (
        lambda self, layer, x, bias=None: torch.nn.functional.linear(x, layer.dense.to(x.dtype), bias))


def prepare():
    """Which INT4 kernel will run."""
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
    llm = None
    try:
        llm = LLM(model=path, enforce_eager=True, max_model_len=256 if bare else 512, dtype="bfloat16", skip_tokenizer_init=bare)
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
    a = ap.parse_intermixed_args()
    with open(a.text, encoding="utf-8") as f:
        text = f.read()
    kernel = prepare()
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
