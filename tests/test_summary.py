"""What a step says of itself, which questions it takes, and what of it the buffer sees."""

import pytest
import tiny
from runs import read_metrics, read_state, train

from engine.questions import Question
from extras.setup import usable
from generate import Actor, Reply
from prompts import plain_prompt
from train import Arguments, new_questions
from zppo import Context, Group, Recipe, Rollout, plain_groups, roll_out, summarise

NO_ANSWER, CUT = "n", "c"


def group(kind: str, *rollouts: str) -> Group:
    """A rollout is its reward and its number of tokens; "n": without an answer, "c": cut."""
    made = []
    for said in rollouts:
        reward, length = said[:2]
        answer = None if NO_ANSWER in said else "7"
        made.append(Rollout("", [5] * int(length), float(reward), answer, CUT not in said))
    return Group(Question("q", "?", (), "7"), kind, "", made)


def test_a_hand_made_step():
    groups = [
        group("plain", "01n", "02nc", "03", "04c"),  # all wrong
        group("plain", "11", "01", "01", "01"),  # hard
        group("plain", "11", "11", "01", "01n"),  # at tau: not hard
        group("plain", "12", "12", "12", "12"),
        group("plain", "11", "11", "11", "01"),
        group("bcq", "11", "01nc", "01n", "01n"),
        group("bcq", "11", "11", "01", "01"),
        group("ncq", "01", "01", "01", "01"),
        group("teacher", "19nc", "09nc"),  # no rollouts of the student
    ]
    expected = {
        "plain_accuracy": (0 + 1 / 4 + 1 / 2 + 1 + 3 / 4) / 5,
        "bcq_accuracy": (1 / 4 + 1 / 2) / 2,
        "ncq_accuracy": 0.0,
        "plain_prompts": 5,
        "bcq_prompts": 2,
        "ncq_prompts": 1,
        "plain_active_share": 3 / 5,
        "bcq_active_share": 1.0,
        "ncq_active_share": 0.0,
        "hard_share": 2 / 5,
        "all_wrong_share": 1 / 5,
        "no_answer_share": 6 / 32,
        "response_length": (10 + 4 + 4 + 8 + 4 + 4 + 4 + 4) / 32,
        "cut_share": 3 / 32,
        "positive_share": (0 + 1 + 2 + 0 + 3 + 1 + 2 + 0) / 32,
    }
    assert summarise(groups, Recipe()) == pytest.approx(expected)


def test_a_step_without_rollouts_has_no_means():
    metrics = summarise([], Recipe())
    assert metrics.pop("plain_prompts") == metrics.pop("bcq_prompts") == 0
    assert metrics.pop("ncq_prompts") == 0 and set(metrics.values()) == {None}


def test_a_rollout_knows_whether_it_was_cut():
    def student(requests, n, sampling, key, phase):
        return [[Reply("so \\boxed{7}", [5], j != 1) for j in range(n)] for _ in requests]

    ctx = Context(student, None, Recipe(group_size=4), (0, 0))
    groups = roll_out(ctx, plain_groups([Question("q", "?", (), "7")]), "rollout")
    assert [rollout.finished for rollout in groups[0].rollouts] == [True, False, True, True]
    assert summarise(groups, ctx.recipe)["cut_share"] == 1 / 4


def test_every_pass_takes_the_questions_in_another_order():
    """Seven questions, two a step: a pass has three steps and leaves one question out."""
    questions = [Question(str(i), str(i), (), "7") for i in range(7)]
    args = Arguments(new_per_step=2)

    def passes(args: Arguments) -> list[list[str]]:
        taken = [[q.uid for q in new_questions(questions, args, step)] for step in range(3 * 20)]
        return [sum(taken[i : i + 3], []) for i in range(0, len(taken), 3)]

    orders = passes(args)
    assert all(len(order) == len(set(order)) == 6 for order in orders)
    assert len({tuple(order) for order in orders}) > 15  # of 5,040
    assert {uid for order in orders for uid in order} == set("0123456") and passes(args) == orders
    assert passes(Arguments(new_per_step=2, seed=1))[0] != orders[0]


def test_a_prompt_of_exactly_the_longest_length_is_used():
    student = Actor(tiny.make("qwen3_5"), tiny.PROCESSOR)
    question = Question("q", "why? " * 9, (), "7")
    tokens = len(student.encoder(plain_prompt(question.text), question)["input_ids"])
    args = Arguments(new_per_step=1, max_prompt_tokens=tokens)
    assert usable(args, [question], {}, student, student)[0] == [question]
    args.max_prompt_tokens -= 1
    with pytest.raises(SystemExit, match="0 usable questions"):
        usable(args, [question], {}, student, student)


def test_a_row_without_the_dagger_has_no_buffer(tmp_path):
    run = tmp_path / "run"
    train(run, "--method", "grpo", "--steps", "2", "--eval_questions", "0")
    for line in read_metrics(run):
        assert line["hard_share"] > 0 and line["plain_prompts"] == 8
        assert line["replayed"] == line["buffer"] == line["admitted"] == 0
    assert read_state(run, 2)[2]["buffer"]["entries"] == []
