"""Runs that are stopped or cut short and go on as if nothing had happened; the model they leave."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import tiny
import torch
from accelerate import Accelerator
from runs import (
    ACCELERATE,
    ENV,
    ROOT,
    Forked,
    arguments,
    assert_close,
    assert_same,
    command,
    read_metrics,
    read_state,
    torchrun,
    train,
)
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

from engine.models import encode, load_model, load_processor
from engine.output import Output, read_records, write_records
from engine.screen import LEGEND, NO_PHASES, SHOWN, print_samples, step_lines
from world import pretrain

try:
    import resource  # its limit of file sizes stands for a full disk
except ModuleNotFoundError:
    resource = None  # Windows
posix = pytest.mark.skipif(
    resource is None, reason="Windows has no limit of file sizes and no signals to others"
)
SIGNAL = "stopping after this step"
NO_EVALUATION = "--eval_questions", "0"


def start(output: Path, launch: Sequence[str] = (), stderr=subprocess.STDOUT) -> subprocess.Popen:
    """The command that people type, in a process group of its own; its output is a pipe."""
    pipe = dict(stdout=subprocess.PIPE, stderr=stderr, encoding="utf-8", start_new_session=True)
    return subprocess.Popen(
        command(output, launch=launch), env={**ENV, "PYTHONUNBUFFERED": "1"}, **pipe
    )


def wait_for_lines(process: subprocess.Popen | Forked, log: Path, lines: int) -> None:
    deadline = time.time() + 120
    while not (log.exists() and len(log.read_text().splitlines()) >= lines):
        assert process.poll() is None and time.time() < deadline
        time.sleep(0.02)


def fill_disk(pid: int, size: int) -> None:
    """From here on no file of the process grows beyond `size` bytes: a write fails with OSError."""
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


# ---------------------------------------------------------------- resume


def test_killed_and_resumed_equals_never_stopped(reference, tmp_path):
    run = tmp_path / "run"
    process = Forked("train.py", arguments(run))
    wait_for_lines(
        process, run / "metrics.jsonl", 3
    )  # one step past the checkpoint: it has to be done again
    process.kill()
    process.communicate()
    assert not (run / "checkpoints" / "step_00004").exists()
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "plain_accu')  # as a crash leaves it
    train(run, "--resume")
    assert_same(run, reference[0])


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory) -> Path:
    """The first two of the reference's four steps, on two processes: a whole run of its own."""
    run = tmp_path_factory.mktemp("two_steps") / "run"
    train(run, "--steps", "2", *NO_EVALUATION, processes=2)
    return run


@pytest.mark.parametrize("processes", [1, 3])
def test_resumed_on_another_number_of_processes(processes, two_steps, reference, tmp_path):
    run = shutil.copytree(two_steps, tmp_path / "run")
    assert not list(run.glob("checkpoints/*/random_states*"))
    train(run, "--resume", *NO_EVALUATION, processes=processes)
    assert_close(run, reference[0])


def test_json_lines_hold_any_response_and_end_at_newlines_alone(tmp_path):
    path = tmp_path / "dumps" / "a.jsonl"
    records = [
        {"text": "a\u2028b\u2029c\u0085d\x0ce\r\n"},
        {"text": "\ud800 half, 数"},
        {"text": ""},
    ]
    write_records(records, path)
    assert read_records(path) == records and path.read_bytes().count(b"\n") == 3
    assert "数" in path.read_text(encoding="utf-8")
    with open(path, "a", encoding="utf-8") as file:
        file.write('{"text": "cut sho')  # by a crash
    assert read_records(path) == records and read_records(tmp_path / "none.jsonl") == []


# ---------------------------------------------------------------- the folder, without a whole run


ARGUMENTS = {
    "student": "s",
    "teacher": "t",
    "teacher_model": None,
    "lr": 0.1,
    "log_with": None,
    "resume": False,
}
ARGUMENTS["data_may_differ"] = False


