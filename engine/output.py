"""What a run leaves on disk and goes on from.

Decisions:
1. A folder is written beside its place and renamed when it is whole: a crash or a full disk leaves the last whole one.
   --resume puts a damaged checkpoint aside, deletes nothing, and goes on from the one before.
2. A write that fails on any process ends the run on all of them, with exit status 1.
3. A checkpoint fits any number of processes, because it holds no random state. Sharded ones (FSDP2) fit only shards.
4. The trained student is saved in fp32, as it was trained: most single updates at the paper's learning rate are smaller
   than what bf16 can tell apart. Load it with dtype=torch.bfloat16 where half the memory counts for more.
"""

import json
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
    "student data data_may_differ split config columns output resume steps micro_tokens rollout_rows preview "
    "teacher_timeout teacher_concurrency gradient_checkpointing save_every keep_checkpoints dump_every eval_questions "
    "eval_data eval_every log_with print_samples"
).split()


def write_whole(text: str, path: Path) -> None:
    """A file that appears whole or not at all. A lone surrogate becomes its escape, which JSON reads back."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")
    os.replace(partial, path)


def write_records(records: list[dict], path: Path) -> None:
    """A file of one record a line, whole or not at all."""
    write_whole("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), path)


def read_records(path: Path) -> list[dict]:
    """All records of a file; none where there is no file. A last line without its newline was cut short: left out."""
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []  # splitlines cuts at U+2028 too
    return [json.loads(line) for line in lines if line.strip()]


def refuse_changes(path: Path, old: dict, new: dict, fix: str) -> None:
    """Refuse to go on under other arguments than those that a run was started with."""
    if changed := [name for name in new if name in old and new[name] != old[name]]:
        was = ", ".join(f"--{name} {old[name]} (now {new[name]})" for name in changed)
        exit_with(f"{path} was started with {was}: {fix}", 2)


def check_same_run(folder: Path, new: dict) -> None:
    """Refuse to resume under arguments that would change the results."""
    old = json.loads((folder / "args.json").read_text(encoding="utf-8"))
    free = [*MAY_CHANGE, "teacher"] if new["teacher_model"] else MAY_CHANGE  # a named one may move to another server
    fixed = {name: value for name, value in new.items() if name not in free}
    refuse_changes(folder, old, fixed, "resume with that, or start anew in another --output")
    if new["student"] != old["student"]:
        print_main(f"--student was {old['student']}: its trained weights go on, with the processor of {new['student']}")


class Output:
    """The folder of a run. All processes call its methods together; the main one writes. SystemExit ends all of them:
    status 1 where something cannot be written, 2 where the folder is in use or holds a run under other arguments."""

    def __init__(self, folder: Path, accelerator: Accelerator, arguments: dict):
        self.folder, self.accelerator, self.arguments = folder, accelerator, arguments
        self.main, self.idle, holder = accelerator.is_main_process, 0, None
        with self.writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self.lock = FileLock(folder / "lock")
            if self.main:
                try:
                    self.lock.acquire(timeout=0)
                    write_whole(f"process {os.getpid()} on {socket.gethostname()}", folder / "process")
                except Timeout:
                    holder = (folder / "process").read_text(encoding="utf-8")
        if holder := any_of(holder):
            exit_with(f"{folder} is in use by {holder}: wait for its end, stop it, or choose another --output", 2)
        if (folder / "metrics.jsonl").exists() and not arguments["resume"]:
            exit_with(f"{folder} holds a run: add --resume to go on with it, or choose another --output", 2)
        self.checkpoints = sorted(folder.glob("checkpoints/step_*"), reverse=True) if arguments["resume"] else []
        if self.checkpoints:
            check_same_run(folder, arguments)
            sharded, kinds = any(folder.glob("checkpoints/step_*/*fsdp*")), ("whole", "sharded (FSDP2)")
            if sharded != accelerator.is_fsdp2:
                exit_with(f"{folder} is {kinds[sharded]}, this run is {kinds[not sharded]}: launch it as it was started", 2)

    @contextmanager
    def writing(self, path: Path):
        """What fails in here, on any process, ends the run on all processes."""
        problem = None
        try:
            yield
        except Exception as error:  # a full disk is an OSError, but torch.save and safetensors have errors of their own
            problem = f"cannot write {path} (is there space?): {error}"
        if problem := any_of(problem):
            if self.main:  # room for what is to be kept
                shutil.rmtree(path.with_name(f"partial-{path.name}"), ignore_errors=True)
            whole = max(self.folder.glob("checkpoints/step_*"), default=None)
            exit_with(f"{problem}; --resume goes on from {whole.name}" if whole else problem, 1)

    def load(self, state: dict) -> dict:
        """Weights and optimiser of the newest whole checkpoint, and logs up to there. Returns its state, or `state`."""
        for folder in self.checkpoints:
            problem = None
            try:
                saved = json.loads((folder / "state.json").read_text(encoding="utf-8"))
                if saved["data"] != state["data"] and not self.arguments["data_may_differ"]:
                    exit_with(f"{folder} was made with other questions: check --data, or add --data_may_differ", 2)
                self.accelerator.load_state(str(folder))
            except Exception as error:  # every format has errors of its own
                problem = f"{folder} cannot be loaded ({str(error)[:200]}): going on from the one before"
            if not (problem := any_of(problem)):
                state = saved | {"data": state["data"]}
                break
            if folder == self.checkpoints[-1]:
                exit_with(f"{problem}, but there is none: start anew in another --output", 2)
            print_main(problem)
        with self.writing(self.folder):
            if self.main:
                write_whole(json.dumps(self.arguments, indent=1), self.folder / "args.json")
                for log in filter(Path.exists, (self.folder / "metrics.jsonl", self.folder / "times.jsonl")):
                    write_records([record for record in read_records(log) if record["step"] <= state["step"]], log)
                for left in (*self.folder.glob("partial-*"), *self.folder.glob("checkpoints/partial-*")):  # by a crash
                    shutil.rmtree(left)
                for damaged in (folder for folder in self.checkpoints if folder.name > f"step_{state['step']:05d}"):
                    damaged.rename(damaged.with_name(f"damaged-{damaged.name}-{time.time():.0f}"))
        plain = {k: v if isinstance(v, int | float) else str(v) for k, v in self.arguments.items()}
        self.accelerator.init_trackers("zppo", plain)
        return state

    def log(self, metrics: dict, times: dict) -> None:
        """One step: on the screen, a line each in metrics.jsonl and times.jsonl, and to the trackers of --log_with."""
        # JSON knows no NaN and no infinity: None stands for them.
        metrics, times = (json.loads(json.dumps(line), parse_constant=lambda _: None) for line in (metrics, times))
        self.idle = self.idle + 1 if metrics["active_share"] == 0 else 0
        print_main(step_lines(metrics, times) + (f"\n{why_trivial(metrics)}" if self.idle == 3 else ""))
        with self.writing(self.folder / "metrics.jsonl"):
            for record, name in ((metrics, "metrics.jsonl"), (times, "times.jsonl")) if self.main else ():
                with open(self.folder / name, "a", encoding="utf-8", newline="\n") as file:
                    file.write(json.dumps(record) + "\n")
            both = metrics | {f"time/{name}": value for name, value in times.items() if name != "step"}
            self.accelerator.log({k: v for k, v in both.items() if v is not None}, step=metrics["step"])

    def write(self, records: list[dict], name: str) -> None:
        """A file of records, whole."""
        with self.writing(self.folder / name):
            if self.main:
                write_records(records, self.folder / name)

    def save(self, state: dict, keep: int) -> None:
        """A checkpoint: weights, optimiser and `state` (JSON). Only the newest `keep` stay; 0: all."""
        folder = self.folder / "checkpoints" / f"step_{state['step']:05d}"
        partial = folder.with_name(f"partial-{folder.name}")
        with self.writing(folder):
            self.accelerator.save_state(str(partial))
        with self.writing(folder):
            if self.main:
                for file in partial.glob("random_states_*"):
                    file.unlink()
                write_whole(json.dumps(state), partial / "state.json")
                shutil.rmtree(folder, ignore_errors=True)
                os.replace(partial, folder)
                for old in sorted(folder.parent.glob("step_*"))[:-keep] if keep else ():
                    shutil.rmtree(old)

    def save_model(self, policy, processor) -> None:
        """The trained student as an ordinary model folder. policy: a prepared engine.update.Policy."""
        folder, model = self.folder / "model", self.accelerator.unwrap_model(policy).model
        weights = self.accelerator.get_state_dict(policy)  # whole, also of shards; under FSDP2 on the main process only
        with self.writing(folder):
            if self.main:
                partial = folder.with_name("partial-model")
                names = [name for name, _ in (*model.named_parameters(), *model.named_buffers())]  # tied weights: once
                whole = {name: weights[f"model.{name}"] for name in names if f"model.{name}" in weights}
                # save_pretrained refuses settings that hub models come with: a temperature without do_sample
                generation_config, model.generation_config = model.generation_config, GenerationConfig()
                model.save_pretrained(partial, state_dict=whole)
                model.generation_config = generation_config
                generation_config.to_json_file(partial / "generation_config.json")
                processor.save_pretrained(partial)
                shutil.rmtree(folder, ignore_errors=True)
                os.replace(partial, folder)
