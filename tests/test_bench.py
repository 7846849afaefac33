"""The benchmarks: what they count, against PyTorch's own counter and real caches; each script runs."""

import argparse
import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from runs import ENV, ROOT, Forked
from tiny import make
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen3_5ForCausalLM, Qwen3_5TextConfig

pytest.importorskip("resource", reason="the benchmarks measure memory with it; Windows has none")
from bench import hours, rollouts, update  # noqa: E402
from bench.machine import (  # noqa: E402
    Costs,
    Machine,
    costs_of,
    decoding,
    measure,
    prompts_flops,
    triangle,
    update_flops,
)
from bench.shapes import STUDENTS, TEACHERS, fits, model_of  # noqa: E402
from engine.decode import prefill  # noqa: E402


def run(*words: str, **env: str) -> str:
    command, env = [sys.executable, "-m", *words], ENV | env
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def forked(script: str, *args: str) -> str:
    process = Forked(script, args)
    stdout, stderr = process.communicate()
    assert process.returncode == 0, stdout + stderr
    return stdout


def rows(text: str) -> list[list[str]]:
    return [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]


def counted(model, tokens: torch.Tensor, backward: bool = False) -> int:
    with FlopCounterMode(display=False) as counter:
        logits = model(input_ids=tokens, use_cache=False).logits
        if backward:
            logits.sum().backward()
    return counter.get_total_flops()


def test_costs_are_what_pytorch_counts():
    model = make("qwen3", attn_implementation="eager")  # the counter does not know fused attention on a CPU
    costs, tokens = costs_of(model), torch.zeros(3, 40, dtype=torch.long)
    assert costs.parameters == sum(p.numel() for p in model.parameters())
    full = 3 * 40 * 40  # without a causal kernel every token meets every column
    assert costs.flops(3 * 40, full, 3 * 40) == pytest.approx(counted(model, tokens), rel=0.01)  # norms are no products
    assert counted(model, tokens, backward=True) == pytest.approx(3 * costs.flops(3 * 40, full, 3 * 40), rel=0.01)
    assert triangle(0, 40) == sum(range(1, 41)) and triangle(10, 12) == 11 + 12


def test_costs_of_linear_attention_are_the_least_of_what_pytorch_counts():
    torch.manual_seed(0)
    shape = dict(vocab_size=500, hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4)
    heads = dict(linear_num_key_heads=2, linear_num_value_heads=2, linear_key_head_dim=32, linear_value_head_dim=32)
    config = Qwen3_5TextConfig(**shape, num_key_value_heads=2, head_dim=32, **heads, attn_implementation="eager")
    model = Qwen3_5ForCausalLM(config)
    costs = costs_of(model)
    assert costs.parameters == sum(p.numel() for p in model.parameters()) and not costs.tied
    most = counted(model, torch.zeros(1, 192, dtype=torch.long))  # in chunks, which takes more than token by token
    assert 0.85 * most < costs.flops(192, 192 * 192, 192) < most


def test_bytes_are_those_of_a_real_cache():
    for name in ("qwen3", "qwen3_5"):
        model = make(name)
        costs, asked = costs_of(model), [{"input_ids": torch.arange(7)}] * 2
        with torch.no_grad():
            layers = prefill(model, asked, torch.device("cpu"))[1].cache.layers
        keys = sum(x.keys.numel() + x.values.numel() for x in layers if getattr(x, "keys", None) is not None)
        states = sum(s.numel() for x in layers for s in getattr(x, "recurrent_states", {}).values())
        assert keys == costs.keys * 2 * 7 and states == costs.state * 2
        assert costs.moved(2, 14, 4, 4) == 4 * (costs.body + costs.head) + 4 * keys + 2 * 4 * states


def test_a_decoding_step_takes_the_longer_of_bytes_and_flops():
    costs = Costs(1, body=100, embedding=10, head=10, tied=True, keys=2, state=0, attention=4)
    steps = [(2, 3 + 3 + 2), (1, 3 + 2)]  # rows, columns: prompts of 3 tokens, responses of 2 and 3
    by_flops = sum(costs.flops(n, columns, n) for n, columns in steps) / 5
    by_bytes = sum(costs.moved(n, columns, 4, 4) for n, columns in steps) / 7
    assert decoding(costs, [3], [2, 3], Machine(bandwidth=1e9, rate=5)) == (pytest.approx(by_flops), 0)
    assert decoding(costs, [3], [2, 3], Machine(bandwidth=7, rate=1e9)) == (pytest.approx(by_bytes), 1)
    assert prompts_flops(costs, [3]) == 3 * 200 + 6 * 4 + 20
    assert update_flops(costs, 3, 2, scored=0.75) == 3.75 * (5 * 200 + 15 * 4 + 2 * 20)
    found = measure(2**20)
    assert 1e8 < found.bandwidth < 1e14 and 1e8 < found.rate < 1e16


def test_shapes_have_the_parameters_of_their_names():
    for size, billions in (("0.8B", 0.87), ("2B", 2.2), ("4B", 4.5), ("9B", 9.4), ("27B", 27.4)):
        assert model_of(size).parameters == pytest.approx(billions * 1e9, rel=0.03)


def test_more_memory_and_no_local_teacher_fit_more():
    student, teacher = model_of("2B"), model_of("27B")
    found = [fits(student, 8, teacher, b, 141e9) for b in TEACHERS.values()]
    assert all(a[0] > b[0] and a[1] > b[1] and a[2] > b[2] for a, b in zip(found, found[1:]))
    assert fits(student, 1, teacher, 2, 80e9) is None  # 54 GB of weights beside 36 GB
    assert fits(student, 1, teacher, 0, 141e9)[0] > fits(student, 1, teacher, 0, 80e9)[0] > 16_384


