"""Opens outputs in 4-bit floats, and gpt-oss with int4 experts, in transformers.

usage: check_floats.py MONOQUANT [FOLDER]    in the environment of setup.sh (transformers 5.17, compressed-tensors 0.19)

Each case makes a small model by the real class, quantizes it, opens the output with `dtype="auto"`, and compares its logits with those of
`format: dequantized`: `same` if they are equal to the last bit. Cases that the plan refuses for transformers are exported for vLLM, and
opened all the same: they show what the rule is about.
"""
import pathlib
import subprocess
import sys
import tempfile

import torch
import transformers
from safetensors.torch import load_file, save_file

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


def llama(folder, dtype):
    config = transformers.LlamaConfig(hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                                      vocab_size=128, max_position_embeddings=128)
    transformers.LlamaForCausalLM(config).to(dtype).save_pretrained(folder)


def qwen3_moe(folder, dtype):
    config = transformers.Qwen3MoeConfig(hidden_size=128, intermediate_size=256, moe_intermediate_size=128, num_hidden_layers=2,
                                         num_attention_heads=4, num_key_value_heads=2, head_dim=32, vocab_size=128, num_experts=4,
                                         num_experts_per_tok=2, max_position_embeddings=128)
    transformers.Qwen3MoeForCausalLM(config).to(dtype).save_pretrained(folder)


def gpt_oss(folder, dtype):
    """Its experts in MXFP4, as the published files have them."""
    config = transformers.GptOssConfig(hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_local_experts=4, num_experts_per_tok=2,
                                       head_dim=32, num_attention_heads=2, num_key_value_heads=1, vocab_size=128, max_position_embeddings=128)
    transformers.GptOssForCausalLM(config).to(dtype).save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if name.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        experts, inputs, outputs = tensors.pop(name).shape
        tensors[f"{name}_blocks"] = torch.randint(0, 256, (experts, outputs, inputs // 32, 16), dtype=torch.uint8)
        tensors[f"{name}_scales"] = torch.randint(118, 122, (experts, outputs, inputs // 32), dtype=torch.uint8)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    text = (folder / "config.json").read_text().rstrip().removesuffix("}").rstrip()
    (folder / "config.json").write_text(text + ', "quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": '
                                        '["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]}}')


def run(monoquant, *args):
    done = subprocess.run([monoquant, *map(str, args)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)


def logits(folder):
    torch.manual_seed(1)
    model, told = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto", output_loading_info=True)
    wrong = {key: value for key, value in told.items() if value and key in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    with torch.no_grad():
        return model(torch.arange(1, 25).reshape(1, -1)).logits.float(), wrong


def case(monoquant, folder, name, make, dtype, stage):
    torch.manual_seed(0)
    make(folder / "model", dtype)
    (folder / "recipe.yaml").write_text(
        f"version: 1\nname: case\nstages:\n  - stage: load\n    model: model\n  - stage: {stage}\n  - stage: export\n    path: out\n"
        "    target: vllm\n  - stage: export\n    path: plain\n    format: dequantized\n")
    run(monoquant, "run", folder / "recipe.yaml")
    plain, _ = logits(folder / "plain")
    try:
        found, wrong = logits(folder / "out")
    except Exception as error:  # what is tried here is whether it fails
        return print(f"{name:32} fails: {type(error).__name__}: {str(error).splitlines()[0][:90]}")
    apart = (found - plain).abs().max().item()
    print(f"{name:32} {'same' if apart == 0 else f'apart by {apart:.3g}'} {sorted(wrong) if wrong else ''}")


def main():
    monoquant = pathlib.Path(sys.argv[1]).resolve()
    for family, make in (("llama", llama), ("qwen3-moe", qwen3_moe)):
        for stage in ("quantize-mxfp4", "quantize-nvfp4"):
            for dtype in (torch.bfloat16, torch.float16, torch.float32):
                with tempfile.TemporaryDirectory() as folder:
                    name = f"{family} {stage} {str(dtype).removeprefix('torch.')}"
                    case(monoquant, pathlib.Path(folder), name, make, dtype, stage)
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        torch.manual_seed(0)
        gpt_oss(folder / "model", torch.bfloat16)
        run(monoquant, "run", ROOT / "recipes/gpt-oss-int4.yaml", "--model", folder / "model", "--output", folder / "out")
        before, _ = logits(folder / "model")
        after, wrong = logits(folder / "out")
        kl = torch.nn.functional.kl_div(after.log_softmax(-1), before.log_softmax(-1), log_target=True, reduction="batchmean")
        print(f"gpt-oss int4: KL {kl.item() / after.shape[1]:.3g}, {sorted(wrong) if wrong else 'no key missing or unexpected'}")


if __name__ == "__main__":
    main()
