"""What a model computes and moves, from its shapes, and what the machine at hand can do, measured.

Costs are the least that the mathematics needs: no padding, no recomputation, no vision tower, no optimiser, linear
attention token by token. So a share of 1 is out of reach, and what is missing is padding, small kernels and Python.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

CUDA = torch.cuda.is_available()
DEVICE, DTYPE = ("cuda", torch.bfloat16) if CUDA else ("cpu", torch.float32)


@dataclass(frozen=True)
class Costs:
    """One language model in numbers (not bytes). A product of a weight with one token is 2 FLOPs."""

    layers: int
    body: int  # parameters of the layers, all of which every token is multiplied with
    embedding: int  # of the input embedding, which is looked up: no FLOPs
    head: int  # V * H; tied to the embedding or not
    tied: bool
    keys: int  # keys and values that one token leaves in all layers of full attention
    state: int  # states that one row has in all layers of linear attention, in fp32 whatever the model's type
    attention: int  # FLOPs for one token and one column that it attends to, in all layers of full attention

    @property
    def parameters(self) -> int:
        return self.body + self.embedding + (0 if self.tied else self.head)

    def flops(self, tokens: float, columns: float, predicted: float) -> float:
        """Of a forward pass. columns: how many the tokens attend to, in all. predicted: tokens that reach the head."""
        return tokens * (2 * self.body + 6 * self.state) + columns * self.attention + predicted * 2 * self.head

    def moved(self, rows: float, columns: float, weight_bytes: float, cache_bytes: float) -> float:
        """Bytes of one decoding step: weights once, the rows' keys and values (of `columns` in all), states twice."""
        return weight_bytes * (self.body + self.head) + cache_bytes * self.keys * columns + 2 * 4 * self.state * rows


def costs_of(model) -> Costs:
    """Of a causal LM, or of the text part of a VLM."""
    text = model.config.get_text_config()
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    held = {id(p): p.numel() for name, p in model.named_parameters() if "visual" not in name}
    tied = embedding is head
    body = sum(held.values()) - embedding.numel() - (0 if tied else head.numel())
    linear = list(getattr(text, "layer_types", None) or []).count("linear_attention")
    full = text.num_hidden_layers - linear
    state = 0
    if linear:
        state = linear * text.linear_num_value_heads * text.linear_key_head_dim * text.linear_value_head_dim
    keys = 2 * full * text.num_key_value_heads * text.head_dim
    attention = 4 * full * text.num_attention_heads * text.head_dim  # with keys, and with values
    return Costs(text.num_hidden_layers, body, embedding.numel(), head.numel(), tied, keys, state, attention)


def triangle(first: float, last: float) -> float:
    """Columns that tokens number first + 1 to last attend to, in all: each one to itself and all before."""
    return (last * (last + 1) - first * (first + 1)) / 2


@dataclass(frozen=True)
class Machine:
    bandwidth: float  # bytes read per second
    rate: float  # FLOP/s of a large matrix product

    def seconds(self, flops: float, moved: float = 0.0) -> float:
        """The least time: whichever of the two takes longer."""
        return max(flops / self.rate, moved / self.bandwidth)


def clock() -> float:
    """Seconds. On one thread of a CPU those of this process, so that what else the machine does hardly counts."""
    if CUDA:
        torch.cuda.synchronize()
    return time.process_time() if not CUDA and torch.get_num_threads() == 1 else time.perf_counter()


def fastest(run: Callable[[], object], times: int = 7) -> float:
    """Seconds of the fastest run: what else the machine does must not lower a limit."""
    found = []
    for _ in range(times):
        start = clock()
        run()
        found.append(clock() - start)
    return min(found)


def measure(size: int, side: int = 8192 if CUDA else 1024) -> Machine:
    """Bandwidth and matmul rate of the machine at hand, in its type and threads.

    size: bytes that are read, those of a model's weights: what fits into a cache is read faster. side: of the matrices.
    """
    columns = 1024
    weight = torch.ones(max(1, size // (columns * DTYPE.itemsize)), columns, device=DEVICE, dtype=DTYPE)
    vector = torch.ones(columns, device=DEVICE, dtype=DTYPE)
    a, b = (torch.randn(side, side, device=DEVICE).to(DTYPE) for _ in "ab")
    read, multiplied = fastest(lambda: weight @ vector, 15), fastest(lambda: a @ b)
    return Machine(weight.nbytes / read, 2 * side**3 / multiplied)


def prompts_flops(costs: Costs, prompts: Sequence[int]) -> float:
    """Of reading prompts of these lengths, each once: its rollouts share what was computed."""
    return costs.flops(sum(prompts), sum(triangle(0, tokens) for tokens in prompts), len(prompts))


def decoding(costs: Costs, prompts: Sequence[int], lengths: Sequence[int], machine: Machine) -> tuple[float, float]:
    """(the least seconds of all decoding steps of a batch, share of them in which bytes are the limit).

    prompts: tokens of each prompt. lengths: of all responses, those of the first prompt first. A step decodes one token
    of each row that has not ended; the first token of a response needs none, it comes from reading the prompt.
    """
    group = len(lengths) // len(prompts)
    total = by_bytes = 0.0
    for step in range(1, max(lengths)):
        rows = [i for i, length in enumerate(lengths) if length > step]
        columns = sum(prompts[i // group] + step for i in rows)
        moved = costs.moved(len(rows), columns, DTYPE.itemsize, DTYPE.itemsize)
        seconds = machine.seconds(costs.flops(len(rows), columns, len(rows)), moved)
        total += seconds
        by_bytes += seconds if moved / machine.bandwidth == seconds else 0.0
    return total, by_bytes / total


def update_flops(costs: Costs, prompt: int, response: int, scored: float = 0.0) -> float:
    """Of one row's way through the update: forward and twice that backward. scored: share of rows that are also scored
    under the old policy (all but those of the first of I mini-batches)."""
    forward = costs.flops(prompt + response, triangle(0, prompt + response), response)
    return (3 + scored) * forward
