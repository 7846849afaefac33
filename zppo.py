"""ZPPO, Algorithm 1: one training step, stage by stage (arXiv 2606.18216).

    stage 1   roll_out      G_S student rollouts on each plain prompt
    stage 2   select        G_T teacher rollouts on hard questions
    stage 3   select        pre-cap: the hardest questions that admit a reformulation
    stage 4   reformulate   BCQ and NCQ prompts, their candidates compressed by the teacher
    stage 5   roll_out      post-cap (in select), then G_S student rollouts on each new prompt
    stage 6   update        advantages, I gradient updates; the replay buffer [Z3] is buffer.py

train.py's loop calls these in the paper's order. Tags in brackets are the paper's: [G1, G2] GRPO,
[Da1-Da3] DAPO, [R1] REINFORCE++, [Z0-Z4] ZPPO's own. `advantages` and `policy_loss` use nothing
else of this file: copy them.

Decisions where the paper is silent, and shortcuts that change no result:
 1. Counts are floor(rho * |X_new|). Ties in accuracy are broken at random (seeded). Ties broken by
    position would always prefer new questions to replayed ones.
 2. Hard questions are asked in rounds, hardest first, until the pool is full. Each kept question
    fills at least one slot, so asking all would give the same pool. `teacher_on_all_hard` asks all.
 3. Only traces that end up in a prompt are compressed, those of BCQ and NCQ alike once.
 4. A compressed trace must end in the same answer, verbatim, as its response: a wrong candidate
    must never become right. Otherwise the last lines of the response, with its own box, take its
    place (counted). A trace without an answer keeps its summary, but no box: raw lines would be a
    label.
 5. Wrong rollouts without a parsed answer still give their trace to NCQ.
 6. Rollouts with advantage 0 count in the token denominator, but the update does not run them
    through the model: their numerator, and so their gradient, is exactly zero.
 7. A mini-batch is a seeded share of the step's rollouts, not of its groups. The first mini-batch
    needs no scoring pass for old log-probs: there the old policy is the policy, and the ratio is
    exactly 1.
 8. The optimiser does not step on a mini-batch without any non-zero advantage.
 9. Log-probs are of the distribution that was sampled: temperature 1, vision placeholders banned.
    The logged entropy is the mean over the tokens that went through the update.
10. Eq. 3 speaks of the groups of a mini-batch. We take those of the whole rollout step, so that the
    I mini-batches share one scale.
11. GRPO† + BCQ walks on past questions on which the teacher fails, until its cap is full ("admit
    at least one").
12. Compression waits for all plain rollouts; a served teacher's rollouts do not (extras/served.py).
13. BCQ's wrong candidate is drawn from all wrong rollouts. A metric counts those without a box.
"""

import math
import random
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple

import torch

import prompts
from engine.options import option
from engine.questions import Question
from engine.update import Learner, Row
from generate import Request, Sampling, ask, seed_of
from rewards import Response, extract_boxed, score

COMPRESSION_TOKENS = 512  # Table 8
SUMMARY_LINES = 5  # Fig. 16
CHARACTERS_PER_TOKEN = 4  # about, of a raw trace that stands in for a summary
PLAIN_IN_DUMP = 4  # plain groups in a dump, for a look at them
BOX = re.compile(r"\\boxed\s*\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\}")  # with braces, two deep


# ---------------------------------------------------------------- data


# The rows of the paper's tables (App. D.2): what each adds to plain rollouts. "replay" is the
# paper's dagger. The branches of a hard question stand in the order of the post-cap.
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
NORMS = ["norm_wo_zero", "no_norm", "norm_with_zero"]
Metrics = dict[str, float | None]  # None: a mean over nothing


