"""Results that survive a kill: a file of records that grows, and how a later start goes on."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from accelerate import PartialState

from engine.output import (
    read_records,
    refuse_changes,
    write_records,
    write_whole,
)
from engine.screen import print_main


class Results:
    """The records of a run in `path`, one a line.

    Beside it stand .args.json and, when the run is finished, .summary.json. All processes read, the
    main one writes. done: {uid: record}, at first those of a start that was stopped; a finished run
    starts anew. Raises SystemExit where a run with other settings is in the way, finished or not.
    """

    def __init__(self, path: Path, settings: dict):
        self.path = path
        self.settings = settings
        self.main = PartialState().is_main_process
        self.summary = path.with_suffix(".summary.json")
        self.done = {}
        self.described = path.with_suffix(".args.json")
        if path.exists() and self.described.exists():
            old = json.loads(self.described.read_text(encoding="utf-8"))
            fix = "go on with that, or choose another --out"
            refuse_changes(path, old, settings, fix)
            if not self.summary.exists():
                # A last line that was cut short is left out.
                records = read_records(path)
                self.done = {record["uid"]: record for record in records}

    def start(self) -> None:
        """From here on the file is this run's. Models are loaded before, so that a wrong name
        leaves no file."""
        PartialState().wait_for_everyone()  # all have read
        if self.main:
            self.summary.unlink(missing_ok=True)
            write_whole(json.dumps(self.settings, indent=1), self.described)
            write_records([*self.done.values()], self.path)
        if self.done:
            print_main(f"{len(self.done)} answers are in {self.path} from an earlier start")

    def add(self, records: Sequence[dict]) -> None:
        """More records, on the disk at once."""
        self.done |= {record["uid"]: record for record in records}
        if self.main:
            with open(self.path, "a", encoding="utf-8") as file:
                for record in records:
                    file.write(json.dumps(record, ensure_ascii=False) + "\n")
                file.flush()
                os.fsync(file.fileno())

    def finish(self, records: Sequence[dict], summary: dict) -> None:
        """All records in order, those that a judge saw once more apart, and a summary: the end."""
        if not self.main:
            return
        write_records(records, self.path)
        judged = [record for record in records if record.get("method", "rule") != "rule"]
        if judged:
            write_records(judged, self.path.with_suffix(".judged.jsonl"))
        write_whole(json.dumps(summary, indent=1), self.summary)


# ---- from records to numbers ---------------------------------------------------------------------


def accuracies(records: Sequence[dict]) -> dict[str, float]:
    """Accuracy in percent by family, in order of appearance."""
    return means([(record["family"], record["reward"]) for record in records])


def means(rewards: Sequence[tuple]) -> dict[str, float]:
    """{value: mean reward in percent, NaN where one is None}.

    rewards: pairs of a value, or a list of values that each get the reward, and a reward.
    """
    table = pd.DataFrame(rewards, columns=["value", "reward"], dtype=object)
    table = table.explode("value").dropna(subset="value")
    percent = 100 * table.reward.astype(float)
    return percent.groupby(table.value.astype(str), sort=False).mean().to_dict()
