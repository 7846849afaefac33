"""The student under an optimiser: rows in, micro-batches, one optimiser step out, on one process or many.

Decisions:
1. Every micro-batch of a VLM holds an image. Where its rows have none, a blank row with an image and the weight 0 joins
   them: its loss is 0, but every parameter, the vision tower's included, gets a gradient, which DDP requires. It goes
   behind the shortest row, as if that row were longer: attention is causal, so the row's own tokens do not see it.
2. Micro-batches are filled by tokens, padding included, not by rows (Table 8: 4 rows, without padding). Every process
   makes the same number of them, the last ones possibly of the blank row alone.
3. The optimiser does not step, on any process, on a gradient that is not finite.
4. FSDP2 in bf16 casts all that it shards. The few parameters that a model computes with in fp32 even in bf16 are not
   sharded: every process keeps them whole, and `step` averages their gradients.
"""

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
from PIL import Image
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from tqdm import tqdm

from engine.logprobs import token_jsd, token_logprobs
from engine.models import Encoder, Tensors, collate, extend, follow, lm_head, position_ids, response_positions
from engine.questions import Question

FIXED_COST = 1 / 16  # of a micro-batch, as a share of a full one's: kernels to start, gradients to add up


@dataclass
class Row:
    """One rollout on its way through the update."""

    prompt: str
    question: Question | None
    tokens: list[int]
    weight: float  # of its tokens in the loss: in ZPPO its advantage
    prefix: Sequence[int] = ()  # response tokens that come before `tokens` and carry no loss
    old_logp: torch.Tensor | None = None  # [tokens], under the policy at the start of the step


class Policy(torch.nn.Module):
    """The student as a map from (prompts, responses) to log-probs: this is what accelerate wraps."""

    def __init__(self, model, banned: Sequence[int] = ()):
        super().__init__()
        self.model, self.banned = model, list(banned)
        self._no_split_modules = model._no_split_modules  # accelerate asks for it: FSDP2's units

    def forward(self, batch: dict, position_ids: torch.Tensor, predicts: torch.Tensor, teacher=None):
        """batch: prompts + responses [B, L] of `models.collate`. predicts: bool [B, L] of `models.response_positions`.
        Returns (log-probs, entropies) of the response tokens [N], row after row; with a teacher model (divergences from
        it, entropies)."""
        hidden = last_hidden(self.model, batch, position_ids)[predicts]  # [N, H]
        weight, cap = lm_head(self.model)
        if teacher is not None:
            teacher_weight, teacher_cap = lm_head(teacher)
            with torch.no_grad():
                target = last_hidden(teacher, batch, position_ids)[predicts]
            return token_jsd(hidden, weight, target, teacher_weight, cap, teacher_cap)
        tokens = batch["input_ids"].roll(-1, dims=-1)  # [B, L]: the token that each position predicts
        return token_logprobs(hidden, weight, tokens[predicts], self.banned, cap)


def last_hidden(model, batch: dict, position_ids: torch.Tensor) -> torch.Tensor:
    """The last hidden states [B, L, H], before the head."""
    backbone = getattr(model, model.base_model_prefix)
    return backbone(**batch, position_ids=position_ids, use_cache=False).last_hidden_state


@contextmanager
def gathered(policy: torch.nn.Module):
    """Under FSDP2: all parameters whole on every process for a while, in the type that they compute in, without a copy.
    All processes enter together; then none waits for another."""
    units = [module for module in policy.modules() if isinstance(module, FSDPModule)]
    for unit in units:
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()
    yield
    for unit in units:
        unit.set_reshard_after_forward(unit is not policy, recurse=False)  # the root's backward pass begins at once
        unit.reshard()


@torch.no_grad()
def check_head(model, prompt: Tensors) -> None:
    """Raises SystemExit where the log-probs are not those of the model's own logits, because the head also scales or
    shifts them. model: one that nothing wraps yet. prompt: any encoded one."""
    response = prompt["input_ids"][-4:]
    batch = collate([prompt], [response], device=model.device)
    positions, predicts = position_ids(model, batch), response_positions([prompt], [response], batch["input_ids"].shape)
    ours = Policy(model)(batch, positions, predicts.to(model.device))[0]  # [4]
    logits = model(**batch, position_ids=positions, use_cache=False).logits[predicts].float()  # [4, V]
    theirs = logits.log_softmax(-1).gather(-1, response.to(logits.device).unsqueeze(-1)).squeeze(-1)
    kind = model.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else model.dtype
    tolerance = torch.finfo(dtype).eps ** 0.5
    if not torch.allclose(ours, theirs, rtol=tolerance, atol=tolerance):
        raise SystemExit(
            f"{model.config.model_type}: its head does more than a linear map with a soft cap (a scale? a bias?): "
            "choose another architecture, or teach `models.lm_head` this one"
        )


