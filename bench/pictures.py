"""The pictures of bench/replicate.py, from what it keeps in results.json and curves/."""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from bench.figures import SMOOTH, label_on_two_lines, panels
from bench.tables import (
    PAPER,
    PAPER_GRADUATION,
    REFERENCE,
    graduations,
    mean_interval,
    mean_text,
    measured,
)
from extras.analysis import ROWS


def by_step(curves: pd.DataFrame, method: str, name: str) -> pd.DataFrame:
    """One metric of a row: a line per step, a column per seed."""
    steps = curves.loc[method].reset_index()
    return steps.pivot(index="step", columns="seed", values=name)


def draw_seeds(axes, table: pd.DataFrame, line: str, colour: str) -> None:
    """Every seed thin, the mean thick."""
    axes.plot(table, line, color=colour, linewidth=0.6, alpha=0.7)
    axes.plot(table.mean(axis=1), line, color=colour, linewidth=2)


# ---------------------------------------------------------------- ZPPO and GRPO†


def draw_zppo_and_grpo(results: dict, curves: pd.DataFrame, path: Path) -> None:
    """What does ZPPO do that GRPO cannot? Hard questions over steps, and by accuracy at admission
    to the buffer."""
    methods = list(PAPER_GRADUATION)
    size = dict(
        width=3.8,
        height=3.2,
        width_ratios=[1, 1.6],
    )
    figure, (left, right) = panels(1, 2, **size)
    draw_learnt(left, results, curves, methods)
    draw_graduation(right, results, methods)
    figure.savefig(path)


def draw_learnt(axes, results: dict, curves: pd.DataFrame, methods: Iterable[str]) -> None:
    """Hard questions that have graduated so far, over steps: every seed thin, the mean thick.
    Behind the line: the accuracy on held-out hard questions after training."""
    after = measured(results, "after")["hard"]
    for method in methods:
        label, colour, line, _ = ROWS[method]
        table = by_step(curves, method, "graduated").cumsum()
        draw_seeds(axes, table, line, colour)
        text = f"{label}\nheld-out hard:\n{mean_text(after.loc[method])}%"
        end = table.iloc[-1].mean()
        axes.text(1.03 * table.index[-1], end, text, color=colour, va="center")
    last = table.index[-1]
    before = measured(results, "before")["hard"].mean()
    axes.set(xlabel="rollout step", ylabel="questions graduated so far", ylim=(0, None))
    ticks = [x for x in axes.get_xticks() if 0 <= x <= last]
    axes.set(xlim=(0, 1.4 * last), xticks=ticks)
    title = f"Hard questions learnt (held out, before training: {before:.1f}%)"
    axes.set_title(title, fontsize=8)


def draw_graduation(axes, results: dict, methods: Iterable[str]) -> None:
    """Fig. 4, ours with 95% intervals and counts, the paper's hollow."""
    places = list(PAPER_GRADUATION[REFERENCE])
    counts = []
    handles = []
    for i, method in enumerate(methods):
        table = graduations(results, method).reindex(places)
        left = 0.42 * i - 0.29
        handles.append(draw_ours(axes, method, table, left))
        handles += draw_the_papers(axes, method, places, left + 0.15)
        pairs = table[["graduated", "admitted"]].fillna(0).to_numpy()
        counts.append([f"{graduated:.0f} of {admitted:.0f}" for graduated, admitted in pairs])
    for place in range(1, len(places)):
        axes.axvline(place - 0.5, color="#CCCCCC", linewidth=0.6)
    ticks = ["\n".join(lines) for lines in zip(places, *counts)]
    axes.set_xticks(range(len(places)), ticks, fontsize=7)
    # Which line of the counts is whose.
    labels = [ROWS[method].label for method in methods]
    beside = dict(
        fontsize=7,
        ha="right",
        va="top",
        transform=axes.get_xaxis_transform(),
    )
    names = "\n".join(["", *labels])
    axes.text(-0.57, -0.041, names, **beside)
    axes.set(
        xlabel="plain accuracy at admission",
        ylabel="graduated (% of admissions)",
        ylim=(0, 130),
    )
    axes.set_yticks(range(0, 101, 20))
    axes.set_xlim(-0.5, len(places) - 0.5)
    axes.set_title("Hard questions in the buffer: share that is learnt", fontsize=8)
    axes.legend(handles=handles, loc="upper left", ncols=2, framealpha=1)


