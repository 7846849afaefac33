"""What a run makes of its options and its data before the first step."""

import json
import re

import pytest
import tiny
from runs import train
from test_questions import cut, encoded

from engine.questions import Question
from extras.setup import load_data, usable
from generate import Actor
from train import Arguments, read_options

OWN = ["--student", "s", "--teacher", "t", "--data", "d"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--min_pixels", "9", "--max_pixels", "8"], "--min_pixels is more than --max_pixels"),
        (["--output", ""], "--output is empty"),
        (["--output="], "--output is empty"),
    ],
)
def test_options_that_contradict_are_a_sentence(options, message):
    with pytest.raises(SystemExit, match=message):
        read_options([*OWN, *options])


@pytest.mark.parametrize(
    "option", ["--lr inf", "--lr 1e30", "--lr nan", "--weight_decay inf", "--max_grad_norm 0"]
)
def test_numbers_with_which_nothing_is_learnt_are_in_no_range(option, capsys):
    with pytest.raises(SystemExit):
        read_options([*OWN, *option.split()])
    assert re.search(rf"argument {option.split()[0]}\b.*invalid choice", capsys.readouterr().err)


def write(folder, *rows: dict) -> str:
    (folder / "set.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return str(folder / "set.jsonl")


def test_what_eval_data_lose_is_reported(tmp_path, capsys):
    good, bad = {"question": "a?", "answer": "1"}, {"question": "b?", "answer": ""}
    place = write(tmp_path, good, bad)
    args = Arguments(data=place, eval_data=place)
    questions, held_out = load_data(args)
    assert len(questions) == len(held_out["eval_data"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "skipped: answer_missing 1",
        "gold answers taken from: column 1",
        "1 of 1 gold answers go to the rule: '1'",
        "0 of 1 gold answers go to the judge, which is the teacher",
        "skipped of --eval_data: answer_missing 1",
    ]


def test_one_system_prompt_for_training_and_held_out_questions(tmp_path):
    own = [{"role": "system", "content": "Be long."}, {"role": "user", "content": "a?"}]
    bare = [{"role": "user", "content": "b?"}]
    place = write(tmp_path, *({"question": asked, "answer": "1"} for asked in (own, bare)))
    args = Arguments(data=place, eval_data=place, system_prompt="Be brief.")
    questions, held_out = load_data(args)
    for asked in (questions, held_out["eval_data"]):
        assert [question.system for question in asked] == ["Be long.", "Be brief."]


def test_held_out_questions_are_held_to_the_same_bounds(tmp_path, capsys):
    (tmp_path / "cut.png").write_bytes(cut("PNG"))
    (tmp_path / "good.png").write_bytes(encoded())
    rows = [{"question": f"{n}?", "answer": "1", "image": f"{n}.png"} for n in ("cut", "good")]
    long = {"question": "why? " * 5000, "answer": "1", "image": "good.png"}
    args = Arguments(eval_data=write(tmp_path, *rows, long), new_per_step=1)
    args.data = args.eval_data
    questions, held_out = load_data(args)
    student = Actor(tiny.make("qwen3_5"), tiny.PROCESSOR)
    questions, held_out = usable(args, questions, held_out, student, student)
    assert [question.text for question in held_out["eval_data"]] == ["good?"]
    assert [question.text for question in questions] == ["cut?", "good?"]  # each step looks anew
    out = capsys.readouterr().out
    assert "image cannot be decoded" in out
    assert out.count("1 questions are left out: their prompts have more than") == 2


@pytest.mark.parametrize("blind", ["--student", "--teacher", "--eval_data"])
def test_image_data_with_a_model_that_reads_text_are_refused(blind):
    text = Actor(tiny.make("qwen3"), tiny.TOKENIZER)
    sees = Actor(tiny.make("qwen3_5"), tiny.PROCESSOR)
    pictured = [Question("p", "q?", (tiny.colour("red"),), "1")]
    plain = [Question("p", "q?", (), "1")]
    args = Arguments(new_per_step=1)
    student, teacher = (sees, text) if blind == "--teacher" else (text, sees)
    questions = plain if blind == "--eval_data" else pictured
    held_out = {"eval_data": pictured} if blind == "--eval_data" else {}
    with pytest.raises(
        SystemExit, match=f"{blind.replace('eval_data', 'student')}.*reads no images"
    ):
        usable(args, questions, held_out, student, teacher)


def test_a_run_is_resumed_with_its_architecture_and_its_arguments(tmp_path):
    for name in ("qwen3", "gemma2"):
        tiny.make(name).save_pretrained(tmp_path / name)
        tiny.TOKENIZER.save_pretrained(tmp_path / name)
    rows = [{"question": f"{i} + 1?", "answer": str(i + 1)} for i in range(4)]
    own = f"--teacher {tmp_path}/qwen3 --data {write(tmp_path, *rows)} --new_per_step 4".split()
    own += "--max_response_tokens 4 --save_every 1 --dump_every 0 --steps".split()
    train(tmp_path / "run", "--student", f"{tmp_path}/qwen3", *own, "1")
    own += ["2", "--resume"]
    done = train(tmp_path / "run", "--student", f"{tmp_path}/gemma2", *own, check=False)
    assert done.returncode == 2
    assert f"another architecture than --student {tmp_path}/gemma2" in done.stderr
    arguments = tmp_path / "run" / "args.json"
    for damage in (arguments.unlink, lambda: arguments.write_text('{"cut": ')):
        damage()
        done = train(tmp_path / "run", "--student", f"{tmp_path}/qwen3", *own, check=False)
        assert done.returncode == 2 and "args.json cannot be read" in done.stderr
        assert "Traceback" not in done.stderr
    assert (tmp_path / "run" / "checkpoints" / "step_00001").exists()
