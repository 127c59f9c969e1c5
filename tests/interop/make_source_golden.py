"""Goldens of quantized sources: small matrices as tools store them, and what the tools' own code decodes them to.

usage: make_source_golden.py pack PACKED.safetensors              in an environment with vLLM 0.32
       make_source_golden.py golden PACKED.safetensors OUT.safetensors
                                   in the environment of setup.sh (torch 2.10, transformers 5.17, compressed-tensors 0.19)

`pack` writes GPTQ and AWQ modules with vLLM's packers; what they mean is (u - z) * s. `golden` adds the others: gpt-oss and
DeepSeek-V4 decoded by transformers, blocks of FP8 and everything else decoded by compressed-tensors. A case is the tensors
`CASE/m.PARAMETER`, the weights that they mean as `CASE/meant`, and, for the conversion of GPTQ and AWQ, the tensors of
compressed-tensors that hold the same codes as `CASE/ct.PARAMETER`. `config` of the metadata has the declaration of each case.
"""
import json
import os
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
import torch
from safetensors.torch import load_file, save_file

torch.set_num_threads(1)
ROWS, COLUMNS = 24, 64


def pack(path):
    import vllm.model_executor.layers.quantization.utils.quant_utils as qu

    torch.manual_seed(5)
    out = {}
    for bits, group in ((4, 16), (8, 32)):
        groups, top = COLUMNS // group, 2**bits
        u = torch.randint(0, top, (ROWS, COLUMNS))
        u[0, :16] = torch.arange(16) * (top // 16)
        s = (torch.rand(ROWS, groups) * 0.02 + 0.001).half()
        for kind in ("sym", "asym"):
            z = torch.full((ROWS, groups), top // 2) if kind == "sym" else torch.randint(1, top, (ROWS, groups))
            if kind == "asym":
                z[0, 0], z[1, 0] = 1, top - 1
            k = f"gptq{bits}_{kind}"
            out[f"{k}/u"], out[f"{k}/z"] = u.to(torch.uint8), z.to(torch.uint8)
            out[f"{k}/qweight"] = qu.gptq_pack(u.T.contiguous().int(), bits, COLUMNS, ROWS)
            out[f"{k}/scales"] = s.T.contiguous()
            out[f"{k}/g_idx"] = (torch.arange(COLUMNS) // group).int()
            for version, zeros in (("v1", z - 1), ("v2", z)):
                out[f"{k}/qzeros_{version}"] = qu.pack_cols(zeros.T.contiguous().int(), bits, groups, ROWS)
        if bits == 4:
            z = torch.randint(0, 16, (ROWS, groups))
            out["awq4_asym/u"], out["awq4_asym/z"] = u.to(torch.uint8), z.to(torch.uint8)
            out["awq4_asym/qweight"] = qu.awq_pack(u.T.contiguous().int(), 4, COLUMNS, ROWS)
            out["awq4_asym/qzeros"] = qu.awq_pack(z.T.contiguous().int(), 4, groups, ROWS)
            out["awq4_asym/scales"] = s.T.contiguous()
    save_file(out, path)


def golden(packed, path):
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
    from compressed_tensors.entrypoints.convert.converters.fp8block_dequantizer import FP8BlockDequantizer
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    out, config = {}, {}

    def case(name, tensors, meant, declared):
        config[name] = declared
        out[f"{name}/meant"] = meant.contiguous().clone()
        for key, tensor in tensors.items():
            out[f"{name}/{key}"] = tensor.contiguous().clone()

    def decompress(fmt, tensors, **args):
        scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**args))
        return BaseCompressor.get_value_from_registry(fmt).decompress(dict(tensors), scheme)["weight"]

    def ct(fmt, args):
        return {"quant_method": "compressed-tensors", "version": "0.19.0", "format": fmt,
                "config_groups": {"group_0": {"weights": args, "targets": ["Linear"]}}}

    g = torch.Generator().manual_seed(11)
    draw = lambda lo, hi, shape: torch.randint(lo, hi, shape, generator=g)

    # GPTQ and AWQ, with the tensors of compressed-tensors that hold the same codes.
    v = load_file(packed)
    for name in ("gptq4_sym", "gptq4_asym", "gptq8_sym", "gptq8_asym", "awq4_asym"):
        u, z = v[f"{name}/u"].int(), v[f"{name}/z"].int()
        bits, sym, awq = int(name.split("_")[0][-1]), name.endswith("_sym"), name.startswith("awq")
        scales = v[f"{name}/scales"].T.contiguous()
        group = COLUMNS // scales.shape[1]
        half = 2 ** (bits - 1)
        target = {"weight_packed": pack_to_int32((u - half).to(torch.int8), bits), "weight_scale": scales,
                  "weight_shape": torch.tensor([ROWS, COLUMNS])}
        if not sym:
            target["weight_zero_point"] = pack_to_int32((z - half).to(torch.int8).contiguous(), bits, packed_dim=0).contiguous()
        args = dict(num_bits=bits, symmetric=sym, strategy="group", group_size=group)
        meant = decompress("pack-quantized", target, **args)
        for version in ("v1",) if awq else ("v1", "v2"):
            zeros = v[f"{name}/qzeros" if awq else f"{name}/qzeros_{version}"]
            tensors = {"m.qweight": v[f"{name}/qweight"], "m.qzeros": zeros, "m.scales": v[f"{name}/scales"]}
            declared = {"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True, "version": "gemm"}
            if not awq:
                tensors["m.g_idx"] = v[f"{name}/g_idx"]
                declared = {"quant_method": "gptq", "bits": bits, "group_size": group, "sym": sym, "desc_act": False,
                            "checkpoint_format": "gptq" if version == "v1" else "gptq_v2"}
            tensors |= {f"ct.{key}": tensor for key, tensor in target.items()}
            case(name if awq else f"{name}_{version}", tensors, meant, declared)

    # gpt-oss: what transformers decodes is [experts, in, out].
    blocks, scales = draw(0, 256, (2, 64, 2, 16)).to(torch.uint8), draw(100, 140, (2, 64, 2)).to(torch.uint8)
    scales[0, :3, 0] = torch.tensor([0, 1, 252], dtype=torch.uint8)
    meant = convert_moe_packed_tensors(blocks, scales, dtype=torch.bfloat16)
    case("gptoss", {"m.gate_up_proj_blocks": blocks, "m.gate_up_proj_scales": scales}, meant.transpose(1, 2),
         {"quant_method": "mxfp4"})
    # DeepSeek-V4.
    dequantize = Fp8Dequantize(None)._dequantize_one
    w, s = draw(-128, 128, (16, 64)).to(torch.int8), draw(110, 130, (16, 4)).to(torch.uint8)
    s[0] = torch.tensor([0, 1, 252, 200], dtype=torch.uint8)
    s = s.view(torch.float8_e8m0fnu)
    fp8 = {"quant_method": "fp8", "scale_fmt": "ue8m0", "weight_block_size": [128, 128]}
    case("dsv4_fp4", {"m.weight": w, "m.scale": s}, dequantize(w, s, output_dtype=torch.bfloat16), fp8)

    def e4m3(shape):
        w = draw(0, 255, shape).to(torch.uint8)
        w[(w & 127) == 127] = 0
        return w.view(torch.float8_e4m3fn)

    w, s = e4m3((128, 256)), draw(110, 130, (1, 2)).to(torch.uint8).view(torch.float8_e8m0fnu)
    case("dsv4_fp8", {"m.weight": w, "m.scale": s}, dequantize(w, s, output_dtype=torch.bfloat16), fp8)
    # Blocks that do not divide the matrix.
    for rows, columns in ((130, 200), (64, 128)):
        w, s = e4m3((rows, columns)), torch.rand((-(-rows // 128), -(-columns // 128)), generator=g) * 2e-3
        meant = FP8BlockDequantizer(targets=["re:.*"], dtype=torch.bfloat16)._create_dequantized_weight(w, s)
        declared = {"quant_method": "fp8", "weight_block_size": [128, 128]}
        case(f"fp8_{rows}x{columns}", {"m.weight": w, "m.weight_scale_inv": s}, meant, declared)

    # compressed-tensors: integers of each width, and the floats.
    bf16 = lambda shape: (torch.rand(shape, generator=g) * 0.02 + 0.001).bfloat16()
    for bits in range(2, 9):
        for sym in (True, False):
            half, group = 2 ** (bits - 1), 13
            codes, zeros = draw(-half, half, (21, 39)).to(torch.int8), draw(-half, half, (21, 3)).to(torch.int8)
            tensors = {"weight_packed": pack_to_int32(codes, bits), "weight_scale": bf16((21, 3)),
                       "weight_shape": torch.tensor([21, 39])}
            if not sym:
                tensors["weight_zero_point"] = pack_to_int32(zeros, bits, packed_dim=0).contiguous()
            args = dict(num_bits=bits, symmetric=sym, strategy="group", group_size=group)
            meant = decompress("pack-quantized", tensors, **args)
            named = {f"m.{key}": tensor for key, tensor in tensors.items()}
            case(f"int{bits}_{'sym' if sym else 'asym'}", named, meant, ct("pack-quantized", args | {"type": "int"}))
    args = dict(num_bits=8, symmetric=True, strategy="channel")
    tensors = {"weight": draw(-128, 128, (21, 39)).to(torch.int8), "weight_scale": bf16((21, 1))}
    meant = decompress("int-quantized", tensors, **args)
    case("int8_plain", {f"m.{k}": t for k, t in tensors.items()}, meant, ct("int-quantized", args | {"type": "int"}))
    u8 = dict(scale_dtype="torch.uint8", zp_dtype="torch.uint8")
    exponents = draw(100, 140, (9, 2)).to(torch.uint8)
    floats = {
        "mxfp4": ("mxfp4-pack-quantized", dict(num_bits=4, type="float", strategy="group", group_size=32, **u8),
                  {"weight_packed": draw(0, 256, (9, 32)).to(torch.uint8), "weight_scale": exponents}),
        "mxfp8": ("mxfp8-quantized", dict(num_bits=8, type="float", strategy="group", group_size=32, **u8),
                  {"weight": e4m3((9, 64)), "weight_scale": exponents}),
        "nvfp4": ("nvfp4-pack-quantized", dict(num_bits=4, type="float", strategy="tensor_group", group_size=16,
                                               scale_dtype="torch.float8_e4m3fn"),
                  {"weight_packed": draw(0, 256, (9, 32)).to(torch.uint8),
                   "weight_scale": draw(1, 0x7F, (9, 4)).to(torch.uint8).view(torch.float8_e4m3fn),
                   "weight_global_scale": torch.tensor([731.25])}),
    }
    for name, (fmt, args, tensors) in floats.items():
        meant = decompress(fmt, tensors, **args)
        case(name, {f"m.{k}": t for k, t in tensors.items()}, meant, ct(fmt, args))
    save_file(out, path, metadata={"config": json.dumps(config)})


if __name__ == "__main__":
    {"pack": pack, "golden": golden}[sys.argv[1]](*sys.argv[2:])
