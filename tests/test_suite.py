"""suite/: every benchmark from a stand-in of its schema to a score; numbers by hand; refusals."""

import json
import shutil
import sys
from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest
import standins

from engine.questions import DataError, open_images
from suite import compare
from suite.entries import BENCHMARKS, BY_NAME, FAMILIES, find, read_splits
from suite.rows import Item, load
from suite.scorers import JUDGES, RULES, official_prompt, read_prompts, score

PROMPTS = read_prompts()
NAMES = [entry.name for entry in BENCHMARKS]


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    return standins.build(tmp_path_factory.mktemp("root"))


@pytest.fixture(scope="session")
def items(root) -> dict[str, list[Item]]:
    return {
        entry.name: load(entry, find(entry, str(root)), PROMPTS, frames=3)[0]
        for entry in BENCHMARKS
    }


def boxed(answer: str) -> str:
    return f"<think>Is it \\boxed{{A}}? No.</think>So \\boxed{{{answer}}}"


def nobody(texts):
    raise AssertionError("the judge was asked")


def always(reply):
    return lambda texts: [reply for _ in texts]


# ---- 31 benchmarks -------------------------------------------------------------------------------


def test_the_suite_is_the_papers():
    assert len(BENCHMARKS) == 31 == len(BY_NAME) == len({entry.paper for entry in BENCHMARKS})
    assert [sum(entry.family == family for entry in BENCHMARKS) for family in FAMILIES] == [
        16,
        10,
        5,
    ]
    assert set(compare.paper("9B/zppo")) == set(NAMES) == set(standins.RIGHT)


@pytest.mark.parametrize("name", [name for name in NAMES if BY_NAME[name].scorer in RULES])
def test_rule_then_judge(name, items):
    asked = items[name]
    right = [
        (item, boxed(answer)) for item, answer in zip(asked, standins.RIGHT[name], strict=True)
    ]
    assert [(one.reward, one.method) for one in score(right, nobody, PROMPTS)] == [
        (1.0, "rule")
    ] * len(asked)
    for item, answer in zip(asked, standins.WRONG[name], strict=True):
        if answer is not None:
            (result,) = score([(item, boxed(answer))], nobody, PROMPTS)
            assert (result.reward, result.method) == (0.0, "rule"), answer
    unparsed = [(item, "I cannot tell, perhaps the first") for item in asked]
    for verdict, reward in (("correct", 1.0), ("wrong", 0.0)):
        results = score(unparsed, always(f'{{"verdict": "{verdict}"}}'), PROMPTS)
        assert [(one.reward, one.method, one.why) for one in results] == [
            (reward, "judge", "no box")
        ] * len(asked)
    assert {(one.reward, one.method) for one in score(unparsed, None, PROMPTS)} == {
        (0.0, "unsettled")
    }


def test_the_judge_sees_question_options_answer_and_gold(items):
    seen = []

    def ask(texts):
        seen.extend(texts)
        return ['{"verdict": "wrong"}'] * len(texts)

    score(
        [(items["ai2d"][0], boxed("the crimson one")), (items["mathverse"][1], "by eye")],
        ask,
        PROMPTS,
    )
    assert (
        "A. lime\nB. red" in seen[0]
        and "the crimson one" in seen[0]
        and seen[0].count("expert judge") == 1
    )
    assert "## Ground Truth Answer\nB\n" in seen[0]
    assert "Find the angle." in seen[1]  # a question in the picture: the text for the judge


REPLIES = {  # (right, wrong) by the contract of each official judge
    "charxiv": (
        '{"extracted_answer": "x", "score": 1}',
        '{"extracted_answer": "x", "score": 0}',
    ),
    "mmvet": ('{"score": 1.0}', '{"score": 0.0}'),
    "hle": (
        '```json\n{"extracted_final_answer": "x", "reasoning": "r", "correct": "yes", "confidence": 80}\n```',
        '{"extracted_final_answer": "x", "reasoning": "r", "correct": "no", "confidence": 100}',
    ),
    "multichallenge": (
        '{"reasoning": "r", "verdict": "YES"}',
        '{"reasoning": "r", "verdict": "NO"}',
    ),
    "mmvu": ('{"verdict": "correct"}', '{"verdict": "wrong"}'),
}


