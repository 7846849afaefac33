"""A look before GPU hours are spent: `python train.py ... --preview 8`. It saves nothing.

How the data were read stands above it: how the gold answers are graded. One sees one prompt of each
kind with its rollouts and rewards, a step as the run will show it, the seconds of each phase scaled
up to the whole run, and the memory that was needed. The look makes one update.
"""

import time
from collections.abc import Sequence

import psutil
import torch

import baselines
from engine.models import render
from engine.questions import Question
from engine.screen import LEGEND, print_main, print_samples, step_lines
from engine.update import Learner
from generate import Actor
from zppo import (
    Context,
    Group,
    Metrics,
    dump,
    plain_groups,
    quota,
    reformulate,
    roll_out,
    select,
    summarise,
    update,
)

BUFFER_EVENTS = ("buffer", "admitted", "graduated", "evicted")


def preview(
    ctx: Context,
    learner: Learner,
    student: Actor,
    teacher: Actor,
    questions: list[Question],
    count: int,
    steps: int,
) -> None:
    """Print the look; all processes call it together.

    questions: those of the first step, of which `count` are looked at. steps: of the run, for the
    extrapolation.
    """
    asked = questions[:count]
    groups = draw(ctx, asked)
    start = time.perf_counter()
    if "logits" in baselines.needs_of(ctx.recipe):
        metrics = baselines.distill(learner, teacher.model, groups, ctx.recipe)
    else:
        metrics = update(learner, groups, ctx.recipe, ctx.key)
    student.seconds["update"] = time.perf_counter() - start
    metrics |= ctx.counts | summarise(groups, ctx.recipe)
    show_prompts(ctx, groups, student)
    show_step(metrics, student.seconds)
    show_hours(student.seconds, len(asked), len(questions), steps)
    show_memory()


def draw(ctx: Context, questions: Sequence[Question]) -> list[Group]:
    """The stages before the update. So few questions may well have a cap of 0: at least 2 here."""
    if baselines.is_baseline(ctx.recipe):
        return baselines.collect(ctx, questions, [])
    cap = max(2, quota(ctx.recipe.rho_aug, len(questions)))
    plain = roll_out(ctx, plain_groups(questions), "rollout")
    prompts = reformulate(ctx, select(ctx, plain, cap))
    return plain + roll_out(ctx, prompts, "reformulate")


def show_prompts(ctx: Context, groups: Sequence[Group], student: Actor) -> None:
    """One prompt of each kind, as the student sees it, and why a kind is missing."""
    first = {group.kind: group for group in reversed(groups)}
    for group in first.values():
        question = group.question
        (record,) = dump([group])
        record["prompt"] = render(
            student.processor,
            group.prompt,
            question.system,
            question.turns,
            **student.encoder.template,
        )
        print_samples([record], 1, rollouts=2, whole=True)
    for branch in ctx.recipe.branches:
        if branch in ("bcq", "ncq") and branch not in first:
            print_main(f"\n---- no {branch} prompt: {why_missing(ctx, groups, branch)}")


def why_missing(ctx: Context, groups: Sequence[Group], branch: str) -> str:
    hard = [g for g in groups if g.kind == "plain" and g.accuracy < ctx.recipe.tau]
    if not hard:
        return "none of these questions is hard for the student"
    if branch == "bcq" and not ctx.counts["bcq_possible"]:
        asked = ctx.counts["teacher_questions"]
        return f"the teacher was asked {asked} hard questions and was right on none"
    return "the cap was full"


def show_step(metrics: Metrics, seconds: dict[str, float]) -> None:
    shown = dict.fromkeys(["step", *BUFFER_EVENTS], 0) | metrics
    times = seconds | {"total": sum(seconds.values())}
    print_main(f"\n{LEGEND}\n{step_lines(shown, times, always=True)}")


def show_hours(seconds: dict[str, float], asked: int, per_step: int, steps: int) -> None:
    """The time of each phase, scaled up from the questions that were asked."""
    row = "{:<14}{:>24}{:>18}{:>22}"
    header = f"seconds, {asked} questions", f"a step of {per_step}", f"{steps} steps, hours"
    print_main("\n" + row.format("phase", *header))
    for phase, took in seconds.items():
        step = took * per_step / asked
        hours = step * steps / 3600
        print_main(row.format(phase, f"{took:.1f}", f"{step:.1f}", f"{hours:.2f}"))


def show_memory() -> None:
    """Of the main process; a teacher in it counts too."""
    if torch.cuda.is_available():
        used = torch.cuda.max_memory_allocated()
    else:
        used = psutil.Process().memory_info().rss
    print_main(f"\nmemory of the main process after an update: {used / 2**30:.1f} GiB")
