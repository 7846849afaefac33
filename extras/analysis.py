"""What runs leave on disk, as tables of the paper: `python -m extras.analysis runs/a runs/b`.

Figures: `python -m bench.figures`. Comparisons of rows over seeds: bench/replicate.py.

Decisions:
1. Graduation pools all seeds. Wilson's interval takes admissions as independent, which those of one
   question are not.
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

# The rows of the paper's tables in its order, then what is not in the paper.
# No two share a colour or a marker.
LOOKS = pd.read_csv(Path(__file__).with_name("rows.csv"), index_col="method")
# By method: label, colour, line, marker.
ROWS = dict(zip(LOOKS.index, LOOKS.itertuples(index=False)))
KEYS = ["method", "seed"]
FATES = ["graduated", "evicted", "in the buffer"]
RESAMPLES = 10_000  # of the bootstrap


# ---------------------------------------------------------------- what runs have left


class Runs(NamedTuple):
    """Runs in the order of ROWS, then of seeds. The tables are indexed by method and seed."""

    paths: dict  # {(method, seed): folder}
    metrics: pd.DataFrame  # a line per step
    held_out: pd.DataFrame  # a line per family: accuracy in percent before and after
    # Admissions to the buffer: fields of `buffer.Entry`; graduated and admitted are 0 or 1.
    admissions: pd.DataFrame


def read_runs(paths: Iterable[Path]) -> Runs:
    """Everything that the tables need. Admissions are those up to each run's newest checkpoint.

    Raises SystemExit where a folder holds no run, or where two runs have the same method and seed.
    """
    found = find_runs(paths)
    metrics, answers, entries = [], [], []
    for key, path in found.items():
        run = dict(zip(KEYS, key))
        metrics += [run | line for line in read_records(path / "metrics.jsonl")]
        answers += [run | answer for answer in answers_of(path)]
        entries += [run | entry for entry in entries_of(path)]
    metrics = pd.DataFrame(metrics).set_index(KEYS).astype(float)
    return Runs(
        found,
        metrics,
        held_out_table(answers),
        admissions_table(entries),
    )


def find_runs(paths: Iterable[Path]) -> dict:
    """{(method, seed): folder}, in the order of Runs."""
    found = {}
    for path in paths:
        for name in ("args.json", "metrics.jsonl"):
            if not (path / name).exists():
                raise SystemExit(f"{path} holds no step of train.py: {name} is missing")
        args = json.loads((path / "args.json").read_bytes())
        key = args["method"], args["seed"]
        if key in found:
            raise SystemExit(f"{path} and {found[key]} are the same method with the same seed")
        found[key] = path
    return {key: found[key] for key in sorted(found, key=place_in_tables)}


def place_in_tables(row: tuple) -> tuple:
    """A sort key for tuples that begin with a method."""
    method, *rest = row
    return LOOKS.index.get_loc(method), *rest


def answers_of(path: Path) -> Iterator[dict]:
    """A run's answers to the held-out questions, before training and after."""
    for when in ("before", "after"):
        for record in read_records(path / f"eval_{when}.jsonl"):
            yield record | {"when": when}


def entries_of(path: Path) -> list[dict]:
    """All admissions to a run's buffer, those that have left first."""
    states = sorted(path.glob("checkpoints/step_*/state.json"))
    if not states:
        return []
    buffer = json.loads(states[-1].read_bytes())["buffer"]
    return buffer["history"] + buffer["entries"]


def held_out_table(answers: list[dict]) -> pd.DataFrame:
    table = pd.DataFrame(answers, columns=[*KEYS, "family", "when", "reward"])
    shares = table.pivot_table("reward", [*KEYS, "family"], "when", sort=False)
    return 100 * shares.reindex(columns=["before", "after"])


def admissions_table(entries: list[dict]) -> pd.DataFrame:
    columns = "uid accuracy step visits fate fate_step".split()
    table = pd.DataFrame(entries, columns=KEYS + columns).set_index(KEYS)
    table["visits"] = table.visits.map(len)
    table["fate"] = table.fate.fillna("in the buffer")
    table["admitted"] = 1
    table["graduated"] = table.fate == "graduated"
    return table


# ---------------------------------------------------------------- the tables


def graduation(admissions: pd.DataFrame) -> pd.DataFrame:
    """Fig. 4: how many admissions graduated.

    A line per plain accuracy at admission, then "all" (F.2): graduated, admitted, their ratio in
    percent and the 95% interval of the ratio (low, high) by Wilson (decision 1). admissions:
    columns accuracy, graduated, admitted (counts).
    """
    groups = admissions.groupby("accuracy")
    counts = groups[["graduated", "admitted"]].sum().astype(int)
    labels = [f"{100 * accuracy:g}%" for accuracy in counts.index]
    table = counts.set_axis(pd.Index(labels, name="at admission"))
    table.loc["all"] = table.sum()
    n = table.admitted
    share = table.graduated / n
    z = 1.959964  # 95% of a normal distribution lie within z standard deviations
    centre = share + z**2 / (2 * n)
    reach = z * np.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2)
    scale = 1 + z**2 / n
    # At 0% and 100% rounding may put a bound on the wrong side of the share.
    low = np.minimum((centre - reach) / scale, share)
    high = np.maximum((centre + reach) / scale, share)
    return table.assign(
        percent=100 * share,
        low=100 * low,
        high=100 * high,
    )


