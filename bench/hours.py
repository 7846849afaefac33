"""Hours of a run at the paper's scales: tokens, FLOPs and bytes of a step, over what GPUs do.

    python -m bench.hours                              Table 8, an H100 SXM
    python -m bench.hours --run runs/zppo              counts and lengths of a run's own steps
    python -m bench.hours --response 6000 --flops_share 0.3

1. FLOPs and bytes are those of bench/machine.py, and the one-token step of linear attention passes
   5 times over its state (engine/linear.py). A GPU reaches a share of its FLOP/s and of its
   bandwidth, and a decoding step never takes less than the time to start its kernels. All of this
   is set by options: assumed, not measured.
2. Lengths of responses are spread exponentially around their mean and cut at the longest. They go
   through a pool as in generate.py: rows that have ended leave once they are an eighth, the next
   ones join, and all rows have the columns of the longest. "waiting" is the share of the rollouts'
   time that goes to rows without a rollout: at the end of a phase there is none left to join.
   What --run does not know is the length of prompts: --prompt.
3. From 8 GPUs on a quarter of them serves the teacher (Table 8), whose rollouts run beside the
   plain ones, with a paged cache and CUDA graphs. One GPU does all in turn, with a local FP8
   teacher. "no": does not fit (bench/shapes.py).
4. The update has gradient checkpoints: forward twice, backward as much as two, and a scoring pass
   for all but the first of the I mini-batches.
5. Not counted: judge, vision tower, images, traffic between GPUs, checkpoints. The paper's own
   times (its Table 9) are not in this repository, so no column shows them.
"""

import argparse
import json
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.machine import Costs, Machine, prompts_flops, update_flops
from bench.shapes import STUDENTS, Model, fits, model_of, teacher_rows
from engine.output import read_records
from generate import DROP_SHARE
from zppo import COMPRESSION_TOKENS

SUMMARY = 200  # tokens: five lines
PHASES = ("plain", "teacher", "compress", "reformulate", "update")
STATE_PASSES = 5
OPTIONS = {
    "flops": (989e12, "dense bf16 FLOP/s of a GPU"),
    "flops_share": (0.4, "of them that is reached"),
    "bandwidth": (3.35e12, "bytes per second of a GPU"),
    "bandwidth_share": (0.5, "of them that is reached"),
    "kernels": (84, "kernels of one layer in a decoding step"),
    "launch": (4e-6, "seconds to start one of them"),
    "memory": (80, "GB of a GPU"),
    "rollout_rows": (1024, "rollouts at a time on a GPU, at most"),
    "steps": (200, "of a run"),
    "prompt": (1000, "tokens of a plain prompt"),
    "response": (3000, "tokens of a mean response, without --run"),
}


@dataclass(frozen=True)
class Step:
    """What one training step asks for, in means.

    The defaults are Table 8, and guesses where lengths and accuracies decide.
    """

    plain: float = 480  # prompts: 384 new ones, a quarter as many replayed
    reformulated: float = 96
    group: int = 8
    asked: float = 64  # hard questions that the teacher answers
    teacher_group: int = 4
    compressed: float = 384  # traces: of 48 questions one correct and seven wrong
    active: float = 0.4  # share of rollouts with a signal
    updates: int = 4
    prompt: float = 1000  # tokens, an image's included
    response: float = 3000
    longest: int = 12_288

    @property
    def rollouts(self) -> float:
        return (self.plain + self.reformulated) * self.group


def step_of(run: Path, prompt: float) -> Step:
    """The mean step of a run, from its logs. prompt: tokens, which are not logged."""
    metrics = read_records(run / "metrics.jsonl")
    args = json.loads((run / "args.json").read_text(encoding="utf-8"))
    if not metrics:
        raise SystemExit(f"{run} holds no metrics.jsonl with a step in it")

    def mean(*names: str) -> float:
        return statistics.mean(sum(line.get(name) or 0.0 for name in names) for line in metrics)

    group, plain = args["group_size"], mean("plain_prompts")
    reformulated = mean("bcq_prompts", "ncq_prompts", "hint_prompts", "prefix_prompts")
    return Step(
        plain=plain,
        reformulated=reformulated,
        group=group,
        asked=mean("teacher_questions"),
        teacher_group=args["teacher_group_size"],
        compressed=mean("compressed"),
        active=mean("active_share"),
        updates=args["updates_per_step"],
        prompt=prompt,
        response=mean("response_tokens") / ((plain + reformulated) * group),
        longest=args["max_response_tokens"],
    )


@dataclass(frozen=True)
class Gpu:
    machine: Machine  # bytes and FLOP/s that are reached
    layer: float  # seconds to start one layer's kernels