def test_hours_by_hand():
    costs = Costs(2, body=10**9, embedding=0, head=0, tied=True, keys=0, state=0, attention=0)
    gpu = hours.Gpu(Machine(bandwidth=1e12, rate=1e15), layer=0.0)
    lengths = (1.0, 100.0, 10**9)  # one row, nothing to cut: it lasts as long as the mean
    work = hours.generation(costs, 2, 1, 1, lengths, 8, gpu)
    assert work.flops == pytest.approx(2e9 + 100 * 2e9) and work.moved == pytest.approx(101 * 2e9)
    assert work.seconds == pytest.approx(101 * 2e9 / 1e12) and work.waiting == 0  # bytes are the limit
    slow = hours.Gpu(gpu.machine, layer=0.1)
    seconds = hours.generation(costs, 2, 1, 1, lengths, 8, slow).seconds
    assert seconds == pytest.approx(2e9 / 1e12 + 100 * 2 * 0.1)
    many = [hours.generation(costs, 2, 1000, 8, (1, 100, 300), rows, gpu).seconds for rows in (8, 64)]
    assert many[1] < many[0] / 4  # weights are read once for all rows of a batch


def test_a_pool_by_hand():
    """Three rows: of the first three rollouts the shortest ends after 2 tokens, and a fourth takes its place."""
    found = [(x.steps, x.rows, x.alive, x.age, x.joined) for x in hours.pooled(np.array([2.0, 5.0, 9.0, 4.0]), 3)]
    assert found == [(2, 3, 3, 1, 3), (3, 3, 3, 3.5, 1), (1, 2, 2, 5.5, 0), (3, 1, 1, 7.5, 0)]
    lengths = hours.spread(3000, 12_288, 5000)
    assert lengths.mean() == pytest.approx(3000) and lengths.max() <= 12_288 * 1.01
    steps = sum(x.steps for x in hours.pooled(lengths, 128))
    assert lengths.sum() / 128 < steps < 1.15 * lengths.sum() / 128 + 12_288


def test_hours_of_the_table(capsys):
    hours.main(["--rollout_rows", "64"])
    table = {(row[0], row[1]): row[2:11] for row in rows(capsys.readouterr().out)[1:]}
    assert {size for size, _ in table} == {*STUDENTS} and {gpus for _, gpus in table} == {"1", "8", "64"}
    assert float(table["0.8B", "64"][-2]) < float(table["0.8B", "8"][-2]) < float(table["0.8B", "1"][-2])
    assert table["9B", "1"][0] == "no"
    *parts, total, _ = map(float, table["9B", "8"][2:])
    assert total == pytest.approx(sum(parts) - min(parts[:2]), abs=0.3)  # the teacher answers beside the plain rollouts


def test_an_update_without_trl():
    args = argparse.Namespace(groups=4, prompt=16, response=16, hidden=32, layers=2, micro_batch=4, steps=1)
    seconds, _, share = update.side("ours", 0.5, args)
    assert seconds > 0 and 0 < share < 1
    assert update.side("ours", 1.0, args)[2] == 0  # no signal, no FLOPs


def test_rollouts_runs():
    text = forked("bench/rollouts.py", "--models", "world", "--pools", "--rounds", "1", "--group", "2")
    header, row = rows(text)
    assert len(row) == len(header) and row[0].startswith("world")
    shares = [float(x) for x in (row[-4], *row[-3].split(" / "))]
    assert all(0 < share < 1 for share in shares)


def test_a_pool_beside_batches():
    small = dict(rounds=1, group=8, prompts=2, prompt=16, length=8, mean_length=16, hidden=64, layers=2)
    row = rollouts.compare_pool("qwen3", argparse.Namespace(**small))
    pooled, batched = map(int, row[3].split(" / "))
    assert row[1].startswith("192, ") and pooled < batched / 1.3
    assert int(row[2].split(" of ")[0]) > 180


def test_memory_runs():
    side = ["bench.memory", "--tokens", "128", "--hidden", "16", "--side", "logprobs"]
    full, chunked = (float(run(*side, chunk, "frozen", MALLOC_MMAP_THRESHOLD_=str(2**20))) for chunk in ("full", "32"))
    assert 0 < chunked < full / 2
    text = forked("bench/memory.py", "--computed")
    assert len(rows(text)) == 1 + len(STUDENTS) * 2 * len(TEACHERS) + 1 + len(STUDENTS) * 3


def test_hours_of_a_run(tmp_path, capsys):
    metrics = {"plain_prompts": 40, "bcq_prompts": 4, "ncq_prompts": 6, "response_tokens": 40_000, "active_share": 0.5,
               "teacher_questions": 7, "compressed": 30}  # fmt: skip
    lines = [{"step": i, **metrics, "response_tokens": tokens} for i, tokens in enumerate((30_000, 50_000))]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "times.jsonl").write_text(json.dumps({"step": 1, "total": 2.0, "update": 0.5}) + "\n")
    args = {"group_size": 8, "teacher_group_size": 4, "updates_per_step": 2, "max_response_tokens": 1000}
    (tmp_path / "args.json").write_text(json.dumps(args))
    step = hours.step_of(tmp_path, prompt=20)
    assert step == hours.Step(40, 10, 8, 7, 4, 30, 0.5, 2, 20, 100, 1000)
    hours.main(["--run", str(tmp_path)])
    text = capsys.readouterr().out
    assert "40 plain and 10 reformulated" in text and re.search(r"seconds a step: total 2, update 0.5", text)
