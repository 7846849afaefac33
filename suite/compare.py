"""From records to numbers: scores and their parts, macro averages, the paper's tables."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from engine.output import read_records
from extras.analysis import cluster_bootstrap
from suite.entries import BENCHMARKS, BY_NAME, FAMILIES

TABLES = Path(__file__).parent.parent / "docs" / "paper.csv"  # Tables 1-3, 10-13, 19-21


def means(rewards: Sequence[tuple]) -> dict[str, float]:
    """{value: mean reward in percent, NaN where one is None}. rewards: (value or list of values, reward) each."""
    table = pd.DataFrame(rewards, columns=["value", "reward"], dtype=object).explode("value").dropna(subset="value")
    return (100 * table.reward.astype(float)).groupby(table.value.astype(str), sort=False).mean().to_dict()


def accuracies(records: Sequence[dict]) -> dict[str, float]:
    """Accuracy in percent by family, in order of appearance."""
    return means([(record["family"], record["reward"]) for record in records])


def by_group(records: Sequence[dict], group: str) -> dict[str, float]:
    """Accuracy in percent by value of a group; a record with several values counts for each of them."""
    return means([(record["groups"].get(group), record["reward"]) for record in records])


def four_way(records: Sequence[dict]) -> dict[str, float]:
    """We-Math's four ways, in percent of the problems of several steps whose single steps are all there.

    IK, IG: insufficient knowledge, inadequate generalisation. CM, RM: complete mastery, rote memorisation.
    """
    rows = [(record["scored_with"], record["groups"]["key"], record["reward"] == 1) for record in records]
    table = pd.DataFrame(rows, columns=["problem", "key", "right"]).set_index("problem")  # key: 2steps_1, 2steps_multi
    several = table.key.str.endswith("_multi")
    singles = table[~several].groupby("problem").right.agg(["size", "all", "any"])
    table = table[several].join(singles, how="inner")
    table = table[table["size"] == table.key.str[0].astype(int)]
    right, every, some = table.right, table["all"], table["any"]
    ways = {"IK": ~right & ~every, "IG": ~right & every, "CM strict": right & every, "RM strict": right & ~every,
            "CM loose": right & some, "RM loose": right & ~some}  # fmt: skip
    shares = {name: 100 * float(way.sum()) / max(1, len(table)) for name, way in ways.items()}
    for kind in ("strict", "loose"):
        mastered, rote = shares[f"CM {kind}"], shares[f"RM {kind}"]
        shares[f"RM rate {kind}"] = 100 * rote / (mastered + rote) if rote else 0.0
        shares[f"score {kind}"] = mastered + shares["IG"] / 2  # 100 - IG / 2 - RM - IK
    return shares


def beside(name: str, records: Sequence[dict]) -> dict[str, float]:
    """The numbers that stand beside a benchmark's score, in percent; NaN where there are no such rows."""
    if name == "dynamath":  # of the seed questions whose 10 variants are all there, those with all of them right
        seeds = pd.DataFrame(records).groupby("scored_with").reward
        return {"worst case": 100 * float((seeds.min()[seeds.size() == 10] == 1).mean())}
    if name == "mmlu_redux":
        return {"rows without an error": by_group(records, "error_type").get("ok", np.nan)}
    return four_way(records) if name == "wemath" else {}


def summarise(records: Sequence[dict]) -> dict[str, dict]:
    """{benchmark: score in percent (None if a row could not be scored), counts, what stands beside it, groups}."""
    result = {}
    for entry in BENCHMARKS:
        if not (mine := [record for record in records if record["family"] == entry.name]):
            continue
        counts = dict(rows=len(mine), published=entry.size, **Counter(record["method"] for record in mine))
        counts["unfinished"] = sum(not record["finished"] for record in mine)
        result[entry.name] = summary = {"score": None, "counts": counts, "beside": {}, "groups": {}}
        if all(record["reward"] is not None for record in mine):
            groups = {group: by_group(mine, group) for group in entry.groups}
            parts = groups[entry.average].values() if entry.average else [100 * record["reward"] for record in mine]
            others = {key: value for key, value in beside(entry.name, mine).items() if not np.isnan(value)}
            summary |= {"score": float(np.mean([*parts])), "beside": others, "groups": groups}
    return result


def macro(scores: dict[str, float | None]) -> dict[str, tuple[float, int, int]]:
    """{family: (mean over its benchmarks with a score, how many those are, how many the suite has)}."""
    result = {}
    for family in FAMILIES:
        names = [entry.name for entry in BENCHMARKS if entry.family == family]
        if values := [scores[name] for name in names if scores.get(name) is not None]:
            result[family] = (float(np.mean(values)), len(values), len(names))
    return result


def paper(row: str) -> dict[str, float]:
    """The paper's numbers in one row of its tables, "0.8B/zppo", by our names. Raises ValueError."""
    tables = pd.read_csv(TABLES, index_col="benchmark")
    if row not in tables:
        raise ValueError(f"the paper's tables have no row {row!r}; they have {', '.join(tables)}")
    numbers = tables[row].dropna()
    return {entry.name: float(numbers[entry.paper]) for entry in BENCHMARKS if entry.paper in numbers}


def report(numbers: dict, theirs: dict[str, dict[str, float]]) -> str:
    """What `summarise` returns as a table, or accuracies by family as lines. theirs: {name of a column: its scores}."""
    if not all(isinstance(one, dict) for one in numbers.values()):
        return "\n".join(f"{family:<14} {accuracy:5.1f}%" for family, accuracy in numbers.items())
    columns = {"ours": {name: one["score"] for name, one in numbers.items()}} | theirs
    counts = pd.DataFrame({name: one["counts"] for name, one in numbers.items()}).T.fillna(0).astype(int)
    table = pd.DataFrame(columns, counts.index).join(counts)
    lines = [table.to_string(na_rep="-", float_format="{:.1f}".format)]
    for name, one in numbers.items():
        lines += [f"{name}, {key}: {value:.1f}" for key, value in one["beside"].items()]
    if other := [*counts.index[counts.rows != counts.published]]:
        lines.append(f"not the published number of rows: {', '.join(other)}")
    for column, scores in columns.items():
        for family, (mean, n, of) in macro({name: scores.get(name) for name in numbers}).items():
            lines.append(f"{family}, {column}: {mean:.1f}" + (f" (partial: {n} of {of} benchmarks)" if n < of else ""))
    return "\n".join(lines)


def compare(names: Sequence[str]) -> str:
    """Each result beside the first: percent, then the cluster bootstrap (F.6) over the benchmarks that all have.

    names: results files, or "paper:" and a row of the paper's tables. Raises ValueError.
    """
    scores = {}
    for name in names:
        records = read_records(Path(name))
        numbers = {key: one["score"] for key, one in summarise(records).items()}
        scores[name] = paper(name[6:]) if name.startswith("paper:") else numbers or accuracies(records)
        if not scores[name]:
            raise ValueError(f"{name}: no such file of results")
    table = pd.DataFrame(scores).dropna()
    families, text = [BY_NAME[name].family if name in BY_NAME else "questions" for name in table.index], []
    for family, block in table.groupby(families, sort=False):
        text += [f"\n{family}, {len(block)} in all results", block.to_string(float_format="{:.1f}".format)]
        text.append(cluster_bootstrap(block, names[0]).to_string(float_format="{:+.2f}".format))
    return "\n".join(text)