@dataclass
class Work:
    """What a phase takes on one GPU. waiting: seconds of rows without a rollout."""

    seconds: float = 0.0
    flops: float = 0.0
    moved: float = 0.0
    waiting: float = 0.0

    def add(self, seconds: float, flops: float, moved: float, idle: float = 0.0) -> None:
        """idle: share of the rows that have no rollout."""
        self.seconds += seconds
        self.flops += flops
        self.moved += moved
        self.waiting += seconds * idle


@dataclass
class Segment:
    """Decoding steps between two changes of the pool."""

    steps: float
    rows: int  # of the batch
    alive: int  # of them with a rollout on its way
    age: float  # of the oldest row, in tokens
    joined: int  # rollouts that have just begun


def spread(mean: float, longest: float, count: int) -> np.ndarray:
    """Exponential lengths with this mean, cut at the longest, in random order (seeded)."""
    scale = mean
    for _ in range(100):  # the cut takes from the mean: mean = scale * (1 - exp(-longest / scale))
        scale = mean / (1 - math.exp(-longest / scale))
    places = (np.arange(count) + 0.5) / count
    lengths = np.minimum(-scale * np.log(1 - places), longest)
    return np.random.default_rng(0).permutation(lengths * mean / lengths.mean())


def pooled(lengths: np.ndarray, size: int) -> Iterator[Segment]:
    """The pool of generate.py on responses of these lengths."""
    now = 0.0
    start = end = np.zeros(0)
    waiting = 0  # the first that has not begun
    while True:
        alive = end > now
        joined = 0
        if (~alive).sum() * DROP_SHARE >= len(end):
            begun = lengths[waiting : waiting + size - int(alive.sum())]
            joined = len(begun)
            waiting += joined
            start = np.concatenate([start[alive], np.full(joined, now)])
            end = np.concatenate([end[alive], now + begun])
            alive = end > now
        if not len(end):
            return
        following = end[alive].min()
        steps = following - now
        yield Segment(steps, len(end), int(alive.sum()), now + steps / 2 - start.min(), joined)
        now = following


def generation(
    costs: Costs, weight: float, prompts: float, group: int, lengths: tuple, rows: float, gpu: Gpu
) -> Work:
    """`group` rollouts of each prompt on one GPU, at most `rows` at a time.

    lengths: tokens of a prompt, of a mean and of the longest response. weight: bytes of a weight.
    """
    prompt, mean, longest = lengths
    work = Work()
    count = round(prompts * group)
    if not count:
        return work
    weights = weight * (costs.body + costs.head)
    one_prompt = prompts_flops(costs, [prompt])
    for segment in pooled(spread(mean, longest, count), int(rows)):
        if segment.joined:
            flops = one_prompt * segment.joined / group
            work.add(gpu.machine.seconds(flops, weights), flops, weights)
        columns = segment.rows * (prompt + segment.age)
        flops = costs.flops(segment.rows, columns, segment.rows)
        moved = costs.moved(segment.rows, columns, weight, 2)
        moved += (STATE_PASSES - 2) * 4 * costs.state * segment.rows
        seconds = max(gpu.machine.seconds(flops, moved), gpu.layer * costs.layers)
        idle = 1 - segment.alive / min(rows, count)
        work.add(*(segment.steps * x for x in (seconds, flops, moved)), idle)
    return work


def phases(
    student: Model, teacher: Model, step: Step, gpus: int, args
) -> tuple[dict[str, Work], dict[str, int]] | None:
    """({phase: work of one GPU}, {phase: GPUs}) of one step; None where it does not fit."""
    helping = gpus // 4
    training = gpus - helping
    memory = args.memory * 1e9
    room = fits(student, training, teacher, 0 if helping else 1, memory)
    if room is None:
        return None
    machine = Machine(args.bandwidth * args.bandwidth_share, args.flops * args.flops_share)
    gpu = asked = Gpu(machine, args.kernels * args.launch)
    rows = min(args.rollout_rows, room[1])
    answering = min(args.rollout_rows, room[2])
    if helping:
        answering = teacher_rows(teacher, 1, 0.9 * memory, step.prompt + step.response)
        asked = Gpu(machine, 0.0)
    answer = (step.prompt, step.response, step.longest)
    # BCQ holds two summaries, NCQ up to eight.
    longer = (step.prompt + 5 * SUMMARY, step.response, step.longest)
    trace = (step.response + SUMMARY, SUMMARY, COMPRESSION_TOKENS)
    used = {"plain": training, "teacher": max(1, helping), "update": training}
    used |= {"compress": used["teacher"], "reformulate": training}

    def ours(prompts: float, lengths: tuple) -> Work:
        return generation(student.costs, 2, prompts / training, step.group, lengths, rows, gpu)

    def theirs(prompts: float, group: int, lengths: tuple) -> Work:
        share = prompts / used["teacher"]
        return generation(teacher.costs, 1, share, group, lengths, answering, asked)

    forward = update_flops(student.costs, step.prompt, step.response) / 3
    flops = step.rollouts * step.active * forward * (4 + 1 - 1 / step.updates) / training
    # AdamW reads weight, gradient and moments, and writes all but the gradient.
    moved = step.updates * 28 * student.parameters / training
    update = Work(flops / machine.rate + moved / machine.bandwidth, flops, moved)
    work = {
        "plain": ours(step.plain, answer),
        "teacher": theirs(step.asked, step.teacher_group, answer),
        "compress": theirs(step.compressed, 1, trace),
        "reformulate": ours(step.reformulated, longer),
        "update": update,
    }
    return work, used


