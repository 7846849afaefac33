"""Each row differs from GRPO in exactly what the paper says: groups, tokens that carry loss, updates, divergence."""

import copy
from collections import Counter

import pytest
import tiny
import torch
from accelerate import Accelerator
from stages import BLANK, KEY, Script, actors, ask, collect, encoder, groups_of, says, sgd, weights
from test_logprobs import float_jsd

import baselines
from baselines import distill
from engine.models import banned_token_ids, collate, extend, position_ids
from engine.update import Learner, Policy
from zppo import METHODS, Context, Recipe, mini_batches

QUESTIONS = [ask(uid) for uid in "abcde"]
RIGHT = {"a": 1, "b": 6, "c": 0, "d": 3, "e": 8}  # of 8: a, c, d are hard
ABLE = {"a": 1, "b": 4, "c": 4, "d": 0, "e": 2}  # of 4: nobody helps on d


def drawn(method: str, rho_aug: float = 1.0, **changes):
    recipe = Recipe(method=method, rho_aug=rho_aug, **changes)
    student, teacher = actors(RIGHT, ABLE, recipe)
    ctx = Context(student, teacher, recipe, KEY)
    is_baseline = not baselines.BRANCHES.isdisjoint(recipe.branches)
    groups = baselines.collect(ctx, QUESTIONS, []) if is_baseline else collect(ctx, QUESTIONS, [])[0]
    return recipe, groups, ctx.counts, student, teacher


def test_rows_are_those_of_the_paper():
    """App. D.2; a dagger is the replay buffer, "Both" is BCQ and NCQ."""
    assert {name: set(parts) for name, parts in METHODS.items()} == {
        "zppo": {"bcq", "ncq", "replay"},
        "grpo": set(),
        "grpo_replay": {"replay"},
        "grpo_both": {"bcq", "ncq"},
        "grpo_replay_bcq": {"bcq", "replay"},
        "grpo_replay_ncq": {"ncq", "replay"},
        "off_distill": {"off_distill"},
        "off_distill_replay": {"off_distill", "replay"},
        "on_distill": {"on_distill"},
        "on_distill_replay": {"on_distill", "replay"},
        "hint": {"hint", "replay"},
        "prefix": {"prefix", "replay"},
        "teacher_response": {"teacher_response", "replay"},
    }
    assert Recipe().method == "zppo" and Recipe().branches == ["bcq", "ncq"] and Recipe().replay


@pytest.mark.parametrize(
    ("method", "kinds", "phases"),
    [
        ("grpo", {}, {"rollout"}),
        ("grpo_replay", {}, {"rollout"}),
        ("grpo_replay_bcq", {"bcq": 2}, {"rollout", "teacher", "compress", "reformulate"}),
        ("grpo_replay_ncq", {"ncq": 3}, {"rollout", "compress", "reformulate"}),
        ("grpo_both", {"bcq": 2, "ncq": 3}, {"rollout", "teacher", "compress", "reformulate"}),
        ("zppo", {"bcq": 2, "ncq": 3}, {"rollout", "teacher", "compress", "reformulate"}),
        ("hint", {"hint": 2}, {"rollout", "teacher", "hint", "reformulate"}),
        ("prefix", {"prefix": 2}, {"rollout", "teacher", "reformulate"}),
        ("teacher_response", {}, {"rollout", "teacher"}),
        ("on_distill", {}, {"rollout"}),
        ("on_distill_replay", {}, {"rollout"}),
        ("off_distill", {"teacher": 4}, {"teacher"}),
        ("off_distill_replay", {"teacher": 4}, {"rollout", "teacher"}),
    ],
)
def test_which_groups_exist_and_who_is_asked(method, kinds, phases):
    recipe, groups, _, student, teacher = drawn(method)
    plain = 0 if method == "off_distill" else 5
    assert Counter(group.kind for group in groups) == Counter(kinds) + Counter({"plain": plain})
    asked = {call.phase for actor in (student, teacher) for call in actor.calls if call.requests}
    assert asked == phases
    for group in groups:
        if group.kind in ("hint", "prefix"):
            assert group.question.uid in ("a", "c") and len(group.rollouts) == 8
        student_made = [rollout for rollout in group.rollouts if rollout.tokens[0] == 1]
        if group.kind == "teacher":
            assert not student_made and all(r.by_teacher and r.reward == 1 for r in group.rollouts)
            assert len(group.rollouts) == ABLE[group.question.uid]
        elif method != "teacher_response":
            assert len(student_made) == len(group.rollouts)  # no teacher token is ever trained on


