"""Stage 6: the update against a plain implementation over all rollouts, row by row."""

import copy
import itertools
import math
import random
from collections import Counter
from dataclasses import replace

import pytest
import tiny
import torch
from accelerate import Accelerator
from stages import BLANK, NORMS, all_rows, encoder, groups_of, run, sgd, weights

import zppo
from engine.models import banned_token_ids, collate, load_model
from engine.questions import Question
from engine.update import Learner, Policy, micro_batches
from zppo import Recipe, mini_batches, policy_loss, update

# ---------------------------------------------------------------- against the plain implementation


def one_row(model, row) -> tuple[torch.Tensor, torch.Tensor]:
    """(log-probs, entropies) of one response by a full forward pass over its prompt and itself, nothing else."""
    prompt, tail = encoder(row.prompt, row.question), torch.tensor(row.tokens)
    inputs = dict(prompt, input_ids=torch.cat([prompt["input_ids"], tail])[None])
    inputs["mm_token_type_ids"] = torch.cat([prompt["mm_token_type_ids"], torch.zeros_like(tail)])[None]
    model.model.rope_deltas = None
    logits = model(**inputs, use_cache=False).logits[0, -len(tail) - 1 : -1]
    allowed = torch.ones(logits.shape[-1], dtype=torch.bool)
    allowed[banned_token_ids(model, tiny.PROCESSOR)] = False
    full = logits.masked_fill(~allowed, -1e30).log_softmax(-1)
    return full.gather(-1, tail[:, None])[:, 0], -(full.exp() * full)[:, allowed].sum(-1)


def plain_update(parts, recipe, lr: float = 0.2):
    """Section 6 of the paper row by row: no micro-batches, no shortcuts, plain SGD."""
    model, metrics = tiny.make("qwen3_5").train(), Counter()
    with torch.no_grad():
        old = [[one_row(model, row)[0] for row in rows] for rows, _ in parts]
    for (rows, tokens), old_logps in zip(parts, old):
        loss = 0.0
        for row, old_logp in zip(rows, old_logps):
            logp, entropy = one_row(model, row)
            ratio = (logp - old_logp).exp()
            low, high = 1 - recipe.eps_low, 1 + recipe.eps_high
            terms = -torch.minimum(ratio * row.weight, ratio.clamp(low, high) * row.weight)
            loss = loss + (terms.clamp(max=-10 * row.weight) if row.weight < 0 else terms).sum()
            if row.weight:
                outside = ratio > high if row.weight > 0 else ratio < low
                metrics.update(active=len(logp), clipped=outside.sum().item(), entropy=entropy.sum().item())
        metrics.update(loss=loss.item(), tokens=tokens)
        model.zero_grad()
        (loss / tokens).backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.max_grad_norm)
        metrics.update(norm=norm.item())
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:  # the vision tower, where no row has an image
                    parameter -= lr * parameter.grad
    return model, {
        "loss": metrics["loss"] / metrics["tokens"],
        "grad_norm": metrics["norm"] / len(parts),
        "clip_share": metrics["clipped"] / metrics["active"],
        "entropy": metrics["entropy"] / metrics["active"],
        "response_tokens": metrics["tokens"],
    }


def close(first, second, before=None, tolerance: float = 1e-5):
    """Weights equal, measured against how far the update moved them."""
    before = weights(tiny.make("qwen3_5")) if before is None else before
    moved = (weights(first) - before).norm()
    assert moved > 1e-3 and (weights(first) - weights(second)).norm() < tolerance * moved


@pytest.mark.parametrize("norm", NORMS)
def test_leaving_out_zero_advantage_rollouts_is_the_full_loss(norm):
    """One update, against a loss over all rollouts: those of trivial groups too, in the sum and in the token count."""
    groups, recipe = groups_of(), Recipe(updates_per_step=1, norm=norm, max_grad_norm=1e9)
    rows = all_rows(groups, norm)
    model, metrics, _ = run(groups, recipe)
    reference, expected = plain_update([(rows, sum(len(row.tokens) for row in rows))], recipe)
    close(model, reference)
    assert metrics == pytest.approx({**metrics, **expected}, rel=1e-4, abs=1e-6)
    assert metrics["active_share"] == 16 / 20 and metrics["response_tokens"] == sum(len(row.tokens) for row in rows)
    dropped = groups[:1] + groups[2:]  # without the trivial group the token count, and so the update, is another
    with pytest.raises(AssertionError):
        close(run(dropped, recipe)[0], model)


