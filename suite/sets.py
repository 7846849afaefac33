"""Where the rows of a benchmark are: its folder, and in it the files of a config's split.

Decision: the header of README.md says which files are a config's split; where it says nothing, the names of folders and
files do.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import datasets
from datasets.data_files import sanitize_patterns
from huggingface_hub import DatasetCard, snapshot_download

from engine.questions import DataError, undecoded
from suite.entries import Benchmark

KINDS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv", ".arrow": "arrow"}
NO_ROWS = ("dataset_dict", "dataset_info", "state")  # what `datasets` writes beside the rows that it saves
USUAL = ("train", "test", "testmini", "validation", "dev")
SPELLINGS = dict.fromkeys(("validation", "valid", "val"), "val(id(ation)?)?")


def find(entry: Benchmark, root: str = "") -> Path:
    """The folder of the first source that there is: root/owner/name, or without a root downloaded. Raises DataError."""
    if root:
        folders = [folder for source in entry.sources if (folder := Path(root, source)).is_dir()]
        if not folders:
            raise DataError(f"expected a folder {' or '.join(entry.sources)} in {root}, found none")
        return folders[0].resolve()
    rows = None if entry.video else [f"*{ending}" for ending in (*KINDS, ".md", ".jpg", ".png")]  # None: all files
    problems = []
    for source in entry.sources:
        try:
            return Path(snapshot_download(source, repo_type="dataset", revision=entry.revision, allow_patterns=rows))
        except (OSError, ValueError) as error:  # the hub's errors are OSErrors; of a gated set they say where to ask
            problems.append(f"{source}: {error}")
    raise DataError(f"the hub gives none of these: {'; '.join(problems)}")


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
        pattern = f"[/_.-]{SPELLINGS.get(split, re.escape(split.casefold()))}[/_.-]"
        if files := [file for file, name in names.items() if re.search(pattern, name)]:
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
    read = {}
    datasets.disable_progress_bars()  # one for each small file
    for split in names:
        files = [str(file) for file in found[split]]  # only these: other splits may be large, or of other columns
        rows = datasets.load_dataset(KINDS[Path(files[0]).suffix], data_files=files, split="train")
        read[split] = undecoded(rows)
    return read
