"""Rows of the paper's tables x seeds on the embedded world: results.json, a table, three figures, curves of every run.

    python bench/replicate.py --jobs 2                                    every row, 5 seeds
    python bench/replicate.py --methods zppo grpo_replay --seeds 0        one pair, one seed
    python bench/replicate.py --figures_only                              table and figures again from what is on disk

    python bench/replicate.py --rare --steps 180 ...                      hard questions made rare: bench/rare.py

Options that this script does not know go to every run of train.py. Stopped at any time, the same command goes on where
it was. bench/miniature/preregistration.md says what was fixed before the runs.

Decisions:
1. All runs share every argument but method, seed and output. Runs that do not are refused.
2. A claim of the paper "agrees" if the 95% interval of the paired difference over seeds is above 0. It "differs" if the
   interval is below 0, and is "within noise" otherwise. Each claim stands alone: no correction for their number.
3. Claims are judged on the held-out questions that the base student gets wrong ("hard") and on all of them ("all").
   The paper's numbers beside them are macro averages over its 16 VLM benchmarks.
4. What is not a row of the paper stands below a line, and no claim is about it.
5. An interval over seeds is the 95% t-interval of the mean; two rows are compared by their differences at equal seeds.
   It covers what another seed would change (order of questions, sampling), not other held-out questions.
6. "hard", "known" and "all" are macro means over held-out families, as the paper averages benchmarks.
"""

import argparse
import json
import math
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import pandas as pd
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.figures import SMOOTH, panels  # noqa: E402
from engine.output import read_records  # noqa: E402
from extras import analysis  # noqa: E402
from extras.analysis import ROWS  # noqa: E402

REFERENCE = "grpo_replay"
PAPER = {  # macro averages over 16 VLM benchmarks at 0.8B and 2B: Tables 1-3, 10-13, 19-21
    "base": (41.0, 56.8), "off_distill": (41.0, 56.9), "off_distill_replay": (41.5, 57.3), "on_distill": (41.9, 57.7),
    "on_distill_replay": (42.3, 58.0), "grpo": (43.8, 58.7), "grpo_replay": (45.4, 59.2), "grpo_both": (45.2, 58.9),
    "hint": (47.2, 60.4), "prefix": (45.5, 59.5), "grpo_replay_bcq": (48.6, 60.8), "grpo_replay_ncq": (46.2, 60.1),
    "zppo": (50.3, 62.0),
}  # fmt: skip
PAPER_GRADUATION = {  # Fig. 4 (2B): percent of admissions that graduated, by plain accuracy at admission
    "zppo": {"0%": 28, "12.5%": 54, "25%": 76, "37.5%": 93, "all": 26.6},
    "grpo_replay": {"0%": 4, "12.5%": 14, "25%": 49, "37.5%": 82, "all": 14.3},
}
CLAIMS = [("zppo", other) for other in PAPER if other not in ("zppo", "base")]
CLAIMS += [("grpo_replay", "grpo"), ("grpo_replay", "grpo_both")]
MEASURES = ("hard", "known", "all")
CURVES = (  # metrics of each step that are kept of every run
    "step plain_accuracy hard_share bcq_accuracy ncq_accuracy bcq_active_share ncq_active_share active_share "
    "no_answer_share entropy graduated"
).split()
OWN = ("method", "seed", "output", "resume")  # arguments that may differ between runs

# ---------------------------------------------------------------- running


def is_finished(run: Path) -> bool:
    return (run / "eval_after.jsonl").exists() and (run / "model").is_dir()


def train_command(run: Path, method: str, seed: int, extra: list[str]) -> list[str]:
    """train.py for one run, going on from its checkpoint if it was interrupted."""
    own = ["--method", method, "--seed", str(seed), "--output", str(run)]
    resume = ["--resume"] if (run / "metrics.jsonl").exists() else []
    script = ROOT / ("bench/rare.py" if "--rare" in extra else "train.py")
    return [sys.executable, str(script), *[word for word in extra if word != "--rare"], *own, *resume]


