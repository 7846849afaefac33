"""Train a student with ZPPO: `accelerate launch train.py`.

Without --student this runs the embedded world (toy.py) on any laptop, with the preset `arguments.toy_preset`. With
--student and --teacher (model folders or hub ids) and --data the defaults are Table 8 of the paper.

What a run leaves in --output:
  args.json                   the arguments
  metrics.jsonl, times.jsonl  one line per step; times apart, so that metrics do not depend on the machine
  dumps/step_00010.jsonl      BCQ, NCQ (hint, ...) prompts with their rollouts, every --dump_every steps
  checkpoints/step_00020/     weights, optimiser, buffer: --resume goes on from the newest, exactly
  eval_before.jsonl, eval_after.jsonl, model/   held-out results and the trained student

Decisions:
1. All randomness derives from (seed, step, question, sample): a checkpoint holds no
   random state, and the number of processes changes no rollout.
2. Step s takes the s-th slice of a seeded permutation of the questions; each further pass has its own permutation.
3. The optimiser's learning rate is constant, without warm-up or decay (Table 8).
4. Gradients that are not finite, in steps one after another, stop the run with its state saved.
5. Ctrl-C, SIGTERM or the end of the launcher stops the run after its step, with its state saved; a second signal stops
   the run at once.
6. The trained student is saved in fp32, as it was trained (engine/run.py, decision 4).
7. A log or checkpoint that cannot be written ends the run with exit status 1 (engine/run.py, decision 2).
"""

import logging
import random
import signal
import sys
import time
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import transformers
from tqdm import tqdm

import baselines
from arguments import Arguments, parse
from buffer import ReplayBuffer
from build import load_actors, load_data, make_accelerator, make_learner
from engine.models import special_tokens
from engine.questions import Question, fingerprint
from engine.run import LEGEND, Output, Stop, closing_tables, leave, read_records, say
from evaluate import DECODING, evaluate
from extras.analysis import accuracies
from extras.served import ServedActor, overlap
from generate import seed_of
from report import reformulated, summarise
from zppo import Group, Recipe, Step, collect, count, update

MAX_BAD_UPDATES = 5  # gradients that are not finite, in steps one after another
MAX_DEAD_STEPS = 3  # steps in a row without any answer from a served teacher


