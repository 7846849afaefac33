import pytest
from runs import train


@pytest.fixture(scope="session")
def reference(tmp_path_factory):
    """One uninterrupted run on one process: (its folder, what it printed)."""
    run = tmp_path_factory.mktemp("reference") / "run"
    done = train(run)
    return run, done.stdout + done.stderr