def describe(step: Step, args) -> str:
    """What the table was computed from."""
    student = step.rollouts * step.response
    teacher = step.asked * step.teacher_group * step.response + SUMMARY * step.compressed
    update = step.rollouts * step.active * (step.prompt + step.response)
    of = f" of {args.run}" if args.run else ""
    return f"""Hours of {args.steps} steps, computed.
A GPU: {args.flops_share:.0%} of {args.flops:.3g} FLOP/s, \
{args.bandwidth_share:.0%} of {args.bandwidth:.3g} B/s, \
{args.kernels} kernels a layer at {1e6 * args.launch:g} us, {args.memory} GB, \
at most {args.rollout_rows} rollouts at a time.
A step{of}: {step.plain:.0f} plain and {step.reformulated:.0f} reformulated prompts \
of {step.prompt:.0f} tokens, \
{step.asked:.0f} questions to the teacher, {step.compressed:.0f} traces.
Tokens of a step: {student:.3g} by the student ({step.response:.0f} a response), \
{teacher:.3g} by the 27B FP8 teacher, \
{update:.3g} through the update ({step.active:.0%} of the rollouts).
"""


def measured(run: Path) -> str:
    """The run's own seconds."""
    times = read_records(run / "times.jsonl")
    mean = {
        name: statistics.mean(line.get(name, 0.0) for line in times)
        for name in times[-1]
        if name != "step"
    }
    return f"\n{run}, {len(times)} steps, seconds a step: " + ", ".join(
        f"{k} {v:.3g}" for k, v in mean.items()
    )


def table_row(work: dict[str, Work], used: dict[str, int], gpus: int, steps: int) -> list[str]:
    """PFLOPs, TB, hours of each phase and in all, and where the time goes."""
    hours = {phase: work[phase].seconds * steps / 3600 for phase in PHASES}
    # From 8 GPUs on the shorter one of plain and teacher costs nothing.
    beside = min(hours["plain"], hours["teacher"]) if gpus > 1 else 0.0
    total = sum(hours.values()) - beside
    flops = sum(work[phase].flops * used[phase] for phase in PHASES)
    moved = sum(work[phase].moved * used[phase] for phase in PHASES)
    cells = [f"{flops / 1e15:,.0f}", f"{moved / 1e12:,.0f}"]
    cells += [f"{x:.1f}" for x in (*hours.values(), total, total * gpus)]
    waiting = sum(work[phase].waiting for phase in ("plain", "reformulate")) * steps / 3600
    sampling = hours["plain"] + hours["reformulate"]
    shares = [f"{100 * x / total:.0f}" for x in (sampling, waiting, hours["update"])]
    return [*cells, " / ".join(shares)]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, help="a run's folder: its metrics, arguments and times")
    for name, (default, text) in OPTIONS.items():
        help = f"{text} (default {default:g})"
        parser.add_argument(f"--{name}", type=type(default), default=default, help=help)
    args = parser.parse_args(argv)
    step = step_of(args.run, args.prompt) if args.run else None
    step = step or Step(prompt=args.prompt, response=args.response)
    teacher = model_of("27B")
    print(describe(step, args))
    header = f"student | GPUs | PFLOP a step | TB a step | {' | '.join(PHASES)} | hours | GPU hours"
    print(f"| {header} | % sampling / waiting / update |\n{'|---' * 12}|")
    for size in STUDENTS:
        student = model_of(size)
        for gpus in (1, 8, 64):
            found = phases(student, teacher, step, gpus, args)
            cells = ["no"] + 9 * [""]
            if found:
                cells = table_row(*found, gpus, args.steps)
            print(f"| {size} | {gpus} | {' | '.join(cells)} |")
    if args.run:
        print(measured(args.run))


if __name__ == "__main__":
    main()
