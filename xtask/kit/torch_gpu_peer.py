"""PyTorch's own training step on a GPU, beside which the kit measures ours: torch_peer.py's model in one process.

Prints a line of JSON: the median seconds of a step after two, the losses of the first and last step, and the most
memory that tensors took. With --compile the model goes through torch.compile.
"""
import argparse
import json
import statistics
import time

import torch
import torch_peer

parser = argparse.ArgumentParser()
for name in ("layers", "dim", "heads", "kv-heads", "ffn", "vocab", "seq", "micro-batch", "micro-batches"):
    parser.add_argument("--" + name, type=int, required=True)
parser.add_argument("--steps", type=int, default=8)
parser.add_argument("--compile", action="store_true")
parser.set_defaults(checkpoint=False)
args = parser.parse_args()

torch.manual_seed(0)
with torch.device("cuda"):
    model = torch_peer.Decoder(args, args.layers)
forward = torch.compile(model) if args.compile else model
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, fused=True)
times, losses = [], []
for step in range(args.steps):
    torch.cuda.synchronize()
    start = time.perf_counter()
    optimizer.zero_grad(set_to_none=True)
    x, y = (tokens.cuda() for tokens in torch_peer.micro_batches(args, step))
    total = 0.0
    for mx, my in zip(x.chunk(args.micro_batches), y.chunk(args.micro_batches)):
        with torch.autocast("cuda", torch.bfloat16):
            loss = torch_peer.cross_entropy(forward(mx), my) / args.micro_batches
        loss.backward()
        total = total + loss.detach()
    torch.nn.utils.get_total_norm([parameter.grad for parameter in model.parameters()])
    optimizer.step()
    losses.append(float(total))
    torch.cuda.synchronize()
    times.append(time.perf_counter() - start)
print(json.dumps({"step_seconds": statistics.median(times[2:]), "first_loss": losses[0], "last_loss": losses[-1],
                  "peak_gib": torch.cuda.max_memory_allocated() / 2**30}))
