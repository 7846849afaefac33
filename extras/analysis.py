"""What runs leave on disk, as the paper's tables and figures.

    python analysis.py runs/a runs/b --out figures        tables on the screen; figures, if --out is given
    python analysis.py --bootstrap accuracies.csv         cluster bootstrap of benchmark accuracies (F.6)

The first part reads runs, the second is pure functions from plain data to plain data, the third prints and draws.
Only the third needs matplotlib, and only for figures.

Decisions:
1. An interval over seeds is the 95% t-interval of their mean; two methods are compared by their differences at equal
   seeds. It covers what another seed would change (order of questions, sampling), not other held-out questions.
2. "hard", "known" and "all" are macro means over held-out families, as the paper averages benchmarks.
3. Shares over several runs of a method pool their counts; curves are means over runs at equal steps.
4. Curves are centred moving averages; the line without smoothing stays visible behind them.
5. Plain accuracy is over new and replayed questions, as in the paper: replay brings hard questions back, so a method
   with the buffer is measured on harder ones than a method without.
"""

import argparse
import csv
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np

from buffer import Entry, ReplayBuffer
from engine.run import read_records
from rewards import answers_match


@dataclass(frozen=True)
class Row:
    """How a method is named in the paper's tables and drawn here: Okabe-Ito colours, and lines and markers that tell
    the rows apart in black and white."""

    label: str
    colour: str
    line: str
    marker: str


ROWS = {  # in the paper's order
    "off_distill": Row("Off-Distill", "#56B4E9", ":", "<"),
    "off_distill_replay": Row("Off-Distill†", "#56B4E9", "--", "<"),
    "on_distill": Row("On-Distill", "#CC79A7", ":", ">"),
    "on_distill_replay": Row("On-Distill†", "#CC79A7", "-.", ">"),
    "grpo": Row("GRPO", "#7F7F7F", ":", "v"),
    "grpo_replay": Row("GRPO†", "#000000", "--", "v"),
    "grpo_both": Row("GRPO + Both", "#E69F00", "-.", "D"),
    "hint": Row("GRPO† + Hint", "#009E73", ":", "P"),
    "prefix": Row("GRPO† + Prefix", "#E69F00", "--", "X"),
    "teacher_response": Row("GRPO† + teacher response", "#0072B2", ":", "*"),
    "grpo_replay_bcq": Row("GRPO† + BCQ", "#0072B2", "--", "s"),
    "grpo_replay_ncq": Row("GRPO† + NCQ", "#009E73", "-.", "^"),
    "zppo": Row("ZPPO", "#D55E00", "-", "o"),
}
DYNAMICS = {  # Figs. 22 and 25: label -> (metrics, of which the first that a run has is drawn; factor)
    "plain rollout accuracy (%)": (["plain_accuracy"], 100),
    "positive advantage (%)": (["positive_share"], 100),
    "entropy (nats per token)": (["entropy"], 1),
    "policy loss": (["loss"], 1),
    "BCQ (Hint, Prefix) accuracy (%)": (["bcq_accuracy", "hint_accuracy", "prefix_accuracy"], 100),
    "NCQ accuracy (%)": (["ncq_accuracy"], 100),
}
COMPOSITION = {  # Fig. 5a: key of `composition` -> (label, colour, hatch)
    "easy": ("easy", "#F0E442", ""),
    "bcq": ("hard, BCQ possible", "#56B4E9", "//"),
    "ncq_only": ("hard, NCQ only", "#D55E00", ".."),
    "not_asked": ("hard, teacher not asked", "#CCCCCC", "xx"),
}
FATES = {"graduated": ("#009E73", "//"), "evicted": ("#D55E00", ".."), "in the buffer": ("#CCCCCC", "")}
HATCHES = ["", "//", "..", "xx", "\\\\", "oo", "--", "++"]

# ---------------------------------------------------------------- reading runs


@dataclass
class Run:
    """What one run of train.py left on disk."""

    path: Path
    args: dict
    metrics: list[dict]  # one per step
    before: dict[str, float]  # held-out accuracy in percent by family; {} without evaluation
    after: dict[str, float]
    buffer: ReplayBuffer  # of the newest checkpoint; empty if there is none
    steps: int  # rollout steps at that checkpoint

    @property
    def entries(self) -> list[Entry]:
        """All admissions: those that left the buffer, then those still in it."""
        return [*self.buffer.history, *self.buffer.entries.values()]


