"""Sharded students (FSDP2): whole runs on two CPU processes beside the run of one, and the shipped launch files."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_multi_gpu_env
from runs import ROOT, read_metrics, train
from safetensors.torch import load_file

SHARDED = dict(processes=2, script="tests/fsdp_run.py")
NO_EVALUATION = "--eval_questions", "0"
BF16 = "--steps", "1", "--new_per_step", "32", *NO_EVALUATION


@pytest.fixture(scope="module")
def sharded(tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("sharded") / "run"
    train(run, **SHARDED, RECORD=str(run.parent / "record"))
    return run


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
    done = train(run, "--resume", check=False)
    assert done.returncode != 0 and "sharded (FSDP2), this run is whole" in done.stderr
    train(run, "--resume", **SHARDED)
    for file in ("metrics.jsonl", "eval_after.jsonl", "dumps/step_00004.jsonl"):
        assert (run / file).read_bytes() == (sharded / file).read_bytes(), file
    ours, theirs = (load_file(folder / "model" / "model.safetensors") for folder in (run, sharded))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_resumed_on_another_number_of_shards(sharded, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(sharded, run)
    shutil.rmtree(run / "checkpoints" / "step_00004")
    train(run, "--resume", *NO_EVALUATION, processes=3, script="tests/fsdp_run.py")
    assert len(list((run / "checkpoints/step_00004/optimizer_0").glob("*.distcp"))) == 3
    assert (run / "dumps/step_00004.jsonl").read_bytes() == (sharded / "dumps/step_00004.jsonl").read_bytes()
    ours, theirs = (load_file(folder / "model" / "model.safetensors") for folder in (run, sharded))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=2e-5)


@pytest.fixture(scope="module")
def bf16(tmp_path_factory) -> Path:
    """One step of more questions than elsewhere: what rounding flips counts for less."""
    run = tmp_path_factory.mktemp("bf16") / "run"
    train(run, *BF16, **SHARDED, ACCELERATE_MIXED_PRECISION="bf16", RECORD=str(run.parent / "record"))
    return run


def test_bf16_sharded_and_whole(bf16, tmp_path):
    """Each rounds in its own way: the first step alone, and loosely."""
    train(tmp_path / "whole", *BF16, ACCELERATE_MIXED_PRECISION="bf16")
    (one,), (two,) = read_metrics(tmp_path / "whole"), read_metrics(bf16)
    for name in ("plain_accuracy", "teacher_accuracy", "active_share", "grad_norm", "entropy"):
        assert two[name] == pytest.approx(one[name], rel=0.2), name
    weights = load_file(bf16 / "model" / "model.safetensors").values()
    assert all(value.dtype == torch.float32 for value in weights)
    assert any((value != value.bfloat16()).any() for value in weights)  # trained in fp32, not only stored in it


@pytest.mark.parametrize("rank", [0, 1])
def test_bf16_leaves_the_decay_of_linear_attention_in_fp32(bf16, rank):
    types = json.loads((bf16.parent / "record" / f"types-{rank}.json").read_text())
    for phase in ("update", "rollouts"):
        assert "torch.bfloat16" in types[f"out_proj.weight in {phase}"]  # fp32 only before the model is sharded
        assert types[f"A_log in {phase}"] == types[f"dt_bias in {phase}"] == ["torch.float32"]


def test_parameters_that_are_not_sharded_learn_from_all_processes(sharded, tmp_path):
    train(tmp_path / "run", *NO_EVALUATION, script="tests/fsdp_run.py", RECORD=str(tmp_path / "record"))
    whole = load_file(tmp_path / "record" / "0.safetensors")
    ours, others = (load_file(sharded.parent / "record" / f"{rank}.safetensors") for rank in range(2))
    assert all(torch.equal(ours[name], others[name]) for name in whole)
    for name, value in whole.items():
        is_gradient = name.startswith("gradient")
        assert value.any() or not is_gradient
        torch.testing.assert_close(ours[name], value, rtol=1e-3, atol=1e-6 if is_gradient else 2e-5)


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
