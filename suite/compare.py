"""From records to numbers: scores and their parts, macro averages, the paper's tables."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from engine.output import read_records
from engine.results import accuracies, means
from extras.analysis import cluster_bootstrap
from suite.entries import BENCHMARKS, FAMILIES, Benchmark

# Tables 1-3, 10-13, 19-21
TABLES = Path(__file__).parent.parent / "docs" / "paper.csv"


def summarise(records: Sequence[dict]) -> dict:
    """{benchmark: its score in percent, counts, what stands beside the score, groups}."""
    result = {}
    for entry in BENCHMARKS:
        mine = [record for record in records if record["family"] == entry.name]
        if mine:
            result[entry.name] = summary_of(entry, mine)
    return result


def summary_of(entry: Benchmark, records: Sequence[dict]) -> dict:
    """One benchmark. The score is None where a row could not be scored, rather than wrong."""
    counts = dict(rows=len(records), published=entry.size)
    counts |= Counter(record["method"] for record in records)
    counts["unfinished"] = sum(not record["finished"] for record in records)
    summary = {"score": None, "counts": counts, "beside": {}, "groups": {}}
    if any(record["reward"] is None for record in records):
        return summary
    summary["score"] = score_of(entry, records)
    settled = [record for record in records if record["method"] != "unsettled"]
    if settled and len(settled) < len(records):
        summary["settled"] = score_of(entry, settled)
    summary["beside"] = beside(entry.name, records)
    summary["groups"] = {group: by_group(records, group) for group in entry.groups}
    return summary


def score_of(entry: Benchmark, records: Sequence[dict]) -> float:
    """The mean over records in percent, or over the means of the group that `average` names."""
    parts = [100 * record["reward"] for record in records]
    if entry.average:
        parts = list(by_group(records, entry.average).values())
    return float(np.mean(parts))


def by_group(records: Sequence[dict], group: str) -> dict:
    """Accuracy in percent by value of a group; several values of a record count each."""
    return means([(record["groups"].get(group), record["reward"]) for record in records])


def beside(name: str, records: Sequence[dict]) -> dict:
    """The numbers beside a benchmark's score, in percent; none where there are no such rows."""
    if name == "dynamath":
        # Of the seed questions whose 10 variants are all there: those with all of them right.
        seeds = pd.DataFrame(records).groupby("scored_with").reward
        whole = seeds.min()[seeds.size() == 10]
        worst = 100 * float((whole == 1).mean())
        return {"worst case": worst} if len(whole) else {}
    if name == "mmlu_redux":
        by_error = by_group(records, "error_type")
        if "ok" in by_error:
            return {"rows without an error": by_error["ok"]}
    return four_way(records) if name == "wemath" else {}


def four_way(records: Sequence[dict]) -> dict:
    """We-Math's four ways, in percent of the problems of several steps with all their single steps.

    IK: insufficient knowledge. IG: inadequate generalisation. CM: complete mastery.
    RM: rote memorisation.
    """
    table = pd.DataFrame(records)
    # 2steps_1, 2steps_2, 2steps_multi
    table["key"] = [groups["key"] for groups in table.groups]
    table["right"] = table.reward == 1
    table = table.set_index("scored_with")[["key", "right"]]
    several = table.key.str.endswith("_multi")
    steps = table[~several].groupby("scored_with").right
    table = table[several].join(steps.agg(["size", "all", "any"]), how="inner")
    table = table[table["size"] == table.key.str[0].astype(int)]
    right = table.right
    every = table["all"]
    ways = {
        "IK": ~right & ~every,
        "IG": ~right & every,
        "CM strict": right & every,
        "RM strict": right & ~every,
        "CM loose": right & table["any"],
        "RM loose": right & ~table["any"],
    }
    n = max(1, len(table))
    shares = {name: 100 * float(way.sum()) / n for name, way in ways.items()}
    for kind in ("strict", "loose"):
        mastered = shares[f"CM {kind}"]
        rote = shares[f"RM {kind}"]
        shares[f"RM rate {kind}"] = 100 * rote / (mastered + rote) if rote else 0.0
        # The published 100 - IG / 2 - RM - IK.
        shares[f"score {kind}"] = mastered + shares["IG"] / 2
    return shares


