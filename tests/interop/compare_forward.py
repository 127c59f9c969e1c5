"""Times of a forward pass over text: monoquant, transformers and llama.cpp, the same model, tokens and threads, in turn.

usage: compare_forward.py MONOQUANT OUT [--hidden N] [--layers N] [--windows N] [--rounds N] [--threads N...] [--text FILE]

Makes a random Llama in F32 with the trained example's tokenizer, as a checkpoint and as GGUF. What is timed are the layers over windows of 512
tokens, without logits: `monoquant calibrate` (which also sums squares) as the difference between all windows and one, so that starting and
reading do not count; `model.model` of transformers; `decode` of llama.cpp (Python package `cyllama`, left out if it is not there), whose
last hidden state is held against that of transformers first. Prints medians, and tokens a second.
"""
import argparse, json, os, shutil, statistics, subprocess, sys, time

os.environ.update(HF_HUB_OFFLINE="1", TQDM_DISABLE="1")
import numpy as np
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

HERE = os.path.dirname(os.path.abspath(__file__))
LENGTH = 512


def to_gguf(model, path):
    import gguf

    c = model.config
    w = gguf.GGUFWriter(path, "llama")
    w.add_block_count(c.num_hidden_layers)
    w.add_context_length(c.max_position_embeddings)
    w.add_embedding_length(c.hidden_size)
    w.add_feed_forward_length(c.intermediate_size)
    w.add_head_count(c.num_attention_heads)
    w.add_head_count_kv(c.num_key_value_heads)
    w.add_layer_norm_rms_eps(c.rms_norm_eps)
    w.add_rope_freq_base(c.rope_parameters["rope_theta"])
    w.add_rope_dimension_count(c.hidden_size // c.num_attention_heads)
    w.add_vocab_size(c.vocab_size)
    w.add_tokenizer_model("no_vocab")
    w.add_file_type(0)
    names = {"embed_tokens": "token_embd", "lm_head": "output", "norm": "output_norm", "q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output",
             "gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    for name, tensor in model.state_dict().items():
        parts = name.split(".")
        word = parts[-2]
        data = tensor.float().numpy()
        if word in ("q_proj", "k_proj"):
            # llama.cpp turns neighbouring columns, transformers the two halves.
            heads = c.num_attention_heads if word == "q_proj" else c.num_key_value_heads
            data = data.reshape(heads, 2, -1, data.shape[1]).swapaxes(1, 2).reshape(data.shape)
        layer = f"blk.{parts[2]}." if "layers" in parts else ""
        w.add_tensor(layer + names[word] + ".weight", np.ascontiguousarray(data))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def llama_cpp(path, windows, threads):
    from cyllama.llama import llama_cpp as cpp

    params = cpp.LlamaModelParams()
    model = cpp.LlamaModel(path, params, False)
    settings = cpp.LlamaContextParams()
    settings.n_ctx = settings.n_batch = settings.n_ubatch = LENGTH
    settings.n_threads = settings.n_threads_batch = threads
    settings.embeddings, settings.pooling_type = True, 0
    context = cpp.LlamaContext(model, settings, False)

    def run():
        start = time.perf_counter()
        for window in windows:
            context.kv_cache_clear()
            context.decode(cpp.llama_batch_get_one(window))
            context.synchronize()
        return time.perf_counter() - start

    return run, lambda: np.array(context.get_embeddings_ith(-1))


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("monoquant")
    ap.add_argument("out")
    ap.add_argument("--hidden", type=int, default=1024)
    ap.add_argument("--layers", type=int, default=4)
    ap.add_argument("--windows", type=int, default=9)
    ap.add_argument("--rounds", type=int, default=5)
    ap.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    ap.add_argument("--text", default=os.path.join(HERE, "..", "..", "examples", "calibration", "held-out.txt"))
    a = ap.parse_args()
    tiny = os.path.join(HERE, "..", "..", "examples", "tiny-llama")
    folder = os.path.abspath(os.path.join(a.out, "model"))
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=2048, hidden_size=a.hidden, intermediate_size=a.hidden * 11 // 4, num_hidden_layers=a.layers, num_attention_heads=a.hidden // 64,
                         num_key_value_heads=a.hidden // 256, max_position_embeddings=2048, bos_token_id=0, eos_token_id=1)
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(os.path.join(tiny, name), folder)
    gguf_path = os.path.join(a.out, "model.gguf")
    to_gguf(model, gguf_path)
    with open(a.text, encoding="utf-8") as f:
        ids = AutoTokenizer.from_pretrained(folder)(f.read()).input_ids
    windows = [ids[i * LENGTH : (i + 1) * LENGTH] for i in range(a.windows)]
    tokens = torch.tensor(windows)

    def transformers(threads):
        torch.set_num_threads(threads)
        start = time.perf_counter()
        with torch.no_grad():
            for window in tokens.split(1):
                model.model(window)
        return time.perf_counter() - start

    def monoquant(threads):
        times = []
        for samples in (1, a.windows):
            recipe = os.path.join(a.out, "recipe.yaml")
            with open(recipe, "w", encoding="utf-8") as f:
                stages = [{"stage": "load", "model": folder}, {"stage": "calibrate", "text": [os.path.abspath(a.text)], "samples": samples, "sequence_length": LENGTH},
                          {"stage": "quantize-int4", "observer": "mse"}, {"stage": "export", "path": os.path.abspath(os.path.join(a.out, "quantized"))}]
                json.dump({"version": 1, "name": "time", "stages": stages}, f)
            command = [a.monoquant, "calibrate", recipe, "-o", os.path.join(a.out, "statistics.safetensors"), "--fresh", "--threads", str(threads), "--quiet"]
            start = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            times.append(time.perf_counter() - start)
        return (times[1] - times[0]) * a.windows / (a.windows - 1)

    contenders = {"monoquant": monoquant, "transformers": transformers}
    try:
        runs = {threads: llama_cpp(gguf_path, windows, threads) for threads in a.threads}
        runs[a.threads[0]][0]()
        with torch.no_grad():
            theirs = model.model(tokens[-1:]).last_hidden_state[0, -1].numpy()
        ours = runs[a.threads[0]][1]()
        distance = float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))
        print(f"last states of llama.cpp and transformers differ by {distance:.1e}")
        if not distance < 1e-2:
            return 1
        contenders["llama.cpp"] = lambda threads: runs[threads][0]()
    except ImportError as error:
        print(f"llama.cpp is left out: {error}")
    times = {}
    for _ in range(a.rounds):
        for threads in a.threads:
            for name, run in contenders.items():
                times.setdefault((name, threads), []).append(run(threads))
    print("| what | threads | seconds | tokens a second |\n| --- | ---: | ---: | ---: |")
    for (name, threads), found in sorted(times.items(), key=lambda item: item[0][::-1]):
        median = statistics.median(found)
        print(f"| {name} | {threads} | {median:.2f} | {a.windows * LENGTH / median:.0f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
