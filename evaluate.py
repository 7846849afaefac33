"""Pass@1 with the paper's decoding, closer and grader (App. B.2): of a model folder, a hub id or a served model.

    python evaluate.py --model world/student                           the embedded world's held-out questions
    python evaluate.py --model M --data questions.jsonl                own questions
    accelerate launch evaluate.py --model M --suite vlm --judge J      the paper's benchmarks; or --benchmarks ai2d,mmlu
    python evaluate.py --compare paper:0.8B/grpo_replay results.jsonl  differences with intervals (App. F.6)

--out has a line per question, written every 4 * --rows questions of a process; the same command goes on where it was
stopped. Beside it: .summary.json (every number, also by category) and .judged.jsonl (what needed a judge, and why).
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from accelerate import Accelerator, PartialState
from tqdm import tqdm

import prompts
import rewards
from engine.images import MAX_PIXELS, MIN_PIXELS
from engine.options import JsonObject, option, parse
from engine.questions import DataError, Question, load_questions
from engine.results import Results
from engine.screen import print_main
from engine.stopping import exit_with
from extras.served import ServedActor
from generate import Actor, Request, Sampling, ask
from suite.compare import accuracies, compare, paper, report, summarise
from suite.entries import BENCHMARKS, BY_NAME, FAMILIES, find_all
from suite.rows import Item, load
from suite.scorers import JUDGES, read_prompts, score
from world import table as world

# App. B.2: the decoding of all benchmarks (min-p 0 and repetition penalty 1 are no-ops).
DECODING = Sampling(max_new_tokens=12_288, temperature=0.6, top_p=0.95, top_k=20, presence_penalty=1.5)


def evaluate(actor, questions: dict[str, Sequence[Question]], sampling: Sampling = DECODING, seed: int = 0, judge=None,
             judge_prompts: dict | None = None, reward: Callable | None = None) -> list[dict]:  # fmt: skip
    """One response to each question (Pass@1). Returns a record per question with its family and reward.

    actor, judge: an Actor or ServedActor. The judge is asked about free-form golds and what no rule settles. questions:
    by family or benchmark. judge_prompts: scorers.read_prompts, for the suite. reward: rewards.load_reward, for all.
    """
    asked = [(family, question) for family in questions for question in questions[family]]
    requests = [Request("evaluate", q.uid, prompts.plain_prompt(q.text), q) for _, q in asked]
    replies = [reply for (reply,) in actor(requests, 1, sampling, (seed, "evaluate"), "evaluate")]
    pairs = [(question, reply.text) for (_, question), reply in zip(asked, replies, strict=True)]
    judge = judge and partial(ask, judge, (seed, "evaluate"))
    if all(isinstance(question, Item) for question, _ in pairs):
        scores = [vars(one) for one in score(pairs, judge, judge_prompts)]
    else:
        graded = [(question.text, text, question.answer, question.free_form) for question, text in pairs]
        scores = [{"reward": value} for value in rewards.score(graded, judge, reward)]
    records = []
    for (family, question), reply, scored in zip(asked, replies, scores, strict=True):
        record = dict(family=family, uid=question.uid, response=reply.text, gold=question.answer, **scored)
        records.append(record | dict(finished=reply.finished))
        if isinstance(question, Item):
            records[-1] |= dict(tokens=len(reply.tokens), scored_with=question.scored_with, groups=question.groups)
    return records


@dataclass
class Arguments:
    model: str = option(str(world.WORLD / "student"), "model folder, hub id or http://host:port/v1")
    model_name: str = option("", "a served model's name on its server; empty: the server is asked")
    chat_template_kwargs: JsonObject = option(JsonObject, "for chat templates: '{\"enable_thinking\": true}'")
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
    max_new_tokens: int = option(0, "response length; 0: 12288, for the embedded world 64", 0)
    limit: int = option(0, "about so many rows of each benchmark; 0: all", 0)
    frames: int = option(32, "frames of a video", 1)
    rows: int = option(128, "responses generated at a time on each process", 1)
    min_pixels: int = option(0, "images are scaled up to this many pixels; 0: Table 8's, or the embedded world's", 0)
    max_pixels: int = option(0, "images are scaled down to this many pixels; 0: the same", 0)
    paper: str = option("", "row of the paper's tables beside ours: 0.8B/base, 2B/zppo, ...")
    compare: list[str] = option(list, "results to compare with the first: files, or paper:0.8B/base")
    list: bool = option(False, "print the suite and stop")  # last: in this class `list` is it from here on


def load_all(args: Arguments, judge_prompts: dict) -> dict[str, list[Question]]:
    """The questions to ask, by benchmark or family. Raises DataError; sets that are missing are named all at once."""
    if args.data:
        questions, counted = load_questions(args.data, args.split, args.columns or None)
        if counted["free_form"] and not args.judge:
            raise DataError(f"{args.data}: {counted['free_form']} golds are no short answers: give --judge")
        return {"data": questions}
    ids = dict(pair.split("=", 1) for pair in args.ids)
    names = [e.name for e in BENCHMARKS if args.suite in (e.family, "all")] + args.benchmarks.replace(",", " ").split()
    if unknown := sorted({*names, *ids} - {*BY_NAME}):
        raise DataError(f"no benchmark is called {', '.join(unknown)}; there are {', '.join(BY_NAME)}")
    entries = [BY_NAME[name] for name in dict.fromkeys(names)]
    entries = [replace(entry, sources=[ids[entry.name]]) if entry.name in ids else entry for entry in entries]
    if judged := [entry.name for entry in entries if entry.scorer in JUDGES and not args.judge]:
        raise DataError(f"{', '.join(judged)}: scored by a judge alone; give --judge, or leave them out")
    bar = tqdm(zip(entries, find_all(entries, args.root)), "loading", len(entries), leave=False, disable=None)
    loaded = {entry.name: load(entry, folder, judge_prompts, args.frames, args.limit) for entry, folder in bar}
    return loaded or world.questions()[1]


def load_actor(name: str, served_name: str, args: Arguments, accelerator: Accelerator) -> Actor | ServedActor:
    """A model here, in bf16 on an accelerator, or one behind a URL. Raises OSError where there is none."""
    given = dict(pixels=(args.min_pixels, args.max_pixels), template=args.chat_template_kwargs)
    if name.startswith(("http://", "https://")):
        actor = ServedActor(name, served_name or None, **given)
        actor.check()
        return actor
    dtype = torch.float32 if accelerator.device.type == "cpu" else torch.bfloat16
    actor = Actor.load(name, accelerator, dtype, rows=args.rows, **given)
    actor.encoder.bytes_left = 0  # a prompt is asked once: none is kept
    return actor


def run(questions: dict, models: list, args: Arguments, results: Results, judge_prompts: dict) -> list[dict]:
    """Ask what `results` does not hold yet; return all records in order. models: [the model] or [it, its judge].

    Raises ConnectionError where a served model gave no answer to some requests: they would count as wrong.
    """
    sampling = replace(DECODING, max_new_tokens=args.max_new_tokens)
    size = 4 * args.rows * PartialState().num_processes
    asked = [(family, question) for family in questions for question in questions[family]]
    pending = [(family, question) for family, question in asked if question.uid not in results.done]
    bar = tqdm(total=len(asked), initial=len(asked) - len(pending), disable=not results.main or None)
    for start in range(0, len(pending), size):
        part: dict = {}
        for family, question in pending[start : start + size]:
            part.setdefault(family, []).append(question)
        records = evaluate(models[0], part, sampling, args.seed, *models[1:] or [None], judge_prompts)
        if any(getattr(model, "failures", 0) for model in models):
            raise ConnectionError("some requests got no answer: the same command goes on from here")
        results.add(records)
        done = [*results.done.values()]
        tokens = sum(record.get("tokens", 0) for record in done)
        bar.set_postfix({family: f"{accuracies(done)[family]:.1f}%", "tokens": tokens})
        bar.update(len(records))
    bar.close()
    return [results.done[question.uid] for _, question in asked]


def main(args: Arguments) -> None:
    embedded = not (args.data or args.suite or args.benchmarks)
    args.max_new_tokens = args.max_new_tokens or (64 if embedded else DECODING.max_new_tokens)
    args.min_pixels = args.min_pixels or (world.CELL**2 if embedded else MIN_PIXELS)
    args.max_pixels = args.max_pixels or (64 * world.CELL**2 if embedded else MAX_PIXELS)
    free = {"out", "root", "rows", "paper", "list", "compare"}  # may change where a run goes on
    settings = {name: value for name, value in asdict(args).items() if name not in free}
    try:
        if args.compare:
            return print(compare(args.compare))
        if args.list:
            columns = ["name", "family", "sources", "configs", "splits", "size", "terms", "scorer"]
            return print(pd.DataFrame(BENCHMARKS)[columns].to_string(index=False, max_colwidth=48))
        accelerator = Accelerator(cpu=not torch.accelerator.is_available())
        judge_prompts = read_prompts(args.judge_prompts)
        theirs = {args.paper: paper(args.paper)} if args.paper else {}
        with accelerator.main_process_first():  # the others find what it has downloaded and read
            questions = load_all(args, judge_prompts)
        results = Results(Path(args.out), settings)
        names = [(args.model, args.model_name), (args.judge, args.judge_name)]
        models = [load_actor(name, served, args, accelerator) for name, served in names if name]
        records = run(questions, models, args, results, judge_prompts)
        numbers = summarise(records) or accuracies(records)
        results.finish(records, {"settings": settings, "scores": numbers})
        print_main(f"{report(numbers, theirs)}\nper-question results: {args.out}")
    except (ValueError, OSError) as error:  # DataError and ConnectionError too
        exit_with(f"evaluate.py: {error}", 2)


if __name__ == "__main__":
    main(*parse([Arguments], sys.argv[1:], __doc__.splitlines()[0]))
