"""Train a student with ZPPO: `accelerate launch train.py`.

Without --student this runs the embedded world (world/) on any laptop, with the options of
world/train.yaml. With --student and --teacher (model folders or hub ids) and --data the defaults
are Table 8 of the paper.

This file: the run on one screen (`main`), its steps in the order in which main calls them (`Run`),
its options. docs/running.md says what a run leaves in --output, docs/metrics.md what each logged
number means.

Decisions:
1. All randomness derives from (seed, step, question, sample): a checkpoint holds no random state,
   and the number of processes changes no rollout.
2. Step s takes the s-th slice of a seeded permutation of the questions. Each further pass has its
   own permutation.
3. The optimiser's learning rate is constant, without warm-up or decay (Table 8).
4. Gradients that are not finite, in consecutive steps, stop the run with its state saved.
5. Ctrl-C, SIGTERM or the end of the launcher stops the run after its step, with its state saved. A
   second signal stops it at once. A step that waits for a served teacher is broken off and done
   again on --resume.
6. What cannot be written ends the run with exit status 1 (engine/output.py, decision 2).
"""

from __future__ import annotations

import math
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from accelerate.tracking import get_available_trackers
from tqdm import tqdm

import baselines
from buffer import ReplayBuffer
from engine.images import MAX_PIXELS, MIN_PIXELS
from engine.options import JsonObject, option, parse
from engine.output import Output, read_records
from engine.questions import Question, fingerprint, intact
from engine.screen import LEGEND, closing_tables, print_main, print_samples
from engine.stopping import Stop, exit_with, sentences
from engine.update import make_accelerator, make_learner
from evaluate import DECODING, accuracies, evaluate
from extras.own_reward import load_reward
from extras.preview import preview
from extras.served import ServedActor, roll_out_beside_teacher
from extras.setup import fit_rows, load_actors, load_data, quieten_libraries, usable
from generate import seed_of
from zppo import (
    Context,
    Group,
    Metrics,
    Recipe,
    dump,
    plain_groups,
    quota,
    reformulate,
    roll_out,
    select,
    summarise,
    update,
)

MAX_BAD_UPDATES = 5  # gradients that are not finite, in consecutive steps
MAX_SILENT_STEPS = 3  # consecutive steps without any answer from a served teacher


def main(argv: list[str]) -> None:
    args, recipe = read_options(argv)
    run = Run(args, recipe)
    if args.preview:
        run.show_preview()
        return
    run.resume()
    run.measure_before()
    for step in run.steps():
        ctx = run.context(step)
        new, replayed = run.draw_questions(ctx)
        try:
            if baselines.is_baseline(recipe):
                groups = baselines.collect(ctx, new, replayed)
            else:
                # Algorithm 1, stage 1: plain rollouts [G1, Z3]
                plain = roll_out(ctx, plain_groups(new + replayed), "rollout")
                # stages 2 and 3: the teacher on hard questions, the caps
                chosen = select(ctx, plain, quota(recipe.rho_aug, len(new)))
                # stage 4: BCQ [Z1] and NCQ [Z2] prompts
                reformulated = reformulate(ctx, chosen)
                # stage 5: rollouts behind them
                groups = plain + roll_out(ctx, reformulated, "reformulate")
            # stage 6: I gradient updates [G2, Da1-Da3, R1, Z0]
            update_metrics = run.update(ctx, groups)
        except InterruptedError as error:
            # a signal, while a served teacher was asked: run.steps() ends here
            run.break_off(step, error)
            continue
        # stage 6: the replay buffer [Z3], from plain accuracies alone
        events = run.refresh_buffer(ctx, groups)
        run.report(ctx, groups, update_metrics, events, len(replayed))
        run.save_or_stop(step, update_metrics)
    run.finish()


# ---------------------------------------------------------------- the run


