"""Rows of the paper's tables x seeds on the embedded world: one results file, one table, three figures.

    python bench/replicate.py --jobs 2                                    every row, 5 seeds
    python bench/replicate.py --methods zppo grpo_replay --seeds 0        one pair, one seed
    python bench/replicate.py --figures_only                              table and figures from results.json

Options it does not know go to every run of train.py. Stopped at any time, the same command goes on where it was.

Decisions:
1. All runs share every argument but method, seed and output; runs that do not are refused.
2. A claim of the paper "agrees" if the 95% interval of the paired difference over seeds is above 0, "differs" if it is
   below, and is "within noise" otherwise. Each claim stands alone: no correction for their number.
3. Claims are judged on the held-out questions that the base student gets wrong ("hard") and on all of them ("all");
   the paper's numbers beside them are macro averages over its 16 VLM benchmarks.
"""

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from engine.run import read_records  # noqa: E402
from extras import analysis  # noqa: E402
from extras.analysis import ROWS, markdown, plus_minus  # noqa: E402

REFERENCE = "grpo_replay"
PAPER = {  # macro averages over 16 VLM benchmarks at 0.8B and 2B: Tables 1-3, 10-13, 19-21
    "base": (41.0, 56.8), "off_distill": (41.0, 56.9), "off_distill_replay": (41.5, 57.3), "on_distill": (41.9, 57.7),
    "on_distill_replay": (42.3, 58.0), "grpo": (43.8, 58.7), "grpo_replay": (45.4, 59.2), "grpo_both": (45.2, 58.9),
    "hint": (47.2, 60.4), "prefix": (45.5, 59.5), "grpo_replay_bcq": (48.6, 60.8), "grpo_replay_ncq": (46.2, 60.1),
    "zppo": (50.3, 62.0),
}  # fmt: skip
PAPER_GRADUATION = {  # Fig. 4 (2B): percent of admissions that graduated, by plain accuracy at admission
    "zppo": {0.0: 28, 0.125: 54, 0.25: 76, 0.375: 93, "all": 26.6},
    "grpo_replay": {0.0: 4, 0.125: 14, 0.25: 49, 0.375: 82, "all": 14.3},
}
CLAIMS = [("zppo", other) for other in PAPER if other not in ("zppo", "grpo", "base")]
CLAIMS += [("grpo_replay", "grpo"), ("grpo_replay", "grpo_both")]
MEASURES = ("hard", "known", "all")
OWN = ("method", "seed", "output", "resume")  # arguments that may differ between runs

# ---------------------------------------------------------------- running


def is_finished(run: Path) -> bool:
    return (run / "eval_after.jsonl").exists() and (run / "model").is_dir()


def train_command(run: Path, method: str, seed: int, extra: list[str]) -> list[str]:
    """train.py for one run, going on from its checkpoint if it was interrupted."""
    own = ["--method", method, "--seed", str(seed), "--output", str(run)]
    resume = ["--resume"] if (run / "metrics.jsonl").exists() else []
    return [sys.executable, str(ROOT / "train.py"), *extra, *own, *resume]


def train(command: list[str], log: Path) -> None:
    """One run on one core; its screen goes to a file beside its folder."""
    with open(log, "a", encoding="utf-8") as file:
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        if subprocess.run(command, env=env, stdout=file, stderr=subprocess.STDOUT).returncode:
            raise SystemExit(f"{shlex.join(command)} failed: see {log}")


def run_all(folder: Path, methods: list[str], seeds: list[int], extra: list[str], jobs: int) -> None:
    """All missing runs, `jobs` at a time. A folder keeps to the options it was started with."""
    options = folder / "options.json"
    if any(folder.glob("*/args.json")) and options.exists() and (old := json.loads(options.read_text())) != extra:
        raise SystemExit(f"{folder} holds runs with the options {old}, not {extra}: choose another --runs")
    folder.mkdir(parents=True, exist_ok=True)
    options.write_text(json.dumps(extra))
    runs = [(folder / f"{method}-{seed}", method, seed) for seed in seeds for method in methods]
    todo = [item for item in runs if not is_finished(item[0])]
    with ThreadPoolExecutor(jobs) as pool, tqdm(total=len(runs), initial=len(runs) - len(todo), unit="run") as bar:
        futures = [pool.submit(train, train_command(*item, extra), Path(f"{item[0]}.log")) for item in todo]
        while not all(future.done() for future in futures):
            time.sleep(1)
            if any(f.done() and not f.cancelled() and f.exception() for f in futures):  # those under way may finish
                pool.shutdown(wait=False, cancel_futures=True)
            bar.n = sum(is_finished(run) for run, *_ in runs)
            files = [run / "metrics.jsonl" for run, *_ in runs]
            steps = sum(file.read_bytes().count(b"\n") for file in files if file.exists())
            bar.set_postfix_str(f"{steps} steps in all")
    for future in futures:
        if not future.cancelled():
            future.result()


# ---------------------------------------------------------------- results


