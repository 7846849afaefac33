"""A look before GPU hours are spent: `python train.py ... --preview 8`. Nothing is trained and nothing is saved.

One sees how the gold answers are graded, one prompt of each kind with its rollouts and rewards, the seconds of each
phase scaled up to the whole run, and the memory that was needed.
"""

import random
import time
from collections.abc import Sequence

import torch

import baselines
import prompts
from engine.models import render
from engine.questions import Question
from engine.update import Learner
from generate import Actor
from zppo import Context, Group, mini_batches, plain_groups, policy_loss, quota, reformulate, roll_out, select

EXAMPLES = 5  # gold answers of each grading route
ROLLOUTS = 2  # shown of each prompt
WIDTH = 800  # characters shown of a text, half of them from its end


def routes(questions: Sequence[Question]) -> str:
    """Which gold answers the rule grades and which go to the judge, with examples."""
    lines = []
    for name, free_form in (("the rule", False), ("the judge, which is the teacher", True)):
        golds = [question.answer for question in questions if question.free_form == free_form]
        examples = ", ".join(repr(gold[:40]) for gold in golds[:EXAMPLES])
        lines.append(f"{len(golds)} of {len(questions)} gold answers go to {name}" + (f": {examples}" if golds else ""))
    return "\n".join(lines)


def draw(ctx: Context, questions: Sequence[Question]) -> list[Group]:
    """The stages before the update on a few questions. Where the rollouts give no BCQ or NCQ prompt, one with made-up
    candidates and without rollouts stands for it."""
    if not baselines.BRANCHES.isdisjoint(ctx.recipe.branches):
        return baselines.collect(ctx, questions, [])
    plain = roll_out(ctx, plain_groups(questions), "rollout")
    chosen = select(ctx, plain, max(2, quota(ctx.recipe.rho_aug, len(questions))))
    groups = plain + roll_out(ctx, reformulate(ctx, chosen), "reformulate")
    question, rng = plain[0].question, random.Random(0)
    right, wrong = f"(a correct response)\n\\boxed{{{question.answer}}}", "(a wrong response)\n\\boxed{?}"
    made_up = {
        "bcq": prompts.bcq_prompt(question.text, right, wrong, rng),
        "ncq": prompts.ncq_prompt(question.text, ["?"], [wrong]),
    }
    missing = [kind for kind in ctx.recipe.branches if kind not in {group.kind for group in groups}]
    return groups + [Group(question, kind, made_up[kind]) for kind in missing]


def learn(learner: Learner, groups: Sequence[Group], ctx: Context) -> None:
    """Forward and backward passes as in the update; their gradients are thrown away."""
    for rows, tokens in mini_batches([group for group in groups if group.rollouts], ctx.recipe, ctx.key):
        for micro in learner.micro_batches(rows) if rows else ():
            logp, _, advantage = learner.forward(micro)
            learner.backward(policy_loss(logp, logp.detach(), advantage).sum() / tokens)
        learner.optimizer.zero_grad()


def short(text: str) -> str:
    if len(text) <= WIDTH:
        return text
    return f"{text[: WIDTH // 2]}\n[... {len(text) - WIDTH} characters ...]\n{text[-WIDTH // 2 :]}"


def preview(
    ctx: Context, learner: Learner, student: Actor, questions: Sequence[Question], drawn: int, steps: int, new: int
) -> None:
    """Print the look. drawn: questions to roll out. steps, new: of the run, for the extrapolation. All processes call
    it together; the main one prints."""
    say = learner.accelerator.print
    say(routes(questions))
    groups = draw(ctx, questions[:drawn])
    start = time.perf_counter()
    learn(learner, groups, ctx)
    student.seconds["update"] = time.perf_counter() - start
    for group in {group.kind: group for group in reversed(groups)}.values():
        text = render(student.processor, group.prompt, **student.encoder.template)
        say(f"\n---- {group.kind} prompt of question {group.question.uid}" + ("" if group.rollouts else ", made up"))
        say(short(text))
        for rollout in group.rollouts[:ROLLOUTS]:
            cut = "" if rollout.finished else ", cut at the limit"
            say(f"---- reward {rollout.reward:.0f}, answer {rollout.answer!r}, gold {group.question.answer!r}{cut}")
            say(short(rollout.text))
    scale = new / len({group.question.uid for group in groups})
    say(f"\n{'phase':<14}{f'seconds, {drawn} questions':>24}{f'a step of {new}':>18}{f'{steps} steps, hours':>22}")
    for phase, seconds in student.seconds.items():
        say(f"{phase:<14}{seconds:>24.1f}{seconds * scale:>18.1f}{seconds * scale * steps / 3600:>22.2f}")
    weights = sum(parameter.nbytes for parameter in learner.policy.parameters())
    say(f"\nweights, gradients and moments of the student: {4 * weights / 2**30:.2f} GiB on each process")
    if torch.cuda.is_available():  # a teacher in this process counts too
        say(f"most GPU memory in use so far: {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")
