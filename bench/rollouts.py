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


def setting(name: str, args) -> tuple:
    """(model, encoded prompts, end ids, banned ids, longest response)."""
    if name == "world":
        folder = str(world.WORLD / "student")
        model = load_model(folder, DTYPE)
        processor = load_processor(folder)
        questions = world.questions()[0][: max(16, args.prompts)]
        asked = [encode(processor, plain_prompt(x.text), x.images) for x in questions]
        return model, asked, end_token_ids(model, processor), banned_token_ids(model, processor), 64
    model = random_model(name, args)
    rng = random.Random(0)
    asked = []
    for _ in range(args.prompts):
        length = rng.randint(args.prompt // 2, args.prompt)
        tokens = [rng.randrange(1, VOCAB) for _ in range(length)]
        asked.append({"input_ids": torch.tensor(tokens)})
    ends = rng.sample(range(1, VOCAB), VOCAB // args.mean_length)
    return model, asked, ends, [], args.length


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
    linear = dict(linear_num_key_heads=8, linear_num_value_heads=8)
    linear |= dict(linear_key_head_dim=64, linear_value_head_dim=64)
    model = Qwen3_5ForCausalLM(Qwen3_5TextConfig(**shape, **linear))
    lighten(model)
    return model


def samplers(name: str, args) -> tuple:
    """(model, prompts, {sampler: seed -> lengths of all responses})."""
    model, asked, ends, banned, limit = setting(name, args)
    model.to(DEVICE, DTYPE).eval()
    config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=limit,
        pad_token_id=0,
        num_return_sequences=args.group,
        eos_token_id=ends,
        suppress_tokens=banned or None,
    )
    batch = collate(asked, device=DEVICE)
    stop = torch.tensor(ends, device=DEVICE)

    def ours(seed: int) -> list[int]:
        seeds = [[seed_of(seed, i, j) for j in range(args.group)] for i in range(len(asked))]
        drawn = generate(model, asked, seeds, Sampling(max_new_tokens=limit), ends, banned)
        return [len(tokens) for group in drawn for tokens in group]

    def theirs(seed: int) -> list[int]:
        torch.manual_seed(seed)
        prompt = batch["input_ids"].shape[1]
        rows = model.generate(**batch, generation_config=config)[:, prompt:]
        before_end = (torch.isin(rows, stop).cumsum(-1) == 0).sum(-1)
        return (before_end + 1).clamp(max=rows.shape[1]).tolist()

    found = {"ours": ours, "generate": theirs}
    if name == "qwen3":
        found["batching"] = continuous_batching(model, asked, config, args.group, limit)
    return model, asked, found


def continuous_batching(model, asked: list, config: GenerationConfig, group: int, limit: int):
    """transformers' own, as a sampler of `samplers`."""
    paged = copy.deepcopy(model)  # it changes its model's attention
    ids = [prompt["input_ids"].tolist() for prompt in asked]
    blocks = group * sum((len(x) + limit) // 256 + 2 for x in ids)
    size = dict(block_size=256, num_blocks=blocks, max_batch_tokens=2048)
    pool = ContinuousBatchingConfig(**size)

    def batching(seed: int) -> list[int]:
        torch.manual_seed(seed)
        outputs = paged.generate_batch(
            ids, config, continuous_batching_config=pool, persistent_manager=True
        )
        return [len(output.generated_tokens) for output in outputs.values()]

    return batching


def compare(name: str, args) -> list[str]:
    """One row of the table."""
    model, asked, found = samplers(name, args)
    speeds: dict[str, list[float]] = {"ours": [], "generate": [], "batching": []}
    shares = []
    costs = costs_of(model)
    prompts = [len(prompt["input_ids"]) for prompt in asked]
    machine = measure(DTYPE.itemsize * costs.parameters)
    with torch.no_grad():
        reading = fastest(lambda: prefill(model, asked, DEVICE), 3)
    for i in range(args.rounds + 1):
        for label in sorted(found, reverse=bool(i % 2)):
            start = clock()
            lengths = found[label](i)
            seconds = clock() - start
            if i:  # 3.: the round before does not count
                speeds[label].append(sum(lengths) / seconds)
            if i and label == "ours":
                least, by_bytes = decoding(costs, prompts, lengths, machine)
                shares.append(least / (seconds - reading))
    lengths = found["ours"](1)
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    mean = statistics.mean(lengths)
    return [
        f"{name}, {millions:.1f}M",
        f"{len(asked)} x {args.group}",
        f"{statistics.mean(prompts):.0f}, {min(lengths)} / {mean:.0f} / {max(lengths)}",
        *(f"{statistics.median(x):.0f}" if x else "-" for x in speeds.values()),
        ratios(speeds["ours"], speeds["generate"]),
        ratios(speeds["ours"], speeds["batching"]),
        f"{machine.seconds(prompts_flops(costs, prompts)) / reading:.2f}",
        spread(shares),
        f"{by_bytes:.0%}",
        f"{machine.bandwidth / 1e9:.1f} GB/s, {machine.rate / 1e9:.0f} GFLOP/s",
    ]


def spread(values: list[float]) -> str:
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{low:.2f} / {middle:.2f} / {high:.2f}"


def ratios(ours: list[float], theirs: list[float]) -> str:
    """Of each round."""
    return spread([a / b for a, b in zip(ours, theirs)]) if theirs else "-"


def compare_pool(name: str, args) -> list[str]:
    """Six prompts' worth of batches, one after another and as one pool of the size of a batch."""
    longer = {"prompts": 6 * POOL // args.group, "length": 4 * args.length}
    args = argparse.Namespace(**vars(args) | longer)
    model, asked, ends, banned, limit = setting(name, args)
    asked = asked[: args.prompts]
    model.to(DEVICE, DTYPE).eval()
    sampling = Sampling(max_new_tokens=limit)
    steps = []

    def note(module, given, options) -> None:
        steps.append(options["input_ids"].shape[1] == 1)  # not a prefill

    count = model.register_forward_pre_hook(note, with_kwargs=True)

    def pool(seeds: list) -> list:
        return generate(model, asked, seeds, sampling, ends, banned, rows=POOL)

    def batches(seeds: list) -> list:
        size = POOL // args.group
        drawn = []
        for i in range(0, len(asked), size):
            part = slice(i, i + size)
            drawn += generate(model, asked[part], seeds[part], sampling, ends, banned)
        return drawn

    taken: dict[str, list[int]] = {"pool": [], "batches": []}
    seconds: dict[str, list[float]] = {"pool": [], "batches": []}
    for i in range(args.rounds):
        seeds = [[seed_of(i, j, k) for k in range(args.group)] for j in range(len(asked))]
        drawn = {}
        for label, run in (("pool", pool), ("batches", batches)):
            steps.clear()
            start = clock()
            drawn[label] = sum(run(seeds), [])
            seconds[label].append(clock() - start)
            taken[label].append(sum(steps))
    count.remove()
    lengths = [len(tokens) for tokens in drawn["pool"]]
    equal = sum(a == b for a, b in zip(drawn["pool"], drawn["batches"]))
    return [
        name,
        f"{len(lengths)}, {statistics.mean(lengths):.0f} / {max(lengths)}",
        f"{equal} of {len(lengths)}",
        f"{statistics.median(taken['pool']):.0f} / {statistics.median(taken['batches']):.0f}",
        f"{statistics.median(seconds['pool']):.1f} / {statistics.median(seconds['batches']):.1f}",
        ratios(seconds["batches"], seconds["pool"]),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    models = ["world", "qwen3_5", "qwen3"]
    parser.add_argument("--models", nargs="*", default=models, help="of 1.; default all")
    parser.add_argument("--pools", nargs="*", default=models[1:], help="of 6.; default both")
    for name, (default, text) in OPTIONS.items():
        parser.add_argument(
            f"--{name}", type=int, default=default, help=f"{text} (default {default})"
        )
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    transformers.logging.disable_progress_bar()
    machine = f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    if CUDA:
        machine = torch.cuda.get_device_name()
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    print(f"{machine}, {DTYPE}, {versions}")
    if args.models:
        print(f"\n| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|")
    for name in args.models:
        print(f"| {' | '.join(compare(name, args))} |", flush=True)
    if args.pools:
        print(f"\n| {' | '.join(POOL_COLUMNS)} |\n{'|---' * len(POOL_COLUMNS)}|")
    for name in args.pools:
        print(f"| {' | '.join(compare_pool(name, args))} |", flush=True)


if __name__ == "__main__":
    main()
