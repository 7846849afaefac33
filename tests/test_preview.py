"""`python train.py --preview N`: what is seen before a run, through the real command."""

import re
from pathlib import Path

import pytest
from runs import ROOT, train

from engine.output import write_records

PHASES = {"zppo": "rollout teacher compress reformulate update", "off_distill": "teacher update"}


@pytest.mark.parametrize(("method", "kinds"), [("zppo", {"plain", "bcq", "ncq"}), ("off_distill", {"teacher"})])
def test_a_look_at_the_embedded_world(method, kinds, tmp_path):
    screen = train(tmp_path / "run", "--preview", "4", "--method", method).stdout
    assert re.search(r"^1920 of 1920 gold answers go to the rule: '\d+', ", screen, re.M)
    assert re.search(r"^0 of 1920 gold answers go to the judge", screen, re.M)
    shown = re.findall(r"^---- (.+) prompt of question image/", screen, re.M)
    missing = re.findall(r"^---- no (\w+) prompt: (?:the cap was full|the teacher was asked \d+ hard questions)", screen, re.M)
    assert {*shown, *missing} == kinds and len(shown) + len(missing) == len(kinds) and "plain" not in missing
    assert screen.count("\n<|im_start|>assistant") == len(shown)  # in the chat template
    assert len(re.findall(r"^---- reward [01], answer .+, gold '\d+'$", screen, re.M)) == 2 * len(shown)
    assert re.search(r"^step +0  plain .*\n  buffer 0 ", screen, re.M)
    table = screen[screen.index("\nphase ") :].split("\n\n")[0].strip().split("\n")
    assert table[0].split() == "phase seconds, 4 questions a step of 8 4 steps, hours".split()
    assert [line.split()[0] for line in table[1:]] == PHASES[method].split()
    for line in table[1:]:
        seconds, step, _ = map(float, line.split()[1:])
        assert step == pytest.approx(2 * seconds, abs=0.11)  # both are rounded to 0.1
    assert re.search(r"^memory of the main process after an update: [\d.]+ GiB$", screen, re.M)
    assert not (tmp_path / "run").exists()


def test_golds_for_the_judge_and_why_a_prompt_is_missing(tmp_path):
    """The world's teacher knows nothing of these questions: there can be no BCQ prompt, and the look says why."""
    gold = "a cow jumps over the moon because it can"
    rows = [{"problem": f"{i}+1", "answer": str(i + 1)} for i in range(6)]
    rows += [{"problem": f"Why {i}?", "answer": f"{gold} {i}"} for i in range(2)]
    write_records(rows, tmp_path / "data.jsonl")
    models = f"--student {ROOT}/world/student --teacher {ROOT}/world/teacher --data {tmp_path}/data.jsonl".split()
    screen = train(tmp_path / "run", *models, "--max_response_tokens", "8", "--preview", "20").stdout  # more than 8
    assert screen.count("6 of 8 gold answers go to the rule: ") == 1
    assert re.search(rf"^2 of 8 gold answers go to the judge, which is the teacher: '{gold[:38]}", screen, re.M)
    assert {"plain", "ncq"} == {*re.findall(r"^---- (.+) prompt of question ", screen, re.M)}
    asked = re.search(r"^---- no bcq prompt: the teacher was asked (\d+) hard questions and was right on none$", screen, re.M)
    assert 0 < int(asked[1]) <= 8
    assert "judge " in screen[screen.index("\nphase ") :] and "seconds, 8 questions" in screen
    assert [path.name for path in Path(tmp_path).iterdir()] == ["data.jsonl"]