def micro_batches(lengths: Sequence[int], budget: int, world: int) -> list[list[int]]:
    """Rows cut into micro-batches, a multiple of `world`, at the least cost: padded tokens and a fixed cost for each.

    lengths: tokens of each row. budget: tokens of a micro-batch, padding included; a longer row is a micro-batch of its
    own. Returns positions in `lengths`, the longest rows first: memory runs out at once or never, and `world`
    neighbours, one for each process, are of like size. The last ones are empty where rows are few."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    least, start = [0.0], [0]  # of the first j rows: the least cost, and where their last micro-batch starts
    for j in range(1, len(order) + 1):
        costs = {}
        for i in reversed(range(j)):  # rows i to j - 1 are one micro-batch, as wide as row i
            padded = lengths[order[i]] * (j - i)
            if costs and padded > budget:
                break
            costs[i] = least[i] + padded
        start.append(min(costs, key=costs.get))
        least.append(costs[start[j]] + budget * FIXED_COST)
    found, j = [], len(order)
    while j:
        found.insert(0, order[start[j] : j])
        j = start[j]
    while len(found) % world and max(map(len, found)) > 1:  # halve the largest until every process has as many
        place = max(range(len(found)), key=lambda k: (len(found[k]) > 1) * len(found[k]) * lengths[found[k][0]])
        batch = found[place]
        found[place : place + 1] = [batch[: len(batch) // 2], batch[len(batch) // 2 :]]
    return found + [[]] * (-len(found) % world)


def make_accelerator(**settings) -> Accelerator:
    """Accelerator(**settings) on CUDA, else on the CPU."""
    if os.environ.get("WORLD_SIZE", "1") == "1" and "MASTER_ADDR" in os.environ:
        print("the launcher was asked for several processes and started one; on a CPU: torchrun --nproc_per_node 2 ...")
    waiting = InitProcessGroupKwargs(timeout=timedelta(hours=2))  # for another process's rollouts
    handlers = [DistributedDataParallelKwargs(broadcast_buffers=False), waiting]
    # Not on Apple's GPUs: they have no float64.
    return Accelerator(cpu=not torch.cuda.is_available(), kwargs_handlers=handlers, **settings)


@dataclass
class Learner:
    """The student, its optimiser, and how rows become micro-batches: the machinery that every update shares.

    policy: a `Policy` that went through accelerator.prepare, with its optimizer. blank: the row of decision 1, with an
    image if the student is a VLM. micro_tokens: the budget of `micro_batches`; changes results by rounding alone.
    tokens, slots: of all processes' micro-batches since the last `padding_share`, without and with padding."""

    policy: torch.nn.Module
    optimizer: torch.optim.Optimizer
    accelerator: Accelerator
    encoder: Encoder
    blank: Row
    micro_tokens: int = 16_384
    tokens: int = 0
    slots: int = 0

    def micro_batches(self, rows: Sequence[Row]) -> Iterator[list[Row]]:
        """This process's micro-batches of the rows, which are the same on all processes. Run forward and `backward` on
        each before asking for the next one: gradients stay on their process until the last."""
        lengths = [self.encoder.length(row.prompt, row.question) + len(row.prefix) + len(row.tokens) for row in rows]
        batches = micro_batches(lengths, self.micro_tokens, self.accelerator.num_processes)
        self.tokens += sum(lengths)
        self.slots += sum(lengths[batch[0]] * len(batch) for batch in batches if batch)
        mine = batches[self.accelerator.process_index :: self.accelerator.num_processes]
        quiet = not self.accelerator.is_main_process
        for i, batch in enumerate(tqdm(mine, desc="update", leave=False, disable=quiet or None)):
            micro = [rows[k] for k in batch]
            if not micro or (self.blank.question.images and not any(row.question.images for row in micro)):
                micro.append(self.blank)
            last = i + 1 == len(mine) or self.accelerator.is_fsdp2  # FSDP2 would hold whole gradients between syncs
            with nullcontext() if last else self.accelerator.no_sync(self.policy):
                yield micro

    def forward(self, rows: Sequence[Row], teacher=None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The policy on one micro-batch: its two outputs and the rows' weights, each [N] over the response tokens."""
        prompts = [extend(self.encoder(row.prompt, row.question), row.prefix) for row in rows]
        responses, device = [row.tokens for row in rows], self.accelerator.device
        if len(rows) > 1 and rows[-1] is self.blank:  # behind the shortest row (decision 1)
            *whole, shortest, blank = [extend(prompt, tokens) for prompt, tokens in zip(prompts, responses)]
            batch = collate([*whole, follow(shortest, blank)], [()] * (len(rows) - 1), device=device)
            predicts = response_positions(prompts[:-1], responses[:-1], batch["input_ids"].shape)
            end = len(shortest["input_ids"]) + len(blank["input_ids"]) - 1
            predicts[-1, end - len(responses[-1]) : end] = True
        else:
            batch = collate(prompts, responses, device=device)
            predicts = response_positions(prompts, responses, batch["input_ids"].shape)
        positions = position_ids(self.accelerator.unwrap_model(self.policy).model, batch)
        del batch["attention_mask"]  # padding on the right is seen by no token, and attention is faster without a mask
        first, second = self.policy(batch, positions, predicts.to(device), teacher=teacher)
        weights = [row.weight for row in rows for _ in row.tokens]
        return first, second, torch.tensor(weights).to(first)  # [N] each

    def backward(self, loss: torch.Tensor) -> None:
        """Add this micro-batch's gradient. loss: its share of the loss; the shares of all processes sum to the loss."""
        (loss * self.accelerator.num_processes).backward()  # accelerate averages gradients over processes

    def step(self, max_grad_norm: float) -> float | None:
        """One optimiser step on the gradients so far. Returns their norm, None if it is not finite: then no step."""
        for parameter in self.policy.parameters() if self.accelerator.is_fsdp2 else ():
            if parameter.grad is not None and not isinstance(parameter, DTensor):  # decision 4
                parameter.grad = self.accelerator.reduce(parameter.grad, "mean")
        norm = float(self.accelerator.clip_grad_norm_(self.policy.parameters(), max_grad_norm))
        if math.isfinite(norm):
            self.optimizer.step()
        self.optimizer.zero_grad()
        return norm if math.isfinite(norm) else None

    def padding_share(self) -> float:
        """Share of padding in what `micro_batches` has cut since the last call."""
        share = 1 - self.tokens / self.slots if self.slots else 0.0
        self.tokens = self.slots = 0
        return share


def keep_whole(policy: Policy, optimizer: torch.optim.Optimizer, plugin) -> None:
    """Before accelerate prepares for FSDP2: decision 4; log-probs leave the model in fp32, gradients add up in fp32."""
    if plugin.cpu_ram_efficient_loading:
        raise SystemExit("set fsdp_cpu_ram_efficient_loading: false, for else only one process loads the weights")
    if mixed := plugin.mixed_precision_policy:
        plugin.mixed_precision_policy = replace(mixed, output_dtype=None, reduce_dtype=torch.float32)
    fp32 = {"A_log", "dt_bias", *(policy.model._keep_in_fp32_modules_strict or ())}  # Qwen3.5 lists none itself
    whole = {p: name for name, p in policy.named_parameters() if any(part in name for part in fp32)}
    plugin.ignored_modules = [torch.nn.ParameterList(whole)]
    optimizer.param_groups[0]["params"] = [p for p in policy.parameters() if p not in whole]
    optimizer.add_param_group({"params": list(whole)})  # AdamW's GPU kernels refuse a mix of shards and whole ones


def make_learner(accelerator: Accelerator, student, lr: float, weight_decay: float, micro_tokens: int) -> Learner:
    """AdamW with a constant learning rate (Table 8) on the student, a generate.Actor, prepared for all processes."""
    policy, fused = Policy(student.model, student.banned_ids), True if accelerator.device.type == "cuda" else None
    settings = dict(lr=lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=weight_decay, fused=fused)
    optimizer = torch.optim.AdamW(policy.parameters(), **settings)
    if accelerator.is_fsdp2:
        keep_whole(policy, optimizer, accelerator.state.fsdp_plugin)
    policy, optimizer = accelerator.prepare(policy, optimizer)
    images = (Image.new("RGB", (64, 64)),) if hasattr(student.processor, "image_processor") else ()
    blank = Row("blank", Question("blank", "blank", images, ""), student.end_ids[:1], weight=0.0)
    learner = Learner(policy, optimizer, accelerator, student.encoder, blank, micro_tokens)
    if accelerator.is_fsdp2:
        with torch.no_grad():
            learner.forward([blank])  # what runs first is FSDP2's root
        student.whole_weights, student.autocast = partial(gathered, policy), nullcontext  # FSDP2 casts by itself
    return learner