def new_questions(questions: list[Question], args: Arguments, step: int) -> list[Question]:
    """X_new of one step: the next slice of a seeded permutation, with a new permutation for each pass."""
    per_pass = len(questions) // args.new_per_step
    order = list(range(len(questions)))
    random.Random(seed_of(args.seed, "pass", step // per_pass)).shuffle(order)
    start = step % per_pass * args.new_per_step
    return [questions[i] for i in order[start : start + args.new_per_step]]


def replayed_questions(
    buffer: ReplayBuffer, questions: dict[str, Question], new: list[Question], recipe: Recipe, key: tuple
) -> list[Question]:
    """X_replay of one step: floor(rho_replay * |X_new|) questions of the buffer, none that is in X_new [Z3]."""
    if not recipe.replay:
        return []
    rng = random.Random(seed_of(*key, "replay"))
    return [questions[uid] for uid in buffer.sample(count(recipe.rho_replay, len(new)), rng, [q.uid for q in new])]


def refresh(buffer: ReplayBuffer, groups: list[Group], step: int, recipe: Recipe) -> dict[str, int]:
    """The buffer refresh, from plain accuracy only [Z3]. Returns how many were admitted, graduated and evicted."""
    plain = [(g.question.uid, g.accuracy) for g in groups if g.kind == "plain"] if recipe.replay else []
    return {event: len(uids) for event, uids in buffer.update(plain, step, recipe.tau).items()}


def stop_reason(servers: list[ServedActor], bad_updates: int, stop: Stop, step: int) -> str | None:
    """Why the run stops after this step, the same on all processes, or None."""
    asked = stop.reason()
    if dead := [server.url for server in servers if server.dead_steps >= MAX_DEAD_STEPS]:
        return f"no answer from {dead} for {MAX_DEAD_STEPS} steps"
    if bad_updates >= MAX_BAD_UPDATES:
        return f"{bad_updates} gradients were not finite, in steps one after another"
    return f"{asked} stopped the run after step {step + 1}" if asked else None


def main(argv: list[str]) -> None:
    args, recipe, is_toy = parse(argv)
    if is_toy:  # tied weights saved once, no CUDA kernels, two small files: nothing to warn about or wait for
        logging.getLogger("accelerate.utils.other").setLevel(logging.ERROR)
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
    accelerator = make_accelerator(args)
    main_process, settings = accelerator.is_main_process, {**asdict(args), **asdict(recipe)}
    output = Output(Path(args.output), accelerator, settings)

    # Student, teachers, questions, buffer.
    seconds: dict[str, float] = {}  # of the current step, by phase
    student, *teachers = load_actors(args, recipe, accelerator, seconds)
    teacher = teachers[0] if len(teachers) == 1 else baselines.pool(teachers)
    servers = [actor for actor in teachers if isinstance(actor, ServedActor)]
    learner = make_learner(args, accelerator, student)
    questions, held_out, skipped = load_data(args, student, is_toy)
    by_uid, buffer = {question.uid: question for question in questions}, ReplayBuffer(recipe.buffer_capacity)
    fresh = {"step": 0, "bad_updates": 0, "buffer": buffer.state_dict(), "data": fingerprint(questions)}
    state = output.load(fresh)
    buffer.load_state_dict(state["buffer"])
    for uid in [uid for uid in buffer.entries if uid not in by_uid]:  # dropped from the data: --data_may_differ
        del buffer.entries[uid]
    first_step, bad_updates = state["step"], state["bad_updates"]

    # What this row of the tables does.
    gather = collect if set(recipe.branches) <= {"bcq", "ncq"} else baselines.collect
    learn = partial(update, learner)
    if any(baselines.NEEDS.get(branch) == "logits" for branch in recipe.branches):
        learn = partial(baselines.distill, learner, teachers[0].model)
    roll_out = overlap(student, teacher, recipe, args.new_per_step) if isinstance(teacher, ServedActor) else student
    special = special_tokens(student.processor)

    accelerator.print(
        f"{recipe.method}: {len(questions)} questions{f' (rows skipped: {skipped})' if skipped else ''}, "
        f"steps {first_step + 1} to {args.steps} on {accelerator.num_processes} processes, output in {output.folder}\n"
        f"{LEGEND}"
    )

    def held_out_accuracy(name: str) -> dict[str, float]:
        sampling = replace(DECODING, max_new_tokens=recipe.max_response_tokens)
        records = evaluate(student, held_out, sampling, args.seed, judge=teacher) if held_out else []
        if records:
            output.write(records, name)
        return accuracies(records)

    before = read_records(output.folder / "eval_before.jsonl") if first_step else []  # a resumed run knows it
    before = accuracies(before) if before else held_out_accuracy("eval_before.jsonl")

    reason, stop = None, Stop()
    hidden = None if main_process else True  # None: shown on a terminal only
    for step in tqdm(range(first_step, args.steps), initial=first_step, total=args.steps, disable=hidden):
        start, key = time.perf_counter(), (args.seed, step)
        failures = sum(server.failures for server in servers)
        seconds.clear()

        new = new_questions(questions, args, step)
        replayed = replayed_questions(buffer, by_uid, new, recipe, key)
        groups, counters = gather(Step(roll_out, teacher, recipe, key, special), new, replayed)  # stages 1-5
        updating = time.perf_counter()
        losses = learn(groups, recipe, key)  # stage 6
        seconds["update"] = time.perf_counter() - updating
        events = refresh(buffer, groups, step, recipe)

        metrics = {"step": step + 1, **summarise(groups, recipe), **counters, **losses}
        if servers:
            metrics["teacher_failures"] = sum(server.failures for server in servers) - failures
        metrics |= {"replayed": len(replayed), "buffer": len(buffer), **events}
        total, padding = time.perf_counter() - start, learner.padding_share()
        times = {"step": step + 1, "total": total, "padding_share": padding, **seconds}
        last = step + 1 == args.steps
        output.log(metrics, times)
        if args.dump_every and ((step + 1) % args.dump_every == 0 or last):
            output.write(reformulated(groups), f"dumps/step_{step + 1:05d}.jsonl")

        bad_updates = bad_updates + losses["updates_not_finite"] if losses["updates_not_finite"] else 0
        reason = stop_reason(servers, bad_updates, stop, step)
        if last or reason or args.save_every and (step + 1) % args.save_every == 0:
            state |= {"step": step + 1, "bad_updates": bad_updates, "buffer": buffer.state_dict()}
            output.save(state, args.keep_checkpoints)
        if reason:
            break
    for number in (signal.SIGINT, signal.SIGTERM):  # all is saved: from here on a signal may stop the run at once
        signal.signal(number, signal.SIG_DFL)
    if not reason:
        output.save_model(learner.policy, student.processor)
        after = held_out_accuracy("eval_after.jsonl")
        if main_process:
            say(closing_tables(before, after, buffer.graduation_by_admission()))
    accelerator.wait_for_everyone()  # a process that tears the group down alone, while another still saves, can hang
    # DDP goes before the process group: destroyed last, it would hold Python's lock while it waits for Gloo's thread,
    # which may be waiting for that lock.
    del learner, learn
    student.whole = nullcontext
    accelerator.free_memory()
    accelerator.end_training()
    if reason:
        leave(f"{reason}; the state is saved in {output.folder}: --resume goes on from there", 1)
    if main_process:
        say(f"\nthe trained student is in {output.folder / 'model'}")


if __name__ == "__main__":
    main(sys.argv[1:])
