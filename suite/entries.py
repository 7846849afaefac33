"""The 31 benchmarks of the paper: what benchmarks.yaml says of them, their folders, and the rows of a config's split.

Decision: the header of README.md says which files are a config's split; where it says nothing, the names of folders and
files do.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import yaml
from datasets.data_files import sanitize_patterns
from huggingface_hub import DatasetCard, snapshot_download

from engine.questions import DataError, undecoded

FAMILIES = ("vlm", "llm", "video")
KINDS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv", ".arrow": "arrow"}
NO_ROWS = ("dataset_dict", "dataset_info", "state")  # what `datasets` writes beside the rows that it saves
USUAL = ("train", "test", "testmini", "validation", "dev")


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


# ---- folders and rows --------------------------------------------------------------------------------------


def find(entry: Benchmark, root: str = "") -> Path:
    """The folder of the first source that there is: root/owner/name, or without a root downloaded. Raises DataError."""
    rows = None if entry.video else [f"*{ending}" for ending in (*KINDS, ".md", ".jpg", ".png")]  # None: all files
    how, problems = dict(repo_type="dataset", revision=entry.revision, allow_patterns=rows), []
    for source in entry.sources:
        if not root:
            try:
                return Path(snapshot_download(source, **how))
            except (OSError, ValueError) as error:  # the hub's errors are OSErrors, and say where a set is gated
                problems.append(f"; {source}: {error}")
        elif Path(root, source).is_dir():
            return Path(root, source).resolve()
    place = f"expected a folder {' or '.join(entry.sources)} in {root or 'the hub'}, found none"
    raise DataError(place + "".join(problems))


def find_all(entries: Sequence[Benchmark], root: str = "") -> list[Path]:
    """The folder of each. Raises one DataError that says all that is missing."""
    folders, problems = [], []
    for entry in entries:
        try:
            folders.append(find(entry, root))
        except DataError as error:
            problems.append(f"{entry.name}: {error}")
    if problems:
        raise DataError("\n".join(problems))
    return folders


def row_files(folder: Path) -> dict[Path, str]:
    """{file with rows: "/its path in the folder/", without ending and in lower case}."""
    files = [file for file in sorted(folder.rglob("*")) if file.suffix in KINDS and file.stem not in NO_ROWS]
    return {file: f"/{file.relative_to(folder).with_suffix('').as_posix().casefold()}/" for file in files}


def config_names(folder: Path) -> list[str]:
    """The configs of a folder with one for each subject: the folders that hold rows, or else the files."""
    files = row_files(folder)
    inside = [file.parent.name for file in files if file.parent not in (folder, folder / "data")]
    return list(dict.fromkeys(inside or [file.stem for file in files]))


def by_header(folder: Path, config: str) -> dict[str, list[Path]]:
    """{split: files} of a config in the header of README.md; {} if it names none."""
    if not (card := folder / "README.md").exists():
        return {}
    configs = {one["config_name"]: one.get("data_files") for one in DatasetCard.load(card).data.get("configs") or []}
    name = config or (next(iter(configs)) if len(configs) == 1 else "default")
    patterns = sanitize_patterns(configs.get(name) or {})
    found = {split: sorted({file for one in patterns[split] for file in folder.glob(one)}) for split in patterns}
    return {split: files for split, files in found.items() if files}


def by_name(folder: Path, config: str, splits: Sequence[str]) -> dict[str, list[Path]]:
    """{split: files} of a config: a folder or file is called like the config, and part of a path is the split."""
    names, place, found = row_files(folder), f"/{config.casefold()}/", {}
    if config:
        names = {file: name.replace(place, "/") for file, name in names.items() if place in name}
    for split in dict.fromkeys([*splits, *USUAL]):
        spelling = "val(id(ation)?)?" if split.startswith("val") else re.escape(split.casefold())
        if files := [file for file, name in names.items() if re.search(f"[/_.-]{spelling}[/_.-]", name)]:
            found[split] = files
    return found or ({splits[0]: list(names)} if names else {})


def read_splits(folder: Path, config: str, splits: Sequence[str], every: bool = False) -> dict[str, datasets.Dataset]:
    """{split: rows, images undecoded} of a config: the first of `splits` that there is, or every one.

    Raises DataError, with what is there, if it is missing.
    """
    found = by_header(folder, config) or by_name(folder, config, splits)
    names = [split for split in splits if split in found][: None if every else 1]
    if not names or (every and len(names) < len(splits)):
        wanted, there = (" and " if every else " or ").join(splits), ", ".join(found) or "none"
        raise DataError(f"{folder}, config {config or 'default'}: expected split {wanted}, found {there}")
    datasets.disable_progress_bars()  # one for each small file
    read = {}
    for split in names:
        files = [str(file) for file in found[split]]  # only these: other splits may be large, or of other columns
        kind = KINDS[found[split][0].suffix]
        read[split] = undecoded(datasets.load_dataset(kind, data_files=files, split="train"))
    return read
