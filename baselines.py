"""Baselines that are more than a flag: distillation, Hint, Prefix, teacher response.

App. D.2; Algorithms 2, 3, 5, 6. GRPO and its variants are ZPPO without BCQ, NCQ or the buffer: see
zppo.METHODS. Each row here changes what its docstring says; all else is as in zppo.py. The
divergence itself is logprobs.token_jsd.

Decisions where the paper is silent:
1. Hint, Prefix and teacher response take the first rho_aug * |X_new| hard questions, by ascending
   accuracy, ties at random. Those without a correct teacher rollout are skipped and not replaced.
   Of several correct ones one is drawn.
2. A hint that is empty or holds a \\boxed{} is refused: its question gets no hint group. A metric
   counts these hints.
3. Prefix: the first floor(0.4 * length) tokens of the teacher's rollout. The continuation has the
   whole budget.
4. JSD: both halves of equal weight, natural logarithm, full vocabulary, averaged over the response
   tokens of the batch of all processes. In Off-Distill a rollout weighs 1 / (kept rollouts of its
   question).
5. Prefix, teacher response and distillation put the teacher's tokens behind the student's prompt.
   The tokenizers must be equal, and both chat templates must render a question alike, the start of
   the response included.
6. Off-Distill without the buffer draws no student rollouts: nothing would look at them.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch

import prompts
from engine.questions import Question
from engine.update import Learner, Row
from generate import Request, Sampling
from rewards import extract_boxed
from zppo import (
    Context,
    Group,
    HardQuestion,
    Metrics,
    Recipe,
    mean,
    plain_groups,
    quota,
    request_for,
    roll_out,
    scored_rollouts,
    select,
)

PREFIX_SHARE = 0.4  # Algorithm 6
HINT_TOKENS = 512
# The request for a hint names its random stream "tip": "hint" is the stream of the student's group.
HINT_REQUEST = "tip"
# What these need of the teacher besides its text; so they need the student's tokenizer too
# (decision 5).
NEEDS = {
    "on_distill": "logits",
    "off_distill": "logits",
    "prefix": "tokens",
    "teacher_response": "tokens",
}
BRANCHES = {"hint", *NEEDS}


def is_baseline(recipe: Recipe) -> bool:
    """Is this row of the tables made by this file?"""
    return not BRANCHES.isdisjoint(recipe.branches)


def needs_of(recipe: Recipe) -> set[str]:
    """What the row needs of the teacher besides its text: "logits", "tokens" or nothing."""
    return {NEEDS[branch] for branch in recipe.branches if branch in NEEDS}


def collect(ctx: Context, new: Sequence[Question], replayed: Sequence[Question]) -> list[Group]:
    """Stages 1-5 for a row of this file: all groups, plain ones first."""
    (branch,) = ctx.recipe.branches
    questions = [*new, *replayed]
    plain: list[Group] = []
    if branch != "off_distill" or ctx.recipe.replay:  # decision 6
        plain = roll_out(ctx, plain_groups(questions), "rollout")
    if branch == "off_distill":
        return plain + teacher_groups(ctx, questions)
    if branch == "on_distill":  # Algorithm 3: the student's own rollouts are all there is
        return plain

    # decision 1: cut first
    chosen = select(ctx, plain, quota(ctx.recipe.rho_aug, len(new)), refill=False)
    if branch == "teacher_response":
        substitute(ctx, chosen)
        return plain
    extra = hint_groups(ctx, chosen) if branch == "hint" else prefix_groups(chosen)
    return plain + roll_out(ctx, extra, "reformulate")


# ---------------------------------------------------------------- Hint, Prefix, teacher response


def hint_groups(ctx: Context, chosen: Sequence[HardQuestion]) -> list[Group]:
    """Algorithm 5: a hint from the teacher's own correct rollout (Fig. 19) after the question."""
    requests = [
        Request(HINT_REQUEST, hard.group.question.uid, prompts.hint_prompt(hard.positive.text))
        for hard in chosen
    ]
    sampling = Sampling(max_new_tokens=HINT_TOKENS)
    replies = ctx.teacher(requests, 1, sampling, ctx.key, "hint")
    groups = []
    for hard, (reply,) in zip(chosen, replies, strict=True):
        hint = reply.text
        if not hint.strip() or extract_boxed(hint) is not None:  # decision 2
            continue
        question = hard.group.question
        prompt = prompts.hinted_prompt(question.text, hint)
        groups.append(Group(question, "hint", prompt))
    ctx.counts["hints_refused"] = len(chosen) - len(groups)
    return groups


