"""The student under an optimiser: rows in, micro-batches, one optimiser step out, on one process or many.

Decisions:
1. Every micro-batch of a VLM holds an image: where it has none, a blank image with weight 0 joins it. So the vision
   tower is always in the graph, as DDP needs, and one process or many give the same weights.
2. Every process makes the same number of micro-batches, the last ones possibly of the blank row alone, so nobody waits
   for anybody.
3. The optimiser does not step, on any process, on a gradient that is not finite.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from accelerate import Accelerator

from baselines import token_jsd
from data import Question
from models import collate, extend, lm_head, position_ids, response_positions
from zppo import Row, token_logprobs


class Policy(torch.nn.Module):
    """The student as a map from (prompts, responses) to log-probs: this is what accelerate wraps."""

    def __init__(self, model, banned: Sequence[int] = ()):
        super().__init__()
        self.model, self.banned = model, list(banned)

    def forward(self, batch: dict, position_ids: torch.Tensor, predicts: torch.Tensor, teacher=None):
        """batch: `models.collate`d prompts + responses [B, L]. predicts: bool [B, L], True where the next token is a
        response token. Returns (log-probs, entropies) of the response tokens, [N], row after row; with a teacher model
        (divergences from it, entropies) instead."""
        hidden = last_hidden(self.model, batch, position_ids)[predicts]  # [N, H]
        if teacher is not None:
            with torch.no_grad():
                target = last_hidden(teacher, batch, position_ids)[predicts]
            return token_jsd(hidden, lm_head(self.model), target, lm_head(teacher))
        tokens = batch["input_ids"].roll(-1, dims=-1)  # [B, L]: the token that each position predicts
        return token_logprobs(hidden, lm_head(self.model), tokens[predicts], self.banned)


def last_hidden(model, batch: dict, position_ids: torch.Tensor) -> torch.Tensor:
    """The last hidden states [B, L, H], before the head."""
    backbone = getattr(model, model.base_model_prefix)
    return backbone(**batch, position_ids=position_ids, use_cache=False).last_hidden_state


@torch.no_grad()
def check_head(model, prompt: dict[str, torch.Tensor]) -> None:
    """Raises SystemExit where log-probs by the head's weight and soft cap are not those of the model's own logits:
    some architectures also scale or shift them. prompt: any encoded one. The model is one that nothing wraps yet."""
    response = prompt["input_ids"][-4:]
    batch = collate([prompt], [response], device=model.device)
    positions, predicts = position_ids(model, batch), response_positions([prompt], [response], batch["input_ids"].shape)
    ours = Policy(model)(batch, positions, predicts.to(model.device))[0]  # [4]
    logits = model(**batch, position_ids=positions, use_cache=False).logits[predicts].float()  # [4, V]
    theirs = logits.log_softmax(-1).gather(-1, response.to(logits.device).unsqueeze(-1)).squeeze(-1)
    tolerance = torch.finfo(model.dtype).eps ** 0.5
    if not torch.allclose(ours, theirs, rtol=tolerance, atol=tolerance):
        raise SystemExit(
            f"{model.config.model_type}: its head does more than a linear map with a soft cap (a scale? a bias?), so "
            "its log-probs would be wrong here: choose another architecture, or teach `models.lm_head` this one"
        )


@dataclass
class Learner:
    """The student, its optimiser, and how rows become micro-batches: the machinery that every update shares.

    policy: a `Policy` that went through accelerator.prepare, with its optimizer. encode: (prompt, question) ->
    `models.encode`d prompt. blank: an encoded prompt that joins micro-batches with weight 0 (decision 1), with an image
    if the student is a VLM. micro_batch: rows per forward pass; changes nothing but memory and speed.
    """

    policy: torch.nn.Module
    optimizer: torch.optim.Optimizer
    accelerator: Accelerator
    encode: Callable[[str, Question], dict[str, torch.Tensor]]
    blank: dict[str, torch.Tensor]
    micro_batch: int = 4
    progress: Callable[[int], None] = lambda rows: None

    def split(self, rows: Sequence[Row]) -> list[list[Row]]:
        """This process's micro-batches: rows of like length together. As many on every process."""
        world, size = self.accelerator.num_processes, self.micro_batch
        rows = sorted(rows, key=lambda row: len(row.prompt) + len(row.tokens))
        mine = rows[self.accelerator.process_index :: world]
        return [mine[i * size : (i + 1) * size] for i in range(math.ceil(math.ceil(len(rows) / world) / size))]

    def forward(self, rows: Sequence[Row], **extra) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """The policy on one micro-batch. Returns its two outputs and the rows' weights, each [N] over the N response
        tokens, and a zero that keeps the blank row in the graph. extra: goes to `Policy.forward`."""
        encoded = [extend(self.encode(row.prompt, row.question), row.prefix) for row in rows]
        responses = [row.tokens for row in rows]
        if not rows or ("pixel_values" in self.blank and not any("pixel_values" in prompt for prompt in encoded)):
            encoded, responses = [*encoded, self.blank], [*responses, self.blank["input_ids"][-1:].tolist()]
        device, student = self.accelerator.device, self.accelerator.unwrap_model(self.policy).model
        batch = collate(encoded, responses, device=device)
        predicts = response_positions(encoded, responses, batch["input_ids"].shape).to(device)
        first, second = self.policy(batch, position_ids(student, batch), predicts, **extra)
        lengths = torch.tensor([len(row.tokens) for row in rows], dtype=torch.long)
        weights = torch.tensor([row.weight for row in rows]).repeat_interleave(lengths).to(first)  # [N]
        n = len(weights)
        return first[:n], second[:n], weights, 0.0 * first[n:].sum()

    def step(self, rows: Sequence[Row], backward: Callable[[list[Row]], None], max_grad_norm: float) -> float | None:
        """One optimiser step on rows that all processes agree on. backward: forward and backward of one micro-batch,
        its loss scaled so that the mean over processes is the loss. Returns the gradient norm, None if not finite."""
        micros = self.split(rows)
        for i, micro in enumerate(micros):
            with self.accelerator.no_sync(self.policy) if i + 1 < len(micros) else nullcontext():
                backward(micro)
            self.progress(len(micro))
        norm = float(self.accelerator.clip_grad_norm_(self.policy.parameters(), max_grad_norm))
        finite = math.isfinite(norm)
        if finite:
            self.optimizer.step()
        self.optimizer.zero_grad()
        return norm if finite else None
