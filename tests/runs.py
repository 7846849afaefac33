"""Whole runs of train.py on the embedded world, small enough for a test.

Importing what train.py needs takes longer than a small run. Most runs are therefore forked from a
process that has imported train.py: real processes of their own, which run the script from its first
line to its exit status. On other systems than Linux each of them imports everything anew.
"""

import json
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parent.parent
ACCELERATE = ["-m", "accelerate.commands.launch"]  # the README's `accelerate launch`
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
SMALL = "--steps 4 --new_per_step 8 --group_size 4 --teacher_group_size 2 --save_every 2".split()
SMALL += "--dump_every 2 --eval_questions 3 --updates_per_step 2 --rollout_rows 16".split()
SMALL += "--micro_tokens 1000 --rho_aug 0.5".split()

CONTEXT = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
CONTEXT.set_forkserver_preload(["train", "pytest"])


def torchrun(processes: int) -> list[str]:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    return launch if processes > 1 else []


def arguments(output: Path, *args: str) -> list[str]:
    return ["--output", str(output), *SMALL, *args]


def command(output: Path, *args: str, launch: Sequence[str] = ()) -> list[str]:
    return [sys.executable, *launch, str(ROOT / "train.py"), *arguments(output, *args)]


def run_script(
    script: str, args: Sequence[str], screens: Sequence[Path], env: dict[str, str]
) -> None:
    """`python script args` in the process that calls this. screens: files for stdout and stderr."""
    os.environ.update(env)
    for stream, file in enumerate(screens, 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_APPEND), stream)
    # As in a terminal, also where the tests run in the background, which ignores Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = [script, *args]
    runpy.run_path(script, run_name="__main__")


class Forked:
    """A script of the project on one or more forked processes, in the environment of torchrun.

    The methods are those of subprocess.Popen; the exit status is the first one that is not 0."""

    def __init__(self, script: str, args: Sequence[str], processes: int = 1, **env: str):
        self.folder = tempfile.TemporaryDirectory()
        self.screens = [Path(self.folder.name, name) for name in ("stdout", "stderr")]
        for screen in self.screens:
            screen.touch()
        env, ranks = ENV | env, [{}]
        if processes > 1:
            # As under torchrun, this process holds the store where they meet: its port is free.
            self.store = torch.distributed.TCPStore(
                "127.0.0.1", 0, is_master=True, wait_for_workers=False
            )
            env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self.store.port)}
            env |= {"TORCHELASTIC_USE_AGENT_STORE": "True"}
            env |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
            ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
        given = [(str(ROOT / script), args, self.screens, env | rank) for rank in ranks]
        self.processes = [
            CONTEXT.Process(target=run_script, args=mine, daemon=True) for mine in given
        ]
        with patch.dict(os.environ, ENV):  # also of the process that these are forked from
            for process in self.processes:
                process.start()
        self.pid = self.processes[0].pid

    def poll(self) -> int | None:
        codes = [process.exitcode for process in self.processes]
        return None if None in codes else next(filter(None, codes), 0)

    def kill(self) -> None:
        for process in self.processes:
            process.kill()

    def communicate(self, timeout: float = 300) -> list[str]:
        deadline = time.monotonic() + timeout
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
        self.returncode = self.poll()
        self.kill()
        assert self.returncode is not None, f"still running after {timeout} seconds"
        return [screen.read_text("utf-8") for screen in self.screens]


def train(
    output: Path,
    *args: str,
    launch: Sequence[str] | None = None,
    processes: int = 1,
    script: str = "train.py",
    check: bool = True,
    **env: str,
) -> subprocess.CompletedProcess:
    """A run from start to end: on forked processes, or with `launch` by the command people type."""
    if launch is None:
        process = Forked(script, arguments(output, *args), processes, **env)
        screens = process.communicate()
        done = subprocess.CompletedProcess(args, process.returncode, *screens)
    else:
        line = command(output, *args, launch=launch)
        done = subprocess.run(
            line, env=ENV | env, capture_output=True, encoding="utf-8", timeout=300
        )
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def read_state(run: Path, step: int) -> tuple[dict, dict, dict]:
    """(weights, optimiser, buffer and step) of a checkpoint."""
    folder = run / "checkpoints" / f"step_{step:05d}"
    optimizer = torch.load(folder / "optimizer.bin", weights_only=True)
    return (
        load_file(folder / "model.safetensors"),
        optimizer,
        json.loads((folder / "state.json").read_text("utf-8")),
    )


def read_metrics(run: Path) -> list[dict]:
    return [
        json.loads(line)
        for line in (run / "metrics.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    ]


def assert_same(run: Path, reference: Path) -> None:
    """Four steps that end in the same bits: weights, optimiser, buffer, metrics, rollouts."""
    (weights, optimizer, state), (weights_, optimizer_, state_) = (
        read_state(run, 4),
        read_state(reference, 4),
    )
    assert weights.keys() == weights_.keys() and all(
        torch.equal(weights[name], weights_[name]) for name in weights
    )
    assert optimizer["param_groups"] == optimizer_["param_groups"] and state == state_
    for name, moments in optimizer["state"].items():
        assert all(torch.equal(moments[key], optimizer_["state"][name][key]) for key in moments)
    for file in (
        "metrics.jsonl",
        "eval_before.jsonl",
        "eval_after.jsonl",
        "dumps/step_00004.jsonl",
    ):
        assert (run / file).read_bytes() == (reference / file).read_bytes(), file


def assert_close(run: Path, reference: Path) -> None:
    """Four steps that end in the same rollouts and, to rounding, the same weights and metrics."""
    assert (run / "dumps/step_00004.jsonl").read_bytes() == (
        reference / "dumps/step_00004.jsonl"
    ).read_bytes()
    torch.testing.assert_close(
        read_state(run, 4)[0], read_state(reference, 4)[0], rtol=1e-3, atol=2e-5
    )
    for mine, theirs in zip(read_metrics(run), read_metrics(reference), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-3, abs=1e-5)