def train(command: list[str], log: Path) -> None:
    """One run on one core; its screen goes to a file beside its folder."""
    with open(log, "a", encoding="utf-8") as file:
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        if subprocess.run(command, env=env, stdout=file, stderr=subprocess.STDOUT).returncode:
            raise SystemExit(f"{shlex.join(command)} failed: see {log}")


def run_all(folder: Path, runs: list[tuple[str, int]], extra: list[str], jobs: int) -> None:
    """All missing runs (method, seed), `jobs` at a time. A folder keeps to the options it was started with."""
    options = folder / "options.json"
    if any(folder.glob("*/args.json")) and options.exists() and (old := json.loads(options.read_text())) != extra:
        raise SystemExit(f"{folder} holds runs with the options {old}, not {extra}: choose another --runs")
    folder.mkdir(parents=True, exist_ok=True)
    options.write_text(json.dumps(extra))
    folders = [folder / f"{method}-{seed}" for method, seed in runs]
    todo = [(at, *run) for at, run in zip(folders, runs) if not is_finished(at)]
    with ThreadPoolExecutor(jobs) as pool, tqdm(total=len(runs), initial=len(runs) - len(todo), unit="run") as bar:
        futures = [pool.submit(train, train_command(*item, extra), Path(f"{item[0]}.log")) for item in todo]
        while not all(future.done() for future in futures):
            time.sleep(1)
            if any(f.done() and not f.cancelled() and f.exception() for f in futures):  # those under way may finish
                pool.shutdown(wait=False, cancel_futures=True)
            bar.n = sum(map(is_finished, folders))
            files = [at / "metrics.jsonl" for at in folders]
            steps = sum(file.read_bytes().count(b"\n") for file in files if file.exists())
            bar.set_postfix_str(f"{steps} steps in all")
    for future in futures:
        if not future.cancelled():
            future.result()


# ---------------------------------------------------------------- results


def gather(folder: Path) -> tuple[dict, pd.DataFrame]:
    """All finished runs in a folder: what results.json holds, and the metrics of their steps."""
    finished = [path for path in sorted(folder.iterdir()) if is_finished(path)]
    if not finished:
        raise SystemExit(f"{folder} holds no finished run")
    runs, shared = analysis.read_runs(finished), {}
    for key, path in runs.paths.items():
        args = json.loads((path / "args.json").read_text(encoding="utf-8"))
        shared[key] = {name: value for name, value in args.items() if name not in OWN}
    first, *_ = shared
    for key, arguments in shared.items():
        if names := [k for k in {**arguments, **shared[first]} if arguments.get(k) != shared[first].get(k)]:
            raise SystemExit(f"{runs.paths[key]} and {runs.paths[first]} differ in {', '.join(names)}: not comparable")
    extra = json.loads((folder / "options.json").read_text(encoding="utf-8"))
    packages = ("torch", "transformers", "accelerate", "numpy")
    counts = runs.admissions.groupby(["method", "seed", "accuracy"])[["graduated", "admitted"]].sum()
    families = {key: table.droplevel([0, 1]) for key, table in runs.held_out.round(2).groupby(["method", "seed"])}
    lines = []
    for key, path in runs.paths.items():
        lines.append({
            "method": key[0],
            "seed": key[1],
            "minutes": round(sum(line["total"] for line in read_records(path / "times.jsonl")) / 60, 1),
            "before": families[key].before.to_dict(),
            "after": families[key].after.to_dict(),
            "graduation": {str(at[2]): pair.tolist() for at, pair in counts.iterrows() if at[:2] == key},
        })  # fmt: skip
    results = {
        "command": shlex.join(["python", "bench/replicate.py", *extra]),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "arguments": json.loads(json.dumps(shared[first]).replace(f"{ROOT}/", "")),
        "runs": lines,
    }
    return results, runs.metrics


def by_key(results: dict) -> dict[tuple[str, int], dict]:
    """{(method, seed): the run's line in results.json}."""
    return {(run["method"], run["seed"]): run for run in results["runs"]}


def stored(out: Path) -> dict:
    """results.json. Its runs are not run again, and stay beside what is new. Without the file: no runs."""
    file = out / "results.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"arguments": {}, "runs": []}


