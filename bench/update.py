"""The update beside TRL's GRPOTrainer: time, peak memory, the same optimiser step; and beside the machine's limit.

    python -m bench.update                                             # pip install trl
    python -m bench.update --rounds 1 --groups 4 --hidden 64           quick

A tiny text-only Qwen3 with random weights, fp32, one process. TRL's settings are in `run_trl`; its rollouts are ours.

1. TRL's clock runs from its scored and padded generation batch to the end of the optimiser's step, ours over all of
   `zppo.update`. Same rows, micro-batch, AdamW and threads. Each measurement is a process of its own: one warm-up step,
   then the median of `--steps`. Peak memory is getrusage's (on CUDA the allocator's) minus the resident set before.
2. On-policy, I = 1: our advantages are TRL's rewards; they sum to zero in each group, so TRL's baseline leaves them as
   they are. A third of the groups has no signal.
3. Off-policy, I = 2: each of our mini-batches is a generation batch of TRL. Mini-batches cut through groups, so our
   advantages, and in the second one our old log-probs, replace TRL's own. SGD's step is so large that all clips work.
4. Gradients are compared as the optimiser gets them, after clipping by norm; weights by how far they moved. AdamW's
   first steps divide by about |gradient|: where a gradient is all rounding, so is that step. SGD is the exact test.
5. Share of the limit: FLOPs of the rows with a signal, forward and backward, without padding, over the matmul rate
   (bench/machine.py, measured in each round) and over our seconds. On one thread of a CPU all seconds are CPU seconds.
"""

import argparse
import json
import random
import resource
import statistics
import string
import subprocess
import sys
import tempfile
from contextlib import redirect_stdout
from importlib.metadata import version
from importlib.util import find_spec

import psutil
import torch
from accelerate import Accelerator
from torch.nn.utils import parameters_to_vector as flat
from torch.nn.utils.rnn import pad_sequence
from transformers import Qwen3Config, Qwen3ForCausalLM, logging

from bench.machine import clock, costs_of, measure, update_flops
from engine.models import Encoder
from engine.questions import Question
from engine.update import Learner, Policy, Row
from world.pretrain import CHAT_TEMPLATE, make_processor
from zppo import Group, Recipe, Rollout, advantages, mini_batches, update

VOCAB, G, KEY = 8192, 8, (0, 0)
TOKENIZER = make_processor().tokenizer
TOKENIZER.chat_template = CHAT_TEMPLATE


def make_model(args) -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    config = Qwen3Config(vocab_size=VOCAB, hidden_size=args.hidden, intermediate_size=3 * args.hidden,
                         num_hidden_layers=args.layers, num_attention_heads=4, num_key_value_heads=2, head_dim=32,
                         tie_word_embeddings=True)  # fmt: skip
    return Qwen3ForCausalLM(config).train()


def encoded(prompt: str) -> list[int]:
    """A prompt in the chat template, as both sides get it."""
    return Encoder(TOKENIZER)(prompt)["input_ids"].tolist()


