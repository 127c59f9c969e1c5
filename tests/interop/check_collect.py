"""Whether examples/calibration/collect.py reproduces the statistics that are shipped: same names, types, shapes, counts and metadata, sums to 1e-5.

usage: check_collect.py OUT [--repository DIR]
"""
import argparse, os, subprocess, sys

from safetensors import safe_open

HERE = os.path.dirname(os.path.abspath(__file__))


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("out")
    ap.add_argument("--repository", default=os.path.join(HERE, "..", ".."))
    a = ap.parse_args()
    folder = os.path.join(a.repository, "examples", "calibration")
    os.makedirs(a.out, exist_ok=True)
    path = os.path.join(a.out, "collected.safetensors")
    model, text = os.path.join(folder, "..", "tiny-llama"), os.path.join(folder, "calibration.txt")
    subprocess.run([sys.executable, os.path.join(folder, "collect.py"), model, text, path], check=True)
    with safe_open(path, "pt") as found, safe_open(os.path.join(folder, "tiny-llama.stats.safetensors"), "pt") as shipped:
        assert sorted(found.keys()) == sorted(shipped.keys()) and found.metadata() == shipped.metadata()
        worst = 0.0
        for name in shipped.keys():
            ours, theirs = found.get_tensor(name), shipped.get_tensor(name)
            assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape), name
            if name.endswith(".counts"):
                assert (ours == theirs).all(), name
            else:
                worst = max(worst, ((ours - theirs).abs() / theirs).max().item())
    print(f"collect.py reproduces the shipped statistics to {worst:.1e}")
    sys.exit(0 if worst <= 1e-5 else 1)


if __name__ == "__main__":
    main()
