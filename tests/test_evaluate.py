"""evaluate.py: decoding, records on disk, the suite on one and two processes, kills, servers."""

import importlib.util
import io
import json
import os
import re
import signal
import threading
import time
from contextlib import redirect_stdout
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
import standins
from runs import Forked, train

import evaluate
from engine.options import parse
from engine.questions import Question
from evaluate import DECODING, accuracies
from suite.entries import BENCHMARKS, BY_NAME

ROOT = Path(__file__).parent.parent
STUDENT = str(ROOT / "world/student")
SCORED = all(importlib.util.find_spec(module) for module in BY_NAME["ocrbench_en"].packages)
UNSCORED = set() if SCORED else {"ocrbench_en", "ocrbench_zh"}
ASKED = [entry for entry in BENCHMARKS if entry.name not in UNSCORED]
SMALL = "--min_pixels 256 --max_pixels 1024 --frames 3 --max_new_tokens 8".split()


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="session")
def root(tmp_path_factory) -> str:
    return str(standins.build(tmp_path_factory.mktemp("root")))


def test_decoding_is_the_papers():
    assert vars(DECODING) == dict(
        max_new_tokens=12_288,
        temperature=0.6,
        top_p=0.95,
        top_k=20,
        min_p=0.0,
        presence_penalty=1.5,
    )


def test_the_embedded_world_is_a_record_per_question(tmp_path, here):
    status, said = here("--model", STUDENT, "--out", "out/results.jsonl")
    assert status == 0 and "the model computed in fp32" in said, said
    records = read(tmp_path / "out" / "results.jsonl")
    assert len(records) == 480 == len({record["uid"] for record in records})
    for family, accuracy in accuracies(records).items():
        assert f"{family:<14} {accuracy:5.1f}%" in said
        assert (accuracy < 15) == family.endswith("hard")
    assert json.loads((tmp_path / "out/results.summary.json").read_text())[
        "scores"
    ] == accuracies(records)


def test_under_the_same_launcher_it_answers_as_the_run_did(tmp_path):
    env = {"ACCELERATE_MIXED_PRECISION": "bf16"}
    train(tmp_path / "run", "--steps", "1", "--eval_questions", "160", **env)
    options = ["--model", str(tmp_path / "run/model"), "--out", str(tmp_path / "results.jsonl")]
    forked = Forked("evaluate.py", options, **env)
    said, errors = forked.communicate()
    assert forked.returncode == 0 and "the model computed in bf16" in said, errors
    summary = json.loads((tmp_path / "results.summary.json").read_text())
    assert summary["settings"]["precision"] == "bf16"
    asked_then, asked_now = (
        {record["uid"]: record["response"] for record in read(tmp_path / file)}
        for file in ("run/eval_after.jsonl", "results.jsonl")
    )
    assert len(asked_now) == 480 and asked_now == asked_then


def scripted(*replies: str):
    """An actor that says these things, one to each request."""

    def actor(requests, n, sampling, key, phase):
        assert len(requests) == len(replies)
        return [[SimpleNamespace(text=text, tokens=[1], finished=True)] for text in replies]

    return actor


def test_free_form_golds_go_to_the_judge_and_no_others():
    essay = Question("a", "Why?", (), "because of the rain", free_form=True)
    questions = {"essay": [essay], "sum": [Question("b", "1+1", (), "2")]}

    def judge(requests, n, sampling, key, phase):
        assert (
            len(requests) == 1
            and "because of the rain" in requests[0].text
            and sampling.temperature == 0
        )
        return [[SimpleNamespace(text='{"verdict": "correct"}')]]

    records = evaluate.evaluate(scripted("\\boxed{2}", "\\boxed{2}"), questions, judge=judge)
    assert accuracies(records) == {"essay": 100.0, "sum": 100.0}
    kept = "family uid response gold finished tokens reward"
    assert set(records[0]) == set(kept.split())
    with pytest.raises(ValueError, match="need a judge"):
        evaluate.evaluate(scripted("\\boxed{2}"), {"essay": [essay]})