@dataclass
class Recipe:
    """The method's hyperparameters. Defaults: Table 8 of the paper."""

    _argument_group_name = "the paper's constants (Table 8)"

    group_size: int = option(8, "G_S, student rollouts per prompt", minimum=2)
    teacher_group_size: int = option(4, "G_T, teacher rollouts per hard question", minimum=1)
    tau: float = option(0.5, "a question is hard below this plain accuracy", minimum=0, maximum=1)
    rho_replay: float = option(0.25, "replayed questions per new question", minimum=0)
    rho_aug: float = option(0.25, "BCQ + NCQ instances per new question, at most", minimum=0)
    method: str = option("zppo", "row of the paper's tables: what is added", choices=METHODS)
    buffer_capacity: int = option(10_000, "questions in the replay buffer, at most", minimum=0)
    teacher_on_all_hard: bool = option(False, "ask the teacher all hard questions, for Fig. 5a")
    norm: str = option("norm_wo_zero", "advantage normalisation", choices=NORMS)
    updates_per_step: int = option(4, "I, gradient updates per rollout step", minimum=1)
    eps_low: float = option(0.20, "lower clip of the ratio", minimum=0, maximum=1)
    eps_high: float = option(0.28, "upper clip of the ratio [Da1]", minimum=0)
    dual_clip: float = option(10.0, "bound on the loss for negative advantages", minimum=1)
    max_grad_norm: float = option(1.0, "gradient clipping", minimum=1e-6)
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
    candidates: dict = field(default_factory=dict)  # what went into a BCQ or NCQ prompt, for dumps
    prefix: Sequence[int] = ()  # tokens that every response starts with, only in the row "prefix"

    @property
    def accuracy(self) -> float:
        """The student's. A teacher's response replaced a wrong rollout, so it counts as wrong."""
        right = [rollout.reward and not rollout.by_teacher for rollout in self.rollouts]
        return sum(right) / len(right)


@dataclass
class HardQuestion:
    """A hard question and the branch by which it is reformulated: one instance of the pool."""

    kind: str  # "bcq", "ncq"; in baselines.py "hint", "prefix" or "teacher_response"
    group: Group  # its plain group
    positive: Rollout | None  # a correct teacher rollout; only NCQ does without


@dataclass
class Context:
    """What the stages of one step share."""

    student: Callable  # both are called as a `generate.Actor` is
    teacher: Callable
    recipe: Recipe
    key: tuple  # (seed, step), the root of all randomness
    reward: Callable[[str, str, str], float] | None = None  # in place of grader and judge
    counts: Metrics = field(default_factory=dict)  # of the stages, for the metrics

    @property
    def step(self) -> int:
        return self.key[1]

    def rng(self, *what) -> random.Random:
        return random.Random(seed_of(*self.key, *what))


# ---------------------------------------------------------------- stages 1 and 5: student rollouts


def plain_groups(questions: Iterable[Question]) -> list[Group]:
    """The plain prompt of each question, its rollouts still to come."""
    return [Group(question, "plain", prompts.plain_prompt(question.text)) for question in questions]


def roll_out(ctx: Context, groups: Sequence[Group], phase: str) -> list[Group]:
    """The groups, each with G_S scored student rollouts of its prompt [G1]."""
    requests = [request_for(group, group.kind) for group in groups]
    rows = scored_rollouts(ctx, ctx.student, requests, ctx.recipe.group_size, phase)
    return [replace(group, rollouts=row) for group, row in zip(groups, rows)]


def request_for(group: Group, kind: str) -> Request:
    """The group's prompt, to sample from. kind names the random streams: no two kinds share one."""
    question = group.question
    return Request(kind, question.uid, group.prompt, question, group.prefix)


