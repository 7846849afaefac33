"""Tokens per second of generate.generate beside transformers' own two samplers, and beside the machine's limit.

    python -m bench.rollouts                                three models, three rounds
    python -m bench.rollouts --models world --rounds 1      quick

1. "world" is the embedded world's student on image questions; its responses end by themselves. "qwen3_5" (three
   layers of linear to one of full attention) and "qwen3" (full attention) are of mid size, with long prompts and random
   weights. Those are near uniform over the vocabulary: vocabulary / mean length end tokens give very unequal lengths.
2. "generate" is model.generate(num_return_sequences=G) on the same batch; "batching" is continuous batching,
   model.generate_batch. It knows neither images nor linear attention, so only "qwen3" has it. Its pool is sized for the
   batch (by default it takes nearly all memory) and its manager is kept from round to round.
3. Same model, prompts, G, longest response and sampling; random streams differ, so speeds are response tokens per
   second: medians; ratios within a round as min / median / max; one round before does not count.
4. Shares of the limit: the least seconds of ours over those it took, for reading the prompts and for all decoding
   steps. The least of a step is the greater of bytes over read bandwidth and FLOPs over matmul rate
   (bench/machine.py), both measured before each model. "bytes": the share of these least seconds in which bytes are
   the limit. The rate is that of large matrices; with 16 rows, a CPU's library reaches a third to a half of it.
5. On one thread of a CPU, seconds are CPU seconds: what else runs on the machine hardly counts.
"""

import argparse
import copy
import logging
import platform
import random
import statistics

import torch
import transformers
from transformers import GenerationConfig, Qwen3_5ForCausalLM, Qwen3_5TextConfig, Qwen3Config, Qwen3ForCausalLM
from transformers.generation import ContinuousBatchingConfig

from bench.machine import CUDA, DEVICE, DTYPE, clock, costs_of, decoding, fastest, measure, prompts_flops
from engine.decode import prefill
from engine.models import banned_token_ids, collate, encode, end_token_ids, load_model, load_processor
from generate import Sampling, generate, seed_of
from prompts import plain_prompt
from world import table as world

VOCAB = 32_768


