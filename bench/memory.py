"""Peak memory of log-probs and JSD at Qwen3.5's vocabulary, what should fit on which GPU, how long
runs should take.

    python -m bench.memory                    measured, then computed
    python -m bench.memory --tokens 256       quick
    python -m bench.memory --computed         nothing is measured

1. Measured: forward and backward of `token_logprobs` and `token_jsd` beside the same maths on full
   logits, a process for each: peak (on CUDA the allocator's) minus what was there
   before: hidden states, heads, .grad. glibc has to map large tensors one by one, else it keeps
   freed ones. A trained head's gradient is held once, in fp32.
2. Computed: bench/shapes.py (what fits) and bench/hours.py (hours; its options are there).
"""

import argparse
import math
import os
import resource
import subprocess
import sys
from pathlib import Path

import psutil
import torch

from bench import hours
from bench.shapes import CHUNK, ROW, STUDENTS, TEACHERS, VOCAB, fits, model_of
from engine.decode import PREFILL_TOKENS
from engine.logprobs import token_jsd, token_logprobs

GPUS, CUDA = (24, 48, 80, 141), torch.cuda.is_available()  # GB
PLACE = (
    {"device": "cuda", "dtype": torch.bfloat16}
    if CUDA
    else {"device": "cpu", "dtype": torch.float32}
)


def full_logits(hidden, weight, other, teacher_weight=None):
    """The plain mathematics. other: tokens, or the teacher's hidden states."""
    p = (hidden @ weight.T).float().log_softmax(-1)
    if teacher_weight is None:
        return p.gather(-1, other.unsqueeze(-1))
    q = (other @ teacher_weight.T).float().log_softmax(-1)
    m = torch.logaddexp(p, q) - math.log(2)
    return 0.5 * (p.exp() * (p - m) + q.exp() * (q - m)).sum(-1)


def side(what: str, chunk: str, head: str, args) -> float:
    """One measurement, in its own process: GiB on top of what was there before."""
    student = torch.randn(VOCAB, args.hidden, **PLACE).mul_(args.hidden**-0.5)
    teacher = torch.randn(VOCAB, args.hidden, **PLACE).mul_(args.hidden**-0.5)
    hidden = torch.randn(args.tokens, args.hidden, **PLACE)
    target = torch.randn(args.tokens, args.hidden, **PLACE)
    if head == "trained":
        student.requires_grad_().grad = torch.ones_like(student)
    inputs = [hidden.requires_grad_(), student]
    if what == "jsd":
        ours = token_jsd
        inputs += [target, teacher]
    else:
        ours = token_logprobs
        inputs += [target[:, 0].abs().long()]
    before = torch.cuda.memory_allocated() if CUDA else psutil.Process().memory_info().rss
    if chunk == "full":
        values = full_logits(*inputs)
    else:
        values, _ = ours(*inputs, chunk=int(chunk))
    values.sum().backward()
    peak = torch.cuda.max_memory_allocated() if CUDA else peak_memory()
    return (peak - before) / 2**30


def peak_memory() -> int:
    """Bytes of this process, at most so far. On Linux getrusage counts what its parent held."""
    status = Path("/proc/self/status")
    if status.exists():
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        kilobytes, _ = fields["VmHWM"].split()
        return int(kilobytes) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def print_measured(args) -> None:
    what = f"{args.tokens} tokens, hidden {args.hidden}, {PLACE}, torch {torch.__version__}"
    print(f"Measured: {what}; GiB (share)\n")
    columns = ["", "head", "full logits", *(f"chunk {chunk}" for chunk in args.chunks)]
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(2**20)
    for what, head in (("logprobs", "trained"), ("logprobs", "frozen"), ("jsd", "trained")):
        command = [sys.executable, "-m", "bench.memory", *sys.argv[1:], "--side", what]
        found = []
        for chunk in ("full", *args.chunks):
            found.append(float(subprocess.check_output([*command, chunk, head])))
        cells = [f"{used:.2f} ({used / found[0]:.3f})" for used in found]
        print(f"| token_{what} | {head} | {' | '.join(cells)} |", flush=True)


FITS = f"""
Fits, computed: the greatest `--micro_tokens` / `--rollout_rows` (rows of {ROW:,} tokens) in 90% of
each GPU, in bf16 with fp32 weights; "no": one row of {ROW:,} tokens is too much. In brackets
--micro_tokens with --no_gradient_checkpointing. P parameters, over n GPUs (FSDP2); a bytes of an
activation (4; 2 under FSDP2); L layers, hidden H, V = {VOCAB:,}, s saved per token and layer:

- update: 16 P / n + casts + tokens (L H a + 2s) + 4 * 4 V * chunk {CHUNK} + (4 + 2) V H (head:
  gradient, cast); without checkpoints tokens L s in place of tokens (L H a + 2s)
- rollouts: 12 P / n + 2 P (whole, in bf16) + rows (tokens * KV + state + 24 V to sample)
- casts: 2 P on one GPU; under FSDP2 of embeddings and head, and 10 P / L for the layers under way
- a local teacher: its weights, always; its rows and {PREFILL_TOKENS:,} tokens of a prefill, at
  another time than the student's. Where its rows are fewer, they are shown; train.py finds both by
  itself from a greater --rollout_rows
"""


def print_fits() -> None:
    columns = ["student", "GPUs", "teacher", "s", "KV per token", "state per row"]
    columns += [f"{gpu} GB" for gpu in GPUS]
    print(f"{FITS}\n| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    teacher = model_of("27B")
    for size in STUDENTS:
        student = model_of(size)
        parts = (student.saved, 2 * student.costs.keys, 4 * student.costs.state)
        shape = [f"{part / 1e3:,.0f} kB" for part in parts]
        for n in (1, 8):
            for name, teacher_bytes in TEACHERS.items():
                given = (student, n, teacher, teacher_bytes)
                cells = [cell(*given, 1e9 * gpu) for gpu in GPUS]
                print(f"| {' | '.join([size, str(n), name, *shape, *cells])} |")


def cell(*given) -> str:
    """What fits on one GPU."""
    found = fits(*given)
    if not found:
        return "no"
    tokens, *rows = found
    without = fits(*given, checkpoints=False, longest=1)
    return f"{tokens // 1024}k ({without[0] // 1024}k) / {min(rows)}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=2048, help="default 2048")
    parser.add_argument("--hidden", type=int, default=1024, help="default 1024")
    parser.add_argument(
        "--chunks", nargs="+", default=["256", "128"], help="tokens that the head sees at a time"
    )
    parser.add_argument("--computed", action="store_true", help="leave out what is measured")
    parser.add_argument("--side", nargs=3, help=argparse.SUPPRESS)  # a measurement's own process
    args = parser.parse_args()
    if args.side:
        return print(side(*args.side, args))
    if not args.computed:
        print_measured(args)
    print_fits()
    print()
    hours.main([])


if __name__ == "__main__":
    main()
