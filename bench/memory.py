"""Peak memory of log-probs and JSD at Qwen3.5's vocabulary, and what should fit on which GPU.

    python bench/memory.py                    measured, then computed
    python bench/memory.py --tokens 256       quick

1. Measured: forward and backward of `token_logprobs` and `token_jsd` beside the same maths on full logits, a process
   for each: peak (getrusage; on CUDA the allocator's) minus what was there before: hidden states, heads, .grad. glibc
   has to map large tensors one by one, else it keeps freed ones. A trained head's gradient is held once, in fp32.
2. Computed: from published shapes, for text; parameters with vision tower, without MTP. What a layer saves for its
   backward pass is asked of autograd, in a linear-attention layer without extra kernels.
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
from transformers import Qwen3_5ForCausalLM, Qwen3_5TextConfig
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5DecoderLayer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from engine.logprobs import token_jsd, token_logprobs  # noqa: E402

VOCAB, ROW = 248_320, 4_096 + 12_288  # the longest prompt and the longest response of Table 8
GPUS, CUDA = (24, 48, 80, 141), torch.cuda.is_available()  # GB
PLACE = {"device": "cuda", "dtype": torch.bfloat16} if CUDA else {"device": "cpu", "dtype": torch.float32}
FIELDS = ("hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads", "num_key_value_heads",
          "linear_num_value_heads", "tie_word_embeddings")  # fmt: skip
SHAPES = {  # the fields, then the parameters of the vision tower
    "0.8B": (1024, 24, 3584, 8, 2, 16, True, 0.101e9), "2B": (2048, 24, 6144, 8, 2, 16, True, 0.331e9),
    "4B": (2560, 32, 9216, 16, 4, 32, True, 0.334e9), "9B": (4096, 32, 12288, 16, 4, 32, False, 0.456e9),
}  # fmt: skip


def full_logits(hidden, weight, other, teacher_weight=None):  # other: tokens, or the teacher's hidden states
    p = (hidden @ weight.T).float().log_softmax(-1)
    if teacher_weight is None:
        return p.gather(-1, other.unsqueeze(-1))
    q = (other @ teacher_weight.T).float().log_softmax(-1)
    m = torch.logaddexp(p, q) - math.log(2)
    return 0.5 * (p.exp() * (p - m) + q.exp() * (q - m)).sum(-1)


def side(what: str, chunk: str, head: str, args) -> float:
    """One measurement, in its own process: GiB on top of what was there before."""
    student, teacher = (torch.randn(VOCAB, args.hidden, **PLACE).mul_(args.hidden**-0.5) for _ in "ab")
    hidden, target = (torch.randn(args.tokens, args.hidden, **PLACE) for _ in "ab")
    if head == "trained":
        student.requires_grad_().grad = torch.ones_like(student)
    ours, rest = (token_jsd, (target, teacher)) if what == "jsd" else (token_logprobs, (target[:, 0].abs().long(),))
    inputs = (hidden.requires_grad_(), student, *rest)
    before = torch.cuda.memory_allocated() if CUDA else psutil.Process().memory_info().rss
    (full_logits(*inputs) if chunk == "full" else ours(*inputs, chunk=int(chunk))[0]).sum().backward()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return ((torch.cuda.max_memory_allocated() if CUDA else peak) - before) / 2**30


def saved_per_token(config: Qwen3_5TextConfig, tokens: int = 512) -> float:
    """Bytes that autograd saves in one linear-attention layer in bf16, parameters aside: asked on the meta device."""
    found = []  # holds what is saved, so that no storage's id is used twice
    with torch.device("meta"), torch.autograd.graph.saved_tensors_hooks(lambda x: found.append(x) or x, lambda x: x):
        hidden = torch.randn(1, tokens, config.hidden_size, dtype=torch.bfloat16, requires_grad=True)
        Qwen3_5DecoderLayer(config, 0).to(torch.bfloat16)(hidden, position_embeddings=None)
    found = [x for x in found if not isinstance(x if x._base is None else x._base, torch.nn.Parameter)]
    return sum({x.untyped_storage()._cdata: x.untyped_storage().nbytes() for x in found}.values()) / tokens


def compute() -> None:
    chunk = token_logprobs.__defaults__[-1]
    print(f"""
