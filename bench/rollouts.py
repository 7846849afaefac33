"""Tokens per second of generate.generate beside transformers' own two samplers, and beside the
machine's limit.

    python -m bench.rollouts                                three models, three rounds
    python -m bench.rollouts --models world --rounds 1      quick

1. "world" is the embedded world's student on image questions; its responses end by themselves.
   "qwen3_5" (three layers of linear to one of full attention) and "qwen3" (full attention) are of
   mid size, with long prompts and random weights. Those are near uniform over the vocabulary:
   vocabulary / mean length end tokens give very unequal lengths.
2. "generate" is model.generate(num_return_sequences=G) on the same batch; "batching" is continuous
   batching, model.generate_batch. It knows neither images nor linear attention, so only "qwen3" has
   it. Its pool is sized for the batch (by default it takes nearly all memory) and its manager is
   kept from round to round.
3. Same model, prompts, G, longest response and sampling; random streams differ, so speeds are
   response tokens per second: medians; ratios within a round as min / median / max; one round
   before does not count.
4. Shares of the limit: the least seconds of ours over those it took, for reading the prompts and
   for all decoding steps. The least of a step is the greater of bytes over read bandwidth and FLOPs
   over matmul rate (bench/machine.py), both measured before each model. "bytes": the share of these
   least seconds in which bytes are the limit. The rate is that of large matrices; with 16 rows, a
   CPU's library reaches a third to a half of it.
5. On one thread of a CPU, seconds are CPU seconds: what else runs on the machine hardly counts.
6. Pools: 192 rollouts of very unequal lengths, 32 at a time, as a pool that is refilled and as six
   batches one after another. The tokens are compared too: rounding may flip one in long responses.
"""

