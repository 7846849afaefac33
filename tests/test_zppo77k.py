"""zppo77k.py on synthetic sources of the real schemas: filters, caps, workers, a kill, training on the result."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import datasets
import pandas as pd
import pytest
from runs import Forked
from test_questions import RAW_IMAGE, TEXT, cell, cut, save, tiny_processor

from engine import questions as data
from engine.questions import DataError, load_questions, open_images
from extras import zppo77k


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


VERO_FEATURES = datasets.Features({
    "id": TEXT, "data_source": TEXT, "image": RAW_IMAGE, "prompt": [{"role": TEXT, "content": TEXT}],
    "ability": TEXT, "reward_model": {"style": TEXT, "ground_truth": TEXT},
    "extra_info": {"question": TEXT, "answer": TEXT, "reward_type": TEXT, "id": TEXT}})
FINE_FEATURES = datasets.Features({
    "source": TEXT, "id": TEXT, "question": TEXT, "answer": TEXT, "ori_question": TEXT,
    "original_answer": TEXT, "caption": TEXT, "image": RAW_IMAGE, "pass_rate": datasets.Value("float64"),
    "qwen3vl_235b_thinking_response": TEXT})


def vero_row(i, question="<image>\nHow many are there? Please put your final answer within \\boxed{}.",
             answer="3", image=None, reward_type="numeric", extra=None):
    question = question.replace("there", f"there in case {i}")
    return {"id": f"v{i}", "data_source": "d", "image": image or cell(color=(i % 256, i // 256, 0)),
            "prompt": [{"role": "user", "content": question}], "ability": "stem",
            "reward_model": {"style": "rule", "ground_truth": answer},
            "extra_info": {"question": question, "answer": extra or answer, "reward_type": reward_type, "id": f"v{i}"}}


def fine_row(i, source, question="Look at <image>. How many are there?", answer="3", image=None,
             pass_rate=0.25):
    return {"source": source, "id": f"m{i}", "question": question.replace("there", f"there in case {i}"),
            "answer": answer, "ori_question": "o", "original_answer": "<think>long</think>", "caption": "c",
            "image": image or cell(color=(i % 256, i // 256, 9)), "pass_rate": pass_rate,
            "qwen3vl_235b_thinking_response": "long"}


def broken(content: bytes) -> dict:
    return {"bytes": content, "path": None}


VERO_ODD = [  # what is odd about a row, and where it must end
    ({"answer": "['cat', 'kitten']"}, "answer_is_a_list"), ({"answer": "['cat']"}, "good"),
    ({"answer": ""}, "answer_missing"), ({"answer": "[3, 4]"}, "good"),
    ({"answer": "", "extra": "5"}, "good"), ({"answer": None, "extra": "5"}, "good"),  # the gold stands beside
    ({"answer": "['a', 'b']", "reward_type": "list_match"}, "answer_is_a_list_of_parts"),
    ({"answer": "[2, 1, 3]", "reward_type": "ordering"}, "answer_is_a_sequence"),
    ({"answer": "['3']", "reward_type": "list_match"}, "good"),
    ({"answer": "6 * 7 = 42\n#### 42"}, "good"), ({"answer": "So x is \\boxed{43}."}, "good"),
    ({"answer": "[1, 2, 3, 4]", "reward_type": "grounding"}, "no_short_answer"),
    ({"answer": "z" * 513}, "answer_too_long"), ({"answer": "z" * 512}, "good"),
    ({"image": broken(b"\x89PNG broken")}, "image_unreadable"),
    ({"image": broken(cut("PNG"))}, "image_unreadable"), ({"image": broken(cut("JPEG"))}, "image_unreadable"),
    ({"image": cell(size=(99, 400))}, "image_too_small"), ({"image": cell(size=(100, 400))}, "good"),
    ({"image": cell(size=(100, 20100), mode="1", color=0)}, "image_too_narrow"),
    ({"question": "<image>\n"}, "question_empty"), ({"question": "<image>" + "y" * 3900}, "prompt_too_long"),
    ({"question": "<image>" + "y" * 3500}, "good"), ({"image": cell(mode="L", color=9)}, "good")]
FINE_ODD = [({"pass_rate": None}, "pass_rate_missing"), ({"pass_rate": float("nan")}, "pass_rate_missing"),
            ({"pass_rate": 0.75}, "pass_rate_too_high"),
            ({"pass_rate": 0.5}, "good"), ({"pass_rate": 0.0}, "good"), ({"answer": None}, "answer_missing"),
            ({"image": broken(b"")}, "image_unreadable"), ({"question": "<image>"}, "question_empty")]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Both sources as small folders of the real layout, and the fate of every row while no cap binds."""
    root = tmp_path_factory.mktemp("sources")
    fates, rows, number = {}, {}, iter(range(10_000))

    def put(file, origin, row, fate):
        rows.setdefault(file, []).append(row)
        fates.setdefault(origin, Counter()).update(["rows", fate])

    def vero(config, shard=0, fate="good", **odd):
        row = vero_row(next(number), **odd)
        put((config, shard), f"vero/{config}", row, fate)
        return row

    def fine(source, shard, fate="good", **odd):
        row = fine_row(next(number), source, **odd)
        put(("fine", shard), f"mmfinereason/{source}", row, fate)
        return row

    for odd, fate in VERO_ODD:
        vero("stem-ai2d_merged", next(number) % 2, fate, **odd)
    for _ in range(9):
        vero("stem-wemath20_pro")
        vero("stem-wemath20_standard")
        twice = vero("knowledge_recognition-vqav2")
    put(("knowledge_recognition-vqav2", 1), "vero/knowledge_recognition-vqav2", twice, "duplicate")
    put(("stem-wemath20_standard", 0), "vero/stem-wemath20_standard", rows["stem-wemath20_pro", 0][0],
        "duplicate")
    rows["captioning_IF-PixMo-Cap", 0] = [vero_row(next(number))]
    for shard in range(3):
        for odd, fate in FINE_ODD:
            fine("MMR1", shard, fate, **odd)
        for _ in range(8 - shard):
            fine("MMR1", shard)
            fine("FineVision-raven", shard)
            fine("FineVision-ai2d_merged", shard, "held_by_vero")
        for _ in range(2):
            fine("GameQA-140K", shard, "not_in_recipe")
            fine("WeMath2-Standard", shard, "held_by_vero", pass_rate=0.75)
    # an exact copy of a Vero question under another name of the second source: Vero wins
    copy = rows["knowledge_recognition-vqav2", 0][0]
    put(("fine", 2), "mmfinereason/MMR1", fine_row(0, "MMR1", image=copy["image"]) | {
        "question": copy["extra_info"]["question"]}, "duplicate_of_another_subset")
    # the same question and image with two golds, one in each source; and with two spellings of one gold
    first, second = vero("knowledge_recognition-vqav2", 0, "conflicting_answers"), vero("knowledge_recognition-vqav2")
    for row, fate, answer in ((first, "conflicting_answers", "4"), (second, "duplicate_of_another_subset", "3.0")):
        put(("fine", 0), "mmfinereason/FineVision-raven", fine_row(0, "FineVision-raven", image=row["image"]) | {
            "question": row["extra_info"]["question"], "answer": answer}, fate)
    files = Counter(file[0] for file in rows)
    for (config, shard), made in rows.items():
        kind, features = ("fine", FINE_FEATURES) if config == "fine" else ("vero", VERO_FEATURES)
        name = f"train-{shard:05d}-of-{files[config]:05d}.parquet"
        folder = root / kind / ("data" if kind == "fine" else config)
        save(folder / name, made, features)
    configs = sorted(files.keys() - {"fine"})
    entries = [f"- config_name: {config}\n  data_files:\n  - split: train\n    path: {config}/train-*\n"
               for config in configs]
    (root / "vero" / "README.md").write_text("---\nconfigs:\n" + "".join(entries) + "---\n")
    used = {"ai2d", "wemath", "vqav2", "mmr1", "raven"}
    there = {f"vero/{name}" for name in used - {"mmr1", "raven"}} | {f"mmfinereason/{name}" for name in used}
    lacking = sorted(zppo77k.CAPS.keys() - there)

    def arguments(out, **changes) -> zppo77k.BuildArgs:
        settings = {"vero": str(root / "vero"), "mmfinereason": str(root / "fine"), "student": "tiny",
                    "workers": 1, "allow_missing": True}
        return zppo77k.BuildArgs(str(out), **settings | changes)

    return arguments, fates, lacking


