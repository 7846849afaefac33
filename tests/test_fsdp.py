"""Sharded students (FSDP2): whole runs on two CPU processes beside the run of one, and the shipped launch files."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_multi_gpu_env
from runs import ENV, ROOT, SMALL, read_metrics, torchrun
from safetensors.torch import load_file


def train(output: Path, *args: str, processes: int = 2, script: str = "tests/fsdp_run.py", **env: str) -> Path:
    line = [sys.executable, *torchrun(processes), str(ROOT / script), "--output", str(output), *SMALL, *args]
    done = subprocess.run(line, env={**ENV, **env}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return output


@pytest.fixture(scope="module")
def sharded(tmp_path_factory) -> Path:
    return train(tmp_path_factory.mktemp("sharded") / "run")


def test_shards_make_the_rollouts_and_weights_of_one_process(reference, sharded):
    run, _ = reference
    for step in (2, 4):
        assert {path.name for path in (sharded / f"checkpoints/step_{step:05d}").iterdir()} == {
            "pytorch_model_fsdp_0", "optimizer_0", "state.json"
        }  # fmt: skip
        file = f"dumps/step_{step:05d}.jsonl"
        assert (sharded / file).read_bytes() == (run / file).read_bytes()
    for mine, theirs in zip(read_metrics(sharded), read_metrics(run), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-3, abs=1e-5)
    ours, theirs = (load_file(folder / "model" / "model.safetensors") for folder in (sharded, run))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=2e-5)  # whole, under the model's own names


def test_resumed_from_shards_equals_never_stopped(sharded, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(sharded, run)
    shutil.rmtree(run / "checkpoints" / "step_00004")
    train(run, "--resume")
    for file in ("metrics.jsonl", "eval_after.jsonl", "dumps/step_00004.jsonl"):
        assert (run / file).read_bytes() == (sharded / file).read_bytes(), file
    ours, theirs = (load_file(folder / "model" / "model.safetensors") for folder in (run, sharded))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_bf16_with_bf16_moments_sharded_and_whole(tmp_path):
    """Each rounds in its own way: the first step alone, and loosely."""
    short = "--steps", "1", "--bf16_moments", "true"
    whole = train(tmp_path / "whole", *short, processes=1, script="train.py", ACCELERATE_MIXED_PRECISION="bf16")
    sharded = train(tmp_path / "sharded", *short, ACCELERATE_MIXED_PRECISION="bf16")
    (one,), (two,) = read_metrics(whole), read_metrics(sharded)
    for name in ("plain_accuracy", "teacher_accuracy", "active_share", "grad_norm", "entropy"):
        assert two[name] == pytest.approx(one[name], rel=0.2), name
    weights = load_file(sharded / "model" / "model.safetensors").values()
    assert all(value.dtype == torch.float32 for value in weights)
    assert any((value != value.bfloat16()).any() for value in weights)  # trained in fp32, not only stored in it


@pytest.mark.parametrize(
    ("name", "processes", "shards"), [("one_gpu", 1, False), ("eight_gpus", 8, True), ("several_nodes", 16, True)]
)
def test_launch_files_say_what_accelerate_understands(name, processes, shards, monkeypatch):
    file = str(ROOT / "configs" / f"{name}.yaml")
    args = ["--config_file", file, "--machine_rank", "0", "--main_process_ip", "10.0.0.1", "train.py"]
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args(args))
    assert (args.num_processes, args.mixed_precision, args.use_fsdp) == (processes, "bf16", shards)
    if shards:
        for key, value in prepare_multi_gpu_env(args).items():
            monkeypatch.setenv(key, value)
        plugin = FullyShardedDataParallelPlugin()  # as Accelerator() makes it from the environment
        assert plugin.fsdp_version == 2 and plugin.reshard_after_forward is True
        assert plugin.state_dict_type.name == "SHARDED_STATE_DICT"
        assert os.environ["ACCELERATE_USE_FSDP"].lower() == "true"
