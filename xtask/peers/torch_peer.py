"""The yardstick of `cargo xtask bench`: the same model and training step, written in plain PyTorch.

One process, or two under DistributedDataParallel, the 1F1B pipeline schedule, or tensor parallelism, over
Gloo on loopback, the cores shared evenly. The model is a LLaMA-style decoder with an untied head, on
random tokens; the optimizer is fused AdamW. The last line on stdout is one JSON object:

    tokens_per_second   from the median time of the steps after the warm-up, of the slowest process
    first_loss, last_loss
    peak_rss_mib        the peak resident memory of each process, by rank
"""
import argparse
import contextlib
import json
import os
import resource
import socket
import statistics
import time

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

MODES = {"single": 1, "dp": 2, "pp": 2, "tp": 2}
LEARNING_RATE = 3e-4
ROPE_THETA = 10_000.0
NORM_EPS = 1e-5


class Attention(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.head = shape.dim // shape.heads
        self.query = nn.Linear(shape.dim, shape.heads * self.head, bias=False)
        self.key = nn.Linear(shape.dim, shape.kv_heads * self.head, bias=False)
        self.value = nn.Linear(shape.dim, shape.kv_heads * self.head, bias=False)
        self.output = nn.Linear(shape.heads * self.head, shape.dim, bias=False)

    def split(self, x):
        # The number of heads is left open: under tensor parallelism a process has half of them.
        return x.unflatten(-1, (-1, self.head)).transpose(1, 2)

    def forward(self, x, cos, sin):
        q, k, v = self.split(self.query(x)), self.split(self.key(x)), self.split(self.value(x))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        grouped = q.size(1) != k.size(1)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
        return self.output(mixed.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.gate = nn.Linear(shape.dim, shape.ffn, bias=False)
        self.up = nn.Linear(shape.dim, shape.ffn, bias=False)
        self.down = nn.Linear(shape.ffn, shape.dim, bias=False)

    def forward(self, x):
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Layer(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.attention_norm = nn.RMSNorm(shape.dim, NORM_EPS)
        self.attention = Attention(shape)
        self.feed_forward_norm = nn.RMSNorm(shape.dim, NORM_EPS)
        self.feed_forward = FeedForward(shape)
        half = torch.arange(0, shape.dim // shape.heads, 2) / (shape.dim // shape.heads)
        angles = torch.outer(torch.arange(shape.seq), ROPE_THETA**-half)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, x):
        x = x + self.attention(self.attention_norm(x), self.cos, self.sin)
        return x + self.feed_forward(self.feed_forward_norm(x))


def rotate(x, cos, sin):
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class Decoder(nn.Module):
    """The whole model, or one stage of it."""

    def __init__(self, shape, layers, first=True, last=True):
        super().__init__()
        self.recompute = shape.checkpoint
        self.embedding = nn.Embedding(shape.vocab, shape.dim) if first else nn.Identity()
        self.layers = nn.ModuleList(Layer(shape) for _ in range(layers))
        self.norm = nn.RMSNorm(shape.dim, NORM_EPS) if last else nn.Identity()
        self.head = nn.Linear(shape.dim, shape.vocab, bias=False) if last else nn.Identity()

    def forward(self, x):
        x = self.embedding(x)
        for layer in self.layers:
            x = checkpoint(layer, x, use_reentrant=False) if self.recompute else layer(x)
        return self.head(self.norm(x))


def cross_entropy(logits, targets):
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def micro_batches(shape, step, rank=0, ranks=1):
    """This rank's inputs and targets of a step: one tensor each, micro-batch after micro-batch."""
    generator = torch.Generator().manual_seed(1_000 + step)
    samples = shape.micro_batch * shape.micro_batches
    tokens = torch.randint(shape.vocab, (samples, shape.seq + 1), generator=generator)
    mine = tokens.tensor_split(ranks)[rank]
    return mine[:, :-1].contiguous(), mine[:, 1:].contiguous()


def accumulate(shape, model, step, rank, ranks, quiet):
    """Forward and backward of all micro-batches of this rank; the mean loss."""
    inputs, targets = micro_batches(shape, step, rank, ranks)
    count = shape.micro_batches // ranks
    total = 0.0
    for index, (x, y) in enumerate(zip(inputs.split(shape.micro_batch), targets.split(shape.micro_batch))):
        # Gradients are reduced with the last backward only.
        with quiet() if index + 1 < count else contextlib.nullcontext():
            with torch.autocast("cpu", torch.bfloat16, enabled=shape.bf16):
                loss = cross_entropy(model(x), y) / count
            loss.backward()
        total += loss.item()
    return total


def single(shape, rank):
    model = Decoder(shape, shape.layers)
    return model, lambda step: accumulate(shape, model, step, 0, 1, contextlib.nullcontext)


def data_parallel(shape, rank):
    model = nn.parallel.DistributedDataParallel(Decoder(shape, shape.layers))
    return model, lambda step: accumulate(shape, model, step, rank, 2, model.no_sync)


def tensor_parallel(shape, rank):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    model = Decoder(shape, shape.layers)
    mesh = init_device_mesh("cpu", (2,))
    columns = ["attention.query", "attention.key", "attention.value", "feed_forward.gate", "feed_forward.up"]
    rows = ["attention.output", "feed_forward.down"]
    plan = {name: ColwiseParallel() for name in columns} | {name: RowwiseParallel() for name in rows}
    for layer in model.layers:
        parallelize_module(layer, mesh, plan)
    parallelize_module(model, mesh, {"head": ColwiseParallel(output_layouts=Replicate())})
    return model, lambda step: accumulate(shape, model, step, 0, 1, contextlib.nullcontext)


def pipeline_parallel(shape, rank):
    from torch.distributed.pipelining import PipelineStage, Schedule1F1B

    model = Decoder(shape, shape.layers // 2, first=rank == 0, last=rank == 1)
    stage = PipelineStage(model, rank, 2, torch.device("cpu"))
    schedule = Schedule1F1B(stage, shape.micro_batches, loss_fn=cross_entropy)

    def step_of(step):
        inputs, targets = micro_batches(shape, step)
        if rank == 0:
            schedule.step(inputs)
            return float("nan")
        losses = []
        schedule.step(target=targets, losses=losses)
        return torch.stack(losses).mean().item()

    return model, step_of


BUILD = {"single": single, "dp": data_parallel, "pp": pipeline_parallel, "tp": tensor_parallel}


def optimizers(shape, model):
    """Fused AdamW; it takes no mix of sharded and whole parameters, so each kind has its own."""
    if shape.zero:
        from torch.distributed.optim import ZeroRedundancyOptimizer

        return [ZeroRedundancyOptimizer(model.parameters(), torch.optim.AdamW, lr=LEARNING_RATE, fused=True)]
    sharded = [p for p in model.parameters() if hasattr(p, "placements")]
    whole = [p for p in model.parameters() if not hasattr(p, "placements")]
    return [torch.optim.AdamW(group, lr=LEARNING_RATE, fused=True) for group in (sharded, whole) if group]


def train(rank, shape, port, results):
    ranks = MODES[shape.mode]
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // ranks))
    if ranks > 1:
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=ranks)
    barrier = dist.barrier if ranks > 1 else lambda: None
    torch.manual_seed(0)
    model, step_of = BUILD[shape.mode](shape, rank)
    updates = optimizers(shape, model)
    seconds, losses = [], []
    for step in range(shape.warm_up + shape.steps):
        barrier()
        start = time.perf_counter()
        for update in updates:
            update.zero_grad(set_to_none=True)
        losses.append(step_of(step))
        for update in updates:
            update.step()
        barrier()
        seconds.append(time.perf_counter() - start)
    tokens = shape.micro_batch * shape.micro_batches * shape.seq
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    speed = tokens / statistics.median(seconds[shape.warm_up :])
    results.put((rank, speed, losses[0], losses[-1], round(peak_kib / 1024)))
    barrier()
    if ranks > 1:
        dist.destroy_process_group()


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mode", choices=MODES, default="single")
    sizes = {"layers": 8, "dim": 512, "heads": 8, "kv-heads": 8, "ffn": 1408, "vocab": 8192, "seq": 256}
    steps = {"micro-batch": 2, "micro-batches": 8, "steps": 8, "warm-up": 2}
    for name, default in (sizes | steps).items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--checkpoint", action="store_true", help="compute layers again in the backward pass")
    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16 by autocast, one process or DDP")
    parser.add_argument("--zero", action="store_true", help="shard the optimizer's state over data ranks")
    return parser.parse_args()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def main():
    shape = arguments()
    results = torch.multiprocessing.get_context("spawn").SimpleQueue()
    ranks = MODES[shape.mode]
    torch.multiprocessing.spawn(train, args=(shape, free_port(), results), nprocs=ranks)
    rows = sorted(results.get() for _ in range(ranks))
    _, _, first_loss, last_loss, _ = rows[-1]
    report = {
        "mode": shape.mode,
        "tokens_per_second": round(min(speed for _, speed, *_ in rows), 1),
        "first_loss": round(first_loss, 5),
        "last_loss": round(last_loss, 5),
        "peak_rss_mib": [peak for *_, peak in rows],
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