@pytest.mark.parametrize("updates", [2, 4])
def test_several_updates_use_the_policy_at_the_start_of_the_step(updates):
    recipe = Recipe(updates_per_step=updates, max_grad_norm=0.7)
    groups = groups_of()
    model, metrics, _ = run(groups, recipe)
    reference, expected = plain_update(mini_batches(groups, recipe, (0, 0)), recipe)
    close(model, reference, tolerance=1e-4)
    assert metrics == pytest.approx({**metrics, **expected}, rel=1e-3, abs=1e-5)
    assert metrics["clip_share"] > 0 and metrics["grad_norm"] > 0.7  # both kinds of clipping took part


# ---------------------------------------------------------------- mini-batches


@pytest.mark.parametrize("updates", [1, 2, 4, 7])
def test_mini_batches_partition_the_step_and_use_its_statistics(updates):
    groups, recipe = groups_of(count=6, trivial=(1, 4)), Recipe(updates_per_step=updates)
    for i, group in enumerate(groups):
        for j, rollout in enumerate(group.rollouts):
            rollout.tokens = [i, j] + [0] * j  # a name for each rollout
    everything = {tuple(row.tokens[:2]): row for row in all_rows(groups)}
    parts = mini_batches(groups, recipe, (0, 0))
    rows = [row for part, _ in parts for row in part]
    active = {name for name, row in everything.items() if row.weight}
    assert len(parts) == updates and len(rows) == len(active) == 16
    assert {tuple(row.tokens[:2]) for row in rows} == active
    for row in rows:
        expected = everything[tuple(row.tokens[:2])]
        assert row.weight == pytest.approx(expected.weight, rel=1e-5)
        assert (row.prompt, row.question, row.tokens) == (expected.prompt, expected.question, expected.tokens)
    assert sum(tokens for _, tokens in parts) == sum(len(row.tokens) for row in everything.values())
    assert max(len(part) for part, _ in parts) <= math.ceil(24 / updates)
    order = [[tuple(row.tokens[:2]) for row in part] for part, _ in parts]
    again = [
        [[tuple(row.tokens[:2]) for row in part] for part, _ in mini_batches(groups, recipe, (0, s))] for s in (0, 1)
    ]
    assert again[0] == order != again[1]
    if updates == 4:  # shares of rollouts, not of groups
        assert all(len({name[0] for name in part}) > 1 for part in order)


def test_plain_bcq_and_ncq_groups_of_a_question_have_their_own_baselines():
    groups = groups_of(count=1, trivial=()) * 3
    groups = [copy.deepcopy(group) for group in groups]
    for group, rewards in zip(groups, ([1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1])):
        for rollout, reward in zip(group.rollouts, rewards):
            rollout.reward = float(reward)
    ((rows, _),) = mini_batches(groups, Recipe(updates_per_step=1, norm="no_norm"), (0, 0))
    assert sorted(row.weight for row in rows) == [-0.75, -0.25, -0.25, -0.25, 0.25, 0.25, 0.25, 0.75]


def test_all_groups_trivial_touches_neither_parameters_nor_optimizer():
    """AdamW has moments and weight decay here: a step on nothing would move the weights."""
    model, _, optimizer = run(groups_of(), Recipe(), optimizer=torch.optim.AdamW)
    policy = Policy(model, banned_token_ids(model, tiny.PROCESSOR))
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    learner = Learner(policy, optimizer, Accelerator(cpu=True), encoder, BLANK)
    metrics = update(learner, groups_of(trivial=range(5)), Recipe(), (0, 1))
    assert (
        metrics["updates_without_signal"] == 4
        and metrics["grad_norm"] == metrics["loss"] == metrics["active_share"] == 0
    )
    assert metrics["response_tokens"] > 0
    torch.testing.assert_close((model.state_dict(), optimizer.state_dict()), before, rtol=0, atol=0)
    assert optimizer.state_dict()["state"]


