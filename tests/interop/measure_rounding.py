"""What rounding with calibration gains, and what it costs, beside llm-compressor's GPTQ and AutoRound: tables for the README and docs/calibration.md.

usage: measure_rounding.py MONOQUANT OUT [PART...] [--repository DIR] [--rounds N]

The trained model, calibrated on calibration.txt; KL and perplexity by transformers in float32 on held-out.txt, which no calibration sees.

  peers     time and KL of both programs, in turn, N rounds, the median's time: `gptq` with as many windows as the peer's GPTQ at most 1.5 times its time;
            `guided` in its cheap setting at most a tenth of AutoRound's
  schemes   KL of groups of 128 and 32, symmetric, signed and asymmetric
  texts     KL on held-out.txt after calibration on 48 windows of texts of other kinds

All of them where no part is given. Exit status 1 where a bar is missed.
"""
import argparse, glob, json, os, statistics, subprocess, sys, time

import perplexity

HERE = os.path.dirname(os.path.abspath(__file__))
RECIPE = """\
version: 1
name: {name}
stages:
  - stage: load
    model: {model}
  - stage: resolve-skips
    modules_to_not_convert: [lm_head]
  - stage: calibrate
    text: [{text}]
    samples: {samples}
    sequence_length: 256
    {gradients}
  - stage: quantize-int4
    rounding: {rounding}
    {settings}
  - stage: export
    path: {out}
"""
# (rounding, settings) → the most that its KL may be.
SCHEMES = {
    ("gptq", ""): 0.0036,
    ("guided", ""): 0.0026,
    ("gptq", "scales: signed"): 0.0033,
    ("guided", "scales: signed"): 0.0023,
    ("gptq", "group_size: 32"): 0.0026,
    ("guided", "group_size: 32"): 0.0019,
    ("guided", "symmetric: false"): 0.0024,
}
CHEAP = {"rounding": "guided", "samples": 96, "gradients": "gradient_samples: 24"}