class Small:
    """A real accelerator, model and optimiser in a folder, and the steps that a run takes there."""

    def __init__(self, folder: Path, **arguments):
        self.folder, self.accelerator = folder, Accelerator(cpu=True)
        self.model = torch.nn.Linear(2, 1, bias=False)
        optimizer = torch.optim.AdamW(self.model.parameters())
        self.model, self.optimizer = self.accelerator.prepare(self.model, optimizer)
        self.output = Output(folder, self.accelerator, {**ARGUMENTS, **arguments})

    def load(self, data: str = "d") -> dict:
        return self.output.load({"step": 0, "data": data})

    def step(self, step: int, keep: int = 0) -> None:
        """Step `step` ends with all weights at `step`, in the log and in a checkpoint."""
        with torch.no_grad():
            self.model.weight.fill_(step)
        self.model(torch.ones(1, 2)).sum().backward()
        self.optimizer.step()
        with torch.no_grad():
            self.model.weight.fill_(step)
        self.output.log({**METRICS, "step": step}, {"step": step, "total": 1.0})
        self.output.save({"step": step, "data": "d"}, keep)

    def end(self) -> None:
        """What the end of the process does."""
        self.output.lock.release()

    def names(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "checkpoints").iterdir())


METRICS = dict(
    active_share=0.5,
    buffer=1,
    admitted=1,
    graduated=0,
    evicted=0,
    response_tokens=9,
    grad_norm=math.nan,
)


@pytest.mark.parametrize(("keep", "kept"), [(0, [1, 2, 3]), (1, [3]), (2, [2, 3]), (5, [1, 2, 3])])
def test_the_newest_checkpoints_are_kept(keep, kept, tmp_path):
    run = Small(tmp_path)
    run.load()
    for step in (1, 2, 3):
        run.step(step, keep)
    assert run.names() == [f"step_{step:05d}" for step in kept]
    assert read_metrics(tmp_path)[0]["grad_norm"] is None  # not a number: null, and no invalid JSON


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.bin", "state.json"])
@pytest.mark.parametrize("damage", ["cut", "gone", "zeros"])
def test_a_damaged_checkpoint_makes_way_for_the_one_before(file, damage, tmp_path, capsys):
    run = Small(tmp_path)
    run.load()
    for step in (1, 2):
        run.step(step)
    run.end()
    path = tmp_path / "checkpoints" / "step_00002" / file
    size = path.stat().st_size
    path.unlink()
    if damage != "gone":
        path.write_bytes(bytes(size) if damage == "zeros" else b'{"step"')
    again = Small(tmp_path, resume=True)
    assert again.load()["step"] == 1 and again.model.weight.tolist() == [[1.0, 1.0]]
    assert again.optimizer.state_dict()["state"][0]["step"] == 1
    assert "step_00002 cannot be loaded" in capsys.readouterr().out
    assert [line["step"] for line in read_metrics(tmp_path)] == [1]
    aside, kept = again.names()
    assert aside.startswith("damaged-step_00002") and kept == "step_00001"  # nothing is deleted
    again.step(2, keep=1)
    again.end()
    assert again.names() == [aside, "step_00002"]
    (tmp_path / "checkpoints" / "step_00002" / file).write_bytes(b"")
    with pytest.raises(SystemExit) as end:
        Small(tmp_path, resume=True).load()
    assert end.value.code == 2 and "start anew" in capsys.readouterr().err
    assert again.names() == [aside, "step_00002"]  # refused: nothing is touched


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"lr": 0.2}, "--lr 0.1 (now 0.2)"),
        ({"teacher": "u"}, "--teacher t (now u)"),
        ({"teacher_model": "m"}, "--teacher_model None (now m)"),
        ({"resume": False}, "add --resume"),
        ({"data": "e"}, "--data_may_differ"),
        ({"data": "e", "data_may_differ": True}, None),
        ({"student": "v"}, None),
    ],
)
def test_what_a_resumed_run_may_change(changed, sentence, tmp_path, capsys):
    run = Small(tmp_path)
    run.load()
    run.step(1)
    run.end()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    arguments = {
        "resume": True,
        **{name: value for name, value in changed.items() if name != "data"},
    }

    def resume() -> dict:
        return Small(tmp_path, **arguments).load(changed.get("data", "d"))

    if sentence is None:
        assert resume() == {"step": 1, "data": changed.get("data", "d")}
        assert ("--student was s" in capsys.readouterr().out) == ("student" in changed)
        return
    with pytest.raises(SystemExit) as end:
        resume()
    assert end.value.code == 2 and sentence in capsys.readouterr().err
    (tmp_path / "process").write_bytes(
        before[tmp_path / "process"]
    )  # names the last holder of the lock
    assert {path: path.read_bytes() for path in before} == before


