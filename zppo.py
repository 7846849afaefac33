"""ZPPO, Algorithm 1: one training step from plain rollouts to the buffer refresh (arXiv 2606.18216).

Read `collect` for stages 1-5 and `update` for stage 6; the pure functions above them are the equations.
Tags in brackets are the paper's: [G1, G2] GRPO, [Da1-Da3] DAPO, [R1] REINFORCE++, [Z0-Z4] ZPPO's own.
`advantages`, `policy_loss` and `token_logprobs` import nothing from the rest of the project: copy them.

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
 8. The optimiser does not step on a mini-batch without any non-zero advantage, nor on a gradient that is
    not finite, on any process.
 9. Every micro-batch of a VLM holds an image: where it has none, a blank image with weight 0 joins it. So
    the vision tower is always in the graph, as DDP needs, and one process or many give the same weights.
10. Log-probs are of the distribution that was sampled: temperature 1, vision placeholders banned. The
    entropy that is logged is the mean over the tokens that went through the update.
"""

import math
import random
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch.utils.checkpoint import checkpoint

import prompts
from data import Question
from generate import Request, Sampling, seed_of
from models import collate, lm_head, position_ids, response_positions
from rewards import extract_boxed, grade

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


def token_logprobs(
    hidden: torch.Tensor,
    lm_head: Callable[[torch.Tensor], torch.Tensor],
    tokens: torch.Tensor,
    banned: Sequence[int] = (),
    chunk: int = 1024,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs and entropies of response tokens, never holding [batch, length, vocab] logits.

    hidden: [N, H], the last hidden states that predict the N tokens. lm_head: [n, H] -> [n, V] logits.
    tokens: [N]. banned: token ids of probability 0. The head sees `chunk` tokens at a time and is run again in the
    backward pass. Returns log-probs [N], with gradient, and entropies [N], without, both fp32.
    """
    banned = torch.as_tensor(banned, dtype=torch.long, device=hidden.device)

    def head(hidden: torch.Tensor, tokens: torch.Tensor):
        logits = lm_head(hidden).float().index_fill(-1, banned, -torch.inf)  # [n, V]
        logps = logits.log_softmax(-1)
        entropy = torch.special.entr(logps.detach().exp()).sum(-1)
        return logps.gather(-1, tokens.unsqueeze(-1)).squeeze(-1), entropy  # [n], [n]

    chunks = [
        checkpoint(head, *pair, use_reentrant=False)
        for pair in zip(hidden.split(chunk), tokens.split(chunk), strict=True)
    ]
    logp, entropy = zip(*chunks, strict=True)
    return torch.cat(logp), torch.cat(entropy)


class Policy(torch.nn.Module):
    """The student as a map from (prompts, responses) to log-probs: this is what accelerate wraps."""

    def __init__(self, model, banned: Sequence[int] = ()):
        super().__init__()
        self.model, self.banned = model, list(banned)

    def forward(self, batch: dict, position_ids: torch.Tensor, predicts: torch.Tensor):
        """batch: `models.collate`d prompts + responses [B, L]. predicts: bool [B, L], True where the next token is a
        response token. Returns (log-probs, entropies) of the response tokens, [N], row after row."""
        backbone = getattr(self.model, self.model.base_model_prefix)
        hidden = backbone(**batch, position_ids=position_ids, use_cache=False).last_hidden_state  # [B, L, H]
        tokens = batch["input_ids"].roll(-1, dims=-1)  # [B, L]: the token that each position predicts
        return token_logprobs(hidden[predicts], lm_head(self.model), tokens[predicts], self.banned)


# ---------------------------------------------------------------- data of one step


@dataclass
class Recipe:
    """The method's hyperparameters. Defaults: Table 8 of the paper."""

    group_size: int = field(default=8, metadata={"help": "G_S, student rollouts per prompt"})
    teacher_group_size: int = field(default=4, metadata={"help": "G_T, teacher rollouts per hard question"})
    tau: float = field(default=0.5, metadata={"help": "a question is hard below this plain accuracy"})
    rho_replay: float = field(default=0.25, metadata={"help": "replayed questions per new question"})
    rho_aug: float = field(default=0.25, metadata={"help": "BCQ + NCQ instances per new question, at most"})
    bcq: bool = field(default=True, metadata={"help": "[Z1] candidate prompts with one correct and one wrong trace"})
    ncq: bool = field(default=True, metadata={"help": "[Z2] candidate prompts with all wrong traces"})
    replay: bool = field(default=True, metadata={"help": "[Z3] the replay buffer of hard questions"})
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
    max_grad_norm: float = field(default=1.0, metadata={"help": "gradient clipping"})
    max_response_tokens: int = field(default=12_288, metadata={"help": "response length, student and teacher"})


@dataclass
class Rollout:
    """One scored response."""

    text: str
    tokens: list[int]  # as sampled, end token included
    reward: float  # 1.0 or 0.0
    answer: str | None  # content of the last \\boxed{}, None if there is none


@dataclass
class Group:
    """All rollouts of one prompt: their mean reward is their baseline [G1]."""

    question: Question
    kind: str  # "plain", "bcq" or "ncq"
    prompt: str
    rollouts: list[Rollout]
    candidates: dict = field(default_factory=dict)  # what went into a BCQ or NCQ prompt, for the dumps

    @property
    def accuracy(self) -> float:
        return sum(rollout.reward for rollout in self.rollouts) / len(self.rollouts)


# An actor (generate.Actor, or anything that does the same) draws n rollouts for each request:
# actor(requests, n, sampling, key, phase) -> for each request n replies with .text and .tokens
Actor = Callable[..., list[list]]


# ---------------------------------------------------------------- Algorithm 1, stages 1-5


def collect(
    new: Sequence[Question],
    replayed: Sequence[Question],
    student: Actor,
    teacher: Actor,
    recipe: Recipe,
    key: tuple,
    special_tokens: Sequence[str] = (),
    score: Callable[[Sequence[tuple[Question, str]]], list[float]] | None = None,
) -> tuple[list[Group], dict[str, float]]:
    """Everything before the update: plain, teacher and reformulated rollouts (Algorithm 1, stages 1-5).

    new, replayed: X_new and X_replay, no question twice. key: (seed, step), the root of all randomness here.
    score: rewards for (question, response) pairs; the grader of rewards.py by default.
    Returns all groups, the plain ones of new + replayed first, and counters for the metrics.
    """
    score = score or (lambda pairs: [grade(text, question.answer) for question, text in pairs])
    sampling = Sampling(max_new_tokens=recipe.max_response_tokens)
    stats = {"teacher_questions": 0, "teacher_accuracy": 0.0, "bcq_possible": 0}

    def roll_out(actor: Actor, requests: list[Request], n: int, phase: str) -> list[list[Rollout]]:
        rows = actor(requests, n, sampling, key, phase)
        pairs = [(request.question, reply.text) for request, row in zip(requests, rows, strict=True) for reply in row]
        rewards = iter(score(pairs))
        return [[Rollout(r.text, r.tokens, next(rewards), extract_boxed(r.text)) for r in row] for row in rows]

    # 1. Plain rollouts on new and replayed questions [G1, Z3].
    requests = [Request("plain", x.uid, prompts.plain_prompt(x.text), x) for x in [*new, *replayed]]
    plain = [
        Group(request.question, "plain", request.text, rollouts)
        for request, rollouts in zip(requests, roll_out(student, requests, recipe.group_size, "rollout"), strict=True)
    ]

    # 2. Rank the hard questions, rbar_x < tau, by ascending accuracy; ties in random order.
    hard = [group for group in plain if group.accuracy < recipe.tau]
    random.Random(seed_of(*key, "ties")).shuffle(hard)
    hard.sort(key=lambda group: group.accuracy)

    # 3-5. Walk the ranking: fresh teacher rollouts, then BCQ before NCQ, as one pool of at most `cap` instances.
    cap = math.floor(recipe.rho_aug * len(new))
    branches = recipe.bcq + recipe.ncq
    instances: list[tuple[str, Group, Rollout | None]] = []  # (kind, plain group, correct teacher rollout)
    while hard and branches and len(instances) < cap:
        share = len(hard) if recipe.teacher_on_all_hard else math.ceil((cap - len(instances)) / branches)
        head, hard = hard[:share], hard[share:]
        correct: list[list[Rollout]] = [[] for _ in head]
        if recipe.bcq:  # [Z1] teacher rollouts; the correct ones are kept
            requests = [Request("teacher", group.question.uid, group.prompt, group.question) for group in head]
            rows = roll_out(teacher, requests, recipe.teacher_group_size, "teacher")
            correct = [[rollout for rollout in row if rollout.reward == 1.0] for row in rows]
            stats["teacher_questions"] += len(head)
            stats["teacher_accuracy"] += sum(len(row) for row in correct) / recipe.teacher_group_size
            stats["bcq_possible"] += sum(bool(row) for row in correct)
        for group, kept in zip(head, correct, strict=True):
            if kept and len(instances) < cap:
                rng = random.Random(seed_of(*key, group.question.uid, "positive"))
                instances.append(("bcq", group, rng.choice(kept)))
            if recipe.ncq and len(instances) < cap:
                instances.append(("ncq", group, None))
    stats["teacher_accuracy"] /= max(stats["teacher_questions"], 1)

    # 4. Build the prompts. One wrong student rollout is drawn for BCQ, all of them go into NCQ; the teacher compresses
    #    every trace, correct or wrong, under the same prompt.
    chosen = []
    for kind, group, positive in instances:
        wrong = [rollout for rollout in group.rollouts if rollout.reward == 0.0]
        if kind == "bcq":
            rng = random.Random(seed_of(*key, group.question.uid, "negative"))
            chosen.append([positive, rng.choice(wrong)])
        else:
            chosen.append(wrong)
    traces = {id(rollout): rollout for rollouts in chosen for rollout in rollouts}
    summaries = compress(list(traces.values()), teacher, key, special_tokens)
    compressed = dict(zip(traces, summaries, strict=True))
    stats["compressed"] = len(summaries)
    stats["compression_fallbacks"] = sum(fell_back for _, fell_back in summaries)

    requests, candidates = [], []
    for (kind, group, _), rollouts in zip(instances, chosen, strict=True):
        texts = [compressed[id(rollout)][0] for rollout in rollouts]
        answers = [rollout.answer for rollout in rollouts]
        if kind == "bcq":  # the order of the two is random, and nothing says which is which
            rng = random.Random(seed_of(*key, group.question.uid, "order"))
            prompt = prompts.bcq_prompt(group.question.text, *texts, rng, special_tokens)
        else:
            prompt = prompts.ncq_prompt(group.question.text, answers, texts, special_tokens)
        requests.append(Request(kind, group.question.uid, prompt, group.question))
        candidates.append({"texts": texts, "answers": answers})

    # 5. Reformulated rollouts: the student answers, the teacher's text is only in the prompt.
    rows = roll_out(student, requests, recipe.group_size, "reformulate")
    reformulated = [
        Group(request.question, request.kind, request.text, rollouts, texts)
        for request, rollouts, texts in zip(requests, rows, candidates, strict=True)
    ]
    return plain + reformulated, stats


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


@dataclass
class Row:
    """One rollout on its way through the update."""

    prompt: str
    question: Question
    tokens: list[int]
    advantage: float
    old_logp: torch.Tensor | None = None  # [tokens]


def mini_batches(groups: Sequence[Group], recipe: Recipe, key: tuple) -> list[tuple[list[Row], int]]:
    """I equal shares of the step's rollouts: [(rows with non-zero advantage, response tokens of all rows), ...].

    Advantages are those of the whole rollout step, computed once, before it is split.
    """
    rewards = torch.tensor([[rollout.reward for rollout in group.rollouts] for group in groups])
    rows = [
        Row(group.prompt, group.question, rollout.tokens, advantage)
        for group, line in zip(groups, advantages(rewards, recipe.norm).tolist(), strict=True)
        for rollout, advantage in zip(group.rollouts, line, strict=True)
    ]
    random.Random(seed_of(*key, "mini-batches")).shuffle(rows)
    parts = [rows[i :: recipe.updates_per_step] for i in range(recipe.updates_per_step)]
    return [([row for row in part if row.advantage != 0.0], sum(len(row.tokens) for row in part)) for part in parts]


def update(
    policy: torch.nn.Module,
    optimizer,
    accelerator,
    groups: Sequence[Group],
    recipe: Recipe,
    key: tuple,
    encode: Callable[[str, Question], dict[str, torch.Tensor]],
    blank: dict[str, torch.Tensor],
    micro_batch: int = 4,
    progress: Callable[[int], None] = lambda rows: None,
) -> dict[str, float]:
    """I gradient updates on the step's rollouts (Algorithm 1, stage 6) [G2, Da1-Da3, R1, Z0, Z4].

    policy: a `Policy` that went through accelerator.prepare, with its optimizer. groups: the same on all processes.
    encode: (prompt, question) -> `models.encode`d prompt. blank: an encoded prompt that joins micro-batches with
    weight 0, with an image if the student is a VLM. micro_batch: rows per forward pass; changes nothing but memory.
    Returns metrics, equal on all processes.
    """
    world, rank = accelerator.num_processes, accelerator.process_index
    student = accelerator.unwrap_model(policy).model

    def split(rows: list[Row]) -> list[list[Row]]:
        """This process's micro-batches; as many on every process, the last ones possibly empty."""
        rows = sorted(rows, key=lambda row: len(row.prompt) + len(row.tokens))  # rows of like length together
        count = math.ceil(math.ceil(len(rows) / world) / micro_batch)
        mine = rows[rank::world]
        return [mine[i * micro_batch : (i + 1) * micro_batch] for i in range(count)]

    def forward(rows: list[Row]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        encoded, responses = [encode(row.prompt, row.question) for row in rows], [row.tokens for row in rows]
        if not rows or ("pixel_values" in blank and not any("pixel_values" in prompt for prompt in encoded)):
            encoded, responses = [*encoded, blank], [*responses, blank["input_ids"][-1:].tolist()]
        batch = collate(encoded, responses, device=accelerator.device)
        predicts = response_positions(encoded, responses, batch["input_ids"].shape).to(accelerator.device)
        logp, entropy = policy(batch, position_ids(student, batch), predicts)
        lengths = torch.tensor([len(row.tokens) for row in rows], dtype=torch.long)
        advantage = torch.tensor([row.advantage for row in rows]).repeat_interleave(lengths).to(logp)  # [N]
        n = len(advantage)
        return logp[:n], entropy[:n], advantage, 0.0 * logp[n:].sum()  # the blank row: in the graph, of no weight

    parts = mini_batches(groups, recipe, key)
    for rows, _ in parts[1:]:  # pi_theta_old is the policy before the first of the I updates
        for micro in split(rows):
            with torch.no_grad():
                logp = forward(micro)[0]
            for row, old_logp in zip(micro, logp.split([len(row.tokens) for row in micro]), strict=True):
                row.old_logp = old_logp

    totals = torch.zeros(4, dtype=torch.float64, device=accelerator.device)  # loss, tokens, clipped tokens, entropy
    norms, skipped = [], {"updates_without_signal": 0, "updates_not_finite": 0}
    for index, (rows, tokens) in enumerate(parts):
        if not rows:  # all groups dead: no step on nothing
            skipped["updates_without_signal"] += 1
            continue
        micros = split(rows)
        for i, micro in enumerate(micros):
            with accelerator.no_sync(policy) if i + 1 < len(micros) else nullcontext():
                logp, entropy, advantage, nothing = forward(micro)
                old_logp = logp.detach() if index == 0 or not micro else torch.cat([row.old_logp for row in micro])
                loss = policy_loss(logp, old_logp, advantage, recipe.eps_low, recipe.eps_high, recipe.dual_clip)
                # [Da2] the mean over all response tokens of the mini-batch on all processes; DDP averages over `world`.
                ((loss.sum() + nothing) * world / tokens).backward()
            ratio = torch.exp(logp.detach() - old_logp)
            clipped = torch.where(advantage > 0, ratio > 1 + recipe.eps_high, ratio < 1 - recipe.eps_low)
            sums = loss.detach().sum(), torch.tensor(len(loss)), clipped.sum(), entropy.sum()
            totals += torch.stack([value.to(totals) for value in sums])
            progress(len(micro))
        norm = float(accelerator.clip_grad_norm_(policy.parameters(), recipe.max_grad_norm))
        if math.isfinite(norm):
            optimizer.step()
            norms.append(norm)
        else:
            skipped["updates_not_finite"] += 1
        optimizer.zero_grad()

    loss, active_tokens, clipped, entropy = accelerator.reduce(totals, "sum").tolist()
    all_tokens = sum(tokens for _, tokens in parts)
    return {
        "loss": loss / max(all_tokens, 1),
        "grad_norm": sum(norms) / max(len(norms), 1),
        "clip_share": clipped / max(active_tokens, 1),
        "entropy": entropy / max(active_tokens, 1),
        "active_share": sum(len(rows) for rows, _ in parts) / max(sum(len(group.rollouts) for group in groups), 1),
        "response_tokens": all_tokens,
        **skipped,
    }
