"""Data sets as folders: which files of a hub snapshot, or of a folder like one, are a config's split.

Decision: the header of README.md says which files are a config's split; where it says nothing, the names of folders and
files do. A folder that `datasets` has saved is read as such.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import datasets
import huggingface_hub

from engine.questions import DataError

KINDS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv", ".arrow": "arrow"}
USUAL = ("train", "test", "testmini", "validation", "dev")
SPELLINGS = {"validation": "val(id(ation)?)?", "valid": "val(id(ation)?)?", "val": "val(id(ation)?)?"}


def find_snapshot(ids: Sequence[str], root: str | None, revision: str | None = None, whole: bool = False) -> Path:
    """The folder of the first of `ids` (owner/name) that there is: root/owner/name, or without a root downloaded.

    whole: download all files, not only rows and pictures. Raises DataError: none there, or terms to accept first.
    """
    if root:
        folders = [folder for folder in (Path(root, *name.split("/")) for name in ids) if folder.is_dir()]
        if not folders:
            raise DataError(f"expected a folder {' or '.join(ids)} in {root}, found none")
        return folders[0].resolve()
    problems = []
    for name in ids:
        try:
            files = None if whole else [f"*{ending}" for ending in (*KINDS, ".md", ".jpg", ".png")]
            how = dict(repo_type="dataset", revision=revision, allow_patterns=files)
            return Path(huggingface_hub.snapshot_download(name, **how))
        except huggingface_hub.errors.GatedRepoError as error:
            page = f"https://huggingface.co/datasets/{name}"
            raise DataError(f"{name} is gated: accept its terms at {page}, then run `hf auth login`") from error
        except (OSError, ValueError) as error:  # the hub's errors are OSErrors
            problems.append(f"{name}: {error}")
    raise DataError(f"the hub gives none of these: {'; '.join(problems)}")


def find_all(wanted: dict[str, tuple], root: str | None) -> dict[str, Path]:
    """{name: folder}. wanted: {name: ids, revision, whole of find_snapshot}. One DataError says all that is missing."""
    folders, problems = {}, []
    for name, (ids, revision, whole) in wanted.items():
        try:
            folders[name] = find_snapshot(ids, root, revision, whole)
        except DataError as error:
            problems.append(f"{name}: {error}")
    if problems:
        raise DataError("\n".join(problems))
    return folders


def by_readme(folder: Path, config: str) -> dict[str, list[Path]]:
    """{split: files} of a config in the header of README.md; {} if it names none."""
    if not (folder / "README.md").exists():
        return {}
    header = huggingface_hub.DatasetCard.load(folder / "README.md").data
    configs = {one["config_name"]: one.get("data_files") for one in header.get("configs") or []}
    parts = configs.get(config or (next(iter(configs), "") if len(configs) == 1 else "default")) or []
    found = {}
    for part in [{"split": "train", "path": parts}] if isinstance(parts, str) else parts:
        patterns = [part["path"]] if isinstance(part["path"], str) else part["path"]
        if files := sorted({file for pattern in patterns for file in folder.glob(pattern)}):
            found[part["split"]] = files
    return found


def row_files(folder: Path) -> dict[Path, str]:
    """{file with rows: its path inside the folder, without ending, lower case}."""
    return {file: str(file.relative_to(folder).with_suffix("")).casefold()
            for file in sorted(folder.rglob("*")) if file.suffix in KINDS and file.stem != "dataset_info"}  # fmt: skip


def by_name(folder: Path, config: str, splits: Sequence[str]) -> dict[str, list[Path]]:
    """{split: files} of a config: a folder or file is called like the config, and part of a path is the split."""
    names, found, word = row_files(folder), {}, re.escape(config.casefold())
    if config:  # exactly that name, or else a name that begins or ends with it
        exact, near = rf"(^|/){word}(/|$)", rf"(^|[/_-]){word}([/_-]|$)"
        pattern = exact if any(re.search(exact, name) for name in names.values()) else near
        names = {file: re.sub(pattern, "/", name) for file, name in names.items() if re.search(pattern, name)}
    for split in dict.fromkeys([*splits, *USUAL]):
        pattern = rf"(^|[/_.-]){SPELLINGS.get(split, re.escape(split.casefold()))}([/_.-]|$)"
        found[split] = [file for file, name in names.items() if re.search(pattern, name)]
    found = {split: files for split, files in found.items() if files}
    return found or ({splits[0]: list(names)} if names else {})


def config_names(folder: Path) -> list[str]:
    """The configs of a folder with one for each subject: the folders that hold rows, or else the files."""
    files = row_files(folder)
    inside = [file.parent.name for file in files if file.parent not in (folder, folder / "data")]
    return list(dict.fromkeys(inside or [file.stem for file in files]))


def read_splits(folder: Path, config: str, splits: Sequence[str], every: bool = False) -> dict[str, datasets.Dataset]:
    """{split: rows, images undecoded} of a config: the first of `splits` that there is, or every one.

    Raises DataError, with what is there, if it is missing.
    """
    saved = next((at for at in (folder / config, folder) if (at / "dataset_dict.json").exists()), None)
    found = datasets.load_from_disk(saved) if saved else by_readme(folder, config) or by_name(folder, config, splits)
    names = [split for split in splits if split in found][: None if every else 1]
    if not names or (every and len(names) < len(splits)):
        wanted, there = (" and " if every else " or ").join(splits), ", ".join(found) or "none"
        raise DataError(f"{folder}, config {config or 'default'}: expected split {wanted}, found {there}")
    read = {}
    datasets.disable_progress_bars()  # one for each small file
    for split, rows in ((split, found[split]) for split in names):
        if not saved:
            rows = datasets.load_dataset(KINDS[rows[0].suffix], data_files=[*map(str, rows)], split="train")
        for name, feature in rows.features.items():
            if isinstance(feature, datasets.Image):
                rows = rows.cast_column(name, datasets.Image(decode=False))
        read[split] = rows
    return read
