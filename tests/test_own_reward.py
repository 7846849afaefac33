"""A reward of one's own: what it sees, and what its failures do."""

import subprocess
import sys

import pytest
from runs import ENV, ROOT, torchrun
from test_rows import from_file

from engine.questions import Question
from evaluate import evaluate
from extras.own_reward import load_reward
from generate import Reply, Request
from rewards import Response, score
from zppo import Context, Recipe, scored_rollouts

QUESTION = Question("u", "Is 7 prime?", (), "yes")
RIGHT = Response(QUESTION.text, "\\boxed{yes}", "yes", False)


def own(folder, code: str) -> str:
    (folder / "own.py").write_text(code)
    return f"{folder / 'own.py'}:f"


@pytest.mark.parametrize(
    ("arguments", "seen"),
    [
        ("question, response, gold", {}),
        ("question, response, gold, tests", {"tests": ["t"]}),
        ("question, response, gold, tests=None, absent=3", {"tests": ["t"], "absent": 3}),
        ("q, r, g, **row", {"question": "a?", "answer": "1", "tests": ["t"], "gold": "no"}),
        ("question, response, gold, **row", {"answer": "1", "tests": ["t"]}),
    ],
)
def test_it_sees_the_columns_of_its_row_that_it_names(tmp_path, arguments, seen):
    row = {"question": "a?", "answer": "1", "tests": ["t"], "gold": "no"}
    (question,), _ = from_file(tmp_path, row)
    code = f"seen = []\ndef f({arguments}):\n    seen.append(dict(locals()))\n    return 1\n"
    one = Response(question.text, "so", question.answer, False, None, question.row)
    reward = load_reward(own(tmp_path, code), question)
    assert score([one], reward=reward) == [1.0]
    got = reward.function.__globals__["seen"][-1]
    got = got | got.pop("row", {})
    first = arguments.split(", ")[:3]
    assert {name: value for name, value in got.items() if name not in first} == seen


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        ("import nothing_of_that_name\n", "ModuleNotFoundError"),
        ("import sys\nsys.exit(3)\n", "SystemExit: 3"),
        ("def f(question, response): return 1\n", "TypeError"),
        ("def f(q, r, g): return None\n", "gave None: expected is 0 or 1"),
        ("def f(q, r, g): return 0.5\n", "gave 0.5: expected is 0 or 1"),
        ("import numpy\ndef f(q, r, g): return numpy.ones(2)\n", "ValueError"),
        ("def f(q, r, g, tests): return 1\n", "TypeError.*tests"),
        ("def f(q, r, g): raise KeyError(g)\n", "KeyError: 'yes'"),
        ("def g(q, r, g): return 1\n", "KeyError: 'f'"),
        ("f = 3\n", "TypeError: 3 is not a callable"),
        ("def f(:\n", "SyntaxError"),
    ],
)
def test_one_that_cannot_work_is_a_sentence_before_training(tmp_path, code, cause):
    place = own(tmp_path, code)
    said = "expected file.py:function|fails on the response '.*yes}' to 'Is 7 prime.'"
    with pytest.raises(SystemExit, match=rf"--reward .*own.py:f: ({said}) \(.*{cause}"):
        load_reward(place, QUESTION)


def test_it_may_import_its_neighbours(tmp_path):
    (tmp_path / "neighbour_of_own.py").write_text("def right(gold): return gold == 'yes'\n")
    code = "from neighbour_of_own import right\ndef f(q, r, g): return right(g)\n"
    assert load_reward(own(tmp_path, code), QUESTION)([RIGHT]) == [1.0]


@pytest.mark.parametrize("act", ["1 / 0", "sys.exit(1)", "[].pop()"])
def test_one_that_fails_later_counts_as_0_and_is_counted(tmp_path, act, capsys):
    code = f"import sys\ndef f(q, r, g):\n    if r == 'bad': {act}\n    return r == 'good'\n"
    reward = load_reward(own(tmp_path, code), QUESTION)
    items = [RIGHT._replace(text=text) for text in ("good", "bad", "other", "bad", "good")]
    assert score(items, reward=reward) == [1.0, 0.0, 0.0, 0.0, 1.0]
    failed = f"--reward {reward.place}: 2 of 5 calls failed and count as 0, the first with "
    assert failed in capsys.readouterr().out


def test_a_value_that_is_no_reward_counts_as_0_later(tmp_path, capsys):
    code = "def f(q, r, g): return {'half': 0.5, 'none': None}.get(r, 1)\n"
    reward = load_reward(own(tmp_path, code), QUESTION)
    items = [RIGHT._replace(text=text) for text in ("half", "none", "good")]
    assert score(items, reward=reward) == [0.0, 0.0, 1.0]
    failed = "2 of 3 calls failed and count as 0, the first with ValueError: gave 0.5: expected is"
    assert failed in capsys.readouterr().out


def test_two_processes_learn_from_one_and_the_same_reward(tmp_path):
    code = "import os\ndef f(q, r, g): return os.environ['RANK'] == r or 'box' in r\n"
    script = (
        "import sys; from accelerate import PartialState\n"
        "from extras.own_reward import *\n"
        "from rewards import score\n"
        "state = PartialState(cpu=True)\n"
        "one = Response('q', '0', 'g', False)\n"
        "reward = load_reward(sys.argv[1], Question('u', 'q', (), 'g'))\n"
        "rewards = score([one, one._replace(text='1')], reward=reward)\n"
        # One write, which the other process's cannot split.
        "print(f'{state.process_index} {rewards}\\n', end='', flush=True)\n"
        "state.destroy_process_group()\n"
    )
    (tmp_path / "script.py").write_text(script)
    command = [sys.executable, *torchrun(2), str(tmp_path / "script.py"), own(tmp_path, code)]
    done = subprocess.run(command, cwd=ROOT, env=ENV, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split("\n"))[-2:] == ["0 [1.0, 0.0]", "1 [1.0, 0.0]"]


def test_training_and_evaluation_hand_over_the_row(tmp_path):
    row = {"question": "3 + 1?", "answer": "4", "tests": ["even"]}
    (question,), _ = from_file(tmp_path, row)
    code = "def f(q, r, g, tests): return tests == ['even'] and len(r) % 2 == 0\n"
    reward = load_reward(own(tmp_path, code), question)

    def actor(requests, n, *rest):
        return [[Reply("a" * i, [1], True) for i in range(n)] for _ in requests]

    ctx = Context(actor, None, Recipe(), (0, 0), reward)
    request = Request("plain", question.uid, question.text, question)
    (rollouts,) = scored_rollouts(ctx, actor, [request], 3, "rollout")
    assert [rollout.reward for rollout in rollouts] == [1.0, 0.0, 1.0]
    (record,) = evaluate(actor, {"own": [question]}, reward=reward)
    assert record["reward"] == 1.0
