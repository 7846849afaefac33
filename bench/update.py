"""The update beside TRL's GRPOTrainer: time, peak memory, the same optimiser step; and beside the
machine's limit.

    python -m bench.update                                             # pip install trl
    python -m bench.update --rounds 1 --groups 4 --hidden 64           quick

A tiny text-only Qwen3 with random weights, fp32, one process. TRL's settings are in `trl_config`;
its rollouts are ours.

1. TRL's clock runs from its scored and padded generation batch to the end of the optimiser's step,
   ours over all of `zppo.update`. Same rows, micro-batch, AdamW and threads. Each measurement is a
   process of its own: one warm-up step, then the median of `--steps`. Peak memory is getrusage's
   (on CUDA the allocator's) minus the resident set before.
2. On-policy, I = 1: our advantages are TRL's rewards; they sum to zero in each group, so TRL's
   baseline leaves them as they are. A third of the groups has no signal.
3. Off-policy, I = 2: each of our mini-batches is a generation batch of TRL. Mini-batches cut
   through groups, so our advantages, and in the second one our old log-probs, replace TRL's own.
   SGD's step is so large that all clips work.
4. Gradients are compared as the optimiser gets them, after clipping by norm; weights by how far
   they moved. AdamW's first steps divide by about |gradient|: where a gradient is all rounding, so
   is that step. SGD is the exact test.
5. Share of the limit: FLOPs of the rows with a signal, forward and backward, without padding, over
   the matmul rate (bench/machine.py, measured in each round) and over our seconds. On one thread of
   a CPU all seconds are CPU seconds.
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
from typing import NamedTuple

import psutil
import torch
from accelerate import Accelerator
from torch.nn.utils import parameters_to_vector as flat
from torch.nn.utils.rnn import pad_sequence
from transformers import Qwen3Config, Qwen3ForCausalLM, logging

from bench.machine import Costs, clock, costs_of, measure, spread, update_flops
from engine.models import Encoder
from engine.questions import Question
from engine.update import Learner, Policy, Row
from world.pretrain import CHAT_TEMPLATE, make_processor
from zppo import Group, Recipe, Rollout, advantages, mini_batches, update

VOCAB = 8192
G = 8
KEY = (0, 0)
TOKENIZER = make_processor().tokenizer
TOKENIZER.chat_template = CHAT_TEMPLATE
OPTIONS = {
    "groups": (10, "of 8 rollouts"),
    "prompt": (96, "tokens; the shortest has half"),
    "layers": (4, "in all"),
    "response": (128, "tokens; the shortest has an eighth"),
    "hidden": (256, "size"),
    "micro_batch": (4, "rows"),
    "rounds": (3, "measurements of each side"),
    "steps": (2, "timed in a measurement"),
}
COLUMNS = (
    "no signal",
    "ours s",
    "TRL s",
    "TRL / ours",
    "ours MiB",
    "TRL MiB",
    "TRL / ours",
    "share of the limit",
)
# Optimiser, learning rate, I.
CASES = (
    ("SGD", 1.0, 1),
    ("AdamW", 1e-3, 1),
    ("SGD", 30.0, 2),
    ("AdamW", 1e-3, 2),
)


class TrlRow(NamedTuple):
    """One rollout as TRL gets it."""

    prompt: str
    tokens: list[int]
    advantage: float
    old_logp: torch.Tensor | None = None


# ---------------------------------------------------------------- what both sides get


def make_model(args) -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCAB,
        hidden_size=args.hidden,
        intermediate_size=3 * args.hidden,
        num_hidden_layers=args.layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        tie_word_embeddings=True,
    )
    return Qwen3ForCausalLM(config).train()


def make_optimizer(model: torch.nn.Module, name: str, lr: float) -> torch.optim.Optimizer:
    return getattr(torch.optim, name)(model.parameters(), lr)


def encoded(prompt: str) -> list[int]:
    """A prompt in the chat template, as both sides get it."""
    return Encoder(TOKENIZER)(prompt)["input_ids"].tolist()


def make_groups(args, share: float) -> list[Group]:
    """Random groups; the first `share` of them without signal."""
    rng = random.Random(0)
    trivial = round(share * args.groups)
    return [make_group(args, rng, i, i < trivial) for i in range(args.groups)]


def make_group(args, rng: random.Random, number: int, trivial: bool) -> Group:
    # A letter of a prompt is a token.
    letters = rng.randint(args.prompt // 2, args.prompt) - len(encoded(""))
    prompt = "".join(rng.choice(string.ascii_lowercase) for _ in range(letters))
    correct = rng.choice((0, G)) if trivial else rng.randint(1, G - 1)
    lengths = [rng.randint(args.response // 8, args.response) for _ in range(G)]
    rollouts = []
    for i, length in enumerate(lengths):
        tokens = [rng.randrange(2, VOCAB) for _ in range(length - 1)]
        reward = float(i < correct)
        rollouts.append(Rollout("", [*tokens, 0], reward, None))
    question = Question(str(number), prompt, (), "")
    return Group(question, "plain", prompt, rollouts)


# ---------------------------------------------------------------- our side


def make_learner(args, name: str, lr: float) -> Learner:
    accelerator = Accelerator()
    policy = Policy(make_model(args))
    optimizer = make_optimizer(policy, name, lr)
    policy, optimizer = accelerator.prepare(policy, optimizer)
    question = Question("blank", "blank", (), "")
    blank = Row("blank", question, [0], weight=0.0)
    # No more than TRL's rows may take.
    budget = args.micro_batch * (args.prompt + args.response)
    return Learner(policy, optimizer, accelerator, Encoder(TOKENIZER), blank, budget)


def keep_gradients(optimizer: torch.optim.Optimizer, model: torch.nn.Module, kept: list) -> None:
    """Before each step of the optimiser, add its gradient to `kept`."""

    def keep(*_) -> None:
        kept.append(flat(parameter.grad for parameter in model.parameters()))

    optimizer.register_step_pre_hook(keep)


# ---------------------------------------------------------------- TRL's side


def trl_config(args, rows: int, steps: int, on_policy: bool):
    from trl import GRPOConfig

    micro_batches = rows // args.micro_batch
    return GRPOConfig(
        loss_type="dapo",
        beta=0.0,
        epsilon=0.2,
        epsilon_high=0.28,
        delta=10.0,
        scale_rewards="none",
        temperature=1.0,
        num_generations=G if on_policy else 2,
        max_completion_length=args.response,
        max_steps=steps,
        per_device_train_batch_size=args.micro_batch,
        gradient_accumulation_steps=micro_batches,
        steps_per_generation=micro_batches,
        max_grad_norm=1.0,
        lr_scheduler_type="constant",
        bf16=False,
        gradient_checkpointing=False,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        output_dir=tempfile.mkdtemp(),
    )


def trl_rollouts(rows: list[TrlRow]) -> dict:
    """What TRL expects of its rollout function."""
    prompts = [encoded(row.prompt) for row in rows]
    tokens = [row.tokens for row in rows]
    nothing = [[0.0] * len(row.tokens) for row in rows]
    weights = [row.advantage for row in rows]
    return {
        "prompt_ids": prompts,
        "completion_ids": tokens,
        "logprobs": nothing,
        "weight": weights,
    }


def weight_as_reward(weight: list[float], **_) -> list[float]:
    return weight


def make_trainer(
    args,
    model: Qwen3ForCausalLM,
    optimizer: torch.optim.Optimizer,
    batches: list[list[TrlRow]],
    on_policy: bool,
    starts: list[float],
):
    """TRL's trainer on our rollouts, one batch in each step. It adds each start to `starts`."""
    from datasets import Dataset
    from trl import GRPOTrainer

    feed = iter(batches)

    def rollouts(_, trainer) -> dict:
        # In our order: TRL's own prompts are placeholders.
        trainer.rows = next(feed)
        return trl_rollouts(trainer.rows)

    class Fed(GRPOTrainer):
        def _generate_and_score_completions(self, inputs):
            batch = super()._generate_and_score_completions(inputs)
            replace_values(batch, self.rows, on_policy)
            starts.append(clock())
            return batch

    rows = len(batches[0])
    config = trl_config(args, rows, len(batches), on_policy)
    prompts = Dataset.from_dict({"prompt": ["."] * rows * len(batches)})
    return Fed(
        model,
        weight_as_reward,
        config,
        prompts,
        processing_class=TOKENIZER,
        optimizers=(optimizer, None),
        rollout_func=rollouts,
    )


