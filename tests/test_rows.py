"""What a row of a set becomes: golds of other types, options, chats, mixed sets; refusals."""

import json
import pickle

import datasets
import numpy as np
import pytest
from PIL import Image
from test_questions import TEXT, cell, encoded, save

from engine import images as pixels
from engine import questions as data
from engine.questions import DataError, load_questions, open_images


def load(rows: list[dict], **features):
    """Questions and report of rows in memory. features: of columns that are not plain text."""
    types = {name: features.get(name, TEXT) for name in rows[0]}
    return load_questions(datasets.Dataset.from_list(rows, datasets.Features(types)))


def from_file(folder, *rows: dict):
    (folder / "set.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return load_questions(str(folder / "set.jsonl"))


# ---------------------------------------------------------------- golds


def test_a_gold_is_what_people_write_and_not_how_it_is_stored():
    label = datasets.ClassLabel(names=["cat", "dog"])
    float32 = datasets.Value("float32")
    rows = [{"question": f"q{i}?", "answer": i} for i in (1, 0, None, -1)]
    questions, report = load(rows, answer=label)
    assert [question.answer for question in questions] == ["dog", "cat", "-1"]
    assert report["gold_from"] == {"class name": 2, "column": 1}
    assert report["skipped"] == {"answer_missing": 1}

    rows = [{"question": f"q{value}?", "answer": value} for value in (0.1, 2.5, 1e-3, 3.0)]
    questions, report = load(rows, answer=float32)
    assert [question.answer for question in questions] == ["0.1", "2.5", "0.001", "3.0"]
    assert report["gold_from"] == {"float32": 4}

    rows = [{"question": f"q{value}?", "answer": value} for value in (True, False)]
    questions, report = load(rows, answer=datasets.Value("bool"))
    assert [question.answer for question in questions] == ["True", "False"]
    assert report["gold_from"] == {"boolean": 2}


# ---------------------------------------------------------------- options

COLOURS = ["red", "green", "blue"]


@pytest.mark.parametrize(
    ("options", "answer", "gold"),
    [
        (COLOURS, "1", "B"),
        (COLOURS, 2, "C"),
        (COLOURS, "B", "B"),
        (COLOURS, "b", "B"),
        (COLOURS, "(c)", "C"),
        (COLOURS, "green", "B"),
        (COLOURS, "violet", "violet"),
        ("['red', 'green', 'blue']", "0", "A"),
        ({"text": COLOURS, "label": ["1", "2", "3"]}, "3", "C"),
        ({"text": COLOURS, "label": ["A", "B", "C"]}, "C", "C"),
        ({"text": COLOURS, "label": [1, 2, 3]}, 1, "A"),
        (["A)red", "B) green", "(C) blue"], "C", "C"),
        ("A. red\nB. green\nC. blue", "1", "B"),
    ],
)
def test_options_in_a_column_are_listed_and_a_number_is_a_place(tmp_path, options, answer, gold):
    row = {"question": "Which?", "choices": options, "answer": answer}
    (question,), report = from_file(tmp_path, row)
    assert question.text == "Which?\nA. red\nB. green\nC. blue"
    assert question.answer == gold and not question.free_form
    assert report["columns"]["options"] == ["choices"]


def test_options_in_the_types_of_a_data_set():
    label = datasets.ClassLabel(names=["A", "B"])
    choices = datasets.List(TEXT)
    row = {"question": "1 + 1?", "choices": ["2", "3"], "answer": 0}
    (question,), _ = load([row], answer=label, choices=choices)
    assert (question.text, question.answer) == ("1 + 1?\nA. 2\nB. 3", "A")
    (question,), _ = load([row], answer=datasets.Value("int64"), choices=choices)
    assert (question.text, question.answer) == ("1 + 1?\nA. 2\nB. 3", "A")


def test_what_is_not_clear_about_options_is_skipped_and_counted(tmp_path):
    rows = [
        {"question": "a?", "options": ["1", "2", "3"], "answer": "2"},  # a place or a text
        {"question": "b?", "options": COLOURS, "answer": "3"},
        {"question": "b?", "options": COLOURS, "answer": "D"},
        {"question": "c?", "options": [{"a": 1}, "x"], "answer": "1"},
        {"question": "d?", "options": list(map(str, range(27))), "answer": "x"},
        {"question": "e?", "options": [], "answer": "3"},
        {"question": "f?", "options": None, "answer": "3"},
        {"question": "g?", "options": ["1", "2", "2"], "answer": "1"},
        {"question": "h?", "options": "red, green", "answer": "A"},
        {"question": "i?", "options": {"A": "red", "B": "green"}, "answer": "A"},
    ]
    questions, report = from_file(tmp_path, *rows)
    assert [(question.text, question.answer) for question in questions] == [
        ("e?", "3"),
        ("f?", "3"),
    ]
    assert report["skipped"] == {"options_unclear": 8}
    path = str(tmp_path / "set.jsonl")
    assert len(load_questions(path, columns=["options="])[0]) == 9  # one "b?" is the other's copy


# ---------------------------------------------------------------- chats


def chat(*turns) -> list[dict]:
    return [{"role": role, "content": content} for role, content in turns]


def test_earlier_turns_belong_to_the_question(tmp_path):
    first = ("user", "<image>Let x = 2. Answer with one word.")
    rows = [
        {"prompt": chat(("system", "Be kind."), first, ("assistant", "Good."), ("user", "x + 1?"))},
        {"prompt": chat(("user", "Let x = 5."), ("assistant", "Good."), ("user", "x + 1?"))},
        {"prompt": chat(("user", "x + 1?"), ("assistant", "3"))},
    ]
    (tmp_path / "i.png").write_bytes(encoded())
    rows[0]["image"] = "i.png"
    questions, report = from_file(tmp_path, *(row | {"answer": "3"} for row in rows))
    assert [question.text for question in questions] == ["x + 1?"] * 3
    assert report["skipped"] == {}
    assert questions[0].system == "Be kind." and len(questions[0].images) == 1
    assert questions[0].turns == (("user", "Let x = 2."), ("assistant", "Good."))
    assert questions[2].turns == ()
    assert len({question.uid for question in questions}) == 3
    prints = [data.fingerprint([question]) for question in questions]
    assert len(set(prints)) == 3


@pytest.mark.parametrize(
    "prompt",
    [
        chat(("user", [True])),
        chat(("user", [["a"]])),
        chat(("user", {"text": {"a": "b"}})),
        chat(("user", [{"type": "video", "video": "v.mp4"}, {"type": "text", "text": "q?"}])),
        chat(("user", [{"type": "audio", "text": None, "image": None}])),
        chat((["user"], "q?")),
        chat(("tool", "4"), ("user", "q?")),
        ["q?"],
        {"text": "q?"},
    ],
)
def test_an_odd_chat_is_skipped_and_counted(tmp_path, prompt):
    good = {"prompt": chat(("user", "1 + 1?")), "answer": "2"}
    questions, report = from_file(tmp_path, good, {"prompt": prompt, "answer": "1"})
    assert [question.text for question in questions] == ["1 + 1?"]
    assert report["skipped"] == {"question_unreadable": 1}


# ---------------------------------------------------------------- mixed sets, and what is refused


@pytest.mark.parametrize("empty", [None, "", float("nan"), [], [None], [""], {"bytes": None}])
def test_text_rows_of_a_mixed_set_are_text_rows(tmp_path, empty):
    (tmp_path / "i.png").write_bytes(encoded())
    rows = [
        {"question": "a?", "answer": "1", "image": "i.png"},
        {"question": "b?", "answer": "1", "image": empty},
        {"question": "<image>c?", "answer": "1", "image": empty},
    ]
    questions, report = from_file(tmp_path, *rows)
    assert [(question.text, len(question.images)) for question in questions] == [
        ("a?", 1),
        ("b?", 0),
    ]
    assert report["skipped"] == {"image_missing": 1}


def test_an_image_behind_an_empty_cell_keeps_its_place(tmp_path):
    (tmp_path / "i.png").write_bytes(encoded(color=(9, 9, 9)))
    row = {"question": "a?", "answer": "1", "images": [None, "i.png"]}
    (question,), _ = from_file(tmp_path, row)
    assert open_images(question)[0].getpixel((0, 0)) == (9, 9, 9)


@pytest.mark.parametrize(
    "feature", [datasets.Video(), datasets.Audio(), datasets.List(datasets.Video())]
)
def test_a_column_of_videos_or_sounds_is_refused_by_name(tmp_path, feature):
    features = {"question": TEXT, "answer": TEXT, "clip": feature}
    with pytest.raises(DataError, match="column 'clip' is no text and no image"):
        data.map_columns("set", features, ())
    with pytest.raises(DataError, match="column 'videos' is no text and no image"):
        from_file(tmp_path, {"question": "What?", "answer": "rain", "videos": ["v.mp4"]})


def test_a_column_has_one_meaning(tmp_path):
    (tmp_path / "set.jsonl").write_text('{"problem": "a?", "answer": "1"}')
    for columns in (["question=problem", "answer=problem"], ["question=answer"]):
        with pytest.raises(DataError, match="would be two of"):
            load_questions(str(tmp_path / "set.jsonl"), columns=columns)


def test_an_empty_slice_names_the_split(tmp_path):
    row = {"question": "a?", "answer": "1"}
    (tmp_path / "set.jsonl").write_text(json.dumps(row))
    parquet = save(tmp_path / "set.parquet", [row])
    for path in (str(tmp_path / "set.jsonl"), parquet):
        with pytest.raises(DataError, match=r"cannot be opened with split='train\[:0\]'"):
            load_questions(path, split="train[:0]")


def test_a_question_knows_its_row(tmp_path):
    row = {
        "question": "a?",
        "answer": "1",
        "tests": ["t1", "t2"],
        "image": cell(),
        "info": {"n": 3},
    }
    features = datasets.Features(
        {
            "question": TEXT,
            "answer": TEXT,
            "tests": datasets.List(TEXT),
            "image": datasets.Image(),
            "info": {"n": datasets.Value("int64")},
        }
    )
    path = save(tmp_path / "set.parquet", [row], features)
    (question,), _ = load_questions(path)
    del row["image"]
    assert question.row() == row
    (question,), _ = from_file(tmp_path, {"question": "a?", "answer": "1", "tests": "t"})
    assert question.row() == {"question": "a?", "answer": "1", "tests": "t"}
    assert pickle.loads(pickle.dumps(question)).row() == question.row()
    # Numbers are numbers in the row, and as they are written in the gold.
    marks = {"marks": [1, {"of": 2.5}], "level": 3, "code": "007"}
    (tmp_path / "set.jsonl").write_text(json.dumps({"question": "a?", **marks})[:-1] + ', "answer": 1.50}')
    (question,), _ = load_questions(str(tmp_path / "set.jsonl"))
    assert question.answer == "1.50" and question.row() == {"question": "a?", **marks, "answer": 1.5}
    assert type(question.row()["level"]) is int


# ---------------------------------------------------------------- images


def test_an_image_of_too_many_pixels_is_counted_under_its_cause(tmp_path):
    Image.new("1", (20_000, 10_000)).save(tmp_path / "big.png")
    (tmp_path / "i.png").write_bytes(encoded())
    rows = [{"question": f"{n}?", "answer": "1", "image": n} for n in ("big.png", "i.png")]
    questions, report = from_file(tmp_path, *rows)
    assert len(questions) == 1 and report["skipped"] == {"image_too_large": 1}


@pytest.mark.parametrize(
    ("values", "dtype", "expected"),
    [
        ([0.0, 0.5, 1.0], np.float32, [0, 128, 255]),
        ([0.0, 100.0, 255.0], np.float32, [0, 100, 255]),
        ([-1.0, 0.0, 1.0], np.float32, [0, 128, 255]),
        ([-3.0, -3.0, -3.0], np.float32, [0, 0, 0]),
        ([0.0, np.nan, 1.0], np.float32, [0, 0, 255]),
        ([0, 257 * 100, 65535], np.int32, [0, 100, 255]),
        ([0, 7, 255], np.int32, [0, 7, 255]),
        ([0, 2**30, 2**31 - 1], np.int32, [0, 128, 255]),
        ([0, 257 * 100, 257 * 101], np.uint16, [0, 100, 101]),
    ],
)
def test_grey_of_more_than_8_bits_is_scaled_and_not_cut(tmp_path, values, dtype, expected):
    Image.fromarray(np.array([values], dtype=dtype)).save(tmp_path / "grey.tif")
    image = pixels.to_rgb(Image.open(tmp_path / "grey.tif"))
    assert image.mode == "RGB"
    grey = [image.getpixel((x, 0)) for x in range(len(values))]
    assert grey == [(value,) * 3 for value in expected]