@pytest.mark.parametrize("name", JUDGES)
def test_official_judges(name, items):
    asked = [
        (item, boxed(answer))
        for item, answer in zip(items[name], standins.RIGHT[name], strict=True)
    ]
    for reply, reward in zip(REPLIES[name], (1.0, 0.0), strict=True):
        results = score(asked, always(reply), PROMPTS)
        expected = [1 - reward if item.golds == ("NO",) else reward for item, _ in asked]
        assert [one.reward for one in results] == expected
        assert {one.method for one in results} == {"official judge"}
    for reply in (
        "I think so",
        "[1]",
        '{"score": 7, "verdict": "perhaps"}',
        '{"score": "high"}',
        "{",
    ):
        assert {(one.reward, one.method) for one in score(asked, always(reply), PROMPTS)} == {
            (0.0, "unreadable")
        }
    with pytest.raises(DataError, match="--judge"):
        score(asked, None, PROMPTS)


def test_what_official_judges_see(items):
    item = items["multichallenge"][0]
    prompt = official_prompt(item, "<think>nuts?</think>An apple cake.</response>", PROMPTS)
    assert (
        "Is it free of nuts?" in prompt
        and "allergic" not in prompt
        and "nuts?</think>" not in prompt
    )
    assert prompt.count("</response>") == 1  # the answer cannot close its own block
    assert "{gold} {rubric}" in official_prompt(
        item, "{gold} {rubric}", PROMPTS
    )  # nor bring in another text
    kinds = [official_prompt(item, "x", PROMPTS) for item in items["charxiv"][:3]]
    assert (
        PROMPTS["rubrics"]["reasoning_4"] in kinds[0]
        and PROMPTS["rubrics"]["descriptive_title"] in kinds[1]
    )
    assert "oil" in official_prompt(items["mmvu"][0], "x", PROMPTS)
    assert "technique or concept" in official_prompt(items["mmvu"][1], "x", PROMPTS)
    assert score([(items["mmvet"][0], "x")], always('{"score": 0.3}'), PROMPTS)[0].reward == 0.3


def test_upstream_prompts_from_a_file(tmp_path, items):
    (tmp_path / "mine.toml").write_text(
        'hle = "[{question}|{response}|{gold}]"\n[rubrics]\nreasoning_1 = "mine"\n'
    )
    prompts = read_prompts(str(tmp_path / "mine.toml"))
    assert official_prompt(items["hle"][0], "E. N.", prompts) == "[Who?|E. N.|Noether]"
    assert prompts["rubrics"]["reasoning_1"] == "mine" and prompts["mmvet"] == PROMPTS["mmvet"]
    (tmp_path / "odd.toml").write_text('hel = "x"')
    with pytest.raises(DataError, match="found .'hel'"):
        read_prompts(str(tmp_path / "odd.toml"))


def test_infovqa_needs_no_judge(items):
    right, wrong = (
        zip(items["infovqa"], table["infovqa"], strict=True)
        for table in (standins.RIGHT, standins.WRONG)
    )
    assert [score([(item, boxed(x))], nobody, PROMPTS)[0].reward for item, x in right] == [
        1.0,
        1.0,
    ]
    assert [score([(item, boxed(x))], nobody, PROMPTS)[0].reward for item, x in wrong] == [
        0.0,
        0.0,
    ]
    (result,) = score(
        [(items["infovqa"][0], "<think>\\boxed{}</think>New Yorc")], nobody, PROMPTS
    )
    assert result.reward == 0.0  # the empty box is the answer
    (result,) = score([(items["infovqa"][0], "<think>hm</think>New Yorc")], nobody, PROMPTS)
    # Without a box: the text behind the thoughts.
    assert (result.reward, result.method) == (7 / 8, "rule")


