"""What a model computes and moves, from its shapes, and what the machine at hand can do, measured.

Costs are the least that the mathematics needs: no padding, no recomputation, no vision tower, no
optimiser, linear attention token by token. So a share of 1 is out of reach, and what is missing is
padding, small kernels and Python.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
DTYPE = torch.bfloat16 if CUDA else torch.float32


@dataclass(frozen=True)
class Costs:
    """One language model in numbers (not bytes).

    A product of a weight with one token is 2 FLOPs.
    """

    layers: int
    body: int  # parameters of the layers, all of which every token is multiplied with
    embedding: int  # of the input embedding, which is looked up: no FLOPs
    head: int  # V * H; tied to the embedding or not
    tied: bool
    keys: int  # keys and values that one token leaves in all layers of full attention
    # States that one row has in all layers of linear attention, in fp32 whatever the model's type.
    state: int
    # FLOPs for one token and one column that it attends to, in all layers of full attention.
    attention: int

    @property
    def parameters(self) -> int:
        own_head = 0 if self.tied else self.head
        return self.body + self.embedding + own_head

    def flops(self, tokens: float, columns: float, predicted: float) -> float:
        """Of a forward pass.

        columns: how many the tokens attend to, in all. predicted: tokens that reach the head.
        """
        layers = tokens * (2 * self.body + 6 * self.state)
        attention = columns * self.attention
        head = predicted * 2 * self.head
        return layers + attention + head

    def moved(self, rows: float, columns: float, weight_bytes: float, cache_bytes: float) -> float:
        """Bytes of one decoding step: weights once, the rows' keys and values (of `columns` in
        all), states twice.
        """
        weights = weight_bytes * (self.body + self.head)
        cache = cache_bytes * self.keys * columns
        states = 2 * 4 * self.state * rows
        return weights + cache + states


def costs_of(model) -> Costs:
    """Of a causal LM, or of the text part of a VLM."""
    text = model.config.get_text_config()
    embedding = model.get_input_embeddings().weight
    head = model.get_output_embeddings().weight
    tied = embedding is head
    outside = embedding.numel()
    if not tied:
        outside += head.numel()
    layer_types = list(getattr(text, "layer_types", None) or [])
    linear = layer_types.count("linear_attention")
    full = text.num_hidden_layers - linear
    state = 0
    if linear:
        state = linear * state_of_a_layer(text)
    return Costs(
        layers=text.num_hidden_layers,
        body=text_parameters(model) - outside,
        embedding=embedding.numel(),
        head=head.numel(),
        tied=tied,
        keys=2 * full * text.num_key_value_heads * text.head_dim,
        state=state,
        # with keys, and with values
        attention=4 * full * text.num_attention_heads * text.head_dim,
    )


def text_parameters(model) -> int:
    """Of the model without its vision tower; those that modules share count once."""
    sizes = {}
    for name, parameter in model.named_parameters():
        if "visual" not in name:
            sizes[id(parameter)] = parameter.numel()
    return sum(sizes.values())


def state_of_a_layer(text) -> int:
    """States that one row has in one layer of linear attention."""
    head = text.linear_key_head_dim * text.linear_value_head_dim
    return text.linear_num_value_heads * head


def triangle(first: float, last: float) -> float:
    """Columns that tokens number first + 1 to last attend to, in all: each one to itself and all
    before.
    """
    return (last * (last + 1) - first * (first + 1)) / 2


@dataclass(frozen=True)
class Machine:
    bandwidth: float  # bytes read per second
    rate: float  # FLOP/s of a large matrix product

    def seconds(self, flops: float, moved: float = 0.0) -> float:
        """The least time: whichever of the two takes longer."""
        return max(flops / self.rate, moved / self.bandwidth)


def clock() -> float:
    """Seconds. On one thread of a CPU those of this process, so that what else the machine does
    hardly counts.
    """
    if CUDA:
        torch.cuda.synchronize()
    elif torch.get_num_threads() == 1:
        return time.process_time()
    return time.perf_counter()


def fastest(run: Callable[[], object], times: int = 7) -> float:
    """Seconds of the fastest run: what else the machine does must not lower a limit."""
    found = []
    for _ in range(times):
        start = clock()
        run()
        found.append(clock() - start)
    return min(found)


def spread(values: Sequence[float]) -> str:
    """Least, median and greatest."""
    low = min(values)
    middle = statistics.median(values)
    high = max(values)
    return f"{low:.2f} / {middle:.2f} / {high:.2f}"


def measure(size: int, side: int = 8192 if CUDA else 1024) -> Machine:
    """Bandwidth and matmul rate of the machine at hand, in its type and threads.

    size: bytes that are read, those of a model's weights: what fits into a cache is read faster.
    side: of the matrices.
    """
    columns = 1024
    rows = max(1, size // (columns * DTYPE.itemsize))
    weight = torch.ones(rows, columns, device=DEVICE, dtype=DTYPE)
    vector = torch.ones(columns, device=DEVICE, dtype=DTYPE)
    a = torch.randn(side, side, device=DEVICE).to(DTYPE)
    b = torch.randn(side, side, device=DEVICE).to(DTYPE)
    read = fastest(lambda: weight @ vector, 15)
    multiplied = fastest(lambda: a @ b)
    return Machine(bandwidth=weight.nbytes / read, rate=2 * side**3 / multiplied)


def prompts_flops(costs: Costs, prompts: Sequence[int]) -> float:
    """Of reading prompts of these lengths, each once: its rollouts share what was computed."""
    columns = sum(triangle(0, tokens) for tokens in prompts)
    return costs.flops(sum(prompts), columns, len(prompts))


def decoding(
    costs: Costs, prompts: Sequence[int], lengths: Sequence[int], machine: Machine
) -> tuple[float, float]:
    """(the least seconds of all decoding steps of a batch, share of them in which bytes are the
    limit).

    prompts: tokens of each prompt. lengths: of all responses, those of the first prompt first. A
    step decodes one token of each row that has not ended; the first token of a response needs none,
    it comes from reading the prompt.
    """
    group = len(lengths) // len(prompts)
    total = 0.0
    by_bytes = 0.0
    for step in range(1, max(lengths)):
        alive = [i for i, length in enumerate(lengths) if length > step]
        rows = len(alive)
        columns = sum(prompts[i // group] + step for i in alive)
        moved = costs.moved(rows, columns, DTYPE.itemsize, DTYPE.itemsize)
        flops = costs.flops(rows, columns, rows)
        seconds = machine.seconds(flops, moved)
        total += seconds
        if moved / machine.bandwidth == seconds:
            by_bytes += seconds
    return total, by_bytes / total


def update_flops(costs: Costs, prompt: int, response: int, scored: float = 0.0) -> float:
    """Of one row's way through the update: forward and twice that backward.

    scored: share of rows that are also scored under the old policy (all but those of the first of I
    mini-batches).
    """
    tokens = prompt + response
    forward = costs.flops(tokens, triangle(0, tokens), response)
    return (3 + scored) * forward
