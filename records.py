"""Records on disk, one JSON object per line: what is written is whole, or as it was before."""

import json
import os
from collections.abc import Sequence
from pathlib import Path


def write_whole(text: str, path: Path) -> None:
    """A file that appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def write_records(records: Sequence[dict], path: Path) -> None:
    """A file of these records; it appears whole or not at all."""
    write_whole("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), path)


def read_records(path: Path) -> list[dict]:
    """All records of a file; none where there is no file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def append(records: Sequence[dict], path: Path) -> None:
    """Records at the end of a log, all of them or none."""
    size = path.stat().st_size if path.exists() else 0
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.writelines(json.dumps(record) + "\n" for record in records)
    except OSError:
        if path.exists():
            os.truncate(path, size)
        raise


def cut_back(path: Path, steps: int) -> None:
    """Keep a log's first `steps` steps: what came after the checkpoint is done again. A line cut short is dropped."""
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        records = [json.loads(line) for line in lines if line.endswith("\n")]
        write_records([record for record in records if record["step"] <= steps], path)