def write_results(results: dict, metrics: pd.DataFrame, out: Path) -> None:
    """results.json with a line per run, and curves/METHOD-SEED.csv with a line per step. Other runs that are there
    already stay, if their arguments were the same."""
    (out / "curves").mkdir(parents=True, exist_ok=True)
    before = stored(out)
    old, new = before["arguments"], results["arguments"]
    if names := [name for name in old.keys() & new.keys() if old[name] != new[name]]:
        raise SystemExit(f"{out} holds runs with other {', '.join(names)}: choose another --out")
    lines = by_key(before) | by_key(results)
    runs = ",\n".join(json.dumps(lines[key]) for key in sorted(lines))
    head = json.dumps({key: value for key, value in results.items() if key != "runs"}, indent=1)
    (out / "results.json").write_text(f'{head[:-2]},\n "runs": [\n{runs}\n]\n}}\n', encoding="utf-8")
    for (method, seed), steps in metrics.groupby(level=["method", "seed"], sort=False):
        columns = [name for name in CURVES if name in steps]
        steps[columns].to_csv(out / "curves" / f"{method}-{seed}.csv", index=False, float_format="%.4g")


def read_results(out: Path) -> tuple[dict, pd.DataFrame]:
    """What `write_results` wrote, runs in the order of ROWS."""
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    results["runs"].sort(key=lambda run: (list(ROWS).index(run["method"]), run["seed"]))
    files = {(method, seed): out / "curves" / f"{method}-{seed}.csv" for method, seed in by_key(results)}
    curves = {key: pd.read_csv(file).reindex(columns=CURVES) for key, file in files.items()}
    return results, pd.concat(curves, names=["method", "seed", ""])


def mean_interval(values: pd.Series) -> tuple[float, float, float]:
    """(mean, sample standard deviation, half width of the 95% t-interval of the mean); NaN where values are too few."""
    n = max(len(values) - 1, 0)  # degrees of freedom; the 97.5% quantile of Student's t is a table, then a series
    table = [math.nan, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262]
    quantile = table[n] if n < len(table) else 1.960 + 2.372 / n + 2.822 / n**2
    return values.mean(), values.std(), quantile * values.std() / math.sqrt(n + 1)


def measures(families: pd.DataFrame) -> pd.DataFrame:
    """Columns hard, known and all (decision 6), then the families. families: a line per run, a column per family."""
    ends = {"hard": "/hard$", "known": "/known$", "all": "."}
    means = pd.DataFrame({name: families.filter(regex=end).mean(axis=1) for name, end in ends.items()})
    return means.dropna(axis=1, how="all").join(families)


def compare(values: pd.DataFrame, reference: str) -> pd.DataFrame:
    """`mean_interval` of each row over seeds, and of its difference to the reference row at the seeds that both have.
    values: a line per (method, seed), a column per measure. Returns a line per (measure, method)."""
    lines = []
    for measure in values:
        for method, column in values[measure].groupby("method", sort=False):
            difference = (column.loc[method] - values[measure].get(reference, math.nan)).dropna()
            lines.append((measure, method, len(column), *mean_interval(column), *mean_interval(difference)[::2]))
    header = ["held-out", "method", "seeds", "mean", "std", "half", "difference", "difference_half"]
    return pd.DataFrame(lines, columns=header).set_index(["held-out", "method"])


def measured(results: dict, when: str) -> pd.DataFrame:
    """Held-out accuracy in percent "before" or "after": a line per (method, seed), a column per measure and family."""
    families = pd.DataFrame({key: run[when] for key, run in by_key(results).items()}).T
    return measures(families.rename_axis(["method", "seed"]))


def graduations(results: dict, method: str) -> pd.DataFrame:
    """Fig. 4, over all seeds of a method."""
    tables = [run["graduation"].items() for run in results["runs"] if run["method"] == method]
    lines = [(float(accuracy), *counts) for table in tables for accuracy, counts in table]
    return analysis.graduation(pd.DataFrame(lines, columns=["accuracy", "graduated", "admitted"]))