Computed, not measured: the greatest `--micro_tokens` / `--rollout_rows` (rows of {ROW:,} tokens) in 90% of each GPU, in
bf16 with fp32 weights and --gradient_checkpointing; "no": one row of {ROW:,} tokens is too much. P parameters, over n
GPUs (FSDP2); m bytes of moments, a bytes of an activation (4; 2 under FSDP2); L layers, hidden H, V = {VOCAB:,}, s
saved per token and layer:

- update: P (8 + m) / n + casts + tokens (L H a + 2s) + 4 * 4 V * chunk {chunk} + (4 + 2) V H (head: gradient, cast)
- rollouts: P (4 + m) / n + 2 P (whole, in bf16) + rows (tokens * KV + state + 24 V to sample)
- casts: 2 P on one GPU; under FSDP2 of embeddings and head, and 10 P / L for the layers under way

| student | GPUs | moments | s | KV per token | state per row | {" | ".join(f"{gpu} GB" for gpu in GPUS)} |
{"|---" * (6 + len(GPUS))}|""")
    for size, shape in SHAPES.items():
        c = Qwen3_5TextConfig(**dict(zip(FIELDS, shape)))
        with torch.device("meta"):
            parameters = sum(p.numel() for p in Qwen3_5ForCausalLM(c).parameters()) + shape[-1]
        saved, linear, layers = saved_per_token(c), c.layer_types.count("linear_attention"), c.num_hidden_layers
        cache = 2 * 2 * c.num_key_value_heads * c.head_dim * (layers - linear)
        state = 4 * linear * c.linear_num_value_heads * c.linear_key_head_dim * c.linear_value_head_dim
        head, outer = VOCAB * (16 * chunk + 6 * c.hidden_size), VOCAB * c.hidden_size * (1 + (not shape[-2]))
        for n, m in ((1, 8), (1, 4), (8, 8)):
            casts = 2 * parameters if n == 1 else 2 * outer + 10 * (parameters - outer) / layers
            cells = [size, n, "bf16" if m == 4 else "fp32", *(f"{x / 1e3:,.0f} kB" for x in (saved, cache, state))]
            for free in (0.9e9 * gpu for gpu in GPUS):
                update = free - parameters * (8 + m) / n - casts - head
                tokens = update / (layers * c.hidden_size * (4 if n == 1 else 2) + 2 * saved)
                rows = (free - parameters * ((4 + m) / n + 2)) / (ROW * cache + state + 24 * VOCAB)
                fits = tokens >= ROW and rows >= 1
                cells.append(f"{int(tokens / 1024)}k / {int(rows)}" if fits else "no")
            print(f"| {' | '.join(map(str, cells))} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2048, help="default 2048")
    parser.add_argument("--hidden", type=int, default=1024, help="default 1024")
    parser.add_argument("--chunks", nargs="+", default=["256", "128"], help="tokens that the head sees at a time")
    parser.add_argument("--side", nargs=3, help=argparse.SUPPRESS)  # a measurement's own process
    args = parser.parse_args()
    if args.side:
        return print(side(*args.side, args))
    print(f"Measured: {args.tokens} tokens, hidden {args.hidden}, {PLACE}, torch {torch.__version__}; GiB (share)\n")
    print(f"| | head | full logits | chunk {' | chunk '.join(args.chunks)} |\n{'|---' * (3 + len(args.chunks))}|")
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(2**20)
    for what, head in (("logprobs", "trained"), ("logprobs", "frozen"), ("jsd", "trained")):
        command = [sys.executable, *sys.argv, "--side", what]
        found = [float(subprocess.check_output([*command, chunk, head])) for chunk in ("full", *args.chunks)]
        print(f"| token_{what} | {head} | {' | '.join(f'{x:.2f} ({x / found[0]:.3f})' for x in found)} |", flush=True)
    compute()


if __name__ == "__main__":
    main()