def replace_values(batch: dict, rows: list[TrlRow], on_policy: bool) -> None:
    """3.: our advantages and old log-probs in place of TRL's own."""
    if not on_policy:
        weights = [row.advantage for row in rows]
        batch["advantages"] = batch["advantages"].new_tensor(weights)
    if rows[0].old_logp is not None:
        old_logps = [row.old_logp for row in rows]
        batch["old_per_token_logps"] = pad_sequence(old_logps, batch_first=True)


def run_trl(
    args,
    name: str,
    lr: float,
    batches: list[list[TrlRow]],
    on_policy: bool,
    gradients: list | None = None,
) -> tuple:
    """(model, seconds per step, resident set before). One step per batch.

    gradients: gets the gradient of each step.
    """
    starts: list[float] = []
    ends: list[float] = []

    def note_end(*_) -> None:
        ends.append(clock())

    model = make_model(args)
    optimizer = make_optimizer(model, name, lr)
    if gradients is not None:
        keep_gradients(optimizer, model, gradients)
    optimizer.register_step_post_hook(note_end)
    trainer = make_trainer(args, model, optimizer, batches, on_policy, starts)
    before = psutil.Process().memory_info().rss
    with redirect_stdout(sys.stderr):
        trainer.train()
    seconds = [end - start for start, end in zip(starts, ends, strict=True)]
    return model, seconds, before


