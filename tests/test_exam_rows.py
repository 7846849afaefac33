"""Rows of the shapes that published sets really hold, through `--root` to the score by hand.

A served model says what a case's `says` has for the question whose words are in the prompt.
"""

import json
import re
import threading
from collections.abc import Callable
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import pytest
import standins
from standins import data_uri, gif, image, parquet, write_json

from suite.rows import split_at_letters

PIXEL = data_uri("red")


class Case(NamedTuple):
    """Rows of one benchmark, what the model says to them, and the score by hand."""

    benchmark: str
    write: Callable[[Path], None]
    says: dict[str, str]  # {words of a prompt: the answer that is boxed}
    score: float
    prompts: dict[str, str] = {}  # {words of a prompt: what else stands in this prompt}
    options: tuple[str, ...] = ()


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def send(self, body: dict):
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        self.send({"data": [{"id": "served"}]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        content = body["messages"][-1]["content"]
        if not isinstance(content, str):
            content = "\n".join(part.get("text", "") for part in content)
        if content != "Say yes.":  # is it there?
            self.server.seen.append(content)
        said = [answer for words, answer in self.server.says.items() if words in content]
        reply = said[0] if said else "?"
        # What begins with a space is said without a box.
        message = {"content": reply if reply.startswith(" ") else f"\\boxed{{{reply}}}"}
        self.send({"choices": [{"index": 0, "finish_reason": "stop", "message": message}]})


@contextmanager
def serve(says: dict[str, str]):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.says = says
    server.seen = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1", server.seen
    server.shutdown()


def summary(name: str) -> dict:
    """What the finished run in this folder says of a benchmark."""
    return json.loads(Path("results.summary.json").read_text())["scores"][name]


# ---- the cases -----------------------------------------------------------------------------------


def mathvision(root: Path) -> None:
    base = {"image": "a.jpg", "decoded_image": image(), "level": 2, "solution": None, "subject": "counting"}
    pictures = ["<image2>", "<image3>", "<image4>"]
    rows = [
        {**base, "id": "1", "question": "Q1: put <image1> beside <image2>. Which?", "options": pictures, "answer": "B"},
        {**base, "id": "2", "question": "Q2: which one?\n<image1>", "options": list("ABCDE"), "answer": "D"},
        {**base, "id": "3", "question": "Q3: see <image3>. How many?", "options": ["1", "2", "3"], "answer": "C"},
    ]
    parquet(rows, root / "MathLLMs/MathVision/data/test-00000-of-00001.parquet")


def mathvista_rows(choices_and_golds: list[tuple]) -> list[dict]:
    metadata = {"category": "c", "context": "x", "grade": "g", "language": "english", "skills": ["s"],
                "source": "s", "split": "testmini", "task": "t"}  # fmt: skip
    base = {"image": "a.jpg", "decoded_image": image(), "unit": None, "precision": None, "metadata": metadata,
            "question_type": "multi_choice", "answer_type": "text", "query": ""}  # fmt: skip
    return [
        {**base, "pid": str(i), "question": f"Q{i}: which?", "choices": list(choices), "answer": gold}
        for i, (choices, gold) in enumerate(choices_and_golds, 1)
    ]


def mathvista_letters(root: Path) -> None:
    rows = mathvista_rows([("ABCD", "B"), ("ABCD", "C")])
    parquet(rows, root / "AI4Math/MathVista/data/testmini-00000-of-00001.parquet")


def mathvista_labels(root: Path) -> None:
    """The letter of an option is not the letter in its text."""
    labels = ("(c)", "(a)", "(e)", "(d)", "(b)")
    turned = ("(c)", "(a)", "(e)", "(b)", "(d)")
    rows = mathvista_rows([(labels, "(b)"), (turned, "(b)"), (labels, "(b)")])
    parquet(rows, root / "AI4Math/MathVista/data/testmini-00000-of-00001.parquet")


def mathverse(root: Path) -> None:
    base = {"sample_index": "1", "problem_index": "1", "query_wo": "", "query_cot": "", "image": image(),
            "metadata": {"split": "testmini", "source": "s", "subject": "s", "subfield": "a"},
            "question_type": "multi-choice", "problem_version": "Text Lite"}  # fmt: skip
    choices = "find it.\nChoices:\nA:30°\nB:60°\nC:90°\nD:120°"
    rows = [{**base, "question": f"Q{i}: {choices}", "question_for_eval": f"Q{i}: {choices}", "answer": "C\nD"}
            for i in range(1, 5)]  # fmt: skip
    parquet(rows, root / "CaraJ/MathVerse-lmmseval/testmini.parquet")
    standins.readme(root / "CaraJ/MathVerse-lmmseval", {"testmini": {"testmini": "testmini.parquet"}})


def mmmu_pro(root: Path) -> None:
    folder = root / "MMMU/MMMU_Pro"
    base = {"explanation": "", "topic_difficulty": "Easy", "img_type": "['Plots']", "subject": "Art"}
    pictures = {f"image_{i}": None for i in range(1, 8)} | {"image_1": image()}
    four = [{**base, **pictures, "id": "1", "question": "Q1: <image 1> shows?", "answer": "C",
             "options": "[['$6', '$7', '$8', '$9']]"}]  # fmt: skip
    ten = [{**base, **pictures, "id": "2", "question": "Q2: <image 1> shows?", "answer": "B",
            "options": "['C', 'A', 'B', 'D']"},
           {**base, **pictures, "id": "3", "question": "Q3: <image 1> shows?", "answer": "A",
            "options": "['C', 'A', 'B', 'D']"}]  # fmt: skip
    seen = [{"id": "4", "image": image(), "options": "['<image 1>', '<image 2>', '<image 3>']", "answer": "B",
             "subject": "Art"}]  # fmt: skip
    for name, rows in (("standard (4 options)", four), ("standard (10 options)", ten), ("vision", seen)):
        parquet(rows, folder / name / "test-00000-of-00001.parquet")


def visualpuzzles(root: Path) -> None:
    rows = [
        {"id": 1, "question": "Q1: <image1> is to <image2> as?", "options": None, "answer": "C", "image": image()},
        {"id": 2, "question": "Q2: which?", "options": ["<image1>", "<image2>"], "answer": "A", "image": image()},
    ]
    parquet(rows, root / "neulab/VisualPuzzles/data/train-00000-of-00001.parquet")


def mmlu_redux(root: Path) -> None:
    base = {"choices": ["one", "two", "three", "four"], "answer": 0, "potential_reason": None,
            "error_type": "multiple_correct_answers", "correct_answer": "depends on interpretation"}  # fmt: skip
    rows = [{**base, "question": f"Q{i}?"} for i in (1, 2, 3)]
    parquet(rows, root / "edinburgh-dawg/mmlu-redux-2.0/professional_law/test-00000-of-00001.parquet")


def dynamath(root: Path) -> None:
    base = {"image": "a.png", "decoded_image": image(), "subject": "arithmetic", "knowledge_level": "high school"}
    rows = [
        {**base, "id": "1", "question": "Q1: how many?", "ground_truth": "15", "answer_type": "int"},
        {**base, "id": "2", "question": "Q2: what is f?", "ground_truth": "an even function", "answer_type": "single answer"},
        {**base, "id": "3", "question": "Q3: how long?", "ground_truth": "1.142", "answer_type": "float"},
        {**base, "id": "4", "question": "Q4: how many?", "ground_truth": "15", "answer_type": "int"},
    ]
    for variant in range(1, 11):
        parquet(rows, root / f"DynaMath/DynaMath_Sample/data/sample_variant{variant}-00000-of-00001.parquet")


def wemath(root: Path) -> None:
    base = {"split": "testmini", "knowledge concept": "k", "question number": 1, "knowledge concept description": "",
            "image_path": image()}  # fmt: skip
    options = ["A. 45° B. 60°;C. 90°;D. No correct answer", "A. 1;B. 2;C. 3; or 4 D. No correct answer",
               "A. 5 cmB. 6 cm;C. Point D. lies;D. No correct answer"]  # fmt: skip
    rows = [{**base, "ID": "7", "question": f"Q{i}?", "option": option, "answer": answer, "key": key}
            for i, (option, answer, key) in enumerate(zip(options, "CDC", ("2steps_1", "2steps_2", "2steps_multi")), 1)]  # fmt: skip
    folder = root / "We-Math/We-Math"
    parquet(rows, folder / "data/testmini-00000-of-00001.parquet")
    write_json([row | {"image_path": "a.png"} for row in rows], folder / "testmini.json", lines=False)


def mmvu(root: Path) -> None:
    folder = root / "lmms-eval/MMVU"
    rows = [{"id": "1", "video_path": "videos/Art/0.gif", "question_type": "multiple-choice", "question": "Q1: which?",
             "choices": dict(zip("ABCDE", ("oil", "ink", "wax", "clay", "wood"))), "answer": "C",
             "metadata": {"subject": "Art"}}]  # fmt: skip
    write_json(rows, folder / "validation.json", lines=False)
    gif(folder / "videos/Art/0.gif")


def videommmu(root: Path) -> None:
    folder = root / "lmms-lab/VideoMMMU"
    for config in ("Perception", "Comprehension", "Adaptation"):
        row = {"id": f"clip_{config}", "question": f"{config}: what is it?", "options": ["b", "oil", "B"], "answer": "B",
               "question_type": "multiple-choice"}  # fmt: skip
        if config == "Adaptation":
            row |= {"question": "<image 1> Adaptation: what is it?", "image": image("lime")}
        parquet([row], folder / config / "test-00000-of-00001.parquet")
        gif(folder / f"Art/clip_{config}.gif")


def charxiv(root: Path) -> None:
    base = {"category": "cs", "year": "2023", "figure_path": "a.jpg", "num_subplots": 1, "reasoning_q_source": 3,
            "image": image(), "subplot_row": 0, "subplot_col": 0, "subplot_loc": None}  # fmt: skip
    base |= {f"descriptive_q{i}": 19 for i in range(1, 5)} | {f"descriptive_a{i}": "6" for i in range(1, 5)}
    rows = [{**base, "reasoning_q": f"Q{kind}?", "reasoning_a": "2", "reasoning_a_type": kind} for kind in range(1, 5)]
    parquet(rows, root / "princeton-nlp/CharXiv/val.parquet")


def vlmsareblind(root: Path) -> None:
    asked = [("Circled Letter", "Q1: which letter?", "o"), ("Nested Squares", "Q2: how many?", "5"),
             ("Counting Grid - Blank Grids", "Q3: rows and columns?", "3,4"), ("Nested Squares", "Q4: how many?", "5")]  # fmt: skip
    rows = [{"task": task, "image": image(), "prompt": prompt, "groundtruth": gold} for task, prompt, gold in asked]
    parquet(rows, root / "XAI/vlmsareblind/data/valid-00000-of-00001.parquet")


def ai2d(root: Path, broken: int = 2) -> None:
    rows = [{"question": f"Q{i}?", "options": ["x", "y"], "answer": "1", "image": PIXEL} for i in range(100)]
    for row in rows[10 : 10 + broken]:
        row["answer"] = "2"
    write_json(rows, root / "lmms-lab/ai2d/data/test.jsonl")


YES = {"truth": ' {"verdict": "correct", "score": 1}'}  # of official judges
CASES = {
    "mathvision: several markers, one picture": Case(
        "mathvision", mathvision, {"Q1": "B", "Q2": "D", "Q3": "A"}, 200 / 3,
        {"Q1": "Q1: put [image 1] beside [image 1]. Which?\nOptions: A, B, C", "Q2": "Options: A, B, C, D, E"}),
    "mathvista: choices that are letters": Case(
        "mathvista", mathvista_letters, {"Q1": "B", "Q2": "B"}, 50, {"Q1": "Options: A, B, C, D"}),
    "mathvista: labels out of order": Case(
        "mathvista", mathvista_labels, {"Q1": "B", "Q2": "B", "Q3": "E"}, 100 / 3),
    "mathverse: two right letters": Case(
        "mathverse", mathverse, {"Q1": "C", "Q2": "D", "Q3": "A", "Q4": "120°"}, 75),
    "mmmu_pro: nested options, letters as texts, pictures as options": Case(
        "mmmu_pro", mmmu_pro, {"Q1": "$8", "Q2": "\\text{B}", "Q3": "\\text{B}", "in the picture": "B"},
        100 * (1 + 0.5 + 1) / 3),
    "visualpuzzles: several markers, one picture": Case(
        "visualpuzzles", visualpuzzles, {"Q1": "C", "Q2": "B"}, 50, {"Q1": "Options: A, B, C, D", "Q2": "Options: A, B"}),
    "mmlu_redux: depends on interpretation": Case(
        "mmlu_redux", mmlu_redux, {"Q1": "A", "Q2": "three", "Q3": "E"}, 200 / 3),
    "dynamath: other types, a unit": Case(
        "dynamath", dynamath, {"Q1": "15", "Q2": "even", "Q3": "1.1425 cm", "Q4": "1"}, 75, {"Q3": "with 3 decimals"}),
    "wemath: two files, glued options": Case(
        "wemath", wemath, {"Q1": "90°", "Q2": "No correct answer", "Q3": "6 cm"}, 200 / 3,
        {"Q1": "A. 45°\nB. 60°\nC. 90°\nD. No", "Q2": "C. 3; or 4\nD. No", "Q3": "A. 5 cm\nB. 6 cm\nC. Point D. lies\nD. No"}),
    "mmvu: another name of the video": Case(
        "mmvu", mmvu, YES | {"Q1": "C"}, 100, options=("--judge",)),
    "videommmu: which picture, which quiz": Case(
        "videommmu", videommmu, {"Perception": "B", "Comprehension": "\\text{B}", "Adaptation": "A"}, 200 / 3,
        {"Perception": "ignore it", "Comprehension": "ignore it", "Adaptation": "after the frames belongs to the question"}),
    "charxiv: a form for each type": Case(
        "charxiv", charxiv, YES, 100,
        {"Q1": "words that stand in the chart", "Q2": "one of the options", "Q3": "number that stands in the chart",
         "Q4": "as an integer"}, ("--judge",)),
    "vlmsareblind: brackets without a box": Case(
        "vlmsareblind", vlmsareblind, {"Q1": " It is {o}.", "Q2": " {5}", "Q3": " rows={3} columns={4}", "Q4": " {4}"}, 75),
    "ai2d: two rows of a hundred": Case("ai2d", ai2d, {"": "B"}, 100),
}  # fmt: skip


def ask(case: Case, tmp_path: Path, here) -> tuple[int, str, list[str]]:
    """(exit status, what was said, the prompts) of a case."""
    case.write(tmp_path / "root")
    with serve(case.says) as (url, seen):
        options = [word for option in case.options for word in (option, url)]
        status, said = here("--model", url, "--benchmarks", case.benchmark, "--root", "root", "--frames", "2", *options)
    return status, said, seen


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_rows_as_they_are(case, tmp_path, here):
    status, said, seen = ask(case, tmp_path, here)
    assert status == 0, said
    assert summary(case.benchmark)["score"] == pytest.approx(case.score)
    if not case.options:  # without a judge: the rules settle all of them
        assert "unsettled" not in summary(case.benchmark)["counts"]
    for words, more in case.prompts.items():
        assert any(words in prompt and more in prompt for prompt in seen), (words, seen)


# ---- a row that cannot be read -------------------------------------------------------------------


def test_two_of_a_hundred_rows_are_left_out_and_named(tmp_path, here):
    status, said, seen = ask(CASES["ai2d: two rows of a hundred"], tmp_path, here)
    assert status == 0 and len(seen) == 98
    assert said.count("ai2d/10: expected the index of one of the options") == 1
    assert said.count("this row is left out") == 2
    assert "ai2d: 98 of 100 rows, 2 unreadable" in said and summary("ai2d")["unreadable"] == 2


def test_three_of_a_hundred_rows_are_too_many(tmp_path, here):
    ai2d(tmp_path / "root", broken=3)
    status, said = here("--benchmarks", "ai2d", "--root", "root")
    assert status == 2 and "ai2d/10: expected the index" in said
    assert "more than 2% of 100 rows cannot be read" in said


def test_a_file_that_is_none_is_named(tmp_path, here):
    file = tmp_path / "root/lmms-lab/ai2d/data/test.parquet"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"no parquet")
    status, said = here("--benchmarks", "ai2d", "--root", "root")
    assert status == 2 and said.startswith("ai2d: ")


@pytest.mark.parametrize(("text", "options"), [
    ("A. 1;B. 2;C. 3", ["A. 1", "B. 2", "C. 3"]), ("A. 1; B. 2 C. 3", ["A. 1", "B. 2", "C. 3"]),
    ("A. x; or y;B. z", ["A. x; or y", "B. z"]), ("A. a B. or so;B. z", ["A. a B. or so", "B. z"]),
    ("A. 1;B. line EC.", ["A. 1", "B. line EC."]), ("300;400", ["300;400"]), ("", [""]),
])  # fmt: skip
def test_options_in_one_string(text, options):
    assert split_at_letters(text) == options


# ---- results that cannot be lost -----------------------------------------------------------------


def aime(root: Path) -> list[str]:
    write_json([{"problem": f"Q{i}?", "answer": 7} for i in range(4)], root / "MathArena/aime_2026/data/train.jsonl")
    return ["--benchmarks", "aime26", "--root", str(root)]


def test_a_finished_file_is_not_overwritten(tmp_path, here):
    args = aime(tmp_path / "root")
    with serve({"": "7"}) as (url, _):
        assert here("--model", url, *args)[0] == 0
        before = Path("results.jsonl").read_text()
        status, said = here("--model", url, *args, "--seed", "1")
        assert status == 2 and "--seed 0 (now 1)" in said and "another --out" in said
        status, said = here("--model", url, *args[2:], "--suite", "llm", "--judge", url)
    assert status == 2 and Path("results.jsonl").read_text() == before
    assert summary("aime26")["score"] == 100


def test_the_score_without_unsettled_rows(tmp_path, here):
    args = aime(tmp_path / "root")
    with serve({"Q0": "7", "Q1": "8", "Q2": "some", "Q3": " no box"}) as (url, _):
        status, said = here("--model", url, *args)
    assert status == 0 and summary("aime26")["score"] == 25 and summary("aime26")["settled"] == 50
    assert re.search(r"(?m)^ +ours +settled +rows .*\naime26 +25.0 +50.0 ", said)


def test_the_limit_of_other_questions(tmp_path, here):
    write_json([{"question": f"Q{i}?", "answer": "7"} for i in range(10)], tmp_path / "mine.jsonl")
    with serve({"Q4": "7", "": "8"}) as (url, seen):
        status, said = here("--model", url, "--data", "mine.jsonl", "--limit", "5", "--suite", "vlm", "--paper", "x")
        assert status == 0 and sorted(re.search("Q.", prompt)[0] for prompt in seen) == ["Q0", "Q2", "Q4", "Q6", "Q8"]
        assert "data            20.0%" in said and "--suite, --paper ignored" in said
        status, said = here("--model", url, "--limit", "3", "--out", "world.jsonl")
        assert status == 0 and len(seen) == 5 + 6 * 3 and "ignored" not in said


def test_packages_of_ocrbench_are_asked_for_first(tmp_path, monkeypatch, here):
    standins.ocrbench(tmp_path / "root")
    for name in ("lmms_eval", "apted", "distance", "jieba", "editdistance"):
        (tmp_path / f"packages/{name}").mkdir(parents=True)
        (tmp_path / f"packages/{name}/__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))
    monkeypatch.setitem(__import__("sys").modules, "Levenshtein", None)
    with serve({}) as (url, seen):
        status, said = here("--model", url, "--benchmarks", "ocrbench_en", "--root", "root")
    assert status == 2 and said.endswith("ocrbench_en: the scorer needs more packages: pip install Levenshtein\n")
    assert not seen


def test_a_model_of_texts_alone_is_asked_nothing_about_images(tmp_path, here):
    from runs import ROOT
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(ROOT / "world/student")
    tokenizer.save_pretrained(tmp_path / "blind")
    settings = json.loads((tmp_path / "blind/tokenizer_config.json").read_text())
    settings.pop("processor_class")
    (tmp_path / "blind/tokenizer_config.json").write_text(json.dumps(settings))
    config = Qwen2Config(vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                         num_attention_heads=2, num_key_value_heads=2)  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(tmp_path / "blind")
    visualpuzzles(tmp_path / "root")
    args = [*aime(tmp_path / "root"), "--model", "blind", "--max_new_tokens", "4"]
    status, said = here(*args)
    assert status == 0, said
    status, said = here(*args, "--benchmarks", "aime26,visualpuzzles", "--out", "both.jsonl")
    assert status == 2 and "visualpuzzles: --model blind reads no images" in said


def test_what_is_wrong_is_named(tmp_path, here):
    args = aime(tmp_path / "root")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    (tmp_path / "notes.txt").write_text("no results\n")
    (tmp_path / "half.toml").write_text('hle = "')
    (tmp_path / "kind.toml").write_text("hle = 1")
    for words, wrong in {
        "--compare metrics.jsonl paper:2B/zppo": "metrics.jsonl: no file of results",
        "--compare paper:2B/zppo notes.txt": "notes.txt: no file of results",
        "--model no/such/folder": "'no/such/folder' cannot be loaded",
        "--judge no/such/judge": "'no/such/judge' cannot be loaded",
        "--ids ai2d": "--ids ai2d: expected benchmark=owner/name",
        "--judge_prompts half.toml": "half.toml: cannot be read as TOML",
        "--judge_prompts kind.toml": "kind.toml: expected prompts called",
        "--judge_prompts none.toml": "none.toml",
    }.items():
        status, said = here(*args, *words.split())
        assert status == 2 and wrong in said, (words, said)
        assert "Traceback" not in said and not list(tmp_path.glob("results*"))  # the right command may follow