def test_ocrbench_through_lmms_eval(items, monkeypatch):
    item = items["ocrbench_en"][2]
    monkeypatch.setitem(sys.modules, "lmms_eval", None)  # not installed
    with pytest.raises(ImportError):  # evaluate.py asks for the package before anything is generated
        score([(item, boxed("x"))], nobody, PROMPTS)
    rows = []

    def process_results(row, answers):  # the call of lmms-eval
        rows.append(row)
        return {
            "ocrbench_v2_accuracy": {
                "question_type": row["type"],
                "score": float(answers[0] in row["answers"]),
            }
        }

    modules = {
        name: ModuleType(name)
        for name in (
            "lmms_eval",
            "lmms_eval.tasks",
            "lmms_eval.tasks.ocrbench_v2",
            "lmms_eval.tasks.ocrbench_v2.utils",
        )
    }
    modules["lmms_eval.tasks.ocrbench_v2.utils"].ocrbench_v2_process_results = process_results
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    asked = [
        (items["ocrbench_en"][0], boxed("Exit")),
        (items["ocrbench_zh"][0], boxed("二")),
        (item, "I see 9"),
    ]
    assert [one.reward for one in score(asked, nobody, PROMPTS)] == [1.0, 0.0, 0.0]
    assert rows[0] == {
        "type": "text recognition en",
        "eval": "None",
        "bbox": None,
        "bbox_list": None,
        "content": None,
        "question": "What does it say?",
        "answers": ["Exit"],
    }
    assert rows[2]["bbox"] == [0, 0, 9, 9]


def test_ocrbench_with_the_real_lmms_eval(items):
    pytest.importorskip("lmms_eval.tasks.ocrbench_v2.utils", exc_type=ImportError)
    for name in ("ocrbench_en", "ocrbench_zh"):
        for item, answer in zip(items[name], standins.RIGHT[name], strict=True):
            assert [
                score([(item, boxed(x))], nobody, PROMPTS)[0].reward for x in (answer, "zzz")
            ] == [1.0, 0.0]


# ---- what is read --------------------------------------------------------------------------------


def test_texts_of_questions(items):
    text = {name: [item.text for item in asked] for name, asked in items.items()}
    assert text["ai2d"][0] == "Which colour is it?\nA. lime\nB. red\nC. blue"
    assert text["mathverse"][1] == "Answer the question in the picture."
    assert text["mathvision"][0] == "Which one?\nOptions: A, B, C, D, E"  # they are drawn
    assert text["mathvista"][2] == "How long? (Unit: cm) Give the answer with 1 decimals."
    assert text["mmmu_pro"][1].startswith(
        "Compare [image 1] with [image 2]: which is warmer?\nA. [image 2]\nB. [im"
    )
    assert text["charxiv"][1].startswith("For the current plot, what is the title")
    assert text["charxiv"][6].startswith("For the inset, what is the title")
    assert text["charxiv"][3].startswith("What is the layout")
    assert text["vlmsareblind"][:2] == [
        "How often do they touch?",
        "Count the number of rows and columns",
    ]
    assert items["multichallenge"][0].turns == (
        ("user", "I am allergic to nuts."),
        ("assistant", "Noted."),
    )
    shown, none = text["videomme_sub"]
    assert "hello" in shown and "late" not in shown and "font" not in shown
    assert "No subtitles available" in none and "ubtitles" not in text["videomme"][0]
    assert (
        "[the image after the frames]" in text["videommmu"][2]
        and len(items["videommmu"][2].images) == 4
    )
    uids = [item.uid for asked in items.values() for item in asked]
    assert len(set(uids)) == len(uids)


def test_mmlu_redux_corrections(items):
    assert [item.golds for item in items["mmlu_redux"]] == [
        (0,),
        (0,),
        (2,),
        (1, 3),
        (0, 1),
        (0,),
    ]
    assert items["mmlu_redux"][1].options[0] == "five"  # another text in the place of the gold