def prefix_groups(chosen: Sequence[HardQuestion]) -> list[Group]:
    """Algorithm 6: the response starts with 40% of a correct teacher rollout, without a loss."""
    groups = []
    for hard in chosen:
        tokens = hard.positive.tokens
        prefix = tokens[: int(PREFIX_SHARE * len(tokens))]  # decision 3
        group = Group(hard.group.question, "prefix", hard.group.prompt, prefix=prefix)
        groups.append(group)
    return groups


def substitute(ctx: Context, chosen: Sequence[HardQuestion]) -> None:
    """The failure mode: a correct teacher response replaces a wrong student rollout, in place."""
    for hard in chosen:
        group = hard.group
        places = [i for i, rollout in enumerate(group.rollouts) if rollout.reward == 0.0]
        place = ctx.rng(group.question.uid, "negative").choice(places)
        group.rollouts[place] = replace(hard.positive, by_teacher=True)


# ---------------------------------------------------------------- distillation


def teacher_groups(ctx: Context, questions: Sequence[Question]) -> list[Group]:
    """Algorithm 2: G_T fresh teacher rollouts on every question, the correct ones kept.

    A question without a correct one has no group.
    """
    plain = plain_groups(questions)
    requests = [request_for(group, "teacher") for group in plain]
    rows = scored_rollouts(ctx, ctx.teacher, requests, ctx.recipe.teacher_group_size, "teacher")
    groups = []
    for group, row in zip(plain, rows, strict=True):
        kept = [replace(rollout, by_teacher=True) for rollout in row if rollout.reward == 1.0]
        if kept:
            groups.append(replace(group, kind="teacher", rollouts=kept))
    ctx.counts["teacher_questions"] = len(rows)
    ctx.counts["teacher_accuracy"] = mean(rollout.reward for row in rows for rollout in row)
    return groups


def distill(learner: Learner, teacher_model, groups: Sequence[Group], recipe: Recipe) -> Metrics:
    """One update per step on the mean per-token JSD to the teacher (Algorithms 2 and 3).

    Off-Distill trains on the groups of kind "teacher", On-Distill on the plain ones. teacher_model:
    the frozen model itself, since its logits are needed. Returns metrics, equal on all processes.
    """
    rows = distilled_rows(groups, recipe)
    tokens = sum(len(row.tokens) for row in rows)
    total_weight = sum(row.weight * len(row.tokens) for row in rows)
    totals = torch.zeros(2, dtype=torch.float64, device=learner.accelerator.device)
    norm: float | None = 0.0
    if rows:  # none kept: no loss, no step
        totals += learner.retried(add_gradients, rows, teacher_model, total_weight)
        norm = learner.step(recipe.max_grad_norm)
    loss, entropy = learner.accelerator.reduce(totals, "sum").tolist()
    return {
        "loss": loss / max(total_weight, 1e-8),
        "grad_norm": norm or 0.0,
        "entropy": entropy / max(tokens, 1),
        "active_share": 1.0 if rows else 0.0,
        "response_tokens": tokens,
        "updates_without_signal": int(not rows),
        "updates_not_finite": int(norm is None),
    }


def add_gradients(learner: Learner, rows: Sequence[Row], teacher_model, total_weight: float):
    """The gradients of all rows, added up over micro-batches. Returns sums [2]: loss, entropy."""
    totals = 0.0
    for micro in learner.micro_batches(rows):
        divergence, entropy, weight = learner.divergences(micro, teacher_model)  # [N] each
        loss = (weight * divergence).sum()
        learner.backward(loss / total_weight)
        sums = loss.detach(), (entropy * (weight != 0)).sum()
        totals += torch.stack([value.double() for value in sums])
    return totals


def distilled_rows(groups: Sequence[Group], recipe: Recipe) -> list[Row]:
    """The rollouts that are trained on, each with the weight of its tokens (decision 4)."""
    off_policy = "off_distill" in recipe.branches
    rows = []
    for group in groups:
        if group.kind != ("teacher" if off_policy else "plain"):
            continue
        weight = 1 / len(group.rollouts) if off_policy else 1.0
        for rollout in group.rollouts:
            rows.append(Row(group.prompt, group.question, rollout.tokens, weight))
    return rows
