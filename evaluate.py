"""Accuracy of a model folder: the paper's decoding, and the same closer and grader as in training (App. B.2).

    python evaluate.py --model world/student

answers the held-out questions of the embedded world, one response each, and writes every result to disk.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from accelerate import PartialState
from transformers import HfArgumentParser

import prompts
from engine.models import load_model, load_processor
from engine.questions import Question
from engine.run import write_records
from generate import Actor, Request, Sampling, ask
from rewards import score
from world import table as world

# App. B.2: the decoding of all benchmarks (min-p 0 and repetition penalty 1 are no-ops).
DECODING = Sampling(max_new_tokens=12_288, temperature=0.6, top_p=0.95, top_k=20, presence_penalty=1.5)


def evaluate(
    actor: Actor,
    questions: dict[str, Sequence[Question]],
    sampling: Sampling = DECODING,
    seed: int = 0,
    judge: Actor | None = None,
) -> list[dict]:
    """One response to each question (Pass@1). Returns a record per question with its family and reward.

    judge: the model that judges free-form golds; only needed where there are any.
    """
    asked = [(family, question) for family in questions for question in questions[family]]
    requests = [Request("evaluate", q.uid, prompts.plain_prompt(q.text), q) for _, q in asked]
    replies = actor(requests, 1, sampling, (seed, "evaluate"), "evaluate")
    items = [(q.text, reply.text, q.answer, q.free_form) for (_, q), (reply,) in zip(asked, replies, strict=True)]
    rewards = score(items, partial(ask, judge, (seed, "evaluate")))
    return [
        {
            "family": family,
            "uid": question.uid,
            "response": reply.text,
            "gold": question.answer,
            "reward": reward,
            "finished": reply.finished,
        }
        for (family, question), (reply,), reward in zip(asked, replies, rewards, strict=True)
    ]


def accuracies(records: Iterable[dict]) -> dict[str, float]:
    """Accuracy in percent by family, in order of appearance."""
    rewards = defaultdict(list)
    for record in records:
        rewards[record["family"]].append(record["reward"])
    return {family: 100 * sum(values) / len(values) for family, values in rewards.items()}


@dataclass
class Arguments:
    """Held-out accuracy of a model folder on the embedded world."""

    model: str = field(default=str(world.WORLD / "student"), metadata={"help": "model folder"})
    out: str = field(default="results.jsonl", metadata={"help": "where the per-question results go"})
    seed: int = field(default=0, metadata={"help": "seed of the sampled responses"})
    max_new_tokens: int = field(default=64, metadata={"help": "response length (the paper's benchmarks use 12288)"})
    rows: int = field(default=128, metadata={"help": "responses generated at a time"})


def main(args: Arguments) -> None:
    state = PartialState()
    processor = load_processor(args.model)
    actor = Actor(load_model(args.model).to(state.device), processor, rows=args.rows)
    sampling = replace(DECODING, max_new_tokens=args.max_new_tokens)
    records = evaluate(actor, world.questions()[1], sampling, args.seed)
    if state.is_main_process:
        write_records(records, Path(args.out))
        for family, accuracy in accuracies(records).items():
            print(f"{family:<14} {accuracy:5.1f}%")
        print(f"per-question results: {args.out}")


if __name__ == "__main__":
    main(*HfArgumentParser(Arguments).parse_args_into_dataclasses())
