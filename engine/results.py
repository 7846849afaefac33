"""Results that survive a kill: a file of records that grows, and what a later start needs to go on with it."""

import json
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from engine.run import leave, read_records, write_records, write_whole


class Results:
    """The records of a run in `path`, one a line; beside it .args.json, and .summary.json when the run is finished.

    done: {uid: record} so far, with those of an earlier start that was stopped. records: all in order, when the rounds
    are over. A finished run starts anew. Only the main process (main) writes; all of them read. Raises SystemExit where
    an unfinished run with other settings is in the way.
    """

    def __init__(self, path: Path, settings: dict, main: bool):
        self.path, self.main, self.done, self.records = path, main, {}, []
        self.summary, described = path.with_suffix(".summary.json"), path.with_suffix(".args.json")
        goes_on = path.exists() and described.exists() and not self.summary.exists()
        if goes_on:
            old = json.loads(described.read_text(encoding="utf-8"))
            if changed := [name for name in settings if settings[name] != old.get(name)]:
                was = ", ".join(f"--{name} {old.get(name)} (now {settings[name]})" for name in changed)
                leave(f"{path} was started with {was}: go on with that, or choose another --out", 2)
            self.done = {record["uid"]: record for record in read_records(path)}  # without a last line cut short

    def start(self, settings: dict) -> None:
        """Leave only whole records in the file. To be called when all processes have read it."""
        if self.main:
            self.summary.unlink(missing_ok=True)
            write_whole(json.dumps(settings, indent=1), self.path.with_suffix(".args.json"))
            write_records(list(self.done.values()), self.path)

    def rounds(self, questions: dict[str, list], size: int) -> Iterator[dict[str, list]]:
        """What has no record yet, `size` questions at a time. questions: by family; they have a `uid`."""
        asked = [(family, question) for family in questions for question in questions[family]]
        pending = [(family, question) for family, question in asked if question.uid not in self.done]
        self.bar = tqdm(total=len(asked), initial=len(asked) - len(pending), disable=not self.main or None)
        for start in range(0, len(pending), size):
            part = defaultdict(list)
            for family, question in pending[start : start + size]:
                part[family].append(question)
            yield part
        self.bar.close()
        self.records = [self.done[question.uid] for _, question in asked]

    def add(self, records: Sequence[dict]) -> None:
        """Records of a round: to the file, and the running score of their last family and all tokens to the screen."""
        self.done |= {record["uid"]: record for record in records}
        if self.main:
            with open(self.path, "a", encoding="utf-8") as file:
                file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
                file.flush()
                os.fsync(file.fileno())
        family, tokens = records[-1]["family"], sum(record.get("tokens", 0) for record in self.done.values())
        rewards = [record["reward"] or 0 for record in self.done.values() if record["family"] == family]
        self.bar.set_postfix({family: f"{100 * sum(rewards) / len(rewards):.1f}%", "tokens": tokens})
        self.bar.update(len(records))

    def finish(self, summary: dict) -> None:
        """All records in order, those that a judge saw once more apart, and a summary: the run is finished."""
        judged = [record for record in self.records if record.get("method", "rule") != "rule"]
        if self.main:
            write_records(self.records, self.path)
            write_records(judged, self.path.with_suffix(".judged.jsonl"))
            write_whole(json.dumps(summary, indent=1), self.summary)
