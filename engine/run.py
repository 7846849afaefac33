"""What a run leaves on disk and goes on from, what stops it from outside, and what it says on the screen.

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
import signal
import socket
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from accelerate import Accelerator, PartialState
from accelerate.utils import gather_object
from filelock import FileLock, Timeout
from tqdm import tqdm
from transformers import GenerationConfig

MAY_CHANGE = (  # on --resume; data by its content
    "student data data_may_differ split config columns output resume steps micro_tokens rollout_rows preview "
    "teacher_timeout teacher_concurrency gradient_checkpointing save_every keep_checkpoints dump_every eval_questions "
    "eval_data eval_every log_with print_samples"
).split()
LAUNCHED = {"ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID"} & set(os.environ)  # accelerate launch, torchrun
LAUNCHER = psutil.Process().parent() if LAUNCHED else None
ONE_SIGNAL = 2.0  # seconds: schedulers signal every process, and launchers pass theirs on, so one may arrive twice
SHOWN = 400  # characters of the beginning and of the end of a long text on the screen
LEGEND = """\
Two lines a step. Shares of its rollouts: plain, bcq, ncq: right, by kind of prompt; active: with
an advantage; cut: at --max_response_tokens; no box: without \\boxed{}. length: mean tokens.
buffer: questions to replay (+admitted -graduated -evicted). After "s:" phases, longest first."""


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


def say(text: str, screen: str = "stdout") -> None:
    """The main process prints this, above its progress bar and at once."""
    if PartialState().is_main_process:
        with suppress(OSError):  # a screen that is gone (`| tee` ended by the same Ctrl-C) stops nothing
            tqdm.write(text, file=getattr(sys, screen))
            getattr(sys, screen).flush()


def leave(sentence: str, status: int) -> None:
    """End this process; the main one says why. status 2: what was asked for cannot be done; 1: anything else."""
    say(sentence, "stderr")
    raise SystemExit(status)


def step_lines(metrics: dict, times: dict) -> str:
    """A step on the screen: two lines within 100 columns, explained by LEGEND. As many phases as fit, longest first."""

    def show(name: str, form: str) -> str:
        return format(metrics[name], form) if metrics.get(name) is not None else f"{'-':>{form[0]}}"

    shares = dict(plain="plain_accuracy", bcq="bcq_accuracy", ncq="ncq_accuracy", active="active_share")
    shares |= {"cut": "cut_share", "no box": "no_answer_share"}
    first = "  ".join(f"{label} {show(name, '4.0%')}" for label, name in shares.items())
    total, digits = times["total"], 1 if times["total"] < 100 else 0
    second = "  buffer {buffer} (+{admitted} -{graduated} -{evicted})  grad ".format(**metrics)
    second += f"{show('grad_norm', '1.2f')}  {metrics['response_tokens'] / total:.0f} tok/s  {total:.{digits}f} s:"
    for name in sorted(times.keys() - {"step", "total", "padding_share"}, key=times.get, reverse=True):
        phase = f" {name} {times[name]:.{digits}f}"
        second += phase if len(second + phase) <= 100 else ""
    return f"step {metrics['step']:>5}  {first}  length {show('response_length', '5.0f')}\n{second}"


def why_idle(metrics: dict) -> str:
    """The likely cause why every group of rollouts is all right or all wrong, and none has an advantage."""
    cut, no_box, right = (metrics.get(name) or 0.0 for name in ("cut_share", "no_answer_share", "plain_accuracy"))
    causes = {
        "all answers are right: the questions are too easy": right == 1,
        f"{cut:.0%} of the responses are cut: raise --max_response_tokens": cut >= 0.5,
        f"{no_box:.0%} have no \\boxed{{}}: can the model follow instructions?": no_box >= 0.5,
        "all answers are wrong: compare them with the golds in dumps/": right == 0,
        "each question is all right or all wrong: raise --group_size": True,
    }
    return "No rollout taught anything in 3 steps; " + next(cause for cause, holds in causes.items() if holds)


def closing_tables(before: dict[str, float], after: dict[str, float], graduated: dict[float, tuple[int, int]]) -> str:
    """Held-out accuracy in percent by family, and (graduated, admitted) by accuracy at admission (Fig. 4)."""
    lines = [f"\n{'held-out questions':<22}{'before':>8}{'after':>8}"] if before and after else []
    lines += [f"{family:<22}{before[family]:>7.1f}%{after[family]:>7.1f}%" for family in before if after]
    lines += [f"\n{'accuracy at admission':<22}{'admitted':>9}{'graduated':>10}"] if graduated else []
    lines += [f"{100 * at:>20.1f}% {admitted:>9}{left:>10}" for at, (left, admitted) in graduated.items()]
    return "\n".join(lines)


def print_samples(records: list[dict], n: int, rollouts: int = 1) -> None:
    """n of the records of `zppo.dump`, evenly spread over them, each with its first rollouts, long texts shortened."""
    for record in records[:: max(1, len(records) // max(1, n))][:n]:
        texts = [f"\n---- {record['kind']} prompt of question {record['uid']}", record["prompt"]]
        for rollout in record["rollouts"][:rollouts]:
            texts.append(f"---- reward {rollout['reward']:.0f}, answer {rollout['answer']!r}, gold {record['gold']!r}")
            texts.append(rollout["text"])
        say("\n".join(text if len(text) <= 2 * SHOWN else f"{text[:SHOWN]}\n[...]\n{text[-SHOWN:]}" for text in texts))


class Stop:
    """What stops a run from outside: SIGINT (Ctrl-C), SIGTERM (schedulers), or the end of its launcher, because SIGTERM
    ends `accelerate launch` at once and does not reach the run. The first signal sets `event`, for whoever waits, and
    is kept for `reason`; a second one stops the process at once."""

    def __init__(self, event: threading.Event):
        self.event, self.signal, self.first = event, "", 0.0
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.handle)

    def handle(self, number: int, frame) -> None:
        if not self.signal:
            self.signal, self.first = signal.Signals(number).name, time.monotonic()
            self.event.set()
            text = f"\n{self.signal}: stopping after this step; a second one stops at once (kill {os.getpid()})\n"
            with suppress(OSError):  # os.write: print is not safe in a handler
                os.write(2, text.encode() if PartialState().is_main_process else b"")
        elif time.monotonic() - self.first > ONE_SIGNAL:
            self.end()
            signal.raise_signal(number)

    def end(self) -> None:
        """From here on a signal stops the process at once."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)

    def reason(self) -> str | None:
        """What asks any of the processes to stop, the same on all of them; None: nothing."""
        gone = LAUNCHER and psutil.Process().parent() != LAUNCHER  # orphans get another parent (on Windows none)
        return any_of(self.signal or ("the end of its launcher" if gone else None))


