"""Tables from run folders with known numbers; the bootstrap against brute force; the bookkeeping of replicate.py."""

import json
import sys
from collections import Counter
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bench import figures, replicate, tables
from buffer import ReplayBuffer
from extras import analysis
from zppo import METHODS

REPLICATION = Path(replicate.__file__).parent / "miniature"
FAMILIES = ("image/known", "image/hard", "text/known", "text/hard")


def write_lines(path: Path, records: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def write_run(path: Path, method="zppo", seed=0, after=(4, 2, 4, 1), finished=True, **args) -> Path:
    """A run of 3 steps: 4 held-out questions per family; after: correct ones by family (before: 4, 0, 4, 0)."""
    buffer = ReplayBuffer(3)
    if "replay" in METHODS[method]:
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


def test_runs_are_read(tmp_path):
    paths = [write_run(tmp_path / f"{m}-{s}", m, s) for m, s in (("zppo", 1), ("zppo", 0), ("grpo_replay", 0))]
    runs = analysis.read_runs(paths)
    keys = [("grpo_replay", 0), ("zppo", 0), ("zppo", 1)]  # rows of the tables in the paper's order, then seeds
    assert list(runs.paths) == keys and runs.paths["zppo", 1] == paths[0]
    for table in (runs.metrics, runs.held_out, runs.admissions):
        assert list(dict.fromkeys(key[:2] for key in table.index)) == keys
    assert runs.metrics.loc["zppo", 1].step.tolist() == [1, 2, 3]
    assert runs.held_out.loc["zppo", 0].before.to_dict() == dict(zip(FAMILIES, (100, 0, 100, 0), strict=True))
    assert runs.held_out.loc["zppo", 0].after.to_dict() == dict(zip(FAMILIES, (100, 50, 100, 25), strict=True))
    admissions = runs.admissions.loc["zppo", 1]
    assert admissions.uid.tolist() == ["a", "b", "c", "d", "e", "a"]
    assert admissions.fate.tolist() == ["graduated", "evicted", "graduated", *["in the buffer"] * 3]
    with pytest.raises(SystemExit, match="args.json"):
        analysis.read_runs([tmp_path])
    with pytest.raises(SystemExit, match="same seed"):
        analysis.read_runs([*paths, paths[0]])


def test_buffer_tables(tmp_path):
    admissions = analysis.read_runs([write_run(tmp_path / "run")]).admissions.loc["zppo", 0]
    table = analysis.graduation(admissions)
    expected = {"0%": (2, 4, 50.0), "25%": (0, 2, 0.0), "all": (2, 6, pytest.approx(100 / 3))}
    assert {line[0]: line[1:4] for line in table.itertuples()} == expected
    more = pd.DataFrame([(0.375, 1, 1)], columns=["accuracy", "graduated", "admitted"])
    assert analysis.graduation(pd.concat([admissions, more])).loc["all", "percent"] == pytest.approx(300 / 7)
    assert analysis.graduation(admissions[:0]).admitted.sum() == 0
    buffer = figures.buffer_composition(admissions)
    assert {x: column.tolist() for x, column in buffer.items()} == {0.0: [2, 2, 2], 0.25: [1, 1, 1]}
    assert analysis.fates_by_visits(admissions).to_dict("index") == {
        0: {"graduated": 0, "evicted": 0, "in the buffer": 3},
        1: {"graduated": 2, "evicted": 1, "in the buffer": 0},
    }


@pytest.mark.parametrize(
    "graduated, admitted, low, high",  # the roots p of (share - p)^2 = z^2 p (1 - p) / n
    [
        (0, 10, 0.0, 27.7533),
        (1, 10, 1.7876, 40.4150),
        (5, 10, 23.6593, 76.3407),
        (81, 263, 25.5289, 36.6200),
        (44, 44, 91.9704, 100.0),
        (53, 53, 93.2418, 100.0),
    ],
)
def test_wilson_interval(graduated, admitted, low, high):
    counts = pd.DataFrame({"accuracy": [0.0], "graduated": [graduated], "admitted": [admitted]})
    line = analysis.graduation(counts).loc["0%"]
    assert line.low <= line.percent <= line.high  # exactly: a bar of negative length stops the drawing
    roots = np.roots([1 + 1.959964**2 / admitted, -2 * graduated / admitted - 1.959964**2 / admitted,
                      (graduated / admitted) ** 2])  # fmt: skip
    assert [line.low, line.high] == pytest.approx(sorted(100 * roots), abs=1e-6)
    assert [line.low, line.high] == pytest.approx([low, high], abs=0.01)


def test_composition_and_curves(tmp_path):
    metrics = analysis.read_runs([write_run(tmp_path / "run")]).metrics.loc["zppo", 0]
    shares = figures.composition(metrics)
    assert list(shares) == ["easy", "hard, BCQ possible", "hard, NCQ only", "not asked"]
    assert shares.to_numpy().tolist() == [[0.25] * 4, [0.5, 0.5, 0, 0], [1, 0, 0, 0]]
    assert figures.composition(metrics.assign(teacher_questions=2)).isna().all(axis=1).tolist() == [False, False, True]
    none = pd.DataFrame({"plain_prompts": [0.0], "hard_share": [np.nan]})
    assert figures.composition(none).isna().all(axis=None)
    assert figures.composition(metrics[["plain_prompts", "hard_share"]]).iloc[0].tolist() == [0.25, 0, 0, 0.75]
    window = {**figures.SMOOTH, "window": 3}
    assert pd.Series([0, 3, None, 6]).rolling(**window).mean().tolist() == [1.5, 1.5, 4.5, 6]
    assert pd.Series([None, None, 1.0]).rolling(**window).mean()[1:].tolist() == [1, 1]


def test_audit():
    assert Counter(analysis.audit(DUMP)) == {
        ("bcq", "positive"): 3, ("bcq", "negative"): 1, ("bcq", "neither"): 2, ("bcq", "no answer"): 2,
        ("ncq", "correct"): 1, ("ncq", "repeats"): 2, ("ncq", "new wrong"): 1, ("ncq", "no answer"): 1,
    }  # fmt: skip


def test_intervals():
    assert tables.mean_interval(pd.Series([3.0])) == pytest.approx((3.0, np.nan, np.nan), nan_ok=True)
    assert tables.mean_interval(pd.Series([], dtype=float)) == pytest.approx((np.nan,) * 3, nan_ok=True)
    mean, std, half = tables.mean_interval(pd.Series([1.0, 2.0, 3.0, 4.0, 5.0]))
    assert (mean, std) == (3.0, pytest.approx(2.5**0.5)) and half == pytest.approx(2.776 * (2.5 / 5) ** 0.5)
    for n, value in ((1, 12.706), (4, 2.776), (9, 2.262), (10, 2.228), (30, 2.042), (1000, 1.962)):  # Student's t
        _, std, half = tables.mean_interval(pd.Series(range(n + 1)))
        assert half * (n + 1) ** 0.5 / std == pytest.approx(value, abs=0.004)
    assert [tables.verdict(*x) for x in ((2, 1), (-2, 1), (0.5, 1))] == ["agrees", "differs", "within noise"]
    assert "two seeds" in tables.verdict(5.0, np.nan)


def test_compare():
    base = {"image/known": 100.0, "image/hard": 0.0, "text/known": 80.0, "text/hard": 0.0}
    hard = {("grpo_replay", s): 10.0 * s for s in (0, 1, 2)} | {("grpo", 9): 0.0}
    hard |= {("zppo", s): 10.0 * s + d for s, d in ((1, 20.0), (2, 40.0), (7, 0.0))}
    families = pd.DataFrame({key: {**base, "image/hard": value} for key, value in hard.items()}).T
    values = tables.measures(families.rename_axis(["method", "seed"]))
    assert values.loc["zppo"]["hard"].to_dict() == {1: 15.0, 2: 30.0, 7: 35.0}
    table = tables.compare(values, "grpo_replay")
    zppo = table.loc["hard", "zppo"]  # (15, 30, 35) over seeds 1, 2, 7; at equal seeds 10 and 20 above the reference
    assert zppo["mean"] == pytest.approx(80 / 3) and zppo.seeds == 3
    assert zppo.difference == 15.0 and zppo.difference_half == pytest.approx(12.706 * 50**0.5 / 2**0.5)
    assert table.loc[("known", "zppo"), "mean"] == 90.0
    assert table.loc[("all", "zppo"), "mean"] == pytest.approx((180 + 160 / 3) / 4)
    assert np.isnan(table.loc["hard", "grpo"].difference) and np.isnan(table.loc["hard", "grpo"].half)
    assert table.loc["hard", "grpo_replay"][["difference", "difference_half"]].tolist() == [0, 0]
    assert tables.compare(values, "prefix").difference.isna().all()


# Table 10 of the paper (0.8B), in its order of benchmarks.
PAPER_ZPPO = [76.5, 13.9, 63.9, 31.1, 71.5, 75.3, 59.3, 29.2, 73.2, 37.6, 59.9, 42.5, 18.7, 35.0, 44.7, 71.7]
PAPER_GRPO = [71.2, 9.8, 59.9, 23.6, 69.4, 72.4, 51.1, 20.9, 68.3, 30.5, 57.5, 41.3, 17.5, 27.8, 43.6, 62.5]


def test_bootstrap_gives_table_14_of_the_paper():
    scores = pd.DataFrame({"grpo_replay": PAPER_GRPO, "zppo": PAPER_ZPPO})
    line = analysis.cluster_bootstrap(scores, "grpo_replay").loc["zppo"]
    assert (line.delta, line.low, line.high) == pytest.approx((4.79, 3.45, 6.12), abs=0.1)  # inputs are rounded
    assert line.wins == 16


def test_bootstrap_is_brute_force_in_the_limit():
    reference = np.array([50.0, 60.0, 70.0])
    scores = pd.DataFrame({"ref": reference, "new": np.array([53.0, 59.0, 76.0]), "up": reference + 2})
    result = analysis.cluster_bootstrap(scores, "ref")
    assert result.loc["ref"].to_dict() == dict(mean=60.0, delta=0.0, low=0.0, high=0.0, wins=0)
    assert result.loc["up"].to_dict() == dict(mean=62.0, delta=2.0, low=2.0, high=2.0, wins=3)
    new = result.loc["new"]
    assert new["delta"] == pytest.approx(8 / 3) and new["wins"] == 2 and new["low"] <= new["delta"] <= new["high"]
    every = [np.mean([(3, -1, 6)[i] for i in draw]) for draw in product(range(3), repeat=3)]  # all 27 resamples
    assert (new["low"], new["high"]) == pytest.approx(np.percentile(every, [2.5, 97.5], method="inverted_cdf"))
    draws = np.random.default_rng(0).integers(3, size=(10_000, 3))  # the same resamples, one at a time
    slow = [scores["new"].to_numpy()[draw].mean() - reference[draw].mean() for draw in draws]
    assert (new["low"], new["high"]) == pytest.approx(np.percentile(slow, [2.5, 97.5]))


def test_tables_without_matplotlib(tmp_path, capsys, monkeypatch):
    runs = [write_run(tmp_path / f"{m}-{s}", m, s) for m in ("zppo", "grpo_replay") for s in (0, 1)]
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SystemExit, match="pip install matplotlib"):
        figures.main([*map(str, runs), "--out", str(tmp_path / "figures")])
    analysis.main([*map(str, runs)])
    screen = capsys.readouterr().out
    hard = [line.split() for line in screen.splitlines() if "text/hard" in line]
    assert [line[-5:] for line in hard] == 2 * [["text/hard", "0.0", "25.0", "0.0", "2"]]  # before, after, std, seeds
    bcq = [line.split() for line in screen[screen.index("Tables 16-17") :].splitlines() if "positive" in line]
    assert [line[-2:] for line in bcq] == 2 * [["6", "37.5"]]  # rollouts of both seeds, percent of 16
    (runs[0] / "eval_before.jsonl").unlink()
    (runs[0] / "eval_after.jsonl").unlink()
    analysis.main([str(runs[0])])
    assert "Held-out" not in (screen := capsys.readouterr().out) and "Graduation" in screen


