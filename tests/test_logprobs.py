"""Log-probs, entropies and divergences in chunks against float64 on full logits: values, gradients, what is held."""

import math

import pytest
import torch

from engine import logprobs
from engine.logprobs import token_jsd, token_logprobs


def float_jsd(p_logits: torch.Tensor, q_logits: torch.Tensor) -> torch.Tensor:
    """Per-row Jensen-Shannon divergence from its definition, in float64."""
    p, q = p_logits.double().softmax(-1), q_logits.double().softmax(-1)
    m = (p + q) / 2
    return 0.5 * (p * (p / m).log()).sum(-1) + 0.5 * (q * (q / m).log()).sum(-1)


def capped(logits: torch.Tensor, cap: float | None) -> torch.Tensor:
    return cap * (logits / cap).tanh() if cap else logits


@pytest.mark.parametrize("n", [1, 5, 8, 13])
@pytest.mark.parametrize(("banned", "cap"), [([], None), ([0, 6], None), ([6], 0.5)])
def test_token_logprobs_value_gradient_and_entropy(n, banned, cap, monkeypatch):
    """Against float64 without chunks; 5 and 13 are not divisible by the chunk of 4, nor 11 by the slice of 3."""
    monkeypatch.setattr(logprobs, "VOCAB_SLICE", 3)
    torch.manual_seed(n)
    hidden, weight = torch.randn(n, 6, requires_grad=True), torch.randn(11, 6, requires_grad=True)
    tokens, seed = torch.randint(1, 6, (n,)), torch.randn(n)
    logp, entropy = token_logprobs(hidden, weight, tokens, banned, cap, chunk=4)
    assert logp.dtype == entropy.dtype == torch.float32 and logp.shape == entropy.shape == (n,)
    assert not entropy.requires_grad
    ours = torch.autograd.grad((logp * seed).sum(), [hidden, weight])
    hidden64, weight64 = (x.detach().double().requires_grad_() for x in (hidden, weight))
    allowed = [i for i in range(11) if i not in banned]
    full = capped(hidden64 @ weight64.T, cap)[:, allowed].log_softmax(-1)
    reference = torch.stack([full[i, allowed.index(token)] for i, token in enumerate(tokens.tolist())])
    theirs = torch.autograd.grad((reference * seed).sum(), [hidden64, weight64])
    torch.testing.assert_close(logp.double(), reference, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(entropy.double(), -(full.exp() * full).sum(-1), rtol=1e-5, atol=1e-6)
    for mine, other in zip(ours, theirs):
        torch.testing.assert_close(mine.double(), other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 4, 7, 100])
@pytest.mark.parametrize("caps", [(None, None), (0.5, 2.0)])
def test_jsd_and_its_gradient_equal_the_definition(chunk, caps):
    torch.manual_seed(0)
    hidden, target = torch.randn(7, 8, requires_grad=True), torch.randn(7, 6)
    weight, teacher_weight = torch.randn(50, 8, requires_grad=True), torch.randn(50, 6)
    divergence, entropy = token_jsd(hidden, weight, target, teacher_weight, *caps, chunk)
    logits = capped(hidden @ weight.T, caps[0])
    reference = float_jsd(logits, capped(target @ teacher_weight.T, caps[1]))
    torch.testing.assert_close(divergence.double(), reference, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(entropy, torch.distributions.Categorical(logits=logits).entropy().detach())
    seed = torch.randn(7)
    ours = torch.autograd.grad((divergence * seed).sum(), [hidden, weight])
    theirs = torch.autograd.grad((reference * seed).sum(), [hidden, weight])
    for mine, other in zip(ours, theirs):
        torch.testing.assert_close(mine, other.to(mine.dtype), rtol=1e-4, atol=1e-5)
    assert not entropy.requires_grad


def test_jsd_is_zero_for_equals_and_at_most_log_2():
    torch.manual_seed(0)
    hidden, weight = torch.randn(30, 8), 50 * torch.eye(8)
    assert token_jsd(hidden, weight, hidden, weight, chunk=8)[0].abs().max() < 1e-6
    far = token_jsd(hidden, weight, -hidden, weight, chunk=8)[0]
    assert far.max() <= math.log(2) + 1e-6 and far.min() >= 0


def test_bf16_logits_are_reduced_in_fp32():
    torch.manual_seed(0)
    hidden, weight, tokens = torch.randn(9, 16).bfloat16(), torch.randn(5000, 16).bfloat16(), torch.randint(5000, (9,))
    logp, entropy = token_logprobs(hidden, weight, tokens, chunk=4)
    full = (hidden @ weight.T).double().log_softmax(-1)  # bf16 logits, then exact
    assert logp.dtype == torch.float32
    torch.testing.assert_close(logp.double(), full.gather(-1, tokens[:, None])[:, 0], rtol=0, atol=1e-5)
    torch.testing.assert_close(entropy.double(), -(full.exp() * full).sum(-1), rtol=0, atol=1e-5)


def test_autocast_decides_the_dtype_of_forward_and_backward():
    """fp32 weights under bf16 autocast: logits as a Linear makes them, the gradient of those same logits, in fp32."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(40, 16, requires_grad=True), torch.randn(300, 16, requires_grad=True)
    tokens = torch.randint(300, (40,))
    with torch.autocast("cpu", torch.bfloat16):
        logp, _ = token_logprobs(hidden, weight, tokens, chunk=8)
        logits = torch.nn.functional.linear(hidden, weight)
    assert logits.dtype == torch.bfloat16
    reference = logits.float().log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
    assert torch.equal(logp, reference)
    ours, theirs = (torch.autograd.grad(x.sum(), [hidden, weight]) for x in (logp, reference))
    for mine, other in zip(ours, theirs):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, other, rtol=0.02, atol=0.02)


def test_a_frozen_head_or_frozen_hidden_states():
    torch.manual_seed(0)
    hidden, weight = torch.randn(5, 4, requires_grad=True), torch.randn(9, 4)
    token_logprobs(hidden, weight, torch.arange(5), chunk=2)[0].sum().backward()
    assert hidden.grad.abs().sum() > 0 and weight.grad is None
    logp, _ = token_logprobs(hidden.detach(), weight, torch.arange(5), chunk=2)
    assert not logp.requires_grad


def test_never_holds_all_logits(monkeypatch):
    """The head sees one chunk at a time, forward and backward, and no logits are kept for the backward pass."""
    rows, kept, linear = [], [], logprobs.linear
    monkeypatch.setattr(logprobs, "linear", lambda hidden, weight: rows.append(len(hidden)) or linear(hidden, weight))
    hidden, weight = torch.randn(30, 8, requires_grad=True), torch.randn(400, 8, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        logp, _ = token_logprobs(hidden, weight, torch.randint(400, (30,)), chunk=8)
    assert rows == [8, 8, 8, 6] and sum(kept) == hidden.numel() + weight.numel() + 30
    logp.sum().backward()
    assert rows == 2 * [8, 8, 8, 6]