def scored_rollouts(
    ctx: Context, actor: Callable, requests: Sequence[Request], n: int, phase: str
) -> list[list[Rollout]]:
    """n scored rollouts of each request. The teacher judges those with a free-form gold answer."""
    sampling = Sampling(max_new_tokens=ctx.recipe.max_response_tokens)
    rows = actor(requests, n, sampling, ctx.key, phase)
    replies, items = [], []
    for request, row in zip(requests, rows, strict=True):
        question = request.question
        replies += row
        for reply in row:
            gold = question.answer, question.free_form
            items.append(Response(question.text, reply.text, *gold, row=question.row))
    rewards = score(items, partial(ask, ctx.teacher, ctx.key), ctx.reward)
    rollouts = []
    for reply, reward in zip(replies, rewards, strict=True):
        answer = extract_boxed(reply.text)
        rollout = Rollout(reply.text, reply.tokens, reward, answer, reply.finished)
        rollouts.append(rollout)
    return [rollouts[i : i + n] for i in range(0, len(rollouts), n)]


# ---------------------------------------------------------------- stages 2, 3 and the cap of 5


def quota(rho: float, new: int) -> int:
    """floor(rho * |X_new|) (decision 1)."""
    # 0.29 * 100 is a hair below 29 in floating point.
    return math.floor(rho * new + 1e-9)


def select(
    ctx: Context, plain: Sequence[Group], cap: int, refill: bool = True
) -> list[HardQuestion]:
    """Which hard questions are reformulated, and how: one pool of at most `cap` instances [Z1, Z2].

    plain: the plain groups of the step. refill: go on past questions that admit no branch; False
    for the rows of baselines.py, whose algorithms look at the first `cap` hard questions only.
    """
    recipe = ctx.recipe
    waiting = hardest_first(ctx, plain)
    if not refill:
        waiting = waiting[:cap]
    pool, rows = [], []
    while waiting and len(pool) < cap:
        # decision 2: in rounds; a question fills at most one slot per branch
        size = math.ceil((cap - len(pool)) / len(recipe.branches))
        if recipe.teacher_on_all_hard:
            size = len(waiting)
        asked, waiting = waiting[:size], waiting[size:]
        drawn = teacher_rollouts(ctx, asked)  # stage 2
        for group, row in zip(asked, drawn, strict=True):
            pool += admit(ctx, group, row)  # stage 3
        rows += drawn
    ctx.counts |= teacher_counts(rows)
    return pool[:cap]  # stage 5: where one slot is left, BCQ takes it


def hardest_first(ctx: Context, plain: Sequence[Group]) -> list[Group]:
    """The hard questions by ascending accuracy; none where the recipe reformulates nothing."""
    if not ctx.recipe.branches:
        return []

    def rank(group: Group):
        # decision 1: ties are broken at random
        return group.accuracy, seed_of(*ctx.key, "tie", group.question.uid)

    hard = [group for group in plain if group.accuracy < ctx.recipe.tau]
    return sorted(hard, key=rank)


def teacher_rollouts(ctx: Context, groups: Sequence[Group]) -> list[list[Rollout]]:
    """Stage 2: G_T fresh teacher rollouts for each hard question [Z1]; NCQ alone needs none."""
    if ctx.recipe.branches == ["ncq"]:
        return [[] for _ in groups]
    requests = [request_for(group, "teacher") for group in groups]
    n = ctx.recipe.teacher_group_size
    return scored_rollouts(ctx, ctx.teacher, requests, n, "teacher")


def admit(ctx: Context, group: Group, row: Sequence[Rollout]) -> list[HardQuestion]:
    """Stage 3: the branches that a hard question admits. row: its teacher rollouts."""
    correct = [rollout for rollout in row if rollout.reward == 1.0]
    positive = None
    if correct:
        rng = ctx.rng(group.question.uid, "positive")
        positive = rng.choice(correct)
    return [
        HardQuestion(branch, group, positive)
        for branch in ctx.recipe.branches
        # decision 11: a question on which the teacher fails admits NCQ alone
        if positive or branch == "ncq"
    ]


def teacher_counts(rows: Sequence[Sequence[Rollout]]) -> Metrics:
    """Metrics of the teacher's rollouts. rows: one for each hard question that came up."""
    rewards = [[rollout.reward for rollout in row] for row in rows if row]
    return {
        "teacher_questions": len(rewards),
        "teacher_accuracy": mean(sum(rewards, [])),
        "bcq_possible": sum(1.0 in row for row in rewards),
    }


