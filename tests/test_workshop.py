"""The notebook of docs/workshop.md, from the first cell to the last."""

import ast
import json

from runs import ROOT

NOTEBOOK = ROOT / "docs" / "workshop.ipynb"


def shown(source: str, names: dict) -> object:
    """Runs a cell. Returns what a notebook would show below it: the value of its last line, if it is an expression."""
    tree, value = ast.parse(source), None
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), names)
    if last:
        value = eval(compile(ast.Expression(last.value), "cell", "eval"), names)
    return value


def test_every_cell_runs_and_the_question_graduates(monkeypatch):
    monkeypatch.chdir(ROOT / "docs")  # where Jupyter would start it
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    names: dict = {}
    values = [shown("".join(cell["source"]), names) for cell in cells if cell["cell_type"] == "code"]
    assert values[1].size == (480, 160)  # the question's picture
    plain, bcq, ncq = names["rewards"].tolist()
    assert plain == [0.0] * 8 and 0 < sum(bcq) < 8  # what the text around the cells says
    assert not names["signal"].loc["plain"].any() and names["signal"].loc["bcq"].all()
    before, after = names["before"], names["curve"].iloc[-1]
    assert after.right > before["right"] and after.wrong < before["wrong"]
    assert names["curve"].plain.iloc[0] < 0.5 <= names["curve"].plain.iloc[-1]
