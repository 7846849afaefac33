"""Pass@1 with the paper's decoding, closer and grader (App. B.2): of a model folder, a hub id or a served model.

    python evaluate.py --model world/student                            the embedded world's held-out questions
    python evaluate.py --model M --data questions.jsonl                 own questions
    accelerate launch evaluate.py --model M --suite vlm --judge J       the paper's benchmarks, or --benchmarks ai2d,mmlu
    python evaluate.py --compare paper:0.8B/grpo_replay results.jsonl   differences with intervals (App. F.6)

What a run leaves: --out with a line per question, while it runs; beside it .args.json, .summary.json (every number) and
.judged.jsonl (every row that needed a judge, and why). The same command goes on where it was stopped.

Decisions:
1. The closer follows the last turn of every question; task format wishes are stripped (suite/rows.py).
2. Records are written after each round of questions; a round is 4 * --rows questions for each process.
3. A family's average is said to be partial unless all its benchmarks have a score.
"""

import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from tqdm import tqdm

import prompts
from engine.options import option, parse
from engine.questions import MAX_PIXELS, MIN_PIXELS, DataError, Question, load_questions
from engine.run import append, read_records, write_records, write_whole
from engine.snapshots import find_snapshot
from extras.served import ServedActor
from generate import Actor, Request, Sampling, ask
from suite.compare import cluster_bootstrap, macro, paper, summarise
from suite.entries import BENCHMARKS, BY_NAME, FAMILIES, Benchmark
from suite.rows import Item, load
from suite.scorers import JUDGES, read_prompts, score
from world import table as world

# App. B.2: the decoding of all benchmarks (min-p 0 and repetition penalty 1 are no-ops).
DECODING = Sampling(max_new_tokens=12_288, temperature=0.6, top_p=0.95, top_k=20, presence_penalty=1.5)


def evaluate(
    actor: Actor | ServedActor,
    questions: dict[str, Sequence[Question]],
    sampling: Sampling = DECODING,
    seed: int = 0,
    judge: Actor | ServedActor | None = None,
    judge_prompts: dict | None = None,
) -> list[dict]:
    """One response to each question (Pass@1). Returns a record per question with its family and reward.

    questions: by family; those of the suite are by benchmark. judge: the model that judges free-form golds, and what the
    suite's rules cannot settle. judge_prompts: scorers.read_prompts, for the suite.
    """
    asked = [(family, question) for family in questions for question in questions[family]]
    requests = [Request("evaluate", q.uid, prompts.plain_prompt(q.text), q) for _, q in asked]
    replies = [reply for (reply,) in actor(requests, 1, sampling, (seed, "evaluate"), "evaluate")]
    pairs = [(question, reply.text) for (_, question), reply in zip(asked, replies, strict=True)]
    scores = score(pairs, judge and partial(ask, judge, (seed, "evaluate")), judge_prompts or {})
    records = []
    for (family, question), reply, result in zip(asked, replies, scores, strict=True):
        record = {"family": family, "uid": question.uid, "response": reply.text, "gold": question.answer}
        record |= {"reward": result.reward, "finished": reply.finished}
        if isinstance(question, Item):
            record |= {"method": result.method, "why": result.why, "tokens": len(reply.tokens), **result.extra}
            record |= {"unit": question.row["unit"], "groups": question.groups}
        records.append(record)
    return records


def accuracies(records: Iterable[dict]) -> dict[str, float]:
    """Accuracy in percent by family, in order of appearance."""
    rewards = defaultdict(list)
    for record in records:
        rewards[record["family"]].append(record["reward"])
    return {family: 100 * sum(values) / len(values) for family, values in rewards.items()}


@dataclass
class Arguments:
    """What to evaluate on what, and how."""

    model: str = option(str(world.WORLD / "student"), "model folder, hub id or http://host:port/v1")
    model_name: str = option("", "a served model's name on its server; empty: the server is asked")
    suite: str = option("", "the paper's benchmarks of a family", choices=[*FAMILIES, "all"])
    benchmarks: str = option("", "some of them, separated by commas (see --list)")
    data: str = option("", "own questions: hub id, folder, parquet, CSV or JSON lines file")
    split: str = option("train", "split of --data")
    columns: list[str] = option(list, "of --data, ours=theirs: question=prompt answer=gold images=picture")
    root: str = option("", "folder that holds every benchmark as owner/name; empty: the hub")
    ids: list[str] = option(list, "benchmarks elsewhere: ai2d=owner/name")
    judge: str = option("", "the judge: model folder, hub id or http://host:port/v1")
    judge_name: str = option("", "a served judge's name on its server")
    judge_prompts: str = option("", "TOML file with other prompts for the official judges (see configs/judges.toml)")
    out: str = option("results.jsonl", "where the per-question results go")
    seed: int = option(0, "seed of the sampled responses")
    max_new_tokens: int = option(0, "response length; 0: 12288, and 64 for the embedded world", 0)
    limit: int = option(0, "about so many rows of each benchmark; 0: all", 0)
    frames: int = option(32, "frames of a video", 1)
    rows: int = option(128, "responses generated at a time on each process", 1)
    min_pixels: int = option(MIN_PIXELS, "images are scaled up to this many pixels", 1)
    max_pixels: int = option(MAX_PIXELS, "images are scaled down to this many pixels", 1)
    paper: str = option("", "row of the paper's tables beside ours: 0.8B/base, 2B/zppo, ...")
    list: bool = option(False, "print the suite and stop")
    compare: list[str] = option(list, "results to compare with the first: files, or paper:0.8B/base")


