"""docs/copy.md: each block runs by itself, from an empty folder."""

import re
import subprocess
import sys

import pytest
from runs import ENV, ROOT

PAGE = (ROOT / "docs/copy.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^## (.+?)$(?:(?!^## ).)*?^```python\n(.*?)^```$", PAGE, re.M | re.S)


def test_every_section_has_one_block_with_asserts():
    assert len(BLOCKS) == PAGE.count("\n## ") == PAGE.count("```python") == 7
    assert all(block.count("assert ") >= 2 and len(block.splitlines()) <= 20 for _, block in BLOCKS)


@pytest.mark.parametrize("block", [block for _, block in BLOCKS], ids=[name for name, _ in BLOCKS])
def test_a_block_runs_by_itself(block, tmp_path):
    done = subprocess.run([sys.executable, "-c", block], cwd=tmp_path, env=ENV, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not [*tmp_path.iterdir()]


def test_every_function_of_the_table_is_used_and_in_its_file():
    table = [line.split("|")[1:3] for line in PAGE.splitlines() if re.match(r"\| `", line)]
    for names, place in table:
        source = (ROOT / re.search(r"\]\(\.\./([\w/]+\.py)\)", place)[1]).read_text(encoding="utf-8")
        for name in re.findall(r"`(\w+)`", names):
            assert re.search(rf"^(def|class) {name}\b", source, re.M), name
            assert any(f"{name}(" in block for _, block in BLOCKS), name