def fates_by_visits(admissions: pd.DataFrame) -> pd.DataFrame:
    """Figs. 20-24: how many admissions met which fate.

    A line per number of replays, a column per fate of FATES.
    """
    counts = pd.crosstab(admissions.visits, admissions.fate)
    return counts.reindex(columns=FATES, fill_value=0)


def audit(records: Iterable[dict]) -> Iterator[tuple[str, str]]:
    """Tables 16-17: how the answers of BCQ and NCQ rollouts relate to the candidates.

    records: lines of dumps/. Yields (kind of prompt, relation) for each rollout.
    """
    for record in records:
        if record["kind"] not in ("bcq", "ncq"):
            continue
        for rollout in record["rollouts"]:
            yield record["kind"], relation(record, rollout)


def relation(record: dict, rollout: dict) -> str:
    """The first candidate of a BCQ is the positive one. All candidates of an NCQ are wrong."""
    answer = rollout["answer"]
    if answer is None:
        return "no answer"
    candidates = record["candidates"]["answers"]
    same = [other is not None and answers_match(answer, other) for other in candidates]
    if record["kind"] == "ncq":
        if rollout["reward"] == 1:
            return "correct"
        return "repeats" if any(same) else "new wrong"
    positive, negative = same
    if positive:
        return "positive"
    return "negative" if negative else "neither"


def cluster_bootstrap(scores: pd.DataFrame, reference: str) -> pd.DataFrame:
    """F.6, on one (scale, family) block: how much better each method is than the reference.

    scores: accuracies in percent, a line per benchmark, a column per method. Returns for each
    method its mean, the mean difference (delta) to the reference with its 95% percentile interval
    (low, high), and on how many benchmarks the method is better (wins). Benchmarks are resampled
    with replacement, one shared resample for all methods.
    """
    deltas = scores.sub(scores[reference], axis=0)
    n = len(scores)
    draws = np.random.default_rng(0).integers(n, size=(RESAMPLES, n))
    means = deltas.to_numpy()[draws].mean(1)  # [RESAMPLES, methods]
    low, high = np.percentile(means, [2.5, 97.5], axis=0)
    table = pd.DataFrame({"mean": scores.mean(), "delta": deltas.mean()})
    return table.assign(
        low=low,
        high=high,
        wins=(deltas > 0).sum(),
    )


# ---------------------------------------------------------------- the screen


def print_tables(runs: Runs, dumps: int) -> None:
    """Held-out accuracy, graduation, fates, and the audit of the newest dumps of each run."""
    held_out = runs.held_out.groupby(["method", "family"], sort=False)
    accuracy = held_out.mean()
    accuracy["std"] = held_out.after.std()
    accuracy["seeds"] = held_out.size()
    admissions = runs.admissions.groupby("method", sort=False)
    fates = admissions.apply(fates_by_visits)
    audited = audit_table(runs, dumps)
    print_table("Held-out accuracy (%), mean over seeds; std: over seeds, after training", accuracy)
    print_table("Graduation by plain accuracy at admission (Fig. 4)", admissions.apply(graduation))
    print_table("Fates of admissions by number of visits (Figs. 20-24)", fates)
    print_table(
        "BCQ and NCQ answers v the candidates in their prompts, newest dumps (Tables 16-17)",
        audited,
    )


def audit_table(runs: Runs, dumps: int) -> pd.DataFrame:
    """How many rollouts of each (method, kind of prompt) had which relation, also in percent."""
    audited = []
    for (method, _), path in runs.paths.items():
        for file in sorted(path.glob("dumps/*.jsonl"))[-dumps:]:
            audited += [(method, *pair) for pair in audit(read_records(file))]
    audited.sort(key=place_in_tables)
    table = pd.DataFrame(audited, columns=["method", "prompt", "answer"])
    counts = table.value_counts(sort=False).to_frame("rollouts")
    totals = counts.groupby(["method", "prompt"]).transform("sum")
    return counts.assign(percent=100 * counts / totals)


def print_table(title: str, table: pd.DataFrame) -> None:
    """The table with the methods' names as in the paper; nothing if the table is empty."""
    if table.empty:
        return
    table = table.rename(LOOKS.label, level="method")
    text = table.to_string(float_format="{:.1f}".format, na_rep="-")
    print(f"{title}\n\n{text}\n")


def parser_of_runs(description: str) -> argparse.ArgumentParser:
    """For a command that reads runs."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "runs",
        nargs="+",
        type=Path,
        help="output folders of train.py; grouped by method, then seed",
    )
    return parser


def main(argv: list[str] | None = None) -> None:
    parser = parser_of_runs(__doc__)
    parser.add_argument(
        "--dumps",
        type=int,
        default=3,
        help="newest dumps of each run that are audited (default 3)",
    )
    args = parser.parse_args(argv)
    print_tables(read_runs(args.runs), args.dumps)


if __name__ == "__main__":
    main()
