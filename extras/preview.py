"""A look before GPU hours are spent: `python train.py ... --preview 8`. It makes one update and saves nothing.

One sees how the gold answers are graded, one prompt of each kind with its rollouts and rewards, a step as the run will
show it, the seconds of each phase scaled up to the whole run, and the memory that was needed.
"""

import random
import time
from collections.abc import Sequence

import psutil
import torch

import baselines
import prompts
from engine.models import render
from engine.questions import Question
from engine.screen import LEGEND, print_samples, step_lines
from engine.update import Learner
from generate import Actor
from zppo import Context, Group, dump, plain_groups, quota, reformulate, roll_out, select, summarise, update


def routes(questions: Sequence[Question]) -> str:
    """Which gold answers the rule grades and which go to the judge, with examples."""
    lines = []
    for name, free_form in (("the rule", False), ("the judge, which is the teacher", True)):
        golds = [question.answer for question in questions if question.free_form == free_form]
        examples = ", ".join(repr(gold[:40]) for gold in golds[:5])
        lines.append(f"{len(golds)} of {len(questions)} gold answers go to {name}: {examples}")
    return "\n".join(lines)


def draw(ctx: Context, questions: Sequence[Question]) -> list[Group]:
    """The stages before the update. Where the rollouts give no BCQ or NCQ prompt, one with made-up candidates and
    without rollouts stands for it."""
    if not baselines.BRANCHES.isdisjoint(ctx.recipe.branches):
        return baselines.collect(ctx, questions, [])
    plain = roll_out(ctx, plain_groups(questions), "rollout")
    chosen = select(ctx, plain, max(2, quota(ctx.recipe.rho_aug, len(questions))))
    groups, question = plain + roll_out(ctx, reformulate(ctx, chosen), "reformulate"), questions[0]
    right, wrong = f"(a correct response)\n\\boxed{{{question.answer}}}", "(a wrong response)\n\\boxed{?}"
    made_up = {
        "bcq": prompts.bcq_prompt(question.text, right, wrong, random.Random(0)),
        "ncq": prompts.ncq_prompt(question.text, ["?"], [wrong]),
    }
    missing = [kind for kind in ctx.recipe.branches if kind not in {group.kind for group in groups}]
    return groups + [Group(question, f"made-up {kind}", made_up[kind]) for kind in missing]


def preview(
    ctx: Context, learner: Learner, student: Actor, teacher: Actor, questions: list[Question], drawn: int, steps: int
) -> None:
    """Print the look; all processes call it together. teacher: the first one. questions: of the first step, of which
    `drawn` are looked at. steps: of the run, for the extrapolation."""
    say, seconds, asked = learner.accelerator.print, student.seconds, questions[:drawn]
    say(routes(questions))
    groups = draw(ctx, asked)
    scored, start = [group for group in groups if group.rollouts], time.perf_counter()
    if "logits" in map(baselines.NEEDS.get, ctx.recipe.branches):
        metrics = baselines.distill(learner, teacher.model, scored, ctx.recipe)
    else:
        metrics = update(learner, scored, ctx.recipe, ctx.key)
    seconds["update"] = time.perf_counter() - start
    records = dump(list({group.kind: group for group in reversed(groups)}.values()))
    rendered = [r | {"prompt": render(student.processor, r["prompt"], **student.encoder.template)} for r in records]
    print_samples(rendered, len(rendered), rollouts=2)
    metrics |= summarise(scored, ctx.recipe) | dict.fromkeys(("step", "buffer", "admitted", "graduated", "evicted"), 0)
    say(f"\n{LEGEND}\n{step_lines(metrics, seconds | {'total': sum(seconds.values())})}")
    scale = len(questions) / len(asked)
    header = f"seconds, {len(asked)} questions", f"a step of {len(questions)}", f"{steps} steps, hours"
    say("\n{:<14}{:>24}{:>18}{:>22}".format("phase", *header))
    for phase, took in seconds.items():
        say(f"{phase:<14}{took:>24.1f}{took * scale:>18.1f}{took * scale * steps / 3600:>22.2f}")
    used = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else psutil.Process().memory_info().rss
    say(f"\nmemory of the main process after an update: {used / 2**30:.1f} GiB")  # a teacher in it counts too