# ---------------------------------------------------------------- stage 4: BCQ and NCQ prompts


def reformulate(ctx: Context, chosen: Sequence[HardQuestion]) -> list[Group]:
    """The BCQ and NCQ prompts [Z1, Z2], rollouts still to come.

    The teacher compresses every trace, correct or wrong, under the same prompt.
    """
    candidates = [candidate_traces(ctx, hard) for hard in chosen]
    # decision 3: a trace of BCQ and NCQ alike once; by identity, for two rollouts may say the same
    traces = {}
    for row in candidates:
        traces |= {id(trace): trace for trace in row}
    written = compress(ctx, list(traces.values()))
    summaries = dict(zip(traces, written))
    groups = []
    for hard, row in zip(chosen, candidates):
        texts = [summaries[id(trace)] for trace in row]
        answers = [trace.answer for trace in row]
        groups.append(reformulated_group(ctx, hard, texts, answers))
    # decision 13: where students rarely box, the box is the label
    bcq_answers = [group.candidates["answers"] for group in groups if group.kind == "bcq"]
    ctx.counts["bcq_unboxed"] = sum(None in answers for answers in bcq_answers)
    return groups


def candidate_traces(ctx: Context, hard: HardQuestion) -> list[Rollout]:
    """BCQ: the correct teacher rollout and one wrong student rollout. NCQ: all wrong ones."""
    wrong = [rollout for rollout in hard.group.rollouts if rollout.reward == 0.0]
    if hard.kind == "ncq":
        # decision 5: with or without an answer
        return wrong
    rng = ctx.rng(hard.group.question.uid, "negative")
    return [hard.positive, rng.choice(wrong)]


def reformulated_group(ctx: Context, hard: HardQuestion, texts: list, answers: list) -> Group:
    """The group of one BCQ or NCQ prompt. texts, answers: of its candidates."""
    question = hard.group.question
    if hard.kind == "bcq":
        correct, wrong = texts
        # The order of the two is random, and nothing says which is which.
        order = ctx.rng(question.uid, "order")
        prompt = prompts.bcq_prompt(question.text, correct, wrong, order)
    else:
        prompt = prompts.ncq_prompt(question.text, answers, texts)
    candidates = {"texts": texts, "answers": answers}
    return Group(question, hard.kind, prompt, candidates=candidates)


def compress(ctx: Context, traces: Sequence[Rollout]) -> list[str]:
    """Teacher compression of candidate traces (Fig. 16), one summary each.

    The question stays out of the prompt, so the teacher has nothing to solve.
    """
    requests = [
        Request("compress", str(i), prompts.compression_prompt(trace.text))
        for i, trace in enumerate(traces)
    ]
    sampling = Sampling(max_new_tokens=COMPRESSION_TOKENS)
    replies = ctx.teacher(requests, 1, sampling, ctx.key, "compress")
    read = [
        read_summary(reply.text, trace.text, trace.answer)
        for (reply,), trace in zip(replies, traces, strict=True)
    ]
    ctx.counts["compressed"] = len(read)
    ctx.counts["compression_fallbacks"] = sum(fell_back for _, fell_back in read)
    return [summary for summary, _ in read]


def read_summary(reply: str, trace: str, answer: str | None) -> tuple[str, bool]:
    """The candidate text of one trace, and whether the teacher's summary had to be given up.

    reply: what the teacher wrote. trace, answer: the response and the content of its last box.
    Where the summary is missing or changes the answer, the trace's last lines replace it.
    """
    start = reply.rfind("<summary>")
    end = reply.rfind("</summary>")
    summary = ""
    if 0 <= start < end:
        summary = reply[start + len("<summary>") : end].strip()
    if answer is None:
        # decision 4: the teacher must not give an answer to a trace that had none
        summary = BOX.sub("", summary)
        summary = summary.replace("\\boxed", "").strip()
    if summary and same_answer(extract_boxed(summary), answer):
        return summary, False
    return last_lines(trace, answer), True