def test_no_two_rows_look_alike():
    looks = list(analysis.ROWS.values())
    assert all(len({look[i] for look in looks}) == len(looks) for i in (0, 1, 3))  # label, colour, marker
    assert set(analysis.ROWS) == set(METHODS) and set(analysis.ROWS) - set(tables.PAPER) == {"teacher_response"}


def test_figures(tmp_path):
    pytest.importorskip("matplotlib")
    folders = [str(write_run(tmp_path / method, method)) for method in ("zppo", "grpo", "off_distill")]
    figures.main([*folders, "--out", str(tmp_path / "figures")])
    assert {file.name for file in (tmp_path / "figures").iterdir()} == {"dynamics.png", "questions.png"}


def test_replicate_skips_finished_runs_and_resumes_others(tmp_path, monkeypatch):
    write_run(tmp_path / "runs" / "zppo-0")
    write_run(tmp_path / "runs" / "grpo-0", "grpo", finished=False)
    commands = []
    monkeypatch.setattr(replicate, "train", lambda command, log: commands.append(command[2:]))
    wanted = [(method, seed) for seed in (0, 1) for method in ("zppo", "grpo")]
    replicate.run_all(tmp_path / "runs", wanted, ["--steps", "3"], jobs=1)
    own = [["--steps", "3", "--method", m, "--seed", s, "--output", str(tmp_path / "runs" / f"{m}-{s}")]
           for m, s in (("grpo", "0"), ("zppo", "1"), ("grpo", "1"))]  # fmt: skip
    assert commands == [[*own[0], "--resume"], *own[1:]]
    with pytest.raises(SystemExit, match="choose another --runs"):
        replicate.run_all(tmp_path / "runs", [("zppo", 0)], [], jobs=1)
    with pytest.raises(SystemExit):
        replicate.main(["--seed", "3", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path)])


