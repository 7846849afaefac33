"""What the documentation names exists: files, functions, tests, options."""

import json
import re

import pytest
from runs import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SOURCES = {p.relative_to(ROOT).as_posix(): p.read_text(encoding="utf-8") for p in ROOT.rglob("*.py")}
TESTS = {name for path in SOURCES if path.startswith("tests/") for name in re.findall(r"def (test_\w+)", SOURCES[path])}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?://|#)([^)#\s]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_tests_exist(page):
    for name in re.findall(r"`(test_\w+)`", page.read_text(encoding="utf-8")):
        assert name in TESTS, name


def test_every_function_of_the_papers_page_is_in_its_file():
    lines = (ROOT / "docs/paper.md").read_text(encoding="utf-8").splitlines()
    seen = 0
    for cell in [cell for line in lines if line.startswith("|") for cell in line.split("|")]:
        found = re.findall(r"\]\(\.\./([\w/]+\.py)\)|`([A-Za-z_.]+)`", cell)
        files = [path for path, _ in found if path]
        for name in [name for _, name in found if name and not name.startswith("test_")]:
            for part in name.split("."):
                texts = [SOURCES[path] for path in files] or [SOURCES["zppo.py"], SOURCES["train.py"]]
                assert any(re.search(rf"(def|class) {part}\b|^ *{part}\b *[:=]", text, re.M) for text in texts), name
                seen += 1
    assert seen > 50


def test_every_logged_metric_is_in_the_glossary(reference):
    run, _ = reference
    named = set(re.findall(r"`(\w+)`", (ROOT / "docs/metrics.md").read_text(encoding="utf-8")))
    for file in ("metrics.jsonl", "times.jsonl"):
        logged = json.loads((run / file).read_text(encoding="utf-8").splitlines()[-1])
        assert logged.keys() <= named, logged.keys() - named
