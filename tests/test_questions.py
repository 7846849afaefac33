"""questions.py on synthetic sets: loading in every shape, bad files and rows, all image modes."""

import io
import json
import os
import pickle
import sys
import time
from dataclasses import replace

import datasets
import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2VLImageProcessor, Qwen3VLProcessor

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import prompts
from engine import cleaning
from engine import images as pixels
from engine import questions as data
from engine.questions import DataError, Question, load_questions, open_images

TEXT, RAW_IMAGE = datasets.Value("string"), datasets.Image(decode=False)


def encoded(size=(120, 110), color=(10, 20, 30), format="PNG", mode="RGB", **options) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, color).save(buffer, format, **options)
    return buffer.getvalue()


def cell(**options) -> dict:
    return {"bytes": encoded(**options), "path": None}


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (120, 130, 3), dtype=np.uint8))


def cut(format: str) -> bytes:
    """A file whose header is good and whose second half is gone."""
    buffer = io.BytesIO()
    NOISE.save(buffer, format)
    return buffer.getvalue()[: len(buffer.getvalue()) // 2]


def save(path, rows: list[dict], features=None) -> str:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    datasets.Dataset.from_list(rows, features=features).to_parquet(str(path))
    return str(path)


# ---------------------------------------------------------------- loading


def test_jsonl_with_the_other_usual_names_is_a_text_set(tmp_path):
    path = tmp_path / "set.jsonl"
    rows = [{"problem": f"What is {i}+{i}?", "solution": str(2 * i)} for i in range(3)]
    path.write_text("\n".join(map(json.dumps, rows)))
    questions, report = load_questions(str(path))
    assert [(q.text, q.answer, q.images) for q in questions] == [
        (row["problem"], row["solution"], ()) for row in rows
    ]
    assert report["columns"] == {
        "question": ["problem"],
        "answer": ["solution"],
        "images": [],
        "uid": [],
        "options": [],
    }
    assert report["rows"] == 3 and report["skipped"] == {} and report["free_form"] == 0


def test_bad_rows_are_skipped_and_counted_by_reason(tmp_path, capsys):
    good = {"question": "<image>\nHow many?", "answer": "3", "image": cell()}
    changes = {
        "a": {},
        "b": {"answer": None},
        "c": {"answer": " "},
        "d": {"answer": "['cat', 'kitten']"},
        "e": {"answer": "['4']"},  # a list of one answer is that answer
        "f": {"answer": "x" * 513},
        "g": {"question": "<image>"},
        "h": {"question": "Think step by step."},
        "i": {"image": None},
        "j": {"image": {"bytes": b"no image", "path": None}},
        "k": {"image": {"bytes": cut("PNG"), "path": None}},
        "l": {"image": {"bytes": cut("JPEG"), "path": None}},
        "m": {"image": cell(size=(1, 300))},
        "n": {"question": "<image> and <image>?"},
    }
    rows = [good | change | {"uid": uid} for uid, change in changes.items()]
    columns = {"question": TEXT, "answer": TEXT, "image": RAW_IMAGE, "uid": TEXT}
    path = save(tmp_path / "set.parquet", [*rows, rows[0]], datasets.Features(columns))
    questions, report = load_questions(path)
    assert [q.uid for q in questions] == ["a", "e", "k", "l"] and questions[1].answer == "4"
    assert report["rows"] == 15 and report["free_form"] == 0
    assert report["skipped"] == {
        "answer_missing": 2,
        "answer_is_a_list": 1,
        "answer_too_long": 1,
        "question_empty": 2,
        "image_missing": 2,
        "image_unreadable": 1,
        "image_too_narrow": 1,
        "duplicate_uid": 1,
    }
    assert [len(q.images) for q in questions] == [1, 1, 1, 1]
    # A cut file has a good header: it is found when it is opened.
    with pytest.raises(DataError, match="question k: image cannot be decoded.*repair the file"):
        open_images(questions[2])
    broken = set()
    for _ in range(2):
        assert data.intact(questions[:3], questions[3:], broken) == (questions[:2], [], 2)
        assert broken == {"k", "l"}
    first, second = capsys.readouterr().out.splitlines()  # each is named once
    assert first.startswith("question k: ")
    assert second.startswith("question l: image cannot be decoded")


def test_images_stay_on_disk_until_opened(tmp_path, monkeypatch):
    rows = [
        {"question": f"<image>What is {i}?", "answer": "1", "images": [cell(color=(i, 0, 0))]}
        for i in range(5)
    ]
    images = datasets.List(datasets.Image())
    features = datasets.Features({"question": TEXT, "answer": TEXT, "images": images})
    path = save(tmp_path / "set.parquet", rows, features)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded at load"))
    questions, _ = load_questions(path)
    monkeypatch.undo()
    assert [open_images(q)[0].getpixel((0, 0)) for q in questions] == [(i, 0, 0) for i in range(5)]
    assert open_images(questions[0])[0].size == (120, 110)


def test_several_image_columns_file_names_nested_fields_and_an_image_folder(tmp_path):
    for name, color in (("left", (1, 0, 0)), ("right", (2, 0, 0))):
        (tmp_path / f"{name}.png").write_bytes(encoded(color=color))
    row = {
        "ask": {"text": "<image><image>\nCompare."},
        "gold": 7,
        "left": "left.png",
        "right": ["right.png"],
    }
    (tmp_path / "set.jsonl").write_text(json.dumps(row))
    columns = ["question=ask.text", "answer=gold", "images=left,right"]
    (question,), _ = load_questions(str(tmp_path / "set.jsonl"), columns=columns)
    assert question.text == "Compare." and question.answer == "7"
    assert [image.getpixel((0, 0))[0] for image in open_images(question)] == [1, 2]

    rows = [
        {"q": "a?", "uid": "", "short": "", "long": "So \\boxed{2}."},
        {"q": "b?", "uid": "", "short": "3"},
    ]
    (tmp_path / "two.jsonl").write_text(
        "\n".join(map(json.dumps, rows))
    )  # the first column that holds something
    questions, _ = load_questions(
        str(tmp_path / "two.jsonl"), columns=["question=q", "answer=short,long"]
    )
    assert [q.answer for q in questions] == ["2", "3"] and len(
        {q.uid for q in questions} - {""}
    ) == 2

    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.png").write_bytes(encoded())
    row = {"file_name": "a.png", "question": "What?", "answer": "this"}
    (folder / "metadata.jsonl").write_text(json.dumps(row))
    (question,), report = load_questions(str(folder))
    assert report["columns"]["images"] == ["image"] and open_images(question)[0].size == (120, 110)


def test_nested_images_and_pickled_questions(tmp_path):
    features = datasets.Features(
        {"question": TEXT, "answer": TEXT, "page": {"scan": datasets.Image()}}
    )
    rows = [{"question": "q?", "answer": "1", "page": {"scan": cell(color=(5, 6, 7))}}]
    path = save(tmp_path / "set.parquet", rows, features)
    (question,), _ = load_questions(path, columns=["images=page.scan"])
    for one in (question, pickle.loads(pickle.dumps(question))):
        assert open_images(one)[0].getpixel((0, 0)) == (5, 6, 7)


def test_wrong_names_say_what_was_expected_what_exists_and_the_fix(tmp_path):
    path = tmp_path / "set.jsonl"
    path.write_text(json.dumps({"query": "What?", "label": "1"}))
    with pytest.raises(
        DataError,
        match=r"expected one of \['question', 'problem', 'prompt'\], the set has "
        r"\['query', 'label'\].*--columns question=<name>",
    ):
        load_questions(str(path))
    with pytest.raises(
        DataError, match=r"question is mapped to \['querry'\], the set has \['query',"
    ):
        load_questions(str(path), columns=["question=querry", "answer=label"])
    with pytest.raises(DataError, match=r"\['frage'\] are not our names"):
        load_questions(str(path), columns=["frage=query"])
    with pytest.raises(DataError, match=r"split='test'.*train.*--split"):
        load_questions(str(path), split="test")
    with pytest.raises(DataError, match="cannot be opened.*--split or --config"):
        load_questions(str(tmp_path / "nothing"))
    features = {"question": TEXT, "answer": TEXT, "figure": datasets.Image()}
    rows = [{"question": "q?", "answer": "1", "figure": cell()}]
    picture = save(tmp_path / "p.parquet", rows, datasets.Features(features))
    with pytest.raises(
        DataError,
        match=r"image column \['figure'\] is not mapped.*images=\).*--columns images=<name>",
    ):
        load_questions(picture)
    assert load_questions(picture, columns=["images="])[0][0].images == ()
    with pytest.raises(DataError, match=r"no question left of 1 rows.*answer_missing"):
        load_questions(datasets.Dataset.from_list([{"question": "q?", "answer": ""}]))


def test_uid_and_fingerprint_come_from_the_content():
    rows = [{"question": f"q{i}?", "answer": str(i)} for i in range(4)]
    questions, _ = load_questions(datasets.Dataset.from_list(rows))
    backwards, _ = load_questions(datasets.Dataset.from_list(rows[::-1]))
    assert questions == backwards[::-1] and len({q.uid for q in questions}) == 4
    again, _ = load_questions(datasets.Dataset.from_list(rows))
    assert data.fingerprint(questions) == data.fingerprint(again)
    assert data.fingerprint(questions) != data.fingerprint(backwards)
    changed = [replace(questions[0], answer="9"), *questions[1:]]
    assert data.fingerprint(questions) != data.fingerprint(changed)
    _, report = load_questions(datasets.Dataset.from_list(rows + rows[:2]))
    assert report["skipped"] == {"duplicate_uid": 2}


def test_a_changed_file_or_a_namesake_folder_is_never_read_from_an_old_cache(tmp_path):
    for place in ("a", "b", "a"):
        written = f"{place} {time.time()}?"
        path = save(
            tmp_path / place / "set" / "data.parquet", [{"question": written, "answer": "1"}]
        )
        for source in (path, str(tmp_path / place / "set")):
            assert load_questions(source)[0][0].text == written


# ---------------------------------------------------------------- bad files and rows


GOOD = '{"question": "1 + 1?", "answer": "2"}\n'


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.jsonl", b"", "a.jsonl: the file is empty. Expected are rows"),
        ("a.jsonl", b"\n \n", "a.jsonl: the file is empty"),
        ("a.csv", b"", "a.csv: the file is empty"),
        (
            "a.jsonl",
            GOOD.encode() + '{"question": "é?"}'.encode("latin1"),
            "line 2: not UTF-8.*Save the file as UTF-8",
        ),
        ("a.jsonl", GOOD.encode("utf-16"), "line 1: not UTF-8 .UTF-16.*Save the file as UTF-8"),
        ("a.csv", "question,answer\né,1\n".encode("latin1"), "line 2: not UTF-8"),
        ("a.jsonl", GOOD.encode() + b'{"question": "b?", "ans', "line 2: not JSON.*Cut short"),
        (
            "a.jsonl",
            b'{"question": "b?", "answer": "1"\n' + GOOD.encode(),
            "line 1: not JSON.*Cut short",
        ),
        (
            "a.json",
            b'[{"question": "a?", "answer": "1"},\n{"question"',
            "line 2: not JSON.*Cut short",
        ),
        ("a.jsonl", b'"a string"\n', "a row is no object. Expected are rows like"),
        ("a.parquet", b"PAR1", "a.parquet: cannot be opened.*Parquet"),
        (
            "a.jsonl",
            b'{"query": "a?"}',
            "no column for the question.*the set has .'query'.*--columns question=<name>",
        ),
    ],
)
def test_a_bad_file_gets_the_cause_and_the_fix(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_questions(str(tmp_path / name))


def test_a_folder_that_does_not_exist_or_is_empty(tmp_path):
    for source in (tmp_path / "nothing", tmp_path / "nothing.jsonl", tmp_path):
        with pytest.raises(DataError, match="cannot be opened"):
            load_questions(str(source))


def test_a_row_with_half_a_character_is_skipped_and_counted(tmp_path):
    rows = [
        GOOD,
        '{"question": "\\ud800 what?", "answer": "2"}\n',
        '{"question": "what?", "answer": "\\udfff"}\n',
        '{"prompt": [{"role": "system", "content": "\\ud800"}], '
        '"question": "\\udc00", "answer": "1"}\n',
        '{"question": "\\ud83d\\ude00?", "answer": "2"}\n',
    ]
    (tmp_path / "a.jsonl").write_text("".join(rows))
    questions, report = load_questions(str(tmp_path / "a.jsonl"))
    assert [q.text for q in questions] == ["1 + 1?", "\U0001f600?"] and report["skipped"] == {
        "lone_surrogate": 3
    }


def test_text_files_give_golds_as_they_are_written(tmp_path):
    golds = ["007", "1.50", "2024-05-01", "None", "1e3", "12345678901234567890"]
    rows = "".join(f"q{i}?,{gold}\n" for i, gold in enumerate(golds))
    (tmp_path / "a.csv").write_text(f"question,answer\n{rows}")
    assert [q.answer for q in load_questions(str(tmp_path / "a.csv"))[0]] == golds
    given = ["1.50", '"2024-05-01"', "3", "true"]
    lines = [f'{{"question": "q{i}?", "answer": {gold}}}' for i, gold in enumerate(given)]
    (tmp_path / "a.jsonl").write_text("\ufeff" + "\r\n".join(lines) + "\n\n", encoding="utf-8")
    assert [q.answer for q in load_questions(str(tmp_path / "a.jsonl"))[0]] == [
        "1.50",
        "2024-05-01",
        "3",
        "True",
    ]
    (tmp_path / "b.jsonl").write_text(
        '{"question": "a\u2028b\x85?", "answer": "1"}\n', encoding="utf-8"
    )
    assert (
        load_questions(str(tmp_path / "b.jsonl"))[0][0].text == "a\u2028b\x85?"
    )  # a line ends at "\n" alone
    assert len(load_questions(str(tmp_path / "a.csv"), split="train[:2]")[0]) == 2
    row = {"question": "c?", "answer": 1.0}
    (tmp_path / "c.json").write_text(
        f"{json.dumps(row, indent=1)}\n{GOOD}\n"
    )  # an object may have several lines
    assert [q.answer for q in load_questions(str(tmp_path / "c.json"))[0]] == ["1.0", "2"]


def test_golds_of_worked_solutions_are_counted(tmp_path):
    rows = [
        {"question": "a?", "answer": "6 * 7 = 42\n#### 42"},
        {"question": "b?", "answer": "So \\boxed{43}."},
        {"question": "c?", "answer": "44"},
        {"question": "d?", "answer": ["45"]},
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    questions, report = load_questions(str(tmp_path / "a.jsonl"))
    assert [q.answer for q in questions] == ["42", "43", "44", "45"]
    assert report["gold_from"] == {"####": 1, "boxed": 1, "column": 2}


# ---------------------------------------------------------------- chats


CHAT = [
    {"role": "system", "content": "You are a tutor. Put your final answer in \\boxed{}."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Yes?"},
    {"role": "user", "content": "<image>How many? Think step by step."},
]
PARTS = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "How many?"}]}]


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_the_last_user_turn_of_a_chat_is_the_question_and_a_system_turn_is_kept(tmp_path, name):
    (tmp_path / "i.png").write_bytes(encoded())
    rows = [
        {
            "prompt": CHAT,
            "reward_model": {"style": "rule", "ground_truth": "3"},
            "images": ["i.png"],
        },
        {
            "prompt": PARTS,
            "reward_model": {"style": "rule", "ground_truth": "4"},
            "images": ["i.png"],
        },
        {
            "prompt": CHAT[:1],
            "reward_model": {"style": "rule", "ground_truth": "4"},
            "images": ["i.png"],
        },
    ]
    if name.endswith("parquet"):
        datasets.Dataset.from_list(rows, on_mixed_types="use_json").to_parquet(tmp_path / name)
    else:
        (tmp_path / name).write_text("\n".join(map(json.dumps, rows)))
    questions, report = load_questions(str(tmp_path / name))
    assert [(q.text, q.system, q.answer) for q in questions] == [
        ("How many?", "You are a tutor.", "3"),
        ("How many?", "", "4"),
    ]
    assert len({q.uid for q in questions}) == 2 and report["skipped"] == {"question_empty": 1}
    assert report["columns"]["question"] == ["prompt"] and open_images(questions[1])[0].size == (
        120,
        110,
    )