def markdown(table: pd.DataFrame) -> str:
    """An aligned Markdown table of the columns; floats with one decimal, NaN as a dash."""
    rows = table.itertuples(index=False)
    texts = [["–" if x != x else f"{x:.1f}" if isinstance(x, float) else str(x) for x in row] for row in rows]
    first, *rest = (max(map(len, column)) for column in zip(table.columns, *texts))
    form = " | ".join([f"| {{:<{first}}}", *(f"{{:>{width}}}" for width in rest)]) + " |"
    rule = "|".join([f"|{'-' * (first + 2)}", *(f"{'-' * (width + 1)}:" for width in rest)]) + "|"
    return "\n".join([form.format(*table.columns), rule, *(form.format(*row) for row in texts)])


def plus_minus(mean: float, half: float, sign: str = "") -> str:
    """Both with one decimal; a NaN stands for what is not known."""
    return "–" if mean != mean else f"{mean:{sign}.1f}" + ("" if half != half else f" ± {half:.1f}")


def verdict(difference: float, half: float) -> str:
    """What a paired difference says about the claim that it is positive (decision 2)."""
    if half != half:
        return "fewer than two seeds in common"
    return "agrees" if difference > half else "differs" if difference < -half else "within noise"


def rows_table(results: dict) -> str:
    """A line per row of the paper, the base student first; then, below a line, what is not in the paper."""
    base, after = measured(results, "before").groupby("seed").first(), measured(results, "after")
    compared, name = compare(after, REFERENCE), ROWS[REFERENCE].label
    header = ["row", "seeds", *MEASURES, f"hard: minus {name}", "paper 0.8B", "paper 2B"]
    means = [plus_minus(*mean_interval(base[measure])[::2]) for measure in MEASURES]
    lines, others = [("base", len(base), *means, "–", *PAPER["base"])], []
    for method in after.index.unique("method"):
        found = [compared.loc[measure, method] for measure in MEASURES]
        difference = "–" if method == REFERENCE else plus_minus(found[0].difference, found[0].difference_half, "+")
        cells = [plus_minus(cell["mean"], cell.half) for cell in found]
        label, paper = ROWS[method].label.split(" (")[0], PAPER.get(method, ("–", "–"))
        line = (label, len(after.loc[method]), *cells, difference, *paper)
        (lines if method in PAPER else others).append(line)
    if others:
        lines += [("**not in the paper**", *[""] * (len(header) - 1)), *others]
    return markdown(pd.DataFrame(lines, columns=header))


def claims_table(results: dict) -> str:
    """A line per claim of the paper about two rows that are both there."""
    after, lines = measured(results, "after"), []
    for first, second in CLAIMS:
        if {first, second} <= set(after.index.unique("method")):
            compared = compare(after, second)
            found = [compared.loc[measure, first] for measure in ("hard", "all")]
            pairs = [(cell.difference, cell.difference_half) for cell in found]
            paper = [f"{a - b:+.1f}" for a, b in zip(PAPER[first], PAPER[second])]
            ours = [text for pair in pairs for text in (plus_minus(*pair, "+"), verdict(*pair))]
            lines.append((f"{ROWS[first].label} > {ROWS[second].label}", *paper, *ours))
    header = ["claim", "paper 0.8B", "paper 2B", "hard: difference", "hard: says", "all: difference", "all: says"]
    return markdown(pd.DataFrame(lines, columns=header))


def graduation_table(results: dict) -> str:
    """Fig. 4 beside the paper's numbers."""
    lines = []
    for method, paper in PAPER_GRADUATION.items():
        for line in graduations(results, method).query("admitted > 0").itertuples():
            interval = f"[{line.low:.1f}, {line.high:.1f}]"
            found = (line.graduated, line.admitted, line.percent, interval, paper.get(line.Index, "–"))
            lines.append((ROWS[method].label, line.Index, *found))
    header = ["row", "at admission", "graduated", "admitted", "%", "95% interval", "paper, 2B (%)"]
    return markdown(pd.DataFrame(lines, columns=header))