def test_replicate_gathers_only_what_is_comparable(tmp_path):
    for seed, hard in ((0, 2), (1, 3), (2, 2)):
        write_run(tmp_path / f"zppo-{seed}", "zppo", seed, (4, hard, 4, 4), lr=1.0)
        write_run(tmp_path / f"grpo_replay-{seed}", "grpo_replay", seed, (4, 0, 4, 1), lr=1.0)
    write_run(tmp_path / "grpo-0", "grpo", finished=False, lr=2.0)  # unfinished: left out
    (tmp_path / "options.json").write_text('["--steps", "3"]')
    replicate.write_results(*replicate.gather(tmp_path), tmp_path / "out")
    results, curves = replicate.read_results(tmp_path / "out")
    assert results["command"] == "python bench/replicate.py --steps 3"
    assert results["arguments"] == {"buffer_capacity": 3, "lr": 1.0} and results["runs"][0]["minutes"] == 3.0
    assert tables.graduations(results, "zppo").loc["0%"].tolist()[:3] == [6, 12, 50.0]
    assert curves.loc["zppo", 1].plain_accuracy.tolist() == [0.2, 0.4, 0.9]
    assert (tmp_path / "out" / "curves" / "zppo-1.csv").read_text().splitlines()[1] == "1,0.2,0.75,,0.1,1,0"
    page = tables.report(results, curves)
    claim = next(line for line in page.splitlines() if line.startswith("| ZPPO > GRPO† "))
    assert "+66.7 ± 17.9" in claim and claim.count("agrees") == 2 and "+4.9" in claim and "+2.8" in claim
    assert "| ZPPO's BCQ accuracy" in page and "| 60.0 | agrees |" in " ".join(page.split())  # of None, 0.5, 0.7
    assert tables.secondary(results, curves).loc[("zppo", 1), "NCQ accuracy"] == pytest.approx(15)  # 0.1, None, 0.2
    rows = {line.split("|")[1].strip(): line.split() for line in reversed(page.splitlines()) if line.startswith("|")}
    assert rows["base"][3:10] == "3 | 0.0 ± 0.0 | 100.0".split() and "+66.7 ± 17.9" in " ".join(rows["ZPPO"])
    write_run(tmp_path / "grpo-1", "grpo", 1, lr=2.0)
    with pytest.raises(SystemExit, match="differ in lr"):
        replicate.gather(tmp_path)


