"""One, two and three real gloo processes: the same rollouts and gradients, and nobody waits for anybody."""

import json
import socket
import subprocess
from pathlib import Path

import pytest
import torch
from runs import ENV, Forked, assert_close, command
from safetensors.torch import load_file

from world import pretrain


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[int, Path]:
    """All cases, under one, two and three processes."""
    folders = {}
    for processes in (1, 2, 3):
        folders[processes] = tmp_path_factory.mktemp(f"processes{processes}")
        many = Forked("tests/update_cases.py", [str(folders[processes])], processes, ACCELERATE_USE_CPU="true")
        _, stderr = many.communicate()
        assert many.returncode == 0, stderr
    return folders


def read(folders: dict[int, Path], processes: int, case: str) -> tuple[dict, dict]:
    metrics = json.loads((folders[processes] / f"{case}.json").read_text())
    assert metrics.pop("processes") == processes
    return load_file(folders[processes] / f"{case}.safetensors"), metrics


@pytest.fixture(scope="module")
def start() -> dict:
    return dict(pretrain.make_model(pretrain.make_processor(), 32, 2, seed=0).named_parameters())


# mixed: images on some rows only, and a dead group; text: no image at all on a VLM; single: an update has one active
# row, so that all processes but one have none
@pytest.mark.parametrize("case", ["mixed", "text", "single"])
@pytest.mark.parametrize("processes", [2, 3])
def test_many_processes_take_the_step_of_one(processes, case, runs, start):
    (one, metrics_one), (many, metrics_many) = (read(runs, n, case) for n in (1, processes))
    gradients = [load_file(runs[n] / f"{case}-gradients.safetensors") for n in (1, processes)]
    largest = max(gradient.abs().max() for gradient in gradients[0].values())
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-6 * float(largest))
    if processes == 2:  # a mean over three rounds more, and Adam makes full steps of gradients that are rounding noise
        torch.testing.assert_close(many, one, rtol=1e-4, atol=1e-5)
    assert metrics_many == pytest.approx(metrics_one, rel=1e-4, abs=1e-6)
    assert any((one[name] != start[name]).any() for name in one)


@pytest.mark.parametrize("case", ["dead", "nan"])
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_nothing_to_learn_or_not_finite_leaves_the_weights_alone(case, processes, runs, start):
    weights, metrics = read(runs, processes, case)
    assert all(torch.equal(weights[name], start[name]) for name in weights)
    assert metrics["optimizer_states"] == 0  # AdamW has not moved at all
    assert metrics["updates_without_signal" if case == "dead" else "updates_not_finite"] > 0


@pytest.mark.parametrize("processes", [2, 3])
def test_many_processes_draw_the_rollouts_of_one(processes, runs):
    one, many = (json.loads((runs[n] / "rollouts.json").read_text()) for n in (1, processes))
    assert many == one and all(len(group) == 2 for groups in one.values() for group in groups)


def test_two_launchers_on_one_machine_make_the_run_of_one_process(reference, tmp_path):
    """As on several nodes: each has its own torchrun, and they meet at the address of the first."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launchers = []
    for rank in range(2):
        place = ["--node_rank", str(rank), "--master_addr", "127.0.0.1", "--master_port", str(port)]
        launch = ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1", *place]
        screen = (tmp_path / f"screen{rank}").open("w")
        line = command(tmp_path / "run", launch=launch)
        launchers.append(subprocess.Popen(line, env=ENV, stdout=screen, stderr=screen))
    codes = [launcher.wait(300) for launcher in launchers]
    assert codes == [0, 0], [(tmp_path / f"screen{rank}").read_text() for rank in range(2)]
    assert_close(tmp_path / "run", reference[0])
