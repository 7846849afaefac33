"""SmolLM2 learns the form of an answer from 64 examples, then ZPPO and GRPO† teach it to add.

    python -m bench.smollm.warm                 all runs that are missing, seed by seed
    python -m bench.smollm.warm --collect       curves, table and picture from what is there

The second comparison beside run.py, which starts cold. warm/preregistration.md says what was fixed
before the runs.

Decisions:
1. Supervised training shows sums of one-digit numbers alone, so what it teaches is the form: a line
   of work and a box. What is asked afterwards are sums of two-digit numbers.
"""

import random
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from bench.smollm.run import OUT, compare
from engine.models import encode
from engine.output import read_records, write_records
from examples.smollm import convert_model, teacher_reply, write_questions
from prompts import plain_prompt

METHODS = ("zppo", "grpo_replay")
OPTIONS = ["--steps", "10", "--rho_aug", "0.25"]
HELD_OUT = 480
EXAMPLES, BATCH, LR = 64, 8, 2e-5  # of supervised training: one pass
NAMES = "Ana Ben Carla David Emma Farid Grace Hugo Ines Jon".split()
THINGS = "apples books coins eggs marbles pencils shells stamps tickets cards".split()


def prepare(folder: Path) -> None:
    """The warm student and the questions, where examples/smollm.py looks for them."""
    if (folder / "student").exists():
        return
    cold, training, held_out = folder / "cold", folder / "training.jsonl", folder / "held_out.jsonl"
    write_questions(training, held_out)
    rows = read_records(held_out) + read_records(training)
    rng = random.Random(1)
    # Every second question becomes a story. No pair of numbers is both trained on and held out.
    for row in rows[1::2]:
        first, second = row["question"].removeprefix("What is ").removesuffix("?").split(" + ")
        row["question"] = story(first, second, rng)
    write_records(rows[:HELD_OUT], held_out)
    write_records(rows[HELD_OUT:], training)
    if not cold.exists():
        convert_model(cold)
    warm_up(cold, folder / "student")


def story(first: int | str, second: int | str, rng: random.Random) -> str:
    name, thing = rng.choice(NAMES), rng.choice(THINGS)
    return (
        f"{name} has {first} {thing} and gets {second} more. How many {thing} does {name} have now?"
    )


def examples(rng: random.Random) -> list[str]:
    """Sums of one-digit numbers; every second one is a story."""
    questions = []
    for place in range(EXAMPLES):
        first, second = rng.randint(1, 9), rng.randint(1, 9)
        plain = f"What is {first} + {second}?"
        questions.append(story(first, second, rng) if place % 2 else plain)
    return questions


def warm_up(cold: Path, warm: Path) -> None:
    """Eight steps of supervised training on the teacher's answers (decision 1)."""
    model = AutoModelForCausalLM.from_pretrained(cold)
    tokenizer = AutoTokenizer.from_pretrained(cold)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.0)
    questions = examples(random.Random(2))
    for start in range(0, EXAMPLES, BATCH):
        for question in questions[start : start + BATCH]:
            prompt = encode(tokenizer, plain_prompt(question))["input_ids"]
            reply = tokenizer.encode(teacher_reply(question) + tokenizer.eos_token)
            tokens = torch.tensor([*prompt.tolist(), *reply])[None]  # [1, length]
            labels = tokens.clone()
            labels[:, : len(prompt)] = -100  # the prompt is not learnt
            loss = model(input_ids=tokens, labels=labels).loss / BATCH
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(warm)
    tokenizer.save_pretrained(warm)


if __name__ == "__main__":
    compare(
        __doc__.splitlines()[0], Path("runs/smollm_warm"), OUT / "warm", METHODS, OPTIONS, prepare
    )