def accuracies(records: Iterable[dict]) -> dict[str, float]:
    """Accuracy in percent by family, in order of appearance (eval_before.jsonl, eval_after.jsonl)."""
    rewards = defaultdict(list)
    for record in records:
        rewards[record["family"]].append(record["reward"])
    return {family: 100 * sum(values) / len(values) for family, values in rewards.items()}


def read_run(path: Path) -> Run:
    if not (path / "args.json").exists():
        raise SystemExit(f"{path} is not the output of train.py: it has no args.json")
    args = json.loads((path / "args.json").read_text(encoding="utf-8"))
    buffer, steps = ReplayBuffer(args["buffer_capacity"]), 0
    if states := sorted(path.glob("checkpoints/step_*/state.json")):
        state = json.loads(states[-1].read_text(encoding="utf-8"))
        buffer.load_state_dict(state["buffer"])
        steps = state["step"]
    before, after = (accuracies(read_records(path / f"eval_{name}.jsonl")) for name in ("before", "after"))
    return Run(path, args, read_records(path / "metrics.jsonl"), before, after, buffer, steps)


def by_method(runs: Iterable[Run]) -> dict[str, dict[int, Run]]:
    """{method: {seed: run}}, methods in the paper's order."""
    table: dict[str, dict[int, Run]] = {method: {} for method in ROWS}
    for run in runs:
        seeds, seed = table[run.args["method"]], run.args["seed"]
        if seed in seeds:
            raise SystemExit(f"{run.path} and {seeds[seed].path} are the same method with the same seed")
        seeds[seed] = run
    return {method: seeds for method, seeds in table.items() if seeds}


# ---------------------------------------------------------------- pure functions


def graduation(tables: Iterable[dict[float, Sequence[int]]]) -> dict[float | str, tuple[int, int, float]]:
    """Fig. 4: plain accuracy at admission -> (graduated, admitted, percent); "all" comes last (F.2).

    tables: `ReplayBuffer.graduation_by_admission` of each run.
    """
    cells = [(key, counts) for table in tables for accuracy, counts in table.items() for key in (accuracy, "all")]
    keys = [*sorted({key for key, _ in cells if key != "all"}), "all"] if cells else []
    sums = {key: [sum(counts[i] for other, counts in cells if other == key) for i in (0, 1)] for key in keys}
    return {key: (graduated, admitted, 100 * graduated / admitted) for key, (graduated, admitted) in sums.items()}


def composition(line: dict) -> dict[str, float] | None:
    """Fig. 5a: the questions of one step before the cap, as shares that sum to 1. line: one of metrics.jsonl.

    Every hard question may become an NCQ; it may become a BCQ if the teacher got it right. That is known only for
    questions the teacher was asked. Without --teacher_on_all_hard it is asked the hardest ones until the cap is full:
    "bcq" and "ncq_only" then split those few, and say nothing about "not_asked". Rows that never ask it (GRPO, NCQ)
    have only "easy" and "not_asked". None for distillation, which asks about easy questions too or has no rollouts.
    """
    questions = line["plain_prompts"]
    if not questions:
        return None
    hard = round(line["hard_share"] * questions)
    asked, right = line.get("teacher_questions", 0), line.get("bcq_possible", 0)
    if asked > hard:
        return None
    counts = {"easy": questions - hard, "bcq": right, "ncq_only": asked - right, "not_asked": hard - asked}
    return {name: count / questions for name, count in counts.items()}


def buffer_composition(entries: Sequence[Entry], steps: int) -> dict[float, list[int]]:
    """Figs. 20-24: accuracy at admission -> questions in the buffer after each of the steps."""
    counts = {accuracy: [0] * steps for accuracy in sorted({entry.accuracy for entry in entries})}
    for entry in entries:
        for step in range(entry.step, steps if entry.fate_step is None else entry.fate_step):
            counts[entry.accuracy][step] += 1
    return counts


def fates_by_visits(entries: Iterable[Entry]) -> dict[int, dict[str, int]]:
    """Figs. 20-24: number of replays -> how many admissions graduated, were evicted, are still in the buffer."""
    table: dict[int, dict[str, int]] = {}
    for entry in entries:
        table.setdefault(len(entry.visits), dict.fromkeys(FATES, 0))[entry.fate or "in the buffer"] += 1
    return dict(sorted(table.items()))


def mean_curve(runs: Sequence[Sequence[dict]], names: Sequence[str], factor: float = 1) -> list[float | None]:
    """Mean over runs of the first of the named metrics that a step has; None where no run has one."""
    values = [[next((x[name] for name in names if x.get(name) is not None), None) for x in lines] for lines in runs]
    kept = [[value for value in step if value is not None] for step in zip_longest(*values)]
    return [factor * sum(step) / len(step) if step else None for step in kept]