def gather(folder: Path) -> dict:
    """Everything that the table and the figures need, from all finished runs in a folder."""
    table = analysis.by_method(analysis.read_run(path) for path in sorted(folder.iterdir()) if is_finished(path))
    runs = [run for seeds in table.values() for run in seeds.values()]
    if not runs:
        raise SystemExit(f"{folder} holds no finished run")
    shared = [{name: value for name, value in run.args.items() if name not in OWN} for run in runs]
    for run, arguments in zip(runs, shared):
        if arguments != shared[0]:
            names = [k for k in {**arguments, **shared[0]} if arguments.get(k) != shared[0].get(k)]
            raise SystemExit(f"{run.path} and {runs[0].path} differ in {', '.join(names)}: not comparable")
    seeds = sorted({seed for seeds in table.values() for seed in seeds})
    extra = json.loads((folder / "options.json").read_text(encoding="utf-8"))
    command = ["python", "bench/replicate.py", "--methods", *table, "--seeds", *map(str, seeds), *extra]
    packages = ("torch", "transformers", "accelerate", "numpy")
    return {
        "command": shlex.join(command),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "arguments": json.loads(json.dumps(shared[0]).replace(f"{ROOT}/", "")),
        "runs": [
            {
                "method": run.args["method"],
                "seed": run.args["seed"],
                "minutes": round(sum(line["total"] for line in read_records(run.path / "times.jsonl")) / 60, 1),
                "before": {family: round(value, 2) for family, value in run.before.items()},
                "after": {family: round(value, 2) for family, value in run.after.items()},
                "graduation": {str(key): counts for key, counts in run.buffer.graduation_by_admission().items()},
                "plain_accuracy": [x and round(x, 4) for x in (line["plain_accuracy"] for line in run.metrics)],
            }
            for run in runs
        ],
    }


def graduations(results: dict, method: str) -> dict[float | str, tuple[int, int, float]]:
    """Fig. 4, over all seeds of a method."""
    tables = [run["graduation"] for run in results["runs"] if run["method"] == method]
    return analysis.graduation({float(key): counts for key, counts in table.items()} for table in tables)


def scores_of(results: dict) -> dict[str, dict[int, tuple[dict, dict]]]:
    runs = [(run["method"], run["seed"], (run["before"], run["after"])) for run in results["runs"]]
    return {method: {seed: pair for name, seed, pair in runs if name == method} for method, _, _ in runs}


def verdict(difference: float | None, half: float | None) -> str:
    """What a paired difference says about the claim that it is positive (decision 2)."""
    if half is None:
        return "fewer than two seeds in common"
    return "agrees" if difference > half else "differs" if difference < -half else "within noise"


def report(results: dict) -> str:
    """The results as a Markdown page: rows, claims, graduation."""
    scores = scores_of(results)
    against = {
        other: {(c.method, c.measure): c for c in analysis.compare(scores, other)}
        for other in dict.fromkeys([REFERENCE, *(second for _, second in CLAIMS)])
    }
    base = {seed: analysis.measures(before) for seeds in scores.values() for seed, (before, _) in seeds.items()}
    means = [analysis.mean_interval([x[name] for x in base.values()]) for name in MEASURES]
    rows = [("base", len(base), *(plus_minus(mean, half) for mean, _, half in means), None, *PAPER["base"])]
    for method, seeds in scores.items():
        found = [against[REFERENCE][method, name] for name in MEASURES]
        difference = plus_minus(found[0].difference, found[0].difference_half, "+") if method != REFERENCE else None
        cells = [plus_minus(c.mean, c.half) for c in found]
        rows.append((ROWS[method].label, len(seeds), *cells, difference, *PAPER.get(method, (None, None))))

    claims = []
    for first, second in (claim for claim in CLAIMS if {*claim} <= scores.keys()):
        paper = [f"{a - b:+.1f}" for a, b in zip(PAPER[first], PAPER[second])]
        found = [against[second][first, name] for name in ("hard", "all")]
        pairs = [(c.difference, c.difference_half) for c in found]
        ours = [cell for pair in pairs for cell in (plus_minus(*pair, "+"), verdict(*pair))]
        claims.append((f"{ROWS[first].label} > {ROWS[second].label}", *paper, *ours))

    shares = []
    for method in PAPER_GRADUATION:
        for key, (graduated, admitted, percent) in graduations(results, method).items():
            label = key if key == "all" else f"{100 * key:g}%"
            shares.append((ROWS[method].label, label, graduated, admitted, percent, PAPER_GRADUATION[method].get(key)))
    name = ROWS[REFERENCE].label
    header = ["row", "seeds", *MEASURES, f"hard: minus {name}", "paper 0.8B", "paper 2B"]
    claim_header = ["claim", "paper 0.8B", "paper 2B", "hard: difference", "says", "all: difference", "says"]
    share_header = ["row", "at admission", "graduated", "admitted", "%", "paper, 2B (%)"]
    return f"""# Rows of the paper's tables on the embedded world

`{results["command"]}`

Held-out accuracy in percent after training, macro mean over families: mean ± 95% t-interval over seeds. Differences to
{name} are at equal seeds. Paper: macro averages over its 16 VLM benchmarks.

{markdown(header, rows)}

## The paper's claims

Agrees or differs: the 95% interval of the difference at equal seeds excludes 0. Each claim stands alone.

{markdown(claim_header, claims)}

## Graduation by plain accuracy at admission (Fig. 4)

{markdown(share_header, shares)}
"""


