"""Rows of the paper's tables x seeds on the embedded world: results, tables, pictures, curves.

    python bench/replicate.py --jobs 2                                every row, 5 seeds
    python bench/replicate.py --methods zppo grpo_replay --seeds 0    one pair, one seed
    python bench/replicate.py --figures_only      tables and pictures again from what is on disk
    python bench/replicate.py --rare --steps 180  hard questions made rare: bench/rare.py

Options that this script does not know go to every run of train.py. Stopped at any time, the same
command goes on where it was. bench/miniature/preregistration.md says what was fixed before the
runs.

Decisions:
1. All runs share every argument but method, seed and output. Runs that do not are refused.
"""

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import pandas as pd
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench import pictures  # noqa: E402
from bench.tables import PAPER_GRADUATION, by_key, report  # noqa: E402
from engine.output import read_records  # noqa: E402
from extras import analysis  # noqa: E402
from extras.analysis import ROWS, Runs  # noqa: E402

# Metrics of each step that are kept of every run.
CURVES = (
    "step plain_accuracy hard_share bcq_accuracy ncq_accuracy bcq_active_share ncq_active_share "
    "active_share no_answer_share entropy graduated"
).split()
# Arguments that may differ between runs.
OWN = ("method", "seed", "output", "resume")
PACKAGES = ("torch", "transformers", "accelerate", "numpy")


