"""Goldens of FP8 targets: small matrices, and the codes and scales that llm-compressor makes of them.

usage: make_fp8_golden.py OUT.safetensors    in the environment of setup.sh (torch 2.10, compressed-tensors 0.19, llmcompressor 0.14)

TYPE/MATRIX/weight is an input, TYPE/MATRIX/channel and TYPE/MATRIX/block have the `weight` and `weight_scale` that `model_free_ptq` makes of
it with FP8_DYNAMIC and FP8_BLOCK, on one CPU thread. `gauss`, `edge` and `overflow` are those of tests/golden/make_golden.py; `odd` is 5 x 13,
`blocks` 130 x 200, so that both sizes are no multiples of 128, and `ties` has the middles between codes.
"""
import os
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
import numpy as np
import torch
from compressed_tensors.quantization import preset_name_to_scheme
from llmcompressor.entrypoints.model_free.converter import ModelFreePtqConverter
from llmcompressor.entrypoints.model_free.validate import validate_config
from safetensors.torch import save_file

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "golden"))
import make_golden

torch.set_num_threads(1)
PRESETS = {"channel": "FP8_DYNAMIC", "block": "FP8_BLOCK"}


def ties():
    """Rows of E2M1 and E4M3 numbers, the middles between them, and maxima around powers of two."""
    e2m1 = np.array([6, .25, -.25, .75, -.75, 1.25, -1.25, 1.75, -1.75, 2.5, -2.5, 3.5, -3.5, 5, -5, .125, -.125, 0.0, -0.0, .5, 1, 1.5, 2, 3,
                     4, -4, 5.5, -5.5, 6, -6, .26, -.26])
    rows = [np.tile(e2m1 * 2.0 ** k, 8) for k in (0, -3, 5)]
    maxima = [1.0, 1.25, 1.5, 1.74, 1.75, 1.76, 1.999, 2.0]
    rows.append(np.concatenate([np.concatenate([[most], np.linspace(-most, most, 31)]) for most in maxima]))
    e4m3 = np.array([448.0, 0.0, -0.0, 2**-9, 2**-10, 1.5 * 2**-10, 3 * 2**-10, 2**-6, 17 / 16, 18 / 16, 19 / 16, 25, 27, 29, 416, 432, 440, 464, 447,
                     449, -448, 240, 232, 248, 2**-7, 7 * 2**-9, 7.5 * 2**-9, .3, .7, 100, 200, 300])
    rows.append(np.tile(e4m3, 8))
    at_most = e4m3.copy()
    at_most[17], at_most[19] = 448.0, 447.0
    rows.append(np.tile(at_most, 8))
    return np.stack(rows)


def matrices(dtype):
    base = make_golden.matrices(dtype)
    rng = np.random.Generator(np.random.PCG64(77))
    odd = rng.standard_normal((5, 13)) * 0.1
    blocks = rng.standard_normal((130, 200)) * np.exp(rng.uniform(-6, 2, (130, 200)))
    out = {"gauss": base["gauss"][0][:8], "edge": base["edge"][0], "overflow": base["overflow"][0], "odd": odd, "ties": ties()}
    if dtype == "BF16":
        out["blocks"] = blocks
    return out


def main():
    tensors = {}
    for dtype, torch_type in make_golden.DTYPES.items():
        for name, values in matrices(dtype).items():
            weight = torch.from_numpy(np.ascontiguousarray(values)).to(torch_type)
            key = f"{dtype.lower()}/{name}"
            tensors[f"{key}/weight"] = weight
            for scheme, preset in PRESETS.items():
                config = validate_config(None, preset_name_to_scheme(preset, ["Linear"]), [])
                made = ModelFreePtqConverter(config).process({"m.weight": weight.clone()})
                tensors.update({f"{key}/{scheme}/{part.removeprefix('m.')}": tensor.contiguous() for part, tensor in made.items()})
    save_file(tensors, sys.argv[1])


if __name__ == "__main__":
    main()
