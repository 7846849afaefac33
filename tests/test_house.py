"""The layout: engine/ knows nothing of the paper, no circle of imports, files of bounded length."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from runs import ROOT

OUTSIDE = ("tests", "bench")  # what nobody imports
SOURCES = [p.relative_to(ROOT) for p in ROOT.rglob("*.py") if not {*OUTSIDE, ".venv", "runs"} & {*p.parts}]
NAMES = {".".join(path.with_suffix("").parts): path for path in SOURCES}
TOP = {"train", "zppo", "buffer", "prompts", "rewards", "generate", "baselines", "evaluate"}


def imports(path: Path) -> set[str]:
    """The files of the project that a file imports, wherever in it the import stands."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found & NAMES.keys()


def test_the_top_level_is_the_paper():
    assert {path.stem for path in SOURCES if len(path.parts) == 1} == TOP
    folders = {path.parts[0] for path in SOURCES if len(path.parts) > 1}
    assert folders <= {"engine", "suite", "world", "extras", "examples"}


def test_engine_imports_nothing_above_it():
    for name, path in NAMES.items():
        if name.startswith("engine."):
            assert all(other.startswith("engine.") for other in imports(path)), name


def test_training_reads_nothing_of_the_suite():
    shown = "import sys, train; print([name for name in sys.modules if name.split('.')[0] in ('suite', 'bench')])"
    done = subprocess.run([sys.executable, "-c", shown], cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"


def test_no_circle_of_imports():
    below = {name: imports(path) for name, path in NAMES.items()}
    while free := [name for name in below if not below[name]]:
        for name in free:
            del below[name]
        below = {name: others - {*free} for name, others in below.items()}
    assert not below, f"these import each other: {below}"


def test_no_file_is_longer_than_a_reader_bears():
    lines = {path: len((ROOT / path).read_text(encoding="utf-8").splitlines()) for path in SOURCES}
    assert {path: n for path, n in lines.items() if n > 520} == {}
    assert sum(n for path, n in lines.items() if len(path.parts) == 1) <= 1850
    assert sum(lines.values()) <= 6135


@pytest.mark.parametrize("name", ["buffer.py", "prompts.py", "engine/logprobs.py", "engine/answers.py"])
def test_what_people_copy_stands_alone(name, tmp_path):
    (tmp_path / "copied.py").write_bytes((ROOT / name).read_bytes())
    subprocess.run([sys.executable, "-c", "import copied"], cwd=tmp_path, check=True, env={"PYTHONSAFEPATH": ""})
