"""Matrices whose groups follow the order of activations (`weight_g_idx`), as compressed-tensors before 0.19 packs and decodes them.

usage: make_activation_order.py OUT.safetensors

CASE.weight_packed and its companions as a checkpoint has them, and CASE.decoded: what `dequantize` makes of the codes. Later versions of
compressed-tensors refuse `actorder: group`, so this needs one before them: `pip install "compressed-tensors<0.13"`.
"""
import sys

import compressed_tensors
import torch
from compressed_tensors.compressors.quantized_compressors.pack_quantized import pack_to_int32
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import dequantize
from safetensors.torch import save_file

ROWS, COLUMNS, GROUP = 13, 48, 16


def case(bits, symmetric, dtype, generator):
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    groups = COLUMNS // GROUP
    codes = torch.randint(low, high + 1, (ROWS, COLUMNS), generator=generator, dtype=torch.int8)
    scale = (torch.rand(ROWS, groups, generator=generator) * 0.1 + 0.01).to(dtype)
    order = torch.arange(COLUMNS, dtype=torch.int32)[torch.randperm(COLUMNS, generator=generator)] // GROUP
    args = QuantizationArgs(num_bits=bits, type="int", strategy="group", group_size=GROUP, symmetric=symmetric, actorder="group")
    zero = None if symmetric else torch.randint(low, high + 1, (ROWS, groups), generator=generator, dtype=torch.int8)
    out = {"weight_packed": pack_to_int32(codes, bits), "weight_scale": scale, "weight_g_idx": order.to(torch.int32),
           "weight_shape": torch.tensor([ROWS, COLUMNS]), "decoded": dequantize(codes, scale, zero, args, g_idx=order)}
    if zero is not None:
        out["weight_zero_point"] = pack_to_int32(zero, bits, packed_dim=0)
    return out


def main():
    generator = torch.Generator().manual_seed(7)
    tensors = {}
    for bits in (4, 8):
        for symmetric in (True, False):
            for dtype in (torch.bfloat16, torch.float16, torch.float32):
                name = f"int{bits}-{'symmetric' if symmetric else 'asymmetric'}-{str(dtype).split('.')[1]}"
                for key, value in case(bits, symmetric, dtype, generator).items():
                    tensors[f"{name}.{key}"] = value.contiguous()
    save_file(tensors, sys.argv[1], metadata={"compressed-tensors": compressed_tensors.__version__})


if __name__ == "__main__":
    main()
