"""What a run leaves on disk and goes on from: checkpoints, logs in step with them, the trained student.

Decisions:
1. A folder is written beside its place and renamed when it is whole, so that a crash or a full disk leaves the last
   good one. (Only where one of that name stood before is there a moment without.)
2. A write that fails does not end the run by itself: logs and checkpoints are tried again after the next step. All
   processes hear of it (`together`), so that nobody waits for one that failed.
3. A checkpoint depends on no number of processes, since it holds no random state, but on their kind: sharded ones are
   for FSDP2.
4. The trained student is saved in fp32, as it was trained: most single updates at the paper's learning rate are smaller
   than what bf16 can tell apart. Load it with dtype=torch.bfloat16 where half the memory counts for more.
"""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import gather_object
from tqdm import tqdm
from transformers import GenerationConfig

MAY_CHANGE = (  # on --resume; data by its content
    "student teacher teacher_model data split config columns output resume steps micro_tokens rollout_rows cuda_graphs "
    "gradient_checkpointing save_every keep_checkpoints dump_every eval_questions log_with"
).split()


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


def together(write: Callable[[], None], path: Path) -> str | None:
    """Call `write` on every process. Returns what went wrong on any of them, on all alike, or None."""
    problem = None
    try:
        write()
    except Exception as error:  # a full disk is an OSError, but torch.save and safetensors have errors of their own
        problem = f"cannot write {path} (is there space?): {error}"
    return next(iter(filter(None, gather_object([problem]))), None)


def check_same_run(output: Path, arguments: dict) -> None:
    """Refuse to resume under arguments that would change the results."""
    old = json.loads((output / "args.json").read_text(encoding="utf-8"))
    changed = [k for k in arguments if k not in MAY_CHANGE and k in old and arguments[k] != old[k]]
    if changed:
        was = ", ".join(f"--{name} {old[name]} (now {arguments[name]})" for name in changed)
        raise SystemExit(f"{output} was started with {was}: resume with that, or start anew in another --output")


def write_all(writes: list[tuple]) -> str | None:
    """Do the writes, (function, records, path) each, in turn, and take those done off the list.

    Returns what went wrong with the first that failed, or None."""
    while writes:
        write, records, path = writes[0]
        try:
            write(records, path)
        except OSError as error:
            return f"cannot write {path} (is there space?): {error}"
        del writes[0]
    return None