def rank_of(uid: str, seed: int) -> str:
    return hashlib.sha256(f"{seed} {uid}".encode()).hexdigest()


def rows_of(out) -> list[dict]:
    return list(data.undecoded(datasets.load_dataset(str(out), split="train")))


@pytest.fixture(scope="module")
def whole(world, processor, tmp_path_factory):
    """The set when no cap binds."""
    out = tmp_path_factory.mktemp("whole")
    return out, zppo77k.build(world[0](out), processor)


def test_counts_at_every_filter_are_as_predicted(world, whole):
    out, report = whole
    expected = {origin: {("kept" if fate == "good" else fate): n for fate, n in count.items()}
                for origin, count in world[1].items()}
    assert report["origins"] == expected
    assert report["outside"] == ["vero/captioning_IF-PixMo-Cap", "mmfinereason/GameQA-140K"]
    kept = {name: kept for name, (_, kept) in report["subsets"].items()}
    assert kept == {"vero/ai2d": 11, "vero/wemath": 18, "vero/vqav2": 10, "mmfinereason/mmr1": 27,
                    "mmfinereason/raven": 21}
    assert report["missing"] == world[2]
    assert report["totals"]["kept"] == report["questions"] == sum(kept.values())
    assert json.loads((out / "report.json").read_text()) == report
    assert sorted(os.listdir(out)) == ["data", "report.json"]