import argparse
import copy
import logging
import platform
import random
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import transformers
from transformers import (
    GenerationConfig,
    Qwen3_5ForCausalLM,
    Qwen3_5TextConfig,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.generation import ContinuousBatchingConfig

from bench.machine import (
    CUDA,
    DEVICE,
    DTYPE,
    clock,
    costs_of,
    decoding,
    fastest,
    measure,
    prompts_flops,
    spread,
)
from engine.decode import prefill
from engine.linear import lighten
from engine.models import (
    banned_token_ids,
    collate,
    encode,
    end_token_ids,
    load_model,
    load_processor,
)
from generate import Sampling, generate, seed_of
from prompts import plain_prompt
from world import table as world

MODELS = ("world", "qwen3_5", "qwen3")
SAMPLERS = ("ours", "generate", "batching")
VOCAB = 32_768
POOL = 32  # rows
COLUMNS = (
    "model",
    "prompts x G",
    "prompt, response",
    "ours",
    "generate",
    "batching",
    "ours / generate",
    "ours / batching",
    "share of the limit: prompts",
    "steps",
    "bytes",
    "measured limits",
)
POOL_COLUMNS = (
    "model",
    "rollouts, mean / longest",
    "equal",
    "steps: pool / batches",
    "seconds",
    "batches / pool",
)
OPTIONS = {
    "rounds": (3, "that count"),
    "group": (8, "G, rollouts per prompt"),
    "prompts": (2, "of random models"),
    "prompt": (512, "tokens; the shortest has half"),
    "length": (128, "of the longest response"),
    "mean_length": (48, "of responses if none were cut"),
    "hidden": (512, "size"),
    "layers": (12, "in all"),
}


class Setting(NamedTuple):
    """What is sampled from."""

    model: torch.nn.Module
    asked: list  # encoded prompts
    end_ids: list[int]
    banned_ids: list[int]
    limit: int  # longest response


def setting(name: str, args) -> Setting:
    if name == "world":
        return world_setting(args)
    model = random_model(name, args)
    rng = random.Random(0)
    asked = []
    for _ in range(args.prompts):
        length = rng.randint(args.prompt // 2, args.prompt)
        tokens = [rng.randrange(1, VOCAB) for _ in range(length)]
        asked.append({"input_ids": torch.tensor(tokens)})
    ends = rng.sample(range(1, VOCAB), VOCAB // args.mean_length)
    return Setting(model, asked, ends, [], args.length)


def world_setting(args) -> Setting:
    folder = str(world.WORLD / "student")
    model = load_model(folder, DTYPE)
    processor = load_processor(folder)
    questions, _ = world.questions()
    asked = []
    for question in questions[: max(16, args.prompts)]:
        prompt = plain_prompt(question.text)
        asked.append(encode(processor, prompt, question.images))
    ends = end_token_ids(model, processor)
    banned = banned_token_ids(model, processor)
    return Setting(model, asked, ends, banned, 64)


def random_model(name: str, args):
    torch.manual_seed(0)
    shape = dict(
        vocab_size=VOCAB,
        hidden_size=args.hidden,
        intermediate_size=3 * args.hidden,
        num_attention_heads=8,
        num_hidden_layers=args.layers,
        num_key_value_heads=2,
        head_dim=64,
        tie_word_embeddings=True,
    )
    if name == "qwen3":
        return Qwen3ForCausalLM(Qwen3Config(**shape))
    linear = dict(
        linear_num_key_heads=8,
        linear_num_value_heads=8,
        linear_key_head_dim=64,
        linear_value_head_dim=64,
    )
    model = Qwen3_5ForCausalLM(Qwen3_5TextConfig(**shape, **linear))
    lighten(model)
    return model


def seeds_of(seed: int, prompts: int, group: int) -> list[list[int]]:
    """A seed for each rollout of each prompt."""
    return [[seed_of(seed, i, j) for j in range(group)] for i in range(prompts)]


def samplers(name: str, given: Setting, group: int) -> dict[str, Callable]:
    """{sampler: seed -> lengths of all responses}."""
    config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=given.limit,
        pad_token_id=0,
        num_return_sequences=group,
        eos_token_id=given.end_ids,
        suppress_tokens=given.banned_ids or None,
    )
    batch = collate(given.asked, device=DEVICE)
    stop = torch.tensor(given.end_ids, device=DEVICE)
    sampling = Sampling(max_new_tokens=given.limit)

    def ours(seed: int) -> list[int]:
        seeds = seeds_of(seed, len(given.asked), group)
        drawn = generate(given.model, given.asked, seeds, sampling, given.end_ids, given.banned_ids)
        return [len(tokens) for row in drawn for tokens in row]

    def theirs(seed: int) -> list[int]:
        torch.manual_seed(seed)
        prompt = batch["input_ids"].shape[1]
        rows = given.model.generate(**batch, generation_config=config)[:, prompt:]
        before_end = (torch.isin(rows, stop).cumsum(-1) == 0).sum(-1)
        return (before_end + 1).clamp(max=rows.shape[1]).tolist()

    found = {"ours": ours, "generate": theirs}
    if name == "qwen3":
        found["batching"] = continuous_batching(given, config, group)
    return found


def continuous_batching(given: Setting, config: GenerationConfig, group: int) -> Callable:
    """transformers' own, as a sampler of `samplers`."""
    # It changes its model's attention.
    paged = copy.deepcopy(given.model)
    ids = [prompt["input_ids"].tolist() for prompt in given.asked]
    blocks = group * sum((len(tokens) + given.limit) // 256 + 2 for tokens in ids)
    pool = ContinuousBatchingConfig(
        block_size=256,
        num_blocks=blocks,
        max_batch_tokens=2048,
    )

    def batching(seed: int) -> list[int]:
        torch.manual_seed(seed)
        outputs = paged.generate_batch(
            ids, config, continuous_batching_config=pool, persistent_manager=True
        )
        return [len(output.generated_tokens) for output in outputs.values()]

    return batching


Timed = tuple[list[int], float]  # (lengths of all responses, seconds)


def timed(found: dict[str, Callable], rounds: int) -> dict[str, list[Timed]]:
    """Each sampler's rounds that count."""
    measured: dict[str, list[Timed]] = {label: [] for label in SAMPLERS}
    for i in range(rounds + 1):
        for label in sorted(found, reverse=bool(i % 2)):
            start = clock()
            lengths = found[label](i)
            seconds = clock() - start
            # 3.: the round before does not count
            if i:
                measured[label].append((lengths, seconds))
    return measured


def compare(name: str, args) -> list[str]:
    """One row of the table."""
    given = setting(name, args)
    given.model.to(DEVICE, DTYPE).eval()
    found = samplers(name, given, args.group)
    costs = costs_of(given.model)
    prompts = [len(prompt["input_ids"]) for prompt in given.asked]
    machine = measure(DTYPE.itemsize * costs.parameters)
    with torch.no_grad():
        reading = fastest(lambda: prefill(given.model, given.asked, DEVICE), 3)
    measured = timed(found, args.rounds)
    speeds = {}
    for label, rounds in measured.items():
        speeds[label] = [sum(lengths) / seconds for lengths, seconds in rounds]
    shares = []
    for lengths, seconds in measured["ours"]:
        least, by_bytes = decoding(costs, prompts, lengths, machine)
        shares.append(least / (seconds - reading))
    lengths = found["ours"](1)
    millions = sum(parameter.numel() for parameter in given.model.parameters()) / 1e6
    shortest = min(lengths)
    mean = statistics.mean(lengths)
    longest = max(lengths)
    medians = [median_of(values) for values in speeds.values()]
    return [
        f"{name}, {millions:.1f}M",
        f"{len(prompts)} x {args.group}",
        f"{statistics.mean(prompts):.0f}, {shortest} / {mean:.0f} / {longest}",
        *medians,
        ratios(speeds["ours"], speeds["generate"]),
        ratios(speeds["ours"], speeds["batching"]),
        f"{machine.seconds(prompts_flops(costs, prompts)) / reading:.2f}",
        spread(shares),
        f"{by_bytes:.0%}",
        f"{machine.bandwidth / 1e9:.1f} GB/s, {machine.rate / 1e9:.0f} GFLOP/s",
    ]


def median_of(speeds: list[float]) -> str:
    return f"{statistics.median(speeds):.0f}" if speeds else "-"


def ratios(ours: list[float], theirs: list[float]) -> str:
    """Of each round."""
    if not theirs:
        return "-"
    return spread([a / b for a, b in zip(ours, theirs)])


class Drawn(NamedTuple):
    """What one way to draw all rollouts gave and took."""

    rollouts: list[list[int]]  # tokens
    seconds: float
    steps: int  # decoding steps


def in_a_pool(given: Setting, seeds: list) -> list:
    sampling = Sampling(max_new_tokens=given.limit)
    return generate(
        given.model, given.asked, seeds, sampling, given.end_ids, given.banned_ids, rows=POOL
    )


def in_batches(given: Setting, seeds: list) -> list:
    sampling = Sampling(max_new_tokens=given.limit)
    group = len(seeds[0])
    size = POOL // group
    drawn = []
    for i in range(0, len(given.asked), size):
        asked = given.asked[i : i + size]
        drawn += generate(
            given.model, asked, seeds[i : i + size], sampling, given.end_ids, given.banned_ids
        )
    return drawn


@contextmanager
def noted_steps(model) -> Iterator[list[bool]]:
    """A list that gets a value from each forward pass: True from a decoding step."""
    steps = []

    def note(module, given, options) -> None:
        # not a prefill
        steps.append(options["input_ids"].shape[1] == 1)

    count = model.register_forward_pre_hook(note, with_kwargs=True)
    yield steps
    count.remove()


def compare_pool(name: str, args) -> list[str]:
    """Six prompts' worth of batches, one after another and as one pool of the size of a batch."""
    longer = {"prompts": 6 * POOL // args.group, "length": 4 * args.length}
    settings = vars(args) | longer
    args = argparse.Namespace(**settings)
    given = setting(name, args)
    given = given._replace(asked=given.asked[: args.prompts])
    given.model.to(DEVICE, DTYPE).eval()
    pools: list[Drawn] = []
    batches: list[Drawn] = []
    with noted_steps(given.model) as steps:
        for i in range(args.rounds):
            seeds = seeds_of(i, len(given.asked), args.group)
            for found, draw in ((pools, in_a_pool), (batches, in_batches)):
                steps.clear()
                start = clock()
                rollouts = sum(draw(given, seeds), [])
                seconds = clock() - start
                found.append(Drawn(rollouts, seconds, sum(steps)))
    return pool_row(name, pools, batches)


def pool_row(name: str, pools: list[Drawn], batches: list[Drawn]) -> list[str]:
    """One row of the table of pools. The last round's rollouts are compared."""
    rollouts = pools[-1].rollouts
    lengths = [len(tokens) for tokens in rollouts]
    equal = sum(a == b for a, b in zip(rollouts, batches[-1].rollouts))
    pool_steps = [drawn.steps for drawn in pools]
    batch_steps = [drawn.steps for drawn in batches]
    pool_seconds = [drawn.seconds for drawn in pools]
    batch_seconds = [drawn.seconds for drawn in batches]
    return [
        name,
        f"{len(lengths)}, {statistics.mean(lengths):.0f} / {max(lengths)}",
        f"{equal} of {len(lengths)}",
        f"{statistics.median(pool_steps):.0f} / {statistics.median(batch_steps):.0f}",
        f"{statistics.median(pool_seconds):.1f} / {statistics.median(batch_seconds):.1f}",
        ratios(batch_seconds, pool_seconds),
    ]


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="*", default=MODELS, help="of 1.; default all")
    parser.add_argument("--pools", nargs="*", default=MODELS[1:], help="of 6.; default both")
    for name, (default, text) in OPTIONS.items():
        help_text = f"{text} (default {default})"
        parser.add_argument(f"--{name}", type=int, default=default, help=help_text)
    return parser.parse_args()


def print_machine() -> None:
    machine = f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    if CUDA:
        machine = torch.cuda.get_device_name()
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    print(f"{machine}, {DTYPE}, {versions}")


def print_table(columns: tuple[str, ...], names: list[str], row_of: Callable, args) -> None:
    """A row for each model; nothing where there are none."""
    if names:
        print(f"\n| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for name in names:
        cells = row_of(name, args)
        print(f"| {' | '.join(cells)} |", flush=True)


def main() -> None:
    args = options()
    logging.disable(logging.WARNING)
    transformers.logging.disable_progress_bar()
    print_machine()
    print_table(COLUMNS, args.models, compare, args)
    print_table(POOL_COLUMNS, args.pools, compare_pool, args)


if __name__ == "__main__":
    main()