def any_of(problem: str | None) -> str | None:
    """What the first process with a problem says, on all processes alike."""
    return next(filter(None, gather_object([problem])), None)


def refuse_changes(path: Path, old: dict, new: dict, fix: str) -> None:
    """Refuse to go on under other arguments than those that a run was started with."""
    if changed := [name for name in new if name in old and new[name] != old[name]]:
        was = ", ".join(f"--{name} {old[name]} (now {new[name]})" for name in changed)
        leave(f"{path} was started with {was}: {fix}", 2)


def check_same_run(folder: Path, new: dict) -> None:
    """Refuse to resume under arguments that would change the results."""
    old = json.loads((folder / "args.json").read_text(encoding="utf-8"))
    free = [*MAY_CHANGE, "teacher"] if new["teacher_model"] else MAY_CHANGE  # a named one may move to another server
    fixed = {name: value for name, value in new.items() if name not in free}
    refuse_changes(folder, old, fixed, "resume with that, or start anew in another --output")
    if new["student"] != old["student"]:
        say(f"--student was {old['student']}: its trained weights go on, with the processor of {new['student']}")


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
            leave(f"{folder} is in use by {holder}: wait for its end, stop it, or choose another --output", 2)
        if (folder / "metrics.jsonl").exists() and not arguments["resume"]:
            leave(f"{folder} holds a run: add --resume to go on with it, or choose another --output", 2)
        self.checkpoints = sorted(folder.glob("checkpoints/step_*"), reverse=True) if arguments["resume"] else []
        if self.checkpoints:
            check_same_run(folder, arguments)
            sharded, kinds = any(folder.glob("checkpoints/step_*/*fsdp*")), ("whole", "sharded (FSDP2)")
            if sharded != accelerator.is_fsdp2:
                leave(f"{folder} is {kinds[sharded]}, this run is {kinds[not sharded]}: launch it as it was started", 2)

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
            leave(f"{problem}; --resume goes on from {whole.name}" if whole else problem, 1)

    def load(self, state: dict) -> dict:
        """Weights and optimiser of the newest whole checkpoint, and logs up to there. Returns its state, or `state`."""
        for folder in self.checkpoints:
            problem = None
            try:
                saved = json.loads((folder / "state.json").read_text(encoding="utf-8"))
                if saved["data"] != state["data"] and not self.arguments["data_may_differ"]:
                    leave(f"{folder} was made with other questions: check --data, or add --data_may_differ", 2)
                self.accelerator.load_state(str(folder))
            except Exception as error:  # every format has errors of its own
                problem = f"{folder} cannot be loaded ({str(error)[:200]}): going on from the one before"
            if not (problem := any_of(problem)):
                state = saved | {"data": state["data"]}
                break
            if folder == self.checkpoints[-1]:
                leave(f"{problem}, but there is none: start anew in another --output", 2)
            say(problem)
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
        say(step_lines(metrics, times) + (f"\n{why_idle(metrics)}" if self.idle == 3 else ""))
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
