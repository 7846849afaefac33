"""What a run leaves on disk and goes on from: checkpoints, logs in step with them, the trained student.

Decisions:
1. A folder is written beside its place and renamed when it is whole, so that a crash or a full disk leaves the last
   good one.
2. A write that fails does not end the run by itself: logs and checkpoints are tried again after the next step. All
   processes hear of it (`together`), so that nobody waits for one that failed.
3. A checkpoint depends on no number of processes: it holds no random state.
4. The trained student is saved in fp32, as it was trained: most single updates at the paper's learning rate are smaller
   than what bf16 can tell apart. Load it with dtype=torch.bfloat16 where half the memory counts for more.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import gather_object
from transformers import GenerationConfig

from evaluate import write_records

MAY_CHANGE = (  # on --resume; data by its content
    "student teacher teacher_model data output resume steps micro_tokens rollout_rows cuda_graphs "
    "gradient_checkpointing save_every keep_checkpoints dump_every eval_questions log_with"
).split()


def together(write: Callable[[], None], path: Path) -> str | None:
    """Call `write` on every process. Returns what went wrong on any of them, on all alike, or None."""
    problem = None
    try:
        write()
    except Exception as error:  # a full disk is an OSError, but torch.save and safetensors have errors of their own
        problem = f"cannot write {path} (is there space?): {error}"
    return next(iter(filter(None, gather_object([problem]))), None)


def replace_folder(partial: Path, folder: Path) -> None:
    """Put a whole folder in the place of an older one, if there is one."""
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(partial, folder)


def save(folder: Path, accelerator: Accelerator, state: dict, keep: int) -> str | None:
    """Weights, optimiser and `state` (JSON) into `folder`; only the newest `keep` checkpoints stay.

    Returns what went wrong, the same on all processes, or None."""
    partial = folder.with_name(f"partial-{folder.name}")

    def finish() -> None:
        if accelerator.is_main_process:
            for file in partial.glob("random_states_*"):
                file.unlink()
            (partial / "state.json").write_text(json.dumps(state), encoding="utf-8")
            replace_folder(partial, folder)
            for old in sorted(folder.parent.glob("step_*"))[:-keep]:
                shutil.rmtree(old, ignore_errors=True)

    problem = together(lambda: accelerator.save_state(str(partial)), folder) or together(finish, folder)
    if problem and accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
    return problem


def save_model(folder: Path, accelerator: Accelerator, policy, processor) -> str | None:
    """The trained student as an ordinary model folder. policy: a prepared learner.Policy.

    Returns what went wrong, the same on all processes, or None."""
    partial, model = folder.with_name(f"partial-{folder.name}"), accelerator.unwrap_model(policy).model
    weights = accelerator.get_state_dict(policy)  # whole, also of shards
    once = (*model.named_parameters(), *model.named_buffers())  # a head that is tied to the embeddings: only those
    weights = {name: weights[f"model.{name}"] for name, _ in once if f"model.{name}" in weights}

    def write() -> None:
        if accelerator.is_main_process:
            # save_pretrained refuses generation settings that hub models come with (do_sample=false, temperature=0.6).
            generation_config, model.generation_config = model.generation_config, GenerationConfig()
            model.save_pretrained(partial, state_dict=weights)
            model.generation_config = generation_config
            generation_config.to_json_file(partial / "generation_config.json")
            processor.save_pretrained(partial)
            replace_folder(partial, folder)

    problem = together(write, folder)
    if problem and accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
    return problem


def check_same_run(output: Path, arguments: dict) -> None:
    """Refuse to resume under arguments that would change the results."""
    old = json.loads((output / "args.json").read_text(encoding="utf-8"))
    changed = [k for k in arguments if k not in MAY_CHANGE and k in old and arguments[k] != old[k]]
    if changed:
        was = ", ".join(f"--{name} {old[name]} (now {arguments[name]})" for name in changed)
        raise SystemExit(f"{output} was started with {was}: resume with that, or start anew in another --output")


def append(records: list[dict], path: Path) -> None:
    """Lines at the end of a log, all of them or none."""
    size = path.stat().st_size if path.exists() else 0
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.writelines(json.dumps(record) + "\n" for record in records)
    except OSError:
        if path.exists():
            os.truncate(path, size)
        raise


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


def cut_back(path: Path, steps: int) -> None:
    """Keep a log's first `steps` steps: what came after the checkpoint is done again. A line cut short is dropped."""
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        records = [json.loads(line) for line in lines if line.endswith("\n")]
        write_records([record for record in records if record["step"] <= steps], path)