def test_a_teacher_known_by_its_name_may_move_to_another_server(tmp_path):
    run = Small(tmp_path, teacher="http://a/v1", teacher_model="27B")
    run.load()
    run.step(1)
    run.end()
    Small(tmp_path, teacher="http://b/v1", teacher_model="27B", resume=True).load()


def test_trackers_that_accelerate_finds_can_be_named():
    """accelerate names them by members of an enumeration, which are no strings."""
    code = "from accelerate.tracking import LoggerType, get_available_trackers as all"
    code += "\nall()[:] = [LoggerType.WANDB]; import train"
    code += "\ntold = [train.read_options(['--log_with', name])[0] for name in ('wandb', 'all')]"
    code += "\nprint([args.log_with for args in told])"
    done = subprocess.run([sys.executable, "-c", code], env=ENV, capture_output=True, text=True)
    assert done.stdout == "['wandb', 'all']\n", done.stderr


def test_a_tracker_gets_the_metrics(tmp_path):
    pytest.importorskip("tensorboard")
    train(tmp_path / "run", "--log_with", "tensorboard", "--steps", "1", "--eval_questions", "0")
    assert list(tmp_path.glob("run/zppo/**/events.out.tfevents.*"))


def test_a_run_whose_data_lost_a_row_goes_on_when_told_to(tmp_path):
    rows = [{"problem": f"{i}+1", "answer": str(i + 1)} for i in range(10)]
    data = tmp_path / "sums.jsonl"
    write_records(rows, data)
    models = f"--student {ROOT}/world/student --teacher {ROOT}/world/teacher --data {data}".split()
    models += ["--max_response_tokens", "8"]
    train(tmp_path / "run", *models, "--steps", "1")
    state = json.loads((tmp_path / "run/checkpoints/step_00001/state.json").read_text("utf-8"))
    uids = [entry["uid"] for entry in state["buffer"]["entries"]]
    assert len(uids) == 8  # the world's student cannot add
    write_records(rows[1:9], data)
    done = train(tmp_path / "run", *models, "--resume", "--steps", "2", check=False)
    assert done.returncode == 2 and "--data_may_differ" in done.stderr
    train(tmp_path / "run", *models, "--resume", "--steps", "2", "--data_may_differ", "true")
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == [1, 2]


def test_zero_turns_checkpoints_and_dumps_off(tmp_path):
    train(
        tmp_path / "run", "--save_every", "0", "--dump_every", "0", "--steps", "3", *NO_EVALUATION
    )
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == [
        "step_00003"
    ]  # to go on from
    assert not (tmp_path / "run" / "dumps").exists() and (tmp_path / "run" / "model").exists()


def test_no_warning_that_tied_weights_are_saved_once(tmp_path, caplog):
    run = Small(tmp_path)
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    model[1].weight = model[0].weight
    run.accelerator.prepare(model)
    run.load()
    run.step(1)
    assert (tmp_path / "checkpoints/step_00001/model_1.safetensors").exists()
    assert not caplog.records


# ---------------------------------------------------------------- out of space


@posix
def test_a_full_disk_stops_the_run_and_resume_goes_on(reference, tmp_path):
    run = tmp_path / "run"
    with start(run) as process:
        wait_for_lines(process, run / "metrics.jsonl", 2)
        fill_disk(process.pid, 1500)  # within the third line
        screen = process.communicate(timeout=60)[0]
    assert process.returncode == 1
    last = screen.strip().split("\n")[-1]
    assert (
        last.startswith(f"cannot write {run}/") and "(is there space?)" in last
    )  # a log or a checkpoint
    assert "Traceback" not in screen
    saved = [path.name for path in run.glob("checkpoints/step_*")]
    assert not saved or f"--resume goes on from {saved[0]}" in last
    train(run, "--resume")
    assert_same(run, reference[0])