def test_a_chat_as_a_dict_of_lists_and_what_is_no_chat():
    old = {"role": ["system", "user"], "content": ["S", "q?"]}
    assert data.read_chat(old) == ("q?", "S", []) and data.read_chat("q?") == ("q?", "", [])
    for other in (None, [{"role": "user"}], [], {}):
        assert not data.read_chat(other)[0]
    for other in (3, ["q?"], [None]):
        assert data.clean_row(other, "1", []) == (None, "question_unreadable")
    parts = ["<image>", {"type": "text", "text": "q?"}]
    assert data.read_chat([{"role": "user", "content": parts}])[0] == "<image>\nq?"


def test_a_system_turn_is_part_of_the_prompt_and_of_the_fingerprint(processor):
    for images in ([], [Image.new("RGB", (120, 110))]):
        turns = pixels.chat("How many?", images, "Be brief.")
        assert [turn["role"] for turn in turns] == ["system", "user"]
        text = processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        assert text.index("Be brief.") < text.index("How many?")
        made = processor(text=[text], images=images or None)
        assert pixels.prompt_tokens(processor, "How many?", images, "Be brief.") == len(
            made["input_ids"][0]
        )
        assert pixels.chat("How many?", images)[0]["role"] == "user"
    plain = Question("u", "q?", (), "1")
    assert data.fingerprint([plain]) != data.fingerprint([replace(plain, system="S")])


