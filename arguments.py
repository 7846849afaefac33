"""The options of train.py, their defaults and their help, and where they come from: command line, file, preset."""

import json
from argparse import ArgumentTypeError
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from transformers import HfArgumentParser

from engine.questions import MAX_PIXELS, MIN_PIXELS
from world import table as world
from zppo import Recipe


class JsonObject(dict):
    """An option that is a JSON object; in a configuration file a plain mapping."""

    def __init__(self, given="{}"):
        try:
            super().__init__(json.loads(given) if isinstance(given, str) else given)
        except (TypeError, ValueError) as error:
            raise ArgumentTypeError(f"not a JSON object: {given!r}") from error


@dataclass
class Arguments:
    """Models, data, schedule and output of a run.

    Which batch size is which: one step takes `new_per_step` new questions, up to rho_replay times as many replayed
    ones and rho_aug times as many reformulated prompts, each with `group_size` rollouts, and makes `updates_per_step`
    gradient updates. micro_tokens and rollout_rows change memory and speed, and results by rounding alone.
    """

    student: str | None = field(default=None, metadata={"help": "model folder or hub id; none: the embedded world"})
    teacher: str | None = field(
        default=None,
        metadata={"help": "frozen teacher: model folder, hub id or http://host:port/v1; several: separated by commas"},
    )
    teacher_model: str | None = field(
        default=None, metadata={"help": "a served teacher's name on its server; none: the server is asked"}
    )
    chat_template_kwargs: JsonObject = field(
        default_factory=JsonObject,
        metadata={"help": """arguments of the student's chat template, as JSON: '{"enable_thinking": true}'"""},
    )
    teacher_chat_template_kwargs: JsonObject = field(
        default_factory=JsonObject,
        metadata={"help": "of the teacher's, for its rollouts; its summaries, hints and verdicts never think"},
    )
    data: str | None = field(default=None, metadata={"help": "questions: hub id, folder, parquet or JSON lines file"})
    split: str = field(default="train", metadata={"help": "split of --data"})
    config: str | None = field(default=None, metadata={"help": "config of --data, where it has several"})
    columns: list[str] = field(
        default_factory=list,
        metadata={"help": "ours=theirs where a column has another name: question=prompt answer=gold images=picture"},
    )
    output: str = field(default="runs/zppo", metadata={"help": "folder for everything the run leaves"})
    resume: bool = field(default=False, metadata={"help": "go on from the newest checkpoint in --output"})
    seed: int = field(default=0, metadata={"help": "root of all randomness"})
    steps: int = field(default=200, metadata={"help": "rollout steps"})
    new_per_step: int = field(default=384, metadata={"help": "|X_new|, new questions per rollout step"})
    lr: float = field(default=1e-6, metadata={"help": "AdamW learning rate, constant"})
    weight_decay: float = field(default=0.1, metadata={"help": "AdamW weight decay"})
    max_prompt_tokens: int = field(default=4096, metadata={"help": "questions with a longer plain prompt are skipped"})
    min_pixels: int = field(default=MIN_PIXELS, metadata={"help": "images are scaled up to this many pixels"})
    max_pixels: int = field(default=MAX_PIXELS, metadata={"help": "images are scaled down to this many pixels"})
    micro_tokens: int = field(
        default=16_384, metadata={"help": "tokens per forward pass of the update, padding included; a longer row alone"}
    )
    rollout_rows: int = field(
        default=0,
        metadata={"help": "rollouts generated at a time on one process; 0: what the GPU's memory holds (on a CPU 64)"},
    )
    cuda_graphs: bool = field(
        default=False,
        metadata={"help": "decode with CUDA graphs: the same tokens; the capture has not been run on a GPU yet"},
    )
    gradient_checkpointing: bool = field(default=False, metadata={"help": "recompute activations in the update"})
    data_may_differ: bool = field(
        default=False, metadata={"help": "resume although the questions changed: a file repaired, a row dropped"}
    )
    save_every: int = field(
        default=10, metadata={"help": "steps between checkpoints; 0: only where the run ends or is stopped"}
    )
    keep_checkpoints: int = field(default=2, metadata={"help": "older checkpoints are deleted; 0: none is"})
    dump_every: int = field(default=10, metadata={"help": "steps between dumps of BCQ and NCQ prompts; 0: none"})
    eval_questions: int = field(
        default=160, metadata={"help": "held-out questions per family, known and hard, at most; 0: no evaluation"}
    )
    log_with: str | None = field(default=None, metadata={"help": "accelerate tracker: tensorboard, wandb, ..."})


def toy_preset() -> dict:
    """Defaults of the embedded world: two passes over its 1920 questions, a few minutes on two cores."""
    return dict(
        student=str(world.WORLD / "student"),
        teacher=str(world.WORLD / "teacher"),
        output="runs/toy",
        steps=120,
        new_per_step=32,
        lr=3e-4,
        micro_tokens=8192,
        rollout_rows=128,
        min_pixels=world.CELL**2,
        max_pixels=64 * world.CELL**2,
        max_response_tokens=32,
        save_every=30,
        dump_every=20,
    )


def parse(argv: list[str]) -> tuple[Arguments, Recipe, bool]:
    """Command line, optionally after a YAML or JSON file of the same names: file over preset, command line over file.

    Returns (arguments, recipe, embedded world?).
    """
    preset = " ".join(f"--{name} {value}" for name, value in toy_preset().items() if name not in ("student", "teacher"))
    parser = HfArgumentParser(
        [Arguments, Recipe],
        description="Train a student with ZPPO. Without --student: the embedded world, on any laptop.",
        epilog=f"The embedded world has its own defaults: {preset}. The first argument may be a YAML or JSON file of "
        "options; the command line has the last word.",
    )
    given: dict = {}
    if argv and argv[0].endswith((".yaml", ".yml", ".json")):
        given = yaml.safe_load(Path(argv[0]).read_text(encoding="utf-8")) or {}
        argv = argv[1:]
    known = {action.dest for action in parser._actions}
    if unknown := sorted(set(given) - known):
        raise SystemExit(f"unknown option in the configuration file: {', '.join(unknown)} (see train.py --help)")
    is_toy = not given.get("student") and not any(arg.split("=")[0] == "--student" for arg in argv)
    asks_help = any(arg in ("-h", "--help") for arg in argv)  # shows Table 8, and the preset below it
    defaults = {**(toy_preset() if is_toy and not asks_help else {}), **given}
    if isinstance(defaults.get("columns"), dict):
        defaults["columns"] = [f"{ours}={theirs}" for ours, theirs in defaults["columns"].items()]
    # argparse converts string defaults as it does arguments: YAML reads 1e-6 as a string.
    numbers = {name: str(value) for name, value in defaults.items() if type(value) in (int, float)}
    parser.set_defaults(**{**defaults, **numbers})
    args, recipe = parser.parse_args_into_dataclasses(argv)
    if is_toy and args.data:
        raise SystemExit("--data needs --student and --teacher too (without all three: the embedded world)")
    if not is_toy and not (args.teacher and args.data):
        raise SystemExit("--student needs --teacher (a model folder or hub id) and --data (the questions)")
    return args, recipe, is_toy
