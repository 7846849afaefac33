"""The self-check for GPUs runs on a CPU too, and finds what it should."""

import pytest
from runs import Forked

pytest.importorskip("resource", reason="the benchmarks measure memory with it; Windows has none")


def test_the_self_check_in_small():
    check = Forked("bench/gpu.py", ["--small"])
    stdout, stderr = check.communicate()
    assert check.returncode == 0, stdout + stderr
    lines = [line.strip("| ").split(" | ") for line in stdout.splitlines() if line.startswith("| ")]
    found = dict(lines[1:])
    gaps = {name[-4:]: float(value) for name, value in found.items() if "log-probs" in name}
    assert gaps["fp32"] < 1e-5 and gaps["bf16"] < 0.05
    assert found["student, waits in a decoding step"] == "0 []"
    assert found["student, all weights finite"] == "True"
    assert all(float(value) > 0 for name, value in found.items() if "per second" in name)
    here, cpu = found["world, plain_accuracy, here / CPU, step by step"].split(" / ")
    assert here == cpu