def on_policy_rows(groups: list[Group]) -> list[TrlRow]:
    """2.: all rollouts of a step."""
    rewards = [[rollout.reward for rollout in group.rollouts] for group in groups]
    weights = advantages(torch.tensor(rewards)).tolist()
    rows = []
    for group, line in zip(groups, weights):
        for rollout, weight in zip(group.rollouts, line):
            rows.append(TrlRow(group.prompt, rollout.tokens, weight))
    return rows


@torch.no_grad()
def off_policy_rows(learner: Learner, rows: list[Row], is_first: bool) -> list[TrlRow]:
    """3.: one of our mini-batches; from the second on with old log-probs."""
    found = []
    for row in rows:
        old_logp = None if is_first else learner.log_probs([row])[0]
        found.append(TrlRow(row.prompt, row.tokens, row.weight, old_logp))
    return found


# ---------------------------------------------------------------- time and memory


def side(name: str, share: float, args) -> list[float]:
    """One measurement, in its own process: median seconds of a step, peak memory in MiB, share of
    the limit (ours).
    """
    groups = make_groups(args, share)
    if name == "trl":
        return side_of_trl(groups, args)
    return our_side(groups, args)


def side_of_trl(groups: list[Group], args) -> list[float]:
    batches = [on_policy_rows(groups)] * (args.steps + 1)
    _, seconds, before = run_trl(args, "AdamW", 1e-6, batches, on_policy=True)
    peak = peak_above(before)
    return [statistics.median(seconds[1:]), peak]


def our_side(groups: list[Group], args) -> list[float]:
    recipe = Recipe(updates_per_step=1)
    learner = make_learner(args, "AdamW", 1e-6)
    before = psutil.Process().memory_info().rss
    seconds = []
    for _ in range(args.steps + 1):
        start = clock()
        update(learner, groups, recipe, KEY)
        seconds.append(clock() - start)
    peak = peak_above(before)
    median = statistics.median(seconds[1:])
    costs = costs_of(learner.policy.model)
    batch = mini_batches(groups, recipe, KEY)[0]
    flops = sum(row_flops(costs, row) for row in batch.rows)
    least = measure(1).seconds(flops)
    return [median, peak, least / median]


def row_flops(costs: Costs, row: Row) -> float:
    prompt = encoded(row.prompt)
    return update_flops(costs, len(prompt), len(row.tokens))


def peak_above(before: int) -> float:
    """MiB of this process at most so far, on top of the resident set before."""
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    allocated = torch.cuda.max_memory_allocated()
    return (allocated or peak - before) / 2**20


