"""Train a student with ZPPO: `accelerate launch train.py`.

Without --student this runs the embedded world (toy.py) on any laptop, with the preset `toy_preset` below. With
--student and --teacher (model folders or hub ids) and --data the defaults are Table 8 of the paper.

What a run leaves in --output:
  args.json                   the arguments
  metrics.jsonl, times.jsonl  one line per step; times apart, so that metrics do not depend on the machine
  dumps/step_00010.jsonl      BCQ and NCQ prompts with their rollouts, every --dump_every steps
  checkpoints/step_00020/     weights, optimiser, buffer: --resume goes on from the newest, exactly
  eval_before.jsonl, eval_after.jsonl, model/   held-out results and the trained student

Decisions:
1. All randomness derives from (seed, step, question, sample), so a checkpoint holds no random state, and the number of
   processes changes no rollout.
2. Step s takes the s-th slice of a seeded permutation of the questions; each further pass has its own permutation.
3. The optimiser's learning rate is constant, without warm-up or decay (Table 8).
4. Several gradients in a row that are not finite stop the run with its state saved.
5. Ctrl-C or SIGTERM stops the run after its step, with its state saved; a second one stops it at once.
6. The trained student is saved in fp32, as it was trained (checkpoint.py, decision 4).
7. A log or checkpoint that cannot be written is tried again after the next step; what is still missing at the end makes
   the exit status 1.
"""

import json
import logging
import math
import os
import random
import shutil
import signal
import sys
import time
from argparse import ArgumentTypeError
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from functools import lru_cache, partial
from pathlib import Path

import torch
import transformers
import yaml
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs, gather_object
from PIL import Image
from tqdm import tqdm
from transformers import HfArgumentParser

import baselines
import toy
from adamw import BF16AdamW
from buffer import ReplayBuffer
from checkpoint import append, check_same_run, cut_back, save, save_model, together, write_all
from data import MAX_PIXELS, MIN_PIXELS, DataError, Question, bound_pixels, fingerprint, load_questions, prompt_tokens
from decode import rows_that_fit
from evaluate import DECODING, accuracies, evaluate, write_records
from generate import Actor, seed_of
from learner import Learner, Policy, check_head, gathered
from models import encode, load_model, load_processor, special_tokens, tokenizer_of
from prompts import plain_prompt
from served import ServedActor, ServedError, overlap
from zppo import Group, Recipe, collect, count, update

MAX_BAD_UPDATES = 5  # gradients in a row that are not finite
MAX_DEAD_STEPS = 3  # steps in a row without any answer from a served teacher
ONE_SIGNAL = 2.0  # seconds: schedulers signal every process, and launchers pass theirs on, so one may arrive twice


class JsonObject(dict):
    """An option that is a JSON object; in a configuration file a plain mapping."""

    def __init__(self, given="{}"):
        try:
            super().__init__(json.loads(given) if isinstance(given, str) else given)
        except (TypeError, ValueError) as error:
            raise ArgumentTypeError(f"not a JSON object: {given!r}") from error


