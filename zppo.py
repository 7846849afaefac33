"""ZPPO, Algorithm 1: one training step, stage by stage (arXiv 2606.18216).

train.py's loop calls the stages in the paper's order: `roll_out` (1), `select` (2, 3 and the cap of 5), `reformulate`
(4), `roll_out` again (5), `update` (6). The replay buffer [Z3] is buffer.py, the prompts are prompts.py.
Tags in brackets are the paper's: [G1, G2] GRPO, [Da1-Da3] DAPO, [R1] REINFORCE++, [Z0-Z4] ZPPO's own.
`advantages` and `policy_loss` import nothing from the rest of the project: copy them.

Decisions where the paper is silent, and shortcuts that change no result:
 1. Counts are floor(rho * |X_new|). Ties in accuracy are broken at random (seeded). Ties broken by position would
    always prefer new questions to replayed ones.
 2. Hard questions are asked in rounds, hardest first, until the pool is full. Each kept question fills at least one
    slot, so asking about all of them would give the same instances. `teacher_on_all_hard` asks about all (Fig. 5a).
 3. Only traces that end up in a prompt are compressed. A trace that BCQ and NCQ share is compressed once.
 4. A compressed trace must end in the same answer, verbatim, as its response. If it does not, the last lines of the
    response with its own box take its place, and a metric counts it. A wrong candidate must never become right. A
    trace without an answer keeps its summary without any box: raw lines beside a tidy candidate would be a label.
 5. Wrong rollouts without a parsed answer still give their trace to NCQ.
 6. Rollouts with advantage 0 count in the token denominator, but the update does not run them through the model:
    their numerator, and so their gradient, is exactly zero.
 7. A mini-batch is a seeded share of the step's rollouts, not of its groups. The first mini-batch needs no scoring
    pass for old log-probs: there the old policy is the policy, and the ratio is exactly 1.
 8. The optimiser does not step on a mini-batch without any non-zero advantage.
 9. Log-probs are of the distribution that was sampled: temperature 1, vision placeholders banned. The logged entropy
    is the mean over the tokens that went through the update.
10. Eq. 3 speaks of the groups of a mini-batch. We take those of the whole rollout step, so that the I mini-batches
    share one scale.
11. GRPO† + BCQ walks on past questions on which the teacher fails, until its cap is full ("admit at least one").
12. Compression waits for all plain rollouts; a served teacher's rollouts do not (extras/served.py).
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch

import prompts
from engine.options import option
from engine.questions import Question
from engine.update import Learner, Row
from generate import Request, Sampling, ask, seed_of
from rewards import extract_boxed, score

COMPRESSION_TOKENS = 512  # Table 8
SUMMARY_LINES = 5  # Fig. 16
PLAIN_IN_DUMP = 4  # plain groups in a dump, for a look at them
BOX = re.compile(r"\\boxed\s*\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\}")  # with braces inside, two deep


# ---------------------------------------------------------------- the equations


def advantages(rewards: torch.Tensor, norm: str = "norm_wo_zero") -> torch.Tensor:
    """Two-step group-relative advantages [G1, R1, Z0] (Eqs. 2-5).

    rewards: [groups, G_S], all groups of the rollout step from all processes. Returns [groups, G_S] in fp32 or higher.
    norm: "norm_wo_zero" (default), "no_norm" (step 2 skipped) or "norm_with_zero" (statistics over all groups).
    Eq. 6 ties the two together: A(with zero) = A(w/o zero) / sqrt(share of non-trivial groups).
    Raises ValueError on another norm.
    """
    if norm not in ("norm_wo_zero", "no_norm", "norm_with_zero"):
        raise ValueError(f"norm must be norm_wo_zero, no_norm or norm_with_zero, got {norm!r}")
    rewards = rewards.to(torch.promote_types(rewards.dtype, torch.float32))
    trivial = (rewards == rewards[:, :1]).all(-1, keepdim=True)  # [groups, 1]; exact equality, never a threshold
    # Step 1 [G1]: inside each group.
    centred = (rewards - rewards.mean(-1, keepdim=True)).masked_fill(trivial, 0.0)
    if norm == "no_norm" or trivial.all():
        return centred
    # Step 2 [R1]: over a set of groups, those with any signal [Z0].
    kept = centred if norm == "norm_with_zero" else centred[~trivial.squeeze(-1)]
    std = kept.std(correction=0)  # population (Eq. 5)
    return ((centred - kept.mean()) / (std + 1e-8)).masked_fill(trivial, 0.0)


def policy_loss(
    logp: torch.Tensor,
    old_logp: torch.Tensor,
    advantages: torch.Tensor,
    eps_low: float = 0.20,
    eps_high: float = 0.28,
    dual_clip: float = 10.0,
) -> torch.Tensor:
    """Clipped surrogate [G2] with clip-higher [Da1] and dual clip: the loss of each token, unreduced.

    The three tensors have one shape, or shapes that broadcast. For a negative advantage the loss is never above
    -dual_clip * advantage. There is no KL term [Da3]. The caller divides the sum by the number of response tokens of
    the mini-batch over all processes [Da2].
    """
    ratio = torch.exp(logp - old_logp)
    loss = -torch.minimum(ratio * advantages, ratio.clamp(1 - eps_low, 1 + eps_high) * advantages)
    return torch.where(advantages < 0, torch.minimum(loss, -dual_clip * advantages), loss)


# ---------------------------------------------------------------- Algorithm 1, stages 1-5


def plain_groups(questions: Iterable[Question]) -> list[Group]:
    """The plain prompt of each question, its rollouts still to come."""
    return [Group(question, "plain", prompts.plain_prompt(question.text)) for question in questions]


def roll_out(ctx: Context, groups: Sequence[Group], phase: str) -> list[Group]:
    """Stages 1 and 5: the groups, each with G_S scored student rollouts of its prompt [G1]."""
    requests = [Request(g.kind, g.question.uid, g.prompt, g.question, g.prefix) for g in groups]
    rows = sample(ctx, ctx.student, requests, ctx.recipe.group_size, phase)
    return [replace(group, rollouts=row) for group, row in zip(groups, rows, strict=True)]


def sample(ctx: Context, actor: Callable, requests: Sequence[Request], n: int, phase: str) -> list[list[Rollout]]:
    """n scored rollouts for each request. The teacher judges those with a free-form gold answer."""
    rows = actor(requests, n, Sampling(max_new_tokens=ctx.recipe.max_response_tokens), ctx.key, phase)
    items = [
        (request.question.text, reply.text, request.question.answer, request.question.free_form)
        for request, row in zip(requests, rows, strict=True)
        for reply in row
    ]
    rewards = iter(score(items, partial(ask, ctx.teacher, ctx.key), ctx.reward))
    return [[Rollout(r.text, r.tokens, next(rewards), extract_boxed(r.text), r.finished) for r in row] for row in rows]


def quota(rho: float, new: int) -> int:
    """floor(rho * |X_new|), also where the product is a hair below a whole number (0.29 * 100)."""
    return math.floor(rho * new + 1e-9)


def select(ctx: Context, plain: Sequence[Group], cap: int, refill: bool = True) -> list[Instance]:
    """Stages 2 and 3, and the cap of stage 5: which hard questions are reformulated, and how.

    Hard questions by ascending accuracy, ties at random. For each of them fresh teacher rollouts [Z1]. Then one pool of
    at most `cap` instances: the branches of a question in the recipe's order, BCQ before NCQ (decisions 1, 2 and 11).
    refill: go on past questions that admit no branch; without it, only the first `cap` hard questions are looked at.
    """
    recipe, branches = ctx.recipe, ctx.recipe.branches
    hard = [group for group in plain if group.accuracy < recipe.tau]
    hard.sort(key=lambda group: (group.accuracy, seed_of(*ctx.key, "tie", group.question.uid)))
    if not refill:
        hard = hard[:cap]

    pool: list[Instance] = []
    asked, drawn, possible = 0, [], 0
    while hard and branches and len(pool) < cap:
        share = len(hard) if recipe.teacher_on_all_hard else math.ceil((cap - len(pool)) / len(branches))
        head, hard = hard[:share], hard[share:]
        rows: list[list[Rollout]] = [[] for _ in head]
        if branches != ["ncq"]:
            requests = [Request("teacher", group.question.uid, group.prompt, group.question) for group in head]
            rows = sample(ctx, ctx.teacher, requests, recipe.teacher_group_size, "teacher")
            asked += len(head)
        for group, row in zip(head, rows, strict=True):
            correct = [rollout for rollout in row if rollout.reward == 1.0]
            drawn += [rollout.reward for rollout in row]
            possible += bool(correct)
            positive = ctx.rng(group.question.uid, "positive").choice(correct) if correct else None
            for branch in branches:
                if (positive or branch == "ncq") and len(pool) < cap:
                    pool.append(Instance(branch, group, positive))
    ctx.counts |= {"teacher_questions": asked, "teacher_accuracy": mean(drawn), "bcq_possible": possible}
    return pool


def reformulate(ctx: Context, instances: Sequence[Instance]) -> list[Group]:
    """Stage 4: the BCQ and NCQ prompts [Z1, Z2], rollouts still to come.

    One wrong student rollout is drawn for BCQ, all of them go into NCQ. The teacher compresses every trace, correct or
    wrong, under the same prompt.
    """
    chosen: list[list[Rollout]] = []
    for instance in instances:
        wrong = [rollout for rollout in instance.plain.rollouts if rollout.reward == 0.0]
        negative = ctx.rng(instance.plain.question.uid, "negative").choice(wrong)
        chosen.append([instance.positive, negative] if instance.kind == "bcq" else wrong)
    traces = {id(rollout): rollout for rollouts in chosen for rollout in rollouts}
    summaries = dict(zip(traces, compress(ctx, list(traces.values())), strict=True))

    groups = []
    for instance, rollouts in zip(instances, chosen, strict=True):
        question = instance.plain.question
        texts, answers = [summaries[id(rollout)] for rollout in rollouts], [rollout.answer for rollout in rollouts]
        if instance.kind == "bcq":  # the order of the two is random, and nothing says which is which
            prompt = prompts.bcq_prompt(question.text, *texts, ctx.rng(question.uid, "order"), ctx.special_tokens)
        else:
            prompt = prompts.ncq_prompt(question.text, answers, texts, ctx.special_tokens)
        groups.append(Group(question, instance.kind, prompt, candidates={"texts": texts, "answers": answers}))
    return groups


def compress(ctx: Context, traces: Sequence[Rollout]) -> list[str]:
    """Teacher compression of candidate traces (Fig. 16), one summary each.

    The question stays out of the prompt, so the teacher has nothing to solve.
    """
    requests = [
        Request("compress", str(i), prompts.compression_prompt(trace.text, ctx.special_tokens))
        for i, trace in enumerate(traces)
    ]
    replies = ctx.teacher(requests, 1, Sampling(max_new_tokens=COMPRESSION_TOKENS), ctx.key, "compress")
    read = [read_summary(reply.text, trace.text, trace.answer) for (reply,), trace in zip(replies, traces, strict=True)]
    ctx.counts |= {"compressed": len(read), "compression_fallbacks": sum(fell_back for _, fell_back in read)}
    return [summary for summary, _ in read]


def read_summary(reply: str, trace: str, answer: str | None) -> tuple[str, bool]:
    """(the teacher's summary, False), or (a cut of the trace, True) where the summary is missing or changes the answer.

    reply: what the teacher wrote. trace, answer: the response and the content of its last box (decision 4).
    """
    start, end = reply.rfind("<summary>"), reply.rfind("</summary>")
    summary = reply[start + len("<summary>") : end].strip() if 0 <= start < end else ""
    if answer is None:
        summary = BOX.sub("", summary).replace("\\boxed", "").strip()
    found = extract_boxed(summary)
    same = (found is None) == (answer is None) and (found or "").split() == (answer or "").split()
    if summary and same:
        return summary, False
    reasoning = trace.rsplit("</think>", 1)[0].replace("<think>", "")
    lines = [line for line in (reasoning.strip() or trace).splitlines() if line.strip()][-SUMMARY_LINES + 1 :]
    cut = "\n".join(lines)[-4 * COMPRESSION_TOKENS :]  # about as long as a summary may be
    if answer is not None and extract_boxed(cut) != answer:
        cut += f"\n\\boxed{{{answer}}}"
    return cut, True


# ---------------------------------------------------------------- Algorithm 1, stage 6


def mini_batches(groups: Sequence[Group], recipe: Recipe, key: tuple) -> list[tuple[list[Row], int]]:
    """I equal shares of the step's rollouts: [(rows with non-zero advantage, response tokens of all rows), ...].

    Advantages are those of the whole rollout step, computed once, before it is split.
    """
    rewards = torch.tensor([[rollout.reward for rollout in group.rollouts] for group in groups])
    rewards = rewards.view(len(groups), -1 if groups else 0)  # [groups, G_S]
    rows = [
        Row(group.prompt, group.question, rollout.tokens, advantage, group.prefix)
        for group, line in zip(groups, advantages(rewards, recipe.norm).tolist(), strict=True)
        for rollout, advantage in zip(group.rollouts, line, strict=True)
    ]
    random.Random(seed_of(*key, "mini-batches")).shuffle(rows)
    parts = [rows[i :: recipe.updates_per_step] for i in range(recipe.updates_per_step)]
    return [([row for row in part if row.weight != 0.0], sum(len(row.tokens) for row in part)) for part in parts]


def update(learner: Learner, groups: Sequence[Group], recipe: Recipe, key: tuple) -> dict[str, float]:
    """I gradient updates on the step's rollouts (Algorithm 1, stage 6) [G2, Da1-Da3, R1, Z0, Z4].

    groups: the same on all processes. Returns metrics, equal on all processes.
    """
    parts = mini_batches(groups, recipe, key)
    for rows, _ in parts[1:]:  # pi_theta_old is the policy before the first of the I updates
        for micro in learner.micro_batches(rows):
            with torch.no_grad():
                logp, _, _ = learner.log_probs(micro)
            for row, old_logp in zip(micro, logp.split([len(row.tokens) for row in micro]), strict=True):
                row.old_logp = old_logp

    totals = torch.zeros(4, dtype=torch.float64, device=learner.accelerator.device)
    norms, without_signal = [], 0
    for i, (rows, tokens) in enumerate(parts):
        if not rows:  # all groups dead: no step on nothing
            without_signal += 1
            continue
        for micro in learner.micro_batches(rows):
            logp, entropy, advantage = learner.log_probs(micro)  # [N] each, over the response tokens of the micro-batch
            old_logp = torch.cat([row.old_logp for row in micro]) if i else logp.detach()
            loss = policy_loss(logp, old_logp, advantage, recipe.eps_low, recipe.eps_high, recipe.dual_clip)
            learner.backward(loss.sum() / tokens)  # [Da2] the mean over the mini-batch's tokens on all processes
            ratio, active = torch.exp(logp.detach() - old_logp), advantage != 0
            clipped = torch.where(advantage > 0, ratio > 1 + recipe.eps_high, ratio < 1 - recipe.eps_low) & active
            sums = loss.detach().sum(), active.sum(), clipped.sum(), entropy[active].sum()
            totals += torch.stack([value.to(totals) for value in sums])
        norms.append(learner.step(recipe.max_grad_norm))

    loss, active_tokens, clipped, entropy = learner.accelerator.reduce(totals, "sum").tolist()
    all_tokens = sum(tokens for _, tokens in parts)
    finite = [norm for norm in norms if norm is not None]
    return {
        "loss": loss / max(all_tokens, 1),
        "grad_norm": mean(finite) or 0.0,
        "clip_share": clipped / max(active_tokens, 1),
        "entropy": entropy / max(active_tokens, 1),
        "active_share": sum(len(rows) for rows, _ in parts) / max(sum(len(group.rollouts) for group in groups), 1),
        "response_tokens": all_tokens,
        "updates_without_signal": without_signal,
        "updates_not_finite": len(norms) - len(finite),
    }


# ---------------------------------------------------------------- what a step says of itself


def mean(values: Iterable[float]) -> float | None:
    kept = list(values)
    return sum(kept) / len(kept) if kept else None


def summarise(groups: Sequence[Group], recipe: Recipe) -> dict[str, float | None]:
    """Metrics of one step's rollouts (Figs. 5, 22 and 25)."""
    kinds = ("plain", "bcq", "ncq", *(branch for branch in recipe.branches if branch in ("hint", "prefix")))
    by_kind = {kind: [g for g in groups if g.kind == kind] for kind in kinds}
    groups = [group for kind in kinds for group in by_kind[kind]]  # Off-Distill's teacher groups are not rollouts
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    return {
        **{f"{kind}_accuracy": mean(g.accuracy for g in by_kind[kind]) for kind in kinds},
        **{f"{kind}_prompts": len(by_kind[kind]) for kind in kinds},
        **{f"{kind}_active_share": mean(0 < g.accuracy < 1 for g in by_kind[kind]) for kind in kinds},
        "hard_share": mean(g.accuracy < recipe.tau for g in by_kind["plain"]),
        "all_wrong_share": mean(g.accuracy == 0 for g in by_kind["plain"]),
        "no_answer_share": mean(rollout.answer is None for rollout in rollouts),
        "response_length": mean(len(rollout.tokens) for rollout in rollouts),
        "cut_share": mean(not rollout.finished for rollout in rollouts),
        "positive_share": mean(rollout.reward > group.accuracy for group in groups for rollout in group.rollouts),
    }


def dump(groups: Sequence[Group]) -> list[dict]:
    """A few plain prompts and all BCQ and NCQ ones (hints, ...), with what went into them and what came out of them.

    Tables 16-17 audit these.
    """
    plain = [group for group in groups if group.kind == "plain"]
    return [
        {
            "uid": group.question.uid,
            "kind": group.kind,
            "gold": group.question.answer,
            "prompt": group.prompt,
            "candidates": group.candidates,  # BCQ: the correct one first; the prompt has them in random order
            "rollouts": [{"text": r.text, "answer": r.answer, "reward": r.reward} for r in group.rollouts],
        }
        for group in [*plain[:PLAIN_IN_DUMP], *(group for group in groups if group.kind != "plain")]
    ]


# ---------------------------------------------------------------- data


# The rows of the paper's tables (App. D.2): what each adds to plain rollouts. A dagger in the paper is "replay" here.
METHODS = {
    "zppo": ("bcq", "ncq", "replay"),  # [Z4]
    "grpo": (),
    "grpo_replay": ("replay",),
    "grpo_both": ("bcq", "ncq"),
    "grpo_replay_bcq": ("bcq", "replay"),
    "grpo_replay_ncq": ("ncq", "replay"),
    "off_distill": ("off_distill",),  # this and the next: baselines.py
    "off_distill_replay": ("off_distill", "replay"),
    "on_distill": ("on_distill",),
    "on_distill_replay": ("on_distill", "replay"),
    "hint": ("hint", "replay"),
    "prefix": ("prefix", "replay"),
    "teacher_response": ("teacher_response", "replay"),  # not in the paper's tables
}


@dataclass
class Recipe:
    """The method's hyperparameters. Defaults: Table 8 of the paper."""

    _argument_group_name = "the paper's constants (Table 8)"

    group_size: int = option(8, "G_S, student rollouts per prompt", minimum=2)
    teacher_group_size: int = option(4, "G_T, teacher rollouts per hard question", minimum=1)
    tau: float = option(0.5, "a question is hard below this plain accuracy", minimum=0, maximum=1)
    rho_replay: float = option(0.25, "replayed questions per new question", minimum=0)
    rho_aug: float = option(0.25, "BCQ + NCQ instances per new question, at most", minimum=0)
    method: str = option("zppo", "row of the paper's tables: what is added to plain rollouts", choices=METHODS)
    buffer_capacity: int = option(10_000, "questions in the replay buffer, at most", minimum=0)
    teacher_on_all_hard: bool = option(False, "draw teacher rollouts for all hard questions, for Fig. 5a (slow)")
    norm: str = option("norm_wo_zero", "advantage normalisation", choices=["norm_wo_zero", "no_norm", "norm_with_zero"])
    updates_per_step: int = option(4, "I, mini-batches (gradient updates) per rollout step", minimum=1)
    eps_low: float = option(0.20, "lower clip of the ratio", minimum=0, maximum=1)
    eps_high: float = option(0.28, "upper clip of the ratio [Da1]", minimum=0)
    dual_clip: float = option(10.0, "bound on the loss for negative advantages", minimum=1)
    max_grad_norm: float = option(1.0, "gradient clipping", minimum=0)
    max_response_tokens: int = option(12_288, "response length, student and teacher", minimum=1)

    @property
    def branches(self) -> list[str]:
        """What a hard question may become, in the order of the post-cap: BCQ before NCQ."""
        return [part for part in METHODS[self.method] if part != "replay"]

    @property
    def replay(self) -> bool:
        return "replay" in METHODS[self.method]


@dataclass
class Rollout:
    """One scored response."""

    text: str
    tokens: list[int]  # as sampled, end token included
    reward: float  # 1.0 or 0.0
    answer: str | None  # content of the last \\boxed{}, None if there is none
    finished: bool = True  # False: cut at max_response_tokens
    by_teacher: bool = False  # only in the row "teacher_response"


@dataclass
class Group:
    """All rollouts of one prompt: their mean reward is their baseline [G1]."""

    question: Question
    kind: str  # "plain", "bcq" or "ncq"; in baselines.py also "hint", "prefix" or "teacher"
    prompt: str
    rollouts: list[Rollout] = field(default_factory=list)
    candidates: dict = field(default_factory=dict)  # what went into a BCQ or NCQ prompt, for the dumps
    prefix: Sequence[int] = ()  # tokens that every response was made to start with, only in the row "prefix"

    @property
    def accuracy(self) -> float:
        """The student's. A teacher's response always stands in for a wrong one."""
        return sum(rollout.reward for rollout in self.rollouts if not rollout.by_teacher) / len(self.rollouts)


@dataclass
class Instance:
    """A hard question chosen for reformulation."""

    kind: str  # its branch: "bcq", "ncq", ...
    plain: Group
    positive: Rollout | None  # a correct teacher rollout; only NCQ does without


@dataclass
class Context:
    """What the stages of one step share. student, teacher: called as a `generate.Actor` is. key: (seed, step), the root
    of all randomness. special_tokens: the student's, neutralised in candidates. reward: in place of grader and judge.
    counts: of the stages, for the metrics."""

    student: Callable
    teacher: Callable
    recipe: Recipe
    key: tuple
    special_tokens: Sequence[str] = ()
    reward: Callable[[str, str, str], float] | None = None
    counts: dict[str, float | None] = field(default_factory=dict)

    def rng(self, *what) -> random.Random:
        return random.Random(seed_of(*self.key, *what))