class Run:
    """What all steps share, and the bookkeeping around Algorithm 1, in the order of main."""

    def __init__(self, args: Arguments, recipe: Recipe):
        """Folder, questions, models. Raises SystemExit: what was asked for cannot be done."""
        self.args = args
        self.recipe = recipe
        if not args.data:
            quieten_libraries()  # the embedded world's models are tiny
        tracker = args.log_with or None
        self.accelerator = make_accelerator(log_with=tracker, project_dir=args.output)
        if not args.preview:
            options = asdict(args) | asdict(recipe)
            self.output = Output(Path(args.output), self.accelerator, options)
        print_main("reading the questions, loading the models ...")
        questions, held_out = load_data(args)
        # Of the current step, by phase: the models add their time.
        self.seconds: dict[str, float] = {}
        self.interrupted = threading.Event()  # set by a signal
        self.student, self.teacher = load_actors(
            args, recipe, self.accelerator, self.seconds, self.interrupted, questions
        )
        self.server = self.teacher if isinstance(self.teacher, ServedActor) else None
        self.learner = make_learner(
            self.accelerator,
            self.student,
            args.lr,
            args.weight_decay,
            args.micro_tokens,
        )
        fit_rows(args, recipe, self.accelerator, self.student, self.teacher)
        self.questions, self.held_out = usable(
            args, questions, held_out, self.student, self.teacher
        )
        self.by_uid = {question.uid: question for question in self.questions}
        self.data = fingerprint(self.questions)
        self.broken: set[str] = set()  # questions whose images could not be read
        self.reward = load_reward(args.reward, self.questions[0])
        self.buffer = ReplayBuffer(recipe.buffer_capacity)
        self.done = 0  # steps
        self.bad_updates = 0  # decision 4
        self.reason = ""  # why the run stops before its last step

    def show_preview(self) -> None:
        """--preview: nothing is written."""
        preview(
            self.context(0),
            self.learner,
            self.student,
            self.teacher,
            new_questions(self.questions, self.args, 0),
            self.args.preview,
            self.args.steps,
        )

    def resume(self) -> None:
        """Go on from the newest checkpoint, or begin."""
        # The state of now comes back where there is no checkpoint.
        state = self.output.load(self.state())
        self.done = state["step"]
        self.bad_updates = state["bad_updates"]
        self.buffer.load_state_dict(state["buffer"])
        # --data_may_differ: questions may have left the data
        for uid in self.buffer.entries.keys() - self.by_uid.keys():
            del self.buffer.entries[uid]
        processes = self.accelerator.num_processes
        print_main(
            f"{self.recipe.method}: {len(self.questions)} questions, steps {self.done + 1} to "
            f"{self.args.steps} on {processes} processes, output in {self.args.output}"
        )
        print_main(LEGEND)

    def measure_before(self) -> None:
        """Held-out accuracy before training; a resumed run has it on disk."""
        name = "eval_before.jsonl"
        records = []
        if self.done:
            records = read_records(self.output.folder / name)
        self.before = accuracies(records) if records else self.measure(name)

    def steps(self) -> Iterator[int]:
        """The steps still to come, until there is a reason to stop (decision 5)."""
        self.stop = Stop(self.interrupted)
        total = self.args.steps
        # None: shown on a terminal only
        hidden = None if self.accelerator.is_main_process else True
        with tqdm(initial=self.done, total=total, disable=hidden) as bar:
            for step in range(self.done, total):
                yield step
                bar.update()
                if self.reason:
                    break
        # All is saved: from here on a signal may stop the run at once.
        self.stop.end()

    def context(self, step: int) -> Context:
        """What the stages of this step share. Nothing of the step before is kept."""
        self.started = time.perf_counter()
        self.seconds.clear()
        # An encoder remembers the prompts of one step.
        self.student.encoder.clear()
        if self.server:
            self.server.failures = self.server.cut = 0
        else:
            self.teacher.encoder.clear()
        key = (self.args.seed, step)
        return Context(self.student_beside_teacher(), self.teacher, self.recipe, key, self.reward)

    def student_beside_teacher(self) -> Callable:
        """How the stages call the student. A served teacher works beside its plain rollouts."""
        recipe, new = self.recipe, self.args.new_per_step
        asks_teacher = set(recipe.branches) - {"ncq"}
        # A reward of one's own decides what is hard, and only after the rollouts.
        if not self.server or not asks_teacher or self.reward:
            return self.student
        # As many as `select` asks about in its first round.
        slots = quota(recipe.rho_aug, new)
        first_round = math.ceil(slots / len(recipe.branches))
        if recipe.teacher_on_all_hard:
            first_round = quota(1 + recipe.rho_replay, new)
        teacher_n = recipe.teacher_group_size
        return partial(roll_out_beside_teacher, self.student, self.server, first_round, teacher_n)

    def draw_questions(self, ctx: Context) -> tuple[list[Question], list[Question]]:
        """X_new and X_replay [Z3], without those whose images cannot be read."""
        new = new_questions(self.questions, self.args, ctx.step)
        count = quota(self.recipe.rho_replay, len(new))
        there = [question.uid for question in new]
        drawn = self.buffer.sample(count, ctx.rng("replay"), exclude=there)
        replayed = [self.by_uid[uid] for uid in drawn]
        # All processes leave out the same ones.
        new, replayed, broken = intact(new, replayed, self.broken)
        ctx.counts["broken_images"] = broken
        return new, replayed

    def update(self, ctx: Context, groups: list[Group]) -> Metrics:
        """The gradient updates of the step; distillation has its own."""
        start = time.perf_counter()
        learner, recipe = self.learner, self.recipe
        if "logits" in baselines.needs_of(recipe):
            metrics = baselines.distill(learner, self.teacher.model, groups, recipe)
        else:
            metrics = update(learner, groups, recipe, ctx.key)
        self.seconds["update"] = time.perf_counter() - start
        return metrics

    def break_off(self, step: int, error: InterruptedError) -> None:
        """Nothing has been learnt in this step yet: the state before it is saved."""
        self.output.save(self.state(), keep=0)
        self.reason = f"{error}; step {step + 1} is to be done again"

    def refresh_buffer(self, ctx: Context, groups: list[Group]) -> dict[str, list[str]]:
        """Admit, graduate, evict."""
        accuracies = []
        for group in groups:
            # BCQ and NCQ accuracy never touches the buffer.
            if self.recipe.replay and group.kind == "plain":
                accuracies.append((group.question.uid, group.accuracy))
        return self.buffer.update(accuracies, ctx.step, self.recipe.tau)

    def report(
        self,
        ctx: Context,
        groups: list[Group],
        update_metrics: Metrics,
        events: dict,
        replayed: int,
    ) -> None:
        """The step on the screen, in the logs, and every few steps as a dump."""
        number = ctx.step + 1  # logs count from 1
        metrics: Metrics = {"step": number}
        metrics |= summarise(groups, self.recipe)
        metrics |= ctx.counts
        metrics |= update_metrics
        if self.server:
            metrics["teacher_failures"] = self.server.failures
            metrics["teacher_cut"] = self.server.cut
        metrics["replayed"] = replayed
        metrics["buffer"] = len(self.buffer)
        for name, uids in events.items():
            metrics[name] = len(uids)
        times = {"step": number}
        times["total"] = time.perf_counter() - self.started
        times["padding_share"] = self.learner.padding_share()
        self.output.log(metrics, times | self.seconds)
        if self.args.print_samples:
            print_samples(dump(groups), self.args.print_samples)
        if self.is_due(self.args.dump_every, number):
            self.output.write(dump(groups), f"dumps/step_{number:05d}.jsonl")

    def save_or_stop(self, step: int, update_metrics: Metrics) -> None:
        """Evaluation and checkpoint where they are due, and where there is a reason to stop."""
        self.done = step + 1
        last = self.done == self.args.steps  # `finish` measures after the last step
        if not last and self.is_due(self.args.eval_every, self.done):
            scores = self.measure(f"eval_{self.done:05d}.jsonl")
            print_main("  ".join(f"{family} {value:.1f}%" for family, value in scores.items()))
        # decision 4: consecutive steps alone count
        bad = update_metrics["updates_not_finite"]
        if not bad:
            self.bad_updates = 0
        self.bad_updates += bad
        self.reason = self.why_stop()
        if last or self.reason or self.is_due(self.args.save_every, self.done):
            self.output.save(self.state(), self.args.keep_checkpoints)

    def finish(self) -> None:
        """The trained student and what it can do; or why the run stops, with its state saved."""
        if not self.reason:
            self.output.save_model(self.learner.policy, self.student.processor)
            after = self.measure("eval_after.jsonl")
            graduated = self.buffer.graduation_by_admission()
            print_main(closing_tables(self.before, after, graduated))
        self.tear_down()
        folder = self.output.folder
        if self.reason:
            resume = f"the state is saved in {folder}: --resume goes on from there"
            exit_with(f"{self.reason}; {resume}", 1)
        print_main(f"\nthe trained student is in {folder / 'model'}")

    # ------------------------------------------------------------ what these need

    def state(self) -> dict:
        """All that a checkpoint holds beside weights and optimiser (decision 1)."""
        return {
            "step": self.done,
            "bad_updates": self.bad_updates,
            "buffer": self.buffer.state_dict(),
            "data": self.data,
        }

    def is_due(self, every: int, done: int) -> bool:
        """Every so many steps, and after the last one; 0: never."""
        if every == 0:
            return False
        return done % every == 0 or done == self.args.steps

    def why_stop(self) -> str:
        """The same on all processes."""
        if self.server and len(self.server.silent) >= MAX_SILENT_STEPS:
            return f"no answer from {self.server.url} for {MAX_SILENT_STEPS} steps"
        if self.bad_updates >= MAX_BAD_UPDATES:  # decision 4
            return f"{self.bad_updates} gradients were not finite, in consecutive steps"
        asked = self.stop.reason()
        return f"{asked} stopped the run after step {self.done}" if asked else ""

    def measure(self, name: str) -> dict[str, float]:
        """Held-out accuracy in percent by family; the responses go to the file of this name."""
        if not self.held_out:
            return {}
        try:
            records = evaluate(
                self.student,
                self.held_out,
                sampling=replace(DECODING, max_new_tokens=self.recipe.max_response_tokens),
                seed=self.args.seed,
                judge=self.teacher,
                reward=self.reward,
            )
        except InterruptedError:
            # A signal, while a served judge was asked: the run stops after this step.
            return {}
        self.output.write(records, name)
        return accuracies(records)

    def tear_down(self) -> None:
        # A process that tears the group down alone, while another still saves, can hang.
        self.accelerator.wait_for_everyone()
        # DDP goes before the process group: destroyed last, it would hold Python's lock while it
        # waits for Gloo's thread, which may be waiting for that lock.
        self.learner = None
        self.student.whole_weights = nullcontext
        self.accelerator.free_memory()
        self.accelerator.end_training()