def same_answer(found: str | None, answer: str | None) -> bool:
    """Verbatim but for white space; no answer equals only no answer."""
    if found is None or answer is None:
        return found is answer
    return found.split() == answer.split()


def last_lines(trace: str, answer: str | None) -> str:
    """The end of a trace's reasoning, about as long as a summary may be, with the trace's box."""
    reasoning, *_ = trace.rsplit("</think>", 1)
    reasoning = reasoning.replace("<think>", "").strip() or trace
    lines = [line for line in reasoning.splitlines() if line.strip()]
    text = "\n".join(lines[-SUMMARY_LINES + 1 :])  # the box is the fifth line
    text = text[-CHARACTERS_PER_TOKEN * COMPRESSION_TOKENS :]
    if answer is not None and extract_boxed(text) != answer:
        text += f"\n\\boxed{{{answer}}}"
    return text


# ---------------------------------------------------------------- stage 6: the equations


def advantages(rewards: torch.Tensor, norm: str = "norm_wo_zero") -> torch.Tensor:
    """Two-step group-relative advantages [G1, R1, Z0] (Eqs. 2-5).

    rewards: [groups, G_S], all groups of the rollout step from all processes.
    norm: "norm_wo_zero" (default), "no_norm" (step 2 skipped) or "norm_with_zero" (statistics over
    all groups). Eq. 6 ties the two together:
    A(with zero) = A(w/o zero) / sqrt(share of non-trivial groups).
    Returns [groups, G_S] in fp32 or higher. Raises ValueError on another norm.
    """
    if norm not in ("norm_wo_zero", "no_norm", "norm_with_zero"):
        expected = "norm_wo_zero, no_norm or norm_with_zero"
        raise ValueError(f"norm must be {expected}, got {norm!r}")
    dtype = torch.promote_types(rewards.dtype, torch.float32)
    rewards = rewards.to(dtype)
    # A group is trivial by exact equality of its rewards, never by a threshold.
    trivial = (rewards == rewards[:, :1]).all(-1, keepdim=True)  # [groups, 1]

    # Step 1 [G1] (Eq. 2): inside each group.
    centred = rewards - rewards.mean(-1, keepdim=True)
    centred = centred.masked_fill(trivial, 0.0)
    if norm == "no_norm" or trivial.all():
        return centred
    # Step 2 [R1] (Eqs. 3-5): over a set of groups, the active ones [Z0].
    active = ~trivial.squeeze(-1)  # [groups]
    kept = centred if norm == "norm_with_zero" else centred[active]
    std = kept.std(correction=0)  # population (Eq. 5)
    normalised = (centred - kept.mean()) / (std + 1e-8)
    return normalised.masked_fill(trivial, 0.0)


def policy_loss(
    logp: torch.Tensor,
    old_logp: torch.Tensor,
    advantages: torch.Tensor,
    eps_low: float = 0.20,
    eps_high: float = 0.28,
    dual_clip: float = 10.0,
) -> torch.Tensor:
    """Clipped surrogate [G2] with clip-higher [Da1] and dual clip: each token's loss, unreduced.

    The three tensors have one shape, or shapes that broadcast. For a negative advantage the loss is
    never above -dual_clip * advantage. There is no KL term [Da3]. The caller divides the sum by the
    number of response tokens of the mini-batch over all processes [Da2].
    """
    ratio = torch.exp(logp - old_logp)
    clipped = ratio.clamp(1 - eps_low, 1 + eps_high)
    loss = -torch.minimum(ratio * advantages, clipped * advantages)
    bounded = torch.minimum(loss, -dual_clip * advantages)
    return torch.where(advantages < 0, bounded, loss)