@dataclass
class Arguments:
    """Models, data, schedule and output of a run.

    Which batch size is which: one step takes `new_per_step` new questions, up to rho_replay times as many replayed
    ones and rho_aug times as many reformulated prompts, each with `group_size` rollouts, and makes `updates_per_step`
    gradient updates. micro_tokens and rollout_rows change memory and speed, not results.
    """

    student: str | None = field(default=None, metadata={"help": "model folder or hub id; none: the embedded world"})
    teacher: str | None = field(
        default=None,
        metadata={"help": "frozen teacher: model folder, hub id or http://host:port/v1; several: separated by commas"},
    )
    teacher_model: str | None = field(
        default=None, metadata={"help": "a served teacher's name on its server; none: the server is asked"}
    )
    chat_template_kwargs: JsonObject = field(
        default_factory=JsonObject,
        metadata={"help": """arguments of the student's chat template, as JSON: '{"enable_thinking": true}'"""},
    )
    teacher_chat_template_kwargs: JsonObject = field(
        default_factory=JsonObject,
        metadata={"help": "of the teacher's, for its rollouts; its summaries, hints and verdicts never think"},
    )
    data: str | None = field(default=None, metadata={"help": "questions: hub id, folder, parquet or JSON lines file"})
    split: str = field(default="train", metadata={"help": "split of --data"})
    config: str | None = field(default=None, metadata={"help": "config of --data, where it has several"})
    columns: list[str] = field(
        default_factory=list,
        metadata={"help": "ours=theirs where a column has another name: question=prompt answer=gold images=picture"},
    )
    output: str = field(default="runs/zppo", metadata={"help": "folder for everything the run leaves"})
    resume: bool = field(default=False, metadata={"help": "go on from the newest checkpoint in --output"})
    seed: int = field(default=0, metadata={"help": "root of all randomness"})
    steps: int = field(default=200, metadata={"help": "rollout steps"})
    new_per_step: int = field(default=384, metadata={"help": "|X_new|, new questions per rollout step"})
    lr: float = field(default=1e-6, metadata={"help": "AdamW learning rate, constant"})
    weight_decay: float = field(default=0.1, metadata={"help": "AdamW weight decay"})
    bf16_moments: bool = field(
        default=False, metadata={"help": "AdamW's moments in bf16, rounded at random: 4 bytes less per parameter"}
    )
    max_prompt_tokens: int = field(default=4096, metadata={"help": "questions with a longer plain prompt are skipped"})
    min_pixels: int = field(default=MIN_PIXELS, metadata={"help": "images are scaled up to this many pixels"})
    max_pixels: int = field(default=MAX_PIXELS, metadata={"help": "images are scaled down to this many pixels"})
    micro_tokens: int = field(
        default=16_384, metadata={"help": "tokens per forward pass of the update, padding included; a longer row alone"}
    )
    rollout_rows: int = field(
        default=0,
        metadata={"help": "rollouts generated at a time on one process; 0: what the GPU's memory holds (on a CPU 64)"},
    )
    cuda_graphs: bool = field(
        default=False,
        metadata={"help": "decode with CUDA graphs: the same tokens; the capture has not been run on a GPU yet"},
    )
    gradient_checkpointing: bool = field(default=False, metadata={"help": "recompute activations in the update"})
    save_every: int = field(default=10, metadata={"help": "steps between checkpoints"})
    keep_checkpoints: int = field(default=2, metadata={"help": "older checkpoints are deleted"})
    dump_every: int = field(default=10, metadata={"help": "steps between dumps of BCQ and NCQ prompts"})
    eval_questions: int = field(
        default=160, metadata={"help": "held-out questions per family, known and hard, at most; 0: no evaluation"}
    )
    log_with: str | None = field(default=None, metadata={"help": "accelerate tracker: tensorboard, wandb, ..."})


def toy_preset() -> dict:
    """Defaults of the embedded world: two passes over its 1920 questions, a few minutes on two cores."""
    return dict(
        student=str(toy.WORLD / "student"),
        teacher=str(toy.WORLD / "teacher"),
        output="runs/toy",
        steps=120,
        new_per_step=32,
        lr=3e-4,
        micro_tokens=8192,
        rollout_rows=128,
        min_pixels=toy.CELL**2,
        max_pixels=64 * toy.CELL**2,
        max_response_tokens=32,
        save_every=30,
        dump_every=20,
    )


def parse(argv: list[str]) -> tuple[Arguments, Recipe, bool]:
    """Command line, optionally after a YAML or JSON file of the same names: file over preset, command line over file.

    Returns (arguments, recipe, embedded world?).
    """
    preset = " ".join(f"--{name} {value}" for name, value in toy_preset().items() if name not in ("student", "teacher"))
    parser = HfArgumentParser(
        [Arguments, Recipe],
        description="Train a student with ZPPO. Without --student: the embedded world, on any laptop.",
        epilog=f"The embedded world has its own defaults: {preset}. The first argument may be a YAML or JSON file of "
        "options; the command line has the last word.",
    )
    given: dict = {}
    if argv and argv[0].endswith((".yaml", ".yml", ".json")):
        given = yaml.safe_load(Path(argv[0]).read_text(encoding="utf-8")) or {}
        argv = argv[1:]
    known = {action.dest for action in parser._actions}
    if unknown := sorted(set(given) - known):
        raise SystemExit(f"unknown option in the configuration file: {', '.join(unknown)} (see train.py --help)")
    is_toy = not given.get("student") and not any(arg.split("=")[0] == "--student" for arg in argv)
    asks_help = any(arg in ("-h", "--help") for arg in argv)  # shows Table 8, and the preset below it
    defaults = {**(toy_preset() if is_toy and not asks_help else {}), **given}
    if isinstance(defaults.get("columns"), dict):
        defaults["columns"] = [f"{ours}={theirs}" for ours, theirs in defaults["columns"].items()]
    # argparse converts string defaults as it does arguments: YAML reads 1e-6 as a string.
    numbers = {name: str(value) for name, value in defaults.items() if type(value) in (int, float)}
    parser.set_defaults(**{**defaults, **numbers})
    args, recipe = parser.parse_args_into_dataclasses(argv)
    if not is_toy and not (args.teacher and args.data):
        raise SystemExit("--student needs --teacher (a model folder or hub id) and --data (the questions)")
    return args, recipe, is_toy