def main(argv: list[str] | None = None) -> None:
    args, extra = read_options(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    if not args.figures_only:
        known = by_key(stored(args.out))
        every = [(method, seed) for seed in args.seeds for method in args.methods]
        missing = [run for run in every if run not in known]
        file = args.out / "results.json"
        print(f"{len(missing)} of {len(every)} runs are to be made; {file} has the others")
        if missing:
            run_all(args.runs, missing, extra, args.jobs)
            results, metrics = gather(args.runs)
            write_results(results, metrics, args.out)
    results, curves = read_results(args.out)
    page = report(results, curves)
    (args.out / "table.md").write_text(page, encoding="utf-8")
    print(page)
    there = {run["method"] for run in results["runs"]}
    if PAPER_GRADUATION.keys() <= there:
        pictures.draw_zppo_and_grpo(results, curves, args.out / "zppo_and_grpo.png")
    pictures.draw_held_out(results, args.out / "heldout.png")
    pictures.draw_curves(curves, args.out / "curves.png")


def read_options(argv: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """(this script's options, those of train.py)."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw, allow_abbrev=False)
    rows = list(ROWS)
    parser.add_argument(
        "--methods",
        nargs="+",
        default=rows,
        choices=rows,
        help="rows (default: all)",
    )
    parser.add_argument(
        "--seeds",
        nargs="+",
        type=int,
        default=[0, 1, 2, 3, 4],
        help="seeds (default: 0 to 4)",
    )
    parser.add_argument(
        "--jobs", type=int, default=1, help="runs at a time, one core each (default 1)"
    )
    parser.add_argument(
        "--runs",
        type=Path,
        default=Path("runs/replicate"),
        help="where the runs go, one folder each",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("bench/miniature"),
        help="where the results go",
    )
    parser.add_argument(
        "--figures_only",
        action="store_true",
        help="tables and pictures again from results.json",
    )
    args, extra = parser.parse_known_args(argv)
    for word in extra:
        if word.split("=")[0].lstrip("-") in OWN:
            parser.error(f"{word}: this script sets method, seed, output and resume of every run")
    return args, extra


# ---------------------------------------------------------------- running


def run_all(folder: Path, runs: list[tuple[str, int]], extra: list[str], jobs: int) -> None:
    """All missing runs (method, seed), `jobs` at a time."""
    keep_options(folder, extra)
    folders = [folder / f"{method}-{seed}" for method, seed in runs]
    commands = {}
    for at, (method, seed) in zip(folders, runs):
        if not is_finished(at):
            commands[at] = train_command(at, method, seed, extra)
    bar = tqdm(total=len(runs), initial=len(runs) - len(commands), unit="run")
    with ThreadPoolExecutor(jobs) as pool, bar:
        futures = []
        for at, command in commands.items():
            futures.append(pool.submit(train, command, Path(f"{at}.log")))
        while not all(future.done() for future in futures):
            time.sleep(1)
            # Those under way may finish.
            if any(map(has_failed, futures)):
                pool.shutdown(wait=False, cancel_futures=True)
            bar.n = sum(map(is_finished, folders))
            bar.set_postfix_str(f"{sum(map(steps_done, folders))} steps in all")
    for future in futures:
        if not future.cancelled():
            future.result()


def keep_options(folder: Path, extra: list[str]) -> None:
    """A folder keeps to the options that its runs were started with."""
    file = folder / "options.json"
    if file.exists() and any(folder.glob("*/args.json")):
        old = json.loads(file.read_text())
        if old != extra:
            held = f"{folder} holds runs with the options {old}, not {extra}"
            raise SystemExit(f"{held}: choose another --runs")
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(extra))


def is_finished(run: Path) -> bool:
    return (run / "eval_after.jsonl").exists() and (run / "model").is_dir()


def has_failed(future: Future) -> bool:
    return future.done() and not future.cancelled() and future.exception() is not None


def steps_done(run: Path) -> int:
    file = run / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def train_command(run: Path, method: str, seed: int, extra: list[str]) -> list[str]:
    """train.py for one run, going on from its checkpoint if it was interrupted."""
    script = ROOT / ("bench/rare.py" if "--rare" in extra else "train.py")
    command = [sys.executable, str(script)]
    command += [word for word in extra if word != "--rare"]
    command += ["--method", method, "--seed", str(seed), "--output", str(run)]
    if (run / "metrics.jsonl").exists():
        command.append("--resume")
    return command


def train(command: list[str], log: Path) -> None:
    """One run on one core; its screen goes to a file beside its folder."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    with open(log, "a", encoding="utf-8") as file:
        done = subprocess.run(command, env=env, stdout=file, stderr=subprocess.STDOUT)
    if done.returncode:
        raise SystemExit(f"{shlex.join(command)} failed: see {log}")


# ---------------------------------------------------------------- results on disk


def gather(folder: Path) -> tuple[dict, pd.DataFrame]:
    """All finished runs in a folder: what results.json holds, and the metrics of their steps."""
    finished = [path for path in sorted(folder.iterdir()) if is_finished(path)]
    if not finished:
        raise SystemExit(f"{folder} holds no finished run")
    runs = analysis.read_runs(finished)
    shared = shared_arguments(runs)
    extra = json.loads((folder / "options.json").read_text(encoding="utf-8"))
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        versions[name] = version(name)
    # Paths of this machine say nothing elsewhere.
    arguments = json.loads(json.dumps(shared).replace(f"{ROOT}/", ""))
    results = {
        "command": shlex.join(["python", "bench/replicate.py", *extra]),
        "versions": versions,
        "arguments": arguments,
        "runs": [line_of(runs, key) for key in runs.paths],
    }
    return results, runs.metrics


def shared_arguments(runs: Runs) -> dict:
    """The arguments of all runs. Raises SystemExit where two differ (decision 1)."""
    shared = {}
    for path in runs.paths.values():
        args = json.loads((path / "args.json").read_text(encoding="utf-8"))
        shared[path] = {name: value for name, value in args.items() if name not in OWN}
    first, *others = shared
    for path in others:
        names = differing(shared[path], shared[first])
        if names:
            raise SystemExit(f"{path} and {first} differ in {', '.join(names)}: not comparable")
    return shared[first]


def differing(one: dict, other: dict) -> list[str]:
    every = one | other
    return [name for name in every if one.get(name) != other.get(name)]


def line_of(runs: Runs, key: tuple[str, int]) -> dict:
    """What results.json says of a run."""
    method, seed = key
    times = read_records(runs.paths[key] / "times.jsonl")
    families = runs.held_out.round(2).loc[key]
    graduation = {}
    if key in runs.admissions.index:
        counts = runs.admissions.loc[[key]].groupby("accuracy")[["graduated", "admitted"]].sum()
        graduation = {str(accuracy): pair.tolist() for accuracy, pair in counts.iterrows()}
    return {
        "method": method,
        "seed": seed,
        "minutes": round(sum(line["total"] for line in times) / 60, 1),
        "before": families.before.to_dict(),
        "after": families.after.to_dict(),
        "graduation": graduation,
    }


def stored(out: Path) -> dict:
    """results.json. Its runs are not run again, and stay beside what is new. Without the file: no
    runs."""
    file = out / "results.json"
    if not file.exists():
        return {"arguments": {}, "runs": []}
    return json.loads(file.read_text(encoding="utf-8"))


def write_results(results: dict, metrics: pd.DataFrame, out: Path) -> None:
    """results.json with a line per run, and curves/METHOD-SEED.csv with a line per step.

    Other runs that are there already stay, if their arguments were the same.
    """
    (out / "curves").mkdir(parents=True, exist_ok=True)
    before = stored(out)
    old = before["arguments"]
    new = results["arguments"]
    names = [name for name in old.keys() & new.keys() if old[name] != new[name]]
    if names:
        raise SystemExit(f"{out} holds runs with other {', '.join(names)}: choose another --out")
    lines = by_key(before) | by_key(results)
    runs = ",\n".join(json.dumps(lines[key]) for key in sorted(lines))
    head = json.dumps({key: value for key, value in results.items() if key != "runs"}, indent=1)
    # The runs take the place of the closing brace.
    text = head.removesuffix("\n}") + f',\n "runs": [\n{runs}\n]\n}}\n'
    (out / "results.json").write_text(text, encoding="utf-8")
    for (method, seed), steps in metrics.groupby(level=["method", "seed"], sort=False):
        file = out / "curves" / f"{method}-{seed}.csv"
        columns = [name for name in CURVES if name in steps]
        steps[columns].to_csv(file, index=False, float_format="%.4g")


def read_results(out: Path) -> tuple[dict, pd.DataFrame]:
    """What `write_results` wrote, runs in the order of ROWS."""
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    order = list(ROWS)
    results["runs"].sort(key=lambda run: (order.index(run["method"]), run["seed"]))
    curves = {}
    for method, seed in by_key(results):
        steps = pd.read_csv(out / "curves" / f"{method}-{seed}.csv")
        curves[method, seed] = steps.reindex(columns=CURVES)
    return results, pd.concat(curves, names=["method", "seed", ""])


if __name__ == "__main__":
    main()
