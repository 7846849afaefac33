"""ZPPO, Algorithm 1: one training step from plain rollouts to the buffer refresh (arXiv 2606.18216).

Read `collect` for stages 1-5 and `update` for stage 6; the pure functions above them are the equations. What turns
rows into micro-batches and takes the optimiser's step is in learner.py, log-probs without full logits in logprobs.py.
The two ends of Algorithm 1, questions from the buffer and its refresh [Z3], are buffer.py's, called by train.py's loop.
Tags in brackets are the paper's: [G1, G2] GRPO, [Da1-Da3] DAPO, [R1] REINFORCE++, [Z0-Z4] ZPPO's own.
`advantages` and `policy_loss` import nothing from the rest of the project: copy them.

Decisions where the paper is silent, and shortcuts that change no result:
 1. Counts are floor(rho * |X_new|). Ties in accuracy are broken by a seeded shuffle: by position, new
    questions would always beat replayed ones.
 2. Teacher rollouts are drawn only for questions that can still reach the caps: we walk the ranking in
    rounds and stop when the pool is full. Every kept question takes at least one slot of the pool, so the
    pre-cap never excludes what the post-cap would admit, and the instances are those of drawing for all.
    `teacher_on_all_hard` draws for all of X_hard (for Fig. 5a).
 3. Only traces that end up in an instance are compressed, each once, though BCQ and NCQ may share one.
 4. A compressed trace must end in the same answer, verbatim, as the response it came from; else the last
    lines of the original with its own box stand in, and a metric counts it. A wrong candidate must never
    become right by rewriting.
 5. Wrong rollouts without a parsed answer still give their trace to NCQ.
 6. Zero-advantage rollouts count in the token denominator but are not run through the update: their
    numerator, and so their gradient, is exactly zero.
 7. A mini-batch is a seeded share of the step's rollouts, not of its groups. The first one needs no
    scoring pass for old log-probs: there the old policy is the policy, and the ratio is exactly 1.
 8. The optimiser does not step on a mini-batch without any non-zero advantage.
 9. Log-probs are of the distribution that was sampled: temperature 1, vision placeholders banned. The
    entropy that is logged is the mean over the tokens that went through the update.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

import prompts
from engine.questions import Question
from engine.update import Row
from generate import Request, Sampling, asker, seed_of
from rewards import extract_boxed, score

COMPRESSION_TOKENS = 512  # Table 8
SUMMARY_LINES = 5  # Fig. 16


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


# ---------------------------------------------------------------- data of one step


# The rows of the paper's tables (App. D.2): what each adds to plain rollouts. A dagger in the paper is "replay" here.
METHODS = {
    "zppo": ("bcq", "ncq", "replay"),  # [Z4]
    "grpo": (),
    "grpo_replay": ("replay",),
    "grpo_both": ("bcq", "ncq"),
    "grpo_replay_bcq": ("bcq", "replay"),
    "grpo_replay_ncq": ("ncq", "replay"),
    # Below: baselines.py
    "off_distill": ("off_distill",),
    "off_distill_replay": ("off_distill", "replay"),
    "on_distill": ("on_distill",),
    "on_distill_replay": ("on_distill", "replay"),
    "hint": ("hint", "replay"),
    "prefix": ("prefix", "replay"),
    "teacher_response": ("teacher_response", "replay"),
}


@dataclass
class Recipe:
    """The method's hyperparameters. Defaults: Table 8 of the paper."""

    group_size: int = field(default=8, metadata={"help": "G_S, student rollouts per prompt"})
    teacher_group_size: int = field(default=4, metadata={"help": "G_T, teacher rollouts per hard question"})
    tau: float = field(default=0.5, metadata={"help": "a question is hard below this plain accuracy"})
    rho_replay: float = field(default=0.25, metadata={"help": "replayed questions per new question"})
    rho_aug: float = field(default=0.25, metadata={"help": "BCQ + NCQ instances per new question, at most"})
    method: str = field(
        default="zppo",
        metadata={"help": "row of the paper's tables: what is added to plain rollouts", "choices": list(METHODS)},
    )
    buffer_capacity: int = field(default=10_000, metadata={"help": "questions in the replay buffer, at most"})
    teacher_on_all_hard: bool = field(
        default=False, metadata={"help": "draw teacher rollouts for all hard questions, for Fig. 5a (slow)"}
    )
    norm: str = field(
        default="norm_wo_zero",
        metadata={"help": "advantage normalisation", "choices": ["norm_wo_zero", "no_norm", "norm_with_zero"]},
    )
    updates_per_step: int = field(default=4, metadata={"help": "I, mini-batches (gradient updates) per rollout step"})
    eps_low: float = field(default=0.20, metadata={"help": "lower clip of the ratio"})
    eps_high: float = field(default=0.28, metadata={"help": "upper clip of the ratio [Da1]"})
    dual_clip: float = field(default=10.0, metadata={"help": "bound on the loss for negative advantages"})
    dynamic_sampling: bool = field(
        default=False,
        metadata={"help": "beyond the paper: after reformulation, leave out groups that are all right or all wrong"},
    )
    max_grad_norm: float = field(default=1.0, metadata={"help": "gradient clipping"})
    max_response_tokens: int = field(default=12_288, metadata={"help": "response length, student and teacher"})

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
    by_teacher: bool = False  # only in the row "teacher_response"


