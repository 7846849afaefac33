"""Tables from run folders with known numbers; the bootstrap against brute force; the bookkeeping of replicate.py."""

import json
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from bench import replicate
from buffer import ReplayBuffer
from extras import analysis

FAMILIES = ("image/known", "image/hard", "text/known", "text/hard")


def write_lines(path: Path, records: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def write_run(path: Path, method="zppo", seed=0, after=(4, 2, 4, 1), finished=True, **args) -> Path:
    """A run of 3 steps: 4 held-out questions per family; after: correct ones by family (before: 4, 0, 4, 0)."""
    buffer = ReplayBuffer(3)
    buffer.update([("a", 0.0), ("b", 0.25), ("c", 0.0), ("easy", 1.0)], 0)
    buffer.update([("a", 0.5), ("b", 0.25), ("d", 0.25), ("e", 0.0)], 1)  # a graduates, b is evicted
    buffer.update([("c", 0.75), ("a", 0.0)], 2)  # c graduates, a comes back
    columns = dict(
        step=(1, 2, 3), plain_accuracy=(0.2, 0.4, 0.9), bcq_accuracy=(None, 0.5, 0.7), ncq_accuracy=(0.1, None, 0.2),
        plain_prompts=(4, 4, 2), hard_share=(0.75, 0.5, 0.0), teacher_questions=(2, 2, 0), bcq_possible=(1, 2, 0),
        loss=(0.1, 0.2, 0), entropy=(1, 0.8, 0.6), positive_share=(0, 0, 1), graduated=(0, 1, 1), evicted=(0, 1, 0),
    )  # fmt: skip
    metrics = [dict(zip(columns, line, strict=True)) for line in zip(*columns.values(), strict=True)]
    for name, counts in (("before", (4, 0, 4, 0)), ("after", after)):
        pairs = [(family, float(i < n)) for family, n in zip(FAMILIES, counts, strict=True) for i in range(4)]
        write_lines(path / f"eval_{name}.jsonl", [{"family": f, "reward": reward} for f, reward in pairs])
    write_lines(path / "metrics.jsonl", metrics)
    write_lines(path / "times.jsonl", [{"step": i + 1, "total": 60.0} for i in range(3)])
    write_lines(path / "dumps" / "step_00003.jsonl", DUMP)
    arguments = {"method": method, "seed": seed, "output": str(path), "resume": False, "buffer_capacity": 3, **args}
    (path / "args.json").write_text(json.dumps(arguments))
    write_lines(path / "checkpoints" / "step_00002" / "state.json", [{"step": 2, "buffer": {}}])  # an older one
    state = {"step": 3, "buffer": buffer.state_dict()}
    write_lines(path / "checkpoints" / "step_00003" / "state.json", [state])
    if finished:
        (path / "model").mkdir()
    return path


def record(kind: str, given: list, *rollouts: tuple) -> dict:
    answers = [{"text": "", "answer": answer, "reward": reward} for answer, reward in rollouts]
    return {"uid": "q", "kind": kind, "gold": "5", "candidates": {"texts": [], "answers": given}, "rollouts": answers}


DUMP = [
    record("bcq", ["5", "7"], ("5", 1.0), ("5.0", 1.0), ("7", 0.0), ("8", 0.0), (None, 0.0)),
    record("bcq", ["1/2", None], ("0.5", 1.0), (None, 0.0), ("3", 0.0)),
    record("ncq", ["7", "7", None, "9"], ("5", 1.0), ("9.0", 0.0), ("7", 0.0), ("8", 0.0), (None, 0.0)),
    record("hint", ["5"], ("5", 1.0)),
]


def test_a_run_is_read(tmp_path):
    run = analysis.read_run(write_run(tmp_path / "run"))
    assert run.steps == 3 and [entry.uid for entry in run.entries] == ["a", "b", "c", "d", "e", "a"]
    assert run.before == dict(zip(FAMILIES, (100, 0, 100, 0), strict=True))
    assert run.after == dict(zip(FAMILIES, (100, 50, 100, 25), strict=True))
    with pytest.raises(SystemExit, match="args.json"):
        analysis.read_run(tmp_path)
    with pytest.raises(SystemExit, match="same seed"):
        analysis.by_method([run, run])


def test_buffer_tables(tmp_path):
    run = analysis.read_run(write_run(tmp_path / "run"))
    table = run.buffer.graduation_by_admission()
    assert analysis.graduation([table]) == {0.0: (2, 4, 50.0), 0.25: (0, 2, 0.0), "all": (2, 6, 100 / 3)}
    assert analysis.graduation([table, {0.375: (1, 1)}])["all"] == (3, 7, 300 / 7) and analysis.graduation([{}]) == {}
    assert analysis.buffer_composition(run.entries, 3) == {0.0: [2, 2, 2], 0.25: [1, 1, 1]}
    assert analysis.fates_by_visits(run.entries) == {
        0: {"graduated": 0, "evicted": 0, "in the buffer": 3},
        1: {"graduated": 2, "evicted": 1, "in the buffer": 0},
    }


def test_composition_and_curves(tmp_path):
    metrics = analysis.read_run(write_run(tmp_path / "run")).metrics
    shares = [analysis.composition(line) for line in metrics]
    assert shares[0] == {"easy": 0.25, "bcq": 0.25, "ncq_only": 0.25, "not_asked": 0.25}
    assert shares[1] == {"easy": 0.5, "bcq": 0.5, "ncq_only": 0.0, "not_asked": 0.0}
    assert analysis.composition({**metrics[2], "teacher_questions": 2}) is None  # easy questions were asked too
    assert analysis.composition({"plain_prompts": 0, "hard_share": None}) is None
    assert analysis.mean_curve([metrics, metrics[:2]], ["bcq_accuracy"], 100) == [None, 50, 70]
    assert analysis.mean_curve([metrics], ["hint_accuracy", "plain_accuracy"]) == [0.2, 0.4, 0.9]
    assert analysis.mean_curve([[{"x": 0.0}], [{"x": 1.0}, {"x": 3.0}]], ["x"]) == [0.5, 3.0]
    assert analysis.smooth([0, 3, None, 6], window=3) == [1.5, 1.5, 4.5, 6]
    assert analysis.smooth([None, None, 1], window=3) == [None, 1, 1]


def test_audit():
    assert analysis.audit(DUMP) == {
        "bcq": {"positive": 3, "negative": 1, "neither": 2, "no answer": 2},
        "ncq": {"correct": 1, "repeats": 2, "new wrong": 1, "no answer": 1},
    }


def test_intervals():
    assert analysis.mean_interval([3.0]) == (3.0, None, None)
    mean, std, half = analysis.mean_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (mean, std) == (3.0, pytest.approx(2.5**0.5)) and half == pytest.approx(2.776 * (2.5 / 5) ** 0.5)
    for n, value in ((1, 12.706), (4, 2.776), (9, 2.262), (10, 2.228), (30, 2.042), (1000, 1.962)):
        assert analysis.t_quantile(n) == pytest.approx(value, abs=0.004)
    assert [replicate.verdict(*x) for x in ((2, 1), (-2, 1), (0.5, 1))] == ["agrees", "differs", "within noise"]
    assert "two seeds" in replicate.verdict(5.0, None)


def test_compare():
    before = {"image/known": 100.0, "image/hard": 0.0, "text/known": 80.0, "text/hard": 0.0}
    scores = {
        "grpo_replay": {s: (before, {**before, "image/hard": 10.0 * s}) for s in (0, 1, 2)},
        "zppo": {s: (before, {**before, "image/hard": 10.0 * s + d}) for s, d in ((1, 20.0), (2, 40.0), (7, 0.0))},
        "grpo": {9: (before, before)},
    }
    table = {(c.method, c.measure): c for c in analysis.compare(scores, "grpo_replay")}
    zppo = table["zppo", "hard"]  # (15, 30, 35) over seeds 1, 2, 7; at equal seeds 10 and 20 above the reference
    assert zppo.values == {1: 15.0, 2: 30.0, 7: 35.0} and zppo.mean == zppo.gain == pytest.approx(80 / 3)
    assert zppo.difference == 15.0 and zppo.difference_half == pytest.approx(12.706 * 50**0.5 / 2**0.5)
    assert table["zppo", "known"].mean == 90.0 and table["zppo", "known"].gain == 0.0
    assert table["zppo", "all"].mean == pytest.approx((180 + 160 / 3) / 4)
    assert table["grpo", "hard"].difference is None and table["grpo", "hard"].half is None
    assert (table["grpo_replay", "hard"].difference, table["grpo_replay", "hard"].difference_half) == (0, 0)


def test_bootstrap_is_brute_force_in_the_limit():
    reference = np.array([50.0, 60.0, 70.0])
    scores = {"ref": reference, "new": np.array([53.0, 59.0, 76.0]), "up": reference + 2}
    result = analysis.cluster_bootstrap(scores, "ref")
    assert result["ref"] == dict(mean=60.0, delta=0.0, low=0.0, high=0.0, wins=0, benchmarks=3)
    assert result["up"] == dict(mean=62.0, delta=2.0, low=2.0, high=2.0, wins=3, benchmarks=3)
    new = result["new"]
    assert new["delta"] == pytest.approx(8 / 3) and new["wins"] == 2 and new["low"] <= new["delta"] <= new["high"]
    every = [np.mean([(3, -1, 6)[i] for i in draw]) for draw in product(range(3), repeat=3)]  # all 27 resamples
    assert (new["low"], new["high"]) == pytest.approx(np.percentile(every, [2.5, 97.5], method="inverted_cdf"))
    draws = np.random.default_rng(0).integers(3, size=(10_000, 3))  # the same resamples, one at a time
    slow = [scores["new"][draw].mean() - reference[draw].mean() for draw in draws]
    assert (new["low"], new["high"]) == pytest.approx(np.percentile(slow, [2.5, 97.5]))


def test_blocks(tmp_path, capsys):
    lines = ["scale,method,family,benchmark,accuracy", "2B,ref,vlm,B,20", "2B,ref,vlm,A,10", "2B,new,vlm,A,13"]
    file = tmp_path / "a.csv"
    file.write_text("\n".join(lines))
    with pytest.raises(SystemExit, match="2B vlm: new has no accuracy on B"):
        analysis.read_blocks(file)
    file.write_text("\n".join([*lines, "2B,new,vlm,B,21", "27B,teacher,vlm,A,90"]))
    assert analysis.read_blocks(file)["2B", "vlm"]["new"].tolist() == [13, 21]  # by name, whatever the order
    analysis.main(["--bootstrap", str(file), "--reference", "ref"])
    screen = capsys.readouterr().out
    assert "27B vlm: no ref" in screen and "+2.00" in screen and "[+1.00, +3.00]" in screen and "2/2" in screen


def test_tables_without_matplotlib(tmp_path, capsys, monkeypatch):
    runs = [write_run(tmp_path / f"{m}-{s}", m, s) for m in ("zppo", "grpo_replay") for s in (0, 1)]
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SystemExit, match="pip install matplotlib"):
        analysis.main([*map(str, runs), "--out", str(tmp_path / "figures")])
    screen = capsys.readouterr().out
    assert "37.5 ± 0.0" in screen and "+0.0 ± 0.0" in screen and "Tables 16-17" in screen
    analysis.main([str(runs[0])])  # no figures asked for: nothing missing