def make_accelerator(args: Arguments) -> Accelerator:
    """One process or many. On a CPU, `torchrun` starts several; accelerate's own launcher silently starts one."""
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started == 1 and "MASTER_ADDR" in os.environ:
        print(
            "train.py: the launcher was asked for several processes and started one. "
            "On a CPU: torchrun --nproc_per_node 2 train.py"
        )
    accelerator = Accelerator(
        cpu=started > 1 and not torch.accelerator.is_available(),
        log_with=args.log_with,
        project_dir=args.output,
        kwargs_handlers=[
            DistributedDataParallelKwargs(broadcast_buffers=False),
            InitProcessGroupKwargs(timeout=timedelta(hours=2)),  # a process may wait that long for another's rollouts
        ],
    )
    plugin = accelerator.state.fsdp_plugin if accelerator.is_fsdp2 else None
    if plugin and plugin.mixed_precision_policy:  # log-probs leave the model in fp32, and gradients are added up in it
        policy = replace(plugin.mixed_precision_policy, output_dtype=None, reduce_dtype=torch.float32)
        plugin.mixed_precision_policy = policy
    return accelerator


def rows_from_memory(args: Arguments, recipe: Recipe, accelerator: Accelerator, actors: list, free: float) -> None:
    """--rollout_rows 0 on a GPU: each actor takes as many rollouts of the greatest length as fit in `free` bytes beside
    the student's gradients and AdamW's two moments. The smallest number over all processes counts for all."""
    actors = [actor for actor in actors if isinstance(actor, Actor)]
    copies = 3 - args.bf16_moments + (accelerator.num_processes > 1)  # the last: gradients on their way, with DDP
    free -= copies * sum(p.nbytes for p in actors[0].model.parameters())
    tokens, rows = args.max_prompt_tokens + recipe.max_response_tokens, []
    for actor in actors:
        casts = sum(2 * p.numel() for p in actor.model.parameters() if p.dtype == torch.float32)
        with accelerator.autocast():
            rows.append(rows_that_fit(actor.model, tokens, free - casts * (accelerator.mixed_precision != "no")))
    share = args.new_per_step * recipe.group_size // accelerator.num_processes  # with more, a process may go idle
    for actor, *found in zip(actors, *gather_object([rows]), strict=True):
        actor.rows = max(1, min(share, *found))
    accelerator.print(f"rollouts at a time, from the GPU's memory: {[actor.rows for actor in actors]} (student first)")