@pytest.mark.parametrize("method", ["hint", "prefix", "teacher_response"])
def test_the_cap_binds_in_ascending_accuracy(method):
    _, groups, *_ = drawn(method, rho_aug=0.2)  # one slot: question c, of accuracy 0
    touched = [g for g in groups if g.kind != "plain" or any(r.by_teacher for r in g.rollouts)]
    assert [group.question.uid for group in touched] == ["c"]


@pytest.mark.parametrize("method", ["hint", "prefix", "teacher_response", "grpo_replay_bcq"])
def test_hint_and_prefix_do_not_refill_and_bcq_does(method):
    """Algorithms 5 and 6 take the top of the ranking first: 40 hard questions, a cap of 10, a teacher right on every
    third."""
    questions = [ask(str(i)) for i in range(40)]
    recipe = Recipe(method=method)
    student, teacher = actors({}, {str(i): 4 * (i % 3 == 0) for i in range(40)}, recipe)
    ctx = Context(student, teacher, recipe, KEY)
    if method == "grpo_replay_bcq":
        groups, _ = collect(ctx, questions, [])
        assert len(groups) == 40 + 10 and ctx.counts["teacher_questions"] > 10
        return
    groups = baselines.collect(ctx, questions, [])
    asked = {request.uid for request in teacher.asked("teacher")}
    touched = [g.question.uid for g in groups if g.kind != "plain" or any(r.by_teacher for r in g.rollouts)]
    assert ctx.counts["teacher_questions"] == len(asked) == 10
    assert {*touched} == {uid for uid in asked if int(uid) % 3 == 0} and len(touched) < 10


def test_a_hint_goes_after_the_question_and_one_with_a_box_is_refused():
    recipe = Recipe(method="hint", rho_aug=1.0)

    def text(request, j):
        if request.kind == "tip":  # the teacher writes a hint from its own response
            return "it is \\boxed{1}" if "teacher-a" in request.text else "look <hint>twice</hint>"
        return says(ABLE, 4, "teacher")(request, j)

    student, _ = actors(RIGHT, ABLE, recipe)
    ctx = Context(student, Script(2, text), recipe, KEY)
    groups, stats = baselines.collect(ctx, QUESTIONS, []), ctx.counts
    (hinted,) = [group for group in groups if group.kind == "hint"]
    assert stats["hints_refused"] == 1 and hinted.question.uid == "c"
    assert hinted.prompt.startswith("question c?\n\n<hint>\nlook [hint]twice[/hint]\n</hint>\n\nYou FIRST")


def test_teacher_response_replaces_one_wrong_rollout_and_the_buffer_does_not_see_it():
    _, groups, *_ = drawn("teacher_response")
    for group in groups:
        teachers = [rollout for rollout in group.rollouts if rollout.by_teacher]
        assert len(group.rollouts) == 8 and len(teachers) == (group.question.uid in ("a", "c"))
        assert all(rollout.reward == 1.0 and rollout.tokens[0] == 2 for rollout in teachers)
        assert group.accuracy == RIGHT[group.question.uid] / 8  # before the replacement
        assert sum(rollout.reward for rollout in group.rollouts) == RIGHT[group.question.uid] + len(teachers)


def test_prefix_is_forty_percent_of_a_correct_rollout_and_carries_no_loss():
    recipe = Recipe(method="prefix", rho_aug=1.0)
    student, teacher = actors(RIGHT, ABLE, recipe)
    tokens = list(range(11))
    long = Script(2, teacher.text)
    original = long.__class__.__call__

    def call(requests, n, sampling, key, phase):
        rows = original(long, requests, n, sampling, key, phase)
        for row in rows:
            for reply in row:
                reply.tokens = list(tokens)
        return rows

    groups = baselines.collect(Context(student, call, recipe, KEY), QUESTIONS, [])
    prefixed = [group for group in groups if group.kind == "prefix"]
    assert len(prefixed) == 2 and all(group.prefix == list(range(4)) for group in prefixed)  # floor(0.4 * 11)
    for rows, _ in mini_batches(groups, recipe, KEY):
        assert all(row.tokens[0] == 1 for row in rows)  # the student's own
        assert all(len(row.prefix) in (0, 4) for row in rows)
    total = sum(count for _, count in mini_batches(groups, recipe, KEY))
    assert total == sum(len(rollout.tokens) for group in groups for rollout in group.rollouts)


