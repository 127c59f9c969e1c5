"""Golden of MXFP4 that becomes FP8 in blocks: the codes and scales of 128 x 128, as DeepSeek's own cast makes them.

usage: make_mxfp4_blocks_golden.py OUT.safetensors    in the environment of setup.sh (torch 2.10, compressed-tensors 0.19)

fits/ is a matrix 130 x 160 whose blocks have exponents within 14 of each other, with weight_packed, weight_scale, fp8_weight and fp8_scale_f32;
its FP8 decodes to the same numbers by compressed-tensors. too_wide/ has one exponent too far away.
"""
import sys

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from safetensors.torch import save_file

ROWS, COLUMNS = 130, 160


def meant(form, tensors, **args):
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**args))
    return BaseCompressor.get_value_from_registry(form).decompress(tensors, scheme)["weight"].float()


def main():
    torch.manual_seed(7)
    codes = torch.randint(0, 256, (ROWS, COLUMNS // 2), dtype=torch.uint8)
    scales = torch.randint(105, 120, (ROWS, COLUMNS // 32), dtype=torch.uint8)
    weights = meant("mxfp4-pack-quantized", {"weight_packed": codes, "weight_scale": scales}, num_bits=4, type="float", strategy="group",
                    group_size=32, scale_dtype="torch.uint8")
    grid = scales.int().repeat_interleave(32, 1)
    blocks = [[grid[row:row + 128, column:column + 128].max() for column in range(0, COLUMNS, 128)] for row in range(0, ROWS, 128)]
    shared = torch.exp2(torch.tensor(blocks, dtype=torch.float32) - 6 - 127)
    wide = shared.repeat_interleave(128, 0).repeat_interleave(128, 1)[:ROWS, :COLUMNS]
    fp8 = (weights / wide).to(torch.float8_e4m3fn)
    again = meant("float-quantized", {"weight": fp8, "weight_scale": shared}, num_bits=8, type="float", strategy="block",
                  block_structure=[128, 128])
    assert torch.equal(again, weights)
    too_wide = scales.clone()
    too_wide[129, 4], too_wide[128, 4] = 100, 119
    save_file({"fits/weight_packed": codes, "fits/weight_scale": scales, "fits/fp8_weight": fp8, "fits/fp8_scale_f32": shared,
               "too_wide/weight_packed": codes.clone(), "too_wide/weight_scale": too_wide}, sys.argv[1])


if __name__ == "__main__":
    main()
