"""Memory: what running out of it looks like, what goes on afterwards, and how many rollouts fit."""

import os
import subprocess
import sys

import pytest
import tiny
import torch
from runs import ENV, ROOT
from stages import groups_of, run
from torch.distributed.tensor import DTensor

from engine import memory
from engine.decode import prefill
from engine.memory import out_of_memory, row_bytes, rows_that_fit
from zppo import Recipe

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("Triton Error [CUDA]: out of memory"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 12 bytes"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (ValueError("out of questions"), False),
    ],
)
def test_out_of_memory_is_known_by_its_spellings(error, expected):
    assert out_of_memory(error) == expected


@pytest.mark.parametrize("updates", [1, 2])
def test_an_update_without_memory_goes_on_with_smaller_micro_batches(updates, monkeypatch, capsys):
    """Also where it runs out in the middle of a mini-batch: no gradient counts twice."""
    recipe, limit = Recipe(updates_per_step=updates), 100
    expected = run(groups_of(), recipe, micro_tokens=limit)
    make, forwards = tiny.make, []

    def limited(*args, **kwargs):
        model = make(*args, **kwargs)
        forward = model.model.forward

        def short(**batch):
            forwards.append(batch["input_ids"].numel())
            if forwards[-1] > limit and len(forwards) > 1:  # the first one still fits
                raise RuntimeError("CUDA error: out of memory")
            return forward(**batch)

        monkeypatch.setattr(model.model, "forward", short)
        return model

    monkeypatch.setattr(tiny, "make", limited)
    monkeypatch.setattr("engine.update.LEAST_TOKENS", 100)
    found = run(groups_of(), recipe, micro_tokens=300)
    assert max(forwards) > limit and "on with --micro_tokens" in capsys.readouterr().out
    ours, theirs = (dict(model.named_parameters()) for model in (found[0], expected[0]))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    assert found[1] == pytest.approx(expected[1], rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("name", ["qwen3", "qwen3_5", "gemma2", "qwen2_5_vl"])
def test_bytes_of_a_row_are_those_of_its_cache(name):
    model, tokens = tiny.make(name), 7  # below gemma's window
    with torch.no_grad():
        _, decoder = prefill(model, [{"input_ids": torch.arange(tokens)}], CPU)
    held = 24 * tiny.VOCABULARY
    for layer in decoder.cache.layers:
        if getattr(layer, "keys", None) is not None:
            held += layer.keys.nbytes + layer.values.nbytes
        held += sum(state.nbytes for state in getattr(layer, "recurrent_states", {}).values())
    assert row_bytes(model, tokens, width=4) == held


def test_rows_fit_into_what_is_free(monkeypatch):
    model = tiny.make("qwen3")
    assert rows_that_fit(model, model, 100, bf16=False) == memory.ROWS_ON_CPU
    parameters = sum(parameter.numel() for parameter in model.parameters())
    row = row_bytes(model, 100, 2)
    monkeypatch.setattr(type(model), "device", torch.device("cuda", 0))
    for rows, expected in ((0.5, 1), (17.5, 17), (5000, memory.MOST_ROWS)):
        free = (rows * row + 10 * parameters) / memory.SHARE
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, free))
        assert rows_that_fit(model, model, 100, bf16=True) == expected
    assert not any(isinstance(parameter, DTensor) for parameter in model.parameters())


@pytest.mark.parametrize("given", [None, "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_segments_grow_where_nobody_has_set_anything(given, monkeypatch):
    names = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
    for name in names:
        monkeypatch.setenv(name, "")  # so that it is undone
        monkeypatch.delenv(name)
    if given:
        monkeypatch.setenv(given, "max_split_size_mb:64")
    memory.segments_that_grow()
    found = [os.environ[name] for name in names if name in os.environ]
    assert found == ["max_split_size_mb:64" if given else "expandable_segments:True"]


def test_without_datasets_the_embedded_world_and_json_files_work(tmp_path):
    """Many GPU images have everything else."""
    (tmp_path / "own.jsonl").write_text('{"question": "1 + 1?", "answer": "2"}\n' * 2)
    code = f"""
import sys
sys.modules["datasets"] = None  # an import of it fails
import train
from engine.questions import DataError, load_questions
from world import table
assert table.questions()[0]
questions, _ = load_questions({str(tmp_path / "own.jsonl")!r})
assert [question.answer for question in questions] == ["2"]
for name in ("some/set", {str(tmp_path / "own.parquet")!r}):
    try:
        load_questions(name)
    except DataError as error:
        assert "pip install datasets" in str(error), error
    else:
        raise AssertionError
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=ENV, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