def new_questions(questions: list[Question], args: Arguments, step: int) -> list[Question]:
    """X_new of one step: the next slice of a seeded permutation (decision 2)."""
    per_pass = len(questions) // args.new_per_step
    this_pass, place = divmod(step, per_pass)
    order = list(range(len(questions)))
    seed = seed_of(args.seed, "pass", this_pass)
    random.Random(seed).shuffle(order)
    start = place * args.new_per_step
    chosen = order[start : start + args.new_per_step]
    return [questions[i] for i in chosen]


# ---------------------------------------------------------------- options

TRACKERS = ["all", *map(str, get_available_trackers())]


@dataclass
class Arguments:
    """Which batch size is which: a step takes `new_per_step` new questions, up to rho_replay times
    as many replayed ones and rho_aug times as many reformulated prompts, each with `group_size`
    rollouts, and makes `updates_per_step` gradient updates. micro_tokens and rollout_rows change
    memory and speed, and results by rounding alone."""

    _argument_group_name = "what people set"

    student: str = option("", "model folder or hub id; none: the embedded world")
    teacher: str = option("", "frozen teacher: folder, hub id or http://host:port/v1")
    teacher_model: str = option("", "name of a served teacher; none: its server is asked")
    teacher_timeout: float = option(900.0, "seconds that a served teacher may be silent", minimum=1)
    teacher_concurrency: int = option(64, "requests to a served teacher at a time", minimum=1)
    chat_template_kwargs: JsonObject = option(
        JsonObject, """as JSON, for the student: '{"enable_thinking": true}'"""
    )
    teacher_chat_template_kwargs: JsonObject = option(
        JsonObject, "for its rollouts; its summaries never think"
    )
    data: str = option("", "questions: hub id, folder, parquet or JSON lines file")
    split: str = option("train", "split of --data")
    config: str = option("", "config of --data, where it has several")
    columns: list[str] = option(list, "columns of other names: question=prompt images=picture")
    system_prompt: str = option("", "system turn of questions that have none of their own")
    reward: str = option("", "in place of the grader, file.py:function: (question, response, gold)")
    eval_data: str = option("", "own held-out questions, as --data")
    eval_every: int = option(0, "steps between evaluations; 0: before and after only", minimum=0)
    data_may_differ: bool = option(False, "--resume with repaired or dropped questions")
    output: str = option("runs/zppo", "folder for everything the run leaves")
    resume: bool = option(False, "go on from the newest checkpoint in --output")
    seed: int = option(0, "root of all randomness")
    steps: int = option(200, "rollout steps", minimum=1)
    new_per_step: int = option(384, "|X_new|, new questions per rollout step", minimum=1)
    lr: float = option(1e-6, "AdamW learning rate, constant", minimum=0, maximum=1)
    weight_decay: float = option(0.1, "AdamW weight decay", minimum=0)
    max_prompt_tokens: int = option(4096, "questions with longer prompts are skipped", minimum=1)
    min_pixels: int = option(MIN_PIXELS, "images are scaled up to this many pixels", minimum=1)
    max_pixels: int = option(MAX_PIXELS, "images are scaled down to this many pixels", minimum=1)
    micro_tokens: int = option(16_384, "padded tokens per forward pass of the update", minimum=1)
    rollout_rows: int = option(0, "rollouts at a time; 0: what fits on the device", minimum=0)
    gradient_checkpointing: bool = option(True, "recompute activations in the update")
    save_every: int = option(10, "steps between checkpoints; 0: only one at the end", minimum=0)
    keep_checkpoints: int = option(2, "older checkpoints are deleted; 0: none is", minimum=0)
    dump_every: int = option(10, "steps between dumps of BCQ and NCQ prompts; 0: none", minimum=0)
    eval_questions: int = option(160, "held-out questions of each world family; 0: none", minimum=0)
    log_with: str = option("", "installed tracker of accelerate", choices=TRACKERS)
    print_samples: int = option(0, "prompts shown each step, with a scored rollout", minimum=0)
    preview: int = option(0, "look at so many questions and stop: nothing is trained", minimum=0)


def read_options(argv: list[str]) -> tuple[Arguments, Recipe]:
    """From the command line, after the file of options it begins with, or the embedded world's."""
    is_file = bool(argv) and argv[0].endswith((".yaml", ".yml", ".json"))
    names = [word.split("=")[0] for word in argv]
    own = is_file or not {"--student", "--data", "-h", "--help"}.isdisjoint(names)
    preset = Path(__file__).parent / "world" / "train.yaml"
    line = argv if own else [str(preset), *argv]
    about = "Train a student with ZPPO. Without --student: the embedded world (world/train.yaml)."
    args, recipe = parse([Arguments, Recipe], line, about)
    if own and not (args.student and args.data and args.teacher):
        raise SystemExit("--student, --teacher and --data belong together: see --help")
    if args.min_pixels > args.max_pixels:
        raise SystemExit("--min_pixels is more than --max_pixels")
    if not args.output:
        raise SystemExit("--output is empty: name a folder")
    if not own:  # wherever it was started from
        root = preset.parent.parent
        args.student = str(root / args.student)
        args.teacher = str(root / args.teacher)
    return args, recipe


if __name__ == "__main__":
    with sentences():
        main(sys.argv[1:])