def test_a_repaired_image_is_a_new_question_and_the_broken_one_is_gone(tmp_path):
    rows = [{"question": "q?", "answer": "1", "images": [name]} for name in ("a.png", "b.png")]
    (tmp_path / "a.png").write_bytes(encoded())
    (tmp_path / "b.png").write_bytes(cut("PNG"))
    (tmp_path / "set.jsonl").write_text("\n".join(map(json.dumps, rows)))
    before, _ = load_questions(str(tmp_path / "set.jsonl"))
    assert data.intact(before, [], set()) == (before[:1], [], 1)
    (tmp_path / "b.png").write_bytes(encoded(color=(1, 1, 1)))
    after, _ = load_questions(str(tmp_path / "set.jsonl"))
    assert data.intact(after, [], set()) == (after, [], 0) and data.fingerprint(
        before
    ) != data.fingerprint(after)
    assert after[0] == before[0] and after[1].uid != before[1].uid


# ---------------------------------------------------------------- text


@pytest.mark.parametrize(
    "given, expected",
    [
        (
            "<image>\nWhat is x? Please reason step by step, "
            "and put your final answer within \\boxed{}.",
            "What is x?",
        ),
        ("Find the area and put your final answer within \\boxed{}.", "Find the area."),
        (
            "Which?\nAnswer with the option's letter from the given choices directly.\nA. x\nB. y",
            "Which?\nA. x\nB. y",
        ),
        (
            "Hint: Please answer the question and provide the correct option letter, "
            "e.g., A, at the end.\nIs it?",
            "Is it?",
        ),
        ("What color? Answer the question using a single word or phrase.", "What color?"),
        ("Let's think step by step.\n\nFind y.", "Find y."),
        (prompts.CLOSER, ""),
        ("a | b  |  c\n<image>\nRead the table.", "a | b  |  c\nRead the table."),
        (
            "As shown in the figure <image>, AB = 3. Find CD.",
            "As shown in the figure, AB = 3. Find CD.",
        ),
        # these change what the answer is, or are the question: they stay
        (
            "Give the answer in cm, rounded to two decimals.",
            "Give the answer in cm, rounded to two decimals.",
        ),
        ("Express your answer as a single fraction.", "Express your answer as a single fraction."),
        ("Select the letter that labels the root.", "Select the letter that labels the root."),
        ("Answer with a single word: what is it?", "Answer with a single word: what is it?"),
        ("Solve 2x = 4 step by step.", "Solve 2x = 4 step by step."),
    ],
)
def test_markers_and_format_directives_leave_the_text(given, expected):
    assert cleaning.clean_text(given, 1) == expected
    assert cleaning.clean_text(expected, 1) == expected


