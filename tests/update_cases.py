"""Driver of test_processes.py: `zppo.update` on hand-made groups, and rollouts of an `Actor`, on many processes.

usage: update_cases.py FOLDER   (each case's weights, first gradients and metrics go there, and rollouts.json)
"""

import json
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import save_file

from engine.models import Encoder, banned_token_ids
from engine.questions import Question
from engine.update import Learner, Policy, Row
from generate import Actor, Request, Sampling
from world import pretrain
from zppo import Group, Recipe, Rollout, update

CASES = ("mixed", "text", "single", "dead", "nan")
RED = Image.new("RGB", (32, 16), "red")


def make_groups(case: str, tokenizer) -> list[Group]:
    def group(name: str, images: tuple, rewards: list[float]) -> Group:
        texts = ["17●24" * (i + 1) for i in range(4)]  # unequal lengths
        rollouts = [
            Rollout(t, tokenizer(t).input_ids + [tokenizer.eos_token_id], r, None) for t, r in zip(texts, rewards)
        ]
        return Group(Question(name, name, images, "24"), "plain", f"{name}\n\nquestion", rollouts)

    one = [1.0, 0.0, 0.0, 0.0]
    return {
        "mixed": [group("a", (RED,), one), group("b", (), [0.0, 1.0, 1.0, 0.0]), group("c", (RED,), [0.0] * 4)],
        "text": [group("a", (), one), group("b", (), [1.0, 1.0, 0.0, 1.0])],
        "single": [group("a", (RED,), [0.0, 1.0, 0.0, 0.0])],
        "dead": [group("a", (RED,), [0.0] * 4), group("b", (), [1.0] * 4)],
        "nan": [group("a", (RED,), one)],
    }[case]


def run(case: str, accelerator: Accelerator, folder: Path) -> None:
    processor = pretrain.make_processor()
    model = pretrain.make_model(processor, 32, 2, seed=0).train()
    policy = Policy(model, banned_token_ids(model, processor))
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-3, weight_decay=0.1)
    gradients: dict = {}  # of the first step: from there on, Adam makes full steps of what was rounding noise

    def keep(*_) -> None:
        if not gradients:
            gradients.update({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})

    optimizer.register_step_pre_hook(keep)
    policy, optimizer = accelerator.prepare(policy, optimizer)
    if case == "nan":  # the gradient of one parameter is poisoned on one process only
        bad = model.model.language_model.norm.weight
        bad.register_hook(lambda grad: grad * torch.nan if accelerator.is_last_process else grad)

    blank = Row("blank", Question("blank", "", (Image.new("RGB", (16, 16)),), ""), [1], 0.0)
    learner = Learner(policy, optimizer, accelerator, Encoder(processor), blank, micro_tokens=200)
    for step in range(2):
        groups = make_groups(case, processor.tokenizer)
        updates = 4 if case == "single" else 2  # single: one active row in each update
        metrics = update(learner, groups, Recipe(updates_per_step=updates), (0, step))
    if accelerator.is_main_process:
        weights = {name: p.detach().contiguous() for name, p in model.named_parameters()}
        save_file(weights, folder / f"{case}.safetensors")
        save_file(gradients, folder / f"{case}-gradients.safetensors")
        metrics["processes"] = accelerator.num_processes
        metrics["optimizer_states"] = len(optimizer.state_dict()["state"])
        (folder / f"{case}.json").write_text(json.dumps(metrics))
    accelerator.wait_for_everyone()


def sample(accelerator: Accelerator, folder: Path) -> None:
    """Three requests in batches of one to three rows: with the largest, most processes have no batch of their own."""
    processor = pretrain.make_processor()
    model = pretrain.make_model(processor, 32, 2, seed=0)
    requests = [Request("plain", uid, f"question {uid}") for uid in ("a", "bb", "ccc")]
    replies = {}
    for rows in (2, 4, 6):
        drawn = Actor(model, processor, rows)(requests, 2, Sampling(max_new_tokens=12), (0, 0), "plain")
        replies[rows] = [[reply.tokens for reply in group] for group in drawn]
    if accelerator.is_main_process:
        (folder / "rollouts.json").write_text(json.dumps(replies))


if __name__ == "__main__":
    accelerator = Accelerator(cpu=True)
    for case in CASES:
        run(case, accelerator, Path(sys.argv[1]))
    sample(accelerator, Path(sys.argv[1]))
    accelerator.wait_for_everyone()
    accelerator.end_training()
