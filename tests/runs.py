"""Whole runs of train.py on the embedded world, small enough for a test."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parent.parent
ACCELERATE = ["-m", "accelerate.commands.launch"]  # the README's `accelerate launch`
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
SMALL = "--steps 4 --new_per_step 8 --group_size 4 --teacher_group_size 2 --save_every 2 --dump_every 2".split()
SMALL += "--eval_questions 3 --updates_per_step 2 --rollout_rows 16 --micro_tokens 1000 --rho_aug 0.5".split()


def torchrun(processes: int) -> list[str]:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    return launch if processes > 1 else []


def command(output: Path, *args: str, launch: Sequence[str] = (), script: str = "train.py") -> list[str]:
    return [sys.executable, *launch, str(ROOT / script), "--output", str(output), *SMALL, *args]


def train(
    output: Path, *args: str, launch: Sequence[str] = (), script: str = "train.py", check: bool = True, **env: str
) -> subprocess.CompletedProcess:
    line = command(output, *args, launch=launch, script=script)
    done = subprocess.run(line, env={**ENV, **env}, capture_output=True, encoding="utf-8", timeout=300)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def read_state(run: Path, step: int) -> tuple[dict, dict, dict]:
    """(weights, optimiser, buffer and step) of a checkpoint."""
    folder = run / "checkpoints" / f"step_{step:05d}"
    optimizer = torch.load(folder / "optimizer.bin", weights_only=True)
    return load_file(folder / "model.safetensors"), optimizer, json.loads((folder / "state.json").read_text("utf-8"))


def read_metrics(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").split("\n")[:-1]]


def assert_same(run: Path, reference: Path) -> None:
    """Four steps that end in the same bits: weights, optimiser, buffer, metrics and everything sampled."""
    (weights, optimizer, state), (weights_, optimizer_, state_) = read_state(run, 4), read_state(reference, 4)
    assert weights.keys() == weights_.keys() and all(torch.equal(weights[name], weights_[name]) for name in weights)
    assert optimizer["param_groups"] == optimizer_["param_groups"] and state == state_
    for name, moments in optimizer["state"].items():
        assert all(torch.equal(moments[key], optimizer_["state"][name][key]) for key in moments)
    for file in ("metrics.jsonl", "eval_before.jsonl", "eval_after.jsonl", "dumps/step_00004.jsonl"):
        assert (run / file).read_bytes() == (reference / file).read_bytes(), file


def assert_close(run: Path, reference: Path) -> None:
    """Four steps that end in the same rollouts and, to rounding, the same weights and metrics."""
    assert (run / "dumps/step_00004.jsonl").read_bytes() == (reference / "dumps/step_00004.jsonl").read_bytes()
    torch.testing.assert_close(read_state(run, 4)[0], read_state(reference, 4)[0], rtol=1e-3, atol=2e-5)
    for mine, theirs in zip(read_metrics(run), read_metrics(reference), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-3, abs=1e-5)
