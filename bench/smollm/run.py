"""Rows x seeds of examples/smollm.py: a curve and a line of results for each run, a table, a picture.

    python -m bench.smollm.run                          all that is missing, seed by seed
    python -m bench.smollm.run --collect                curves, table and picture from what is there

Stopped at any time, the same command goes on where it was. preregistration.md says what was fixed
before the runs.

Decisions:
1. A run counts in results.json once its held-out answers are there. Its curve is written earlier.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd

from bench.figures import panels
from engine.output import read_records, write_whole
from examples.smollm import ROOT, shares
from extras.analysis import ROWS, graduation, read_runs

METHODS = ("zppo", "grpo_replay", "grpo_replay_bcq")
SEEDS = (0, 1, 2)
OUT = Path(__file__).parent
CURVES = (
    "step plain_accuracy bcq_accuracy ncq_accuracy active_share no_answer_share cut_share "
    "response_length entropy grad_norm clip_share buffer admitted graduated teacher_accuracy"
).split()


def train(folder: Path, method: str, seed: int) -> None:
    """One run on one core, from its checkpoint if it was interrupted; its screen goes to a file."""
    run = folder / f"{method}-{seed}"
    command = [sys.executable, "-m", "examples.smollm", "--folder", str(folder.absolute())]
    command += ["--method", method, "--seed", str(seed)]
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
    """A line for each finished run. It says nothing of rows whose runs are missing."""
    rows = []
    for line in read_results(out).values():
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
    write_whole("\n".join(lines) + "\n", out / "table.md")


def draw(out: Path) -> None:
    """curves.png: plain and BCQ accuracy and responses with a box over the steps, a line per run."""
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/smollm"), help="of the runs")
    parser.add_argument("--out", type=Path, default=OUT, help="of the results")
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--collect", action="store_true", help="train nothing")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    for seed in args.seeds:
        for method in args.methods:
            finished = f"{method}-{seed}" in read_results(args.out)
            if not (finished or args.collect):
                train(args.folder, method, seed)
            collect(args.folder, method, seed, args.out)
    if read_results(args.out):
        write_table(args.out)
    draw(args.out)


if __name__ == "__main__":
    main()