# ---- a served model ------------------------------------------------------------------------------


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def send(self, body: dict, status: int = 200):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        self.send({"data": [{"id": "served"}]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append(body)
        text = json.dumps(body["messages"], ensure_ascii=False)
        if self.server.broken and "Suggest a cake" in text:
            return self.send({"error": "no"}, 400)
        answer = "<think>hm</think>\\boxed{B}"
        if "very strict" in text:  # MultiChallenge's judge
            answer = '{"verdict": "YES"}'
        elif "expert judge" in text:  # the shared one
            answer = json.dumps({"verdict": "correct" if len(text) % 2 else "wrong"})
        self.send(
            {"choices": [{"index": 0, "finish_reason": "stop", "message": {"content": answer}}]}
        )


def serve():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.seen, server.broken = [], False
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


server = pytest.fixture(serve)
judge = pytest.fixture(serve, scope="module")


# ---- the suite -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exam(root, judge, tmp_path_factory) -> tuple[Path, str, list[str]]:
    """The whole suite on the embedded student and a served judge: (folder, output, options)."""
    folder, said = tmp_path_factory.mktemp("exam"), io.StringIO()
    names = (
        ["--suite", "all"]
        if SCORED
        else ["--benchmarks", ",".join(entry.name for entry in ASKED)]
    )
    args = [
        *names,
        "--root",
        root,
        "--judge",
        f"http://127.0.0.1:{judge.server_port}/v1",
        *SMALL,
    ]
    with redirect_stdout(said):
        evaluate.main(
            *parse([evaluate.Arguments], [*args, "--out", str(folder / "results.jsonl")], "")
        )
    return folder, said.getvalue(), args


def test_the_whole_suite(exam):
    folder, said, _ = exam
    records = read(folder / "results.jsonl")
    assert list(dict.fromkeys(record["family"] for record in records)) == [
        entry.name for entry in ASKED
    ]
    summary = json.loads((folder / "results.summary.json").read_text())["scores"]
    for entry in ASKED:
        assert re.search(rf"^{entry.name} ", said, re.MULTILINE)
        assert summary[entry.name]["counts"]["rows"] == len(standins.RIGHT[entry.name])
    scored = {name for name, one in summary.items() if one["score"] is not None}
    assert len(scored) == 31 - len(UNSCORED) and not scored & UNSCORED
    assert "vlm, ours" in said and ("(partial: 14 of 16 benchmarks)" in said) == bool(UNSCORED)
    assert "not the published number of rows: ai2d, " in said
    judged = read(folder / "results.judged.jsonl")
    assert judged == [record for record in records if record["method"] != "rule"] and all(
        record["why"] for record in judged if record["method"] == "judge"
    )
    assert {record["reward"] for record in judged if record["method"] == "judge"} == {0.0, 1.0}
    assert all(record["tokens"] <= 8 for record in records)


def test_killed_on_one_process_it_goes_on_on_two(exam, tmp_path, here):
    folder, said_whole, args = exam
    out = tmp_path / "results.jsonl"
    process = Forked(
        "evaluate.py", [*args, "--out", str(out), "--rows", "1"]
    )  # rounds of 4 questions
    while not out.exists() or len(out.read_text().splitlines()) < 8:
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.communicate(60)
    before = out.read_text().splitlines()
    with open(out, "a") as file:
        file.write('{"family": "mm')  # a line cut short
    status, said = here(*args, "--seed", "1")
    assert status == 2 and "--seed 0 (now 1)" in said
    two = Forked("evaluate.py", [*args, "--out", str(out)], processes=2)
    said_two, errors = two.communicate(300)
    assert two.returncode == 0, errors
    assert out.read_text().splitlines()[: len(before)] == before
    assert read(out) == read(
        folder / "results.jsonl"
    )  # as if it had never been killed, on one process
    lines = said_two.splitlines()
    lines.remove(f"{len(before)} answers are in {out} from an earlier start")
    assert lines[:-1] == said_whole.splitlines()[:-1]  # the last line names the file


def test_ctrl_c_is_a_sentence_and_the_answers_stay(tmp_path):
    out = tmp_path / "results.jsonl"
    process = Forked("evaluate.py", ["--rows", "1", "--out", str(out)])
    while not out.exists() or not out.read_text():
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(60)
    assert process.returncode == 130 and "Traceback" not in errors, errors
    assert errors.endswith("stopped: the same command goes on from what is on disk\n")
    assert len(read(out)) % 4 == 0


def test_limit_and_ids(tmp_path, here):
    rows = [{"problem_idx": i, "problem": f"{i} + 1?", "answer": i + 1} for i in range(20)]
    standins.write_json(rows, tmp_path / "moved/else/where/data/train.jsonl")
    args = [
        "--benchmarks",
        "aime26",
        "--ids",
        "aime26=else/where",
        "--root",
        str(tmp_path / "moved"),
        *SMALL,
    ]
    status, said = here(*args, "--limit", "5")
    assert status == 0, said
    assert [record["uid"] for record in read(tmp_path / "results.jsonl")] == [
        f"aime26/{i}" for i in (0, 4, 8, 12, 16)
    ]


def test_what_cannot_be_asked(root, tmp_path, here):
    status, said = here("--benchmarks", "mmlu,gpqa,aime26", "--root", str(tmp_path))
    for name in (
        "mmlu: expected a folder cais/mmlu",
        "gpqa: expected a folder Idavidrein/gpqa",
        "aime26: expected",
    ):
        assert status == 2 and name in said  # all that is missing at once
    status, said = here("--suite", "vlm", "--root", root)
    assert status == 2 and "charxiv, mmvet: scored by a judge alone; give --judge" in said
    status, said = here("--benchmarks", "mnist")
    assert status == 2 and "no benchmark is called mnist; there are ai2d, " in said
    status, said = here(
        "--benchmarks", "mmlu", "--root", root, "--model", "http://127.0.0.1:1/v1"
    )
    assert status == 2 and "no server" in said
    status, said = here("--benchmarks", "mmlu", "--root", root, "--paper", "7B/zppo")
    assert status == 2 and "no row '7B/zppo'" in said  # before anything is asked
    assert not (tmp_path / "results.summary.json").exists()


def test_list_and_compare(exam, here):
    _, said = here("--list")
    assert all(
        entry.name in said and entry.sources[0] in said and str(entry.size) in said
        for entry in BENCHMARKS
    )
    assert "gated" in said and "cc-by-nc-sa" in said
    results = str(exam[0] / "results.jsonl")
    status, said = here("--compare", "paper:0.8B/grpo_replay", results, "paper:0.8B/zppo")
    assert (
        status == 0
        and f"vlm, {16 - len(UNSCORED)} in all results" in said
        and "llm, 10 in all" in said
    )
    _, said = here("--compare", "paper:0.8B/grpo_replay", "paper:0.8B/zppo")
    assert re.search(r"paper:0.8B/zppo +\+50.25 +\+4.79 +\+3.4\d +\+6.1\d +\+?16", said)
    assert (
        "nowhere.jsonl: no such file of results"
        in here("--compare", results, "nowhere.jsonl")[1]
    )


def test_own_data(tmp_path, here):
    rows = [
        {"question": "Start at 10. Where are you?", "answer": "10"},
        {"question": "Why so?", "answer": "since it rains a lot"},
    ]
    standins.write_json(rows, tmp_path / "mine.jsonl")
    status, said = here("--data", "mine.jsonl", *SMALL)
    assert status == 2 and "1 golds are prose: give --judge or --reward" in said
    status, said = here("--data", "mine.jsonl", "--judge", STUDENT, *SMALL)
    assert status == 0 and "data " in said and len(read(tmp_path / "results.jsonl")) == 2


def test_own_reward(tmp_path, here):
    """It takes the place of the grader and of the judge, and sees the other columns of a row."""
    rows = [
        {"question": "Start at 10. Where are you?", "answer": "10", "marks": 1},
        {"question": "Why so?", "answer": "since it rains a lot", "marks": 0},
    ]
    standins.write_json(rows, tmp_path / "mine.jsonl")
    (tmp_path / "own.py").write_text("def f(question, response, gold, marks): return marks\n")
    args = ["--data", "mine.jsonl", *SMALL]
    status, said = here(*args, "--reward", "own.py:f")
    assert status == 0, said
    assert [record["reward"] for record in read(tmp_path / "results.jsonl")] == [1.0, 0.0]
    status, said = here(*args, "--reward", "own.py:g")
    assert status == 2 and "--reward own.py:g: expected file.py:function" in said
    status, said = here("--compare", "results.jsonl", "results.jsonl")
    assert status == 0 and "questions, 1 in all results" in said and "delta" not in said
    status, said = here("--benchmarks", "aime26", "--reward", "own.py:f")
    assert status == 2 and "--reward is for own data" in said


def test_own_data_with_a_system_turn_and_rows_that_cannot_be_asked(server, tmp_path, here):
    with_own = [{"role": "system", "content": "Be long."}, {"role": "user", "content": "b?"}]
    rows = [{"question": "a?", "answer": "B"}, {"question": "c?", "answer": ""}]
    rows = [dict(row, question=[{"role": "user", "content": row["question"]}]) for row in rows]
    standins.write_json([*rows, {"question": with_own, "answer": "B"}], tmp_path / "mine.jsonl")
    url = f"http://127.0.0.1:{server.server_port}/v1"
    args = ["--data", "mine.jsonl", "--model", url, "--system_prompt", "Be brief.", *SMALL]
    status, said = here(*args)
    assert status == 0 and "skipped: answer_missing 1" in said, said
    asked = [[turn["content"][:9] for turn in body["messages"]] for body in server.seen]
    assert ["Be brief.", "a?\n\nYou F"] in asked and ["Be long.", "b?\n\nYou F"] in asked


def test_a_served_model_and_judge(root, server, tmp_path, here):
    url = f"http://127.0.0.1:{server.server_port}/v1"
    names = ["--benchmarks", "ai2d,multichallenge", "--root", root, "--max_new_tokens", "9"]
    status, said = here("--model", url, "--judge", url, *names)
    assert status == 0, said
    records = read(tmp_path / "results.jsonl")
    assert [record["reward"] for record in records] == [
        1.0,
        0.0,
        1.0,
        1.0,
        0.0,
    ]  # B, not D; YES, but not for NO
    asked = [body["messages"] for body in server.seen]
    talk = next(turns for turns in asked if "Suggest a cake" in json.dumps(turns))
    assert [turn["role"] for turn in talk] == ["user", "assistant", "user"]  # real turns
    assert talk[0]["content"] == "I am allergic to nuts."
    assert talk[2]["content"].startswith("Suggest a cake.\n\nYou FIRST")
    picture = next(turns for turns in asked if "Which colour" in json.dumps(turns))
    assert [part["type"] for part in picture[0]["content"]] == ["image_url", "text"]


def test_requests_without_an_answer_are_no_wrong_answers(root, server, tmp_path, here):
    url = f"http://127.0.0.1:{server.server_port}/v1"
    args = [
        "--model",
        url,
        "--judge",
        url,
        "--benchmarks",
        "ai2d,multichallenge",
        "--root",
        root,
        "--rows",
        "1",
    ]
    server.broken = True
    status, said = here(*args)
    assert status == 2 and "requests got no answer: the same command goes on" in said
    assert not (tmp_path / "results.summary.json").exists()
    server.broken = False
    assert here(*args)[0] == 0 and len(read(tmp_path / "results.jsonl")) == 5