def draw_ours(axes, method: str, table: pd.DataFrame, left: float):
    """Percent and interval at each accuracy. left: how far beside its tick. Returns the handle."""
    label, colour, _, marker = ROWS[method]
    x = [place + left for place in range(len(table))]
    reach = table.percent - table.low, table.high - table.percent
    look = dict(
        fmt=marker,
        color=colour,
        ms=5,
        capsize=3,
        label=label,
    )
    return axes.errorbar(x, table.percent, reach, **look)


def draw_the_papers(axes, method: str, places: list[str], left: float) -> list:
    label, colour, _, marker = ROWS[method]
    x = [place + left for place in range(len(places))]
    percent = [PAPER_GRADUATION[method][place] for place in places]
    look = dict(
        color=colour,
        mfc="white",
        ms=5,
        label=f"{label} in the paper, 2B",
    )
    return axes.plot(x, percent, marker, **look)


# ---------------------------------------------------------------- all rows


def draw_held_out(results: dict, path: Path) -> None:
    """Every row on hard and on known questions: seeds, mean and 95% interval."""
    before = measured(results, "before")
    after = measured(results, "after")
    methods = list(after.index.unique("method"))
    outside = sum(method not in PAPER for method in methods)
    height = 1.2 + 0.23 * len(methods)
    figure, grid = panels(1, 2, width=3.2, height=height, sharey=True)
    for axes, measure in zip(grid, ("hard", "known")):
        untrained = before[measure].mean()
        look = dict(
            color="black",
            linestyle=":",
            linewidth=0.8,
            label="before training",
        )
        axes.axvline(untrained, **look)
        for y, method in enumerate(methods):
            draw_row(axes, y, method, after.loc[method][measure])
        if outside:
            axes.axhline(len(methods) - outside - 0.35, color="black", linewidth=0.5)
        name = f"held-out accuracy, {measure} questions (%)"
        axes.set(xlabel=name, ylim=(len(methods) - 0.4, -0.6))
    labels = [label_on_two_lines(method) for method in methods]
    grid[0].set_yticks(range(len(methods)), labels)
    handles, names = grid[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower right", frameon=False)
    figure.savefig(path)


def draw_row(axes, y: int, method: str, values: pd.Series) -> None:
    """Seeds hollow, below them mean and interval."""
    colour, marker = ROWS[method].colour, ROWS[method].marker
    mean, _, half = mean_interval(values)
    below = [y + 0.3] * len(values)
    axes.plot(values, below, "o", color=colour, mfc="none", ms=3)
    look = dict(
        fmt=marker,
        color=colour,
        ms=5,
        capsize=2.5,
        elinewidth=1.2,
    )
    axes.errorbar(mean, y, xerr=half, **look)


def draw_curves(curves: pd.DataFrame, path: Path) -> None:
    """Plain accuracy over steps, a panel per row: every seed thin, their mean thick, smoothed."""
    methods = list(curves.index.unique("method"))
    columns = min(len(methods), 4)
    rows = -(-len(methods) // columns)
    size = dict(
        width=1.8,
        height=1.6,
        sharex=True,
        sharey=True,
    )
    figure, grid = panels(rows, columns, **size)
    for axes in grid[len(methods) :]:
        axes.set_axis_off()
    # The lowest panel of each column.
    lowest = grid[len(methods) - columns : len(methods)]
    for axes in lowest:
        axes.tick_params(labelbottom=True)
    for axes, method in zip(grid, methods):
        table = 100 * by_step(curves, method, "plain_accuracy")
        if table.isna().all(axis=None):
            middle = dict(
                ha="center",
                transform=axes.transAxes,
            )
            axes.text(0.5, 0.5, "no student rollouts", **middle)
        smooth = table.rolling(**SMOOTH).mean()
        draw_seeds(axes, smooth, "-", ROWS[method].colour)
        axes.set_title(label_on_two_lines(method), fontsize=8)
    figure.supxlabel("rollout step", fontsize=8)
    figure.supylabel("plain accuracy (%),\nnew and replayed", fontsize=8)
    figure.savefig(path)
