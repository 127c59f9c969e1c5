"""Goldens of targets in 4-bit floats: small matrices, and the codes and scales that llm-compressor makes of them.

usage: make_fp4_golden.py OUT.safetensors    in the environment of setup.sh (torch 2.10, compressed-tensors 0.19, llmcompressor 0.14)

TYPE/MATRIX/weight is an input, TYPE/MATRIX/mxfp4 and TYPE/MATRIX/nvfp4 have the `weight_packed`, `weight_scale` and `weight_global_scale`
that `model_free_ptq` makes of it with MXFP4A16 and NVFP4A16, on one CPU thread; `meant` is what compressed-tensors decodes them to. The
matrices are those of make_fp8_golden.py whose rows are whole groups.
"""
import sys

import numpy as np
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import preset_name_to_scheme
from llmcompressor.entrypoints.model_free.converter import ModelFreePtqConverter
from llmcompressor.entrypoints.model_free.validate import validate_config
from safetensors.torch import save_file

import make_fp8_golden
import make_golden

torch.set_num_threads(1)
PRESETS = {"mxfp4": "MXFP4A16", "nvfp4": "NVFP4A16"}


def main():
    tensors = {}
    for dtype, torch_type in make_golden.DTYPES.items():
        for name, values in make_fp8_golden.matrices(dtype).items():
            if values.shape[1] % 32:
                continue
            weight = torch.from_numpy(np.ascontiguousarray(values)).to(torch_type)
            key = f"{dtype.lower()}/{name}"
            tensors[f"{key}/weight"] = weight
            for scheme, preset in PRESETS.items():
                config = validate_config(None, preset_name_to_scheme(preset, ["Linear"]), [])
                made = ModelFreePtqConverter(config).process({"m.weight": weight.clone()})
                made = {part.removeprefix("m."): tensor.contiguous() for part, tensor in made.items()}
                group = next(iter(config.config_groups.values()))
                form = getattr(group.format, "value", group.format)
                made["meant"] = BaseCompressor.get_value_from_registry(form).decompress(dict(made), group)["weight"].contiguous()
                tensors.update({f"{key}/{scheme}/{part}": tensor for part, tensor in made.items()})
    save_file(tensors, sys.argv[1])


if __name__ == "__main__":
    main()