def make_groups(args, share: float) -> list[Group]:
    """Random groups; the first `share` of them without signal. A letter of a prompt is a token."""
    rng, groups, frame = random.Random(0), [], len(encoded(""))
    for i in range(args.groups):
        letters = rng.randint(args.prompt // 2, args.prompt) - frame
        prompt = "".join(rng.choice(string.ascii_lowercase) for _ in range(letters))
        correct = rng.choice((0, G)) if i < round(share * args.groups) else rng.randint(1, G - 1)
        lengths = [rng.randint(args.response // 8, args.response) for _ in range(G)]
        tokens = [[rng.randrange(2, VOCAB) for _ in range(length - 1)] + [0] for length in lengths]
        rollouts = [Rollout("", row, float(j < correct), None) for j, row in enumerate(tokens)]
        groups.append(Group(Question(str(i), prompt, (), ""), "plain", prompt, rollouts))
    return groups


def make_learner(args, name: str, lr: float) -> Learner:
    accelerator, policy = Accelerator(), Policy(make_model(args))
    policy, optimizer = accelerator.prepare(policy, getattr(torch.optim, name)(policy.parameters(), lr))
    blank = Row("blank", Question("blank", "blank", (), ""), [0], weight=0.0)
    budget = args.micro_batch * (args.prompt + args.response)  # no more than TRL's rows may take
    return Learner(policy, optimizer, accelerator, Encoder(TOKENIZER), blank, budget)


def run_trl(args, name: str, lr: float, batches: list[list[tuple]], on_policy: bool, hook=lambda model: None) -> tuple:
    """(model, seconds per step, resident set before); one per batch of (prompt, tokens, advantage, old log-probs)."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    feed, starts, ends = iter(batches), [], []

    def rollouts(_, trainer) -> dict:  # in our order: TRL's own prompts are placeholders
        trainer.rows = next(feed)
        prompts, tokens, weights, _ = map(list, zip(*trainer.rows))
        ids, nothing = [encoded(prompt) for prompt in prompts], [[0.0] * len(row) for row in tokens]
        return {"prompt_ids": ids, "completion_ids": tokens, "logprobs": nothing, "weight": weights}

    class Fed(GRPOTrainer):
        def _generate_and_score_completions(self, inputs):
            batch = super()._generate_and_score_completions(inputs)
            if not on_policy:
                batch["advantages"] = batch["advantages"].new_tensor([row[2] for row in self.rows])
            if self.rows[0][3] is not None:
                batch["old_per_token_logps"] = pad_sequence([row[3] for row in self.rows], batch_first=True)
            starts.append(clock())
            return batch

    model, rows = make_model(args), len(batches[0])
    optimizer = getattr(torch.optim, name)(model.parameters(), lr)
    optimizer.register_step_pre_hook(lambda *_: hook(model))
    optimizer.register_step_post_hook(lambda *_: ends.append(clock()))
    config = GRPOConfig(
        loss_type="dapo", beta=0.0, epsilon=0.2, epsilon_high=0.28, delta=10.0, scale_rewards="none", temperature=1.0,
        num_generations=G if on_policy else 2, max_completion_length=args.response, max_steps=len(batches),
        per_device_train_batch_size=args.micro_batch, gradient_accumulation_steps=rows // args.micro_batch,
        steps_per_generation=rows // args.micro_batch, max_grad_norm=1.0, lr_scheduler_type="constant", bf16=False,
        gradient_checkpointing=False, save_strategy="no", logging_strategy="no", report_to="none", disable_tqdm=True,
        output_dir=tempfile.mkdtemp())  # fmt: skip
    prompts = Dataset.from_dict({"prompt": ["."] * rows * len(batches)})
    trainer = Fed(model, lambda weight, **_: weight, config, prompts, processing_class=TOKENIZER,
                  optimizers=(optimizer, None), rollout_func=rollouts)  # fmt: skip
    before = psutil.Process().memory_info().rss
    with redirect_stdout(sys.stderr):
        trainer.train()
    return model, [end - start for start, end in zip(starts, ends, strict=True)], before


def rows_of(groups: list[Group]) -> list[tuple]:
    weights = advantages(torch.tensor([[r.reward for r in g.rollouts] for g in groups])).flatten().tolist()
    return [(g.prompt, r.tokens, weights.pop(0), None) for g in groups for r in g.rollouts]


def equality(args, name: str, lr: float, updates: int) -> list[str]:
    """One row of the table of differences."""
    gradients: list[torch.Tensor] = []  # ours, then theirs; of two steps, the second counts
    hook = lambda model: gradients.append(flat(p.grad for p in model.parameters()))  # noqa: E731
    groups, recipe = make_groups(args, 1 / 3 if updates == 1 else 0), Recipe(updates_per_step=updates)
    learner, batches = make_learner(args, name, lr), [rows_of(groups)]
    if updates == 2:
        parts = [rows for rows, _ in mini_batches(groups, recipe, KEY)]
        with torch.no_grad():
            old = [[learner.log_probs([row])[0] if i else None for row in rows] for i, rows in enumerate(parts)]
        batches = [[(r.prompt, r.tokens, r.weight, o) for r, o in zip(*pair)] for pair in zip(parts, old)]
    learner.optimizer.optimizer.register_step_pre_hook(lambda *_: hook(learner.policy.model))
    start, metrics = flat(learner.policy.parameters()).detach(), update(learner, groups, recipe, KEY)
    model = run_trl(args, name, lr, batches, updates == 1, hook)[0]
    moved = [flat(m.parameters()).detach() - start for m in (learner.policy, model)]
    pairs = (gradients[updates - 1], gradients[-1]), moved
    cells = [f"{(a - b).abs().max():.1e}, {(a - b).norm() / b.norm():.1e}" for a, b in pairs]
    return [f"{'on' if updates == 1 else 'off'}-policy", name, *cells, f"{metrics['clip_share']:.3f}"]


def side(name: str, share: float, args) -> list[float]:
    """One measurement, in its own process: median seconds of a step, peak memory in MiB, share of the limit (ours)."""
    groups, recipe, seconds = make_groups(args, share), Recipe(updates_per_step=1), []
    if name == "trl":
        _, seconds, before = run_trl(args, "AdamW", 1e-6, [rows_of(groups)] * (args.steps + 1), on_policy=True)
    else:
        learner, before = make_learner(args, "AdamW", 1e-6), psutil.Process().memory_info().rss
        for _ in range(args.steps + 1):
            start = clock()
            update(learner, groups, recipe, KEY)
            seconds.append(clock() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) - before
    peak, median = (torch.cuda.max_memory_allocated() or peak) / 2**20, statistics.median(seconds[1:])
    if name == "trl":
        return [median, peak]
    costs, active = costs_of(learner.policy.model), mini_batches(groups, recipe, KEY)[0][0]
    flops = sum(update_flops(costs, len(encoded(row.prompt)), len(row.tokens)) for row in active)
    return [median, peak, measure(1).seconds(flops) / median]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default, text in (
        ("groups", 10, "of 8 rollouts"), ("prompt", 96, "tokens; the shortest has half"), ("layers", 4, "in all"),
        ("response", 128, "tokens; the shortest has an eighth"), ("hidden", 256, "size"), ("micro_batch", 4, "rows"),
        ("rounds", 3, "measurements of each side"), ("steps", 2, "timed in a measurement"),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{text} (default {default})")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.0, 0.5, 0.8], help="groups without signal")
    parser.add_argument("--side", nargs=2, help=argparse.SUPPRESS)  # a measurement's own process
    args = parser.parse_args()
    if find_spec("trl") is None:
        raise SystemExit("this compares with TRL: pip install trl")
    logging.set_verbosity_error()
    if args.side:
        return print(side(args.side[0], float(args.side[1]), args))
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "accelerate", "trl"))
    print(f"{torch.get_num_threads()} threads, {packages}; {args.rounds} rounds: median, ratios min / median / max\n")
    header = "no signal | ours s | TRL s | TRL / ours | ours MiB | TRL MiB | TRL / ours | share of the limit"
    print(f"| {header} |\n{'|---' * 8}|")
    for share in args.shares:
        found: dict[str, list[list[float]]] = {"ours": [], "trl": []}
        for i in range(args.rounds):
            for name in sorted(found, reverse=bool(i % 2)):
                command = [sys.executable, "-m", "bench.update", *sys.argv[1:], "--side", name, str(share)]
                found[name].append(json.loads(subprocess.check_output(command, stderr=subprocess.DEVNULL)))
        cells = [f"{share:.0%}"]
        *ours_of, limits = zip(*found["ours"])
        for ours, theirs in zip(ours_of, zip(*found["trl"])):  # seconds, then MiB
            ratios = [b / a for a, b in zip(ours, theirs)]
            cells += [f"{statistics.median(ours):.3g}", f"{statistics.median(theirs):.3g}"]
            cells += [f"{min(ratios):.2f} / {statistics.median(ratios):.2f} / {max(ratios):.2f}"]
        cells += [f"{min(limits):.2f} / {statistics.median(limits):.2f} / {max(limits):.2f}"]
        print("| " + " | ".join(cells) + " |", flush=True)
    # Last, since the peak that getrusage reports of a child starts at its parent's.
    print(f"\nDifferences: greatest, relative in norm\n\n| case | | gradient | weights | clipped |\n{'|---' * 5}|")
    tiny = argparse.Namespace(groups=6, prompt=16, response=32, hidden=64, layers=2, micro_batch=4)
    for name, lr, updates in (("SGD", 1.0, 1), ("AdamW", 1e-3, 1), ("SGD", 30.0, 2), ("AdamW", 1e-3, 2)):
        print("| " + " | ".join(equality(tiny, name, lr, updates)) + " |", flush=True)


if __name__ == "__main__":
    main()