def test_a_very_long_question_costs_little():
    start = time.process_time()
    for text in (
        "first think " * 10_000,
        "answer the question " * 10_000,
        "put the answer " * 10_000,
    ):
        cleaning.clean_text(text, 1)
    assert time.process_time() - start < 2


def test_markers_of_several_images_keep_their_place_in_a_sentence():
    assert cleaning.clean_text("<image><image>\nWhich?", 2) == "Which?"
    assert (
        cleaning.clean_text("Compare <image> and <image 2>.", 2)
        == "Compare [image 1] and [image 2]."
    )
    assert cleaning.clean_text("<image> Compare with <image>.", 2) == "Compare with [image 2]."


@pytest.mark.parametrize(
    "answer, free",
    [
        ("A", False),
        ("-3.5", False),
        ("5 square meters", False),
        ("\\frac{1}{2}", False),
        ("x = 5 or x = -5", False),
        ("$\\text{a long formula with words inside}$", False),
        ("the red car on the left", True),
        ("a\nb", True),
    ],
)
def test_free_form(answer, free):
    assert cleaning.is_free_form(answer) is free


def test_answers_that_are_lists_or_numbers():
    clean = cleaning.clean_answer
    assert clean(["cat", "cat "]) == ("cat", "") and clean("['a', 'b']") == ("", "answer_is_a_list")
    assert (
        clean("[0, 1]") == ("[0, 1]", "")
        and clean(3) == ("3", "")
        and clean([]) == ("", "answer_missing")
    )
    assert clean(float("nan")) == ("", "answer_missing")
    assert clean("<answer> 3 </answer>") == ("3", "") and clean({"a": 1}) == (
        "",
        "answer_is_not_text",
    )
    assert clean("x" * 512)[1] == "" and clean("x" * 513) == ("", "answer_too_long")


