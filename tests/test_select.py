"""Stages 2, 3 and the cap of 5: which hard questions become BCQ and NCQ, against Algorithm 1's literal text."""

import math
import random
from collections import Counter

import pytest
from stages import FOUR, KEY, actors, ask, collect, instances

from zppo import Context, Recipe, quota


@pytest.mark.parametrize(
    ("rho_aug", "expected"),
    [
        (0.0, []),
        (0.24, []),
        (0.25, [("bcq", "c")]),  # one slot left and both possible: BCQ takes it
        (0.5, [("bcq", "c"), ("ncq", "c")]),
        (0.99, [("bcq", "c"), ("ncq", "c"), ("bcq", "a")]),
        (1.25, [("bcq", "c"), ("ncq", "c"), ("bcq", "a"), ("ncq", "a"), ("ncq", "d")]),
        (9.0, [("bcq", "c"), ("ncq", "c"), ("bcq", "a"), ("ncq", "a"), ("ncq", "d")]),
    ],
)
def test_caps_walk_in_ascending_accuracy_bcq_before_ncq(rho_aug, expected):
    """c 0/8, a 1/8, d 3/8 are hard, b 4/8 is exactly tau and is not; the teacher fails on d."""
    recipe = Recipe(rho_aug=rho_aug)
    student, teacher = actors({"a": 1, "b": 4, "c": 0, "d": 3}, {"a": 1, "b": 4, "c": 4, "d": 0}, recipe)
    groups, stats = collect(Context(student, teacher, recipe, KEY), FOUR, [])
    assert instances(groups) == expected
    assert [group.question.uid for group in groups[:4]] == list("abcd")
    assert [group.accuracy for group in groups[:4]] == [1 / 8, 4 / 8, 0.0, 3 / 8]
    assert "b" not in {request.uid for request in teacher.asked("teacher")}
    assert stats["teacher_questions"] == len(teacher.asked("teacher"))
    assert all(len(group.rollouts) == 8 for group in groups)


def test_counts_are_floors_whatever_floating_point_makes_of_the_product():
    pairs = ((0.25, 384), (0.29, 100), (0.1, 30), (0.25, 7), (0.0, 5))
    assert [quota(*pair) for pair in pairs] == [96, 29, 3, 1, 0]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (dict(method="grpo_replay_ncq"), [("ncq", "c"), ("ncq", "a"), ("ncq", "d")]),
        (dict(method="grpo_replay_bcq"), [("bcq", "c"), ("bcq", "a")]),
        (dict(method="grpo_replay"), []),
        (dict(tau=0.125), [("bcq", "c"), ("ncq", "c")]),
        (
            dict(tau=0.51),
            [("bcq", "c"), ("ncq", "c"), ("bcq", "a"), ("ncq", "a"), ("ncq", "d"), ("bcq", "b"), ("ncq", "b")],
        ),
    ],
)
def test_branches_and_threshold(changes, expected):
    recipe = Recipe(rho_aug=2.0, **changes)
    student, teacher = actors({"a": 1, "b": 4, "c": 0, "d": 3}, {"a": 1, "b": 4, "c": 4, "d": 0}, recipe)
    groups, _ = collect(Context(student, teacher, recipe, KEY), FOUR, [])
    assert instances(groups) == expected
    if "bcq" not in recipe.branches:
        assert teacher.asked("teacher") == []


def test_cap_counts_new_questions_only_and_replayed_ones_take_part():
    recipe = Recipe(rho_aug=0.5)
    student, teacher = actors({"a": 3, "b": 3, "x": 0, "y": 1}, {}, recipe)
    groups, _ = collect(Context(student, teacher, recipe, KEY), [ask("a"), ask("b")], [ask("x"), ask("y")])
    assert [group.question.uid for group in groups[:4]] == ["a", "b", "x", "y"]
    assert instances(groups) == [("ncq", "x")]
    assert {request.uid for request in teacher.asked("teacher")} >= {"x"}  # fresh, also for a replayed question