@dataclass
class Group:
    """All rollouts of one prompt: their mean reward is their baseline [G1]."""

    question: Question
    kind: str  # "plain", "bcq" or "ncq"
    prompt: str
    rollouts: list[Rollout]
    candidates: dict = field(default_factory=dict)  # what went into a BCQ or NCQ prompt, for the dumps
    prefix: Sequence[int] = ()  # tokens that every response was made to start with, only in the row "prefix"

    @property
    def accuracy(self) -> float:
        """The student's. A teacher's response always stands in for a wrong one."""
        return sum(rollout.reward for rollout in self.rollouts if not rollout.by_teacher) / len(self.rollouts)


# An actor (generate.Actor, or anything that does the same) draws n rollouts for each request:
# actor(requests, n, sampling, key, phase) -> for each request n replies with .text and .tokens
Actor = Callable[..., list[list]]


@dataclass(frozen=True)
class Step:
    """What the stages of one step share. key: (seed, step), the root of all randomness. special_tokens: the student's,
    neutralised in candidates."""

    student: Actor
    teacher: Actor
    recipe: Recipe
    key: tuple
    special_tokens: Sequence[str] = ()

    def rng(self, *what) -> random.Random:
        return random.Random(seed_of(*self.key, *what))

    def roll_out(self, actor: Actor, requests: Sequence[Request], n: int, phase: str) -> list[list[Rollout]]:
        """n scored rollouts for each request."""
        rows = actor(requests, n, Sampling(max_new_tokens=self.recipe.max_response_tokens), self.key, phase)
        items = [
            (request.question.text, reply.text, request.question.answer, request.question.free_form)
            for request, row in zip(requests, rows, strict=True)
            for reply in row
        ]
        rewards = iter(score(items, asker(self.teacher, self.key)))  # the teacher judges free-form golds
        return [[Rollout(r.text, r.tokens, next(rewards), extract_boxed(r.text)) for r in row] for row in rows]

    def student_groups(self, requests: Sequence[Request], phase: str) -> list[Group]:
        """A group of G_S student rollouts for each request."""
        rows = self.roll_out(self.student, requests, self.recipe.group_size, phase)
        return [Group(r.question, r.kind, r.text, row, prefix=r.prefix) for r, row in zip(requests, rows, strict=True)]


# ---------------------------------------------------------------- Algorithm 1, stages 1-5


def collect(
    step: Step, new: Sequence[Question], replayed: Sequence[Question]
) -> tuple[list[Group], dict[str, float]]:
    """Everything before the update: plain, teacher and reformulated rollouts (Algorithm 1, stages 1-5).

    new, replayed: X_new and X_replay, no question twice.
    Returns all groups, the plain ones of new + replayed first, and counters for the metrics.
    """
    plain = plain_groups(step, [*new, *replayed])  # stage 1
    instances, stats = select(step, plain, cap=count(step.recipe.rho_aug, len(new)))  # stages 2, 3, the post-cap
    requests, candidates, counts = reformulate(step, instances)  # stage 4
    # Stage 5: the student answers; the teacher's text is only in the prompt.
    reformulated = step.student_groups(requests, "reformulate")
    for group, texts in zip(reformulated, candidates, strict=True):
        group.candidates = texts
    return plain + reformulated, stats | counts


def count(rho: float, new: int) -> int:
    """floor(rho * |X_new|), also where the product is a hair below a whole number (0.29 * 100)."""
    return math.floor(rho * new + 1e-9)


def plain_groups(step: Step, questions: Sequence[Question]) -> list[Group]:
    """Stage 1: plain rollouts on new and replayed questions [G1, Z3]."""
    requests = [Request("plain", x.uid, prompts.plain_prompt(x.text), x) for x in questions]
    return step.student_groups(requests, "rollout")


