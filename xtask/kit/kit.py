"""Checks that need a real GPU, for a machine with one GPU and PyTorch 2.11.0, without Rust.

    python3 kit.py [--device cuda:0] [--out FOLDER] [PART...]

`cargo xtask gpu-kit` packs it with the programs it runs. Parts, in this order, all of them where none is named:

    machine    the GPU, its driver, the compiler
    kernels    each row kernel: the bits of its emulation
    layouts    two small models in many layouts and precisions: the bits of one process, the losses of the CPU
    forms      each form of attention and architecture in a few layouts: likewise
    recovery   workers killed in the middle of a run: the bits of an undisturbed one
    bench      seconds a step beside PyTorch, eager and compiled

It goes on where something fails and ends with a summary; FOLDER keeps it and the logs of runs that failed.
"""
import argparse
import concurrent.futures
import glob
import importlib.util
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
STEPS = 4

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--device", default="cuda:0")
parser.add_argument("--out", default=os.environ.get("OUT", "kit-out"))
parser.add_argument("--at-once", type=int, default=4, help="runs of small models at a time")
parser.add_argument("parts", nargs="*")
args = parser.parse_args()
work = tempfile.mkdtemp(prefix="kit-")
os.makedirs(args.out, exist_ok=True)
failures = 0


def say(line):
    print(line, flush=True)
    with open(os.path.join(args.out, "summary"), "a") as summary:
        summary.write(line + "\n")


def expect(good, line):
    global failures
    failures += not good
    say(f"{'holds' if good else 'FAILS':6} {line}")


def package(name):
    """The folder of a Python package, which is not loaded for that."""
    found = importlib.util.find_spec(name)
    if found is None:
        sys.exit(f"this Python has no package {name}; the kit needs PyTorch 2.11.0 for CUDA")
    return list(found.submodule_search_locations)[0]


def program(name):
    return os.path.join(HERE, "bin", name)


LLAMA = {"layers": 4, "dim": 256, "heads": 4, "kv_heads": 2, "ffn": 704, "vocab": 2048}
GPT = {"layers": 4, "dim": 192, "heads": 4, "ffn": 768, "vocab": 1999, "positions": "learned", "max_positions": 128,
       "norm": "layer", "activation": "gelu", "biases": True, "tied_embeddings": True}
SMALL = {"layers": 2, "dim": 64, "heads": 4, "kv_heads": 2, "ffn": 96, "vocab": 257}
READER = {**SMALL, "kv_heads": 4, "architecture": "encoder", "positions": "learned", "max_positions": 160,
          "norm": "layer", "activation": "gelu", "biases": True}
FORMS = {
    "window": ({**SMALL, "attention": {"kind": "window", "window": 40}}, {}),
    "longformer": ({**READER, "attention": {"kind": "longformer", "window": 30, "global": 3, "projections": True}}, {}),
    "bigbird": ({**READER, "attention": {"kind": "bigbird", "block": 16, "random": 1}}, {}),
    "linear": ({**SMALL, "attention": {"kind": "linear"}}, {}),
    "decay": ({**SMALL, "attention": {"kind": "linear", "decay": True}}, {}),
    "compressed": ({**SMALL, "attention": {"kind": "compressed", "window": 24, "block": 8}}, {}),
    "latent": ({**SMALL, "kv_heads": 4, "attention": {"kind": "latent", "rank": 24, "rope_dim": 8}}, {}),
    "alibi": ({**SMALL, "positions": "alibi"}, {}),
    "relative": ({**SMALL, "positions": "relative"}, {}),
    "sinusoidal": ({**SMALL, "positions": "sinusoidal", "tied_embeddings": True}, {}),
    "bert": ({**READER, "token_types": 2, "embedding_norm": True, "norm_placement": "post"}, {}),
    "albert": ({**READER, "layer_groups": 1, "embedding_dim": 32}, {}),
    "t5": ({**SMALL, "kv_heads": 4, "architecture": "encoder-decoder", "positions": "relative",
            "tied_embeddings": True, "logit_scale": 0.125, "activation": "geglu-tanh"}, {}),
    "dropped": (SMALL, {"dropout": 0.1, "attention_dropout": 0.1}),
    "muon": (SMALL, {"optimizer": "muon"}),
}
# Layout, workers, and what else the row changes.
LAYOUTS = {
    "one": ({}, 1, {}),
    "again": ({}, 1, {}),
    "pp2": ({"pipeline": 2}, 2, {}),
    "pp2 zb-h1": ({"pipeline": 2, "schedule": "zb-h1"}, 2, {}),
    "dp2": ({"data": 2}, 2, {}),
    "dp2 zero": ({"data": 2, "zero": 1}, 2, {}),
    "tp2": ({"tensor": 2}, 2, {}),
    "tp2 split": ({"tensor": 2, "sequence_parallel": True}, 2, {}),
    "full": ({}, 1, {"recompute": "full"}),
    "pp2 tp2 dp2": ({"pipeline": 2, "tensor": 2, "data": 2}, 8, {}),
}