def macro(scores: dict) -> dict:
    """{family: (mean over its benchmarks with a score, how many those are, how many it has)}."""
    result = {}
    for family in FAMILIES:
        names = [entry.name for entry in BENCHMARKS if entry.family == family]
        values = [scores[name] for name in names if scores.get(name) is not None]
        if values:
            mean = float(np.mean(values))
            result[family] = (mean, len(values), len(names))
    return result


def paper(row: str) -> dict:
    """One row of the paper's tables, "0.8B/zppo", by our names. Raises ValueError."""
    tables = pd.read_csv(TABLES, index_col="benchmark")
    if row not in tables:
        there = ", ".join(tables)
        raise ValueError(f"the paper's tables have no row {row!r}; they have {there}")
    numbers = tables[row].dropna()
    known = [entry for entry in BENCHMARKS if entry.paper in numbers]
    return {entry.name: float(numbers[entry.paper]) for entry in known}


def report(numbers: dict, theirs: dict) -> str:
    """What `summarise` returns, as a table. theirs: {name of a column: its scores}."""
    ours = {name: one["score"] for name, one in numbers.items()}
    columns = {"ours": ours} | theirs
    settled = {key: one["settled"] for key, one in numbers.items() if "settled" in one}
    # Decision 3 of scorers.py: the score without unsettled rows.
    shown = columns | {"settled": settled} if settled else columns
    rows = [one["counts"] for one in numbers.values()]
    counts = pd.DataFrame(rows, list(numbers))
    counts = counts.fillna(0).astype(int)
    table = pd.DataFrame(shown, counts.index).join(counts)
    lines = [table.to_string(na_rep="-", float_format="{:.1f}".format)]
    for name, one in numbers.items():
        for key, value in one["beside"].items():
            lines.append(f"{name}, {key}: {value:.1f}")
        if "unreadable" in one:
            rows = one["counts"]["rows"]
            n = one["unreadable"]
            lines.append(f"{name}: {rows:,} of {rows + n:,} rows, {n} unreadable")
    others = counts.index[counts.rows != counts.published]
    if len(others):
        lines.append(f"not the published number of rows: {', '.join(others)}")
    for column, scores in columns.items():
        asked = {name: scores.get(name) for name in numbers}
        for family, (mean, n, of) in macro(asked).items():
            partial = f" (partial: {n} of {of} benchmarks)" if n < of else ""
            lines.append(f"{family}, {column}: {mean:.1f}{partial}")
    return "\n".join(lines)


def compare(names: Sequence[str]) -> str:
    """Each result beside the first: percent, then the cluster bootstrap (F.6), by family.

    The benchmarks are those that all results have; a single one has no interval.
    names: results files, or "paper:" and a row of the paper's tables. Raises ValueError.
    """
    scores = {name: scores_of(name) for name in names}
    table = pd.DataFrame(scores).dropna()
    known = {entry.name: entry.family for entry in BENCHMARKS}
    families = table.index.map(lambda name: known.get(name, "questions"))
    text = []
    for family, block in table.groupby(families, sort=False):
        text.append(f"\n{family}, {len(block)} in all results")
        text.append(block.to_string(float_format="{:.1f}".format))
        # Sets are resampled: one set has no interval.
        if len(block) > 1:
            intervals = cluster_bootstrap(block, names[0])
            text.append(intervals.to_string(float_format="{:+.2f}".format))
    return "\n".join(text)


def scores_of(name: str) -> dict:
    """The scores in a results file or in a row of the paper's tables. Raises ValueError."""
    if name.startswith("paper:"):
        return paper(name.removeprefix("paper:"))
    try:
        records = read_records(Path(name))
        numbers = summarise(records)
        families = accuracies(records)
    except Exception as error:  # a file of anything else
        raise ValueError(f"{name}: no file of results ({error!r})") from error
    if not records:
        raise ValueError(f"{name}: no such file of results")
    return {key: one["score"] for key, one in numbers.items()} or families
