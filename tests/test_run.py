"""Runs that are stopped, cut short or out of space, and go on as if nothing had happened; the model they leave."""

import json
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import tiny
import torch
from runs import ENV, ROOT, assert_close, assert_same, command, read_metrics, read_state, torchrun, train
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

from engine.models import encode, load_model, load_processor
from engine.run import append, cut_back, write_all, write_records
from world import pretrain

SIGNAL = "stopping after this step"


def start(output: Path, processes: int = 1) -> subprocess.Popen:
    line = command(output, launch=torchrun(processes))
    return subprocess.Popen(
        line, env={**ENV, "PYTHONUNBUFFERED": "1"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def wait_for_lines(process: subprocess.Popen, log: Path, lines: int) -> None:
    deadline = time.time() + 120
    while not (log.exists() and len(log.read_text().splitlines()) >= lines):
        assert process.poll() is None and time.time() < deadline
        time.sleep(0.02)


@contextmanager
def full_disk(size: int):
    """In here no file grows beyond `size` bytes: the write fails with a real OSError."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# ---------------------------------------------------------------- resume


def test_killed_and_resumed_equals_never_stopped(reference, tmp_path):
    run = tmp_path / "run"
    with start(run) as process:
        wait_for_lines(process, run / "metrics.jsonl", 3)  # one step past the checkpoint: it has to be done again
        process.kill()
    assert not (run / "checkpoints" / "step_00004").exists()
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "plain_accu')  # as a crash leaves it
    train(run, "--resume")
    assert_same(run, reference[0])


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory) -> Path:
    """The first two of the reference's four steps, on two processes: a whole run that ends at a checkpoint."""
    run = tmp_path_factory.mktemp("two_steps") / "run"
    train(run, "--steps", "2", launch=torchrun(2))
    return run


@pytest.mark.parametrize("processes", [1, 3])
def test_resumed_on_another_number_of_processes(processes, two_steps, reference, tmp_path):
    run = shutil.copytree(two_steps, tmp_path / "run")
    assert not list(run.glob("checkpoints/*/random_states*"))
    train(run, "--resume", launch=torchrun(processes))
    assert_close(run, reference[0])


def test_logs_are_cut_back_by_step_and_lose_a_torn_line(tmp_path):
    log = tmp_path / "metrics.jsonl"
    cut_back(log, 3)  # no log: nothing to do
    log.write_text('{"step": 1}\n{"step": 3}\n{"step": 4}\n{"st')
    cut_back(log, 3)
    assert log.read_text() == '{"step": 1}\n{"step": 3}\n'
    cut_back(log, 0)
    assert log.read_text() == ""


# ---------------------------------------------------------------- out of space


def test_a_log_gets_whole_lines_and_catches_up(tmp_path):
    log, dump = tmp_path / "metrics.jsonl", tmp_path / "dumps" / "a.jsonl"
    records = [{"step": i, "text": "x" * 50} for i in range(4)]
    append(records[:2], log)
    before = log.read_bytes()
    writes = [(append, records[2:], log), (write_records, records, dump)]
    with full_disk(len(before) + 10):
        problem = write_all(writes)
    assert str(log) in problem and "File too large" in problem and len(writes) == 2
    assert log.read_bytes() == before
    assert write_all(writes) is None and not writes
    assert [json.loads(line) for line in log.read_text().splitlines()] == records and dump.exists()


def test_a_run_out_of_space_goes_on_and_catches_up(reference, tmp_path):
    run = tmp_path / "run"
    with start(run) as process:
        wait_for_lines(process, run / "metrics.jsonl", 1)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
        failed = []
        for line in process.stdout:
            failed += [line] if "cannot write" in line else []
            if "checkpoints/step_" in line:
                resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert process.returncode == 0
    assert str(run / "metrics.jsonl") in failed[0] and str(run / "checkpoints" / "step_00002") in failed[-1]
    assert "File too large" in failed[0] and "File too large" in failed[-1]
    assert (run / "dumps/step_00002.jsonl").read_bytes() == (reference[0] / "dumps/step_00002.jsonl").read_bytes()
    assert_same(run, reference[0])


def test_no_space_until_the_end_on_two_processes(two_steps, tmp_path):
    run = shutil.copytree(two_steps, tmp_path / "run")
    with full_disk(500_000):  # enough for the logs
        done = train(run, "--resume", launch=torchrun(2), check=False)
    assert done.returncode != 0
    last = next(line for line in done.stderr.splitlines() if line.startswith("cannot write"))
    assert str(run / "checkpoints" / "step_00004") in last and str(run / "model") in last and "File too large" in last
    assert [folder.name for folder in (run / "checkpoints").iterdir()] == ["step_00002"]
    assert not list(run.glob("partial-*"))
    assert len(read_metrics(run)) == 4


def test_an_output_that_cannot_be_written_is_refused_at_once(tmp_path):
    (tmp_path / "file").touch()
    done = train(tmp_path / "file" / "run", check=False)
    assert done.returncode != 0 and f"cannot write {tmp_path}/file/run" in done.stderr.splitlines()[-1]


# ---------------------------------------------------------------- signals


@pytest.mark.parametrize(("processes", "receiver"), [(1, "run"), (2, "launcher"), (2, "last process")])
def test_a_signal_stops_the_run_after_its_step(processes, receiver, reference, tmp_path):
    run = tmp_path / "run"
    with start(run, processes=processes) as process:
        wait_for_lines(process, run / "metrics.jsonl", 1)
        who = psutil.Process(process.pid)
        if receiver == "last process":
            who = max(who.children(), key=lambda child: int(child.environ()["RANK"]))
        who.send_signal(signal.SIGINT if processes == 1 else signal.SIGTERM)
        screen = process.communicate(timeout=60)[0]
    assert process.returncode != 0
    steps = len(read_metrics(run))
    name = "SIGINT" if processes == 1 else "SIGTERM"
    assert f"{name} stopped the run after step {steps}; the state is saved in {run}: --resume goes on" in screen
    assert (SIGNAL in screen) == (receiver != "last process")  # the main process says so
    assert read_state(run, steps)[2]["step"] == steps and not (run / "model").exists()
    if processes == 1:
        train(run, "--resume")
        assert_same(run, reference[0])


def test_a_second_signal_stops_at_once_and_an_echo_does_not():
    code = "import sys, train; names = train.stop_on_signal(True); print(names, flush=True)"
    code += "\nfor line in sys.stdin: train.ONE_SIGNAL = float(line); print(names, flush=True)"
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with subprocess.Popen([sys.executable, "-c", code], env=ENV, **pipes) as process:

        def names(one_signal: float) -> str:  # with as many seconds in which a second one counts as an echo
            process.stdin.write(f"{one_signal}\n")
            process.stdin.flush()
            return process.stdout.readline()

        assert process.stdout.readline() == names(1e9) == "[]\n"
        process.send_signal(signal.SIGTERM)
        while names(1e9) == "[]\n":
            pass
        process.send_signal(signal.SIGINT)  # the same request, passed on by somebody
        assert {names(1e9) for _ in range(50)} == {"['SIGTERM']\n"}
        assert names(0) == "['SIGTERM']\n"
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=10)
    assert process.returncode == -signal.SIGTERM


# ---------------------------------------------------------------- the model


def logits(model, prompt: dict) -> torch.Tensor:
    with torch.no_grad():
        return model(**{key: value[None] if value.dim() == 1 else value for key, value in prompt.items()}).logits


def assert_trained(model, student: Path, run: Path, step: int, prompt: dict, moved: bool) -> None:
    """The model gives the logits of the student with the checkpoint's weights."""
    trained = load_model(str(student))
    before, after = logits(trained, prompt), logits(model, prompt)
    weights = {name.removeprefix("model."): value for name, value in read_state(run, step)[0].items()}
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
    assert_trained(model, student, reference[0], 4, encode(processor, "which?", [tiny.colour("red")]), moved=True)


def test_the_model_of_a_text_only_student_that_had_nothing_to_learn_from(tmp_path):
    student, run = tmp_path / "student", tmp_path / "run"
    tiny.make("qwen3").save_pretrained(student)
    tiny.TOKENIZER.save_pretrained(student)
    settings = {"do_sample": False, "temperature": 0.6, "eos_token_id": [tiny.END, 5]}  # transformers calls it invalid
    (student / "generation_config.json").write_text(json.dumps(settings))
    (tmp_path / "sums.jsonl").write_text(
        "".join(json.dumps({"problem": f"{i}+1", "answer": str(i + 1)}) + "\n" for i in range(8))
    )
    models = f"--student {student} --teacher {student} --data {tmp_path}/sums.jsonl --lr 0.001".split()
    train(run, *models, *"--steps 1 --max_response_tokens 8".split())
    (metrics,) = read_metrics(run)
    assert metrics["active_share"] == 0 == metrics["grad_norm"] and metrics["updates_without_signal"] == 2  # all wrong
    model, tokenizer = AutoModelForCausalLM.from_pretrained(run / "model"), AutoTokenizer.from_pretrained(run / "model")
    assert type(model).__name__ == "Qwen3ForCausalLM" and tokenizer.chat_template == pretrain.CHAT_TEMPLATE
    saved = json.loads((run / "model" / "generation_config.json").read_text())
    assert {key: saved.get(key, False) for key in settings} == settings
    assert_trained(model, student, run, 1, encode(tokenizer, "3+1"), moved=False)