@posix
def test_no_space_for_a_checkpoint_on_two_processes(two_steps, reference, tmp_path):
    run = shutil.copytree(two_steps, tmp_path / "run")
    process = Forked("train.py", arguments(run, "--resume", *NO_EVALUATION), processes=2)
    for one in process.processes:
        fill_disk(one.pid, 500_000)  # enough for the logs
    _, stderr = process.communicate()
    assert process.returncode == 1
    (last,) = [line for line in stderr.split("\n") if line.startswith("cannot write")]
    assert str(run / "checkpoints" / "step_00004") in last and "File too large" in last
    assert last.endswith("--resume goes on from step_00002")
    assert [folder.name for folder in (run / "checkpoints").iterdir()] == ["step_00002"]
    assert len(read_metrics(run)) == 4
    train(run, "--resume", *NO_EVALUATION, processes=2)
    assert_close(run, reference[0])


def test_an_output_that_cannot_be_written_is_refused_at_once(tmp_path):
    """With status 2: another --output is asked for."""
    (tmp_path / "file").touch()
    (tmp_path / "folder" / "lock").mkdir(parents=True)
    for folder in (tmp_path / "file", tmp_path / "folder", tmp_path / ("x" * 300)):
        with pytest.raises(SystemExit) as end:
            Small(folder)
        assert end.value.code == 2
    done = train(tmp_path / "file" / "run", check=False)
    assert (
        done.returncode == 2
        and f"cannot write {tmp_path}/file/run" in done.stderr.strip().split("\n")[-1]
    )


# ---------------------------------------------------------------- signals


@posix
@pytest.mark.parametrize(
    ("processes", "receiver"), [(1, "run"), (2, "launcher"), (2, "last process")]
)
def test_a_signal_stops_the_run_after_its_step(processes, receiver, reference, tmp_path):
    run = tmp_path / "run"
    is_last = receiver == "last process"
    process = (
        Forked("train.py", arguments(run), processes)
        if is_last
        else start(run, torchrun(processes))
    )
    wait_for_lines(process, run / "metrics.jsonl", 1)
    pid = process.processes[-1].pid if is_last else process.pid
    os.kill(pid, signal.SIGINT if processes == 1 else signal.SIGTERM)
    screen = "".join(filter(None, process.communicate(timeout=60)))
    assert process.returncode != 0
    steps = len(read_metrics(run))
    name = "SIGINT" if processes == 1 else "SIGTERM"
    assert (
        f"{name} stopped the run after step {steps}; the state is saved in {run}: --resume goes on"
        in screen
    )
    assert (SIGNAL in screen) == (not is_last)  # the main process says so
    assert read_state(run, steps)[2]["step"] == steps and not (run / "model").exists()
    if processes == 1:
        train(run, "--resume")
        assert_same(run, reference[0])


@pytest.mark.parametrize(
    ("receiver", "number", "cause"),
    [
        ("group", "SIGINT", "SIGINT"),  # Ctrl-C
        ("group", "SIGTERM", "SIGTERM"),
        ("launcher", "SIGTERM", "the end of its launcher"),
        ("launcher", "SIGKILL", "the end of its launcher"),
    ],
)
@posix
def test_stopping_what_accelerate_launch_started(receiver, number, cause, reference, tmp_path):
    run = tmp_path / "run"
    with start(run, ACCELERATE) as process:
        wait_for_lines(process, run / "metrics.jsonl", 1)
        send = os.killpg if receiver == "group" else os.kill
        send(process.pid, getattr(signal, number))
        screen = process.communicate(timeout=60)[
            0
        ]  # ends with the run, which outlives its launcher
    steps = len(read_metrics(run))
    assert (
        f"{cause} stopped the run after step {steps}; the state is saved in {run}: --resume goes on"
        in screen
    )
    assert [line["step"] for line in read_metrics(run)] == list(range(1, steps + 1)) and steps < 4
    assert read_state(run, steps)[2]["step"] == steps
    if number == "SIGKILL":
        train(run, "--resume")
        assert_same(run, reference[0])


def test_one_run_per_folder_until_its_process_ends(tmp_path):
    run = tmp_path / "run"
    process = Forked("train.py", arguments(run, "--steps", "1000", *NO_EVALUATION))
    wait_for_lines(process, run / "metrics.jsonl", 1)
    for resume in ([], ["--resume"]):
        done = train(run, *resume, check=False)
        assert (
            f"{run} is in use by process {process.pid} on " in done.stderr and done.returncode == 2
        )
    process.kill()
    process.communicate()
    steps = [line["step"] for line in read_metrics(run)]
    assert steps == list(range(1, len(steps) + 1))
    Output(
        run,
        Accelerator(cpu=True),
        {**ARGUMENTS, **json.loads((run / "args.json").read_text()), "resume": True},
    )


