"""Dataclasses as options: on the command line, in a YAML or JSON file, each with its help and its range."""

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


class JsonObject(dict):
    """An option that is a JSON object; in a configuration file a plain mapping."""

    def __init__(self, given="{}"):
        try:
            super().__init__(json.loads(given) if isinstance(given, str) else given)
        except (TypeError, ValueError) as error:
            raise ArgumentTypeError(f"not a JSON object: {given!r}") from error


@dataclass
class Range:
    """The numbers that an option takes, as argparse's `choices`: it asks what is in them and prints them."""

    minimum: float
    maximum: float

    def __contains__(self, value: float) -> bool:
        return self.minimum <= value <= self.maximum  # not a number is in no range

    def __iter__(self):
        yield f"{self.minimum} or more" + (f", up to {self.maximum}" if self.maximum < math.inf else "")


def option(default, help: str, minimum: float | None = None, maximum: float = math.inf, choices: Sequence[str] = ()):
    """A field with its help, and its range or its choices. default: a value, or a class that makes one."""
    metadata: dict = {"help": help, "metavar": "N" if type(default) in (int, float) else "TEXT"}
    if choices:
        metadata = {"help": f"{help}: {', '.join(choices)}", "choices": list(choices), "metavar": "NAME"}
    elif minimum is not None:
        metadata["choices"] = Range(minimum, maximum)
    return field(metadata=metadata, **{"default_factory" if callable(default) else "default": default})


class OneLine(ArgumentDefaultsHelpFormatter):
    """Help with one spelling of each option, on one line where it fits, and defaults where there are any."""

    def _format_action_invocation(self, action) -> str:
        return min(action.option_strings, key=len) + (f" {action.metavar}" if action.metavar and action.nargs != "?" else "")

    def _get_help_string(self, action) -> str:
        return super()._get_help_string(action) if action.default or type(action.default) is int else action.help


def words(file: str) -> list[str]:
    """The options of a YAML or JSON file as words of a command line, which is checked as a whole."""
    try:
        given = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise SystemExit(f"{file}: cannot be read as YAML or JSON: {error}") from error
    if not isinstance(given, dict):
        raise SystemExit(f"{file}: expected lines of the form `name: value`")
    line: list[str] = []
    for name, value in given.items():
        if value is None or value == []:
            raise SystemExit(f"{file}: {name} has no value: give it one, or leave the line out")
        if isinstance(value, dict):
            pairs = [f"{ours}={theirs}" for ours, theirs in value.items()]
            value = pairs if name == "columns" else json.dumps(value)
        line += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return line


def parse(classes: Sequence[type], argv: Sequence[str], description: str) -> list:
    """One object of each dataclass. The first word may be a YAML or JSON file; what comes later has the last word.
    Raises SystemExit (2) with one sentence: an unknown option (and the nearest known one), or a value that is none or
    outside its range."""
    form, usage = partial(OneLine, max_help_position=34), "%(prog)s [OPTIONS.yaml] [--option value ...]"
    parser = HfArgumentParser(classes, usage=usage, description=description, allow_abbrev=False, formatter_class=form)
    if argv and argv[0].endswith((".yaml", ".yml", ".json")):
        argv = [*words(argv[0]), *argv[1:]]
    *found, unknown = parser.parse_args_into_dataclasses(list(argv), return_remaining_strings=True)
    if unknown:
        known = [f"--{f.name}" for c in classes for f in fields(c)]
        near = difflib.get_close_matches(unknown[0].split("=")[0], known, 1)
        parser.error(f"unknown option {unknown[0]}" + (f": did you mean {near[0]}?" if near else ""))
    return found