def load_actors(args: Arguments, recipe: Recipe, accelerator: Accelerator, seconds: dict[str, float]) -> list[Actor]:
    """[student, teacher, ...]. The student is trained, in fp32; a teacher only ever writes text (or logits, in
    distillation), in bf16 under that mixed precision."""
    actors, frozen = [], torch.bfloat16 if accelerator.mixed_precision == "bf16" else torch.float32
    for path in (args.student, *args.teacher.split(",")):
        template = args.teacher_chat_template_kwargs if actors else args.chat_template_kwargs
        if actors and path.startswith(("http://", "https://")):
            special, pixels = special_tokens(actors[0].processor), (args.min_pixels, args.max_pixels)
            actors.append(ServedActor(path, args.teacher_model, special, pixels, template, seconds=seconds))
            try:
                actors[-1].check(recipe.branches)
            except ServedError as error:
                raise SystemExit(f"--teacher: {error}") from error
            continue
        model, processor = load_model(path, frozen if actors else torch.float32), load_processor(path)
        model.to(accelerator.device)
        if hasattr(processor, "image_processor"):
            bound_pixels(processor, args.min_pixels, args.max_pixels)
        settings = dict(autocast=accelerator.autocast, seconds=seconds, cuda_graphs=args.cuda_graphs)
        actors.append(Actor(model, processor, args.rollout_rows or 64, template, **settings))
    if not args.rollout_rows and accelerator.device.type == "cuda":
        torch.cuda.empty_cache()
        rows_from_memory(args, recipe, accelerator, actors, free=torch.cuda.mem_get_info()[0])
    student, *teachers = actors
    for teacher in teachers:
        if isinstance(teacher, Actor):
            teacher.model.requires_grad_(False).eval()
    needs = {baselines.NEEDS[branch] for branch in recipe.branches if branch in baselines.NEEDS}
    for actor in actors if "logits" in needs else [student]:
        check_head(actor.model, encode(actor.processor, "blank"))
    if needs:
        vocabularies = [tokenizer_of(actor.processor).get_vocab() for actor in actors]
        if any(vocabulary != vocabularies[0] for vocabulary in vocabularies):
            raise SystemExit(f"--method {recipe.method} needs a teacher with the student's tokenizer")
    if args.gradient_checkpointing:
        student.model.gradient_checkpointing_enable({"use_reentrant": False})
    student.model.train()
    return actors


def make_learner(args: Arguments, accelerator: Accelerator, student: Actor) -> Learner:
    """AdamW with a constant learning rate (Table 8) on the student, prepared for all processes."""
    policy = Policy(student.model, student.banned_ids)
    adamw = BF16AdamW if args.bf16_moments else torch.optim.AdamW
    optimizer = adamw(policy.parameters(), lr=args.lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=args.weight_decay)
    policy, optimizer = accelerator.prepare(policy, optimizer)
    is_vlm = hasattr(student.processor, "image_processor")
    blank = encode(student.processor, "blank", [Image.new("RGB", (64, 64))] if is_vlm else [])
    # As often as a prompt's rollouts and the I updates ask for it, but without looking at the pixels again.
    length = lru_cache(4096)(
        lambda text, question: prompt_tokens(student.processor, text, question.images, **args.chat_template_kwargs)
    )
    learner = Learner(policy, optimizer, accelerator, student.encode, length, blank, args.micro_tokens)
    with torch.no_grad():
        learner.forward([])  # what runs first is FSDP2's root
    student.whole = partial(gathered, policy)
    return learner


def load_data(args: Arguments, processor, is_toy: bool) -> tuple[list[Question], dict[str, list[Question]], dict]:
    """(training questions within the prompt budget, held-out questions by family, skipped rows by reason)."""
    if is_toy:
        questions, held_out = toy.questions()
        held_out = {family: asked[: args.eval_questions] for family, asked in held_out.items() if args.eval_questions}
        skipped = {}
    else:
        try:
            questions, report = load_questions(args.data, args.split, args.columns or None, config=args.config)
        except DataError as error:
            raise SystemExit(f"--data: {error}") from error
        skipped, held_out = report["skipped"], {}
    kept = [
        question
        for question in tqdm(questions, desc="prompt budget", leave=False)
        if prompt_tokens(processor, plain_prompt(question.text), question.images, **args.chat_template_kwargs)
        <= args.max_prompt_tokens
    ]
    skipped["prompt over budget"] = len(questions) - len(kept)
    if len(kept) < args.new_per_step:
        raise SystemExit(
            f"{len(kept)} usable questions (skipped: {skipped}) are fewer than one step needs: lower --new_per_step"
        )
    return kept, held_out, {reason: rows for reason, rows in skipped.items() if rows}