def secondary(results: dict, curves: pd.DataFrame) -> pd.DataFrame:
    """Secondary measures in percent, a line per (method, seed); NaN where a row has none."""
    runs, lines = by_key(results), {}
    for key, steps in curves.groupby(level=["method", "seed"], sort=False):
        counts = {float(at): graduated for at, (graduated, _) in runs[key]["graduation"].items()}
        lines[key] = {
            "known, text": runs[key]["after"].get("text/known", math.nan),
            "known, frames": runs[key]["after"].get("frames/known", math.nan),
            "BCQ accuracy": 100 * steps.bcq_accuracy.mean(),
            "BCQ with signal": 100 * steps.bcq_active_share.mean(),
            "NCQ accuracy": 100 * steps.ncq_accuracy.mean(),
            "NCQ with signal": 100 * steps.ncq_active_share.mean(),
            "graduates from 0%": 100 * counts.get(0.0, 0) / max(1, sum(counts.values())) if counts else math.nan,
            "no box, at most": 100 * steps.no_answer_share[-30:].max(),
        }
    return pd.DataFrame(lines).T.rename_axis(["method", "seed"])


def secondary_table(results: dict, curves: pd.DataFrame) -> str:
    """A line per row: mean and interval over seeds; of the last column the largest value."""
    table, lines = secondary(results, curves), []
    for method in table.index.unique("method"):
        *means, largest = (table.loc[method][name] for name in table)
        cells = [plus_minus(*mean_interval(values.dropna())[::2]) for values in means]
        lines.append((ROWS[method].label.split(" (")[0], *cells, plus_minus(largest.max(), math.nan)))
    return markdown(pd.DataFrame(lines, columns=["row", *table]))


def other_claims(results: dict, curves: pd.DataFrame) -> str:
    """Claims that are not about the accuracy of two rows (bench/miniature/preregistration.md)."""
    zero = pd.Series({
        key: 100 * counts[0] / counts[1]
        for key, run in by_key(results).items()
        if (counts := run["graduation"].get("0.0")) and counts[1]
    }).rename_axis(["method", "seed"])  # fmt: skip
    methods, lines = set(zero.index.unique("method")), []
    if {"zppo", REFERENCE} <= methods:
        mean, _, half = mean_interval((zero["zppo"] - zero[REFERENCE]).dropna())
        says = plus_minus(mean, half, "+"), verdict(mean, half)
        lines.append((f"Admitted at 0%: graduation in percent, ZPPO minus {ROWS[REFERENCE].label}", "+24", *says))
    if "zppo" in methods:
        counts = graduations(results, "zppo").graduated
        share = 100 * counts.get("0%", 0) / max(1, counts["all"])
        lines.append(("ZPPO's graduates that entered at 0%: a minority", "13 to 21", f"{share:.1f}",
                      "agrees" if share < 50 else "differs"))  # fmt: skip
        bcq = 100 * curves.loc["zppo"].bcq_accuracy.mean()
        lines.append(("ZPPO's BCQ accuracy", "36 to 69", f"{bcq:.1f}", "agrees" if 36 <= bcq <= 69 else "differs"))
        before, after = (measured(results, when)["known"] for when in ("before", "after"))
        mean, _, half = mean_interval((after - before)["zppo"])
        lines.append(("ZPPO forgets nothing: known, after minus before", "above 0", plus_minus(mean, half, "+"),
                      "differs" if mean < -half else "agrees"))  # fmt: skip
    return markdown(pd.DataFrame(lines, columns=["claim", "paper, 2B", "here", "says"])) if lines else "None."


def report(results: dict, curves: pd.DataFrame) -> str:
    """The results as a Markdown page: rows, claims, secondary measures, graduation."""
    return f"""# Rows of the paper's tables on the embedded world

`{results["command"]}`

Held-out accuracy in percent after training, macro mean over families: mean ± 95% t-interval over seeds. Differences to
{ROWS[REFERENCE].label} are at equal seeds. Paper: macro averages over its 16 VLM benchmarks.

{rows_table(results)}

## The paper's claims

Agrees or differs: the 95% interval of the difference at equal seeds excludes 0. Each claim stands alone.

{claims_table(results)}

{other_claims(results, curves)}

## Secondary measures

In percent. With signal: groups with right and wrong rollouts, mean over steps. No box, at most: rollouts without an
answer, the largest share of any of the last 30 steps of any seed.

{secondary_table(results, curves)}

## Graduation by plain accuracy at admission (Fig. 4)

Admissions of all seeds together; Wilson's 95% interval.

{graduation_table(results)}
"""


# ---------------------------------------------------------------- figures