def job(model, precision, layout, **train):
    numbers = {"steps": STEPS, "sequence": 128, "micro_batch_size": 2, "global_micro_batches": 8, "gradient_groups": 4,
               "tensor_shards": 2, "threads": 2, "precision": precision, "learning_rate": 3e-4, "warmup_steps": 0}
    return {"name": "kit", "model": model, "data": {"synthetic": {"tokens": 200000}}, "train": {**numbers, **train},
            "layout": layout}


class Run:
    """A job that `coxswain up` trains on this machine, and what it left."""

    def __init__(self, name, spec, workers, device):
        self.name, self.folder = name, os.path.join(work, re.sub("[^a-z0-9]", "-", name))
        path = self.folder + ".yaml"
        with open(path, "w") as file:
            json.dump(spec, file)
        self.command = [program("coxswain"), "up", path, "--workers", str(workers), "--device", device, "--out", self.folder]

    def start(self):
        self.log = open(self.folder + ".log", "w")
        return subprocess.Popen(self.command, stdout=self.log, stderr=subprocess.STDOUT)

    def finish(self, limit_s=120):
        process = self.start()
        try:
            self.code = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            process.kill()
            self.code = "hangs"
        if self.code != 0:
            for log in [self.folder + ".log"] + glob.glob(self.folder + "/logs/*.log"):
                shutil.copy(log, os.path.join(args.out, f"{os.path.basename(self.folder)}-{os.path.basename(log)}"))
        return self

    def rows(self):
        try:
            with open(os.path.join(self.folder, "metrics.jsonl")) as lines:
                return [json.loads(line) for line in lines]
        except OSError:
            return []

    def bits(self):
        return {row["step"]: (repr(row["loss"]), repr(row["grad_norm"])) for row in self.rows()}


def table(models, precisions, layouts):
    """Runs all and holds each to one process, and that one in fp32 to the CPU."""
    runs = {}
    for name, (model, train) in models.items():
        if "fp32" in precisions:
            runs[name, "cpu"] = Run(f"{name} cpu", job(model, "fp32", {}, **train), 1, "cpu")
        for precision in precisions:
            for row in layouts:
                layout, workers, more = LAYOUTS[row]
                spec = job(model, precision, layout, **{**train, **more})
                runs[name, precision, row] = Run(f"{name} {precision} {row}", spec, workers, args.device)
    with concurrent.futures.ThreadPoolExecutor(args.at_once) as pool:
        list(pool.map(Run.finish, runs.values()))
    for name in models:
        for precision in precisions:
            one = runs[name, precision, "one"].bits()
            # A step that is skipped has no numbers; where all are, nothing was compared.
            told = len(one) == STEPS and any("nan" not in numbers and "None" not in numbers for numbers in one.values())
            differ = [row for row in layouts if not told or runs[name, precision, row].bits() != one]
            expect(not differ, f"{name}, {precision}: {len(layouts)} runs with the bits of one process"
                   + (f", but for {differ}" if differ else ""))
        if "fp32" in precisions:
            pairs = list(zip(runs[name, "fp32", "one"].rows(), runs[name, "cpu"].rows()))
            apart = {key: max((abs(a[key] - b[key]) / abs(b[key]) for a, b in pairs), default=1) for key in ("loss", "grad_norm")}
            expect(apart["loss"] < 1e-6 and apart["grad_norm"] < 1e-5,
                   f"{name}, fp32: losses within {apart['loss']:.1e} of the CPU's, norms within {apart['grad_norm']:.1e}")


def machine():
    for command in (["nvidia-smi", "--query-gpu=name,driver_version,memory.total,compute_cap", "--format=csv,noheader"],
                    [program("coxswain-worker"), "--version"], [sys.executable, "-c", "import torch; print(torch.__version__)"]):
        done = subprocess.run(command, capture_output=True, text=True)
        say("       " + (done.stdout or done.stderr).strip())


def kernels():
    paths = os.pathsep.join([os.path.join(HERE, "bin"), os.path.join(package("nvidia"), "cu13", "lib")])
    done = subprocess.run([program("kernels")], capture_output=True, text=True, env={**os.environ, "LD_LIBRARY_PATH": paths})
    with open(os.path.join(HERE, "kernels.txt")) as file:
        wanted = file.read().splitlines()
    differ = sum(a != b for a, b in zip(done.stdout.splitlines(), wanted)) + abs(len(done.stdout.splitlines()) - len(wanted))
    said = done.stderr.strip().splitlines()[-1:]
    expect(done.returncode == 0 and differ == 0, f"kernels: {said}, {differ} of {len(wanted)} with other bits than emulated")