def test_the_built_set_loads_as_it_is(whole):
    out, report = whole
    questions, loaded = load_questions(str(out))
    assert data.intact(questions, [], set()) == (questions, [], 0)
    assert loaded["skipped"] == {} and len(questions) == report["questions"]
    assert all(len(q.images) == 1 and open_images(q)[0].mode == "RGB" for q in questions)
    assert not any("<image>" in q.text or "boxed" in q.text for q in questions)
    assert {q.answer for q in questions} == {"3", "5", "42", "43", "cat", "[3, 4]", "z" * 512}


def test_caps_choose_the_lowest_ranks(world, whole, processor, tmp_path, monkeypatch):
    lower = {name: 6 if cap == 2800 else 4 for name, cap in zppo77k.CAPS.items()}
    monkeypatch.setattr(zppo77k, "CAPS", lower)
    report = zppo77k.build(world[0](tmp_path, seed=7), processor)
    totals, kept = report["totals"], {name: kept for name, (_, kept) in report["subsets"].items()}
    assert kept == {"vero/ai2d": 6, "vero/wemath": 6, "vero/vqav2": 4, "mmfinereason/mmr1": 6, "mmfinereason/raven": 4}
    assert totals["kept"] + totals["over_cap"] == whole[1]["totals"]["kept"]
    assert totals["duplicate_of_another_subset"] == 2  # also where the cap cuts the copy of Vero
    chosen = rows_of(tmp_path)
    assert chosen == sorted(chosen, key=lambda row: rank_of(row["uid"], 7))
    for subset, cap in (("vero/wemath", 6), ("mmfinereason/raven", 4)):
        uids = [row["uid"] for row in rows_of(whole[0]) if row["subset"] == subset]
        lowest = sorted(uids, key=lambda uid: rank_of(uid, 7))[:cap]
        assert {row["uid"] for row in chosen if row["subset"] == subset} == set(lowest)


def test_same_set_from_two_workers_and_another_seed_another_set(world, processor, tmp_path, monkeypatch):
    lower = {name: 6 if cap == 2800 else 4 for name, cap in zppo77k.CAPS.items()}
    monkeypatch.setattr(zppo77k, "CAPS", lower)
    monkeypatch.setattr(zppo77k, "GROUP", 5)
    one = zppo77k.build(world[0](tmp_path / "one"), processor)
    two = zppo77k.build(world[0](tmp_path / "two", workers=2), processor)
    zppo77k.build(world[0](tmp_path / "other", seed=1), processor)
    assert one == two and rows_of(tmp_path / "one") == rows_of(tmp_path / "two")
    prints = [data.fingerprint(load_questions(str(tmp_path / name))[0]) for name in ("one", "two", "other")]
    assert prints[0] == prints[1] != prints[2]


def test_the_set_does_not_depend_on_the_order_of_rows(monkeypatch):
    rows = [("u", "vero/a", "3", "1"), ("u", "vero/b", "3", "2"), ("u", "mmfinereason/c", "3.0", "3"),
            ("v", "vero/a", "3", "4"), ("v", "mmfinereason/c", "4", "5"), ("w", "vero/a", "3", "6")]
    rows = pd.DataFrame(rows, columns=["uid", "subset", "answer", "row_id"])
    rows = rows.assign(origin=rows["subset"], rank=rows["uid"], fate="")
    copy, conflict = "duplicate_of_another_subset", "conflicting_answers"
    monkeypatch.setattr(zppo77k, "CAPS", {"vero/a": 2})
    expected = ["kept", copy, copy, conflict, conflict, "kept"]
    for order in (range(6), range(5, -1, -1), [2, 0, 4, 1, 5, 3]):
        settled = zppo77k.settle(rows.iloc[list(order)].reset_index(drop=True))
        assert list(settled) == [expected[i] for i in order]