def select(
    step: Step, plain: Sequence[Group], cap: int
) -> tuple[list[tuple[str, Group, Rollout | None]], dict[str, float]]:
    """Stages 2, 3 and the post-cap: which instances are made, as (kind, plain group, correct teacher rollout).

    Hard questions by ascending accuracy, ties at random; for each fresh teacher rollouts [Z1]; then one pool of at most
    `cap` instances, the branches of a question in the recipe's order (BCQ before NCQ). See decisions 1 and 2.
    """
    recipe, branches = step.recipe, step.recipe.branches
    hard = [group for group in plain if group.accuracy < recipe.tau]
    step.rng("ties").shuffle(hard)
    hard.sort(key=lambda group: group.accuracy)

    instances: list[tuple[str, Group, Rollout | None]] = []
    asked, drawn, possible = 0, [], 0
    while hard and branches and len(instances) < cap:
        share = len(hard) if recipe.teacher_on_all_hard else math.ceil((cap - len(instances)) / len(branches))
        head, hard = hard[:share], hard[share:]
        rows: list[list[Rollout]] = [[] for _ in head]
        if branches != ["ncq"]:
            requests = [Request("teacher", group.question.uid, group.prompt, group.question) for group in head]
            rows = step.roll_out(step.teacher, requests, recipe.teacher_group_size, "teacher")
            asked += len(head)
        for group, row in zip(head, rows, strict=True):
            correct = [rollout for rollout in row if rollout.reward == 1.0]
            drawn += [rollout.reward for rollout in row]
            possible += bool(correct)
            positive = step.rng(group.question.uid, "positive").choice(correct) if correct else None
            for branch in branches:
                if (positive or branch == "ncq") and len(instances) < cap:
                    instances.append((branch, group, positive))
    accuracy = sum(drawn) / len(drawn) if drawn else None
    return instances, {"teacher_questions": asked, "teacher_accuracy": accuracy, "bcq_possible": possible}


def reformulate(
    step: Step, instances: Sequence[tuple[str, Group, Rollout | None]]
) -> tuple[list[Request], list[dict], dict[str, float]]:
    """Stage 4: the BCQ and NCQ prompts [Z1, Z2]; what went into each, for the dumps; counters.

    One wrong student rollout is drawn for BCQ, all of them go into NCQ. The teacher compresses every trace, correct or
    wrong, under the same prompt.
    """
    chosen = []
    for kind, group, positive in instances:
        wrong = [rollout for rollout in group.rollouts if rollout.reward == 0.0]
        chosen.append([positive, step.rng(group.question.uid, "negative").choice(wrong)] if kind == "bcq" else wrong)
    traces = {id(rollout): rollout for rollouts in chosen for rollout in rollouts}
    summaries = compress(list(traces.values()), step.teacher, step.key, step.special_tokens)
    compressed = {name: text for name, (text, _) in zip(traces, summaries, strict=True)}

    requests, candidates = [], []
    for (kind, group, _), rollouts in zip(instances, chosen, strict=True):
        question = group.question
        texts, answers = [compressed[id(rollout)] for rollout in rollouts], [rollout.answer for rollout in rollouts]
        if kind == "bcq":  # the order of the two is random, and nothing says which is which
            prompt = prompts.bcq_prompt(question.text, *texts, step.rng(question.uid, "order"), step.special_tokens)
        else:
            prompt = prompts.ncq_prompt(question.text, answers, texts, step.special_tokens)
        requests.append(Request(kind, question.uid, prompt, question))
        candidates.append({"texts": texts, "answers": answers})
    fallbacks = sum(fell_back for _, fell_back in summaries)
    return requests, candidates, {"compressed": len(summaries), "compression_fallbacks": fallbacks}


def compress(
    traces: Sequence[Rollout], teacher: Actor, key: tuple, special_tokens: Sequence[str] = ()
) -> list[tuple[str, bool]]:
    """Teacher compression of candidate traces (Fig. 16). Returns (summary, fell back?) for each trace.

    The question stays out of the prompt, so the teacher has nothing to solve.
    """
    requests = [
        Request("compress", str(i), prompts.compression_prompt(trace.text, special_tokens))
        for i, trace in enumerate(traces)
    ]
    replies = teacher(requests, 1, Sampling(max_new_tokens=COMPRESSION_TOKENS), key, "compress")
    return [read_summary(row[0].text, trace) for row, trace in zip(replies, traces, strict=True)]


