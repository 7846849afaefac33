"""What runs leave on disk, as figures of the paper: `python -m bench.figures runs/a runs/b --out figures`.

Decisions:
1. Plain accuracy counts replayed questions too, as in the paper: a row with the buffer is measured on harder ones.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from extras.analysis import FATES, ROWS, Runs, fates_by_visits, graduation, read_runs

DYNAMICS = "plain_accuracy positive_share entropy loss bcq_accuracy ncq_accuracy graduated evicted".split()
SMOOTH = {"window": 9, "center": True, "min_periods": 1}  # a moving average over steps, for `rolling`
COMPOSITION = {"easy": "#FFF3B0", "hard, BCQ possible": "#2C7FB8", "hard, NCQ only": "#4A1500", "not asked": "#BFBFBF"}
COLOURS = dict(zip(FATES, ("#00634A", "#E69F00", "#DDDDDD")))  # neighbours differ in lightness


def composition(metrics: pd.DataFrame) -> pd.DataFrame:
    """Fig. 5a: the questions of each step before the cap, as shares that sum to 1 (columns: COMPOSITION); NaN for
    distillation. Only with --teacher_on_all_hard the teacher is asked about all hard ones."""
    questions, hard = metrics.plain_prompts, (metrics.hard_share * metrics.plain_prompts).round()
    asked, right = (metrics.get(name, 0 * questions).fillna(0) for name in ("teacher_questions", "bcq_possible"))
    layers = (questions - hard, right, asked - right, hard - asked)
    return pd.DataFrame(dict(zip(COMPOSITION, layers))).div(questions, axis=0).where(asked <= hard)


def buffer_composition(admissions: pd.DataFrame) -> pd.DataFrame:
    """Figs. 20-24: questions in the buffer after each step, a column per accuracy at admission."""
    entered, left = (pd.crosstab(admissions[name], admissions.accuracy) for name in ("step", "fate_step"))
    moves = entered.sub(left, fill_value=0)
    return moves.reindex(range(int(moves.index.max()) + 1)).fillna(0).cumsum()


def panels(rows: int, columns: int, width: float = 2.6, height: float = 2.2, **options):
    """A figure and its axes, row by row. width, height: of a panel, in inches."""
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise SystemExit(f"figures need matplotlib ({error}): pip install matplotlib") from None
    plt.rcParams.update({"font.size": 8, "axes.spines.top": False, "axes.spines.right": False, "savefig.dpi": 200})
    plt.rcParams.update({"legend.fontsize": 7, "figure.constrained_layout.use": True})
    figure, grid = plt.subplots(rows, columns, figsize=(width * columns, height * rows), squeeze=False, **options)
    return figure, list(grid.flat)


def draw(runs: Runs, out: Path) -> None:
    """dynamics.png: Figs. 5, 22 and 25. questions.png: Figs. 4, 5 and 20-24, a line of panels per row of the tables."""
    out.mkdir(parents=True, exist_ok=True)
    methods = list(dict.fromkeys(method for method, _ in runs.paths))
    curves = {m: runs.metrics.loc[m].groupby("step").mean().rolling(**SMOOTH).mean() for m in methods}
    figure, grid = panels(2, 4)
    for axes, name in zip(grid, DYNAMICS):
        for method in (m for m in methods if name in curves[m] and (name != "loss" or "distill" not in m)):
            label, colour, line, marker = ROWS[method]  # the loss of distillation, a divergence, has another scale
            axes.plot(curves[method][name], line, color=colour, marker=marker, markevery=20, ms=4, label=label)
        axes.set(xlabel="rollout step", ylabel=name)
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(out / "dynamics.png")

    figure, grid = panels(len(methods), 4)
    for method, (batch, stock, fates, shares) in zip(methods, np.reshape(grid, (-1, 4))):
        metrics, title = runs.metrics.loc[method], ROWS[method].label.replace(" (", "\n(")
        layers = 100 * composition(metrics).groupby(metrics.step).mean().rolling(**SMOOTH).mean()
        layers.plot.area(ax=batch, color=COMPOSITION, lw=0, title=title, ylabel="questions (%)")
        if method in runs.admissions.index:
            admissions, seeds = runs.admissions.loc[method], len(metrics.index.unique(0))
            (buffer_composition(admissions) / seeds).plot.area(ax=stock, cmap="cividis", lw=0, ylabel="in the buffer")
            (fates_by_visits(admissions) / seeds).plot.bar(ax=fates, color=COLOURS, stacked=True, ylabel="admissions")
            table = graduation(admissions)
            shares.plot(table.percent, "ko")
            shares.vlines(table.index, table.low, table.high, "black")
            shares.set(xlabel="accuracy at admission", ylabel="graduated (%)", ylim=(0, 105))
    figure.savefig(out / "questions.png")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="output folders of train.py; grouped by method, then seed")
    parser.add_argument("--out", type=Path, default=Path("figures"), help="folder for the figures")
    args = parser.parse_args(argv)
    draw(read_runs(args.runs), args.out)


if __name__ == "__main__":
    main()
