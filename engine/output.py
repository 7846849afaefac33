"""What a run leaves on disk and goes on from.

Decisions:
1. A folder is written beside its place and renamed when it is whole: a crash or a full disk leaves
   the last whole one. --resume puts a damaged checkpoint aside, deletes nothing, and goes on from
   the one before.
2. A write that fails on any process ends the run on all of them, with exit status 1. Status 2 where
   nothing can be written in the folder from the beginning.
3. A checkpoint fits any number of processes, because it holds no random state. Sharded ones (FSDP2)
   fit only shards.
4. The trained student is saved in fp32, as it was trained: most single updates at the paper's
   learning rate are smaller than what bf16 can tell apart. Load it with dtype=torch.bfloat16 where
   half the memory counts for more.
"""

import json
import logging
import os
import shutil
import socket
import time
from contextlib import contextmanager
from pathlib import Path

from accelerate import Accelerator
from filelock import FileLock, Timeout
from transformers import GenerationConfig

from engine.screen import print_main, step_lines, why_trivial
from engine.stopping import any_of, exit_with

MAY_CHANGE = (  # on --resume; data by its content
    "student data data_may_differ split config columns output resume steps micro_tokens "
    "rollout_rows preview teacher_timeout teacher_concurrency gradient_checkpointing save_every "
    "keep_checkpoints dump_every eval_questions eval_data eval_every log_with print_samples"
).split()