def literal(plain, correct, recipe, new):
    """Algorithm 1, stages 2-5, as the paper states it: teacher on all hard questions, pre-cap, prompts, post-cap."""
    cap = math.floor(recipe.rho_aug * new)
    hard = sorted((uid for uid in plain if plain[uid] < recipe.tau), key=plain.get)
    bcq, ncq = "bcq" in recipe.branches, "ncq" in recipe.branches
    kept = [uid for uid in hard if (bcq and correct[uid]) or ncq][:cap]  # pre-cap
    pool = []
    for uid in kept:
        for kind, possible in (("bcq", bcq and correct[uid]), ("ncq", ncq)):
            if possible and len(pool) < cap:  # post-cap
                pool.append((kind, uid))
    return pool


def test_lazy_walk_is_the_literal_algorithm():
    """Random cases without ties, so that the ranking is unique."""
    rng, sizes = random.Random(0), Counter()
    for case in range(150):
        count, n = rng.randint(1, 12), 32
        recipe = Recipe(
            group_size=n,
            rho_aug=rng.choice([0.1, 0.25, 0.5, 0.8, 1.0, 2.0]),
            method=rng.choice(["zppo", "zppo", "grpo_both", "grpo_replay_bcq", "grpo_replay_ncq", "grpo"]),
            tau=rng.choice([0.25, 0.5, 0.9]),
        )
        questions = [ask(f"q{i}") for i in range(count)]
        right = dict(zip([q.uid for q in questions], rng.sample(range(n + 1), count)))
        able = {q.uid: rng.choice([0, 0, 1, 4]) for q in questions}
        new = rng.randint(0, count)
        student, teacher = actors(right, able, recipe)
        groups, _ = collect(Context(student, teacher, recipe, (case, 0)), questions[:new], questions[new:])
        expected = literal({uid: k / n for uid, k in right.items()}, able, recipe, new)
        assert instances(groups) == expected
        sizes[len(expected)] += 1
    assert len(sizes) > 6


@pytest.mark.parametrize("method", ["zppo", "grpo_replay_ncq", "grpo_replay_bcq"])
def test_drawing_the_teacher_for_all_hard_questions_gives_the_same_groups(method):
    questions = [ask(f"q{i}") for i in range(24)]
    right = {q.uid: i % 6 for i, q in enumerate(questions)}
    able = {q.uid: i % 3 for i, q in enumerate(questions)}
    drawn = {}
    for everything in (False, True):
        recipe = Recipe(teacher_on_all_hard=everything, method=method)
        student, teacher = actors(right, able, recipe)
        groups, stats = collect(Context(student, teacher, recipe, KEY), questions[:20], questions[20:])
        drawn[everything] = groups, len(teacher.asked("teacher")), stats
    assert drawn[False][0] == drawn[True][0] and len(instances(drawn[True][0])) == 5
    if method == "zppo":
        assert drawn[False][1] < drawn[True][1] == sum(k < 4 for k in right.values())
        assert drawn[True][2]["bcq_possible"] == sum(right[uid] < 4 and able[uid] > 0 for uid in right)


def test_ties_are_broken_at_random_and_not_by_position():
    recipe, picks = Recipe(method="grpo_replay_ncq", group_size=2), Counter()
    new, replayed = [ask(f"n{i}") for i in range(16)], [ask(f"r{i}") for i in range(4)]
    for step in range(100):
        student, teacher = actors({}, {}, recipe)
        groups, _ = collect(Context(student, teacher, recipe, (0, step)), new, replayed)
        picks.update(uid for _, uid in instances(groups))
    assert sum(picks.values()) == 400 and len(picks) == 20
    assert all(abs(count - 20) < 18 for count in picks.values())  # each has chance 4/20: 20 +- 4
    assert 50 < sum(count for uid, count in picks.items() if uid[0] == "r") < 115


def test_no_hard_question_asks_the_teacher_nothing():
    recipe = Recipe()
    student, teacher = actors(dict.fromkeys("abcd", 8), {}, recipe)
    groups, stats = collect(Context(student, teacher, recipe, KEY), FOUR, [])
    assert len(groups) == 4 and not any(call.requests for call in teacher.calls) and not any(stats.values())