def print_measured(args) -> None:
    libraries = ("torch", "transformers", "accelerate", "trl")
    packages = ", ".join(f"{name} {version(name)}" for name in libraries)
    threads = torch.get_num_threads()
    rounds = f"{args.rounds} rounds: median, ratios min / median / max"
    print(f"{threads} threads, {packages}; {rounds}\n")
    print(f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|")
    for share in args.shares:
        found = measurements(share, args.rounds)
        cells = [f"{share:.0%}", *measured_cells(found)]
        print(f"| {' | '.join(cells)} |", flush=True)


def measurements(share: float, rounds: int) -> dict[str, list[list[float]]]:
    """What `side` found in each round."""
    found: dict[str, list[list[float]]] = {"ours": [], "trl": []}
    command = [sys.executable, "-m", "bench.update", *sys.argv[1:]]
    for i in range(rounds):
        for name in sorted(found, reverse=bool(i % 2)):
            given = [*command, "--side", name, str(share)]
            printed = subprocess.check_output(given, stderr=subprocess.DEVNULL)
            found[name].append(json.loads(printed))
    return found


def measured_cells(found: dict[str, list[list[float]]]) -> list[str]:
    our_seconds, our_peaks, limits = zip(*found["ours"])
    trl_seconds, trl_peaks = zip(*found["trl"])
    cells = beside(our_seconds, trl_seconds)
    cells += beside(our_peaks, trl_peaks)
    cells.append(spread(limits))
    return cells


def beside(ours: tuple[float, ...], theirs: tuple[float, ...]) -> list[str]:
    """Both medians, and the ratios within a round."""
    ratios = [b / a for a, b in zip(ours, theirs)]
    medians = [f"{statistics.median(values):.3g}" for values in (ours, theirs)]
    return [*medians, spread(ratios)]


# ---------------------------------------------------------------- the same optimiser step


def equality(args, name: str, lr: float, updates: int) -> list[str]:
    """One row of the table of differences."""
    on_policy = updates == 1
    groups = make_groups(args, 1 / 3 if on_policy else 0)
    recipe = Recipe(updates_per_step=updates)
    learner = make_learner(args, name, lr)
    if on_policy:
        batches = [on_policy_rows(groups)]
    else:
        first, second = mini_batches(groups, recipe, KEY)
        batches = [
            off_policy_rows(learner, first.rows, True),
            off_policy_rows(learner, second.rows, False),
        ]
    our_gradients: list[torch.Tensor] = []
    trl_gradients: list[torch.Tensor] = []
    keep_gradients(learner.optimizer.optimizer, learner.policy.model, our_gradients)
    start = flat(learner.policy.parameters()).detach()
    metrics = update(learner, groups, recipe, KEY)
    model, *_ = run_trl(args, name, lr, batches, on_policy, trl_gradients)
    our_move = flat(learner.policy.parameters()).detach() - start
    trl_move = flat(model.parameters()).detach() - start
    return [
        "on-policy" if on_policy else "off-policy",
        name,
        # Of two steps, the second counts.
        difference(our_gradients[-1], trl_gradients[-1]),
        difference(our_move, trl_move),
        f"{metrics['clip_share']:.3f}",
    ]


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> str:
    """Greatest, relative in norm."""
    apart = ours - theirs
    return f"{apart.abs().max():.1e}, {apart.norm() / theirs.norm():.1e}"


def print_differences() -> None:
    print("\nDifferences: greatest, relative in norm\n")
    print(f"| case | | gradient | weights | clipped |\n{'|---' * 5}|")
    tiny = argparse.Namespace(
        groups=6,
        prompt=16,
        response=32,
        hidden=64,
        layers=2,
        micro_batch=4,
    )
    for name, lr, updates in CASES:
        cells = equality(tiny, name, lr, updates)
        print(f"| {' | '.join(cells)} |", flush=True)


# ---------------------------------------------------------------- the command


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, (default, text) in OPTIONS.items():
        help_text = f"{text} (default {default})"
        parser.add_argument(f"--{name}", type=int, default=default, help=help_text)
    parser.add_argument(
        "--shares",
        type=float,
        nargs="+",
        default=[0.0, 0.5, 0.8],
        help="groups without signal",
    )
    # A measurement's own process.
    parser.add_argument("--side", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = options()
    if find_spec("trl") is None:
        raise SystemExit("this compares with TRL: pip install trl")
    logging.set_verbosity_error()
    if args.side:
        name, share = args.side
        print(side(name, float(share), args))
        return
    print_measured(args)
    # Last, since the peak that getrusage reports of a child starts at its parent's.
    print_differences()


if __name__ == "__main__":
    main()