def test_a_killed_build_resumes_where_it_was(world, whole, processor, tmp_path, monkeypatch):
    code = f"""if True:
        import os, signal, sys
        sys.path[:0] = {sys.path!r}
        import datasets, test_questions
        from extras import zppo77k
        zppo77k.GROUP, judge, groups = 2, datasets.Dataset.from_generator, []
        def two_groups(*args, **rest):
            if len(groups) == 2:
                rest["gen_kwargs"]["files"].append(None)  # the third group fails in its middle
                zppo77k.value_of = lambda row, names: os.kill(os.getpid(), signal.SIGKILL)
            groups.append(judge(*args, **rest))
            return groups[-1]
        datasets.Dataset.from_generator = two_groups
        zppo77k.build(zppo77k.{world[0](tmp_path)!r}, test_questions.tiny_processor())
    """
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    judge, again = zppo77k.judged_rows, []

    def watched(files, **rest):
        again.extend(files)
        return judge(files, **rest)

    monkeypatch.setattr(zppo77k, "GROUP", 2)
    monkeypatch.setattr(zppo77k, "judged_rows", watched)
    report = zppo77k.build(world[0](tmp_path), processor)
    assert len(again) == 8 - 4
    assert report == whole[1] and rows_of(tmp_path) == rows_of(whole[0])
    with pytest.raises(DataError, match="the set is finished"):
        zppo77k.build(world[0](tmp_path), processor)


@pytest.mark.parametrize("recipe, changes, message", [
    ({"split": "training"}, {"mmfinereason": ""}, "training.*train.*edit `split` in extras/zppo77k.yaml"),
    ({"vero": {"answer": ["reward_model.gold"]}}, {},
     r"no column for answer: expected one of \['reward_model.gold'\], the source has .*'reward_model.ground_truth'"),
    ({"mmfinereason": {"pass_rate": ["rate"]}}, {},
     "no column for pass_rate: .*Edit `pass_rate` of mmfinereason in extras/zppo77k.yaml"),
    ({}, {"allow_missing": False},
     r"nothing there matches .*'vero/visual7w'.*PixMo-Cap.*`aliases` in extras/zppo77k.yaml.*--allow_missing"),
    ({}, {"vero": "/nowhere/at/all"}, "--vero /nowhere/at/all: cannot be read"),
    ({}, {"student": "/nowhere/at/all"}, "--student /nowhere/at/all: cannot be read.*Is it the id or the folder"),
])
def test_sources_that_turn_out_different_say_what_to_change(
        world, processor, tmp_path, monkeypatch, recipe, changes, message):
    for name, value in recipe.items():
        if name == "split":
            monkeypatch.setitem(zppo77k.RECIPE, name, value)
        else:
            columns = zppo77k.RECIPE[name]["columns"]
            monkeypatch.setitem(zppo77k.RECIPE[name], "columns", columns | value)
    with pytest.raises(DataError, match=message):
        zppo77k.build(world[0](tmp_path, **changes), None if "student" in changes else processor)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_cut_parquet_file_is_named(world, processor, tmp_path, workers):
    for shard in range(2):
        save(tmp_path / "fine" / f"train-{shard}.parquet", [fine_row(shard, "MMR1")], FINE_FEATURES)
    (tmp_path / "fine" / "train-1.parquet").write_bytes((tmp_path / "fine" / "train-1.parquet").read_bytes()[:300])
    with pytest.raises(DataError, match="cannot be read"):
        zppo77k.build(world[0](tmp_path / "out", mmfinereason=str(tmp_path / "fine"), workers=workers), processor)


def test_aliases_and_leaving_a_source_out(world, processor, tmp_path, monkeypatch):
    monkeypatch.setitem(zppo77k.RECIPE["aliases"], "gameqa_140k", "virl39k")
    report = zppo77k.build(world[0](tmp_path, vero=""), processor)
    assert report["origins"]["mmfinereason/GameQA-140K"] == {"rows": 6, "kept": 6}
    assert report["origins"]["mmfinereason/FineVision-ai2d_merged"]["kept"] == 21  # not held by Vero


def test_the_command(world, whole, tmp_path):
    root, given = Path(zppo77k.__file__).parents[1], world[0](tmp_path / "out")
    command = f"-m extras.zppo77k --out {given.out} --vero {given.vero} --mmfinereason {given.mmfinereason} --workers 2"
    command = [sys.executable, *command.split(), "--student", f"{root}/world/student"]
    refused = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=200)
    assert refused.returncode == 2 and "Traceback" not in refused.stderr
    assert refused.stderr.splitlines()[-1].startswith("--vero")
    assert "`aliases` in extras/zppo77k.yaml" in refused.stderr
    done = subprocess.run([*command, "--allow_missing"], cwd=root, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["totals"]["rows"] == whole[1]["totals"]["rows"]


def test_the_embedded_student_trains_on_the_built_set(whole, tmp_path):
    root = Path(zppo77k.__file__).parents[1]
    command = f"--student {root}/world/student --teacher {root}/world/teacher --data {whole[0]}".split()
    command += f"--output {tmp_path}/run --steps 2 --new_per_step 4 --group_size 2 --teacher_group_size 1 --max_response_tokens 8".split()
    command += "--min_pixels 256 --max_pixels 4096".split()
    forked = Forked("train.py", command)
    _, errors = forked.communicate()
    assert forked.returncode == 0, errors
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 2