def draw_learnt(axes, results: dict, curves: pd.DataFrame, methods: Iterable[str]) -> None:
    """Hard questions that have graduated so far, over steps: every seed thin, the mean thick. Behind the line: the
    accuracy on held-out hard questions after training."""
    after = measured(results, "after")["hard"]
    for method in methods:
        label, colour, line, _ = ROWS[method]
        table = curves.loc[method].reset_index().pivot(index="step", columns="seed", values="graduated").cumsum()
        axes.plot(table, line, color=colour, linewidth=0.6, alpha=0.7)
        axes.plot(table.mean(axis=1), line, color=colour, linewidth=2)
        mean, _, half = mean_interval(after.loc[method])
        text = f"{label}\nheld-out hard:\n{plus_minus(mean, half)}%"
        axes.text(1.03 * table.index[-1], table.iloc[-1].mean(), text, color=colour, va="center")
    before = measured(results, "before")["hard"].mean()
    axes.set(xlabel="rollout step", ylabel="questions graduated so far", ylim=(0, None))
    axes.set(xlim=(0, 1.4 * table.index[-1]), xticks=[x for x in axes.get_xticks() if 0 <= x <= table.index[-1]])
    axes.set_title(f"Hard questions learnt (held out, before training: {before:.1f}%)", fontsize=8)


def draw_graduation(axes, results: dict, methods: Iterable[str]) -> None:
    """Fig. 4, ours with 95% intervals and counts, the paper's hollow."""
    tables = {method: graduations(results, method) for method in methods}
    places = list(PAPER_GRADUATION[REFERENCE])
    counts, handles = [], []
    for i, (method, table) in enumerate(tables.items()):
        label, colour, _, marker = ROWS[method]
        table = table.reindex(places)
        reach = table.percent - table.low, table.high - table.percent
        x = [place + 0.42 * i - 0.29 for place in range(len(places))]
        handles.append(axes.errorbar(x, table.percent, reach, fmt=marker, color=colour, ms=5, capsize=3, label=label))
        x = [place + 0.15 for place in x]
        paper = [PAPER_GRADUATION[method][place] for place in places]
        handles += axes.plot(x, paper, marker, color=colour, mfc="white", ms=5, label=f"{label} in the paper, 2B")
        counts.append([f"{g:.0f} of {n:.0f}" for g, n in table[["graduated", "admitted"]].fillna(0).to_numpy()])
    for place in range(1, len(places)):
        axes.axvline(place - 0.5, color="#CCCCCC", linewidth=0.6)
    axes.set_xticks(range(len(places)), ["\n".join(lines) for lines in zip(places, *counts)], fontsize=7)
    names = "\n".join(["", *(ROWS[method].label for method in methods)])
    axes.text(-0.57, -0.041, names, fontsize=7, ha="right", va="top", transform=axes.get_xaxis_transform())
    axes.set(xlabel="plain accuracy at admission", ylabel="graduated (% of admissions)", ylim=(0, 130))
    axes.set_yticks(range(0, 101, 20))
    axes.set_xlim(-0.5, len(places) - 0.5)
    axes.set_title("Hard questions in the buffer: share that is learnt", fontsize=8)
    axes.legend(handles=handles, loc="upper left", ncols=2, framealpha=1)


def draw_zppo_and_grpo(results: dict, curves: pd.DataFrame, path: Path) -> None:
    """What does ZPPO do that GRPO cannot? Hard questions over steps, and by accuracy at admission to the buffer."""
    methods = list(PAPER_GRADUATION)
    figure, (left, right) = panels(1, 2, width=3.8, height=3.2, width_ratios=[1, 1.6])
    draw_learnt(left, results, curves, methods)
    draw_graduation(right, results, methods)
    figure.savefig(path)


