"""evaluate.py: the paper's decoding, records on disk, and the judge's seam."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import evaluate
from engine.questions import Question
from evaluate import DECODING, accuracies

ROOT = Path(__file__).parent.parent


def test_decoding_is_the_papers():
    assert vars(DECODING) == dict(
        max_new_tokens=12_288, temperature=0.6, top_p=0.95, top_k=20, min_p=0.0, presence_penalty=1.5
    )


def test_command_line_writes_a_record_per_question(tmp_path):
    command = [sys.executable, f"{ROOT}/evaluate.py", "--model", f"{ROOT}/world/student", "--out", "out/results.jsonl"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert len(records) == 480 == len({record["uid"] for record in records})
    for family, accuracy in accuracies(records).items():
        assert f"{family:<14} {accuracy:5.1f}%" in done.stdout
        assert (accuracy < 15) == family.endswith("hard")


def test_free_form_golds_go_to_the_judge_and_no_others():
    essay = Question("a", "Why?", (), "because of the rain", free_form=True)
    questions = {"essay": [essay], "sum": [Question("b", "1+1", (), "2")]}

    def actor(requests, n, sampling, key, phase):
        return [[SimpleNamespace(text="\\boxed{2}", finished=True)] for _ in requests]

    def judge(requests, n, sampling, key, phase):
        assert len(requests) == 1 and "because of the rain" in requests[0].text and sampling.temperature == 0
        return [[SimpleNamespace(text='{"verdict": "correct"}')]]

    records = evaluate.evaluate(actor, questions, judge=judge)
    assert accuracies(records) == {"essay": 100.0, "sum": 100.0}