def setting(name: str, args) -> tuple:
    """(model, encoded prompts, end ids, banned ids, longest response)."""
    if name == "world":
        model, processor = load_model(str(world.WORLD / "student"), DTYPE), load_processor(str(world.WORLD / "student"))
        asked = [encode(processor, plain_prompt(x.text), x.images) for x in world.questions()[0][:16]]
        return model, asked, end_token_ids(model, processor), banned_token_ids(model, processor), 64
    torch.manual_seed(0)
    shape = dict(vocab_size=VOCAB, hidden_size=args.hidden, intermediate_size=3 * args.hidden, num_attention_heads=8,
                 num_hidden_layers=args.layers, num_key_value_heads=2, head_dim=64, tie_word_embeddings=True)
    heads = dict(linear_num_key_heads=8, linear_num_value_heads=8, linear_key_head_dim=64, linear_value_head_dim=64)
    full = name == "qwen3"
    model = Qwen3ForCausalLM(Qwen3Config(**shape)) if full else Qwen3_5ForCausalLM(Qwen3_5TextConfig(**shape, **heads))
    rng = random.Random(0)
    lengths = [rng.randint(args.prompt // 2, args.prompt) for _ in range(args.prompts)]
    asked = [{"input_ids": torch.tensor([rng.randrange(1, VOCAB) for _ in range(n)])} for n in lengths]
    return model, asked, rng.sample(range(1, VOCAB), VOCAB // args.mean_length), [], args.length


def samplers(name: str, args) -> tuple:
    """(model, prompts, {sampler: seed -> lengths of all responses})."""
    model, asked, ends, banned, limit = setting(name, args)
    model.to(DEVICE, DTYPE).eval()
    config = GenerationConfig(do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=limit, pad_token_id=0,
                              num_return_sequences=args.group, eos_token_id=ends, suppress_tokens=banned or None)
    batch, stop = collate(asked, device=DEVICE), torch.tensor(ends, device=DEVICE)

    def ours(seed: int) -> list[int]:
        seeds = [[seed_of(seed, i, j) for j in range(args.group)] for i in range(len(asked))]
        drawn = generate(model, asked, seeds, Sampling(max_new_tokens=limit), ends, banned)
        return [len(tokens) for group in drawn for tokens in group]

    def theirs(seed: int) -> list[int]:
        torch.manual_seed(seed)
        rows = model.generate(**batch, generation_config=config)[:, batch["input_ids"].shape[1] :]
        return ((torch.isin(rows, stop).cumsum(-1) == 0).sum(-1) + 1).clamp(max=rows.shape[1]).tolist()

    found = {"ours": ours, "generate": theirs}
    if name != "qwen3":
        return model, asked, found
    paged, ids = copy.deepcopy(model), [x["input_ids"].tolist() for x in asked]  # it changes its model's attention
    blocks = args.group * sum((len(x) + limit) // 256 + 2 for x in ids)
    pool = ContinuousBatchingConfig(block_size=256, num_blocks=blocks, max_batch_tokens=2048)

    def batching(seed: int) -> list[int]:
        torch.manual_seed(seed)
        outputs = paged.generate_batch(ids, config, continuous_batching_config=pool, persistent_manager=True)
        return [len(output.generated_tokens) for output in outputs.values()]

    return model, asked, {**found, "batching": batching}


def compare(name: str, args) -> list[str]:
    """One row of the table."""
    (model, asked, found), speeds = samplers(name, args), {"ours": [], "generate": [], "batching": []}
    costs, prompts, shares = costs_of(model), [len(x["input_ids"]) for x in asked], []
    machine = measure(DTYPE.itemsize * costs.parameters)
    with torch.no_grad():
        reading = fastest(lambda: prefill(model, asked, DEVICE), 3)
    for i in range(args.rounds + 1):
        for label in sorted(found, reverse=bool(i % 2)):
            start = clock()
            lengths = found[label](i)
            seconds = clock() - start
            if i:
                speeds[label].append(sum(lengths) / seconds)
            if i and label == "ours":
                least, by_bytes = decoding(costs, prompts, lengths, machine)
                shares.append(least / (seconds - reading))
    lengths = found["ours"](1)
    cells = [f"{name}, {sum(p.numel() for p in model.parameters()) / 1e6:.1f}M", f"{len(asked)} x {args.group}"]
    cells += [f"{statistics.mean(prompts):.0f}, {min(lengths)} / {statistics.mean(lengths):.0f} / {max(lengths)}"]
    cells += [f"{statistics.median(values):.0f}" if values else "-" for values in speeds.values()]
    for other in ("generate", "batching"):
        ratios = [a / b for a, b in zip(speeds["ours"], speeds[other])]
        cells += [f"{min(ratios):.2f} / {statistics.median(ratios):.2f} / {max(ratios):.2f}" if ratios else "-"]
    cells += [f"{machine.seconds(prompts_flops(costs, prompts)) / reading:.2f}"]
    cells += [f"{min(shares):.2f} / {statistics.median(shares):.2f} / {max(shares):.2f}", f"{by_bytes:.0%}"]
    return [*cells, f"{machine.bandwidth / 1e9:.1f} GB/s, {machine.rate / 1e9:.0f} GFLOP/s"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["world", "qwen3_5", "qwen3"], help="of 1.; default all")
    for name, default, text in (
        ("rounds", 3, "that count"), ("group", 8, "G, rollouts per prompt"), ("prompts", 2, "of random models"),
        ("prompt", 512, "tokens; the shortest has half"), ("length", 128, "of the longest response"),
        ("mean_length", 48, "of responses if none were cut"), ("hidden", 512, "size"), ("layers", 12, "in all"),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{text} (default {default})")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    transformers.logging.disable_progress_bar()
    machine = torch.cuda.get_device_name() if CUDA else f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    print(f"{machine}, {DTYPE}, torch {torch.__version__}, transformers {transformers.__version__}\n")
    header = "model | prompts x G | prompt, response | ours | generate | batching | ours / generate | ours / batching"
    header += " | share of the limit: prompts | steps | bytes | measured limits"
    print(f"| {header} |\n{'|---' * 12}|")
    for name in args.models:
        print(f"| {' | '.join(compare(name, args))} |", flush=True)


if __name__ == "__main__":
    main()
