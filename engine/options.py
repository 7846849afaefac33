"""Dataclasses as options: on the command line or in a YAML or JSON file, with help and ranges."""

import difflib
import json
import math
from argparse import ArgumentDefaultsHelpFormatter, ArgumentTypeError
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path

import yaml
from transformers import HfArgumentParser

FILES = (".yaml", ".yml", ".json")


class JsonObject(dict):
    """An option that is a JSON object; in a configuration file a plain mapping."""

    def __init__(self, given="{}"):
        try:
            super().__init__(json.loads(given) if isinstance(given, str) else given)
        except (TypeError, ValueError) as error:
            raise ArgumentTypeError(f"not a JSON object: {given!r}") from error


@dataclass
class Range:
    """The numbers that an option takes, as argparse's `choices`: it asks `in` and prints them."""

    minimum: float
    maximum: float

    def __contains__(self, value: float) -> bool:
        # Not a number is in no range, nor is infinity.
        return self.minimum <= value <= self.maximum and value < math.inf

    def __iter__(self):
        bound = f", up to {self.maximum}" if self.maximum < math.inf else ""
        yield f"{self.minimum} or more{bound}"


def option(
    default,
    help: str,
    minimum: float | None = None,
    maximum: float = math.inf,
    choices: Sequence[str] = (),
):
    """A field with its help, range or choices. default: a value, or a class that makes one."""
    metadata = {"help": help}
    if default is not True:  # argparse refuses a metavar for the --no_... of such an option
        metadata["metavar"] = "N" if type(default) in (int, float) else "TEXT"
    if choices:
        metadata["help"] = f"{help}: {', '.join(choices)}"
        metadata["choices"] = list(choices)
        metadata["metavar"] = "NAME"
    elif minimum is not None:
        metadata["choices"] = Range(minimum, maximum)
    if callable(default):
        return field(metadata=metadata, default_factory=default)
    return field(metadata=metadata, default=default)


def parse(classes: Sequence[type], argv: Sequence[str], description: str) -> list:
    """One object of each dataclass. The first word may be a YAML or JSON file; later words win over
    it. Raises SystemExit (2) with one sentence: an unknown option (and the nearest known one), or a
    value that is none or outside its range."""
    parser = HfArgumentParser(
        classes,
        usage="%(prog)s [OPTIONS.yaml] [--option value ...]",
        description=description,
        allow_abbrev=False,
        formatter_class=partial(OneLine, max_help_position=34),
    )
    line = list(argv)
    if line and line[0].endswith(FILES):
        line = words(line[0]) + line[1:]
    *found, unknown = parser.parse_args_into_dataclasses(line, return_remaining_strings=True)
    if unknown:
        known = [f"--{f.name}" for c in classes for f in fields(c)]
        near = difflib.get_close_matches(unknown[0].split("=")[0], known, 1)
        hint = f": did you mean {near[0]}?" if near else ""
        parser.error(f"unknown option {unknown[0]}{hint}")
    return found


def words(file: str) -> list[str]:
    """The options of a YAML or JSON file as words of a command line, which is checked later."""
    try:
        given = yaml.safe_load(Path(file).read_bytes())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise SystemExit(f"{file}: cannot be read as YAML or JSON: {error}") from error
    if not isinstance(given, dict):
        raise SystemExit(f"{file}: expected lines of the form `name: value`")
    line = []
    for name, value in given.items():
        if value is None or value == []:
            raise SystemExit(f"{file}: {name} has no value: give it one, or leave the line out")
        if isinstance(value, dict):
            pairs = [f"{ours}={theirs}" for ours, theirs in value.items()]
            value = pairs if name == "columns" else json.dumps(value)
        values = value if isinstance(value, list) else [value]
        line += [f"--{name}", *map(str, values)]
    return line


class OneLine(ArgumentDefaultsHelpFormatter):
    """Help with one spelling of each option, on one line if it fits, and its default if any."""

    def _format_action_invocation(self, action) -> str:
        name = min(action.option_strings, key=len)
        if action.metavar and action.nargs != "?":
            return f"{name} {action.metavar}"
        return name

    def _get_help_string(self, action) -> str:
        if action.default or type(action.default) is int:
            return super()._get_help_string(action)
        return action.help