def read_summary(reply: str, trace: Rollout) -> tuple[str, bool]:
    """The teacher's summary, or a cut of the trace where the summary is missing or changes the answer (decision 4)."""
    start, end = reply.rfind("<summary>"), reply.rfind("</summary>")
    summary = reply[start + len("<summary>") : end].strip() if 0 <= start < end else ""
    answer = extract_boxed(summary)
    same = answer == trace.answer if None in (answer, trace.answer) else answer.split() == trace.answer.split()
    if summary and same:
        return summary, False
    reasoning = trace.text.rsplit("</think>", 1)[0].replace("<think>", "")
    lines = [line for line in (reasoning.strip() or trace.text).splitlines() if line.strip()][-SUMMARY_LINES + 1 :]
    cut = "\n".join(lines)[-4 * COMPRESSION_TOKENS :]  # about as long as a summary may be
    if trace.answer is not None and extract_boxed(cut) != trace.answer:
        cut += f"\n\\boxed{{{trace.answer}}}"
    return cut, True


# ---------------------------------------------------------------- Algorithm 1, stage 6


def mini_batches(groups: Sequence[Group], recipe: Recipe, key: tuple) -> list[tuple[list[Row], int]]:
    """I equal shares of the step's rollouts: [(rows with non-zero advantage, response tokens of all rows), ...].

    Advantages are those of the whole rollout step, computed once, before it is split.
    """
    if recipe.dynamic_sampling:
        groups = [group for group in groups if len({rollout.reward for rollout in group.rollouts}) > 1]
    rewards = torch.tensor([[rollout.reward for rollout in group.rollouts] for group in groups])
    rewards = rewards.view(len(groups), -1 if groups else 0)
    rows = [
        Row(group.prompt, group.question, rollout.tokens, advantage, group.prefix)
        for group, line in zip(groups, advantages(rewards, recipe.norm).tolist(), strict=True)
        for rollout, advantage in zip(group.rollouts, line, strict=True)
    ]
    random.Random(seed_of(*key, "mini-batches")).shuffle(rows)
    parts = [rows[i :: recipe.updates_per_step] for i in range(recipe.updates_per_step)]
    return [([row for row in part if row.weight != 0.0], sum(len(row.tokens) for row in part)) for part in parts]


def update(learner, groups: Sequence[Group], recipe: Recipe, key: tuple) -> dict[str, float]:
    """I gradient updates on the step's rollouts (Algorithm 1, stage 6) [G2, Da1-Da3, R1, Z0, Z4].

    learner: a learner.Learner, which turns rows into micro-batches and takes the optimiser's step. groups: the same on
    all processes. Returns metrics, equal on all processes.
    """
    parts = mini_batches(groups, recipe, key)
    for rows, _ in parts[1:]:  # pi_theta_old is the policy before the first of the I updates
        for micro in learner.split(rows):
            with torch.no_grad():
                logp = learner.forward(micro)[0]
            for row, old_logp in zip(micro, logp.split([len(row.tokens) for row in micro]), strict=True):
                row.old_logp = old_logp

    world, device = learner.accelerator.num_processes, learner.accelerator.device
    totals = torch.zeros(4, dtype=torch.float64, device=device)  # loss, tokens, clipped tokens, entropy
    norms, without_signal = [], 0
    for index, (rows, tokens) in enumerate(parts):
        if not rows:  # all groups dead: no step on nothing
            without_signal += 1
            continue

        def backward(micro: list[Row], first: bool = index == 0, tokens: int = tokens) -> None:
            logp, entropy, advantage, nothing = learner.forward(micro)
            old_logp = logp.detach() if first or not micro else torch.cat([row.old_logp for row in micro])
            loss = policy_loss(logp, old_logp, advantage, recipe.eps_low, recipe.eps_high, recipe.dual_clip)
            # [Da2] the mean over all response tokens of the mini-batch on all processes; DDP averages over `world`.
            ((loss.sum() + nothing) * world / tokens).backward()
            ratio = torch.exp(logp.detach() - old_logp)
            clipped = torch.where(advantage > 0, ratio > 1 + recipe.eps_high, ratio < 1 - recipe.eps_low)
            sums = loss.detach().sum(), torch.tensor(len(loss)), clipped.sum(), entropy.sum()
            totals.add_(torch.stack([value.to(totals) for value in sums]))

        norms.append(learner.step(rows, backward, recipe.max_grad_norm))

    loss, active_tokens, clipped, entropy = learner.accelerator.reduce(totals, "sum").tolist()
    all_tokens = sum(tokens for _, tokens in parts)
    finite = [norm for norm in norms if norm is not None]
    return {
        "loss": loss / max(all_tokens, 1),
        "grad_norm": sum(finite) / max(len(finite), 1),
        "clip_share": clipped / max(active_tokens, 1),
        "entropy": entropy / max(active_tokens, 1),
        "active_share": sum(len(rows) for rows, _ in parts) / max(sum(len(group.rollouts) for group in groups), 1),
        "response_tokens": all_tokens,
        "updates_without_signal": without_signal,
        "updates_not_finite": len(norms) - len(finite),
    }