# ---------------------------------------------------------------- images


def question(*images) -> Question:
    return Question("u", "?", images, "1")


def test_every_mode_becomes_rgb():
    grey16 = Image.fromarray(np.full((4, 4), 257 * 100, dtype=np.uint16))
    palette = Image.new("RGB", (4, 4), (250, 0, 0)).quantize(4)
    for image, pixel in [
        (Image.new("1", (4, 4), 1), (255, 255, 255)),
        (Image.new("L", (4, 4), 7), (7, 7, 7)),
        (Image.new("RGBA", (4, 4), (0, 0, 0, 0)), (255, 255, 255)),
        (palette, (250, 0, 0)),
        (Image.new("LA", (4, 4), (9, 255)), (9, 9, 9)),
        (grey16, (100, 100, 100)),
        (Image.new("CMYK", (4, 4), (0, 0, 0, 0)), (255, 255, 255)),
    ]:
        (made,) = open_images(question(image))
        assert made.mode == "RGB" and made.getpixel((0, 0)) == pixel, image.mode


def test_png_of_16_bits_and_exif_rotation_through_a_file(tmp_path):
    rotated = Image.new("RGB", (40, 20), "blue")
    exif = rotated.getexif()
    exif[0x0112] = 6
    rotated.save(tmp_path / "r.jpg", exif=exif)
    Image.fromarray(np.full((4, 4), 257 * 9, dtype=np.uint16)).save(tmp_path / "g.png")
    row = {"question": "q?", "answer": "1", "images": ["r.jpg", "g.png"]}
    (tmp_path / "set.jsonl").write_text(json.dumps(row))
    turned, grey = open_images(load_questions(str(tmp_path / "set.jsonl"))[0][0])
    assert turned.size == (20, 40) and grey.getpixel((0, 0)) == (9, 9, 9)


