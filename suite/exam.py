"""What evaluate.py asks of the suite: the benchmarks of a command, their questions, their scores.

Nothing else imports this file, and evaluate.py does so only where a benchmark is asked for:
training reads none of the suite.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from importlib.util import find_spec

import pandas as pd
from tqdm import tqdm

from engine.questions import DataError
from engine.screen import print_main
from suite.compare import compare, paper, report, summarise  # noqa: F401
from suite.entries import BENCHMARKS, BY_NAME, Benchmark, find_all
from suite.rows import load
from suite.scorers import JUDGES, read_prompts, score


class Exam:
    """The benchmarks that a command asks for. args: evaluate.Arguments.

    Raises DataError, which names all missing sets at once, and ValueError.
    """

    def __init__(self, args):
        if args.reward:
            raise DataError("--reward is for own data: a benchmark has its scorer")
        self.prompts = read_prompts(args.judge_prompts)
        self.theirs = {args.paper: paper(args.paper)} if args.paper else {}
        self.questions = {}
        self.unreadable = {}
        entries = chosen(args)
        folders = find_all(entries, args.root)
        bar = tqdm(entries, "loading", leave=False, disable=None)
        for entry, folder in zip(bar, folders, strict=True):
            items, problems = load(entry, folder, self.prompts, args.frames, args.limit)
            self.questions[entry.name] = items
            if problems:
                self.unreadable[entry.name] = len(problems)
            for problem in problems:
                print_main(f"{problem}: this row is left out")

    def score(self, asked: Sequence[tuple], ask: Callable | None) -> list[dict]:
        """What a record says of each (item, reply) beside them. ask: see scorers.score."""
        pairs = [(item, reply.text) for item, reply in asked]
        scores = score(pairs, ask, self.prompts)
        return [
            vars(scored) | dict(scored_with=item.scored_with, groups=item.groups)
            for (item, _), scored in zip(asked, scores, strict=True)
        ]

    def report(self, records: Sequence[dict]) -> tuple[dict, str]:
        """(every number, the table)."""
        numbers = summarise(records)
        for name, n in self.unreadable.items():
            numbers[name]["unreadable"] = n
        return numbers, report(numbers, self.theirs)


def chosen(args) -> list[Benchmark]:
    """The benchmarks of --suite and --benchmarks, with the sources of --ids. Raises DataError."""
    ids = dict(pair.partition("=")[::2] for pair in args.ids)
    if "" in ids.values():
        raise DataError(f"--ids {' '.join(args.ids)}: expected benchmark=owner/name")
    names = [one.name for one in BENCHMARKS if args.suite in (one.family, "all")]
    names += args.benchmarks.replace(",", " ").split()
    unknown = sorted(set(names).union(ids).difference(BY_NAME))
    if unknown:
        there = ", ".join(BY_NAME)
        raise DataError(f"no benchmark is called {', '.join(unknown)}; there are {there}")
    entries = [BY_NAME[name] for name in dict.fromkeys(names)]
    judged = [entry.name for entry in entries if entry.scorer in JUDGES]
    if judged and not args.judge:
        fix = "give --judge, or leave them out"
        raise DataError(f"{', '.join(judged)}: scored by a judge alone; {fix}")
    for entry in entries:
        missing = [name for module, name in entry.packages.items() if not find_spec(module)]
        if missing:
            # Before anything is generated: the responses could not be scored.
            fix = f"pip install {' '.join(missing)}"
            raise DataError(f"{entry.name}: the scorer needs more packages: {fix}")
    return [
        replace(entry, sources=[ids[entry.name]]) if entry.name in ids else entry
        for entry in entries
    ]


def listing() -> str:
    """The benchmarks as a table."""
    columns = "name family sources configs splits size terms scorer".split()
    table = pd.DataFrame(map(asdict, BENCHMARKS))
    return table[columns].to_string(index=False, max_colwidth=48)
