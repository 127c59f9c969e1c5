"""GPTQ and AWQ checkpoints answer in vLLM as what `convert` makes of them: every log-probability, to the last bit.

usage: check_convert.py MONOQUANT SOURCES OUT [--dtype bfloat16]

SOURCES is what make_gptq_awq.py wrote. Each is converted by recipes/convert-gptq.yaml, and both directories are opened by vLLM: the 20 likeliest tokens at
2,040 places of held-out.txt. One JSON line a kind; exit status 1 where one differs. vLLM itself takes no asymmetric GPTQ: that kind must be refused before,
and load after.
"""
import argparse, json, os, subprocess, sys

import check_vllm

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
WINDOWS, LENGTH = 8, 256


def answers(path, dtype):
    from vllm import LLM, SamplingParams
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

    llm = LLM(model=path, enforce_eager=True, max_model_len=2 * LENGTH, dtype=dtype)
    with open(os.path.join(ROOT, "examples", "calibration", "held-out.txt"), encoding="utf-8") as f:
        ids = llm.get_tokenizer()(f.read()).input_ids
    prompts = [{"prompt_token_ids": ids[i * LENGTH : (i + 1) * LENGTH]} for i in range(WINDOWS)]
    sampling = SamplingParams(max_tokens=1, prompt_logprobs=20, detokenize=False)
    found = llm.generate(prompts, sampling, use_tqdm=False)
    places = [{token: entry.logprob for token, entry in place.items()} for result in found for place in result.prompt_logprobs[1:]]
    del llm
    cleanup_dist_env_and_memory()
    return places


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("monoquant")
    ap.add_argument("sources")
    ap.add_argument("out")
    ap.add_argument("--dtype", default="bfloat16")
    a = ap.parse_args()
    kernel, failed = check_vllm.prepare(), 0
    recipe = os.path.join(ROOT, "recipes", "convert-gptq.yaml")
    for kind in sorted(os.listdir(a.sources)):
        folder = os.path.join(a.sources, kind)
        before = next(entry.path for entry in os.scandir(folder) if entry.is_dir())
        after = os.path.abspath(os.path.join(a.out, kind))
        subprocess.run([a.monoquant, "run", recipe, "--model", before, "--output", after, "--quiet"], check=True)
        line = {"kind": kind, "int4_kernel": kernel}
        converted = answers(after, a.dtype)
        try:
            original = answers(before, a.dtype)
        except Exception as error:
            ok = kind == "gptq-asymmetric"
            line["before"] = f"{type(error).__name__}: {error}"[:200]
        else:
            same = sum(one == other for one, other in zip(original, converted))
            ok = same == len(original) == len(converted)
            line.update(places=len(original), identical=same)
        failed += not ok
        print(json.dumps({**line, "ok": ok}), flush=True)
    # The engine's threads would outlive the interpreter.
    os._exit(1 if failed else 0)


if __name__ == "__main__":
    main()