def test_bounds_are_the_callers_wish_and_small_images_are_left_alone():
    tiny, huge = Image.new("RGB", (16, 16)), Image.new("RGB", (3000, 1000))
    assert open_images(question(tiny))[0] is tiny and open_images(question(huge))[0] is huge
    small, large = open_images(question(tiny, huge), pixels.MIN_PIXELS, pixels.MAX_PIXELS)
    for image, ratio in ((small, 1), (large, 3)):
        assert pixels.MIN_PIXELS <= image.width * image.height <= pixels.MAX_PIXELS
        assert image.width / image.height == pytest.approx(ratio, rel=0.01)


# ---------------------------------------------------------------- prompt length

SPECIAL = [
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class ImageOnlyProcessor(Qwen3VLProcessor):
    """The real class; without torchvision there is no video processor to give it."""

    def check_argument_for_proper_class(self, name, argument):
        return (
            type(None)
            if argument is None
            else super().check_argument_for_proper_class(name, argument)
        )


def tiny_processor() -> ImageOnlyProcessor:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({character: i for i, character in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|im_end|>"
    )
    images = Qwen2VLImageProcessor(patch_size=16, merge_size=2)
    return ImageOnlyProcessor(images, tokenizer, None, chat_template=TEMPLATE)


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


@pytest.mark.parametrize(
    "bounds", [(4 * 32 * 32, 64 * 32 * 32), (pixels.MIN_PIXELS, pixels.MAX_PIXELS)]
)
@pytest.mark.parametrize("sizes", [[], [(120, 110)], [(3000, 500)], [(20, 900), (16, 16)]])
def test_prompt_tokens_is_the_length_the_processor_makes(processor, sizes, bounds):
    pixels.bound_pixels(processor, *bounds)
    images = [Image.new("RGB", size) for size in sizes]
    content = [{"type": "image"} for _ in images] + [{"type": "text", "text": "How many?"}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    made = processor(text=[text], images=images or None)
    assert pixels.prompt_tokens(processor, "How many?", images) == len(made["input_ids"][0])
    if not images:
        processor.tokenizer.chat_template = TEMPLATE
        assert pixels.prompt_tokens(processor.tokenizer, "How many?", []) == len(
            made["input_ids"][0]
        )
