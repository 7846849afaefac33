"""Train a student with ZPPO: `accelerate launch train.py`.

Without --student this runs the embedded world (world/) on any laptop, with the options of world/train.yaml. With
--student and --teacher (model folders or hub ids) and --data the defaults are Table 8 of the paper.

docs/running.md says what a run leaves in --output, docs/metrics.md what each logged number means.

Decisions:
1. All randomness derives from (seed, step, question, sample): a checkpoint holds no random state, and the number of
   processes changes no rollout.
2. Step s takes the s-th slice of a seeded permutation of the questions. Each further pass has its own permutation.
3. The optimiser's learning rate is constant, without warm-up or decay (Table 8).
4. Gradients that are not finite, in steps one after another, stop the run with its state saved.
5. Ctrl-C, SIGTERM or the end of the launcher stops the run after its step, with its state saved. A second signal stops
   it at once. A step that waits for a served teacher is broken off and done again on --resume.
6. What cannot be written ends the run with exit status 1 (engine/run.py, decision 2).
"""

import logging
import math
import random
import sys
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
import transformers
from accelerate import Accelerator, PartialState
from accelerate.tracking import get_available_trackers
from tqdm import tqdm

import baselines
from buffer import ReplayBuffer
from engine.images import MAX_PIXELS, MIN_PIXELS
from engine.models import Encoder, encode, render, special_tokens, tokenizer_of
from engine.options import JsonObject, option, parse
from engine.output import Output, read_records
from engine.questions import DataError, Question, fingerprint, intact, load_questions
from engine.screen import LEGEND, closing_tables, print_main, print_samples
from engine.stopping import Stop, exit_with
from engine.update import check_head, make_accelerator, make_learner
from evaluate import DECODING, accuracies, evaluate
from extras.preview import preview, routes
from extras.served import ServedActor, overlapped
from generate import Actor, seed_of
from prompts import plain_prompt
from rewards import load_reward
from world import table as world
from zppo import Context, Recipe, dump, plain_groups, quota, reformulate, roll_out, select, summarise, update

MAX_BAD_UPDATES = 5  # gradients that are not finite, in steps one after another
MAX_SILENT_STEPS = 3  # steps in a row without any answer from a served teacher


