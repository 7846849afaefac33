"""Results that survive a kill: a file of records that grows, and what a later start needs to go on with it."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from accelerate import PartialState

from engine.output import read_records, refuse_changes, write_records, write_whole


class Results:
    """The records of a run in `path`, one a line; beside it .args.json, and .summary.json when the run is finished.

    done: {uid: record}, at first those of a start that was stopped; a finished run starts anew. All processes read,
    the main one writes. Raises SystemExit where an unfinished run with other settings is in the way.
    """

    def __init__(self, path: Path, settings: dict):
        self.path, self.main, self.done = path, PartialState().is_main_process, {}
        self.summary, described = path.with_suffix(".summary.json"), path.with_suffix(".args.json")
        if path.exists() and described.exists() and not self.summary.exists():
            old = json.loads(described.read_text(encoding="utf-8"))
            refuse_changes(path, old, settings, "go on with that, or choose another --out")
            self.done = {record["uid"]: record for record in read_records(path)}  # without a last line cut short
        PartialState().wait_for_everyone()  # all have read
        if self.main:
            self.summary.unlink(missing_ok=True)
            write_whole(json.dumps(settings, indent=1), described)
            write_records([*self.done.values()], path)

    def add(self, records: Sequence[dict]) -> None:
        self.done |= {record["uid"]: record for record in records}
        if self.main:
            with open(self.path, "a", encoding="utf-8") as file:
                file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
                file.flush()
                os.fsync(file.fileno())

    def finish(self, records: Sequence[dict], summary: dict) -> None:
        """All records in order, those that a judge saw once more apart, and a summary: the run is finished."""
        if self.main:
            write_records(records, self.path)
            if judged := [record for record in records if record.get("method", "rule") != "rule"]:
                write_records(judged, self.path.with_suffix(".judged.jsonl"))
            write_whole(json.dumps(summary, indent=1), self.summary)