def test_a_mini_batch_without_signal_is_skipped_alone():
    recipe, groups = Recipe(updates_per_step=20), groups_of(trivial=(0, 1, 2))
    model, metrics, _ = run(groups, recipe, optimizer=lambda p: sgd(p, 1e-3))
    assert metrics["updates_without_signal"] == 12 and metrics["updates_not_finite"] == 0
    parts = [part for part in mini_batches(groups, recipe, (0, 0)) if part[0]]
    close(model, plain_update(parts, recipe, lr=1e-3)[0], tolerance=1e-2)


# ---------------------------------------------------------------- what must not change the result


def test_ratio_of_the_unchanged_policy_is_exactly_one(tmp_path, monkeypatch):
    """With a learning rate of 0 all I updates see the policy of the start, also where dropout was configured."""
    model = tiny.make("qwen3_5")
    model.config.text_config.attention_dropout = 0.5
    model.save_pretrained(tmp_path)
    seen = []

    def spy(logp, old_logp, *rest):
        seen.append(torch.equal(logp, old_logp) and not old_logp.requires_grad and logp.requires_grad)
        return policy_loss(logp, old_logp, *rest)

    monkeypatch.setattr(zppo, "policy_loss", spy)
    recipe, groups = Recipe(updates_per_step=3), groups_of()
    _, metrics, _ = run(groups, recipe, load_model(str(tmp_path)), optimizer=lambda p: sgd(p, 0.0), micro_tokens=100)
    assert len(seen) > 3 and all(seen) and metrics["clip_share"] == 0
    expected = -sum(row.weight * len(row.tokens) for row in all_rows(groups)) / metrics["response_tokens"]
    assert metrics["loss"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("broken", ["reward", "gradient"])
def test_nothing_that_is_not_finite_reaches_the_weights(broken):
    model, groups = tiny.make("qwen3_5"), groups_of()
    start, good = weights(model), []
    if broken == "reward":
        groups[0].rollouts[0].reward = math.nan
    else:
        hook = model.model.language_model.norm.weight.register_hook(lambda gradient: gradient * math.nan)
    _, metrics, optimizer = run(groups, Recipe(), model, optimizer=torch.optim.AdamW)
    assert metrics["updates_not_finite"] == 4 and metrics["grad_norm"] == 0
    assert torch.equal(weights(model), start) and not optimizer.state_dict()["state"]
    if broken == "gradient":  # and nothing of it is left for the next step
        hook.remove()
        for candidate in (model, tiny.make("qwen3_5")):
            good.append(weights(run(groups, Recipe(), candidate, optimizer=torch.optim.AdamW)[0]))
        assert torch.equal(*good) and not torch.equal(good[0], start)


def test_a_blank_image_changes_nothing_and_keeps_the_vision_tower_in_the_graph(monkeypatch):
    """It stands behind the shortest row: as many rows as without it, and hardly wider ones."""
    groups = [group for group in groups_of(trivial=()) if not group.question.images]
    text_blank = replace(BLANK, question=Question("blank", "", (), ""))
    used, shapes, forward = [], [], Policy.forward

    def spy(self, batch, *rest, **settings):
        shapes.append(batch["input_ids"].shape)
        return forward(self, batch, *rest, **settings)

    def with_hook():
        model = tiny.make("qwen3_5")
        model.model.visual.patch_embed.proj.weight.register_hook(
            lambda gradient: used.append(gradient.abs().sum().item())
        )
        return model

    monkeypatch.setattr(Policy, "forward", spy)
    recipe = Recipe(updates_per_step=2)
    joined, metrics, _ = run(groups, recipe, with_hook(), micro_tokens=100)
    assert len(used) > 2 and not any(used)  # in every micro-batch, with gradient exactly 0
    with_image, backward_passes = shapes.copy(), len(used)
    shapes.clear()
    alone, expected, _ = run(groups, recipe, with_hook(), micro_tokens=100, blank=text_blank)
    assert len(used) == backward_passes
    close(joined, alone)
    assert metrics == pytest.approx(expected, rel=1e-4, abs=1e-6)
    room = encoder.length("blank", BLANK.question) + 1
    for (rows, width), (rows_alone, width_alone) in zip(with_image, shapes, strict=True):
        assert rows == rows_alone and width_alone <= width <= width_alone + room


def test_the_same_update_twice_and_inputs_left_alone():
    groups, recipe = groups_of(), Recipe()
    before = copy.deepcopy(groups)
    first = run(groups, recipe, steps=2)
    second = run(groups, recipe, steps=2)
    assert torch.equal(weights(first[0]), weights(second[0])) and first[1] == second[1] and groups == before


# ---------------------------------------------------------------- micro-batches


@pytest.mark.parametrize("updates", [1, 2, 4])
def test_micro_batches_change_neither_weights_nor_metrics(updates):
    recipe, groups = Recipe(updates_per_step=updates), groups_of()
    runs = [run(groups, recipe, micro_tokens=size, optimizer=lambda p: sgd(p, 0.02)) for size in (999, 200, 1)]
    for model, metrics, _ in runs[1:]:
        torch.testing.assert_close(weights(model), weights(runs[0][0]), rtol=0, atol=1e-6)
        assert metrics == pytest.approx(runs[0][1], rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_micro_batches_hold_all_rows_within_the_budget_and_come_in_equal_numbers(world):
    rng = random.Random(world)
    for _ in range(200):
        lengths, budget = [rng.randint(1, 100) for _ in range(rng.randint(0, 40))], rng.randint(1, 400)
        batches = micro_batches(lengths, budget, world)
        assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
        slots = [max((lengths[i] for i in batch), default=0) * len(batch) for batch in batches]
        assert all(size <= budget or len(batch) == 1 for size, batch in zip(slots, batches))
        assert len(batches) % world == 0
        if len(lengths) >= len(batches):  # no process is idle while another has two rows to give
            assert all(batches)


def test_micro_batches_are_filled_and_cost_not_much_more_than_the_best_cut():
    """Against all ways to cut the sorted rows, at padded tokens and a sixteenth of a full micro-batch for each."""
    rng, ours, best = random.Random(0), 0.0, 0.0
    for _ in range(100):
        lengths, budget = sorted((rng.randint(1, 100) for _ in range(rng.randint(1, 9))), reverse=True), 300

        def cost(batches, lengths=lengths, budget=budget):
            return sum(lengths[batch[0]] * len(batch) + budget / 16 for batch in batches)

        ways = []
        for cuts in itertools.product([False, True], repeat=len(lengths) - 1):
            places = [0, *(i + 1 for i, cut in enumerate(cuts) if cut), len(lengths)]
            batches = [list(range(i, j)) for i, j in itertools.pairwise(places)]
            if all(lengths[batch[0]] * len(batch) <= budget for batch in batches):
                ways.append(cost(batches))
        found = micro_batches(lengths, budget, 1)
        for batch, following in itertools.pairwise(found):  # the next row would not have fitted, or is short
            longest = lengths[batch[0]]
            assert longest * (len(batch) + 1) > budget or longest > 2 * lengths[following[0]]
        assert all(lengths[batch[0]] <= 2 * lengths[batch[-1]] for batch in found)
        ours, best = ours + cost(found), best + min(ways)
    assert best <= ours < 1.15 * best  # lengths of 1 to 100, few rows: an extreme case
    assert micro_batches([500] * 3 + [60] * 30, 8192, 1) == [[0, 1, 2], list(range(3, 33))]


def test_padding_is_counted():
    groups, seen = groups_of(), []
    model = tiny.make("qwen3_5")
    learner = Learner(Policy(model), None, Accelerator(cpu=True), encoder, BLANK, micro_tokens=200)
    rows = all_rows(groups)
    for micro in learner.micro_batches(rows):
        batch = collate([encoder(row.prompt, row.question) for row in micro], [row.tokens for row in micro])
        seen.append((batch["attention_mask"].sum().item(), batch["input_ids"].numel()))
    assert (learner.tokens, learner.slots) == tuple(map(sum, zip(*seen))) and learner.tokens < learner.slots
    assert all(slots <= 200 for _, slots in seen) and len(seen) > 2
    share = 1 - learner.tokens / learner.slots
    assert learner.padding_share() == share and learner.padding_share() == 0  # since the last call
