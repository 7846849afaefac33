"""The update of the embedded world beside an older commit's: its seconds step by step, and equal results.

    python -m bench.world_update --old d29eb42                             ten steps, three rounds
    python -m bench.world_update --old d29eb42 --rounds 1 --steps 2        quick

1. The old commit gets a git worktree in a temporary folder. Both versions' train.py run in turn, old new new old ...,
   on one thread, without evaluation, with the same batch sizes. Seconds are `update` of times.jsonl.
2. These are CPU seconds of the process, so that what else the machine does hardly counts; `--wall`: wall-clock.
3. Compared are updates on the same rollouts. Commits before f7e094e break ties between equally hard questions by a
   shuffle, today's by a key for each question: in the old tree that one line is replaced (TIES), else the two would
   reformulate other questions.
4. Metrics agree if each is within 1e-3 of the other's, relative, or 1e-5. They are bound to part at some step, when
   rounding first tips a sampled token; only the steps before count, in all tables.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from engine.output import read_records

ROOT = Path(__file__).resolve().parent.parent
TIES = (
    '    step.rng("ties").shuffle(hard)\n    hard.sort(key=lambda group: group.accuracy)\n',
    '    hard.sort(key=lambda group: (group.accuracy, seed_of(*step.key, "tie", group.question.uid)))\n',
)
CPU_CLOCK = """import runpy, sys, time
time.perf_counter = time.process_time
sys.path.insert(0, "")
runpy.run_path("train.py", run_name="__main__")"""


def old_tree(commit: str, folder: Path) -> None:
    """A worktree of the commit, its ties broken as today (3.)."""
    subprocess.run(["git", "worktree", "add", "--quiet", "--detach", folder, commit], cwd=ROOT, check=True)
    code = (folder / "zppo.py").read_text(encoding="utf-8")
    (folder / "zppo.py").write_text(code.replace(*TIES), encoding="utf-8")


def train(tree: Path, output: Path, args) -> list[dict]:
    """One run of that tree's train.py: a record for each step, metrics and times together."""
    start = ["train.py"] if args.wall else ["-c", CPU_CLOCK]
    options = ["--steps", args.steps, "--seed", args.seed, "--eval_questions", 0, "--output", output]
    options += ["--new_per_step", args.new_per_step, "--rollout_rows", 128]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    command = [sys.executable, *start, *map(str, options)]
    done = subprocess.run(command, cwd=tree, env=env, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{tree}: train.py failed\n{done.stdout}{done.stderr}")
    logs = [read_records(output / name) for name in ("metrics.jsonl", "times.jsonl")]
    return [{"metrics": metrics, **times} for metrics, times in zip(*logs, strict=True)]


def agree(mine: float | None, theirs: float | None) -> bool:
    if mine is None or theirs is None:
        return mine is theirs
    return math.isclose(mine, theirs, rel_tol=1e-3, abs_tol=1e-5)


def differences(mine: dict, theirs: dict) -> list[str]:
    """Metrics that both have and that do not agree (4.)."""
    return sorted(name for name in mine.keys() & theirs.keys() if not agree(mine[name], theirs[name]))


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def report(old: list[list[dict]], new: list[list[dict]]) -> bool:
    """Prints both tables. old, new: the runs of each round. Returns whether the metrics agree in the first step."""
    names = [differences(a["metrics"], b["metrics"]) for a, b in zip(old[0], new[0], strict=True)]
    alike = next((i for i, found in enumerate(names) if found), len(names))
    print(f"metrics agree in {alike} of {len(names)} steps", end="")
    print(f"; in step {alike + 1} these differ: {', '.join(names[alike])}" if alike < len(names) else "")
    print(f"\n| step | active | padding: old | new | old s | new s | new / old |\n{'|---' * 7}|")
    for i in range(alike):
        olds, news = ([run[i]["update"] for run in runs] for runs in (old, new))
        cells = [f"{new[0][i]['metrics']['active_share']:.0%}"]
        cells += [f"{runs[0][i]['padding_share']:.2f}" for runs in (old, new)]
        cells += [f"{statistics.median(x):.2f}" for x in (olds, news)]
        print(f"| {i + 1} | {' | '.join(cells)} | {spread([b / a for a, b in zip(olds, news)])} |")
    if alike:
        print(f"\n| phase, seconds of all these steps | old | new | new / old, by round |\n{'|---' * 4}|")
        for phase in ("update", "rollout", "reformulate", "teacher", "compress", "total"):
            sums = [[sum(step.get(phase, 0.0) for step in run[:alike]) for run in runs] for runs in (old, new)]
            ratios = [b / a for a, b in zip(*sums)]
            print(f"| {phase} | {' | '.join(f'{statistics.median(x):.1f}' for x in sums)} | {spread(ratios)} |")
    return alike > 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--old", required=True, help="commit to compare with")
    parser.add_argument("--steps", type=int, default=10, help="of each run (default 10)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each version (default 3)")
    parser.add_argument("--seed", type=int, default=0, help="of the runs (default 0)")
    parser.add_argument("--new_per_step", type=int, default=64, help="new questions of a step (default 64)")
    parser.add_argument("--wall", action="store_true", help="wall-clock seconds instead of CPU seconds")
    parser.add_argument("--json", type=Path, help="a file that gets every record")
    args = parser.parse_args()
    runs: dict[str, list[list[dict]]] = {"old": [], "new": []}
    with tempfile.TemporaryDirectory() as folder:
        trees = {"old": Path(folder, "tree"), "new": ROOT}
        old_tree(args.old, trees["old"])
        try:
            for i in range(args.rounds):
                for name in ("old", "new") if i % 2 == 0 else ("new", "old"):
                    records = train(trees[name], Path(folder, f"{name}-{i}"), args)
                    runs[name].append(records)
                    seconds = sum(step["update"] for step in records)
                    print(f"round {i + 1}, {name}: {seconds:.1f} s", file=sys.stderr)
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", trees["old"]], cwd=ROOT, check=True)
    if args.json:
        args.json.write_text(json.dumps(runs), encoding="utf-8")
    if not report(runs["old"], runs["new"]):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
