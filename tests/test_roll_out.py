"""Stages 1 and 5: rollouts come from the student, rewards from the grader or the judge, randomness from the key."""

import copy

from stages import FOUR, KEY, Script, actors, ask, collect, says

from engine.questions import Question
from generate import Sampling
from rewards import extract_boxed
from zppo import Context, Recipe


def test_everything_in_a_group_was_sampled_by_the_student():
    recipe = Recipe(rho_aug=2.0)
    student, teacher = actors({"a": 1, "b": 2}, dict.fromkeys("abcd", 2), recipe)
    groups, _ = collect(Context(student, teacher, recipe, KEY), FOUR, [])
    assert len(groups) == 12
    for group in groups:
        for j, rollout in enumerate(group.rollouts):
            assert rollout.tokens == [1, j] and rollout.text.startswith("<think>student-")
            assert rollout.reward == (rollout.answer == "1") and rollout.answer == extract_boxed(rollout.text)
    for call in student.calls + teacher.calls:
        assert call.key == KEY
        compressing = call.phase == "compress"
        assert call.sampling == Sampling(512 if compressing else recipe.max_response_tokens)
        assert call.n == (1 if compressing else recipe.group_size if call in student.calls else 4)


def test_the_teacher_judges_free_form_golds_and_only_those():
    """Greedily, in one batch per phase; summaries are not judged."""
    recipe = Recipe(rho_aug=1.0, group_size=2, teacher_group_size=2)
    essay = Question("a", "question a?", (), "a gold of several words", free_form=True)

    def text(request, j):
        if request.kind == "judge":
            return '{"verdict": "%s"}' % ("correct" if "## Model Response\n1\n" in request.text else "wrong")
        return says({"a": 2}, 2, "teacher")(request, j)

    student, teacher = Script(1, says({"b": 1}, 2, "student")), Script(2, text)
    groups, _ = collect(Context(student, teacher, recipe, KEY), [essay, ask("b")], [])
    judged = [call for call in teacher.calls if call.phase == "judge"]
    assert [len(call.requests) for call in judged] == [2, 2, 4]  # plain, teacher, reformulated: never question b
    assert all(call.sampling == Sampling(512, temperature=0.0) and call.n == 1 for call in judged)
    assert [group.accuracy for group in groups[:2]] == [0.0, 0.5]
    assert {(group.kind, group.question.uid) for group in groups[2:]} == {("bcq", "a"), ("ncq", "a")}


def test_collect_is_deterministic_and_changes_none_of_its_inputs():
    recipe = Recipe(rho_aug=1.0)
    new, replayed = FOUR[:3], FOUR[3:]
    before = copy.deepcopy((new, replayed, recipe))
    results = []
    for _ in range(2):
        student, teacher = actors({"a": 1, "b": 4, "d": 2}, {"a": 1, "c": 3}, recipe)
        results.append(collect(Context(student, teacher, recipe, KEY), new, replayed))
    assert results[0] == results[1] and (new, replayed, recipe) == before
    student, teacher = actors({"a": 1, "b": 4, "d": 2}, {"a": 1, "c": 3}, recipe)
    assert collect(Context(student, teacher, recipe, (0, 4)), new, replayed)[0] != results[0][0]