def entries_of(args: Arguments) -> list[Benchmark]:
    """The benchmarks that were asked for, with their ids. Raises DataError."""
    ids = dict(pair.split("=", 1) for pair in args.ids)
    names = [e.name for e in BENCHMARKS if args.suite in (e.family, "all")] + args.benchmarks.replace(",", " ").split()
    if unknown := sorted({*names, *ids} - {*BY_NAME}):
        raise DataError(f"no benchmark is called {unknown}; there are {', '.join(BY_NAME)}")
    entries = [BY_NAME[name] for name in dict.fromkeys(names)]
    return [replace(entry, source=ids[entry.name], moved=()) if entry.name in ids else entry for entry in entries]


def load_suite(entries: Sequence[Benchmark], args: Arguments, judge_prompts: dict) -> dict[str, list[Item]]:
    """The questions of each benchmark. Raises DataError, with all sets that are missing before any is read."""
    if needed := [entry.name for entry in entries if entry.scorer in JUDGES and not args.judge]:
        raise DataError(f"{', '.join(needed)} are scored by a judge alone: give --judge, or leave them out")
    folders, problems = {}, []
    for entry in entries:
        patterns = None if entry.video else ["*.parquet", "*.json*", "*.csv", "*.arrow", "*.md", "*.jpg", "*.png"]
        try:
            folders[entry] = find_snapshot(entry.ids, args.root, entry.revision, patterns)
        except DataError as error:
            problems.append(f"{entry.name}: {error}")
    if problems:
        raise DataError("\n".join(problems))
    bar = tqdm(folders.items(), desc="loading", leave=False, disable=None)
    return {entry.name: load(entry, folder, judge_prompts, args.frames, args.limit) for entry, folder in bar}


def load_actor(name: str, served_name: str, args: Arguments, accelerator: Accelerator) -> Actor | ServedActor:
    """A model here, in bf16 on an accelerator, or behind a URL. Raises ConnectionError."""
    pixels = (args.min_pixels, args.max_pixels)
    if not name.startswith(("http://", "https://")):
        dtype = torch.float32 if accelerator.device.type == "cpu" else torch.bfloat16
        return Actor.load(name, accelerator, dtype, pixels, rows=args.rows)
    actor = ServedActor(name, served_name or None, pixels=pixels)
    actor.check()
    return actor


def whole_lines(path: Path) -> list[dict]:
    """The records of a run that was stopped, without a line cut short; the file is cut back to them."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    if text and not text.endswith("\n"):
        write_whole(text[: text.rfind("\n") + 1], path)
    return read_records(path)


def run(questions: dict[str, list[Question]], actor, judge, sampling: Sampling, args: Arguments, judge_prompts: dict,
        accelerator: Accelerator) -> list[dict]:  # fmt: skip
    """Ask what --out does not hold yet, round by round. Returns all records in the order of the questions."""
    out, settings = Path(args.out), {name: value for name, value in asdict(args).items() if name not in FREE}
    described, summary = out.with_suffix(".args.json"), out.with_suffix(".summary.json")
    old = json.loads(described.read_text(encoding="utf-8")) if out.exists() and described.exists() else settings
    finished = summary.exists() or not described.exists()
    if not finished and old != settings:
        changed = [name for name in settings if settings[name] != old.get(name)]
        raise SystemExit(f"{out} is of another run ({', '.join(changed)} differ): choose another --out, or delete it")
    done = {} if finished else {record["uid"]: record for record in whole_lines(out)}
    accelerator.wait_for_everyone()
    if accelerator.is_main_process and finished:
        summary.unlink(missing_ok=True)
        write_records([], out)
        write_whole(json.dumps(settings, indent=1), described)
    asked = [(family, question) for family in questions for question in questions[family]]
    pending = [(family, question) for family, question in asked if question.uid not in done]
    size, served = 4 * args.rows * accelerator.num_processes, [a for a in (actor, judge) if isinstance(a, ServedActor)]
    bar = tqdm(total=len(asked), initial=len(done), unit="question", disable=not accelerator.is_main_process or None)
    for start in range(0, len(pending), size):
        chunk = defaultdict(list)
        for family, question in pending[start : start + size]:
            chunk[family].append(question)
        failures = sum(one.failures for one in served)
        records = evaluate(actor, chunk, sampling, args.seed, judge, judge_prompts)
        if failed := sum(one.failures for one in served) - failures:
            raise SystemExit(f"{failed} requests failed, which would count as wrong: the same command goes on from {out}")
        done |= {record["uid"]: record for record in records}
        if accelerator.is_main_process:
            append(records, out)
        for one in (actor, judge):
            if isinstance(one, Actor):
                one.encoder.clear()
        last = records[-1]["family"]
        rewards = [r["reward"] or 0.0 for r in done.values() if r["family"] == last]
        bar.set_postfix({last: f"{100 * sum(rewards) / len(rewards):.1f}%",
                         "tokens": sum(record.get("tokens", 0) for record in done.values())})  # fmt: skip
        bar.update(len(records))
    bar.close()
    return [done[question.uid] for _, question in asked]