def layouts():
    table({"llama": (LLAMA, {}), "gpt": (GPT, {"dropout": 0.1})}, ["fp32", "bf16"], list(LAYOUTS))
    table({"llama": (LLAMA, {})}, ["fp16"], ["one", "again", "pp2"])


def forms():
    table(FORMS, ["fp32", "bf16"], ["one", "pp2", "tp2", "dp2 zero", "full"])


def children(pid):
    return [int(word) for word in subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True).stdout.split()]


def recovery():
    def spec(layout, **more):
        return {**job(LLAMA, "bf16", layout, steps=120), "checkpoint": {"every": 20}, **more}

    calm = Run("calm", spec({}), 1, args.device).finish().bits()
    for name, layout, more in (("pp2", {"pipeline": 2}, {}), ("tp2", {"tensor": 2}, {}),
                               ("dp2 with a peer replica", {"data": 2, "zero": 1}, {"recovery": {"peer_replica": True}})):
        run = Run(f"killed {name}", spec(layout, **more), 2, args.device)
        process, killed = run.start(), 0
        until = time.time() + 120
        while process.poll() is None and time.time() < until:
            time.sleep(0.02)
            workers = children(process.pid)
            if killed < 2 and workers and len(run.rows()) >= 40 * (killed + 1):
                subprocess.run(["kill", "-9", str(workers[-1])])
                killed += 1
        process.kill()
        with open(run.folder + ".log") as log:
            told = re.findall(r"goes on from[^\n]*", log.read())
        expect(killed == 2 and len(calm) == 120 and run.bits() == calm, f"recovery, {name}: {killed} killed; {'; '.join(told)}")


# Model, tokens of a sample, samples of a micro-batch, micro-batches.
BENCHES = {
    "1.1 B": ({"layers": 22, "dim": 2048, "heads": 32, "kv_heads": 4, "ffn": 5632, "vocab": 32000}, 4096, 4, 2),
    "163 M": ({"layers": 30, "dim": 576, "heads": 9, "kv_heads": 3, "ffn": 1536, "vocab": 49152}, 1024, 16, 2),
}


def bench():
    for name, (model, sequence, micro_batch, micro_batches) in BENCHES.items():
        train = {"steps": 8, "sequence": sequence, "micro_batch_size": micro_batch, "global_micro_batches": micro_batches,
                 "gradient_groups": 1, "tensor_shards": 1}
        spec = {**job(model, "bf16", {}, **train), "checkpoint": {"every_minutes": 0}}
        run = Run(f"bench {name}", spec, 1, args.device).finish(240)
        times = [row["step_seconds"] for row in run.rows()[2:]]
        log = "".join(open(path).read() for path in glob.glob(run.folder + "/logs/*.log"))
        peak = re.findall(r"peak_tensor_bytes=(\d+)", log)
        if not times or not peak:
            expect(False, f"bench {name}: exit code {run.code}")
            continue
        ours = statistics.median(times)
        say(f"       {name}: {ours:.4f} s a step, {int(peak[-1]) / 2**30:.1f} GiB of tensors")
        flags = {"layers": model["layers"], "dim": model["dim"], "heads": model["heads"], "kv-heads": model["kv_heads"],
                 "ffn": model["ffn"], "vocab": model["vocab"], "seq": sequence, "micro-batch": micro_batch,
                 "micro-batches": micro_batches}
        words = [word for flag, value in flags.items() for word in (f"--{flag}", str(value))]
        for compiled in ([], ["--compile"]):
            peer = [sys.executable, os.path.join(HERE, "torch_gpu_peer.py"), *words, *compiled]
            try:
                done = subprocess.run(peer, capture_output=True, text=True, timeout=240)
                theirs = json.loads(done.stdout.strip().splitlines()[-1])
                say(f"       {name}, PyTorch {'compiled' if compiled else 'eager'}: {theirs['step_seconds']:.4f} s a step, "
                    f"{theirs['peak_gib']:.1f} GiB; ratio {theirs['step_seconds'] / ours:.2f}")
            except (subprocess.TimeoutExpired, IndexError, ValueError) as error:
                say(f"       {name}, PyTorch {'compiled' if compiled else 'eager'}: {type(error).__name__}")


PARTS = {part.__name__: part for part in (machine, kernels, layouts, forms, recovery, bench)}
unknown = [part for part in args.parts if part not in PARTS]
if unknown:
    sys.exit(f"there is no part {unknown[0]}; parts are {', '.join(PARTS)}")
os.environ["LD_LIBRARY_PATH"] = os.path.join(package("torch"), "lib")
os.environ.setdefault("RUST_LOG", "info")
for part in args.parts or PARTS:
    began = time.time()
    try:
        PARTS[part]()
    except Exception as error:  # The parts after it still tell something.
        expect(False, f"{part}: {type(error).__name__}: {error}")
    say(f"-- {part}: {time.time() - began:.0f} s")
say(f"{failures} failed" if failures else "all hold")
sys.exit(failures > 0)
