"""The student under an optimiser: rows in, micro-batches, one optimiser step out, on one process or
many.

Decisions:
1. Every micro-batch of a VLM holds an image. Where its rows have none, a blank row joins them: an
   image, one response token, weight 0. Its loss is 0, but every parameter, also of the vision
   tower, gets a gradient: DDP requires that. The blank row is appended to the shortest row, after
   its last token, and so costs no padding. Attention is causal: the shortest row's own tokens do
   not see what comes after them.
2. Micro-batches are filled by tokens, padding included, not by rows (Table 8: 4 rows, without
   padding). Every process makes the same number of micro-batches. Where rows are few, the last ones
   hold the blank row alone.
3. The optimiser does not step, on any process, on a gradient that is not finite.
4. FSDP2 in bf16 casts all that it shards. The few parameters that a model computes with in fp32
   even in bf16 are not sharded: every process keeps them whole, and `step` averages their
   gradients.
"""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.utils.memory import clear_device_cache
from PIL import Image
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from tqdm import tqdm

from engine.logprobs import token_jsd, token_logprobs
from engine.memory import out_of_memory, segments_that_grow
from engine.models import (
    Encoder,
    Tensors,
    collate,
    extend,
    follow,
    lm_head,
    position_ids,
    response_positions,
)
from engine.questions import Question

LEAST_TOKENS = 512  # smaller micro-batches would not help where memory runs out


@dataclass
class Row:
    """One rollout on its way through the update."""

    prompt: str
    question: Question | None
    tokens: list[int]
    weight: float  # of its tokens in the loss: in ZPPO its advantage
    prefix: Sequence[int] = ()  # response tokens that come before `tokens` and carry no loss
    old_logp: torch.Tensor | None = None  # [tokens], under the policy at the start of the step


# ---------------------------------------------------------------- the model


class Policy(torch.nn.Module):
    """The student as a map from (prompts, responses) to log-probs: this is what accelerate wraps.

    Inputs of all methods: batch, prompts + responses [B, L] of `models.collate`; position_ids of
    the batch; predicts, bool [B, L] of `models.response_positions`, or the places in the flattened
    batch where it is True [N]. All outputs are [N] over the response tokens, row after row.
    """

    def __init__(self, model, banned: Sequence[int] = ()):
        super().__init__()
        self.model = model
        self.banned = list(banned)
        self._no_split_modules = model._no_split_modules  # accelerate asks for it: FSDP2's units

    def forward(
        self, batch: dict, position_ids: torch.Tensor, predicts: torch.Tensor, teacher=None
    ):
        """`log_probs`, or with a teacher model `divergences`.

        DDP, FSDP2 and autocast act on calls of the module itself. So both have to come through
        here.
        """
        if teacher is None:
            return self.log_probs(batch, position_ids, predicts)
        return self.divergences(batch, position_ids, predicts, teacher)

    def log_probs(self, batch: dict, position_ids: torch.Tensor, predicts: torch.Tensor):
        """(log-probs, entropies)."""
        hidden = last_hidden(self.model, batch, position_ids, predicts)  # [N, H]
        weight, cap = lm_head(self.model)
        next_tokens = batch["input_ids"].roll(-1, dims=-1)  # [B, L]: what each position predicts
        tokens = next_tokens.flatten()[predicts.flatten()]
        return token_logprobs(hidden, weight, tokens, self.banned, cap)

    def divergences(self, batch: dict, position_ids: torch.Tensor, predicts: torch.Tensor, teacher):
        """(divergences from the teacher, entropies of the student)."""
        hidden = last_hidden(self.model, batch, position_ids, predicts)  # [N, H]
        weight, cap = lm_head(self.model)
        teacher_weight, teacher_cap = lm_head(teacher)
        with torch.no_grad():
            target = last_hidden(teacher, batch, position_ids, predicts)  # [N, H of the teacher]
        return token_jsd(hidden, weight, target, teacher_weight, cap, teacher_cap)