def test_a_prefix_is_context_for_generation_and_for_the_loss():
    """Log-probs behind a prefix are those of the same tokens inside one long response."""
    model = tiny.make("qwen3_5")
    policy = Policy(model)
    prompt = encoder("colour?", groups_of()[0].question)
    whole, cut = [5, 6, 7, 8, tiny.END], 2
    results = []
    for encoded, response in ((prompt, whole), (extend(prompt, whole[:cut]), whole[cut:])):
        batch = collate([encoded], [response])
        predicts = torch.zeros_like(batch["input_ids"], dtype=torch.bool)
        predicts[0, -len(whole) + cut - 1 : -1] = True
        results.append(policy(batch, position_ids(model, batch), predicts)[0])
    assert torch.equal(*results) and len(results[0]) == 3
    assert torch.equal(extend(prompt, ())["input_ids"], prompt["input_ids"])


# ---------------------------------------------------------------- distillation


def learner_of(model, **settings):
    accelerator = Accelerator(cpu=True)
    policy = Policy(model.train(), banned_token_ids(model, tiny.PROCESSOR))
    policy, optimizer = accelerator.prepare(policy, sgd(policy.parameters()))
    return Learner(policy, optimizer, accelerator, encoder, BLANK, **{"micro_tokens": 200, **settings})


@pytest.mark.parametrize("method", ["on_distill", "off_distill"])
def test_distillation_takes_one_step_on_the_weighted_mean_divergence(method):
    """Against a row-by-row implementation; Off-Distill first averages over the kept rollouts of a question."""
    groups = groups_of(count=3)
    if method == "off_distill":
        for group, kept in zip(groups, (1, 3, 2)):
            group.kind, group.rollouts = "teacher", group.rollouts[:kept]
    teacher, results = tiny.make("qwen3_5", seed=1), []
    for micro_tokens in (200, 1):
        model = tiny.make("qwen3_5")
        metrics = distill(learner_of(model, micro_tokens=micro_tokens), teacher, groups, Recipe(method=method))
        results.append((weights(model), metrics))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=0, atol=1e-6)

    model = tiny.make("qwen3_5").train()
    losses, shares = [], []
    for group in groups:
        for rollout in group.rollouts:
            batch = collate([encoder(group.prompt, group.question)], [rollout.tokens])
            positions = position_ids(model, batch)
            span = slice(-len(rollout.tokens) - 1, -1)
            logits = [m(**batch, position_ids=positions).logits[0, span] for m in (model, teacher)]
            share = 1 / len(group.rollouts) if method == "off_distill" else 1.0
            losses.append(share * float_jsd(*logits).sum())
            shares.append(share * len(rollout.tokens))
    loss = sum(losses) / sum(shares)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    sgd(model.parameters()).step()
    torch.testing.assert_close(results[0][0], weights(model), rtol=1e-3, atol=1e-5)
    assert results[0][1]["loss"] == pytest.approx(loss.item(), rel=1e-4)
    assert results[0][1]["grad_norm"] == pytest.approx(norm.item(), rel=1e-3)


def test_nothing_kept_is_no_loss_and_no_step():
    model = tiny.make("qwen3_5")
    before = copy.deepcopy(model.state_dict())
    metrics = distill(learner_of(model), tiny.make("qwen3_5", seed=1), groups_of(), Recipe(method="off_distill"))
    assert metrics["updates_without_signal"] == 1 and metrics["loss"] == 0
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_one_teacher_rollout_is_drawn_at_random():
    picks = Counter()
    for seed in range(60):
        recipe = Recipe(method="teacher_response", rho_aug=0.2)
        student, teacher = actors(RIGHT, ABLE, recipe)
        groups = baselines.collect(Context(student, teacher, recipe, (seed, 0)), QUESTIONS, [])
        (rollout,) = [r for group in groups for r in group.rollouts if r.by_teacher]
        picks[rollout.tokens[1]] += 1
    assert len(picks) == 4