def test_results_of_another_day_stay(tmp_path):
    for day, seed in enumerate((0, 1)):
        write_run(tmp_path / f"day{day}" / f"zppo-{seed}", seed=seed, lr=1.0)
        (tmp_path / f"day{day}" / "options.json").write_text("[]")
        replicate.write_results(*replicate.gather(tmp_path / f"day{day}"), tmp_path / "out")
    results, curves = replicate.read_results(tmp_path / "out")
    assert [run["seed"] for run in results["runs"]] == [0, 1] and set(curves.index.get_level_values("seed")) == {0, 1}
    assert list(tables.by_key(replicate.stored(tmp_path / "out"))) == [("zppo", 0), ("zppo", 1)]
    write_run(tmp_path / "other" / "zppo-2", seed=2, lr=2.0)
    (tmp_path / "other" / "options.json").write_text("[]")
    with pytest.raises(SystemExit, match="other lr"):
        replicate.write_results(*replicate.gather(tmp_path / "other"), tmp_path / "out")


def test_what_is_not_in_the_paper_stands_below_a_line(tmp_path):
    for method in ("zppo", "teacher_response", "grpo_replay"):
        write_run(tmp_path / f"{method}-0", method)
    (tmp_path / "options.json").write_text("[]")
    replicate.write_results(*replicate.gather(tmp_path), tmp_path / "out")
    results, _ = replicate.read_results(tmp_path / "out")
    rows = [line.split("|")[1].strip() for line in tables.rows_table(results).splitlines()[2:]]
    assert rows == ["base", "GRPO†", "ZPPO", "**not in the paper**", "GRPO† + teacher response"]
    assert "teacher response" not in tables.claims_table(results) + tables.graduation_table(results)


