"""The 31 benchmarks of the paper, read from benchmarks.yaml."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

FAMILIES = ("vlm", "llm", "video")


@dataclass(frozen=True)
class Benchmark:
    """Where a benchmark is, what its columns say, and who scores it. Every column is a name in its rows."""

    name: str  # on the command line and in the records
    family: str
    paper: str  # in the paper's tables
    sources: Sequence[str]  # hub ids of the same set: the first that there is
    size: int  # questions in the published set
    scorer: str = "answer"  # a name in scorers.RULES, METRICS or JUDGES
    revision: str | None = None
    configs: Sequence[str] | dict[str, str] = ("",)  # "*": all that there are; a dict: with a hint to their videos
    splits: Sequence[str] = ("test",)
    every_split: bool = False  # each is a part of the set; else the first that there is
    withheld: str = ""  # said where something is missing
    terms: str = "see its card"  # licence or gate
    question: str = "question"
    answers: Sequence[str] = ("answer",)  # two columns: of rows with options, of rows without
    options: Sequence[str] = ()  # one column (a list, a list as a string, "A. x;B. y", a dict) or one each
    drawn: int = 0  # options whose texts stand in the question or only in the picture
    shuffled: bool = False
    encoding: str = "letter"  # of a gold among options: letter, index (0-based) or text
    kind: Sequence[str] = ()  # a column, its value in rows with options, its values in rows without
    images: Sequence[str] = ()
    video: str = ""
    subtitles: bool = False
    needs: Sequence[str] = ()  # further columns that the scorer reads
    groups: Sequence[str] = ()  # columns of the numbers by category; "a.b" is a nested field
    average: str = ""  # the group over whose means the score is the mean; none: over rows
    together: str = ""  # rows that are scored together have one value in this column
    where: Sequence[str] = ()  # a column and an ending: only these rows
    strip: str = ""  # pattern of a wish for a format in the questions
    clean: bool = True  # False: a wish for a format is part of the task
    judge_question: str = ""  # column with the question as a judge should see it
    prepare: str = ""  # a function in rows.PREPARE, for what columns cannot say


_read = yaml.safe_load(Path(__file__).with_name("benchmarks.yaml").read_text(encoding="utf-8"))
BENCHMARKS = [Benchmark(name, family, **entry) for family in FAMILIES for name, entry in _read[family].items()]
BY_NAME = {entry.name: entry for entry in BENCHMARKS}
BLIND_TASKS = _read["blind_tasks"]
OCR_CAPABILITIES = {kind: capability for capability, kinds in _read["ocr_types"].items() for kind in kinds}