# ---------------------------------------------------------------- stage 6: I gradient updates


class MiniBatch(NamedTuple):
    """One share of the step's rollouts."""

    rows: list[Row]  # those with a non-zero advantage (decision 6)
    tokens: int  # response tokens of all its rollouts: the denominator of the loss [Da2]


def mini_batches(groups: Sequence[Group], recipe: Recipe, key: tuple) -> list[MiniBatch]:
    """I equal shares of the step's rollouts.

    The advantages are those of the whole rollout step (decision 10), computed before the split.
    """
    rows = weighted_rows(groups, recipe)
    # decision 7: a share of the rollouts, not of the groups
    rng = random.Random(seed_of(*key, "mini-batches"))
    rng.shuffle(rows)
    batches = []
    for i in range(recipe.updates_per_step):
        share = rows[i :: recipe.updates_per_step]
        tokens = sum(len(row.tokens) for row in share)
        active = [row for row in share if row.weight != 0.0]
        batches.append(MiniBatch(active, tokens))
    return batches


def weighted_rows(groups: Sequence[Group], recipe: Recipe) -> list[Row]:
    """Every rollout of the step, its advantage as its weight in the loss."""
    if not groups:
        return []
    rewards = [[rollout.reward for rollout in group.rollouts] for group in groups]
    weights = advantages(torch.tensor(rewards), recipe.norm)  # [groups, G_S]
    rows = []
    for group, line in zip(groups, weights.tolist()):
        for rollout, weight in zip(group.rollouts, line):
            row = Row(group.prompt, group.question, rollout.tokens, weight, group.prefix)
            rows.append(row)
    return rows


def update(learner: Learner, groups: Sequence[Group], recipe: Recipe, key: tuple) -> Metrics:
    """I gradient updates on the step's rollouts [G2, Da1-Da3, R1, Z0, Z4].

    groups: the same on all processes. Returns metrics, equal on all processes.
    """
    batches = mini_batches(groups, recipe, key)
    first, *later = batches
    # pi_theta_old is the policy before the first of the I updates. (retried: if memory runs out)
    learner.retried(score_old_policy, later)
    accelerator = learner.accelerator
    totals = torch.zeros(4, dtype=torch.float64, device=accelerator.device)
    norms = []
    for batch in batches:
        # decision 8: no step on nothing
        if not batch.rows:
            continue
        totals += learner.retried(add_gradients, batch, recipe, batch is first)
        norms.append(learner.step(recipe.max_grad_norm))

    totals = accelerator.reduce(totals, "sum")
    loss, active_tokens, clipped, entropy = totals.tolist()
    all_tokens = sum(batch.tokens for batch in batches)
    active_rows = sum(len(batch.rows) for batch in batches)
    rollouts = sum(len(group.rollouts) for group in groups)
    finite = [norm for norm in norms if norm is not None]
    return {
        "loss": loss / max(all_tokens, 1),
        "grad_norm": mean(finite) or 0.0,
        "clip_share": clipped / max(active_tokens, 1),
        "entropy": entropy / max(active_tokens, 1),
        "active_share": active_rows / max(rollouts, 1),
        "response_tokens": all_tokens,
        "updates_without_signal": len(batches) - len(norms),
        "updates_not_finite": len(norms) - len(finite),
    }


@torch.no_grad()
def score_old_policy(learner: Learner, batches: Sequence[MiniBatch]) -> None:
    """Remember each row's log-probs under the policy at the start of the step, in row.old_logp."""
    for batch in batches:
        for micro in learner.micro_batches(batch.rows):
            logp, _, _ = learner.log_probs(micro)
            lengths = [len(row.tokens) for row in micro]
            for row, old_logp in zip(micro, logp.split(lengths)):
                row.old_logp = old_logp