@dataclass
class Arguments:
    """Which batch size is which: a step takes `new_per_step` new questions, up to rho_replay times as many replayed
    ones and rho_aug times as many reformulated prompts, each with `group_size` rollouts, and makes `updates_per_step`
    gradient updates. micro_tokens and rollout_rows change memory and speed, and results by rounding alone."""

    _argument_group_name = "what people set"

    student: str = option("", "model folder or hub id; none: the embedded world")
    teacher: str = option("", "frozen teacher: folder, hub id or http://host:port/v1")
    teacher_model: str = option("", "a served teacher's name on its server; none: the server is asked")
    teacher_timeout: float = option(900.0, "seconds that a call to a served teacher waits while nothing comes", minimum=1)
    teacher_concurrency: int = option(64, "requests to a served teacher under way at a time", minimum=1)
    chat_template_kwargs: JsonObject = option(JsonObject, """as JSON, for the student: '{"enable_thinking": true}'""")
    teacher_chat_template_kwargs: JsonObject = option(JsonObject, "for its rollouts; its summaries never think")
    data: str = option("", "questions: hub id, folder, parquet or JSON lines file")
    split: str = option("train", "split of --data")
    config: str = option("", "config of --data, where it has several")
    columns: list[str] = option(list, "ours=theirs where a column has another name: question=prompt images=picture")
    system_prompt: str = option("", "system turn of questions that have none of their own")
    reward: str = option("", "file.py:function in place of the grader: (question, response, gold) -> 0 or 1")
    eval_data: str = option("", "own held-out questions, as --data")
    eval_every: int = option(0, "steps between evaluations; 0: before and after training only", minimum=0)
    data_may_differ: bool = option(False, "--resume with repaired or dropped questions; later slices may change")
    output: str = option("runs/zppo", "folder for everything the run leaves")
    resume: bool = option(False, "go on from the newest checkpoint in --output")
    seed: int = option(0, "root of all randomness")
    steps: int = option(200, "rollout steps", minimum=1)
    new_per_step: int = option(384, "|X_new|, new questions per rollout step", minimum=1)
    lr: float = option(1e-6, "AdamW learning rate, constant", minimum=0)
    weight_decay: float = option(0.1, "AdamW weight decay", minimum=0)
    max_prompt_tokens: int = option(4096, "questions with a longer plain prompt are skipped", minimum=1)
    min_pixels: int = option(MIN_PIXELS, "images are scaled up to this many pixels", minimum=1)
    max_pixels: int = option(MAX_PIXELS, "images are scaled down to this many pixels", minimum=1)
    micro_tokens: int = option(16_384, "tokens per forward pass of the update, padding included", minimum=1)
    rollout_rows: int = option(128, "rollouts at a time on one process; halved where memory runs out", minimum=1)
    gradient_checkpointing: bool = option(False, "recompute activations in the update")
    save_every: int = option(10, "steps between checkpoints; 0: only one at the end", minimum=0)
    keep_checkpoints: int = option(2, "older checkpoints are deleted; 0: none is", minimum=0)
    dump_every: int = option(10, "steps between dumps of BCQ and NCQ prompts; 0: none", minimum=0)
    eval_questions: int = option(160, "held-out questions per family, known and hard, at most; 0: none", minimum=0)
    log_with: str = option("", "installed tracker of accelerate", choices=["all", *map(str, get_available_trackers())])
    print_samples: int = option(0, "prompts shown on the screen each step, with a rollout and its reward", minimum=0)
    preview: int = option(0, "look at this many questions and stop: prompts, rewards, time; trains nothing", minimum=0)


def read_options(argv: list[str]) -> tuple[Arguments, Recipe]:
    """From the command line, after a file of options: the one it begins with, or the embedded world's."""
    is_file = bool(argv) and argv[0].endswith((".yaml", ".yml", ".json"))
    own = is_file or any(word.split("=")[0] in ("--student", "--data", "-h", "--help") for word in argv)
    preset = Path(__file__).parent / "world" / "train.yaml"
    line = argv if own else [str(preset), *argv]
    about = "Train a student with ZPPO. Without --student: the embedded world, with the options of world/train.yaml."
    args, recipe = parse([Arguments, Recipe], line, about)
    if not own:  # wherever it was started from
        root = preset.parent.parent
        args = replace(args, student=str(root / args.student), teacher=str(root / args.teacher))
    elif not (args.student and args.data and args.teacher):
        raise SystemExit("--student, --teacher and --data belong together: see --help")
    return args, recipe