class Output:
    """The folder of a run. All processes call its methods together; the main one writes.

    What cannot be written is tried again with the next write. unsaved: why the last checkpoint is missing, or None.
    Raises SystemExit where the folder cannot be written, or holds a run that these arguments do not go on with.
    """

    def __init__(self, folder: Path, accelerator: Accelerator, arguments: dict, resume: bool):
        self.folder, self.accelerator, self.arguments = folder, accelerator, arguments
        self.unwritten: list[tuple] = []
        self.unsaved: str | None = None
        if (folder / "metrics.jsonl").exists() and not resume:
            raise SystemExit(f"{folder} holds a run: add --resume to go on with it, or choose another --output")
        if problem := together(lambda: folder.mkdir(parents=True, exist_ok=True), folder):
            raise SystemExit(problem)
        self.newest = max(folder.glob("checkpoints/step_*"), default=None) if resume else None
        if self.newest:
            check_same_run(folder, arguments)
            sharded = not (self.newest / "model.safetensors").exists()
            if sharded != accelerator.is_fsdp2:
                old, new = ("sharded (FSDP2)", "whole") if sharded else ("whole", "sharded (FSDP2)")
                raise SystemExit(f"{self.newest} is {old}, this run is {new}: launch it as it was started")

    def load(self, state: dict) -> dict:
        """The newest checkpoint: weights and optimiser in place. Returns its state, or `state` where there is none."""
        if self.newest:
            saved = json.loads((self.newest / "state.json").read_text(encoding="utf-8"))
            if saved["data"] != state["data"]:
                raise SystemExit(f"{self.newest} was made with other questions than these: check --data")
            self.accelerator.load_state(str(self.newest))
            state = saved
        if problem := together(lambda: self.accelerator.is_main_process and self.tidy(state["step"]), self.folder):
            raise SystemExit(problem)
        if self.accelerator.log_with:
            plain = {k: v if isinstance(v, (int, float)) else str(v) for k, v in self.arguments.items()}
            self.accelerator.init_trackers("zppo", plain)
        return state

    def tidy(self, step: int) -> None:
        """Logs as they were at the checkpoint; nothing half written."""
        write_whole(json.dumps(self.arguments, indent=1), self.folder / "args.json")
        for name in ("metrics.jsonl", "times.jsonl"):
            cut_back(self.folder / name, step)
        for left in (*self.folder.glob("partial-*"), *self.folder.glob("checkpoints/partial-*")):  # by a crash
            shutil.rmtree(left)

    def write(self, *writes: tuple[Callable, list[dict], str]) -> str | None:
        """(function, records, file name) each, after what is still to be written. Returns what went wrong, or None."""
        if not self.accelerator.is_main_process:
            return None
        self.unwritten += [(function, records, self.folder / name) for function, records, name in writes]
        problem = write_all(self.unwritten)
        if problem and writes:
            tqdm.write(problem)
        return problem

    def track(self, metrics: dict, times: dict) -> None:
        """To the trackers of --log_with, if there are any."""
        record = {**metrics, **{f"time/{name}": value for name, value in times.items() if name != "step"}}
        self.accelerator.log({k: v for k, v in record.items() if v is not None}, step=metrics["step"])

    def put(self, folder: Path, fill: Callable[[Path], None], finish: Callable[[Path], None]) -> str | None:
        """What `fill`, on all processes, and then `finish`, on the main one, write into a folder beside `folder`; when
        it is whole, it takes that place. Returns what went wrong, the same on all processes, or None."""
        partial, main = folder.with_name(f"partial-{folder.name}"), self.accelerator.is_main_process

        def place() -> None:
            if main:
                finish(partial)
                if folder.exists():
                    shutil.rmtree(folder)
                os.replace(partial, folder)

        problem = together(lambda: fill(partial), folder) or together(place, folder)
        if problem and main:
            shutil.rmtree(partial, ignore_errors=True)
        return problem

    def save(self, state: dict, keep: int) -> None:
        """A checkpoint: weights, optimiser and `state` (JSON). Only the newest `keep` stay. See `unsaved`."""
        folder = self.folder / "checkpoints" / f"step_{state['step']:05d}"

        def finish(partial: Path) -> None:
            for file in partial.glob("random_states_*"):
                file.unlink()
            (partial / "state.json").write_text(json.dumps(state), encoding="utf-8")

        self.unsaved = self.put(folder, lambda partial: self.accelerator.save_state(str(partial)), finish)
        if not self.accelerator.is_main_process:
            return
        if self.unsaved:
            tqdm.write(self.unsaved)
        else:
            for old in sorted(folder.parent.glob("step_*"))[:-keep]:
                shutil.rmtree(old, ignore_errors=True)

    def save_model(self, policy, processor) -> str | None:
        """The trained student as an ordinary model folder. policy: a prepared learner.Policy.

        Returns what went wrong, the same on all processes, or None."""
        model = self.accelerator.unwrap_model(policy).model
        weights = self.accelerator.get_state_dict(policy)  # whole, also of shards; under FSDP2 on the main process only

        def finish(partial: Path) -> None:
            tied = {name for name, _ in model.named_parameters(remove_duplicate=False)}
            tied -= {name for name, _ in model.named_parameters()}  # a head that is the embeddings: those only
            whole = {name.removeprefix("model."): value for name, value in weights.items()}
            whole = {name: value for name, value in whole.items() if name not in tied}
            # save_pretrained refuses generation settings that hub models come with (do_sample=false, temperature=0.6).
            generation_config, model.generation_config = model.generation_config, GenerationConfig()
            model.save_pretrained(partial, state_dict=whole)
            model.generation_config = generation_config
            generation_config.to_json_file(partial / "generation_config.json")
            processor.save_pretrained(partial)

        return self.put(self.folder / "model", lambda partial: None, finish)
