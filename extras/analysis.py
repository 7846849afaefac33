"""What runs leave on disk, as tables of the paper: `python -m extras.analysis runs/a runs/b`.

Figures: `python -m bench.figures`. Comparisons of rows over seeds: bench/replicate.py.

Decisions:
1. Graduation pools all seeds. Wilson's interval takes admissions as independent, which those of one question are not.
"""

import argparse
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd  # comes with datasets

from engine.output import read_records
from rewards import answers_match

# The rows of the paper's tables in its order, then what is not in the paper. No two share a colour or a marker.
LOOKS = pd.read_csv(Path(__file__).with_name("rows.csv"), index_col="method")
ROWS = dict(zip(LOOKS.index, LOOKS.itertuples(index=False)))  # by method: label, colour, line, marker
FATES = ["graduated", "evicted", "in the buffer"]


class Runs(NamedTuple):
    """Runs in the order of ROWS, then of seeds. The tables are indexed by method and seed."""

    paths: dict[tuple[str, int], Path]
    metrics: pd.DataFrame  # a line per step
    held_out: pd.DataFrame  # a line per family: accuracy in percent before and after
    admissions: pd.DataFrame  # to the buffer: fields of `buffer.Entry`; graduated and admitted are 0 or 1


def read_runs(paths: Iterable[Path]) -> Runs:
    """What runs have left, admissions up to the newest checkpoint. Raises SystemExit where a folder holds no run or two
    are alike."""
    found = {}
    for path in paths:
        if not all((path / name).exists() for name in ("args.json", "metrics.jsonl")):
            raise SystemExit(f"{path} holds no step of train.py: args.json or metrics.jsonl is missing")
        args = json.loads((path / "args.json").read_text(encoding="utf-8"))
        if (key := (args["method"], args["seed"])) in found:
            raise SystemExit(f"{path} and {found[key]} are the same method with the same seed")
        found[key] = path
    found = {key: found[key] for key in sorted(found, key=lambda key: (list(ROWS).index(key[0]), key[1]))}
    metrics, answers, entries, keys = [], [], [], ["method", "seed"]
    for key, path in found.items():
        run = dict(zip(keys, key))
        metrics += [run | line for line in read_records(path / "metrics.jsonl")]
        for when in ("before", "after"):
            answers += [run | {"when": when} | record for record in read_records(path / f"eval_{when}.jsonl")]
        for state in sorted(path.glob("checkpoints/step_*/state.json"))[-1:]:
            buffer = json.loads(state.read_text(encoding="utf-8"))["buffer"]
            entries += [run | entry for entry in buffer["history"] + buffer["entries"]]
    held_out = pd.DataFrame(answers, columns=[*keys, "family", "when", "reward"])
    held_out = 100 * held_out.pivot_table("reward", [*keys, "family"], "when", sort=False)
    table = pd.DataFrame(entries, columns=[*keys, *"uid accuracy step visits fate fate_step".split()]).set_index(keys)
    table = table.assign(visits=table.visits.map(len), fate=table.fate.fillna("in the buffer"), admitted=1)
    return Runs(
        paths=found,
        metrics=pd.DataFrame(metrics).set_index(keys).astype(float),
        held_out=held_out.reindex(columns=["before", "after"]),
        admissions=table.assign(graduated=table.fate == "graduated"),
    )


def graduation(admissions: pd.DataFrame) -> pd.DataFrame:
    """Fig. 4, a line per plain accuracy at admission, then "all" (F.2): graduated, admitted, their ratio in percent and
    its 95% interval (low, high) by Wilson. admissions: columns accuracy, graduated, admitted (counts)."""
    table = admissions.groupby("accuracy")[["graduated", "admitted"]].sum().astype(int)
    table.index = pd.Index([f"{100 * accuracy:g}%" for accuracy in table.index], name="at admission")
    table.loc["all"] = table.sum()
    share, n, z = table.graduated / table.admitted, table.admitted, 1.959964
    reach = z * np.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2)
    low, high = ((share + z**2 / (2 * n) + side * reach) / (1 + z**2 / n) for side in (-1, 1))  # may round past share
    return table.assign(percent=100 * share, low=100 * np.minimum(low, share), high=100 * np.maximum(high, share))