def load_actors(
    args: Arguments, recipe: Recipe, accelerator: Accelerator, seconds: dict, stop: threading.Event
) -> tuple[Actor, Actor | ServedActor]:
    """Student and teacher. The student is trained, in fp32; the teacher only ever writes text (or logits, in
    distillation), in bf16 under that mixed precision. stop: ends the waiting for a served teacher."""
    needs = {baselines.NEEDS[branch] for branch in recipe.branches if branch in baselines.NEEDS}
    pixels, settings = (args.min_pixels, args.max_pixels), dict(rows=args.rollout_rows, seconds=seconds)
    template, theirs = args.chat_template_kwargs, args.teacher_chat_template_kwargs
    student = Actor.load(args.student, accelerator, torch.float32, pixels, template=template, **settings)
    if args.teacher.startswith(("http://", "https://")):
        if needs:
            raise SystemExit(f"--method {recipe.method} needs the teacher's {needs.pop()}; {args.teacher} serves only "
                             "text: give --teacher a model folder or hub id")  # fmt: skip
        limits = dict(concurrency=args.teacher_concurrency, timeout=args.teacher_timeout, seconds=seconds, stop=stop)
        teacher = ServedActor(args.teacher, args.teacher_model or None, student.processor, pixels, theirs, **limits)
        try:
            teacher.check()
        except ConnectionError as error:
            raise SystemExit(f"--teacher: {error}") from error
    else:
        frozen = torch.bfloat16 if accelerator.mixed_precision == "bf16" else torch.float32
        teacher = Actor.load(args.teacher, accelerator, frozen, pixels, template=theirs, **settings)
        teacher.model.requires_grad_(False).eval()
    with accelerator.autocast():  # some kernels refuse fp32
        for actor in (student, teacher) if "logits" in needs else (student,):
            check_head(actor.model, encode(actor.processor, "blank"))
    if needs:  # the teacher's tokens go behind the student's prompt
        if tokenizer_of(teacher.processor).get_vocab() != tokenizer_of(student.processor).get_vocab():
            raise SystemExit(f"--method {recipe.method} needs a teacher with the student's tokenizer")
        ours, other = (render(actor.processor, "Why?", **template) for actor in (student, teacher))
        if ours != other:
            raise SystemExit(f"--method {recipe.method} needs one rendering of prompts: {ours!r} is not {other!r}")
        teacher.encoder = Encoder(teacher.processor, template)  # the two think alike
    if args.gradient_checkpointing:
        student.model.gradient_checkpointing_enable({"use_reentrant": False})
    student.model.train()
    return student, teacher


def load_data(args: Arguments) -> tuple[list[Question], dict[str, list[Question]], str]:
    """(training questions, held-out questions by family, what the screen says of them). Raises SystemExit."""
    if not args.data:
        questions, held_out = world.questions()
        held_out = {family: asked[: args.eval_questions] for family, asked in held_out.items() if args.eval_questions}
        return questions, held_out, "the embedded world's questions"
    try:
        read = [args.split, args.columns or None, args.config or None]
        questions, report = load_questions(args.data, *read)
        held_out = {"eval_data": load_questions(args.eval_data, *read)[0]} if args.eval_data else {}
    except DataError as error:
        raise SystemExit(str(error)) from error
    questions = [replace(question, system=question.system or args.system_prompt) for question in questions]
    parts = {name: report[name] for name in ("skipped", "gold_from") if report[name]}
    return questions, held_out, f"{routes(questions)}\n{parts}"


def within_budget(args: Arguments, questions: list[Question], student: Actor) -> list[Question]:
    """The questions whose plain prompt is not too long. Raises SystemExit where they are fewer than a step needs."""
    bar = tqdm(questions, desc="prompt budget", leave=False, disable=None if PartialState().is_main_process else True)
    kept = [x for x in bar if student.encoder.length(plain_prompt(x.text), x) <= args.max_prompt_tokens]
    if over := len(questions) - len(kept):
        PartialState().print(f"{over} questions are left out: their prompts have more than --max_prompt_tokens")
    if len(kept) < args.new_per_step:
        raise SystemExit(f"{len(kept)} usable questions are fewer than one step needs: lower --new_per_step")
    return kept


