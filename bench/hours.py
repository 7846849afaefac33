"""Hours of a run at the paper's scales: tokens, FLOPs and bytes of a step, over what GPUs do.

    python -m bench.hours                              Table 8, an H100 SXM
    python -m bench.hours --run runs/zppo              counts, shares and lengths of a run's own steps
    python -m bench.hours --response 6000 --flops_share 0.3

1. FLOPs and bytes are those of bench/machine.py. A GPU reaches a share of its FLOP/s and of its bandwidth, and a
   decoding step never takes less than the time to start its kernels. All three are options: assumed, not measured.
2. Lengths of responses are spread exponentially around their mean and cut at the longest: a batch lasts as long as its
   longest, with ever fewer rows. What --run does not know is the length of prompts: --prompt.
3. From 8 GPUs on a quarter of them serves the teacher (Table 8), whose rollouts run beside the plain ones, with a paged
   cache and CUDA graphs. One GPU does all in turn, with a local FP8 teacher. "no": does not fit (bench/shapes.py).
4. The update has gradient checkpoints: forward twice, backward as much as two, and a scoring pass for all but the first
   of the I mini-batches.
5. Not counted: judge, vision tower, images, traffic between GPUs, checkpoints. The paper's own times (its Table 9) are
   not in this repository, so no column shows them.
"""

import argparse
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.machine import Costs, Machine, prompts_flops, update_flops
from bench.shapes import STUDENTS, Model, fits, model_of, teacher_rows
from engine.output import read_records
from zppo import COMPRESSION_TOKENS

SUMMARY = 200  # tokens: five lines
PHASES = ("plain", "teacher", "compress", "reformulate", "update")


@dataclass(frozen=True)
class Step:
    """What one training step asks for, in means. The defaults: Table 8; guesses where lengths and accuracies decide."""

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
    """The mean step of a run, from its logs. Prompts are not logged by length: `prompt` is given."""
    metrics, args = read_records(run / "metrics.jsonl"), json.loads((run / "args.json").read_text(encoding="utf-8"))
    if not metrics:
        raise SystemExit(f"{run} holds no metrics.jsonl with a step in it")

    def mean(*names: str) -> float:
        return statistics.mean(sum(line.get(name) or 0.0 for name in names) for line in metrics)

    group, plain = args["group_size"], mean("plain_prompts")
    reformulated = mean("bcq_prompts", "ncq_prompts", "hint_prompts", "prefix_prompts")
    return Step(
        plain, reformulated, group, mean("teacher_questions"), args["teacher_group_size"], mean("compressed"),
        mean("active_share"), args["updates_per_step"], prompt,
        mean("response_tokens") / ((plain + reformulated) * group), args["max_response_tokens"],
    )  # fmt: skip


@dataclass(frozen=True)
class Gpu:
    machine: Machine  # bytes and FLOP/s that are reached
    launch: float  # seconds to start one layer's kernels


def generation(costs: Costs, weight: float, prompts: float, group: int, lengths: tuple, rows: float, gpu: Gpu) -> tuple:
    """(seconds, FLOPs, bytes) of `group` rollouts of each prompt on one GPU, at most `rows` at a time.

    lengths: tokens of a prompt, of a mean and of the longest response. weight: bytes of a weight."""
    prompt, mean, longest = lengths
    batches = math.ceil(prompts * group / rows)
    if not batches:
        return 0.0, 0.0, 0.0
    scale = mean
    for _ in range(100):  # exponential, cut at the longest: mean = scale * (1 - exp(-longest / scale))
        scale = mean / (1 - math.exp(-longest / scale))
    size, reading = prompts * group / batches, prompts / batches
    end, parts = min(longest, scale * math.log(max(size, math.e))), 200  # until fewer than one row is left
    flops = prompts_flops(costs, [prompt]) * reading
    moved = weight * (costs.body + costs.head)
    seconds = gpu.machine.seconds(flops, moved)
    for i in range(parts):
        t = (i + 0.5) * end / parts
        alive = max(1.0, size * math.exp(-t / scale))
        step = costs.flops(alive, alive * (prompt + t), alive), costs.moved(alive, alive * (prompt + t), weight, 2)
        seconds += max(gpu.machine.seconds(*step), gpu.launch * costs.layers) * end / parts
        flops, moved = flops + step[0] * end / parts, moved + step[1] * end / parts
    return batches * seconds, batches * flops, batches * moved