def test_images_and_frames_are_read_late(items):
    for name in ("ai2d", "hle", "mmmu_pro", "mvbench", "videomme", "mmvu", "vlmsareblind"):
        for item in items[name]:
            pictures = open_images(item)
            assert [picture.size for picture in pictures] == [
                image.size for image in item.images
            ]
    (red,) = open_images(items["ai2d"][0])
    assert red.getpixel((5, 5)) == (255, 0, 0)
    colours = [picture.getpixel((5, 5)) for picture in open_images(items["videomme"][0])]
    assert (
        len(colours) == 3 and colours[0][0] > 200 and colours[-1] != colours[0]
    )  # in order of time
    by_task = {item.groups["config"]: item for item in items["mvbench"]}
    assert (
        len(by_task["action_sequence"].images) == 2
    )  # only 0.5 to 1 second of the video, at 2 frames a second
    assert len(by_task["episodic_reasoning"].images) == 3


def test_a_real_video(tmp_path):
    av = pytest.importorskip("av")
    from suite.media import sample

    with av.open(str(tmp_path / "clip.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 64
        for i in range(40):
            frame = av.VideoFrame.from_ndarray(
                np.full((64, 64, 3), 6 * i, dtype=np.uint8), format="rgb24"
            )
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    frames, times = sample(tmp_path / "clip.mp4", 4, None, None)
    assert times == pytest.approx([0.5, 1.5, 2.5, 3.5]) and frames[0].size == (64, 64)
    greys = [np.asarray(image).mean() for image in open_images(Item("v", "?", frames, "x"))]
    assert greys == pytest.approx([6 * i for i in (5, 15, 25, 35)], abs=4)
    assert sample(tmp_path / "clip.mp4", 4, 1.0, 1.9)[1] == pytest.approx([1.1, 1.3, 1.6, 1.8])


def test_gpqa_is_shuffled_the_same_every_time(root, items):
    again = load(BY_NAME["gpqa"], find(BY_NAME["gpqa"], str(root)), PROMPTS)[0]
    assert [item.options for item in again] == [item.options for item in items["gpqa"]]
    assert [item.options[item.golds[0]] for item in again] == ["a muon", "3 kg"]


def test_limit_keeps_what_is_scored_together(root):
    def take(name, limit):
        return load(BY_NAME[name], find(BY_NAME[name], str(root)), PROMPTS, limit=limit)[0]

    assert (
        len(take("dynamath", 10))
        == 10
        == sum(item.scored_with == "1" for item in take("dynamath", 10))
    )
    assert (
        len(take("wemath", 1)) == 3
        and len(take("mvbench", 5)) == 5
        and len(take("ai2d", 99)) == 2
    )


# ---- what stops, and says what was expected and found --------------------------------------------


def copy(root, tmp_path, name: str):
    source = find(BY_NAME[name], str(root))
    return shutil.copytree(source, tmp_path / name)


def put(folder, rows: list[dict], name="data/test.jsonl"):
    shutil.rmtree(folder, ignore_errors=True)
    standins.write_json(rows, folder / name)
    return folder


PIXEL = standins.data_uri("red")
AIDS = {"question": "q?", "options": ["x", "y"], "answer": "0", "image": PIXEL}
BROKEN = [  # benchmark, rows, message
    (
        "ai2d",
        [{"question": "q?", "choices": ["x"], "answer": "0"}],
        r"expected columns \['options'\], found",
    ),
    ("ai2d", [{**AIDS, "image": None}], "expected an image in image, found none"),
    (
        "ai2d",
        [{**AIDS, "answer": "2"}],
        r"expected the index of one of the options \['x', 'y'\], found \['2'\]",
    ),
    ("ai2d", [{**AIDS, "answer": "B"}], "expected the index"),
    ("ai2d", [{**AIDS, "answer": None}], "expected an answer, found None"),
    (
        "mmlu_pro",
        [{"question": "q?", "options": ["x", "y"], "answer": "C", "category": "c"}],
        "expected the letter",
    ),
    (
        "imo_answerbench",
        [{"Problem": "p", "Answer": "1"}],
        r"expected columns \['Short Answer'\]",
    ),
    (
        "vlmsareblind",
        [{"task": "Counting Sheep", "prompt": "p", "groundtruth": "1", "image": PIXEL}],
        "expected one of .*'nested squares'.*, found 'counting sheep'",
    ),
    (
        "mathvista",
        [
            {
                "question": "q",
                "choices": None,
                "answer": "1",
                "question_type": "free_form",
                "unit": None,
                "answer_type": "complex",
                "precision": None,
                "decoded_image": PIXEL,
            }
        ],
        "found 'complex'",
    ),
    (
        "ocrbench_en",
        [
            {
                "type": "smell recognition en",
                "question": "q",
                "answers": ["x"],
                "image": PIXEL,
                "eval": "None",
                "bbox": None,
                "bbox_list": None,
                "content": None,
            }
        ],
        "found 'smell recognition'",
    ),
    (
        "mmvu",
        [
            {
                "question_type": "essay",
                "question": "q",
                "answer": "x",
                "choices": {},
                "video": "a.mp4",
            }
        ],
        "a.mp4",
    ),
    (
        "multichallenge",
        [
            {
                "conversation": [{"role": "user", "content": "hi"}],
                "target_question": "t",
                "axis": "a",
                "pass_criteria": "MAYBE",
            }
        ],
        "found 'MAYBE'",
    ),
    (
        "multichallenge",
        [
            {
                "conversation": [{"role": "assistant", "content": "hi"}],
                "target_question": "t",
                "axis": "a",
                "pass_criteria": "YES",
            }
        ],
        "expected one of .'user'., found 'assistant'",
    ),
]


@pytest.mark.parametrize(("name", "rows", "message"), BROKEN)
def test_other_schemas_are_refused(name, rows, message, tmp_path):
    entry = replace(BY_NAME[name], splits=("test",))
    with pytest.raises(DataError, match=message) as caught:
        load(entry, put(tmp_path / "set", rows), PROMPTS)
    assert str(caught.value).startswith(name)


def test_withheld_answers(root, tmp_path):
    folder = copy(root, tmp_path, "charxiv")
    (folder / "val.parquet").unlink()
    with pytest.raises(DataError, match=r"expected split validation, found test.*not public"):
        load(BY_NAME["charxiv"], folder, PROMPTS)
    folder = copy(root, tmp_path, "infovqa")
    (folder / "InfographicVQA/test-00000-of-00001.parquet").rename(
        folder / "InfographicVQA/validation-00000.parquet"
    )
    with pytest.raises(DataError, match="expected an answer, found None.*not public"):
        load(BY_NAME["infovqa"], folder, PROMPTS)


def test_a_missing_part_is_no_smaller_set(root, tmp_path):
    folder = copy(root, tmp_path, "dynamath")
    (folder / "data/sample_variant7-00000-of-00001.parquet").unlink()
    with pytest.raises(
        DataError,
        match="expected split sample_variant1 and .*variant10, found sample_variant1, ",
    ):
        load(BY_NAME["dynamath"], folder, PROMPTS)
    folder = copy(root, tmp_path, "mvbench")
    (folder / "json/state_change.json").unlink()
    with pytest.raises(DataError, match="config state_change"):
        load(BY_NAME["mvbench"], folder, PROMPTS)


def test_missing_and_ambiguous_videos(root, tmp_path):
    folder = copy(root, tmp_path, "videomme")
    (folder / "videos_chunked_01.zip").unlink()
    with pytest.raises(
        DataError, match="videomme/videomme/0: expected the video aaa in .*, found none"
    ):
        load(BY_NAME["videomme"], folder, PROMPTS)
    folder = folder.rename(tmp_path / "again")
    standins.gif(folder / "one/aaa.gif")
    standins.gif(folder / "two/aaa.gif")
    with pytest.raises(DataError, match="expected one file"):
        load(BY_NAME["videomme"], folder, PROMPTS)


def test_dynamath_ids_that_do_not_line_up(tmp_path):
    for variant in range(1, 11):
        row = {
            "id": f"v{variant}",
            "question": "1 + 1?",
            "ground_truth": "2",
            "answer_type": "float",
        }
        row["decoded_image"] = PIXEL
        standins.write_json([row], tmp_path / f"set/data/sample_variant{variant}.jsonl")
    items = load(BY_NAME["dynamath"], tmp_path / "set", PROMPTS)[0]
    assert (
        len({item.scored_with for item in items}) == 1 and len(items) == 10
    )  # by the order of the rows


def test_layouts(tmp_path):
    rows = [{"question": "q", "answer": "1"}]
    (tmp_path / "a").mkdir()
    for path in (
        "a/test.jsonl",
        "b/data/test-00000-of-00001.parquet",
        "c/x.json",
        "d/cfg/test.csv",
        "e/cfg.jsonl",
    ):
        target = tmp_path / path
        if path.endswith("parquet"):
            standins.parquet(rows, target)
        elif path.endswith("csv"):
            target.parent.mkdir(parents=True)
            target.write_text("question,answer\nq,1\n")
        else:
            standins.write_json(rows, target, lines=path.endswith("l"))
    for folder in "abc":
        assert len(read_splits(tmp_path / folder, "", ("test",))["test"]) == 1
    for folder in "de":
        assert len(read_splits(tmp_path / folder, "cfg", ("test",))["test"]) == 1
    with pytest.raises(DataError, match="config other: expected split test, found none"):
        read_splits(tmp_path / "d", "other", ("test",))
    with pytest.raises(DataError, match="expected split validation, found test"):
        read_splits(tmp_path / "a", "", ("validation",))
    with pytest.raises(DataError, match="expected a folder x/y or z/y"):
        find(replace(BY_NAME["ai2d"], sources=("x/y", "z/y")), str(tmp_path))


def test_the_header_of_a_card_says_more_than_names(tmp_path):
    standins.write_json([{"question": "new", "answer": "1"}], tmp_path / "odd.jsonl")
    standins.write_json([{"question": "old", "answer": "1"}], tmp_path / "old/test.jsonl")
    assert read_splits(tmp_path, "", ("test",))["test"]["question"] == ["old"]
    standins.readme(tmp_path, {"now": {"test": "odd.jsonl"}})
    assert read_splits(tmp_path, "", ("test",))["test"]["question"] == ["new"]
    assert read_splits(tmp_path, "now", ("test",))["test"]["question"] == ["new"]
    assert read_splits(tmp_path, "old", ("test",))["test"]["question"] == [
        "old"
    ]  # a config that it does not name


def test_columns_of_another_case(tmp_path):
    turns = {"role": ["user"], "content": ["hi"]}  # and a conversation as columns of lists
    rows = [
        {
            "QUESTION_ID": "1",
            "CONVERSATION": turns,
            "TARGET_QUESTION": "t?",
            "AXIS": "a",
            "PASS_CRITERIA": "YES",
        }
    ]
    (item,) = load(BY_NAME["multichallenge"], put(tmp_path / "set", rows), PROMPTS)[0]
    assert (item.text, item.turns, item.groups) == ("hi", (), {"axis": "a"})


def test_prompts_are_complete():
    assert len(PROMPTS["charxiv_questions"]) == 19 and json.dumps(PROMPTS)
    names = (
        "mmvet multichallenge mmvu_choice mmvu_open hle charxiv_reasoning charxiv_descriptive"
    )
    for name in names.split():
        assert "{response}" in PROMPTS[name] and "JSON" in PROMPTS[name]
