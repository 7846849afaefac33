"""What the tests of the stages of Algorithm 1 share: questions, scripted models, groups, a tiny learner."""

import math
import random
import re
from types import SimpleNamespace

import tiny
import torch
from accelerate import Accelerator

from engine.models import Encoder, banned_token_ids
from engine.questions import Question
from engine.update import Learner, Policy, Row
from rewards import extract_boxed
from zppo import (
    Context,
    Group,
    Recipe,
    Rollout,
    plain_groups,
    quota,
    reformulate,
    roll_out,
    select,
    update,
)

# ---------------------------------------------------------------- scripted models


def ask(uid: str, answer: str = "1") -> Question:
    return Question(uid, f"question {uid}?", (), answer)


class Script:
    """An actor that answers from text(kind, uid, j). Its tokens are (its number, j), so that they can be told apart."""

    def __init__(self, number: int, text):
        self.number, self.text, self.calls = number, text, []

    def __call__(self, requests, n, sampling, key, phase):
        self.calls.append(SimpleNamespace(requests=list(requests), n=n, sampling=sampling, key=key, phase=phase))
        return [
            [SimpleNamespace(text=self.text(request, j), tokens=[self.number, j], finished=True) for j in range(n)]
            for request in requests
        ]

    def asked(self, phase: str) -> list:
        return [request for call in self.calls if call.phase == phase for request in call.requests]


def says(right: dict[str, int], n: int, mark: str, default: int = 0):
    """right[uid] of n answers are correct; the wrong ones say 100 + j. Every trace has its own name."""

    def text(request, j):
        if request.kind == "tip":
            return "hint from " + re.search(r"\w+-\w+-\d+", request.text).group()
        if request.kind == "compress":  # a summary of whatever is in the prompt, with its answer
            response = request.text.split("<response>\n")[1].split("\n</response>")[0]
            box = extract_boxed(response)
            name = re.search(r"\w+-\w+-\d+", response).group()
            return f"<summary>short {name}" + ("" if box is None else f" \\boxed{{{box}}}") + "</summary>"
        # spread the correct ones over the group: position must not matter
        order = random.Random(f"{request.kind}{request.uid}").sample(range(n), n)
        value = "1" if order[j] < right.get(request.uid, default) else str(100 + j)
        return f"<think>{mark}-{request.uid}-{j}</think>\\boxed{{{value}}}"

    return text


def actors(student: dict[str, int], teacher: dict[str, int], recipe: Recipe) -> tuple[Script, Script]:
    return (
        Script(1, says(student, recipe.group_size, "student")),
        Script(2, says(teacher, recipe.teacher_group_size, "teacher")),
    )


def instances(groups: list[Group]) -> list[tuple[str, str]]:
    return [(group.kind, group.question.uid) for group in groups if group.kind != "plain"]


def collect(ctx: Context, new: list[Question], replayed: list[Question]) -> tuple[list[Group], dict]:
    """Stages 1-5, as train.py calls them; (groups, counts)."""
    plain = roll_out(ctx, plain_groups([*new, *replayed]), "rollout")
    chosen = select(ctx, plain, quota(ctx.recipe.rho_aug, len(new)))
    return plain + roll_out(ctx, reformulate(ctx, chosen), "reformulate"), ctx.counts


KEY = (0, 3)
FOUR = [ask(uid) for uid in "abcd"]


# ---------------------------------------------------------------- groups and their update


NORMS = ["norm_wo_zero", "no_norm", "norm_with_zero"]


def groups_of(seed: int = 0, count: int = 5, size: int = 4, trivial: tuple = (1,)) -> list[Group]:
    """Groups with responses of unequal lengths; every second question has an image; those in `trivial` are all wrong."""
    rng = random.Random(seed)
    groups = []
    for i in range(count):
        images = (tiny.colour(("red", "lime", "blue")[i % 3], 16 * (1 + i % 2), 32),) if i % 2 == 0 else ()
        question = Question(f"q{i}", "colour?" + "!" * i, images, "1")
        rewards = [0.0] * size if i in trivial else [1.0, 0.0, *(float(rng.random() < 0.4) for _ in range(size - 2))]
        rollouts = [
            Rollout("", [rng.randrange(50) for _ in range(rng.randint(1, 9))] + [tiny.END], reward, None)
            for reward in rewards
        ]
        groups.append(Group(question, "plain", question.text, rollouts))
    return groups


def all_rows(groups, norm="norm_wo_zero") -> list:
    rewards = [[rollout.reward for rollout in group.rollouts] for group in groups]
    return [
        Row(group.prompt, group.question, rollout.tokens, advantage)
        for group, line in zip(groups, scalar_advantages(rewards, norm))
        for rollout, advantage in zip(group.rollouts, line)
    ]


encoder = Encoder(tiny.PROCESSOR)
BLANK = Row("blank", Question("blank", "", (tiny.colour("black", 16, 16),), ""), [tiny.END], 0.0)


def sgd(parameters, lr: float = 0.2):
    return torch.optim.SGD(parameters, lr=lr)


def run(groups, recipe, model=None, optimizer=sgd, steps: int = 1, **settings):
    """`update` on a tiny VLM. Returns (model, metrics, optimizer)."""
    model = (model or tiny.make("qwen3_5")).train()
    accelerator = Accelerator(cpu=True)
    policy = Policy(model, banned_token_ids(model, tiny.PROCESSOR))
    policy, optimizer = accelerator.prepare(policy, optimizer(policy.parameters()))
    settings = {"encoder": encoder, "blank": BLANK, "micro_tokens": 200, **settings}
    learner = Learner(policy, optimizer, accelerator, **settings)
    for step in range(steps):
        metrics = update(learner, groups, recipe, (0, step))
    return model, metrics, optimizer


def weights(model) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


# ---------------------------------------------------------------- references


def scalar_advantages(rewards: list[list[float]], norm: str) -> list[list[float]]:
    """Eqs. 2-5 in plain Python numbers."""
    active = [len(set(group)) > 1 for group in rewards]
    centred = [[r - sum(g) / len(g) for r in g] if ok else [0.0] * len(g) for g, ok in zip(rewards, active)]
    if norm == "no_norm" or not any(active):
        return centred
    chosen = [a for group, ok in zip(centred, active) if ok or norm == "norm_with_zero" for a in group]
    mean = sum(chosen) / len(chosen)
    std = math.sqrt(sum((a - mean) ** 2 for a in chosen) / len(chosen))
    return [[(a - mean) / (std + 1e-8) if ok else 0.0 for a in group] for group, ok in zip(centred, active)]