def phases(student: Model, teacher: Model, step: Step, gpus: int, args) -> dict[str, tuple] | None:
    """{phase: (seconds, FLOPs and bytes of all GPUs)} of one step; None where it does not fit."""
    helping = gpus // 4
    training, memory = gpus - helping, args.memory * 1e9
    room = fits(student, training, teacher, 0 if helping else 1, memory)
    if room is None:
        return None
    machine = Machine(args.bandwidth * args.bandwidth_share, args.flops * args.flops_share)
    gpu = asked = Gpu(machine, args.launch)
    rows = min(args.rollout_rows, room[1])
    answering = min(args.rollout_rows, room[2])
    if helping:
        answering, asked = teacher_rows(teacher, 1, 0.9 * memory, step.prompt + step.response), Gpu(machine, 0.0)
    answer = (step.prompt, step.response, step.longest)
    longer = (step.prompt + 5 * SUMMARY, step.response, step.longest)  # BCQ holds two summaries, NCQ up to eight
    trace = (step.response + SUMMARY, SUMMARY, COMPRESSION_TOKENS)
    ours, theirs = (student.costs, 2, rows, gpu, training), (teacher.costs, 1, answering, asked, max(1, helping))
    found = {}
    for phase, (costs, weight, most, kind, n), prompts, group, lengths in (
        ("plain", ours, step.plain, step.group, answer), ("teacher", theirs, step.asked, step.teacher_group, answer),
        ("compress", theirs, step.compressed, 1, trace), ("reformulate", ours, step.reformulated, step.group, longer),
    ):  # fmt: skip
        seconds, *work = generation(costs, weight, prompts / n, group, lengths, most, kind)
        found[phase] = seconds, *(n * x for x in work)
    forward = update_flops(student.costs, step.prompt, step.response) / 3
    flops = step.rollouts * step.active * forward * (4 + 1 - 1 / step.updates)
    moved = step.updates * 28 * student.parameters  # AdamW reads weight, gradient and moments, and writes all but one
    found["update"] = flops / training / machine.rate + moved / training / machine.bandwidth, flops, moved
    return found


def describe(step: Step, args) -> str:
    """What the table was computed from."""
    student = step.rollouts * step.response
    teacher = step.asked * step.teacher_group * step.response + SUMMARY * step.compressed
    update = step.rollouts * step.active * (step.prompt + step.response)
    of = f" of {args.run}" if args.run else ""
    return f"""Hours of {args.steps} steps, computed.
A GPU: {args.flops_share:.0%} of {args.flops:.3g} FLOP/s, {args.bandwidth_share:.0%} of {args.bandwidth:.3g} B/s, \
{1e3 * args.launch:g} ms to start a layer's kernels, {args.memory} GB, at most {args.rollout_rows} rollouts at a time.
A step{of}: {step.plain:.0f} plain and {step.reformulated:.0f} reformulated prompts of {step.prompt:.0f} tokens, \
{step.asked:.0f} questions to the teacher, {step.compressed:.0f} traces.
Tokens of a step: {student:.3g} by the student ({step.response:.0f} a response), {teacher:.3g} by the 27B FP8 teacher, \
{update:.3g} through the update ({step.active:.0%} of the rollouts).
"""


def measured(run: Path) -> str:
    """The run's own seconds."""
    times = read_records(run / "times.jsonl")
    mean = {name: statistics.mean(line.get(name, 0.0) for line in times) for name in times[-1] if name != "step"}
    return f"\n{run}, {len(times)} steps, seconds a step: " + ", ".join(f"{k} {v:.3g}" for k, v in mean.items())


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="a run's folder: its metrics.jsonl, args.json and times.jsonl")
    for name, default, text in (
        ("flops", 989e12, "dense bf16 FLOP/s of a GPU"), ("flops_share", 0.4, "of them that is reached"),
        ("bandwidth", 3.35e12, "bytes per second of a GPU"), ("bandwidth_share", 0.5, "of them that is reached"),
        ("launch", 3e-4, "seconds to start one layer's kernels in a decoding step"), ("memory", 80, "GB of a GPU"),
        ("rollout_rows", 128, "rollouts at a time on a GPU"), ("steps", 200, "of a run"),
        ("prompt", 1000, "tokens of a plain prompt"), ("response", 3000, "tokens of a mean response, without --run"),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=type(default), default=default, help=f"{text} (default {default:g})")
    args = parser.parse_args(argv)
    step = step_of(args.run, args.prompt) if args.run else Step(prompt=args.prompt, response=args.response)
    teacher = model_of("27B")
    print(describe(step, args))
    header = f"student | GPUs | PFLOP a step | TB a step | {' | '.join(PHASES)} | hours | GPU hours"
    print(f"| {header} |\n{'|---' * 11}|")
    for size in STUDENTS:
        student = model_of(size)
        for gpus in (1, 8, 64):
            found = phases(student, teacher, step, gpus, args)
            if found is None:
                print(f"| {size} | {gpus} | no |{' |' * 8}")
                continue
            hours = [found[phase][0] * args.steps / 3600 for phase in PHASES]
            beside = min(hours[:2]) if gpus > 1 else 0.0  # the shorter one of plain and teacher costs nothing
            total = sum(hours) - beside
            flops, moved = (sum(x[i] for x in found.values()) for i in (1, 2))
            cells = [f"{flops / 1e15:,.0f}", f"{moved / 1e12:,.0f}"]
            cells += [f"{x:.1f}" for x in (*hours, total, total * gpus)]
            print(f"| {size} | {gpus} | {' | '.join(cells)} |")
    if args.run:
        print(measured(args.run))


if __name__ == "__main__":
    main()