@posix
def test_a_screen_that_is_gone_does_not_keep_the_state_from_being_saved(tmp_path):
    run = tmp_path / "run"
    with start(run, stderr=subprocess.DEVNULL) as process:
        wait_for_lines(process, run / "metrics.jsonl", 1)
        process.stdout.close()  # `train.py | tee log`: the same Ctrl-C ends tee at once
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)
    steps = len(read_metrics(run))
    assert steps < 4 and read_state(run, steps)[2]["step"] == steps


@posix
def test_a_second_signal_stops_at_once_and_an_echo_does_not():
    code = "import sys, threading; from engine import stopping"
    code += "\nstop = stopping.Stop(threading.Event()); print(stop.signal, flush=True)"
    code += (
        "\nfor line in sys.stdin: stopping.ONE_SIGNAL = float(line); print(stop.signal, flush=True)"
    )
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with subprocess.Popen([sys.executable, "-c", code], env=ENV, **pipes) as process:

        def name(
            one_signal: float,
        ) -> str:  # with as many seconds in which a second one counts as an echo
            process.stdin.write(f"{one_signal}\n")
            process.stdin.flush()
            return process.stdout.readline()

        assert process.stdout.readline() == name(1e9) == "\n"
        process.send_signal(signal.SIGTERM)
        while name(1e9) == "\n":
            pass
        process.send_signal(signal.SIGINT)  # the same request, passed on by somebody
        assert {name(1e9) for _ in range(50)} == {"SIGTERM\n"}
        assert name(0) == "SIGTERM\n"
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=10)
    assert process.returncode == -signal.SIGTERM


# ---------------------------------------------------------------- the screen


def test_lines_fit_a_hundred_columns(reference):
    run, screen = reference
    assert LEGEND in screen
    lines = screen.split("\n")
    steps = [i for i, line in enumerate(lines) if line.startswith("step ")]
    for i, times in zip(steps, read_records(run / "times.jsonl"), strict=True):
        first, second = lines[i : i + 2]
        assert len(first) <= 100 and "plain" in first and "active" in first and "no box" in first
        assert len(second) <= 100 and "buffer" in second
        phases = sorted(times.keys() - NO_PHASES, key=times.get, reverse=True)
        shown = second.split(" s:")[1].split()[::2]
        assert shown[0] == phases[0] and shown == [name for name in phases if name in shown]
        for name in phases:  # "update" too, as far as it fits
            assert name in shown or len(f"{second} {name} {times[name]:.1f}") > 100
    assert len(steps) == 4 and all(len(line) <= 100 for line in LEGEND.split("\n"))


def test_a_step_of_the_largest_and_of_missing_numbers_fits_too():
    names = (
        "plain_accuracy bcq_accuracy ncq_accuracy active_share cut_share no_answer_share".split()
    )
    numbers = dict(
        buffer=10_000, admitted=480, graduated=96, evicted=480, response_tokens=48_000_000
    )
    times = dict(step=99_999, total=100_000.0, padding_share=0.5)
    times |= dict(plain=9e4, teacher=8e4, compress=7e4, reformulate=6e4, judge=1.0, update=5e4)
    metrics = dict(
        step=99_999, response_length=12_288.0, grad_norm=1e4, **numbers, **dict.fromkeys(names, 1.0)
    )
    full = step_lines(metrics, times)
    missing = step_lines({"step": 1, "grad_norm": None, **numbers}, times)
    for lines in (full.split("\n"), missing.split("\n")):
        assert len(lines) == 2 and all(len(line) <= 100 for line in lines)
    assert "no box 100%  length 12288" in full and "padding" not in full
    times = dict(
        step=9, total=1234.5, padding_share=0.5, teacher=200.0, rollout=700.5, update=333.3
    )
    lines = step_lines({**metrics, "grad_norm": 0.25}, times)
    assert lines.endswith(" 1234 s: rollout 700 update 333 teacher 200")
    lines = step_lines({**metrics, "grad_norm": 0.25}, {**times, "total": 99.0, "rollout": 50.55})
    assert " 99.0 s: update 333.3 teacher 200.0" in lines
    assert "plain    -" in missing and "length     -" in missing and "grad -" in missing