@pytest.mark.parametrize("methods", [["zppo"], ["grpo"], ["zppo", "grpo_replay", "grpo", "hint", "teacher_response"]])
def test_replicate_draws_whatever_was_run(methods, tmp_path):
    pytest.importorskip("matplotlib")
    for method in methods:
        write_run(tmp_path / "runs" / f"{method}-0", method, steps=3)
    (tmp_path / "runs" / "options.json").write_text("[]")
    replicate.write_results(*replicate.gather(tmp_path / "runs"), tmp_path)
    replicate.main(["--figures_only", "--out", str(tmp_path)])
    figures = {"heldout.png", "curves.png"}
    if {"zppo", "grpo_replay"} <= {*methods}:
        figures.add("zppo_and_grpo.png")
    assert {file.name for file in tmp_path.glob("*.png")} == figures and (tmp_path / "table.md").exists()


@pytest.mark.parametrize("folder", [REPLICATION, REPLICATION / "rare"], ids=["miniature", "rare"])
def test_committed_results_give_the_committed_table(folder):
    results, curves = replicate.read_results(folder)
    assert tables.report(results, curves) == (folder / "table.md").read_text(encoding="utf-8")
    assert set(curves.index.droplevel(2)) == {(run["method"], run["seed"]) for run in results["runs"]}
