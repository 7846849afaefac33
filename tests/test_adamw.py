"""AdamW with moments in bf16 beside torch's own."""

import copy

import pytest
import torch

import adamw
from adamw import BF16AdamW, round_stochastic

SETTINGS = dict(lr=1e-2, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1)


def test_stochastic_rounding_keeps_the_mean_and_picks_a_neighbour():
    generator = torch.Generator().manual_seed(0)
    for value in (1.003, -3.7e-5, 0.0, 12.0):
        x = torch.full((100_000,), value)
        rounded = round_stochastic(x, generator)
        step = abs(value) / 128
        assert rounded.dtype == torch.bfloat16 and (rounded.float() - x).abs().max() <= step
        assert rounded.double().mean().item() == pytest.approx(value, abs=step * 0.01)
    exact = torch.tensor([1.0, -0.5, 0.0, 384.0])
    assert torch.equal(round_stochastic(exact, generator).float(), exact)  # what bf16 holds stays


def test_a_moment_decays_although_bf16_cannot_hold_a_single_step():
    parameter = torch.nn.Parameter(torch.zeros(4096))
    optimizer = BF16AdamW([parameter], **SETTINGS)
    parameter.grad = torch.ones(4096)
    optimizer.step()
    second = optimizer.state[parameter]["exp_avg_sq"]
    assert second.dtype == torch.bfloat16
    start = second.double().mean().item()
    assert torch.equal((second.float() * 0.999).bfloat16(), second)  # to the nearest it would stay for ever
    parameter.grad = torch.zeros(4096)
    for _ in range(1000):
        optimizer.step()
    assert second.double().mean().item() == pytest.approx(start * 0.999**1000, rel=0.02)


def train(make, steps: int, seed: int = 0) -> tuple[torch.Tensor, torch.optim.Optimizer]:
    """A noisy regression. Returns (weights, optimizer)."""
    torch.manual_seed(seed)
    truth, parameters = torch.randn(32, 8), [torch.nn.Parameter(torch.zeros(32, 8)), torch.nn.Parameter(torch.ones(3))]
    optimizer = make(parameters, **SETTINGS)
    for _ in range(steps):
        x = torch.randn(16, 32)
        loss = (x @ parameters[0] - x @ truth).pow(2).mean()  # the second parameter has no gradient
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert torch.equal(parameters[1], torch.ones(3))
    return parameters[0].detach(), optimizer


def test_first_step_equals_adamw_and_many_stay_close(monkeypatch):
    monkeypatch.setattr(adamw, "PIECE", 100)  # pieces that do not divide the parameter
    torch.testing.assert_close(train(BF16AdamW, 1)[0], train(torch.optim.AdamW, 1)[0])
    ours, theirs = (train(make, 300)[0] for make in (BF16AdamW, torch.optim.AdamW))
    assert (ours - theirs).norm() < 0.02 * theirs.norm()


def test_same_again_and_exact_after_a_reload():
    (first, optimizer), (second, _) = train(BF16AdamW, 5), train(BF16AdamW, 5)
    assert torch.equal(first, second)
    state = copy.deepcopy(optimizer.state_dict())
    parameters = [torch.nn.Parameter(first.clone()), torch.nn.Parameter(torch.ones(3))]
    reloaded = BF16AdamW(parameters, **SETTINGS)
    reloaded.load_state_dict(state)
    for group in (optimizer.param_groups[0]["params"], parameters):
        group[0].grad = torch.full_like(group[0], 0.3)
    optimizer.step()
    reloaded.step()
    assert torch.equal(optimizer.param_groups[0]["params"][0], parameters[0])
    moments = [list(o.state.values())[0]["exp_avg_sq"] for o in (optimizer, reloaded)]
    assert torch.equal(*moments) and moments[1].dtype == torch.bfloat16
