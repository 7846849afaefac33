"""Rows x seeds of examples/smollm.py: a curve and a line of results each, a table, a picture.

    python -m bench.smollm.run                          all that is missing, seed by seed
    python -m bench.smollm.run --collect                curves, table and picture from what is there

Stopped at any time, the same command goes on where it was. preregistration.md says what was fixed
before the runs.

Decisions:
1. A run counts in results.json once its held-out answers are there. Its curve is written earlier.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from bench.figures import panels
from bench.tables import mean_interval, plus_minus
from engine.output import read_records, write_whole
from examples.smollm import ROOT, shares
from extras.analysis import ROWS, graduation, read_runs

METHODS = ("zppo", "grpo_replay_bcq", "grpo_replay")
SEEDS = (0, 1, 2)
OUT = Path(__file__).parent
CURVES = (
    "step plain_accuracy bcq_accuracy ncq_accuracy active_share no_answer_share cut_share "
    "response_length entropy grad_norm clip_share buffer admitted graduated teacher_accuracy"
).split()


def train(folder: Path, method: str, seed: int, options: Sequence[str]) -> None:
    """One run on one core, from its checkpoint if it was interrupted; its screen goes to a file."""
    run = folder / f"{method}-{seed}"
    command = [sys.executable, "-m", "examples.smollm", "--folder", str(folder.absolute())]
    command += ["--method", method, "--seed", str(seed), *options]
    # A finished run whose held-out answers are missing trains no further step.
    if (run / "metrics.jsonl").exists():
        command.append("--resume")
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    with open(folder / f"{run.name}.log", "a", encoding="utf-8") as screen:
        subprocess.run(command, cwd=ROOT, env=env, stdout=screen, stderr=screen, check=True)


def collect(folder: Path, method: str, seed: int, out: Path) -> None:
    """The curve of a run, as far as it came; its line of results, if it is finished."""
    run = folder / f"{method}-{seed}"
    if not (run / "metrics.jsonl").exists():
        return
    runs = read_runs([run])
    curve = runs.metrics.reindex(columns=CURVES)
    (out / "curves").mkdir(parents=True, exist_ok=True)
    curve.to_csv(out / "curves" / f"{run.name}.csv", index=False, float_format="%.4g")
    if not (run / "after.jsonl").exists():
        return
    seconds = sum(line["total"] for line in read_records(run / "times.jsonl"))
    line = {
        "method": method,
        "seed": seed,
        "minutes": round(seconds / 60, 1),
        "before": shares(read_records(folder / "before.jsonl")),
        "after": shares(read_records(run / "after.jsonl")),
        "plain_accuracy_at_the_end": 100 * curve.plain_accuracy.tail(4).mean(),
        "graduation": graduation(runs.admissions)[["graduated", "admitted"]].T.to_dict("list"),
    }
    results = read_results(out) | {run.name: line}
    text = ",\n".join(json.dumps(results[name]) for name in sorted(results))
    write_whole(f"[\n{text}\n]\n", out / "results.json")


def read_results(out: Path) -> dict[str, dict]:
    """{method-seed: its line of results}."""
    file = out / "results.json"
    if not file.exists():
        return {}
    lines = json.loads(file.read_text(encoding="utf-8"))
    return {f"{line['method']}-{line['seed']}": line for line in lines}


def write_table(out: Path) -> None:
    """A line for each finished run, then the differences of rows that are complete."""
    results = read_results(out)
    rows = []
    for line in results.values():
        graduated, admitted = line["graduation"].get("0%", (0, 0))
        cells = [
            ROWS[line["method"]].label,
            str(line["seed"]),
            f"{line['before']['right']:.1f} → {line['after']['right']:.1f}",
            f"{line['before']['with a box']:.1f} → {line['after']['with a box']:.1f}",
            f"{line['plain_accuracy_at_the_end']:.1f}",
            f"{graduated} of {admitted}",
            f"{line['minutes']:.0f}",
        ]
        rows.append("| " + " | ".join(cells) + " |")
    head = "| row | seed | held-out right (%) | with a box (%) | plain, last 4 steps (%) "
    head += "| graduated of those admitted at 0% | minutes |"
    lines = [head, "|---" * 7 + "|", *rows]
    if compared := differences(results):
        lines += ["", "| held-out right, in points | mean ± 95% t-interval | |", "|---" * 3 + "|"]
        lines += compared
    write_whole("\n".join(lines) + "\n", out / "table.md")


def differences(results: dict[str, dict]) -> list[str]:
    """A line for each two rows that have all seeds: their difference at equal seeds."""
    right = {name: line["after"]["right"] for name, line in results.items()}
    methods = [m for m in METHODS if all(f"{m}-{seed}" in right for seed in SEEDS)]
    lines = []
    for one, other in itertools.combinations(methods, 2):
        gaps = [right[f"{one}-{seed}"] - right[f"{other}-{seed}"] for seed in SEEDS]
        mean, _, half = mean_interval(pd.Series(gaps))
        verdict = "within noise"
        if abs(mean) > half:
            verdict = "above" if mean > 0 else "below"
        name = f"{ROWS[one].label} minus {ROWS[other].label}"
        gap = plus_minus(mean, half, "+")
        lines.append(f"| {name} | {gap} | {verdict} |")
    return lines


def draw(out: Path) -> None:
    """curves.png: plain and BCQ accuracy and responses with a box over steps, a line per run."""
    titles = {
        "plain_accuracy": "right, plain prompts (%)",
        "bcq_accuracy": "right, BCQ prompts (%)",
        "with_a_box": "responses with a box (%)",
    }
    figure, grid = panels(1, len(titles), height=2.4)
    for file in sorted((out / "curves").glob("*.csv")):
        method, seed = file.stem.rsplit("-", 1)
        label, colour, line, _ = ROWS[method]
        curve = pd.read_csv(file).set_index("step")
        curve["with_a_box"] = 1 - curve.no_answer_share
        for axes, name in zip(grid, titles):
            # One label for all seeds of a row.
            shown = label if seed == "0" else None
            axes.plot(100 * curve[name], line, color=colour, lw=1.2, label=shown)
    for axes, title in zip(grid, titles.values()):
        axes.set(xlabel="step", title=title, ylim=(-3, 103))
    handles = grid[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=len(METHODS), frameon=False)
    figure.savefig(out / "curves.png")


def compare(
    description: str,
    folder: Path,
    out: Path,
    methods: Sequence[str] = METHODS,
    options: Sequence[str] = (),
    prepare: Callable[[Path], None] | None = None,
) -> None:
    """The command: all runs that are missing, then the table and the picture.

    folder, out: where runs and results go. options: of examples/smollm.py. prepare: fills the
    folder of the runs.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--folder", type=Path, default=folder, help="of the runs")
    parser.add_argument("--out", type=Path, default=out, help="of the results")
    parser.add_argument("--methods", nargs="+", default=methods, choices=methods)
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--port", default="8135", help="of the teacher: another for each command")
    parser.add_argument("--collect", action="store_true", help="train nothing")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    if prepare and not args.collect:
        prepare(args.folder)
    for seed in args.seeds:
        for method in args.methods:
            finished = f"{method}-{seed}" in read_results(args.out)
            if not (finished or args.collect):
                train(args.folder, method, seed, ["--port", args.port, *options])
            collect(args.folder, method, seed, args.out)
    if read_results(args.out):
        write_table(args.out)
    draw(args.out)


if __name__ == "__main__":
    compare(__doc__.splitlines()[0], Path("runs/smollm"), OUT)