def new_questions(questions: list[Question], args: Arguments, step: int) -> list[Question]:
    """X_new of one step: the next slice of a seeded permutation, with a new permutation for each pass."""
    per_pass = len(questions) // args.new_per_step
    order = list(range(len(questions)))
    random.Random(seed_of(args.seed, "pass", step // per_pass)).shuffle(order)
    start = step % per_pass * args.new_per_step
    return [questions[i] for i in order[start : start + args.new_per_step]]


def summarise(groups: list[Group], recipe: Recipe) -> dict[str, float | None]:
    """Metrics of one step's rollouts (Figs. 5, 22 and 25)."""

    def mean(values) -> float | None:
        values = list(values)
        return sum(values) / len(values) if values else None

    kinds = ("plain", "bcq", "ncq", *(branch for branch in recipe.branches if branch in ("hint", "prefix")))
    by_kind = {kind: [g for g in groups if g.kind == kind] for kind in kinds}
    groups = [group for kind in kinds for group in by_kind[kind]]  # Off-Distill's teacher groups are not rollouts
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    return {
        **{f"{kind}_accuracy": mean(g.accuracy for g in by_kind[kind]) for kind in by_kind},
        **{f"{kind}_prompts": len(by_kind[kind]) for kind in by_kind},
        "hard_share": mean(g.accuracy < recipe.tau for g in by_kind["plain"]),
        "all_wrong_share": mean(g.accuracy == 0 for g in by_kind["plain"]),
        "no_answer_share": mean(rollout.answer is None for rollout in rollouts),
        "positive_share": mean(
            rollout.reward > group.accuracy for group in groups for rollout in group.rollouts
        ),
    }


def reformulated(groups: list[Group]) -> list[dict]:
    """BCQ and NCQ prompts with what went into them and what came out (Tables 16-17 audit these)."""
    return [
        {
            "uid": group.question.uid,
            "kind": group.kind,
            "gold": group.question.answer,
            "prompt": group.prompt,
            "candidates": group.candidates,  # BCQ: the correct one first; the prompt has them in random order
            "rollouts": [{"text": r.text, "answer": r.answer, "reward": r.reward} for r in group.rollouts],
        }
        for group in groups
        if group.kind != "plain"
    ]


def stop_on_signal(show: bool) -> list[str]:
    """Catch SIGINT (Ctrl-C) and SIGTERM (schedulers). The first one's name joins the returned list, for the loop to
    read; a second one stops the process at once. show: say so on the screen."""
    names, first = [], 0.0

    def handle(number: int, frame) -> None:
        nonlocal first
        if not names:
            first = time.monotonic()
            names.append(signal.Signals(number).name)
            if show:  # print is not safe in a handler
                os.write(2, f"\n{names[0]}: stopping after this step; a second one stops at once\n".encode())
        elif time.monotonic() - first > ONE_SIGNAL:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handle)
    return names


def main(argv: list[str]) -> None:
    args, recipe, is_toy = parse(argv)
    output = Path(args.output)
    accelerator = make_accelerator(args)
    main_process = accelerator.is_main_process
    checkpoints = sorted(output.glob("checkpoints/step_*"))
    if (output / "metrics.jsonl").exists() and not args.resume:
        raise SystemExit(f"{output} holds a run: add --resume to go on with it, or choose another --output")
    if problem := together(lambda: output.mkdir(parents=True, exist_ok=True), output):
        raise SystemExit(problem)
    if is_toy:  # tied weights saved once, no CUDA kernels, two small files: nothing to warn about or wait for
        logging.getLogger("accelerate.utils.other").setLevel(logging.ERROR)
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()

    seconds: dict[str, float] = {}  # of the current step, by phase
    student, *teachers = load_actors(args, recipe, accelerator, seconds)
    teacher = teachers[0] if len(teachers) == 1 else baselines.pool(teachers)
    roller = overlap(student, teacher, recipe, args.new_per_step) if isinstance(teacher, ServedActor) else student
    servers = [actor for actor in teachers if isinstance(actor, ServedActor)]
    processor = student.processor
    learner = make_learner(args, accelerator, student)

    # Data and buffer.
    questions, held_out, skipped = load_data(args, processor, is_toy)
    by_uid, data_id = {question.uid: question for question in questions}, fingerprint(questions)
    buffer = ReplayBuffer(recipe.buffer_capacity)
    first_step, bad_updates = 0, 0
    if args.resume and checkpoints:
        check_same_run(output, {**asdict(args), **asdict(recipe)})
        state = json.loads((checkpoints[-1] / "state.json").read_text(encoding="utf-8"))
        if state["data"] != data_id:
            raise SystemExit(f"{checkpoints[-1]} was made with other questions than these: check --data")
        accelerator.load_state(str(checkpoints[-1]))
        buffer.load_state_dict(state["buffer"])
        first_step, bad_updates = state["step"], state["bad_updates"]

    def open_output() -> None:
        if main_process:
            arguments = json.dumps({**asdict(args), **asdict(recipe)}, indent=1)
            (output / "args.json").write_text(arguments, encoding="utf-8")
            for name in ("metrics.jsonl", "times.jsonl"):
                cut_back(output / name, first_step)
            for left in (*output.glob("partial-*"), *output.glob("checkpoints/partial-*")):  # by a crash
                shutil.rmtree(left)

    if problem := together(open_output, output):
        raise SystemExit(problem)
    if main_process:
        print(
            f"{recipe.method}: {len(questions)} questions{f' (rows skipped: {skipped})' if skipped else ''}, "
            f"steps {first_step + 1} to {args.steps} on {accelerator.num_processes} processes, output in {output}"
        )
    if args.log_with:
        config = {**asdict(args), **asdict(recipe)}
        accelerator.init_trackers("zppo", {k: v if isinstance(v, (int, float)) else str(v) for k, v in config.items()})

    unwritten: list[tuple] = []  # what the next call of write_all has to write

    def held_out_accuracy(path: Path) -> dict[str, float]:
        if not held_out:
            return {}
        sampling = replace(DECODING, max_new_tokens=recipe.max_response_tokens)
        records = evaluate(student, held_out, sampling, args.seed, judge=teacher)
        if main_process:
            unwritten.append((write_records, records, path))
        return accuracies(records)

    eval_before = output / "eval_before.jsonl"
    if first_step and eval_before.exists():  # a resumed run knows it
        before = accuracies([json.loads(line) for line in eval_before.read_text(encoding="utf-8").splitlines()])
    else:
        before = held_out_accuracy(eval_before)

    reason = unsaved = None  # why the run stops early; why the last checkpoint could not be written
    signals = stop_on_signal(main_process)
    for step in tqdm(range(first_step, args.steps), initial=first_step, total=args.steps, disable=not main_process):
        start, key = time.perf_counter(), (args.seed, step)
        seconds.clear()
        failures = sum(server.failures for server in servers)
        new = new_questions(questions, args, step)
        replayed = []
        if recipe.replay:
            wanted = count(recipe.rho_replay, len(new))
            uids = buffer.sample(wanted, random.Random(seed_of(*key, "replay")), exclude=[q.uid for q in new])
            replayed = [by_uid[uid] for uid in uids]

        gather = collect if set(recipe.branches) <= {"bcq", "ncq"} else baselines.collect
        groups, stats = gather(new, replayed, roller, teacher, recipe, key, special_tokens(processor))

        update_start, learner.tokens, learner.slots = time.perf_counter(), 0, 0
        with tqdm(desc="update", leave=False, disable=not main_process) as bar:
            learner.progress = bar.update
            if recipe.method.startswith(("on_distill", "off_distill")):
                losses = baselines.distill(learner, teachers[0].model, groups, recipe, key)
            else:
                losses = update(learner, groups, recipe, key)
        seconds["update"] = time.perf_counter() - update_start

        events = {"admitted": [], "graduated": [], "evicted": []}
        if recipe.replay:  # plain accuracy only
            plain = [(g.question.uid, g.accuracy) for g in groups if g.kind == "plain"]
            events = buffer.update(plain, step, recipe.tau)

        metrics = {
            "step": step + 1,
            **summarise(groups, recipe),
            **stats,
            **losses,
            **({"teacher_failures": sum(server.failures for server in servers) - failures} if servers else {}),
            "replayed": len(replayed),
            "buffer": len(buffer),
            **{name: len(uids) for name, uids in events.items()},
        }
        padding = 1 - learner.tokens / max(learner.slots, 1)  # depends on the number of processes, as times do
        times = {"step": step + 1, "total": time.perf_counter() - start, "padding_share": padding, **seconds}
        if main_process:
            show(metrics, times)
            unwritten.append((append, [finite(metrics)], output / "metrics.jsonl"))
            unwritten.append((append, [finite(times)], output / "times.jsonl"))
            if (step + 1) % args.dump_every == 0 or step + 1 == args.steps:
                unwritten.append((write_records, reformulated(groups), output / "dumps" / f"step_{step + 1:05d}.jsonl"))
            if problem := write_all(unwritten):
                tqdm.write(problem)
        if args.log_with:
            record = {**metrics, **{f"time/{name}": value for name, value in times.items() if name != "step"}}
            accelerator.log({k: v for k, v in record.items() if v is not None}, step=step + 1)

        bad_updates = bad_updates + losses["updates_not_finite"] if losses["updates_not_finite"] else 0
        caught = gather_object(signals[:1])  # by any process
        if dead := [server.url for server in servers if server.dead_steps >= MAX_DEAD_STEPS]:
            reason = f"no answer from {dead} for {MAX_DEAD_STEPS} steps"
        elif bad_updates >= MAX_BAD_UPDATES:
            reason = f"{bad_updates} gradients in a row were not finite"
        elif caught:
            reason = f"{caught[0]} stopped the run after step {step + 1}"
        if (step + 1) % args.save_every == 0 or step + 1 == args.steps or reason or unsaved:
            state = {"step": step + 1, "data": data_id, "bad_updates": bad_updates, "buffer": buffer.state_dict()}
            unsaved = save(output / "checkpoints" / f"step_{step + 1:05d}", accelerator, state, args.keep_checkpoints)
            if unsaved and main_process:
                tqdm.write(unsaved)
        if reason:
            break

    for number in (signal.SIGINT, signal.SIGTERM):  # all is saved: from here on a signal may stop the run at once
        signal.signal(number, signal.SIG_DFL)
    problems = [reason, unsaved]
    if not reason:
        problems.append(save_model(output / "model", accelerator, learner.policy, processor))
        after = held_out_accuracy(output / "eval_after.jsonl")
        if main_process:
            close(before, after, buffer)
    problems.append(write_all(unwritten))
    accelerator.wait_for_everyone()  # a process that tears the group down alone, while another still saves, can hang
    # DDP goes before the process group: destroyed last, it would hold Python's lock while it waits for Gloo's thread,
    # which may be waiting for that lock.
    del learner
    accelerator.free_memory()
    accelerator.end_training()
    if any(problems):
        saved = None if unsaved else f"the state is saved in {output}: --resume goes on from there"
        raise SystemExit("; ".join(filter(None, [*problems, saved])) if main_process else 1)
    if main_process:
        print(f"\nthe trained student is in {output / 'model'}")


def finite(record: dict) -> dict:
    """JSON knows no NaN and no infinity: None stands for them."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}


def show(metrics: dict, times: dict) -> None:
    """The step's line on the screen."""

    def percent(name: str) -> str:
        return "  - " if metrics.get(name) is None else f"{100 * metrics[name]:3.0f}%"

    split = " ".join(f"{name} {seconds:.1f}" for name, seconds in list(times.items())[3:])
    tqdm.write(
        f"step {metrics['step']:>4}  plain {percent('plain_accuracy')}  bcq {percent('bcq_accuracy')}  "
        f"ncq {percent('ncq_accuracy')}  active {percent('active_share')}  buffer {metrics['buffer']:>4} "
        f"(+{metrics['admitted']} graduated {metrics['graduated']} evicted {metrics['evicted']})  "
        f"grad {metrics['grad_norm']:.2f}  {metrics['response_tokens'] / times['total']:.0f} tok/s  [{split}]"
    )


def close(before: dict[str, float], after: dict[str, float], buffer: ReplayBuffer) -> None:
    """The closing table."""
    if before and after:
        print(f"\n{'held-out questions':<22}{'before':>8}{'after':>8}")
        for family in before:
            print(f"{family:<22}{before[family]:>7.1f}%{after[family]:>7.1f}%")
    print(f"\n{'accuracy at admission':<22}{'admitted':>9}{'graduated':>10}")
    for accuracy, (graduated, admitted) in buffer.graduation_by_admission().items():
        print(f"{100 * accuracy:>20.1f}% {admitted:>9}{graduated:>10}")


if __name__ == "__main__":
    main(sys.argv[1:])
