"""Pass@1 with the paper's decoding, closer and grader (App. B.2): of a folder, hub id or server.

    python evaluate.py --model world/student               the embedded world's held-out questions
    python evaluate.py --model M --data questions.jsonl    own questions
    accelerate launch evaluate.py --model M --suite vlm --judge J
                                        the paper's benchmarks; some: --benchmarks ai2d,mmlu
    python evaluate.py --compare paper:0.8B/grpo_replay results.jsonl
                                        differences with intervals (App. F.6)

--out has a line per question, written every 4 * --rows questions of a process; the same command
goes on where it was stopped, another command is refused. Beside it: .summary.json (every number,
also by category) and .judged.jsonl (what needed a judge, and why).
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState
from tqdm import tqdm

import prompts
import rewards
from engine.checks import check_sight
from engine.images import MAX_PIXELS, MIN_PIXELS
from engine.options import JsonObject, option, parse
from engine.questions import DataError, Question, counted, load_questions
from engine.results import Results, accuracies
from engine.screen import print_main
from engine.stopping import sentences
from extras.own_reward import load_reward
from extras.served import ServedActor
from generate import Actor, Request, Sampling, ask
from world import table as world

# App. B.2: the decoding of all benchmarks (min-p 0 and repetition penalty 1 change nothing).
DECODING = Sampling(
    max_new_tokens=12_288, temperature=0.6, top_p=0.95, top_k=20, presence_penalty=1.5
)


def evaluate(
    actor,
    questions: dict[str, Sequence[Question]],
    sampling: Sampling = DECODING,
    seed: int = 0,
    judge=None,
    reward: Callable | None = None,
    score: Callable | None = None,
) -> list[dict]:
    """One response to each question (Pass@1). Returns a record per question.

    actor, judge: an Actor or ServedActor. questions: by family or benchmark. reward: see
    extras/own_reward.py. score: what benchmarks are scored by (suite.exam); without one short golds
    are graded by rule, and the judge is asked about free-form golds.
    """
    # A response depends on its question and the seed, not on what else is asked.
    key = (seed, "evaluate")
    asked = in_order(questions)
    requests = [Request("evaluate", q.uid, prompts.plain_prompt(q.text), q) for _, q in asked]
    replies = [reply for (reply,) in actor(requests, 1, sampling, key, "evaluate")]
    pairs = [(question, reply) for (_, question), reply in zip(asked, replies, strict=True)]
    # Without benchmarks: the reward of training.
    if score is None:
        score = partial(score_own, reward=reward)
    scores = score(pairs, partial(ask, judge, key) if judge else None)
    records = []
    for (family, question), reply, scored in zip(asked, replies, scores, strict=True):
        record = dict(
            family=family,
            uid=question.uid,
            response=reply.text,
            gold=question.answer,
            finished=reply.finished,
            tokens=len(reply.tokens),
        )
        records.append(record | scored)
    return records


def in_order(questions: dict) -> list[tuple[str, Question]]:
    """(family, question) of all questions."""
    return [(family, question) for family in questions for question in questions[family]]


def score_own(pairs: Sequence[tuple], ask: Callable | None, reward: Callable | None) -> list[dict]:
    """The reward of each (question, reply)."""
    items = [(q.text, reply.text, q.answer, q.free_form, None, q.row) for q, reply in pairs]
    return [dict(reward=value) for value in rewards.score(items, ask, reward)]


# ---- the command ---------------------------------------------------------------------------------


@dataclass
class Arguments:
    model: str = option(str(world.WORLD / "student"), "model folder, hub id or http://host:port/v1")
    model_name: str = option("", "a served model's name on its server; empty: the server is asked")
    chat_template_kwargs: JsonObject = option(
        JsonObject, "for chat templates: '{\"enable_thinking\": true}'"
    )
    suite: str = option(
        "", "the paper's benchmarks of a family", choices=["vlm", "llm", "video", "all"]
    )
    benchmarks: str = option("", "some of them, separated by commas (see --list)")
    data: str = option("", "own questions: hub id, folder, parquet, CSV or JSON lines file")
    split: str = option("train", "split of --data")
    config: str = option("", "config of --data, where it has several")
    columns: list[str] = option(
        list, "of --data, ours=theirs: question=prompt answer=gold images=picture"
    )
    system_prompt: str = option(
        "", "of --data, the system turn of questions that have none of their own"
    )
    reward: str = option(
        "", "own reward in place of grader and judge, file.py:function, as in training"
    )
    root: str = option("", "folder that holds every benchmark as owner/name; empty: the hub")
    ids: list[str] = option(list, "benchmarks elsewhere: ai2d=owner/name")
    judge: str = option("", "the judge: model folder, hub id or http://host:port/v1")
    judge_name: str = option("", "a served judge's name on its server")
    judge_prompts: str = option(
        "", "TOML file with other prompts for the official judges (see configs/judges.toml)"
    )
    out: str = option("results.jsonl", "where the per-question results go")
    seed: int = option(0, "seed of the sampled responses")
    max_new_tokens: int = option(0, "response length; 0: 12288, for the embedded world 64", 0)
    limit: int = option(0, "about so many rows of each benchmark or family; 0: all", 0)
    frames: int = option(32, "frames of a video", 1)
    rows: int = option(128, "responses generated at a time on each process", 1)
    min_pixels: int = option(
        0,
        "images are scaled up to this many pixels; 0: Table 8's, or the embedded world's",
        0,
    )
    max_pixels: int = option(0, "images are scaled down to this many pixels; 0: the same", 0)
    paper: str = option("", "row of the paper's tables beside ours: 0.8B/base, 2B/zppo, ...")
    compare: list[str] = option(
        list, "results to compare with the first: files, or paper:0.8B/base"
    )
    # The option is --list; a field of that name would shadow Python's own.
    list_suite: bool = field(
        default=False, metadata={"help": "print the suite and stop", "aliases": ["--list"]}
    )


# What may change where a run goes on.
FREE = {"out", "root", "rows", "paper", "list_suite", "compare"}


def main(args: Arguments) -> None:
    with sentences(ValueError, OSError):  # DataError and ConnectionError too
        if args.compare or args.list_suite:
            # The suite is read where it is asked for: training, which evaluates too, needs none.
            from suite import exam

            print(exam.compare(args.compare) if args.compare else exam.listing())
        else:
            measure(args)


def measure(args: Arguments) -> None:
    """Ask the questions, write the results, report."""
    set_defaults(args)
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())
    settings = {name: value for name, value in asdict(args).items() if name not in FREE}
    settings["precision"] = precision(accelerator)
    # The other processes find what the main one has downloaded and read.
    with accelerator.main_process_first():
        questions, exam = load_all(args)
    _, first = in_order(questions)[0]
    reward = load_reward(args.reward, first)
    score = exam.score if exam else partial(score_own, reward=reward)
    # A file of another command is refused before models are loaded, and begun only afterwards.
    results = Results(Path(args.out), settings)
    model = load_actor(args.model, args.model_name, args, accelerator)
    # A server tells itself what it cannot read.
    if isinstance(model, Actor):
        for family, asked in questions.items():
            check_sight(f"{family}: --model {args.model}", model.processor, asked)
    judge = None
    if args.judge:
        judge = load_actor(args.judge, args.judge_name, args, accelerator)
    results.start()
    records = run(questions, model, judge, args, results, score)
    if exam:
        numbers, table = exam.report(records)
    else:
        numbers = accuracies(records)
        table = "\n".join(f"{name:<14} {value:5.1f}%" for name, value in numbers.items())
    results.finish(records, {"settings": settings, "scores": numbers})
    if isinstance(model, Actor):
        print_main(f"the model computed in {settings['precision']}")
    print_main(f"{table}\nper-question results: {args.out}")


def set_defaults(args: Arguments) -> None:
    """What 0 stands for: the paper's values, or those of the embedded world."""
    length, smallest, largest = DECODING.max_new_tokens, MIN_PIXELS, MAX_PIXELS
    # The embedded world's answers are short, and its images are a row of small cells.
    if not (args.data or args.suite or args.benchmarks):
        length, smallest, largest = 64, world.CELL**2, 64 * world.CELL**2
    args.max_new_tokens = args.max_new_tokens or length
    args.min_pixels = args.min_pixels or smallest
    args.max_pixels = args.max_pixels or largest


