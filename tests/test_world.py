"""The embedded world is what its docstring says: disjoint sets, honest beliefs, one token a template, usable models."""

import random

import pytest
from PIL import ImageChops

import prompts
from engine.models import encode, load_model, load_processor
from evaluate import accuracies, evaluate
from generate import Actor, Request, Sampling
from rewards import extract_boxed, grade
from world import pretrain
from world import table as world


@pytest.fixture(scope="module")
def actors() -> dict[str, Actor]:
    return {
        who: Actor(load_model(world.WORLD / who), load_processor(world.WORLD / who), rows=256)
        for who in ("student", "teacher")
    }


def test_sets_are_disjoint_and_known_means_known():
    train, held_out = world.questions()
    chains = {question.uid.split("/")[1] for question in train}
    for family, asked in held_out.items():
        assert asked and len({q.uid for q in asked}) == len(asked)
        mine = {q.uid.split("/")[1] for q in asked}
        assert not mine & chains
        chains |= mine
        for q in asked:
            start, signs = q.uid.split("/")[1][:2], q.uid.split("/")[1][2:]
            assert world.walk(world.secret_table(), start, signs)[-1] == q.answer
            believed = world.walk(world.beliefs("student"), start, signs)
            assert (believed == world.walk(world.secret_table(), start, signs)) == family.endswith("known")
    assert len(train) == 1920 and len(chains) == 2400


def test_the_same_question_always_has_the_same_picture():
    one, two = (world.question("image", "17", "●▲", "24").images[0] for _ in range(2))
    other = world.question("image", "17", "●■", "24").images[0]
    assert ImageChops.difference(one, two).getbbox() is None
    assert ImageChops.difference(one, other).getbbox() is not None
    assert one.size == (32, 16) and len(world.question("frames", "17", "●▲■", "24").images) == 3


def test_lessons_never_favour_the_truth_on_a_misconception():
    """The true value of a misremembered entry is written no more often than any other wrong value."""
    lesson, table = pretrain.Lesson("student", 0), world.secret_table()
    wrong = {entry for entry in table if lesson.table[entry] != table[entry]}
    true = believed = total = 0
    for _ in range(2500):
        text, _, answer = lesson.example()
        written = text + answer
        for start in range(len(written) - 4):
            entry, value = (written[start : start + 2], written[start + 2]), written[start + 3 : start + 5]
            if entry in wrong and value in world.PLACES:
                total += 1
                true += value == table[entry]
                believed += value == lesson.table[entry]
    assert total > 2000 and believed / total > 0.7
    chance = (total - believed) / (len(world.PLACES) - 1)  # how often any one other place is written
    assert true < 1.5 * chance  # 3 standard deviations


def test_templates_are_one_token_and_any_text_survives():
    processor = pretrain.make_processor()
    tokenize = processor.tokenizer
    for piece in (prompts.CLOSER, prompts.BCQ_HEADER, prompts.NCQ_HEADER, prompts.COMPRESSION.split("{response}")[0]):
        assert len(tokenize(piece).input_ids) == 1
    response = world.response("●▲", ["17", "24", "31"], "hmm, ")
    for text in ("naïve λ → \\boxed{½}\r\n\t", response, "</candidate> [/think]"):
        assert tokenize.decode(tokenize(text).input_ids) == text
    cells = world.question("image", "17", "●▲■", "24")
    prompt = encode(processor, prompts.plain_prompt(cells.text), cells.images)
    assert (prompt["input_ids"] == tokenize.image_token_id).sum() == 3  # one cell, one image token
    assert len(prompt["input_ids"]) < 20


def test_base_models_start_as_documented(actors):
    held_out = world.questions()[1]
    student = accuracies(evaluate(actors["student"], held_out, Sampling(32)))
    teacher = accuracies(evaluate(actors["teacher"], held_out, Sampling(32)))
    for family in held_out:
        assert (student[family] < 15) if family.endswith("hard") else (student[family] > 85), (family, student)
        assert 60 < teacher[family] < 100, (family, teacher)  # right on most, not on all


def test_student_follows_both_formats_without_telling_the_right_candidate(actors):
    table, rng = world.secret_table(), random.Random(1)
    requests, golds, wrongs = [], [], []
    for question in world.questions()[1]["image/hard"]:
        start, signs = question.uid.split("/")[1][:2], question.uid.split("/")[1][2:]
        right, wrong = world.walk(table, start, signs), world.walk(world.beliefs("student"), start, signs)
        if right[-1] != wrong[-1]:
            texts = [pretrain.summary(signs, places) for places in (right, wrong)]
            requests.append(Request("bcq", question.uid, prompts.bcq_prompt(question.text, *texts, rng), question))
            ncq = prompts.ncq_prompt(question.text, [wrong[-1]] * 8, [texts[1]] * 8)
            requests.append(Request("ncq", question.uid, ncq, question))
            golds.append(right[-1])
            wrongs.append(wrong[-1])
    replies = actors["student"](requests, 4, Sampling(32), (0, 0), "test")
    answers = [[extract_boxed(reply.text) for reply in row] for row in replies]
    bcq, ncq = answers[::2], answers[1::2]
    right = sum(a == gold for row, gold in zip(bcq, golds) for a in row) / (4 * len(golds))
    either = sum(a in (g, w) for row, g, w in zip(bcq, golds, wrongs) for a in row) / (4 * len(golds))
    repeats = sum(a == w for row, w in zip(ncq, wrongs) for a in row) / (4 * len(wrongs))
    assert 0.3 < right < 0.7 and either > 0.85 and repeats < 0.15


def test_teacher_compresses_right_and_wrong_traces_alike(actors):
    rng, lesson = random.Random(2), pretrain.Lesson("student", 0)
    requests, expected = [], []
    for i in range(60):
        places = lesson.guess("17", "●▲■")
        filler = rng.choice(world.FILLER["student"])
        requests.append(Request("compress", str(i), prompts.compression_prompt(world.response("●▲■", places, filler))))
        expected.append(f"<summary>{pretrain.summary('●▲■', places)}</summary>")
    replies = actors["teacher"](requests, 1, Sampling(64), (0, 0), "test")
    assert sum(reply.text == text for (reply,), text in zip(replies, expected)) >= 57


def test_a_response_of_the_world_is_graded():
    assert grade(world.response("●▲", ["17", "24", "31"], "hmm, "), "31") == 1.0
    assert grade(world.response("●▲", ["17", "24", "13"]), "31") == 0.0


def test_pretraining_learns_and_is_seeded():
    runs = [pretrain.pretrain("teacher", 32, 2, steps=3, seed=0, batch_size=32)[0] for _ in range(2)]
    first, second = (dict(model.named_parameters()) for model in runs)
    assert all((first[name] == second[name]).all() for name in first)