class Output:
    """The folder of a run. All processes call its methods together; the main one writes.

    SystemExit ends all of them: status 1 where something cannot be written, status 2 where the
    folder is in use or holds a run under other arguments."""

    def __init__(self, folder: Path, accelerator: Accelerator, arguments: dict):
        self.folder = folder
        self.accelerator = accelerator
        self.arguments = arguments
        self.main = accelerator.is_main_process
        self.trivial_steps = 0  # the last steps, as far as no rollout had an advantage
        # accelerate warns at every checkpoint that tied weights are saved once, as they must be.
        logging.getLogger("accelerate.utils.other").setLevel(logging.ERROR)
        self.take_folder()
        self.checkpoints = []  # to go on from, newest first
        if arguments["resume"]:
            self.checkpoints = sorted(folder.glob("checkpoints/step_*"), reverse=True)
        elif (folder / "metrics.jsonl").exists():
            exit_with(
                f"{folder} holds a run: add --resume to go on with it, or choose another --output"
            )
        if self.checkpoints:
            check_same_run(folder, arguments)
            self.check_sharding()

    def take_folder(self) -> None:
        """One run per folder: the main process holds its lock until the process ends."""
        holder = None
        process = self.folder / "process"
        with self.writing(self.folder, status=2):
            self.folder.mkdir(parents=True, exist_ok=True)
            self.lock = FileLock(self.folder / "lock")
            if self.main:
                try:
                    self.lock.acquire(timeout=0)
                    write_whole(f"process {os.getpid()} on {socket.gethostname()}", process)
                except Timeout:
                    holder = process.read_text("utf-8")
        holder = any_of(holder)
        if holder:
            exit_with(
                f"{self.folder} is in use by {holder}: "
                "wait for its end, stop it, or choose another --output"
            )

    def check_sharding(self) -> None:
        """Refuse to go on from shards without FSDP2, or from whole weights with it (decision 3)."""
        kinds = {False: "whole", True: "sharded (FSDP2)"}
        saved = any(self.folder.glob("checkpoints/step_*/*fsdp*"))
        wanted = self.accelerator.is_fsdp2
        if saved != wanted:
            exit_with(
                f"{self.folder} is {kinds[saved]}, this run is {kinds[wanted]}: "
                "launch it as it was started"
            )

    @contextmanager
    def writing(self, path: Path, status: int = 1):
        """What fails in here, on any process, ends the run on all processes (decision 2)."""
        problem = None
        try:
            yield
        # A full disk is an OSError, but torch.save and safetensors have errors of their own.
        except Exception as error:
            problem = f"cannot write {path} (is there space?): {error}"
        problem = any_of(problem)
        if not problem:
            return
        if self.main:  # room for what is to be kept
            shutil.rmtree(partial_of(path), ignore_errors=True)
        if status == 1:
            newest = max(self.folder.glob("checkpoints/step_*"), default=None)
            if newest:
                problem += f"; --resume goes on from {newest.name}"
        exit_with(problem, status)

    def load(self, state: dict) -> dict:
        """Weights and optimiser of the newest whole checkpoint, and logs up to there.

        Returns its state, or `state` where there is no checkpoint."""
        if self.checkpoints:
            state = self.load_newest(state["data"]) | {"data": state["data"]}
        with self.writing(self.folder):
            if self.main:
                self.go_back_to(state["step"])
        plain = {}  # trackers take numbers and text
        for name, value in self.arguments.items():
            plain[name] = value if isinstance(value, int | float) else str(value)
        self.accelerator.init_trackers("zppo", plain)
        return state

    def load_newest(self, data: str) -> dict:
        """Load the newest checkpoint that is whole; return its state. data: of `fingerprint`."""
        for folder in self.checkpoints:
            problem = None
            try:
                saved = json.loads((folder / "state.json").read_bytes())
                if saved["data"] != data and not self.arguments["data_may_differ"]:
                    exit_with(
                        f"{folder} was made with other questions: "
                        "check --data, or add --data_may_differ"
                    )
                self.accelerator.load_state(str(folder))
            except Exception as error:  # every format has errors of its own
                if "loading state_dict" in str(error):
                    exit_with(
                        f"{folder} holds weights of another architecture than --student "
                        f"{self.arguments['student']}: give the one in args.json"
                    )
                problem = (
                    f"{folder} cannot be loaded ({str(error)[:200]}): going on from the one before"
                )
            problem = any_of(problem)
            if not problem:
                return saved
            if folder != self.checkpoints[-1]:
                print_main(problem)
        exit_with(f"{problem}, but there is none: start anew in another --output")

    def go_back_to(self, step: int) -> None:
        """The folder as it was after this step: a crash leaves records and parts of later ones."""
        write_whole(json.dumps(self.arguments, indent=1), self.folder / "args.json")
        for name in ("metrics.jsonl", "times.jsonl"):
            log = self.folder / name
            if log.exists():
                write_records([line for line in read_records(log) if line["step"] <= step], log)
        for pattern in ("partial-*", "checkpoints/partial-*"):
            for folder in sorted(self.folder.glob(pattern)):
                shutil.rmtree(folder)
        for folder in self.checkpoints:
            if folder.name > f"step_{step:05d}":  # damaged
                folder.rename(folder.with_name(f"damaged-{folder.name}-{time.time():.0f}"))

    def log(self, metrics: dict, times: dict) -> None:
        """One step: on the screen, in metrics.jsonl and times.jsonl, and in the trackers."""
        metrics = without_nan(metrics)
        times = without_nan(times)
        said = step_lines(metrics, times)
        self.trivial_steps = self.trivial_steps + 1 if metrics["active_share"] == 0 else 0
        if self.trivial_steps == 3:
            said += f"\n{why_trivial(metrics)}"
        print_main(said)
        with self.writing(self.folder / "metrics.jsonl"):
            if self.main:
                append_record(metrics, self.folder / "metrics.jsonl")
                append_record(times, self.folder / "times.jsonl")
            both = metrics | {f"time/{name}": times[name] for name in times if name != "step"}
            known = {name: value for name, value in both.items() if value is not None}
            self.accelerator.log(known, step=metrics["step"])

    def write(self, records: list[dict], name: str) -> None:
        """A file of records, whole."""
        with self.writing(self.folder / name):
            if self.main:
                write_records(records, self.folder / name)

    def save(self, state: dict, keep: int) -> None:
        """A checkpoint: weights, optimiser and `state` (JSON). The newest `keep` stay; 0: all."""
        folder = self.folder / f"checkpoints/step_{state['step']:05d}"
        partial = partial_of(folder)
        with self.writing(folder):
            self.accelerator.save_state(str(partial))
        with self.writing(folder):
            if self.main:
                for file in partial.glob("random_states_*"):  # decision 3
                    file.unlink()
                write_whole(json.dumps(state), partial / "state.json")
                replace_folder(folder, partial)
                # keep = 0: the slice is empty.
                for old in sorted(folder.parent.glob("step_*"))[:-keep]:
                    shutil.rmtree(old)

    def save_model(self, policy, processor) -> None:
        """The trained student as an ordinary model folder. policy: a prepared `Policy`."""
        folder = self.folder / "model"
        model = self.accelerator.unwrap_model(policy).model
        # Whole, also of shards; under FSDP2 on the main process only.
        weights = self.accelerator.get_state_dict(policy)
        with self.writing(folder):
            if self.main:
                partial = partial_of(folder)
                write_model(model, weights, partial)
                processor.save_pretrained(partial)
                replace_folder(folder, partial)