def test_a_teacher_that_does_badly_is_on_the_screen():
    times = dict(step=1, total=1.0)
    good = {"teacher_questions": 8, "teacher_accuracy": 0.25, "compressed": 8}
    good |= {"compression_fallbacks": 2}
    plain = step_lines({**METRICS, "step": 1}, times, always=True)
    assert plain.count("\n") == 1 and step_lines({**METRICS, "step": 1, **good}, times) == plain
    shown = step_lines({**METRICS, "step": 1, **good}, times, always=True)
    said = "\n  teacher: 25% right on 8 hard questions, 2 of 8 summaries unusable"
    assert shown == plain + said
    bad = good | {"teacher_accuracy": 0.2}
    assert step_lines({**METRICS, "step": 1, **bad}, times) == plain + said.split(",")[0].replace(
        "25", "20"
    )
    bad = good | {"compression_fallbacks": 3}
    assert step_lines({**METRICS, "step": 1, **bad}, times).endswith(
        "\n  teacher: 3 of 8 summaries unusable"
    )
    none = {
        "teacher_questions": 0,
        "teacher_accuracy": None,
        "compressed": 0,
        "compression_fallbacks": 0,
    }
    assert step_lines({**METRICS, "step": 1, **none}, times, always=True) == plain


def test_a_console_that_does_not_know_every_character(tmp_path):
    """Windows' cp1252: what it cannot show appears as escapes."""
    rows = [{"problem": f"{i} 加 1, é?", "answer": str(i + 1)} for i in range(8)]
    write_records(rows, tmp_path / "d.jsonl")
    own = f"--student {ROOT}/world/student --teacher {ROOT}/world/teacher --data {tmp_path}/d.jsonl"
    line = command(tmp_path / "run", *own.split(), *"--preview 8 --max_response_tokens 8".split())
    env = ENV | {"PYTHONIOENCODING": "cp1252"}
    done = subprocess.run(line, env=env, capture_output=True, encoding="cp1252", timeout=300)
    assert done.returncode == 0, done.stderr
    assert " \\u52a0 1, é?" in done.stdout
    assert re.search(r"^  teacher: \d+% right on \d hard questions, ", done.stdout, re.M)
    code = "from engine.screen import print_main; print_main('\\ud800 \\u6570')"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True)
    assert done.stdout.split() == [rb"\ud800", rb"\u6570"], done.stderr


def test_samples_are_spread_over_the_records_and_shortened(capsys):
    long = "b" * SHOWN + "middle" + "e" * SHOWN
    kinds = ["plain"] * 4 + ["bcq", "ncq"] * 3
    records = [
        {"uid": f"q{i}", "kind": kind, "gold": "7", "prompt": f"prompt {i}" if i else long,
         "rollouts": [{"text": f"so {i}", "answer": None, "reward": 0.0},
                      {"text": "no", "answer": "7", "reward": 1.0}]}
        for i, kind in enumerate(kinds)
    ]  # fmt: skip
    print_samples(records, 3)
    said = capsys.readouterr().out
    shown = [line.split() for line in said.split("\n") if " prompt of question " in line]
    assert [(line[1], line[-1]) for line in shown] == [
        ("plain", "q0"),
        ("plain", "q3"),
        ("bcq", "q6"),
    ]
    assert "middle" not in said and "b" * SHOWN + "\n[...]\n" + "e" * SHOWN in said
    assert said.count("---- reward 0, answer None, gold '7'\nso ") == 3 and "no" not in said.split()
    print_samples(records, 99, rollouts=2)
    assert capsys.readouterr().out.count("---- reward 1, answer '7', gold '7'\nno") == len(records)
    print_samples(records, 0)
    print_samples([], 5)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("metrics", "cause"),
    [
        (
            dict(cut_share=0.9, no_answer_share=0.9, plain_accuracy=0.0),
            "90% of the responses are cut",
        ),
        (
            dict(cut_share=1.0, no_answer_share=1.0, plain_accuracy=0.0),
            "100% of the responses are cut",
        ),
        (dict(cut_share=0.65, no_answer_share=0.98, plain_accuracy=0.0), "94% of the finished"),
        (dict(cut_share=0.1, no_answer_share=0.82, plain_accuracy=0.0), "80% of the finished"),
        (dict(cut_share=0.0, no_answer_share=0.0, plain_accuracy=0.0), "all answers are wrong"),
        (dict(cut_share=0.0, no_answer_share=0.0, plain_accuracy=1.0), "all answers are right"),
        (dict(cut_share=0.0, no_answer_share=0.1, plain_accuracy=0.4), "--group_size"),
    ],
)
def test_three_steps_without_a_signal_are_explained_once(metrics, cause, tmp_path, capsys):
    run = Small(tmp_path)
    for step, active in enumerate((0.0, 0.0, 0.1, 0.0, 0.0, 0.0, 0.0), 1):
        run.output.log(
            {**METRICS, **metrics, "step": step, "active_share": active},
            {"step": step, "total": 1.0},
        )
        said = capsys.readouterr().out
        assert ("No rollout taught anything" in said) == (cause in said) == (step == 6)
        assert all(len(line) <= 100 for line in said.split("\n"))