def load_all(args: Arguments) -> tuple:
    """(the questions to ask by benchmark or family, the exam if they are benchmarks')."""
    unused = [f"--{name}" for name in ("suite", "benchmarks", "paper") if getattr(args, name)]
    if args.data:
        place = args.split, args.columns, args.config, args.system_prompt
        questions, report = load_questions(args.data, *place)
        print_main(counted("skipped", report["skipped"]))
        # Without a judge they would count as wrong.
        free_form = report["free_form"]
        if free_form and not (args.judge or args.reward):
            raise DataError(f"{args.data}: {free_form} golds are prose: give --judge or --reward")
        found = {"data": questions}
    elif args.suite or args.benchmarks:
        # Only here: see main.
        from suite.exam import Exam

        exam = Exam(args)
        return exam.questions, exam
    else:
        found = world.questions()[1]
    if unused:
        print_main(f"these questions are no benchmark's: {', '.join(unused)} ignored")
    if args.limit:
        found = {family: evenly(found[family], args.limit) for family in found}
    return found, None


def evenly(questions: Sequence[Question], n: int) -> list[Question]:
    """At most n questions, evenly spaced."""
    n = min(n, len(questions))
    return [questions[i * len(questions) // n] for i in range(n)]


def precision(accelerator: Accelerator) -> str:
    """What a model here computes in: on a CPU as in training under the same launcher."""
    if accelerator.device.type != "cpu" or accelerator.mixed_precision == "bf16":
        return "bf16"
    return "fp32"


def load_actor(
    name: str, served_name: str, args: Arguments, accelerator: Accelerator
) -> Actor | ServedActor:
    """A model here, in bf16 on an accelerator, or one behind a URL. Raises OSError without one."""
    settings = dict(pixels=(args.min_pixels, args.max_pixels), template=args.chat_template_kwargs)
    if name.startswith(("http://", "https://")):
        actor = ServedActor(name, served_name or None, **settings)
        actor.check()
        return actor
    # Half the memory on an accelerator; a CPU is slower in bf16.
    dtype = torch.float32 if accelerator.device.type == "cpu" else torch.bfloat16
    actor = Actor.load(name, accelerator, dtype, rows=args.rows, **settings)
    actor.encoder.bytes_left = 0  # a prompt is asked once: none is kept
    return actor


def run(
    questions: dict, model, judge, args: Arguments, results: Results, score: Callable
) -> list[dict]:
    """Ask what `results` does not hold yet; return all records in order.

    Raises ConnectionError where a served model gave no answer to some requests: they would count as
    wrong.
    """
    sampling = replace(DECODING, max_new_tokens=args.max_new_tokens)
    # A kill loses one round at most. Four batches a process, so that long ones are shared out.
    size = 4 * args.rows * PartialState().num_processes
    asked = in_order(questions)
    pending = [(family, question) for family, question in asked if question.uid not in results.done]
    before = len(asked) - len(pending)
    bar = tqdm(total=len(asked), initial=before, disable=not results.main or None)
    for start in range(0, len(pending), size):
        # Back to {family: questions}, in the same order.
        part: dict = {}
        for family, question in pending[start : start + size]:
            part.setdefault(family, []).append(question)
        records = evaluate(model, part, sampling, args.seed, judge, score=score)
        # Nothing of this round is written: the same command asks it again.
        if any(getattr(actor, "failures", 0) for actor in (model, judge)):
            problem = "some requests got no answer"
            raise ConnectionError(f"{problem}: the same command goes on from here")
        results.add(records)
        done = results.done.values()
        family = records[-1]["family"]
        tokens = sum(record["tokens"] for record in done)
        bar.set_postfix({family: f"{accuracies(done)[family]:.1f}%", "tokens": tokens})
        bar.update(len(records))
    bar.close()
    return [results.done[question.uid] for _, question in asked]


if __name__ == "__main__":
    main(*parse([Arguments], sys.argv[1:], __doc__.splitlines()[0]))
