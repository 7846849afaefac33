"""Eqs. 2-6 and the clipped surrogate against references in plain Python numbers."""

import math
import random

import pytest
import torch
from stages import NORMS, scalar_advantages

from zppo import advantages, policy_loss

# ---------------------------------------------------------------- advantages


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64])
def test_advantages_equal_the_scalar_reference(norm, dtype):
    rng = random.Random(0)
    for groups in (1, 2, 7, 40):
        share = [rng.choice([0.0, 0.1, 0.5, 1.0]) for _ in range(groups)]
        rewards = [[float(rng.random() < p) for _ in range(8)] for p in share]
        ours = advantages(torch.tensor(rewards).to(dtype), norm)
        assert ours.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        reference = torch.tensor(scalar_advantages(rewards, norm), dtype=torch.float64)
        torch.testing.assert_close(ours.double(), reference, rtol=2e-6, atol=2e-6)
        assert ((ours == 0) == (reference == 0)).all()


def test_advantages_golden_numbers():
    """Variance of the two active groups: (9 + 1 + 1 + 1 + 4 * 4) / 16 / 8 = 0.21875."""
    rewards = torch.tensor([[1.0, 0, 0, 0], [1, 1, 1, 1], [1, 1, 0, 0]])
    std, all_std = 0.21875**0.5, (0.21875 * 2 / 3) ** 0.5
    centred = torch.tensor([[0.75, -0.25, -0.25, -0.25], [0, 0, 0, 0], [0.5, 0.5, -0.5, -0.5]])
    torch.testing.assert_close(advantages(rewards), centred / std)
    torch.testing.assert_close(advantages(rewards, "norm_with_zero"), centred / all_std)
    assert torch.equal(advantages(rewards, "no_norm"), centred)
    assert advantages(rewards)[0, 0].item() == pytest.approx(1.6035675, abs=1e-6)


def test_norm_with_zero_is_norm_without_zero_over_the_root_of_the_active_share():
    """Eq. 6, also for rewards that are not binary."""
    generator = torch.Generator().manual_seed(0)
    for trivial in (0, 1, 5, 9):
        rewards = torch.rand(10, 8, generator=generator, dtype=torch.float64)
        rewards[:trivial] = 0.3
        active = (10 - trivial) / 10
        # mean A' is 0 over any set of groups, so only the deviations differ (and eps, below the tolerance)
        torch.testing.assert_close(
            advantages(rewards, "norm_with_zero"), advantages(rewards) / active**0.5, rtol=1e-6, atol=1e-9
        )


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("value", [0.95, 0.1, 1e-3, 1.0, 0.0])
def test_equal_rewards_give_exactly_zero(norm, value):
    rewards = torch.full((3, 7), value)  # the mean of seven times 0.95 is not 0.95 in fp32
    assert (advantages(rewards, norm) == 0).all()
    rewards[1, 0] = 0.5
    result = advantages(rewards, norm)
    assert (result[[0, 2]] == 0).all() and (result[1] != 0).all() and result.isfinite().all()


def test_a_group_is_trivial_by_equality_and_not_by_a_threshold():
    """A difference whose square is 0 in fp32 is still a difference."""
    result = advantages(torch.tensor([[1.0, 0.0], [1e-30, 0.0], [0.0, 0.0]]))
    assert result[1, 0] > 0 > result[1, 1] and (result[2] == 0).all()
    assert result[0, 0].item() == pytest.approx(2**0.5)  # two active groups: variance (2 * 0.25 + 2 * 0) / 4


@pytest.mark.parametrize("norm", NORMS)
def test_advantages_move_with_their_groups(norm):
    rewards = torch.randint(2, (12, 8), generator=torch.Generator().manual_seed(0))
    order, inner = torch.randperm(12), torch.randperm(8)
    torch.testing.assert_close(advantages(rewards, norm)[order][:, inner], advantages(rewards[order][:, inner], norm))


def test_advantages_leave_the_rewards_and_refuse_another_norm():
    rewards = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    kept = rewards.clone()
    assert torch.equal(advantages(rewards), advantages(rewards)) and torch.equal(rewards, kept)
    with pytest.raises(ValueError, match="norm_wo_zero"):
        advantages(rewards, "zscore")


# ---------------------------------------------------------------- the clipped surrogate


def scalar_loss(log_ratio: float, advantage: float) -> float:
    ratio = math.exp(log_ratio)
    loss = -min(ratio * advantage, min(max(ratio, 0.8), 1.28) * advantage)
    return min(loss, -10 * advantage) if advantage < 0 else loss


@pytest.mark.parametrize("advantage", [-1.5, 0.0, 0.7])
@pytest.mark.parametrize("ratio", [0.1, 0.8, 1.0, 1.28, 5.0, 20.0])
def test_policy_loss_value_and_derivative(advantage, ratio):
    old = torch.tensor(-2.0, dtype=torch.float64)
    logp = (old + math.log(ratio)).requires_grad_()
    loss = policy_loss(logp, old, torch.tensor(advantage, dtype=torch.float64))
    loss.backward()
    x, h = math.log(ratio), 1e-6
    assert loss.item() == pytest.approx(scalar_loss(x, advantage), rel=1e-9)
    left = (scalar_loss(x, advantage) - scalar_loss(x - h, advantage)) / h
    right = (scalar_loss(x + h, advantage) - scalar_loss(x, advantage)) / h
    assert min(left, right) - 1e-4 <= logp.grad.item() <= max(left, right) + 1e-4  # on a kink: between the two sides
    if advantage == 0:
        assert loss.item() == 0 and logp.grad.item() == 0


def test_policy_loss_takes_its_bounds():
    logp = torch.log(torch.tensor([0.5, 1.5, 3.0, 0.5, 1.5, 3.0]))
    signs = torch.tensor([1.0, 1, 1, -1, -1, -1])
    loss = policy_loss(logp, torch.zeros(6), signs, eps_low=0.1, eps_high=0.4, dual_clip=2.0)
    torch.testing.assert_close(loss, torch.tensor([-0.5, -1.4, -1.4, 0.9, 1.5, 2.0]))