def last_hidden(model, batch: dict, position_ids, predicts: torch.Tensor) -> torch.Tensor:
    """The last hidden states that predict response tokens [N, H], before the head."""
    backbone = getattr(model, model.base_model_prefix)
    hidden = backbone(**batch, position_ids=position_ids, use_cache=False).last_hidden_state
    return hidden.flatten(0, 1)[predicts.flatten()]


# ---------------------------------------------------------------- one step


def micro_batches(lengths: Sequence[int], budget: int, world: int) -> list[list[int]]:
    """Rows cut into micro-batches, the longest rows first, each filled up to the budget.

    No row is padded to more than twice its length: NCQ prompts are far longer than plain ones.
    lengths: tokens of each row. budget: tokens of a micro-batch, padding included; a longer row is
    a micro-batch of its own. Returns positions in `lengths`, a multiple of `world` lists of them.
    Memory runs out at once or never, and `world` neighbours, one for each process, are of like
    size. The last lists are empty where rows are few.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    batches: list[list[int]] = []
    width = 0  # of the last micro-batch: the length of its first row
    for i in order:
        full = not batches or width * (len(batches[-1]) + 1) > budget
        if full or width > 2 * lengths[i]:
            batches.append([])
            width = lengths[i]
        batches[-1].append(i)
    share_out(batches, lengths, world)
    return batches


def share_out(batches: list[list[int]], lengths: Sequence[int], world: int) -> None:
    """Make the number of micro-batches a multiple of `world`: halve the largest ones, then add
    empty ones.
    """

    def size(batch: list[int]) -> int:
        """Padded tokens of a batch that can be halved."""
        return lengths[batch[0]] * len(batch) if len(batch) > 1 else 0

    while len(batches) % world:
        largest = max(batches, key=size)
        if len(largest) == 1:
            break
        place = batches.index(largest)
        half = len(largest) // 2
        batches[place : place + 1] = [largest[:half], largest[half:]]
    while len(batches) % world:
        batches.append([])


@dataclass
class Learner:
    """The student, its optimiser, and how rows become micro-batches: the machinery that every
    update shares.

    policy: a `Policy` that went through accelerator.prepare, with its optimizer. blank: the row of
    decision 1, with an image if the student is a VLM. micro_tokens: the budget of `micro_batches`;
    changes results by rounding alone. tokens, slots: of all processes' micro-batches since the last
    `padding_share`, without and with padding.
    """

    policy: torch.nn.Module
    optimizer: torch.optim.Optimizer
    accelerator: Accelerator
    encoder: Encoder
    blank: Row
    micro_tokens: int = 16_384
    tokens: int = 0
    slots: int = 0

    def micro_batches(self, rows: Sequence[Row]) -> Iterator[list[Row]]:
        """This process's micro-batches of the rows, which are the same on all processes.

        Run `log_probs` or `divergences` and `backward` on each before asking for the next one:
        gradients stay on their process until the last.
        """
        accelerator = self.accelerator
        lengths = [self.length(row) for row in rows]
        batches = micro_batches(lengths, self.micro_tokens, accelerator.num_processes)
        self.tokens += sum(lengths)
        self.slots += sum(lengths[batch[0]] * len(batch) for batch in batches if batch)
        mine = batches[accelerator.process_index :: accelerator.num_processes]
        hidden = None if accelerator.is_main_process else True  # None: shown on a terminal only
        for i, batch in enumerate(tqdm(mine, desc="update", leave=False, disable=hidden)):
            micro = [rows[k] for k in batch]
            # decision 1: an image in every micro-batch; decision 2: none is empty
            has_image = any(row.question.images for row in micro)
            if not micro or (self.blank.question.images and not has_image):
                micro.append(self.blank)
            last = i + 1 == len(mine)
            # FSDP2 would hold whole gradients between two synchronisations.
            synchronised = last or accelerator.is_fsdp2
            with nullcontext() if synchronised else accelerator.no_sync(self.policy):
                yield micro

    def length(self, row: Row) -> int:
        """Tokens of prompt and response."""
        return self.encoder.length(row.prompt, row.question) + len(row.prefix) + len(row.tokens)

    def log_probs(self, rows: Sequence[Row]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The policy on one micro-batch: (log-probs, entropies, weights of the rows), [N] over the
        response tokens.
        """
        logp, entropy = self.policy(*self.inputs(rows))
        return logp, entropy, token_weights(rows).to(logp)

    def divergences(
        self, rows: Sequence[Row], teacher
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The policy beside a teacher model: (divergences, entropies of the student, weights of the
        rows), as above.
        """
        divergence, entropy = self.policy(*self.inputs(rows), teacher=teacher)
        return divergence, entropy, token_weights(rows).to(divergence)

    def inputs(self, rows: Sequence[Row]) -> tuple[Tensors, torch.Tensor, torch.Tensor]:
        """The policy's inputs for one micro-batch: (batch, position ids, predicts)."""
        prompts = [extend(self.encoder(row.prompt, row.question), row.prefix) for row in rows]
        responses = [row.tokens for row in rows]
        own = None  # where the shortest row predicts its own response
        if len(rows) > 1 and rows[-1] is self.blank:
            # decision 1: the blank row is appended to the shortest, which becomes part of its
            # prompt
            *prompts, shortest, blank = prompts
            *responses, tokens, blank_tokens = responses
            first = len(shortest["input_ids"]) - 1
            own = slice(first, first + len(tokens))
            prompts.append(follow(extend(shortest, tokens), blank))
            responses.append(blank_tokens)
        batch = collate(prompts, responses, device=self.accelerator.device)
        predicts = response_positions(prompts, responses, batch["input_ids"].shape)
        if own is not None:
            predicts[-1, own] = True
        positions = position_ids(self.accelerator.unwrap_model(self.policy).model, batch)
        # No token sees the padding on its right, and attention is faster without a mask.
        del batch["attention_mask"]
        # Places, not a mask: on a GPU the host would wait for it to know how many there are.
        places = predicts.flatten().nonzero().squeeze(-1)
        return batch, positions, places.to(self.accelerator.device)

    def backward(self, loss: torch.Tensor) -> None:
        """Add this micro-batch's gradient. loss: its share of the loss; the shares of all processes
        sum to the loss.
        """
        # accelerate averages gradients over processes
        (loss * self.accelerator.num_processes).backward()

    def retried(self, act: Callable, *given):
        """act(self, *given): all gradients of one optimiser step, or log-probs.

        Where memory runs out on a single process it is done again, with smaller micro-batches.
        """
        while True:
            try:
                return act(self, *given)
            except RuntimeError as error:
                alone = self.accelerator.num_processes == 1
                if not alone or self.micro_tokens < LEAST_TOKENS or not out_of_memory(error):
                    raise
            self.micro_tokens //= 2
            self.optimizer.zero_grad()
            clear_device_cache(garbage_collection=True)
            tqdm.write(f"out of memory in the update: on with --micro_tokens {self.micro_tokens}")

    def step(self, max_grad_norm: float) -> float | None:
        """One optimiser step on the gradients so far. Returns their norm, None if it is not finite:
        then no step.
        """
        parameters = list(self.policy.parameters())
        if self.accelerator.is_fsdp2:
            # decision 4: unsharded gradients are averaged here
            for parameter in parameters:
                if parameter.grad is not None and not isinstance(parameter, DTensor):
                    parameter.grad = self.accelerator.reduce(parameter.grad, "mean")
        norm = float(self.accelerator.clip_grad_norm_(parameters, max_grad_norm))
        finite = math.isfinite(norm)
        if finite:  # decision 3
            self.optimizer.step()
        self.optimizer.zero_grad()
        return norm if finite else None

    def padding_share(self) -> float:
        """Share of padding in what `micro_batches` has cut since the last call."""
        share = 1 - self.tokens / self.slots if self.slots else 0.0
        self.tokens = 0
        self.slots = 0
        return share


def token_weights(rows: Sequence[Row]) -> torch.Tensor:
    """The weight of each response token's row [N]."""
    return torch.tensor([row.weight for row in rows for _ in row.tokens])


# ---------------------------------------------------------------- set up


def make_accelerator(**settings) -> Accelerator:
    """Accelerator(**settings) on CUDA, else on the CPU. Raises SystemExit for fp16."""
    if os.environ.get("WORLD_SIZE", "1") == "1" and "MASTER_ADDR" in os.environ:
        print(
            "the launcher was asked for several processes and started one; "
            "on a CPU: torchrun --nproc_per_node 2 ..."
        )
    # Its gradients need a scaler, and log-probs of 12,288 tokens more digits.
    if os.environ.get("ACCELERATE_MIXED_PRECISION") == "fp16":
        raise SystemExit("--mixed_precision fp16 is not known here: launch with bf16 or no")
    segments_that_grow()
    waiting = InitProcessGroupKwargs(timeout=timedelta(hours=2))  # for another process's rollouts
    handlers = [DistributedDataParallelKwargs(broadcast_buffers=False), waiting]
    # Not on Apple's GPUs: they have no float64.
    return Accelerator(cpu=not torch.cuda.is_available(), kwargs_handlers=handlers, **settings)


def make_learner(
    accelerator: Accelerator, student, lr: float, weight_decay: float, micro_tokens: int
) -> Learner:
    """AdamW with a constant learning rate (Table 8) on the student, a generate.Actor, prepared for
    all processes.
    """
    policy = Policy(student.model, student.banned_ids)
    fused = True if accelerator.device.type == "cuda" else None
    settings = dict(lr=lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=weight_decay, fused=fused)
    optimizer = torch.optim.AdamW(policy.parameters(), **settings)
    if accelerator.is_fsdp2:
        keep_whole(policy, optimizer, accelerator.state.fsdp_plugin)
    policy, optimizer = accelerator.prepare(policy, optimizer)
    is_vlm = hasattr(student.processor, "image_processor")
    images = (Image.new("RGB", (64, 64)),) if is_vlm else ()
    question = Question("blank", "blank", images, "")
    blank = Row("blank", question, student.end_ids[:1], weight=0.0)
    # Any finite ratio: its weight is 0. A micro-batch of a retried update may get it unscored.
    blank.old_logp = torch.zeros(1, device=accelerator.device)
    learner = Learner(policy, optimizer, accelerator, student.encoder, blank, micro_tokens)
    if accelerator.is_fsdp2:
        with torch.no_grad():
            learner.log_probs([blank])  # what runs first is FSDP2's root
        student.whole_weights = partial(gathered, policy)
        student.autocast = nullcontext  # FSDP2 casts by itself
    return learner


def keep_whole(policy: Policy, optimizer: torch.optim.Optimizer, plugin) -> None:
    """Before accelerate prepares for FSDP2: decision 4; log-probs leave the model in fp32,
    gradients add up in fp32.
    """
    if plugin.cpu_ram_efficient_loading:
        raise SystemExit(
            "set fsdp_cpu_ram_efficient_loading: false, for else only one process loads the weights"
        )
    if mixed := plugin.mixed_precision_policy:
        plugin.mixed_precision_policy = replace(
            mixed, output_dtype=None, reduce_dtype=torch.float32
        )
    # Qwen3.5 lists none itself
    fp32 = {"A_log", "dt_bias"} | set(policy.model._keep_in_fp32_modules_strict or ())
    whole = {}
    for name, parameter in policy.named_parameters():
        if any(part in name for part in fp32):
            whole[parameter] = name
    plugin.ignored_modules = [torch.nn.ParameterList(whole)]
    optimizer.param_groups[0]["params"] = [p for p in policy.parameters() if p not in whole]
    # AdamW's GPU kernels refuse a mix of shards and whole parameters in one group.
    optimizer.add_param_group({"params": list(whole)})


@contextmanager
def gathered(policy: torch.nn.Module):
    """Under FSDP2: all parameters whole on every process for a while, in the type that they compute
    in, without a copy.

    All processes enter together; then none waits for another.
    """
    units = [module for module in policy.modules() if isinstance(module, FSDPModule)]
    for unit in units:
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()
    yield
    for unit in units:
        is_root = unit is policy  # the root's backward pass begins at once
        unit.set_reshard_after_forward(not is_root, recurse=False)
        unit.reshard()