def test_figures(tmp_path):
    pytest.importorskip("matplotlib")
    folders = [str(write_run(tmp_path / method, method)) for method in ("zppo", "grpo", "off_distill")]
    analysis.main([*folders, "--out", str(tmp_path / "figures")])
    assert len(list((tmp_path / "figures").glob("*.png"))) == 3


def test_replicate_skips_finished_runs_and_resumes_others(tmp_path, monkeypatch):
    write_run(tmp_path / "runs" / "zppo-0")
    write_run(tmp_path / "runs" / "grpo-0", "grpo", finished=False)
    commands = []
    monkeypatch.setattr(replicate, "train", lambda command, log: commands.append(command[2:]))
    replicate.run_all(tmp_path / "runs", ["zppo", "grpo"], [0, 1], ["--steps", "3"], jobs=1)
    own = [["--steps", "3", "--method", m, "--seed", s, "--output", str(tmp_path / "runs" / f"{m}-{s}")]
           for m, s in (("grpo", "0"), ("zppo", "1"), ("grpo", "1"))]  # fmt: skip
    assert commands == [[*own[0], "--resume"], *own[1:]]
    with pytest.raises(SystemExit, match="choose another --runs"):
        replicate.run_all(tmp_path / "runs", ["zppo"], [0], [], jobs=1)
    with pytest.raises(SystemExit):
        replicate.main(["--seed", "3", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path)])


