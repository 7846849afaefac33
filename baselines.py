"""Baselines that are more than a flag: distillation, Hint, Prefix, teacher response (App. D.2; Algorithms 2, 3, 5, 6).

GRPO and its variants are ZPPO without BCQ, NCQ or the buffer: see zppo.METHODS. Each row here changes what its
docstring says; all else is as in zppo.py. The divergence itself is logprobs.token_jsd.

Decisions where the paper is silent:
1. Hint, Prefix and teacher response take the first rho_aug * |X_new| hard questions, by ascending accuracy, ties at
   random. Those without a correct teacher rollout are skipped and not replaced. Of several correct ones one is drawn.
2. A hint that is empty or holds a \\boxed{} is refused: its question gets no hint group. A metric counts these hints.
3. Prefix: the first floor(0.4 * length) tokens of the teacher's rollout. The continuation has the whole budget.
4. JSD: both halves of equal weight, natural logarithm, full vocabulary, averaged over the response tokens of the batch
   of all processes. In Off-Distill a rollout weighs 1 / (kept rollouts of its question).
5. Prefix, teacher response and distillation put the teacher's tokens behind the student's prompt. The tokenizers must
   be equal, and both chat templates must render a question alike, the start of the response included.
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
from zppo import Context, Group, Instance, Recipe, mean, plain_groups, quota, roll_out, sample, select

PREFIX_SHARE = 0.4  # Algorithm 6
HINT_TOKENS = 512
# What these need of the teacher besides its text; so they need the student's tokenizer too (decision 5).
NEEDS = {"on_distill": "logits", "off_distill": "logits", "prefix": "tokens", "teacher_response": "tokens"}
BRANCHES = {"hint", *NEEDS}


def collect(ctx: Context, new: Sequence[Question], replayed: Sequence[Question]) -> list[Group]:
    """Stages 1-5 for a row of this file: all groups, plain ones first."""
    recipe, (branch,) = ctx.recipe, ctx.recipe.branches
    questions = [*new, *replayed]
    if branch == "off_distill":  # Algorithm 2: correct teacher rollouts; student rollouts only for the buffer
        plain = roll_out(ctx, plain_groups(questions), "rollout") if recipe.replay else []
        return plain + teacher_groups(ctx, questions)
    plain = roll_out(ctx, plain_groups(questions), "rollout")
    if branch == "on_distill":  # Algorithm 3: the student's own rollouts are all there is
        return plain
    instances = select(ctx, plain, quota(recipe.rho_aug, len(new)), refill=False)
    if branch == "teacher_response":
        return substitute(ctx, plain, instances)
    extra = hint_groups(ctx, instances) if branch == "hint" else prefix_groups(instances)
    return plain + roll_out(ctx, extra, "reformulate")


# ---------------------------------------------------------------- Hint, Prefix, teacher response


def hint_groups(ctx: Context, instances: Sequence[Instance]) -> list[Group]:
    """Algorithm 5: the teacher writes a hint from its own correct rollout (Fig. 19); it goes after the question."""
    requests = [
        Request("tip", chosen.plain.question.uid, prompts.hint_prompt(chosen.positive.text, ctx.special_tokens))
        for chosen in instances
    ]
    replies = ctx.teacher(requests, 1, Sampling(max_new_tokens=HINT_TOKENS), ctx.key, "hint")
    groups = []
    for instance, (reply,) in zip(instances, replies, strict=True):
        if reply.text.strip() and extract_boxed(reply.text) is None:
            prompt = prompts.hinted_prompt(instance.plain.question.text, reply.text, ctx.special_tokens)
            groups.append(Group(instance.plain.question, instance.kind, prompt))
    ctx.counts["hints_refused"] = len(instances) - len(groups)
    return groups


def prefix_groups(instances: Sequence[Instance]) -> list[Group]:
    """Algorithm 6: the response starts with the first 40% of a correct teacher rollout, which carries no loss."""
    groups = [Group(instance.plain.question, instance.kind, instance.plain.prompt) for instance in instances]
    for group, instance in zip(groups, instances, strict=True):
        tokens = instance.positive.tokens
        group.prefix = tokens[: int(PREFIX_SHARE * len(tokens))]
    return groups


def substitute(ctx: Context, plain: Sequence[Group], instances: Sequence[Instance]) -> list[Group]:
    """The failure mode: a correct teacher response takes the place of a wrong student rollout, as if it were one."""
    for instance in instances:
        wrong = [i for i, rollout in enumerate(instance.plain.rollouts) if rollout.reward == 0.0]
        place = ctx.rng(instance.plain.question.uid, "negative").choice(wrong)
        instance.plain.rollouts[place] = replace(instance.positive, by_teacher=True)
    return list(plain)


# ---------------------------------------------------------------- distillation


def teacher_groups(ctx: Context, questions: Sequence[Question]) -> list[Group]:
    """Off-Distill: G_T fresh teacher rollouts on every question, the correct ones kept; none kept, no group."""
    plain = plain_groups(questions)
    requests = [Request("teacher", group.question.uid, group.prompt, group.question) for group in plain]
    rows = sample(ctx, ctx.teacher, requests, ctx.recipe.teacher_group_size, "teacher")
    accuracy = mean(rollout.reward for row in rows for rollout in row)
    ctx.counts |= {"teacher_questions": len(rows), "teacher_accuracy": accuracy}
    kept = [[replace(rollout, by_teacher=True) for rollout in row if rollout.reward == 1.0] for row in rows]
    return [replace(g, kind="teacher", rollouts=row) for g, row in zip(plain, kept, strict=True) if row]


def distill(learner: Learner, teacher_model, groups: Sequence[Group], recipe: Recipe) -> dict[str, float]:
    """One update per step on the mean per-token JSD to the teacher (Algorithms 2 and 3).

    Off-Distill trains on the groups of kind "teacher", On-Distill on the plain ones. teacher_model: the frozen model
    itself, since its logits are needed. Returns metrics, equal on all processes.
    """
    kind = "teacher" if "off_distill" in recipe.branches else "plain"
    weighted = [(g, 1 / len(g.rollouts) if kind == "teacher" else 1.0) for g in groups if g.kind == kind]
    rows = [Row(g.prompt, g.question, rollout.tokens, weight) for g, weight in weighted for rollout in g.rollouts]
    tokens, total_weight = sum(len(row.tokens) for row in rows), sum(row.weight * len(row.tokens) for row in rows)
    totals = torch.zeros(2, dtype=torch.float64, device=learner.accelerator.device)  # loss, entropy
    norm: float | None = 0.0
    if rows:  # none kept: no loss, no step
        for micro in learner.micro_batches(rows):
            divergence, entropy, weight = learner.divergences(micro, teacher_model)  # [N] each
            loss = (weight * divergence).sum()
            learner.backward(loss / total_weight)
            totals += torch.stack([loss.detach(), entropy[weight != 0].sum()]).to(totals)
        norm = learner.step(recipe.max_grad_norm)
    loss, entropy = learner.accelerator.reduce(totals, "sum").tolist()
    return {
        "loss": loss / max(total_weight, 1e-8), "grad_norm": norm or 0.0, "entropy": entropy / max(tokens, 1),
        "active_share": 1.0 if rows else 0.0, "response_tokens": tokens,
        "updates_without_signal": int(not rows), "updates_not_finite": int(norm is None),
    }