# ---------------------------------------------------------------- may a run go on?


def check_same_run(folder: Path, new: dict) -> None:
    """Refuse to resume under arguments that would change the results."""
    try:
        old = json.loads((folder / "args.json").read_bytes())
    except (OSError, ValueError) as error:
        what = f"{folder}/args.json cannot be read ({error})"
        exit_with(f"{what}: it says how the run was started. Start in another --output")
    fixed = {name: value for name, value in new.items() if name not in MAY_CHANGE}
    if new["teacher_model"]:  # a named one may move to another server
        del fixed["teacher"]
    refuse_changes(folder, old, fixed, "resume with that, or start anew in another --output")
    if new["student"] != old["student"]:
        print_main(
            f"--student was {old['student']}: its trained weights go on, "
            f"with the processor of {new['student']}"
        )


def refuse_changes(path: Path, old: dict, new: dict, fix: str) -> None:
    """Refuse to go on under other arguments than those that a run was started with."""
    changed = [
        f"--{name} {old[name]} (now {value})"
        for name, value in new.items()
        if value != old.get(name, value)
    ]
    if changed:
        exit_with(f"{path} was started with {', '.join(changed)}: {fix}")


# ---------------------------------------------------------------- whole or not at all


def write_whole(text: str, path: Path) -> None:
    """A file that appears whole or not at all.

    A lone surrogate becomes its escape, which JSON reads back."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")
    os.replace(partial, path)


def write_records(records: list[dict], path: Path) -> None:
    """A file of one record a line, whole or not at all."""
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    write_whole("".join(lines), path)


def append_record(record: dict, path: Path) -> None:
    """One more line of a log. A crash may cut it short: `read_records` leaves it out then."""
    with open(path, "a", newline="\n") as file:
        file.write(json.dumps(record) + "\n")


def read_records(path: Path) -> list[dict]:
    """All records of a file; none where there is no file.

    A last line without its newline was cut short by a crash: it is left out."""
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]
    return [json.loads(line) for line in lines]


def without_nan(record: dict) -> dict:
    """None for NaN and infinity, which JSON does not know."""
    return json.loads(json.dumps(record), parse_constant=lambda _: None)


def partial_of(folder: Path) -> Path:
    """Where a folder is written before it is whole (decision 1)."""
    return folder.with_name(f"partial-{folder.name}")


def replace_folder(folder: Path, partial: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)


def write_model(model, weights: dict, folder: Path) -> None:
    """A model folder with these weights: of `engine.update.Policy`, as accelerate gives them."""
    once = dict(model.named_parameters()) | dict(model.named_buffers())  # tied weights once
    ours = {name: weights[f"model.{name}"] for name in once if f"model.{name}" in weights}
    # save_pretrained refuses settings that hub models come with: a temperature without do_sample.
    generation_config = model.generation_config
    model.generation_config = GenerationConfig()
    model.save_pretrained(folder, state_dict=ours)
    model.generation_config = generation_config
    generation_config.to_json_file(folder / "generation_config.json")