class Measure:
    def __init__(self, a):
        self.a, self.wrong = a, []
        self.tiny = os.path.abspath(os.path.join(a.repository, "examples", "tiny-llama"))
        self.texts = os.path.abspath(os.path.join(a.repository, "examples", "calibration"))
        torch = perplexity.torch
        with open(os.path.join(self.texts, "held-out.txt"), encoding="utf-8") as f:
            ids = torch.tensor(perplexity.AutoTokenizer.from_pretrained(self.tiny)(f.read()).input_ids)
        count = len(ids) // perplexity.LENGTH
        self.windows = ids[: count * perplexity.LENGTH].view(count, perplexity.LENGTH)
        self.reference = list(perplexity.log_probabilities(perplexity.load(self.tiny), self.windows))

    def run(self, name, rounding, samples, gradients="", settings="", text=None):
        """Path of the output, seconds of the whole process."""
        out = os.path.abspath(os.path.join(self.a.out, name))
        text = text or os.path.join(self.texts, "calibration.txt")
        recipe = out + ".yaml"
        with open(recipe, "w") as f:
            f.write(RECIPE.format(name=name, model=self.tiny, text=json.dumps(text), samples=samples, gradients=gradients, rounding=rounding,
                                  settings=settings, out=out))
        start = time.perf_counter()
        subprocess.run([self.a.monoquant, "run", "--quiet", "--fresh", recipe], check=True)
        return out, time.perf_counter() - start

    def peer(self, method, samples):
        out = os.path.abspath(os.path.join(self.a.out, f"peer-{method}"))
        command = [sys.executable, os.path.join(HERE, "peer_calibrated.py"), self.tiny, out, method, os.path.join(self.texts, "calibration.txt")]
        told = subprocess.run(command + ["--samples", str(samples)], check=True, stdout=subprocess.PIPE, text=True).stdout
        return out, json.loads(told.splitlines()[-1])["seconds"]

    def quality(self, path):
        return perplexity.measure(perplexity.load(path), self.windows, self.reference)

    def hold(self, what, value, most):
        if value > most:
            self.wrong.append(f"{what}: {value:.6f} is more than {most}")

    def peers(self):
        rows = {
            "llm-compressor, GPTQ, 128 windows": lambda: self.peer("gptq", 128),
            "`rounding: gptq`, 128 windows": lambda: self.run("gptq-128", "gptq", 128),
            "llm-compressor, AutoRound, 128 windows": lambda: self.peer("autoround", 128),
            "`rounding: guided`, 96 windows, gradients of 24": lambda: self.run("guided-cheap", **CHEAP),
            "`rounding: guided`, 192 windows, gradients of 96": lambda: self.run("guided", "guided", 192, "gradient_samples: 96"),
        }
        seconds, paths = {name: [] for name in rows}, {}
        for _ in range(self.a.rounds):
            for name, job in rows.items():
                paths[name], took = job()
                seconds[name].append(took)
        print("| program | seconds | perplexity | KL |\n| --- | ---: | ---: | ---: |")
        middle = {name: statistics.median(took) for name, took in seconds.items()}
        for name, took in seconds.items():
            found = self.quality(paths[name])
            print(f"| {name} | {middle[name]:.1f} ({min(took):.1f} to {max(took):.1f}) | {found['ppl']:.4f} | {found['kl']:.6f} |", flush=True)
            if "24" in name:
                self.hold("KL of the cheap setting", found["kl"], 0.0028)
        peer_gptq, gptq, autoround, cheap, _ = middle.values()
        print(f"gptq takes {gptq / peer_gptq:.2f} of llm-compressor's GPTQ; the cheap guided {cheap / autoround:.3f} of AutoRound")
        self.hold("time by the peer's GPTQ", gptq / peer_gptq, 1.5)
        self.hold("time by AutoRound's", cheap / autoround, 0.1)

    def schemes(self):
        print("| rounding | settings | bytes | perplexity | KL | at most |\n| --- | --- | ---: | ---: | ---: | ---: |")
        for (rounding, settings), most in SCHEMES.items():
            name = f"{rounding} {settings}".strip().replace(": ", "-").replace(" ", "-")
            path, _ = self.run(name, rounding, 192, "gradient_samples: 96" if rounding == "guided" else "", settings)
            found = self.quality(path)
            size = sum(os.path.getsize(f) for f in glob.glob(os.path.join(path, "*.safetensors")))
            print(f"| `{rounding}` | {settings and f'`{settings}`'} | {size:,} | {found['ppl']:.4f} | {found['kl']:.6f} | {most} |", flush=True)
            self.hold(f"KL of {rounding}, {settings}", found["kl"], most)

    def kinds_of_text(self):
        """Kind → file, or None for the calibration text itself."""
        kinds = {"calibration.txt": None}
        for kind, pattern in (("Markdown", os.path.join(self.a.repository, "docs", "*.md")), ("Python", os.path.join(HERE, "*.py"))):
            path = os.path.abspath(os.path.join(self.a.out, f"{kind}.txt"))
            with open(path, "w", encoding="utf-8") as f:
                for name in sorted(glob.glob(pattern)):
                    f.write(open(name, encoding="utf-8").read())
            kinds[kind] = path
        return kinds

    def texts_of_other_kinds(self):
        print("| text | `gptq` | `guided` |\n| --- | ---: | ---: |")
        for kind, text in self.kinds_of_text().items():
            kls = []
            for rounding, gradients in (("gptq", ""), ("guided", "gradient_samples: 48")):
                path, _ = self.run(f"text-{kind.replace(' ', '-')}-{rounding}", rounding, 48, gradients, text=text)
                kls.append(self.quality(path)["kl"])
            print(f"| {kind} | " + " | ".join(f"{kl:.6f}" for kl in kls) + " |", flush=True)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("monoquant")
    ap.add_argument("out")
    ap.add_argument("parts", nargs="*")
    ap.add_argument("--repository", default=os.path.join(HERE, "..", ".."))
    ap.add_argument("--rounds", type=int, default=1)
    a = ap.parse_args()
    os.makedirs(a.out, exist_ok=True)
    measure = Measure(a)
    parts = {"peers": measure.peers, "schemes": measure.schemes, "texts": measure.texts_of_other_kinds}
    for name in a.parts or parts:
        parts[name]()
    print("\n".join(measure.wrong), file=sys.stderr)
    return 1 if measure.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
