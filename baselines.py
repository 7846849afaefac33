"""Baselines that are more than a flag: distillation, Hint, Prefix, teacher response (App. D.2; Algorithms 2, 3, 5, 6).

GRPO and its variants are ZPPO without BCQ, NCQ or the buffer: see zppo.METHODS. Everything here shares data, rollouts,
selection of hard questions, optimiser and schedule with zppo.py; each row changes what its docstring says.
The divergence itself is logprobs.token_jsd.

Decisions where the paper is silent:
1. Hint, Prefix and teacher response take hard questions by ascending accuracy, ties at random, up to the cap
   rho_aug * |X_new|, those with a correct teacher rollout, one of which is drawn.
2. A hint that holds a \\boxed{} breaks its own rule: the question gets no hint group, and a metric counts it. So does
   an empty one.
3. Prefix: the first floor(0.4 * length) tokens of the teacher's rollout. The continuation has the whole budget.
4. JSD: both halves of equal weight, natural logarithm, full vocabulary, averaged over the response tokens of the batch
   of all processes. In Off-Distill a rollout weighs 1 / (kept rollouts of its question).
5. Prefix, teacher response and distillation put the teacher's tokens before the student: the tokenizers must be equal.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch

import prompts
from engine.questions import Question
from engine.update import Row
from generate import Request, Sampling
from rewards import extract_boxed
from zppo import Actor, Group, Recipe, Rollout, Step, count, plain_groups, select

PREFIX_SHARE = 0.4  # Algorithm 6
HINT_TOKENS = 512
# What these need of the teacher besides its text; so they need the student's tokenizer too (decision 5).
NEEDS = {"on_distill": "logits", "off_distill": "logits", "prefix": "tokens", "teacher_response": "tokens"}


def collect(
    step: Step, new: Sequence[Question], replayed: Sequence[Question]
) -> tuple[list[Group], dict[str, float]]:
    """What zppo.collect is to ZPPO, for a row of this file: all groups, plain ones first, and counters."""
    recipe, (branch,) = step.recipe, step.recipe.branches
    questions = [*new, *replayed]
    if branch == "on_distill":  # Algorithm 3: the student's own rollouts are all there is
        return plain_groups(step, questions), {}
    if branch == "off_distill":  # Algorithm 2: correct teacher rollouts; student rollouts only for the buffer
        plain = plain_groups(step, questions) if recipe.replay else []
        kept, stats = teacher_groups(step, questions)
        return plain + kept, stats
    plain = plain_groups(step, questions)
    instances, stats = select(step, plain, cap=count(recipe.rho_aug, len(new)))
    if branch == "teacher_response":
        substitute(step, instances)
        return plain, stats
    requests, refused = (hint_requests if branch == "hint" else prefix_requests)(step, instances)
    return plain + step.student_groups(requests, "reformulate"), stats | {"hints_refused": refused}


# ---------------------------------------------------------------- Hint, Prefix, teacher response


def hint_requests(step: Step, instances: Sequence[tuple[str, Group, Rollout]]) -> tuple[list[Request], int]:
    """Algorithm 5: the teacher writes a hint from its own correct rollout (Fig. 19); it goes after the question."""
    asked = [
        Request("tip", group.question.uid, prompts.hint_prompt(positive.text, step.special_tokens))
        for _, group, positive in instances
    ]
    replies = step.teacher(asked, 1, Sampling(max_new_tokens=HINT_TOKENS), step.key, "hint")
    requests = []
    for (kind, group, _), (reply,) in zip(instances, replies, strict=True):
        if reply.text.strip() and extract_boxed(reply.text) is None:
            text = prompts.hinted_prompt(group.question.text, reply.text, step.special_tokens)
            requests.append(Request(kind, group.question.uid, text, group.question))
    return requests, len(instances) - len(requests)


def prefix_requests(step: Step, instances: Sequence[tuple[str, Group, Rollout]]) -> tuple[list[Request], int]:
    """Algorithm 6: the response starts with the first 40% of a correct teacher rollout, which carries no loss."""
    requests = [
        Request(kind, group.question.uid, group.prompt, group.question, prefix=tuple(positive.tokens[:share]))
        for kind, group, positive in instances
        for share in [int(PREFIX_SHARE * len(positive.tokens))]
    ]
    return requests, 0


def substitute(step: Step, instances: Sequence[tuple[str, Group, Rollout]]) -> None:
    """The failure mode: a correct teacher response takes the place of a wrong student rollout, as if it were one."""
    for _, group, positive in instances:
        wrong = [i for i, rollout in enumerate(group.rollouts) if rollout.reward == 0.0]
        place = step.rng(group.question.uid, "negative").choice(wrong)
        group.rollouts[place] = replace(positive, by_teacher=True)


# ---------------------------------------------------------------- distillation


def teacher_groups(step: Step, questions: Sequence[Question]) -> tuple[list[Group], dict[str, float]]:
    """Off-Distill: G_T fresh teacher rollouts on every question, the correct ones kept; none kept, no group."""
    requests = [Request("teacher", x.uid, prompts.plain_prompt(x.text), x) for x in questions]
    rows = step.roll_out(step.teacher, requests, step.recipe.teacher_group_size, "teacher")
    groups = []
    for request, row in zip(requests, rows, strict=True):
        kept = [replace(rollout, by_teacher=True) for rollout in row if rollout.reward == 1.0]
        if kept:
            groups.append(Group(request.question, "teacher", request.text, kept))
    rewards = [rollout.reward for row in rows for rollout in row]
    return groups, {"teacher_questions": len(rows), "teacher_accuracy": sum(rewards) / max(len(rewards), 1)}


def distill(learner, teacher_model, groups: Sequence[Group], recipe: Recipe, key: tuple) -> dict[str, float]:
    """One update per step on the mean per-token JSD to the teacher (Algorithms 2 and 3).

    Off-Distill trains on the groups of kind "teacher", On-Distill on the plain ones. teacher_model: the frozen model
    itself, since its logits are needed. Returns metrics, equal on all processes.
    """
    kind = "teacher" if "off_distill" in recipe.branches else "plain"
    rows = [
        Row(group.prompt, group.question, rollout.tokens, 1 / len(group.rollouts) if kind == "teacher" else 1.0)
        for group in groups
        if group.kind == kind
        for rollout in group.rollouts
    ]
    tokens, weight = sum(len(row.tokens) for row in rows), sum(row.weight * len(row.tokens) for row in rows)
    world, device = learner.accelerator.num_processes, learner.accelerator.device
    totals = torch.zeros(2, dtype=torch.float64, device=device)  # loss, entropy

    def backward(micro: list[Row]) -> None:
        divergence, entropy, weights, nothing = learner.forward(micro, teacher=teacher_model)
        loss = (weights * divergence).sum()
        ((loss + nothing) * world / weight).backward()
        totals.add_(torch.stack([loss.detach(), entropy.sum()]).to(totals))

    norm = learner.step(rows, backward, recipe.max_grad_norm) if rows else 0.0  # none kept: no loss, no step
    loss, entropy = learner.accelerator.reduce(totals, "sum").tolist()
    return {
        "loss": loss / max(weight, 1e-8),
        "grad_norm": norm or 0.0,
        "entropy": entropy / max(tokens, 1),
        "active_share": 1.0 if rows else 0.0,
        "response_tokens": tokens,
        "updates_without_signal": int(not rows),
        "updates_not_finite": int(norm is None),
    }


def pool(teachers: Sequence[Actor]) -> Actor:
    """Beyond the paper: several teachers. The pool of teacher rollouts is the union of theirs, G_T from each; the first
    one compresses, hints and judges."""

    def actor(requests: Sequence[Request], n: int, sampling: Sampling, key: tuple, phase: str) -> list[list]:
        if phase != "teacher":
            return teachers[0](requests, n, sampling, key, phase)
        drawn = [teacher(requests, n, sampling, (*key, i), phase) for i, teacher in enumerate(teachers)]
        return [[reply for row in rows for reply in row] for rows in zip(*drawn, strict=True)]

    return actor
