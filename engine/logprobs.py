"""Log-probs, entropies and divergences of tokens without full logits, at any vocabulary.

At a vocabulary of 248,320 the logits of 16,384 tokens take 16 GB in fp32, and their softmax and
gradient as much again. Here the head sees `chunk` tokens at a time, in the forward and once more in
the backward pass, and the gradient of its weight is added up in one buffer. This file imports only
torch: copy it.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch.nn.functional import linear

VOCAB_SLICE = 32_768  # columns of the logits' gradient that go into the weight's gradient at a time


def token_logprobs(
    hidden,
    weight,
    tokens,
    banned: Sequence[int] = (),
    cap: float | None = None,
    chunk: int = 256,
):
    """Log-probs of response tokens and entropies of the distributions they come from.

    hidden: [N, H], the last hidden states that predict the N tokens. weight: [V, H] of the head.
    tokens: [N]. banned: token ids of probability 0. cap: soft cap of the logits, if the model has
    one. Returns log-probs [N], with gradient to hidden and weight, and entropies [N], without; both
    fp32.
    """
    banned = torch.as_tensor(banned, dtype=torch.long, device=hidden.device)

    def of_logits(logits: torch.Tensor, tokens: torch.Tensor):
        logits = soft_cap(logits, cap)  # [n, V]
        if len(banned):
            logits = logits.index_fill(-1, banned, -torch.inf)
        logps = logits.log_softmax(-1)
        return logps.gather(-1, tokens.unsqueeze(-1)).squeeze(-1), logps

    return ChunkedHead.apply(of_logits, chunk, hidden, weight, tokens)


def token_jsd(
    hidden,
    weight,
    teacher_hidden,
    teacher_weight,
    cap: float | None = None,
    teacher_cap: float | None = None,
    chunk: int = 256,
):
    """Per-token Jensen-Shannon divergence of student and teacher, with equal weights (App. D.2).

    hidden: [N, H] and teacher_hidden: [N, H'], the last hidden states at the same positions.
    weight: [V, H] and teacher_weight: [V, H'] of the heads, caps as in `token_logprobs`. Returns
    divergences in nats [N], at most log 2, with gradient to hidden and weight, and the student's
    entropies [N], without; both fp32.
    """

    def of_logits(logits: torch.Tensor, teacher_hidden: torch.Tensor):
        p = soft_cap(logits, cap).log_softmax(-1)  # [n, V], log-probs as q and m are
        with torch.no_grad():
            teacher_logits = linear(teacher_hidden.to(teacher_weight), teacher_weight)
            q = soft_cap(teacher_logits, teacher_cap).log_softmax(-1)
        m = torch.logaddexp(p, q) - math.log(2)  # the mixture
        return 0.5 * (p.exp() * (p - m) + q.exp() * (q - m)).sum(-1), p

    return ChunkedHead.apply(of_logits, chunk, hidden, weight, teacher_hidden)


def soft_cap(logits: torch.Tensor, cap: float | None) -> torch.Tensor:
    """Gemma caps its logits after the head. Returns fp32."""
    logits = logits.float()
    return cap * torch.tanh(logits / cap) if cap else logits


class ChunkedHead(torch.autograd.Function):
    """of_logits(hidden @ weight.T, *others) without the logits of all tokens at once.

    of_logits: (logits [n, V], *others [n, ...]) -> (values [n], log-probs [n, V]), both fp32.
    Returns the values [N], with gradient to hidden [N, H] and weight [V, H], and the entropies [N]
    of the log-probs, without. The logits are in bf16 under such an autocast, as a Linear's are; the
    weight's gradient is always added up in fp32.
    """

    @staticmethod
    def forward(ctx, of_logits: Callable, chunk: int, hidden, weight, *others):
        kind = hidden.device.type
        ctx.of_logits = of_logits
        ctx.chunk = chunk
        ctx.dtype = hidden.dtype
        if torch.is_autocast_enabled(kind):
            ctx.dtype = torch.get_autocast_dtype(kind)
        ctx.save_for_backward(hidden, weight, *others)
        head = weight.to(ctx.dtype)
        values = []
        entropies = []
        # The backward pass runs without autocast, and both must see the same logits.
        with torch.autocast(kind, enabled=False):
            for rows in chunks(len(hidden), chunk):
                inputs = [x[rows] for x in others]
                # The logits get no name here: they are freed with the call.
                value, logps = of_logits(linear(hidden[rows].to(ctx.dtype), head), *inputs)
                values.append(value)
                probs = logps.exp()
                entropies.append(torch.special.entr(probs, out=probs).sum(-1))
        values = torch.cat(values)
        entropies = torch.cat(entropies)
        ctx.mark_non_differentiable(entropies)
        return values, entropies

    @staticmethod
    def backward(ctx, grad, _):
        hidden, weight, *others = (x.detach() for x in ctx.saved_tensors)
        head = weight.to(ctx.dtype)
        grad_hidden = torch.empty_like(hidden)
        grad_weight = None
        if ctx.needs_input_grad[3]:  # not where the head is frozen
            grad_weight = torch.zeros_like(weight, dtype=torch.float32)
        for rows in chunks(len(hidden), ctx.chunk):
            h = hidden[rows].to(ctx.dtype)  # [n, H]
            with torch.enable_grad():
                logits = linear(h, head).requires_grad_()  # [n, V]
                inputs = [x[rows] for x in others]
                values, _ = ctx.of_logits(logits, *inputs)
            (grad_logits,) = torch.autograd.grad(values, logits, grad[rows])  # [n, V]
            grad_hidden[rows] = grad_logits @ head
            if grad_weight is not None:
                # In slices: the product of all columns would be one more [V, H] buffer.
                for columns in chunks(len(weight), VOCAB_SLICE):
                    grad_weight[columns] += grad_logits[:, columns].T @ h
            # Memory: these must be gone before the next chunk's are made.
            del logits, values, grad_logits
        if grad_weight is not None:
            grad_weight = grad_weight.to(weight)
        return None, None, grad_hidden, grad_weight, *(None for _ in others)


def chunks(length: int, size: int) -> list[slice]:
    """Slices of `size` that cover 0 to length; one empty slice where the length is 0."""
    return [slice(start, start + size) for start in range(0, max(length, 1), size)]