# ---------------------------------------------------------------- the model


def logits(model, prompt: dict) -> torch.Tensor:
    with torch.no_grad():
        return model(
            **{key: value[None] if value.dim() == 1 else value for key, value in prompt.items()}
        ).logits


def assert_trained(model, student: Path, run: Path, step: int, prompt: dict, moved: bool) -> None:
    """The model gives the logits of the student with the checkpoint's weights."""
    trained = load_model(str(student))
    before, after = logits(trained, prompt), logits(model, prompt)
    weights = {
        name.removeprefix("model."): value for name, value in read_state(run, step)[0].items()
    }
    assert not trained.load_state_dict(weights, strict=False).unexpected_keys
    assert model.dtype == torch.float32
    assert torch.equal(after, logits(trained, prompt)) and torch.equal(after, before) != moved


def test_the_model_of_the_world_opens_as_what_it_was(reference):
    folder, student = reference[0] / "model", ROOT / "world" / "student"
    model, processor = AutoModelForImageTextToText.from_pretrained(folder), load_processor(folder)
    assert processor.chat_template == pretrain.make_processor().chat_template
    original = load_model(str(student))
    assert type(model) is type(original) and model.generation_config.eos_token_id == 256
    assert model.generation_config.to_dict() == original.generation_config.to_dict()
    assert_trained(
        model,
        student,
        reference[0],
        4,
        encode(processor, "which?", [tiny.colour("red")]),
        moved=True,
    )


def test_the_model_of_a_text_only_student_that_had_nothing_to_learn_from(tmp_path):
    student, run = tmp_path / "student", tmp_path / "run"
    tiny.make("qwen3").save_pretrained(student)
    tiny.TOKENIZER.save_pretrained(student)
    settings = {
        "do_sample": False,
        "temperature": 0.6,
        "eos_token_id": [tiny.END, 5],
    }  # transformers calls it invalid
    (student / "generation_config.json").write_text(json.dumps(settings))
    (tmp_path / "sums.jsonl").write_text(
        "".join(json.dumps({"problem": f"{i}+1", "answer": str(i + 1)}) + "\n" for i in range(8))
    )
    models = (
        f"--student {student} --teacher {student} --data {tmp_path}/sums.jsonl --lr 0.001".split()
    )
    train(run, *models, *"--steps 1 --max_response_tokens 8".split())
    (metrics,) = read_metrics(run)
    assert (
        metrics["active_share"] == 0 == metrics["grad_norm"]
        and metrics["updates_without_signal"] == 2
    )  # all wrong
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(run / "model"),
        AutoTokenizer.from_pretrained(run / "model"),
    )
    assert (
        type(model).__name__ == "Qwen3ForCausalLM"
        and tokenizer.chat_template == pretrain.CHAT_TEMPLATE
    )
    saved = json.loads((run / "model" / "generation_config.json").read_text())
    assert {key: saved.get(key, False) for key in settings} == settings
    assert_trained(model, student, run, 1, encode(tokenizer, "3+1"), moved=False)
