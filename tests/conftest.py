import pytest
from runs import train

import evaluate
from engine.options import parse


@pytest.fixture(scope="session")
def reference(tmp_path_factory):
    """One uninterrupted run on one process: (its folder, what it printed)."""
    run = tmp_path_factory.mktemp("reference") / "run"
    done = train(run)
    return run, done.stdout + done.stderr


@pytest.fixture
def here(tmp_path, monkeypatch, capsys):
    """evaluate.py here, in tmp_path: a function from options to (exit status, what was said)."""
    monkeypatch.chdir(tmp_path)

    def run_here(*args: str) -> tuple[int, str]:
        status = 0
        try:
            evaluate.main(*parse([evaluate.Arguments], args, ""))
        except SystemExit as stop:
            status = stop.code
        return status, "".join(capsys.readouterr())

    return run_here
