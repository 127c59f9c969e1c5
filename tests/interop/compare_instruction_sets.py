"""Runs calibration and rounding of examples/tiny-llama on this processor and on an emulated one without AVX, and says what differs.

usage: compare_instruction_sets.py MONOQUANT   (needs qemu-x86_64-static of qemu-user-static; takes a quarter of an hour)
"""

import json
import pathlib
import struct
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
EMULATOR = ["qemu-x86_64-static", "-cpu", "Nehalem"]


def recipe(folder, name, quantize):
    """Writes a recipe of few tokens: an emulated processor does some 20 of them a second."""
    text = f"""version: 1
stages:
  - stage: load
    model: {ROOT}/examples/tiny-llama
  - stage: resolve-skips
    modules_to_not_convert: [lm_head]
  - stage: calibrate
    text: [{ROOT}/examples/calibration/calibration.txt]
    samples: 8
    sequence_length: 64
  - stage: quantize-int4
    {quantize}
  - stage: evaluate
    text: [{ROOT}/examples/calibration/held-out.txt]
    samples: 4
  - stage: export
    path: {name}
"""
    path = folder / f"{name}.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def tensors(path):
    """The bytes of each tensor of a safetensors file."""
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    start = 8 + length
    return {
        name: data[start + info["data_offsets"][0] : start + info["data_offsets"][1]]
        for name, info in header.items()
        if name != "__metadata__"
    }


def floats(data):
    """F32 numbers."""
    return struct.unpack(f"<{len(data) // 4}f", data)


def differing_codes(one, other):
    """How many 4-bit codes differ, and of how many."""
    differ = total = 0
    for path in one.glob("*.safetensors"):
        theirs = tensors(other / path.name)
        for name, data in tensors(path).items():
            if name.endswith("weight_packed"):
                total += 2 * len(data)
                differ += sum(((a ^ b) & 15 != 0) + ((a ^ b) >> 4 != 0) for a, b in zip(data, theirs[name]))
    return differ, total


def main():
    """Runs both and prints what differs."""
    program = sys.argv[1]
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        statistics = []
        for name, emulator in (("here", []), ("emulated", EMULATOR)):
            path = recipe(folder, f"statistics-{name}", "observer: mse")
            statistics.append(folder / f"{name}.safetensors")
            subprocess.run([*emulator, program, "calibrate", path, "-o", statistics[-1], "-q"], check=True)
        one, other = (tensors(path) for path in statistics)
        pairs = [pair for name in one for pair in zip(floats(one[name]), floats(other[name]))]
        most = max(abs(a - b) / max(abs(a), 1e-30) for a, b in pairs)
        equal = sum(a == b for a, b in pairs)
        print(f"mean squares: largest relative difference {most:.1e}, {equal} of {len(pairs)} equal")
        for quantize in ("observer: mse", "rounding: gptq"):
            for name, emulator in (("here", []), ("emulated", EMULATOR)):
                path = recipe(folder, name, quantize)
                subprocess.run([*emulator, program, "run", path, "-q", "--fresh"], check=True)
                report = json.loads((folder / name / "monoquant-report.json").read_text(encoding="utf-8"))
                print(f"{quantize}, {name}: {json.dumps(report['evaluations'][0]['kl'])}")
            differ, total = differing_codes(folder / "here", folder / "emulated")
            print(f"{quantize}: {differ} of {total} codes differ")


if __name__ == "__main__":
    main()