def smooth(values: Sequence[float | None], window: int = 9) -> list[float | None]:
    """Centred moving average over up to `window` steps, fewer at the ends; steps without a value count nowhere."""
    reach, result = window // 2, []
    for i in range(len(values)):
        near = [value for value in values[max(0, i - reach) : i + reach + 1] if value is not None]
        result.append(sum(near) / len(near) if near else None)
    return result


def audit(records: Iterable[dict]) -> dict[str, dict[str, int]]:
    """Tables 16-17: what BCQ and NCQ answers have to do with the candidates in their prompts. Counts of rollouts.

    records: lines of dumps/. In BCQ an answer matches the positive, the negative or neither candidate; in NCQ it is
    correct, repeats one of the listed wrong answers, or is wrong in a new way.
    """
    counts = {
        "bcq": dict.fromkeys(("positive", "negative", "neither", "no answer"), 0),
        "ncq": dict.fromkeys(("correct", "repeats", "new wrong", "no answer"), 0),
    }
    for record in (record for record in records if record["kind"] in counts):
        given = record["candidates"]["answers"]
        for rollout in record["rollouts"]:
            answer = rollout["answer"]
            if answer is None:
                kind = "no answer"
            elif record["kind"] == "bcq":
                matches = [other is not None and answers_match(answer, other) for other in given]
                kind = "positive" if matches[0] else "negative" if matches[1] else "neither"
            elif rollout["reward"] == 1:
                kind = "correct"
            else:
                listed = set(given) - {None}
                kind = "repeats" if any(answers_match(answer, other) for other in listed) else "new wrong"
            counts[record["kind"]][kind] += 1
    return counts


def t_quantile(n: int) -> float:
    """97.5% quantile of Student's t with n degrees of freedom: a table, then a series in 1/n (within 0.003)."""
    table = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262]
    return table[n - 1] if n <= len(table) else 1.960 + 2.372 / n + 2.822 / n**2


def mean_interval(values: Sequence[float]) -> tuple[float, float | None, float | None]:
    """(mean, sample standard deviation, half width of the 95% t-interval of the mean); None for fewer than two."""
    mean, n = sum(values) / len(values), len(values)
    if n < 2:
        return mean, None, None
    std = math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1))
    return mean, std, t_quantile(n - 1) * std / math.sqrt(n)


def measures(accuracies: dict[str, float]) -> dict[str, float]:
    """Macro means over families that end in /hard and /known and over all families, then the families themselves."""
    ends = {"hard": "/hard", "known": "/known", "all": ""}
    groups = {name: [value for family, value in accuracies.items() if family.endswith(ends[name])] for name in ends}
    return {**{name: sum(values) / len(values) for name, values in groups.items() if values}, **accuracies}


@dataclass
class Comparison:
    """One method on one measure, in percent over seeds; difference: to the reference method at equal seeds."""

    method: str
    measure: str
    values: dict[int, float]  # by seed
    mean: float
    std: float | None
    half: float | None  # half width of the 95% interval of the mean
    gain: float  # mean over seeds of after - before
    difference: float | None  # None if the two share no seed
    difference_half: float | None  # None if they share fewer than two


def compare(scores: dict[str, dict[int, tuple[dict, dict]]], reference: str) -> list[Comparison]:
    """scores: {method: {seed: (held-out accuracy by family before, after)}}. One entry per method and measure."""
    table = {m: {s: (measures(b), measures(a)) for s, (b, a) in seeds.items()} for m, seeds in scores.items()}
    result = []
    for method, seeds in table.items():
        for measure in next(iter(seeds.values()))[1]:
            values = {seed: after[measure] for seed, (_, after) in seeds.items()}
            gain = sum(after[measure] - before[measure] for before, after in seeds.values()) / len(seeds)
            other = {seed: after[measure] for seed, (_, after) in table.get(reference, {}).items()}
            paired = [values[seed] - other[seed] for seed in values if seed in other]
            difference, _, difference_half = mean_interval(paired) if paired else (None, None, None)
            statistics = mean_interval(list(values.values()))
            result.append(Comparison(method, measure, values, *statistics, gain, difference, difference_half))
    return result


