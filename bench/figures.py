"""What runs leave on disk, as figures of the paper.

    python -m bench.figures runs/a runs/b --out figures

Decisions:
1. Plain accuracy counts replayed questions too, as in the paper: a row with the buffer is measured
   on harder ones.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from extras.analysis import (
    FATES,
    ROWS,
    Runs,
    fates_by_visits,
    graduation,
    parser_of_runs,
    read_runs,
)

DYNAMICS = (
    "plain_accuracy positive_share entropy loss bcq_accuracy ncq_accuracy graduated evicted"
).split()
# A moving average over steps, for `rolling`.
SMOOTH = {"window": 9, "center": True, "min_periods": 1}
# Colours. Neighbours differ in lightness.
COMPOSITION = {
    "easy": "#FFF3B0",
    "hard, BCQ possible": "#2C7FB8",
    "hard, NCQ only": "#4A1500",
    "not asked": "#BFBFBF",
}
COLOURS = dict(zip(FATES, ("#00634A", "#E69F00", "#DDDDDD")))
STYLE = {
    "font.size": 8,
    "legend.fontsize": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 200,
}


def composition(metrics: pd.DataFrame) -> pd.DataFrame:
    """Fig. 5a: the questions of each step before the cap, as shares that sum to 1 (columns:
    COMPOSITION); NaN for distillation.

    Only with --teacher_on_all_hard the teacher is asked about all hard ones.
    """
    questions = metrics.plain_prompts
    hard = (metrics.hard_share * questions).round()
    none = 0 * questions
    asked = metrics.get("teacher_questions", none).fillna(0)
    right = metrics.get("bcq_possible", none).fillna(0)
    layers = (questions - hard, right, asked - right, hard - asked)
    shares = pd.DataFrame(dict(zip(COMPOSITION, layers))).div(questions, axis=0)
    return shares.where(asked <= hard)


def buffer_composition(admissions: pd.DataFrame) -> pd.DataFrame:
    """Figs. 20-24: questions in the buffer after each step, a column per accuracy at admission."""
    entered = pd.crosstab(admissions.step, admissions.accuracy)
    left = pd.crosstab(admissions.fate_step, admissions.accuracy)
    moves = entered.sub(left, fill_value=0)
    steps = range(int(moves.index.max()) + 1)
    return moves.reindex(steps).fillna(0).cumsum()


def panels(rows: int, columns: int, width: float = 2.6, height: float = 2.2, **options):
    """A figure and its axes, row by row. width, height: of a panel, in inches."""
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise SystemExit(f"figures need matplotlib ({error}): pip install matplotlib") from None
    plt.rcParams.update(STYLE)
    size = width * columns, height * rows
    figure, grid = plt.subplots(rows, columns, figsize=size, squeeze=False, **options)
    return figure, list(grid.flat)


def label_on_two_lines(method: str) -> str:
    return ROWS[method].label.replace(" (", "\n(")


def draw(runs: Runs, out: Path) -> None:
    """dynamics.png: Figs. 5, 22 and 25. questions.png: Figs. 4, 5 and 20-24."""
    out.mkdir(parents=True, exist_ok=True)
    methods = list(dict.fromkeys(method for method, _ in runs.paths))
    draw_dynamics(runs, methods, out / "dynamics.png")
    draw_questions(runs, methods, out / "questions.png")


def draw_dynamics(runs: Runs, methods: list[str], path: Path) -> None:
    """A panel per metric, a line per row of the tables, means over seeds."""
    curves = {}
    for method in methods:
        means = runs.metrics.loc[method].groupby("step").mean()
        curves[method] = means.rolling(**SMOOTH).mean()
    figure, grid = panels(2, 4)
    for axes, name in zip(grid, DYNAMICS):
        for method in methods:
            # The loss of distillation, a divergence, has another scale.
            if name not in curves[method] or (name == "loss" and "distill" in method):
                continue
            label, colour, line, marker = ROWS[method]
            look = dict(color=colour, marker=marker, markevery=20, ms=4, label=label)
            axes.plot(curves[method][name], line, **look)
        axes.set(xlabel="rollout step", ylabel=name)
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path)


def draw_questions(runs: Runs, methods: list[str], path: Path) -> None:
    """A line of panels per row of the tables: what a step's questions are, the buffer's, what
    became of those admitted."""
    figure, grid = panels(len(methods), 4)
    lines = np.reshape(grid, (-1, 4))
    for method, (batch, stock, fates, shares) in zip(methods, lines):
        metrics = runs.metrics.loc[method]
        title = label_on_two_lines(method)
        layers = 100 * composition(metrics).groupby(metrics.step).mean()
        smooth = layers.rolling(**SMOOTH).mean()
        smooth.plot.area(ax=batch, color=COMPOSITION, lw=0, title=title, ylabel="questions (%)")
        if method not in runs.admissions.index:
            continue
        admissions = runs.admissions.loc[method]
        seeds = len(metrics.index.unique(0))
        held = buffer_composition(admissions) / seeds
        held.plot.area(ax=stock, cmap="cividis", lw=0, ylabel="in the buffer")
        became = fates_by_visits(admissions) / seeds
        became.plot.bar(ax=fates, color=COLOURS, stacked=True, ylabel="admissions")
        table = graduation(admissions)
        shares.plot(table.percent, "ko")
        shares.vlines(table.index, table.low, table.high, "black")
        shares.set(xlabel="accuracy at admission", ylabel="graduated (%)", ylim=(0, 105))
    figure.savefig(path)


def main(argv: list[str] | None = None) -> None:
    parser = parser_of_runs(__doc__)
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("figures"),
        help="folder for the figures",
    )
    args = parser.parse_args(argv)
    draw(read_runs(args.runs), args.out)


if __name__ == "__main__":
    main()
