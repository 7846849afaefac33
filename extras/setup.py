"""What a run is given: questions and models, each checked before training starts.

Everything here raises SystemExit with a sentence where what was asked for cannot be done. args: of
the type train.Arguments.
"""

import threading
from collections.abc import Sequence
from contextlib import suppress
from functools import partial

import torch
import transformers
from accelerate import Accelerator, PartialState
from tqdm import tqdm

import baselines
from engine.checks import check_model, check_sight, check_student
from engine.memory import rows_that_fit
from engine.models import Encoder, encode, render, tokenizer_of
from engine.questions import DataError, Question, counted, intact, load_questions, open_images
from engine.screen import print_main
from extras.served import ServedActor
from generate import Actor
from prompts import plain_prompt
from world import table as world
from zppo import COMPRESSION_TOKENS, Recipe


def quieten_libraries() -> None:
    """No warnings and no bars where there is nothing to warn about or to wait for."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def load_data(args) -> tuple[list[Question], dict[str, list[Question]]]:
    """(training questions, held-out ones by family). Prints what was skipped, and the golds."""
    if not args.data:
        questions, families = world.questions()
        if args.preview:
            print_main(routes(questions))
        count = args.eval_questions
        held_out = {family: asked[:count] for family, asked in families.items() if count}
        return questions, held_out
    place = args.split, args.columns, args.config, args.system_prompt
    held_out = {}
    try:
        questions, report = load_questions(args.data, *place)
        print_main(counted("skipped", report["skipped"]))
        print_main(counted("gold answers taken from", report["gold_from"]))
        if not args.reward:
            print_main(routes(questions))
        if args.eval_data:
            held_out["eval_data"], report = load_questions(args.eval_data, *place)
            print_main(counted("skipped of --eval_data", report["skipped"]))
    except DataError as error:
        raise SystemExit(str(error)) from error
    return questions, held_out


def routes(questions: Sequence[Question]) -> str:
    """Which gold answers the rule grades and which go to the judge, with examples."""
    lines = []
    for name, free_form in (("the rule", False), ("the judge, which is the teacher", True)):
        golds = [question.answer for question in questions if question.free_form == free_form]
        line = f"{len(golds)} of {len(questions)} gold answers go to {name}"
        if golds:
            line += ": " + ", ".join(repr(gold[:40]) for gold in golds[:5])
        lines.append(line)
    return "\n".join(lines)


def load_actors(
    args,
    recipe: Recipe,
    accelerator: Accelerator,
    seconds: dict,
    stop: threading.Event,
    questions: Sequence[Question] = (),
) -> tuple[Actor, Actor | ServedActor]:
    """Student and teacher.

    seconds: both add their wall-clock time there, by phase. stop: ends the waiting for a served
    teacher. questions: a server is asked with the images of one of them.
    """
    load = partial(
        Actor.load,
        accelerator=accelerator,
        pixels=(args.min_pixels, args.max_pixels),
        rows=args.rollout_rows,
        seconds=seconds,
    )
    check_student(args.student)
    # The student is trained, in fp32.
    student = load(args.student, dtype=torch.float32, template=args.chat_template_kwargs)
    actors = [student]
    needs = baselines.needs_of(recipe)
    if args.teacher.startswith(("http://", "https://")):
        teacher = connect(args, recipe, student, seconds, stop, questions)
    else:
        # The teacher only ever writes text (or logits, in distillation).
        bf16 = accelerator.mixed_precision == "bf16"
        dtype = torch.bfloat16 if bf16 else torch.float32
        template = args.teacher_chat_template_kwargs
        teacher = load(args.teacher, dtype=dtype, template=template)
        teacher.model.requires_grad_(False).eval()
    if "logits" in needs:
        actors.append(teacher)
    student.model.train()
    with accelerator.autocast():  # some kernels refuse fp32
        for actor in actors:
            prompt = encode(actor.processor, plain_prompt("How many?"))
            check_model(actor.model, prompt, args.max_prompt_tokens, recipe.max_response_tokens)
    if needs:
        check_same_prompts(args, recipe, student, teacher)
        teacher.encoder = Encoder(teacher.processor, args.chat_template_kwargs)  # they think alike
    if args.gradient_checkpointing:
        student.model.gradient_checkpointing_enable({"use_reentrant": False})
    return student, teacher


def fit_rows(args, recipe: Recipe, accelerator: Accelerator, student: Actor, teacher) -> None:
    """Rollouts at a time where --rollout_rows leaves them open. The student is prepared."""
    if args.rollout_rows:
        return
    tokens = args.max_prompt_tokens + recipe.max_response_tokens
    bf16 = accelerator.mixed_precision == "bf16"
    local = [actor for actor in (student, teacher) if isinstance(actor, Actor)]
    for actor in local:
        actor.rows = rows_that_fit(actor.model, student.model, tokens, bf16)
    rows = ", ".join(str(actor.rows) for actor in local)
    print_main(f"--rollout_rows: {rows} rollouts at a time (student, teacher)")


def connect(
    args,
    recipe: Recipe,
    student: Actor,
    seconds: dict,
    stop: threading.Event,
    questions: Sequence[Question],
) -> ServedActor:
    """A teacher behind a URL that has answered as training will ask."""
    for need in baselines.needs_of(recipe):
        raise SystemExit(
            f"--method {recipe.method} needs the teacher's {need}; a server sends only text: give "
            "--teacher a model folder or hub id"
        )
    try:
        teacher = ServedActor(
            args.teacher,
            args.teacher_model or None,
            student.processor,
            (args.min_pixels, args.max_pixels),
            args.teacher_chat_template_kwargs,
            concurrency=args.teacher_concurrency,
            timeout=args.teacher_timeout,
            seconds=seconds,
            stop=stop,
        )
        if set(recipe.branches) - {"ncq"}:
            teacher.check(recipe.max_response_tokens, first_picture(questions))
        else:  # NCQ alone asks for summaries
            teacher.check(COMPRESSION_TOKENS)
    except ConnectionError as error:
        raise SystemExit(f"--teacher: {error}") from error
    return teacher


def first_picture(questions: Sequence[Question]) -> Question | None:
    """The first question with images that can be decoded."""
    for question in questions:
        with suppress(DataError):
            if open_images(question):
                return question
    return None


def check_same_prompts(args, recipe: Recipe, student: Actor, teacher: Actor) -> None:
    """The teacher's tokens go behind the student's prompt (baselines.py, decision 5)."""
    vocabulary = tokenizer_of(student.processor).get_vocab()
    if tokenizer_of(teacher.processor).get_vocab() != vocabulary:
        raise SystemExit(f"--method {recipe.method} needs a teacher with the student's tokenizer")
    ours = render(student.processor, "Why?", **args.chat_template_kwargs)
    theirs = render(teacher.processor, "Why?", **args.chat_template_kwargs)
    if ours != theirs:
        what = f"needs one rendering of prompts: {ours!r} is not {theirs!r}"
        raise SystemExit(f"--method {recipe.method} {what}")


def usable(
    args, questions: list[Question], held_out: dict, student: Actor, teacher
) -> tuple[list[Question], dict[str, list[Question]]]:
    """The questions within budget, if there are enough for a step; of the held-out ones those whose
    images can be decoded. Both models must see images where there are any; a server is asked."""
    check_sight(f"--student {args.student}", student.processor, questions)
    if isinstance(teacher, Actor):
        check_sight(f"--teacher {args.teacher}", teacher.processor, questions)
    for family, asked in held_out.items():
        check_sight(f"--student {args.student}", student.processor, asked)
        asked = within_budget(args, asked, student)
        held_out[family], _, _ = intact(asked, [], set())
    questions = within_budget(args, questions, student)
    if len(questions) < args.new_per_step:
        few = f"{len(questions)} usable questions are fewer than one step needs"
        raise SystemExit(f"{few}: lower --new_per_step (now {args.new_per_step})")
    return questions, held_out


def within_budget(args, questions: list[Question], student: Actor) -> list[Question]:
    """The questions whose plain prompt is not too long. The screen says how many are left out."""
    hidden = None if PartialState().is_main_process else True
    kept = []
    for question in tqdm(questions, desc="prompt budget", leave=False, disable=hidden):
        tokens = student.encoder.length(plain_prompt(question.text), question)
        if tokens <= args.max_prompt_tokens:
            kept.append(question)
    if over := len(questions) - len(kept):
        longer = "their prompts have more than --max_prompt_tokens"
        print_main(f"{over} questions are left out: {longer}")
    return kept
