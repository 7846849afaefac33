"""The commands of README.md: files and modules exist, and each option is one that the command knows."""

import re
import shlex
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path

import pytest
from runs import ROOT, Forked

import evaluate
import train
from zppo import Recipe

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
IN_TEXT = re.findall(r"`((?:python|accelerate|pip) [^`]+)`", README)
LINES = [line for block in BLOCKS for line in block.replace("\\\n", " ").splitlines()] + IN_TEXT
COMMANDS = [shlex.split(command, comments=True) for line in LINES for command in line.split("&&")]


def options(words: list[str]) -> set[str]:
    return {word.split("=")[0] for word in words if word.startswith("--")}


@pytest.mark.parametrize("words", [words for words in COMMANDS if words], ids=" ".join)
def test_a_command_of_the_readme(words):
    if words[:2] == ["accelerate", "launch"]:
        words = words[2:]
        if words[0] == "--config_file":
            assert (ROOT / words[1]).is_file()
            words = words[2:]
    else:
        program, *words = words
        assert program in ("python", "pip", "torchrun")
        if program == "pip":
            return
    if words[0] == "train.py":
        if "--help" not in words:
            train.read_options(words[1:])
    elif words[0] == "evaluate.py":
        assert options(words[1:]) <= {f"--{field.name}" for field in fields(evaluate.Arguments)} | {"--list"}  # an alias
    elif words[:2] == ["-m", "pytest"]:
        return  # what is running now
    elif words[1:2] == ["examples.trl_zppo"]:
        assert (ROOT / "examples" / "trl_zppo.py").is_file()
    else:
        script = words[0]
        if words[0] == "-m":
            script = Path(find_spec(words[1]).origin).relative_to(ROOT)
        forked = Forked(script, ["--help"])
        said, errors = forked.communicate()
        assert forked.returncode == 0, errors
        assert options(words) <= options(said.split()) | {f"--{f.name}" for f in fields(train.Arguments)}


def test_options_in_the_text_exist():
    known = {f"--{field.name}" for where in (train.Arguments, Recipe, evaluate.Arguments) for field in fields(where)}
    shown = {word for text in re.findall(r"`([^`\n]+)`", README) for word in options(re.split(r"[\s=]", text))}
    others = {"--jobs", "--methods", "--seeds", "--out", "--config_file", "--use_vllm", "--help"}  # of other commands
    assert shown <= known | others