def new_questions(questions: list[Question], args: Arguments, step: int) -> list[Question]:
    """X_new of one step: the next slice of a seeded permutation, with a new permutation for each pass."""
    per_pass = len(questions) // args.new_per_step
    order = list(range(len(questions)))
    random.Random(seed_of(args.seed, "pass", step // per_pass)).shuffle(order)
    start = step % per_pass * args.new_per_step
    return [questions[i] for i in order[start : start + args.new_per_step]]


def measure(output: Output, student: Actor, held_out: dict, name: str, how: dict) -> dict[str, float]:
    """Accuracy in percent by family on the held-out questions; the responses go to the file. how: of `evaluate`."""
    records = evaluate(student, held_out, **how) if held_out else []
    if records:
        output.write(records, name)
    return accuracies(records)


# ---------------------------------------------------------------- the run


def main(argv: list[str]) -> None:
    args, recipe = read_options(argv)
    if not args.data:  # tied weights saved once, no CUDA kernels, two small files: nothing to warn about or wait for
        logging.getLogger("accelerate.utils.other").setLevel(logging.ERROR)
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
    accelerator = make_accelerator(log_with=args.log_with or None, project_dir=args.output)
    if not args.preview:
        output = Output(Path(args.output), accelerator, {**asdict(args), **asdict(recipe)})

    accelerator.print("reading the questions, loading the models ...")
    questions, held_out, about_data = load_data(args)
    seconds: dict[str, float] = {}  # of the current step, by phase
    stopped = threading.Event()
    student, teacher = load_actors(args, recipe, accelerator, seconds, stopped)
    server = teacher if isinstance(teacher, ServedActor) else None
    learner = make_learner(accelerator, student, args.lr, args.weight_decay, args.micro_tokens)
    questions = within_budget(args, questions, student)
    by_uid, buffer = {question.uid: question for question in questions}, ReplayBuffer(recipe.buffer_capacity)
    policy: Callable = student  # as the stages of a step see it
    asks_teacher = {*recipe.branches} - {"ncq"} and not args.reward
    if server and asks_teacher:  # it already works beside the student's rollouts
        first_round = math.ceil(quota(recipe.rho_aug, args.new_per_step) / len(recipe.branches))
        if recipe.teacher_on_all_hard:
            first_round = quota(1 + recipe.rho_replay, args.new_per_step)
        policy = partial(overlapped, student, teacher, first_round, recipe.teacher_group_size)
    shared = special_tokens(student.processor), load_reward(args.reward) if args.reward else None

    if args.preview:
        ctx = Context(policy, teacher, recipe, (args.seed, 0), *shared)
        preview(ctx, learner, student, teacher, new_questions(questions, args, 0), args.preview, args.steps)
        return

    fresh = {"step": 0, "bad_updates": 0, "buffer": buffer.state_dict(), "data": fingerprint(questions)}
    state = output.load(fresh)
    buffer.load_state_dict(state["buffer"])
    for uid in buffer.entries.keys() - by_uid.keys():  # dropped from the data: --data_may_differ
        del buffer.entries[uid]
    bad_updates, broken = state["bad_updates"], set()
    accelerator.print(
        f"{about_data}\n{recipe.method}: {len(questions)} questions, steps {state['step'] + 1} to {args.steps} "
        f"on {accelerator.num_processes} processes, output in {args.output}\n{LEGEND}"
    )

    sampling = replace(DECODING, max_new_tokens=recipe.max_response_tokens)
    how = dict(sampling=sampling, seed=args.seed, judge=teacher, reward=shared[1])
    before = read_records(output.folder / "eval_before.jsonl") if state["step"] else []  # a resumed run knows it
    before = accuracies(before) if before else measure(output, student, held_out, "eval_before.jsonl", how)

    reason, stop = None, Stop(stopped)
    hidden = None if accelerator.is_main_process else True  # None: shown on a terminal only
    for step in tqdm(range(state["step"], args.steps), initial=state["step"], total=args.steps, disable=hidden):
        start, key = time.perf_counter(), (args.seed, step)
        failures, cut = (server.failures, server.cut) if server else (0, 0)
        seconds.clear()
        for actor in (student,) if server else (student, teacher):
            actor.encoder.clear()

        # Algorithm 1
        ctx = Context(policy, teacher, recipe, key, *shared)
        new = new_questions(questions, args, step)
        drawn = buffer.sample(quota(recipe.rho_replay, len(new)), ctx.rng("replay"), [q.uid for q in new])  # [Z3]
        replayed = [by_uid[uid] for uid in drawn]
        new, replayed, ctx.counts["broken_images"] = intact(new, replayed, broken)
        try:
            if baselines.BRANCHES.isdisjoint(recipe.branches):
                plain = roll_out(ctx, plain_groups([*new, *replayed]), "rollout")  # stage 1 [G1, Z3]
                chosen = select(ctx, plain, quota(recipe.rho_aug, len(new)))  # stages 2, 3: the teacher, the caps
                prompts = reformulate(ctx, chosen)  # stage 4: BCQ [Z1] and NCQ [Z2]
                groups = plain + roll_out(ctx, prompts, "reformulate")  # stage 5
            else:
                groups = baselines.collect(ctx, new, replayed)
        except InterruptedError as error:  # a signal, while a served teacher was asked: nothing has been learnt yet
            reason = f"{error}; step {step + 1} is to be done again"
            output.save(state | {"step": step, "bad_updates": bad_updates, "buffer": buffer.state_dict()}, 0)
            break
        updating = time.perf_counter()
        if "logits" in map(baselines.NEEDS.get, recipe.branches):
            losses = baselines.distill(learner, teacher.model, groups, recipe)
        else:
            losses = update(learner, groups, recipe, key)  # stage 6 [G2, Da1-Da3, R1, Z0]
        seconds["update"] = time.perf_counter() - updating
        accuracy = [(group.question.uid, group.accuracy) for group in groups if group.kind == "plain"]
        events = buffer.update(accuracy if recipe.replay else [], step, recipe.tau)  # stage 6 [Z3]

        metrics = {"step": step + 1, **summarise(groups, recipe), **ctx.counts, **losses}
        if server:
            metrics |= {"teacher_failures": server.failures - failures, "teacher_cut": server.cut - cut}
        metrics |= {"replayed": len(replayed), "buffer": len(buffer)} | {name: len(ids) for name, ids in events.items()}
        times = {"step": step + 1, "total": time.perf_counter() - start, "padding_share": learner.padding_share()}
        output.log(metrics, times | seconds)
        if args.print_samples:
            print_samples(dump(groups), args.print_samples)
        last = step + 1 == args.steps
        if args.dump_every and ((step + 1) % args.dump_every == 0 or last):
            output.write(dump(groups), f"dumps/step_{step + 1:05d}.jsonl")

        if args.eval_every and (step + 1) % args.eval_every == 0 and not last:
            scores = measure(output, student, held_out, f"eval_{step + 1:05d}.jsonl", how)
            accelerator.print("  ".join(f"{family} {accuracy:.1f}%" for family, accuracy in scores.items()))

        bad_updates = bad_updates + losses["updates_not_finite"] if losses["updates_not_finite"] else 0
        reason = f"{asked} stopped the run after step {step + 1}" if (asked := stop.reason()) else None
        if bad_updates >= MAX_BAD_UPDATES:
            reason = f"{bad_updates} gradients were not finite, in steps one after another"
        if server and len(server.silent) >= MAX_SILENT_STEPS:
            reason = f"no answer from {server.url} for {MAX_SILENT_STEPS} steps"
        if last or reason or (args.save_every and (step + 1) % args.save_every == 0):
            state |= {"step": step + 1, "bad_updates": bad_updates, "buffer": buffer.state_dict()}
            output.save(state, args.keep_checkpoints)
        if reason:
            break
    stop.end()  # all is saved: from here on a signal may stop the run at once
    if not reason:
        output.save_model(learner.policy, student.processor)
        after = measure(output, student, held_out, "eval_after.jsonl", how)
        print_main(closing_tables(before, after, buffer.graduation_by_admission()))
    accelerator.wait_for_everyone()  # a process that tears the group down alone, while another still saves, can hang
    # DDP goes before the process group: destroyed last, it would hold Python's lock while it waits for Gloo's thread,
    # which may be waiting for that lock.
    del learner
    student.whole_weights = nullcontext
    accelerator.free_memory()
    accelerator.end_training()
    if reason:
        exit_with(f"{reason}; the state is saved in {output.folder}: --resume goes on from there", 1)
    print_main(f"\nthe trained student is in {output.folder / 'model'}")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except SystemExit as stop:  # a sentence: what was asked for cannot be done
        exit_with(stop.code, 2) if isinstance(stop.code, str) else sys.exit(stop.code)