def draw_held_out(results: dict, path: Path) -> None:
    """Every row on hard and on known questions: seeds, mean and 95% interval."""
    before, after = (measured(results, when) for when in ("before", "after"))
    methods = list(after.index.unique("method"))
    outside = sum(method not in PAPER for method in methods)
    figure, grid = panels(1, 2, width=3.2, height=1.2 + 0.23 * len(methods), sharey=True)
    for axes, measure in zip(grid, ("hard", "known")):
        axes.axvline(before[measure].mean(), color="black", linestyle=":", linewidth=0.8, label="before training")
        for y, method in enumerate(methods):
            values, look = after.loc[method][measure], ROWS[method]
            mean, _, half = mean_interval(values)
            axes.plot(values, [y + 0.3] * len(values), "o", color=look.colour, mfc="none", ms=3)
            axes.errorbar(mean, y, xerr=half, fmt=look.marker, color=look.colour, ms=5, capsize=2.5, elinewidth=1.2)
        if outside:
            axes.axhline(len(methods) - outside - 0.35, color="black", linewidth=0.5)
        axes.set(xlabel=f"held-out accuracy, {measure} questions (%)", ylim=(len(methods) - 0.4, -0.6))
    grid[0].set_yticks(range(len(methods)), [ROWS[method].label.replace(" (", "\n(") for method in methods])
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside lower right", frameon=False)
    figure.savefig(path)


def draw_curves(curves: pd.DataFrame, path: Path) -> None:
    """Plain accuracy over steps, a panel per row: every seed thin, their mean thick, smoothed."""
    methods = list(curves.index.unique("method"))
    columns = min(len(methods), 4)
    size = {"width": 1.8, "height": 1.6, "sharex": True, "sharey": True}
    figure, grid = panels(-(-len(methods) // columns), columns, **size)
    for axes in grid[len(methods) :]:
        axes.set_axis_off()
    for axes in grid[len(methods) - columns : len(methods)]:  # the lowest panel of each column
        axes.tick_params(labelbottom=True)
    for axes, method in zip(grid, methods):
        table = 100 * curves.loc[method].reset_index().pivot(index="step", columns="seed", values="plain_accuracy")
        if table.isna().all(axis=None):
            axes.text(0.5, 0.5, "no student rollouts", ha="center", transform=axes.transAxes)
        smooth = table.rolling(**SMOOTH).mean()
        axes.plot(smooth, color=ROWS[method].colour, linewidth=0.6, alpha=0.7)
        axes.plot(smooth.mean(axis=1), color=ROWS[method].colour, linewidth=2)
        axes.set_title(ROWS[method].label.replace(" (", "\n("), fontsize=8)
    figure.supxlabel("rollout step", fontsize=8)
    figure.supylabel("plain accuracy (%),\nnew and replayed", fontsize=8)
    figure.savefig(path)


def main(argv: list[str] | None = None) -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw, allow_abbrev=False)
    parser.add_argument("--methods", nargs="+", default=list(ROWS), choices=list(ROWS), help="rows (default: all)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4], help="seeds (default: 0 to 4)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one core each (default 1)")
    parser.add_argument("--runs", type=Path, default=Path("runs/replicate"), help="where the runs go, one folder each")
    parser.add_argument("--out", type=Path, default=Path("bench/miniature"), help="where the results go")
    parser.add_argument("--figures_only", action="store_true", help="table and figures again from results.json")
    args, extra = parser.parse_known_args(argv)
    if clash := [word for word in extra if word.split("=")[0].lstrip("-") in OWN]:
        parser.error(f"{', '.join(clash)}: this script sets method, seed, output and resume of every run")
    args.out.mkdir(parents=True, exist_ok=True)
    if not args.figures_only:
        known, every = by_key(stored(args.out)), [(method, seed) for seed in args.seeds for method in args.methods]
        missing = [run for run in every if run not in known]
        print(f"{len(missing)} of {len(every)} runs are to be made; {args.out / 'results.json'} has the others")
        if missing:
            run_all(args.runs, missing, extra, args.jobs)
            write_results(*gather(args.runs), args.out)
    results, curves = read_results(args.out)
    page = report(results, curves)
    (args.out / "table.md").write_text(page, encoding="utf-8")
    print(page)
    if PAPER_GRADUATION.keys() <= {run["method"] for run in results["runs"]}:
        draw_zppo_and_grpo(results, curves, args.out / "zppo_and_grpo.png")
    draw_held_out(results, args.out / "heldout.png")
    draw_curves(curves, args.out / "curves.png")


if __name__ == "__main__":
    main()