def cluster_bootstrap(
    scores: dict[str, np.ndarray], reference: str, resamples: int = 10_000, seed: int = 0
) -> dict[str, dict[str, float]]:
    """F.6, on one (scale, family) block: macro-average difference of each method to the reference.

    scores: method -> accuracies in percent, benchmarks in the same order. Benchmarks are resampled with replacement,
    one shared resample for all methods. Returns mean, delta, 95% percentile interval (low, high), wins, benchmarks.
    """
    n = len(scores[reference])
    draws = np.random.default_rng(seed).integers(n, size=(resamples, n))
    result = {}
    for method, values in scores.items():
        deltas = values - scores[reference]
        low, high = np.percentile(deltas[draws].mean(1), [2.5, 97.5])
        result[method] = dict(
            mean=float(values.mean()), delta=float(deltas.mean()), low=float(low), high=float(high),
            wins=int((deltas > 0).sum()), benchmarks=n,
        )  # fmt: skip
    return result


def read_blocks(path: Path) -> dict[tuple[str, str], dict[str, np.ndarray]]:
    """{(scale, family): {method: accuracies}} from a CSV with columns scale, method, family, benchmark, accuracy."""
    cells: dict = defaultdict(lambda: defaultdict(dict))
    with open(path, encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            cells[line["scale"], line["family"]][line["method"]][line["benchmark"]] = float(line["accuracy"])
    blocks = {}
    for block, methods in cells.items():
        names = sorted({name for scores in methods.values() for name in scores})
        for method, scores in methods.items():
            if missing := [name for name in names if name not in scores]:
                raise SystemExit(f"{path}: {' '.join(block)}: {method} has no accuracy on {', '.join(missing)}")
        blocks[block] = {method: np.array([scores[name] for name in names]) for method, scores in methods.items()}
    return blocks


# ---------------------------------------------------------------- printing


def markdown(header: Sequence[str], rows: Sequence[Sequence]) -> str:
    """An aligned Markdown table; floats with one decimal, None as a dash."""

    def text(cell) -> str:
        return "–" if cell is None else f"{cell:.1f}" if isinstance(cell, float) else str(cell)

    cells = [list(header), *([text(cell) for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = [
        "| " + " | ".join(c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths))) + " |"
        for row in cells
    ]
    rule = "|" + "|".join("-" * (w + 1) + (":" if i else "-") for i, w in enumerate(widths)) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def plus_minus(mean: float | None, half: float | None, sign: str = "") -> str | None:
    if mean is None:
        return None
    return f"{mean:{sign}.1f}" + ("" if half is None else f" ± {half:.1f}")


def print_tables(runs: dict[str, dict[int, Run]], reference: str, dumps: int) -> None:
    scores = {m: {seed: (r.before, r.after) for seed, r in seeds.items() if r.after} for m, seeds in runs.items()}
    compared = compare({method: seeds for method, seeds in scores.items() if seeds}, reference)
    print("Held-out accuracy in percent: mean ± 95% interval over seeds; differences are at equal seeds\n")
    for measure in dict.fromkeys(c.measure for c in compared):
        rows = [
            (ROWS[c.method].label, len(c.values), plus_minus(c.mean, c.half), c.std, c.gain)
            + (plus_minus(c.difference, c.difference_half, "+"),)
            for c in compared
            if c.measure == measure
        ]
        print(markdown([measure, "seeds", "after", "std", "gain", f"minus {ROWS[reference].label}"], rows) + "\n")

    graduations, visits, audits = [], [], []
    for method, seeds in runs.items():
        row, table = ROWS[method].label, graduation(run.buffer.graduation_by_admission() for run in seeds.values())
        graduations += [(row, key if key == "all" else f"{100 * key:g}%", *cells) for key, cells in table.items()]
        fates = fates_by_visits(entry for run in seeds.values() for entry in run.entries)
        visits += [(row, count, *cells.values()) for count, cells in fates.items()]
        files = [file for run in seeds.values() for file in sorted(run.path.glob("dumps/*.jsonl"))[-dumps:]]
        for kind, counts in audit(record for file in files for record in read_records(file)).items():
            total = sum(counts.values())
            audits += [(row, kind.upper(), answer, n, 100 * n / total) for answer, n in counts.items() if total]
    print("Graduation by plain accuracy at admission (Fig. 4)\n")
    print(markdown(["row", "at admission", "graduated", "admitted", "%"], graduations))
    print("\nFates of admissions by number of visits (Figs. 20-24)\n")
    print(markdown(["row", "visits", *FATES], visits))
    print("\nBCQ and NCQ answers against the candidates in their prompts, newest dumps (Tables 16-17)\n")
    print(markdown(["row", "prompt", "answer", "rollouts", "%"], audits))


def print_bootstrap(blocks: dict[tuple[str, str], dict[str, np.ndarray]], reference: str) -> None:
    rows = []
    for block, scores in blocks.items():
        if reference not in scores:
            print(f"{' '.join(block)}: no {reference}, left out")
            continue
        for method, r in cluster_bootstrap(scores, reference).items():
            interval = f"[{r['low']:+.2f}, {r['high']:+.2f}]"
            rows.append((*block, method, r["mean"], f"{r['delta']:+.2f}", interval, f"{r['wins']}/{r['benchmarks']}"))
    print(markdown(["scale", "family", "method", "mean", f"minus {reference}", "95% interval", "wins"], rows))


# ---------------------------------------------------------------- drawing


def pyplot():
    """matplotlib.pyplot, set up for files in print."""
    try:
        import matplotlib
    except ImportError as error:
        raise SystemExit(f"figures need matplotlib ({error}): pip install matplotlib") from None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    style = {"font.size": 8, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}
    plt.rcParams.update({**style, "savefig.dpi": 200, "figure.constrained_layout.use": True, "hatch.linewidth": 0.5})
    return plt


def panels(rows: int, columns: int, width: float = 2.6, height: float = 2.2, **options):
    """A figure and its axes, row by row; width and height of a panel in inches."""
    figure, grid = pyplot().subplots(rows, columns, figsize=(width * columns, height * rows), squeeze=False, **options)
    return figure, list(grid.flat)


def draw_curve(axes, method: str, curve: Sequence[float | None]) -> None:
    """A smoothed curve over steps in the row's style, the raw one faint behind it."""
    row, steps = ROWS[method], range(1, len(curve) + 1)
    raw, line = ([math.nan if value is None else value for value in values] for values in (curve, smooth(curve)))
    axes.plot(steps, raw, color=row.colour, alpha=0.2, linewidth=0.6)
    every = max(len(line) // 6, 1)
    axes.plot(steps, line, row.line, color=row.colour, marker=row.marker, ms=4, markevery=every, label=row.label)


def draw_stack(axes, layers: dict[str, Sequence[float]], styles: Sequence[tuple[str, str]]) -> None:
    """Stacked layers over steps; styles: (colour, hatch) of each."""
    steps = range(1, max(map(len, layers.values())) + 1)
    bands = axes.stackplot(steps, *layers.values(), labels=list(layers), colors=[colour for colour, _ in styles])
    for band, (_, hatch) in zip(bands, styles):
        band.set(hatch=hatch, edgecolor="white", linewidth=0.3)
    axes.margins(x=0, y=0)


def draw_bars(axes, columns: dict[str, tuple[dict, str, str]]) -> None:
    """Bars side by side; columns: label -> ({x: height}, colour, hatch)."""
    places, width = sorted({x for heights, _, _ in columns.values() for x in heights}), 0.8 / len(columns)
    for i, (label, (heights, colour, hatch)) in enumerate(columns.items()):
        x = [k + (i - (len(columns) - 1) / 2) * width for k, place in enumerate(places) if place in heights]
        y = [heights[place] for place in places if place in heights]
        axes.bar(x, y, width, color=colour, hatch=hatch, edgecolor="black", linewidth=0.5, label=label)
    axes.set_xticks(range(len(places)), [f"{100 * place:g}" for place in places])


def draw_dynamics(runs: dict[str, dict[int, Run]], path: Path) -> None:
    """Figs. 22 and 25: one panel per metric, one curve per method."""
    figure, grid = panels(2, 3, height=2.4)
    legend = {}
    for axes, (label, (names, factor)) in zip(grid, DYNAMICS.items()):
        for method, seeds in runs.items():
            curve = mean_curve([run.metrics for run in seeds.values()], names, factor)
            other_loss = names == ["loss"] and "distill" in method  # a divergence, on another scale
            if any(value is not None for value in curve) and not other_loss:
                draw_curve(axes, method, curve)
        axes.set(xlabel="rollout step", ylabel=label)
        legend |= dict(zip(*reversed(axes.get_legend_handles_labels())))
    figure.legend(legend.values(), legend, loc="outside lower center", ncols=4, handlelength=3)
    figure.savefig(path)


def draw_questions(runs: dict[str, dict[int, Run]], path: Path) -> None:
    """Figs. 5 and 20-24, one row of panels per method, means over its seeds: composition of the batch before the cap,
    graduation v eviction, composition of the buffer, fates by number of visits."""
    figure, grid = panels(len(runs), 4)
    legend = {}
    for i, (method, seeds) in enumerate(runs.items()):
        batch, flow, stock, fates = grid[4 * i : 4 * i + 4]
        entries = [entry for run in seeds.values() for entry in run.entries]
        lines = [[composition(line) or {} for line in run.metrics] for run in seeds.values()]
        layers = {COMPOSITION[name][0]: smooth(mean_curve(lines, [name], 100)) for name in COMPOSITION}
        if any(None in layer for layer in layers.values()):
            batch.text(0.5, 0.5, "not known", ha="center", transform=batch.transAxes)
        else:
            draw_stack(batch, layers, [style for _, *style in COMPOSITION.values()])
            legend = dict(zip(*reversed(batch.get_legend_handles_labels())))
        batch.set(xlabel="rollout step", ylabel=f"{ROWS[method].label}: batch (%)", ylim=(0, 100))
        if not entries:
            for axes in (flow, stock, fates):
                axes.set_visible(False)
            continue

        for name, line in (("graduated", "-"), ("evicted", ":")):
            counts = np.cumsum(mean_curve([run.metrics for run in seeds.values()], [name]))
            flow.plot(range(1, len(counts) + 1), counts, line, color=FATES[name][0], label=name)
        flow.set(xlabel="rollout step", ylabel="left the buffer (questions)")
        flow.legend()
        counts = buffer_composition(entries, max(run.steps for run in seeds.values()))
        layers = {f"admitted at {100 * x:g}%": [n / len(seeds) for n in y] for x, y in counts.items()}
        colours = pyplot().get_cmap("cividis")(np.linspace(0.2, 1, len(layers)))
        draw_stack(stock, layers, list(zip(colours, HATCHES * 2)))
        stock.set(xlabel="rollout step", ylabel="in the buffer (questions)")
        stock.legend(loc="lower right", frameon=True, framealpha=1)
        table, base = fates_by_visits(entries), 0
        for fate, (colour, hatch) in FATES.items():
            heights = np.array([cells[fate] / len(seeds) for cells in table.values()])
            fates.bar(list(table), heights, 0.8, base, color=colour, hatch=hatch, edgecolor="black", label=fate)
            base = base + heights
        fates.set(xlabel="visits", ylabel="admissions")
        fates.legend()
    figure.legend(legend.values(), legend, loc="outside lower left", ncols=4)
    figure.savefig(path)


def draw_graduation(runs: dict[str, dict[int, Run]], path: Path) -> None:
    """Fig. 4, for the methods with a buffer."""
    bars = {}
    for method, seeds in runs.items():
        table = graduation(run.buffer.graduation_by_admission() for run in seeds.values())
        shares = {key: percent for key, (_, _, percent) in table.items()}
        if shares:
            label = f"{ROWS[method].label} (all: {shares.pop('all'):.0f}%)"
            bars[label] = (shares, ROWS[method].colour, HATCHES[len(bars) % len(HATCHES)])
    if not bars:
        return
    figure, (axes,) = panels(1, 1, width=4.5, height=3)
    draw_bars(axes, bars)
    axes.set(xlabel="plain accuracy at admission (%)", ylabel="graduated (% of admissions)")
    figure.legend(loc="outside lower center", ncols=2)
    figure.savefig(path)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, help="output folders of train.py; grouped by method, then seed")
    parser.add_argument("--out", type=Path, help="folder for the figures (needs matplotlib); none: tables only")
    parser.add_argument("--dumps", type=int, default=3, help="newest dumps of each run that are audited (default 3)")
    parser.add_argument("--bootstrap", type=Path, help="CSV with columns scale, method, family, benchmark, accuracy")
    parser.add_argument("--reference", default="grpo_replay", help="method to compare with (default grpo_replay)")
    args = parser.parse_args(argv)
    if not args.runs and not args.bootstrap:
        parser.error("give the output folders of runs, or --bootstrap with a CSV file")
    if args.bootstrap:
        print_bootstrap(read_blocks(args.bootstrap), args.reference)
    if args.runs:
        runs = by_method(map(read_run, args.runs))
        print_tables(runs, args.reference, args.dumps)
        if args.out:
            args.out.mkdir(parents=True, exist_ok=True)
            draw_dynamics(runs, args.out / "dynamics.png")
            draw_questions(runs, args.out / "questions.png")
            draw_graduation(runs, args.out / "graduation.png")
            print(f"\nfigures: {args.out}")


if __name__ == "__main__":
    main()
