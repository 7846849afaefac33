"""The 31 benchmarks of the paper: what benchmarks.yaml says of them, their folders, their rows.

Decision: the header of README.md says which files are a config's split; where the header says
nothing, the names of folders and files do.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import yaml
from datasets.data_files import sanitize_patterns
from huggingface_hub import DatasetCard, snapshot_download

from engine.questions import DataError, undecoded

FAMILIES = ("vlm", "llm", "video")
KINDS = {
    ".parquet": "parquet",
    ".jsonl": "json",
    ".json": "json",
    ".csv": "csv",
    ".arrow": "arrow",
}
# What `datasets` writes beside the rows that it saves.
NO_ROWS = ("dataset_dict", "dataset_info", "state")
USUAL = ("train", "test", "testmini", "validation", "dev")


@dataclass(frozen=True)
class Benchmark:
    """Where a benchmark is, what its columns say, who scores it. A column is a name in its rows."""

    # Where it is.
    name: str  # on the command line and in the records
    family: str
    paper: str  # in the paper's tables
    sources: Sequence[str]  # hub ids of the same set: the first that exists
    size: int  # questions in the published set
    scorer: str = "answer"  # a name in scorers.RULES, METRICS or JUDGES
    revision: str | None = None
    # "*": all that exist. A dict names with each config a part of the path of its videos.
    configs: Sequence[str] | dict[str, str] = ("",)
    splits: Sequence[str] = ("test",)
    every_split: bool = False  # each is a part of the set; else the first that exists
    withheld: str = ""  # said where something is missing
    terms: str = "see its card"  # licence or gate

    # What its columns say.
    question: str = "question"
    # Two columns: of rows with options, of rows without.
    answers: Sequence[str] = ("answer",)
    # One column with all options (see rows.option_texts), or one column for each option.
    options: Sequence[str] = ()
    drawn: int = 0  # options whose texts stand in the question or only in the picture
    shuffled: bool = False
    # Of a gold among options: letter, index (0-based) or text.
    encoding: str = "letter"
    # A column, its value in rows with options, its values in rows without.
    kind: Sequence[str] = ()
    images: Sequence[str] = ()
    video: str = ""
    video_alias: str = ""  # the name of this column in another source
    subtitles: bool = False
    where: Sequence[str] = ()  # a column and an ending: only these rows
    strip: str = ""  # pattern of a wish for a format in the questions
    adds: Sequence = ()  # a column, {its value: a sentence of ours behind the question}
    clean: bool = True  # False: a wish for a format is part of the task
    prepare: str = ""  # a function in rows.PREPARE, for what columns cannot say

    # How its answers are scored.
    needs: Sequence[str] = ()  # further columns that the scorer reads
    # Packages that the scorer needs: {module: package}.
    packages: dict = field(default_factory=dict)
    judge_question: str = ""  # column with the question as a judge should see it
    # Columns of the numbers by category; "a.b" is a nested field.
    groups: Sequence[str] = ()
    # The group over whose means the score is the mean; none: over rows.
    average: str = ""
    together: str = ""  # rows that are scored together have one value in this column


_text = Path(__file__).with_name("benchmarks.yaml").read_text(encoding="utf-8")
_read = yaml.safe_load(_text)
BENCHMARKS = [
    Benchmark(name, family, **entry) for family in FAMILIES for name, entry in _read[family].items()
]
BY_NAME = {entry.name: entry for entry in BENCHMARKS}
BLIND_TASKS = _read["blind_tasks"]
OCR_CAPABILITIES = {
    kind: capability for capability, kinds in _read["ocr_types"].items() for kind in kinds
}


# ---- the folder of a benchmark -------------------------------------------------------------------


def find_all(entries: Sequence[Benchmark], root: str = "") -> list[Path]:
    """The folder of each. Raises one DataError that says all that is missing."""
    folders = []
    problems = []
    for entry in entries:
        try:
            folders.append(find(entry, root))
        except DataError as error:
            problems.append(f"{entry.name}: {error}")
    if problems:
        raise DataError("\n".join(problems))
    return folders


def find(entry: Benchmark, root: str = "") -> Path:
    """The folder of the first source that exists: root/owner/name, or a download without a root.

    Raises DataError.
    """
    problems = ""
    # Only a set with videos needs all its files.
    wanted = [f"*{ending}" for ending in (*KINDS, ".md", ".jpg", ".png")]
    shared = dict(repo_type="dataset", revision=entry.revision)
    if not entry.video:
        shared["allow_patterns"] = wanted
    for source in entry.sources:
        if root and Path(root, source).is_dir():
            return Path(root, source).resolve()
        if not root:
            try:
                return Path(snapshot_download(source, **shared))
            except (OSError, ValueError) as error:
                # The hub's errors are OSErrors, and say where a set is gated.
                problems += f"; {source}: {error}"
    names = " or ".join(entry.sources)
    where = root or "the hub"
    raise DataError(f"expected a folder {names} in {where}, found none{problems}")


# ---- the rows of a config's split ----------------------------------------------------------------


def read_splits(folder: Path, config: str, splits: Sequence[str], every: bool = False) -> dict:
    """{split: rows, images undecoded}: the first of `splits` that a config has, or every one.

    Raises DataError, with what is there, if one is missing.
    """
    found = by_header(folder, config) or by_name(folder, config, splits)
    names = [split for split in splits if split in found]
    if not names or (every and len(names) < len(splits)):
        wanted = (" and " if every else " or ").join(splits)
        there = ", ".join(found) or "none"
        place = f"{folder}, config {config or 'default'}"
        raise DataError(f"{place}: expected split {wanted}, found {there}")
    if not every:
        names = names[:1]
    return {split: read_rows(found[split]) for split in names}


def read_rows(files: list[Path]) -> datasets.Dataset:
    """The rows of these files alone: other splits may be large, or of other columns."""
    datasets.disable_progress_bars()  # one for each small file
    # We-Math's rows are there twice, in files of two types: the one that stands first in KINDS.
    ending = min((file.suffix for file in files), key=list(KINDS).index)
    names = [str(file) for file in files if file.suffix == ending]
    rows = datasets.load_dataset(KINDS[ending], data_files=names, split="train")
    return undecoded(rows)


def by_header(folder: Path, config: str) -> dict:
    """{split: files} of a config in the header of README.md; {} if the header names none."""
    card = folder / "README.md"
    if not card.exists():
        return {}
    described = DatasetCard.load(card).data.get("configs") or []
    configs = {one["config_name"]: one.get("data_files") for one in described}
    only = list(configs)[0] if len(configs) == 1 else "default"
    patterns = sanitize_patterns(configs.get(config or only) or {})
    found = {}
    for split, wanted in patterns.items():
        files = {file for pattern in wanted for file in folder.glob(pattern)}
        if files:
            found[split] = sorted(files)
    return found


def by_name(folder: Path, config: str, splits: Sequence[str]) -> dict:
    """{split: files} of a config: the path of a file holds the config's name and the split's."""
    names = row_files(folder)
    place = f"/{config.casefold()}/"
    if config:
        inside = {file: name for file, name in names.items() if place in name}
        names = {file: name.replace(place, "/") for file, name in inside.items()}
    found = {}
    for split in dict.fromkeys([*splits, *USUAL]):
        spelling = re.escape(split.casefold())
        if split.startswith("val"):
            spelling = "val(id(ation)?)?"
        part = re.compile(f"[/_.-]{spelling}[/_.-]")
        files = [file for file, name in names.items() if part.search(name)]
        if files:
            found[split] = files
    if names and not found:  # no path names a split: there is only one
        found[splits[0]] = list(names)
    return found


def row_files(folder: Path) -> dict:
    """{file with rows: "/its path in the folder/", without ending and in lower case}."""
    found = {}
    for file in sorted(folder.rglob("*")):
        if file.suffix in KINDS and file.stem not in NO_ROWS:
            path = file.relative_to(folder).with_suffix("")
            found[file] = f"/{path.as_posix().casefold()}/"
    return found


def config_names(folder: Path) -> list[str]:
    """The configs of a folder with one for each subject: folders that hold rows, or else files."""
    files = row_files(folder)
    top = (folder, folder / "data")
    inside = [file.parent.name for file in files if file.parent not in top]
    names = inside or [file.stem for file in files]
    return list(dict.fromkeys(names))