def test_replicate_gathers_only_what_is_comparable(tmp_path):
    for seed, hard in ((0, 2), (1, 3), (2, 2)):
        write_run(tmp_path / f"zppo-{seed}", "zppo", seed, (4, hard, 4, 4), lr=1.0)
        write_run(tmp_path / f"grpo_replay-{seed}", "grpo_replay", seed, (4, 0, 4, 1), lr=1.0)
    write_run(tmp_path / "grpo-0", "grpo", finished=False, lr=2.0)  # unfinished: left out
    (tmp_path / "options.json").write_text('["--steps", "3"]')
    results = json.loads(json.dumps(replicate.gather(tmp_path)))
    assert results["command"].endswith("--methods grpo_replay zppo --seeds 0 1 2 --steps 3")
    assert results["arguments"] == {"buffer_capacity": 3, "lr": 1.0} and results["runs"][0]["minutes"] == 3.0
    assert replicate.graduations(results, "zppo")[0.0] == (6, 12, 50.0)
    page = replicate.report(results)
    claim = next(line for line in page.splitlines() if line.startswith("| ZPPO > GRPO† "))
    assert "+66.7 ± 17.9" in claim and claim.count("agrees") == 2 and "+4.9" in claim and "+2.8" in claim
    rows = {line.split("|")[1].strip(): line.split() for line in reversed(page.splitlines()) if line.startswith("|")}
    assert rows["base"][3:10] == "3 | 0.0 ± 0.0 | 100.0".split() and "+66.7 ± 17.9" in " ".join(rows["ZPPO"])
    write_run(tmp_path / "grpo-1", "grpo", 1, lr=2.0)
    with pytest.raises(SystemExit, match="differ in lr"):
        replicate.gather(tmp_path)