def fates_by_visits(admissions: pd.DataFrame) -> pd.DataFrame:
    """Figs. 20-24: how many admissions met which fate (columns: FATES), a line per number of replays."""
    return pd.crosstab(admissions.visits, admissions.fate).reindex(columns=FATES, fill_value=0)


def audit(records: Iterable[dict]) -> Iterator[tuple[str, str]]:
    """Tables 16-17, for each rollout: (kind of prompt, what the answer has to do with the candidates in the prompt).
    records: lines of dumps/. The first candidate of a BCQ is the positive one. All candidates of an NCQ are wrong."""
    for record in (record for record in records if record["kind"] in ("bcq", "ncq")):
        for rollout in record["rollouts"]:
            answer, given = rollout["answer"], record["candidates"]["answers"]
            same = [None not in (answer, other) and answers_match(answer, other) for other in given]
            if answer is None:
                yield record["kind"], "no answer"
            elif record["kind"] == "bcq":
                yield "bcq", "positive" if same[0] else "negative" if same[1] else "neither"
            else:
                yield "ncq", "correct" if rollout["reward"] == 1 else "repeats" if any(same) else "new wrong"


def cluster_bootstrap(scores: pd.DataFrame, reference: str, resamples: int = 10_000, seed: int = 0) -> pd.DataFrame:
    """F.6, on one (scale, family) block: macro-average difference (delta) of each method to the reference, with its 95%
    percentile interval. scores: accuracies in percent, a line per benchmark, a column per method. Benchmarks are
    resampled with replacement, one shared resample for all methods. wins: benchmarks where the method is better."""
    deltas = scores.sub(scores[reference], axis=0)
    draws = np.random.default_rng(seed).integers(len(scores), size=(resamples, len(scores)))
    low, high = np.percentile(deltas.to_numpy()[draws].mean(1), [2.5, 97.5], axis=0)
    return pd.DataFrame(dict(mean=scores.mean(), delta=deltas.mean(), low=low, high=high, wins=(deltas > 0).sum()))


def print_tables(runs: Runs, dumps: int) -> None:
    """Held-out accuracy, graduation, fates, and the audit of the newest dumps of each run."""
    held_out = runs.held_out.groupby(["method", "family"], sort=False)
    accuracy = held_out.mean().assign(std=held_out.after.std(), seeds=held_out.size())
    admissions = runs.admissions.groupby("method", sort=False)
    audited, kinds = [], ["method", "prompt"]
    for (method, _), path in runs.paths.items():
        for file in sorted(path.glob("dumps/*.jsonl"))[-dumps:]:
            audited += [(method, *pair) for pair in audit(read_records(file))]
    audited.sort(key=lambda row: (list(ROWS).index(row[0]), *row[1:]))
    audited = pd.DataFrame(audited, columns=[*kinds, "answer"]).value_counts(sort=False).to_frame("rollouts")
    audited["percent"] = 100 * audited / audited.groupby(kinds).transform("sum")
    tables = {
        "Held-out accuracy (%), mean over seeds; std: over seeds, after training": accuracy,
        "Graduation by plain accuracy at admission (Fig. 4)": admissions.apply(graduation),
        "Fates of admissions by number of visits (Figs. 20-24)": admissions.apply(fates_by_visits),
        "BCQ and NCQ answers v the candidates in their prompts, newest dumps (Tables 16-17)": audited,
    }
    for title, table in tables.items():
        if len(table):
            table = table.rename({method: ROWS[method].label for method in ROWS}, level="method")
            print(f"{title}\n\n{table.to_string(float_format='{:.1f}'.format, na_rep='-')}\n")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="output folders of train.py; grouped by method, then seed")
    parser.add_argument("--dumps", type=int, default=3, help="newest dumps of each run that are audited (default 3)")
    args = parser.parse_args(argv)
    print_tables(read_runs(args.runs), args.dumps)


if __name__ == "__main__":
    main()
