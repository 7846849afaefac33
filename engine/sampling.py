"""Which token comes next: decoding settings, one token for every row, streams of random numbers.

A token is picked in two steps, first a block of the vocabulary, then the token: a sum over all
tokens in float64 would move four times as many bytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import pad

BLOCK = 512  # tokens of the vocabulary that are summed first
RANDOM_BLOCK = 64  # uniform numbers drawn at a time from a rollout's stream


@dataclass(frozen=True)
class Sampling:
    """Decoding settings. The defaults are those of training rollouts: nothing is cut off."""

    max_new_tokens: int = 12288
    temperature: float = 1.0  # 0 is greedy
    top_p: float = 1.0
    top_k: int = 0  # 0: off
    min_p: float = 0.0
    # Subtracted once from the logit of every token already in the response.
    presence_penalty: float = 0.0


def sample_tokens(logits: torch.Tensor, uniform: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Inverse-CDF sampling: logits [B, V], uniform [B] in [0, 1) -> token ids [B].

    Logits of banned tokens are -inf.
    """
    if sampling.temperature == 0:
        return logits.argmax(-1)
    if sampling.temperature != 1:
        logits = logits.float() / sampling.temperature
    if sampling.top_k:
        kth = logits.topk(min(sampling.top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    probs = logits.softmax(-1, dtype=torch.float32)
    if sampling.min_p:
        least = sampling.min_p * probs.amax(-1, keepdim=True)
        probs = probs.masked_fill(probs < least, 0.0)
    if sampling.top_p < 1:
        ordered, order = probs.sort(-1, descending=True)
        # Keep a token if the mass before it is below top_p: the first is always kept.
        before = ordered.cumsum(-1) - ordered
        ordered[before >= sampling.top_p * ordered.sum(-1, keepdim=True)] = 0.0
        probs = torch.zeros_like(probs).scatter_(-1, order, ordered)
    return inverse_cdf(probs, uniform)


def inverse_cdf(probs: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """probs [B, V], not all 0 and of any sum, uniform [B] -> token ids [B]."""
    vocabulary = probs.shape[1]
    blocks = vocabulary // BLOCK
    rest = blocks * BLOCK  # the first token of what is left over
    sums = probs[:, :rest].unflatten(1, (blocks, BLOCK)).sum(-1)
    sums = torch.cat([sums, probs[:, rest:].sum(-1, keepdim=True)], 1)
    block, share = invert(sums, uniform.double().unsqueeze(-1))
    tokens = block * BLOCK + torch.arange(BLOCK, device=probs.device)  # [B, BLOCK]
    inside = probs.gather(1, tokens.clamp(max=vocabulary - 1))
    inside = inside.masked_fill(tokens >= vocabulary, 0.0)
    place, _ = invert(inside, share)
    return (block * BLOCK + place).squeeze(-1)


def invert(weights: torch.Tensor, share: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Where the running sum of weights [B, n] passes this share [B, 1] of their total.

    Returns the place, and what share of the weight at the place lies before the passing: [B, 1].
    """
    cdf = weights.cumsum(-1, dtype=torch.float64)
    # Strictly below the total, so that the weight at the place is always positive.
    target = share.clamp(max=1 - 1e-12) * cdf[:, -1:]
    place = torch.searchsorted(cdf, target, right=True)
    before = pad(cdf, (1, 0)).gather(1, place)
    return place, (target - before) / weights.gather(1, place)


class UniformStreams:
    """One stream of uniform numbers per row, drawn in blocks, each row at its own place in it."""

    def __init__(self, seeds: Sequence[int], device: torch.device):
        self.device = device
        self.used = RANDOM_BLOCK  # columns of the block
        self.generators: list[torch.Generator] = []
        self.block = torch.empty(0, RANDOM_BLOCK, dtype=torch.float64, device=device)
        self.add(seeds)

    def add(self, seeds: Sequence[int]) -> None:
        """New rows, at the start of their streams, for what is left of the block."""
        new = [torch.Generator().manual_seed(seed) for seed in seeds]
        drawn = self.draw(new, RANDOM_BLOCK - self.used)
        self.block = torch.cat([self.block, pad(drawn, (self.used, 0))])
        self.generators += new

    def draw(self, generators: Sequence[torch.Generator], n: int) -> torch.Tensor:
        """The next n numbers of each stream [B, n]. A stream does not depend on how it is cut."""
        drawn = torch.empty(len(generators), n, dtype=torch.float64)
        for row, generator in zip(drawn, generators, strict=True):
            row.uniform_(generator=generator)
        return drawn.to(self.device)

    def next(self) -> torch.Tensor:
        """One number for each row [B]."""
        if self.used == RANDOM_BLOCK:
            self.block = self.draw(self.generators, RANDOM_BLOCK)
            self.used = 0
        self.used += 1
        return self.block[:, self.used - 1]

    def keep(self, rows: torch.Tensor) -> None:
        """Go on with these rows."""
        self.generators = [self.generators[row] for row in rows.tolist()]
        self.block = self.block[rows]
