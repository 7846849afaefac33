"""From arguments to what a run works with: processes, actors, the learner, questions."""

import os
from contextlib import nullcontext
from dataclasses import replace
from datetime import timedelta
from functools import lru_cache, partial

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs, gather_object
from PIL import Image
from tqdm import tqdm

import baselines
from arguments import Arguments
from engine.decode import rows_that_fit
from engine.models import encode, load_model, load_processor, tokenizer_of
from engine.questions import DataError, Question, bound_pixels, load_questions
from engine.update import Learner, Policy, check_head, gathered
from extras.served import ServedActor
from generate import Actor
from prompts import plain_prompt
from world import table as world
from zppo import Recipe


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
    if args.cuda_graphs and accelerator.is_fsdp2:
        raise SystemExit("--cuda_graphs: not with FSDP2, whose hooks use streams of their own: leave one of them out")
    plugin = accelerator.state.fsdp_plugin if accelerator.is_fsdp2 else None
    if plugin and plugin.mixed_precision_policy:  # log-probs leave the model in fp32, and gradients are added up in it
        policy = replace(plugin.mixed_precision_policy, output_dtype=None, reduce_dtype=torch.float32)
        plugin.mixed_precision_policy = policy
    return accelerator


def rows_from_memory(args: Arguments, recipe: Recipe, accelerator: Accelerator, actors: list, free: float) -> None:
    """--rollout_rows 0 on a GPU: each actor takes as many rollouts of the greatest length as fit in `free` bytes beside
    the student's gradients and AdamW's two moments. The smallest number over all processes counts for all."""
    actors = [actor for actor in actors if isinstance(actor, Actor)]
    student = sum(p.nbytes for p in actors[0].model.parameters())  # whole and here, until FSDP2 makes shards of it
    shards = accelerator.num_processes if accelerator.is_fsdp2 else 1
    copies = 3 + (accelerator.num_processes > shards)  # the last: gradients on their way, with DDP
    free += student * (1 - (1 + copies) / shards)
    free -= student * (shards > 1 and accelerator.mixed_precision == "no")  # whole again for rollouts; bf16: cast below
    tokens, rows = args.max_prompt_tokens + recipe.max_response_tokens, []
    for actor in actors:
        casts = sum(2 * p.numel() for p in actor.model.parameters() if p.dtype == torch.float32)
        with accelerator.autocast():
            rows.append(rows_that_fit(actor.model, tokens, free - casts * (accelerator.mixed_precision != "no")))
    share = args.new_per_step * recipe.group_size // accelerator.num_processes  # with more, a process may go idle
    for actor, *found in zip(actors, *gather_object([rows]), strict=True):
        actor.rows = max(1, min(share, *found))
    accelerator.print(f"rollouts at a time, from the GPU's memory: {[actor.rows for actor in actors]} (student first)")


def load_actors(
    args: Arguments, recipe: Recipe, accelerator: Accelerator, seconds: dict[str, float]
) -> list[Actor | ServedActor]:
    """[student, teacher, ...]. The student is trained, in fp32; a teacher only ever writes text (or logits, in
    distillation), in bf16 under that mixed precision."""
    actors, frozen = [], torch.bfloat16 if accelerator.mixed_precision == "bf16" else torch.float32
    for path in (args.student, *args.teacher.split(",")):
        template = args.teacher_chat_template_kwargs if actors else args.chat_template_kwargs
        if actors and path.startswith(("http://", "https://")):
            needed = [baselines.NEEDS[branch] for branch in recipe.branches if branch in baselines.NEEDS]
            if needed:
                raise SystemExit(f"--method {recipe.method} needs the teacher's {needed[0]}; {path} serves only text: "
                                 "give --teacher a model folder or hub id")
            pixels = args.min_pixels, args.max_pixels
            actors.append(ServedActor(path, args.teacher_model, actors[0].processor, pixels, template, seconds=seconds))
            try:
                actors[-1].check()
            except ConnectionError as error:
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
    with accelerator.autocast():  # some kernels refuse fp32
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
    fused = True if accelerator.device.type == "cuda" else None
    settings = dict(lr=args.lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=args.weight_decay)
    optimizer = torch.optim.AdamW(policy.parameters(), fused=fused, **settings)
    policy, optimizer = accelerator.prepare(policy, optimizer)
    is_vlm = hasattr(student.processor, "image_processor")
    blank = encode(student.processor, "blank", [Image.new("RGB", (64, 64))] if is_vlm else [])
    length = lru_cache(4096)(student.length)  # all rollouts of a prompt and all I updates ask for it
    learner = Learner(policy, optimizer, accelerator, student.encode, length, blank, args.micro_tokens)
    if accelerator.is_fsdp2:
        with torch.no_grad():
            learner.forward([])  # what runs first is FSDP2's root
        student.whole, student.autocast = partial(gathered, policy), nullcontext  # FSDP2 casts by itself
    return learner


def load_data(args: Arguments, student: Actor, is_toy: bool) -> tuple[list[Question], dict[str, list[Question]], dict]:
    """(training questions within the prompt budget, held-out questions by family, skipped rows by reason)."""
    if is_toy:
        questions, held_out = world.questions()
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
        for question in tqdm(questions, desc="prompt budget", leave=False, disable=not PartialState().is_main_process)
        if student.length(plain_prompt(question.text), question) <= args.max_prompt_tokens
    ]
    skipped["prompt over budget"] = len(questions) - len(kept)
    if len(kept) < args.new_per_step:
        raise SystemExit(
            f"{len(kept)} usable questions (skipped: {skipped}) are fewer than one step needs: lower --new_per_step"
        )
    return kept, held_out, {reason: rows for reason, rows in skipped.items() if rows}