def draw(results: dict, out: Path) -> None:
    """heldout.png, curves.png and graduation.png."""
    scores = scores_of(results)
    compared = analysis.compare(scores, REFERENCE)
    figure, grid = analysis.panels(1, 2, width=3.2, height=1.2 + 0.23 * len(scores), sharey=True)
    for axes, measure in zip(grid, ("hard", "known")):
        base = [analysis.measures(before)[measure] for seeds in scores.values() for before, _ in seeds.values()]
        axes.axvline(sum(base) / len(base), color="black", linestyle=":", linewidth=0.8, label="before training")
        for y, c in enumerate(c for c in compared if c.measure == measure):
            row, seeds = ROWS[c.method], list(c.values.values())
            axes.plot(seeds, [y + 0.3] * len(seeds), "o", color=row.colour, mfc="none", ms=3)
            axes.errorbar(c.mean, y, xerr=c.half, fmt=row.marker, color=row.colour, ms=5, capsize=2.5, elinewidth=1.2)
        axes.set(xlabel=f"held-out accuracy, {measure} questions (%)", ylim=(len(scores) - 0.4, -0.6))
    grid[0].set_yticks(range(len(scores)), [ROWS[method].label for method in scores])
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside lower right")
    figure.savefig(out / "heldout.png")

    own = [method for method in scores if method.startswith("grpo") or method == "zppo"]
    rest = [method for method in scores if method not in own]
    sides = [own, [*rest, *(method for method in (REFERENCE, "zppo") if method in scores)]][: 2 if rest else 1]
    figure, grid = analysis.panels(1, len(sides), width=3.4, height=3.2, sharey=True)
    for axes, methods in zip(grid, sides):
        for method in methods:
            curves = [run["plain_accuracy"] for run in results["runs"] if run["method"] == method]
            mean = analysis.mean_curve([[{"y": y} for y in curve] for curve in curves], ["y"], 100)
            if any(value is not None for value in mean):
                analysis.draw_curve(axes, method, mean)
        axes.set(xlabel="rollout step")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
    grid[0].set_ylabel("plain accuracy, new + replayed (%)")
    figure.savefig(out / "curves.png")

    tables = {method: graduations(results, method) for method in PAPER_GRADUATION}
    tables = {method: {key: cells[2] for key, cells in table.items()} for method, table in tables.items() if table}
    if tables:
        figure, grid = analysis.panels(1, 2, width=3.2, height=2.6, sharey=True)
        for axes, shares, where in zip(grid, (tables, PAPER_GRADUATION), ("embedded world", "paper, 2B")):
            bars = {f"{ROWS[method].label} (all: {table['all']:.0f}%)":
                    ({x: y for x, y in table.items() if x != "all"}, ROWS[method].colour, "//" * (method == "zppo"))
                    for method, table in shares.items()}  # fmt: skip
            analysis.draw_bars(axes, bars)
            axes.legend(title=where, loc="upper left")
            axes.set(xlabel="plain accuracy at admission (%)")
        grid[0].set(ylabel="graduated (% of admissions)", ylim=(0, 119))
        figure.savefig(out / "graduation.png")


def main(argv: list[str] | None = None) -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw, allow_abbrev=False)
    parser.add_argument("--methods", nargs="+", default=list(ROWS), choices=list(ROWS), help="rows (default: all)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4], help="seeds (default: 0 to 4)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one core each (default 1)")
    parser.add_argument("--runs", type=Path, default=Path("runs/replicate"), help="where the runs go, one folder each")
    parser.add_argument("--out", type=Path, default=Path("bench/replication"), help="where the results go")
    parser.add_argument("--figures_only", action="store_true", help="table and figures again from results.json")
    args, extra = parser.parse_known_args(argv)
    if clash := [word for word in extra if word.split("=")[0].lstrip("-") in OWN]:
        parser.error(f"{', '.join(clash)}: this script sets method, seed, output and resume of every run")
    args.out.mkdir(parents=True, exist_ok=True)
    if not args.figures_only:
        run_all(args.runs, args.methods, args.seeds, extra, args.jobs)
        head = gather(args.runs)
        runs = ",\n".join(json.dumps(run) for run in head.pop("runs"))  # a line per run
        text = f'{json.dumps(head, indent=1)[:-2]},\n "runs": [\n{runs}\n]\n}}\n'
        (args.out / "results.json").write_text(text, encoding="utf-8")
    results = json.loads((args.out / "results.json").read_text(encoding="utf-8"))
    (args.out / "table.md").write_text(report(results), encoding="utf-8")
    print(report(results))
    draw(results, args.out)


if __name__ == "__main__":
    main()