def add_gradients(learner: Learner, batch: MiniBatch, recipe: Recipe, on_policy: bool):
    """The gradients of one mini-batch, added up over its micro-batches.

    on_policy: the policy is still the one that sampled, so its ratios are exactly 1 (decision 7).
    Returns this process's sums [4] for the metrics: loss, tokens with an advantage, clipped tokens
    and entropy.
    """
    totals = 0.0
    for micro in learner.micro_batches(batch.rows):
        # [N] each, over the response tokens of the micro-batch
        logp, entropy, advantage = learner.log_probs(micro)
        old_logp = logp.detach()
        if not on_policy:
            old_logp = torch.cat([row.old_logp for row in micro])
        bounds = recipe.eps_low, recipe.eps_high, recipe.dual_clip
        loss = policy_loss(logp, old_logp, advantage, *bounds)
        # [Da2] the mean over the mini-batch's tokens on all processes
        learner.backward(loss.sum() / batch.tokens)

        # for the metrics alone
        ratio = torch.exp(logp.detach() - old_logp)
        active = advantage != 0
        above = ratio > 1 + recipe.eps_high
        below = ratio < 1 - recipe.eps_low
        clipped = torch.where(advantage > 0, above, below) & active
        sums = loss.detach().sum(), active.sum(), clipped.sum(), (entropy * active).sum()
        totals += torch.stack([value.double() for value in sums])
    return totals


# ---------------------------------------------------------------- what a step says of itself


def mean(values: Iterable[float]) -> float | None:
    kept = list(values)
    return sum(kept) / len(kept) if kept else None


def summarise(groups: Sequence[Group], recipe: Recipe) -> Metrics:
    """Metrics of one step's rollouts (Figs. 5, 22 and 25)."""
    kinds = ["plain", "bcq", "ncq"]
    kinds += [branch for branch in recipe.branches if branch in ("hint", "prefix")]
    # Off-Distill's teacher groups are not rollouts of the student: no kind stands for them.
    by_kind = {kind: [] for kind in kinds}
    rollouts, positive = [], []
    for group in groups:
        if group.kind not in by_kind:
            continue
        by_kind[group.kind].append(group)
        rollouts += group.rollouts
        accuracy = group.accuracy
        positive += [rollout.reward > accuracy for rollout in group.rollouts]
    plain = by_kind["plain"]

    metrics: Metrics = {}  # in the order of the logs
    for kind, same in by_kind.items():
        metrics[f"{kind}_accuracy"] = mean(group.accuracy for group in same)
    for kind, same in by_kind.items():
        metrics[f"{kind}_prompts"] = len(same)
    for kind, same in by_kind.items():
        metrics[f"{kind}_active_share"] = mean(0 < group.accuracy < 1 for group in same)
    metrics["hard_share"] = mean(group.accuracy < recipe.tau for group in plain)
    metrics["all_wrong_share"] = mean(group.accuracy == 0 for group in plain)
    metrics["no_answer_share"] = mean(rollout.answer is None for rollout in rollouts)
    metrics["response_length"] = mean(len(rollout.tokens) for rollout in rollouts)
    metrics["cut_share"] = mean(not rollout.finished for rollout in rollouts)
    metrics["positive_share"] = mean(positive)
    return metrics


def dump(groups: Sequence[Group]) -> list[dict]:
    """A few plain prompts and all others, with candidates and rollouts, for Tables 16-17."""
    plain = [group for group in groups if group.kind == "plain"]
    others = [group for group in groups if group.kind != "plain"]
    return [dumped(group) for group in plain[:PLAIN_IN_DUMP] + others]


def dumped(group: Group) -> dict:
    return {
        "uid": group.question.uid,
        "kind": group.kind,
        "gold": group.question.answer,
        "prompt": group.prompt,
        # BCQ: the correct one first; the prompt has them in random order.
        "candidates": group.candidates,
        "rollouts": [
            {"text": rollout.text, "answer": rollout.answer, "reward": rollout.reward}
            for rollout in group.rollouts
        ],
    }
