"""Sampling in plain PyTorch: each prompt is prefilled once and its KV cache shared out to its G
rollouts.

Decisions:
1. All randomness of a token comes from one uniform number per (rollout, position): the inverse of
   the cumulative distribution picks the token. A rollout has its own random stream, seeded from
   (seed, step, question, sample), so it does not depend on the batch or the number of processes.
2. Finished rows leave the batch; their tokens and lengths are recorded here, so nothing later has
   to guess from token values where a response ended.
3. The model's generation_config never decides how to sample: `Sampling` alone does.
4. Vision placeholder tokens have probability 0, here and when log-probs are computed.
5. On a GPU the host looks at the tokens every few steps only, because it has to wait for them. A
   finished row keeps sampling until the next look; those tokens are dropped.
"""

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import gather_object
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from tqdm import tqdm

from engine.decode import Decoder, UniformStreams, decoding, prefill
from engine.images import bound_pixels
from engine.models import (
    Encoder,
    banned_token_ids,
    end_token_ids,
    extend,
    load_model,
    load_processor,
    tokenizer_of,
)
from engine.questions import Question
from rewards import JUDGE_MAX_NEW_TOKENS, JUDGE_TEMPERATURE

# Finished rows are dropped once they are 1/8 of the batch: a drop copies the cache.
DROP_SHARE = 8
LOOK_EVERY = {"cuda": 16}  # steps between two looks at the tokens; elsewhere 1


@dataclass(frozen=True)
class Sampling:
    """Decoding settings. The defaults are those of training rollouts: temperature 1, nothing cut
    off.
    """

    max_new_tokens: int = 12288
    temperature: float = 1.0  # 0 is greedy
    top_p: float = 1.0
    top_k: int = 0  # 0: off
    min_p: float = 0.0
    presence_penalty: float = (
        0.0  # subtracted once from the logit of every token already in the response
    )


def seed_of(*key) -> int:
    """A 63-bit seed from anything with a stable repr, the same on every machine and process."""
    digest = hashlib.blake2b(repr(key).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def sample_tokens(logits: torch.Tensor, uniform: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Inverse-CDF sampling. logits [B, V] (banned ones at -inf), uniform [B] in [0, 1) -> token ids
    [B].
    """
    if sampling.temperature == 0:
        return logits.argmax(-1)
    logits = logits.float() / sampling.temperature
    if sampling.top_k:
        kth = logits.topk(min(sampling.top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    probs = logits.softmax(-1)
    if sampling.min_p:
        least = sampling.min_p * probs.amax(-1, keepdim=True)
        probs = probs.masked_fill(probs < least, 0.0)
    if sampling.top_p < 1:
        ordered, order = probs.sort(-1, descending=True)
        # Keep a token if the mass before it is below top_p: the first is always kept.
        before = ordered.cumsum(-1) - ordered
        ordered[before >= sampling.top_p * ordered.sum(-1, keepdim=True)] = 0.0
        probs = torch.zeros_like(probs).scatter_(-1, order, ordered)
    cdf = probs.cumsum(-1, dtype=torch.float64)  # [B, V]
    # Strictly below the total, so that the answer is always a token of positive probability.
    target = uniform.double().clamp(max=1 - 1e-12).unsqueeze(-1) * cdf[:, -1:]
    return torch.searchsorted(cdf, target, right=True).squeeze(-1)


def until_end(tokens: list[int], ends: set[int]) -> list[int]:
    """The tokens up to the first end token, it included."""
    for i, token in enumerate(tokens):
        if token in ends:
            return tokens[: i + 1]
    return tokens


@torch.no_grad()
def generate(
    model,
    prompts: Sequence[dict[str, torch.Tensor]],
    seeds: Sequence[Sequence[int]],
    sampling: Sampling,
    end_ids: Sequence[int],
    banned_ids: Sequence[int] = (),
) -> list[list[list[int]]]:
    """Draw G rollouts for each of P prompts.

    prompts: P encoded prompts (`models.encode`). seeds: P lists of G seeds, one per rollout.
    Returns P lists of G token lists. A list ends with its end token; one without was cut at
    max_new_tokens.
    """
    device = model.get_output_embeddings().weight.device
    ends = set(end_ids)
    banned = torch.tensor(list(banned_ids), device=device, dtype=torch.long)
    groups = [len(group) for group in seeds]
    streams = UniformStreams([seed for group in seeds for seed in group], device)
    look_every = LOOK_EVERY.get(device.type, 1)

    with decoding(model):
        # One row per prompt, whose cache is then shared out to its rollouts.
        logits, *prefilled = prefill(model, prompts, device)
        decoder = Decoder(model, *prefilled, room=sampling.max_new_tokens)
        counts = torch.tensor(groups, device=device)
        index = torch.arange(len(prompts), device=device).repeat_interleave(counts)  # [B]
        decoder.keep(index)
        logits = logits[index]  # [B, V]
        seen = torch.zeros_like(logits, dtype=torch.bool) if sampling.presence_penalty else None

        rollouts: list[list[int]] = [[] for _ in range(len(index))]
        rows = list(range(len(index)))  # which rollout each row of the batch is
        drawn = []  # tokens [B] of the steps since the last look
        for step in range(1, sampling.max_new_tokens + 1):
            logits.index_fill_(1, banned, -torch.inf)
            if seen is not None:
                logits = logits - sampling.presence_penalty * seen
            tokens = sample_tokens(logits, streams.next(), sampling)  # [B]
            if seen is not None:
                seen.scatter_(1, tokens.unsqueeze(1), True)
            drawn.append(tokens)
            if step % look_every == 0 or step == sampling.max_new_tokens:
                for row, new in zip(rows, torch.stack(drawn, 1).tolist(), strict=True):
                    if not (rollouts[row] and rollouts[row][-1] in ends):
                        rollouts[row] += until_end(new, ends)
                drawn = []
                alive = [i for i, row in enumerate(rows) if rollouts[row][-1] not in ends]
                if not alive or step == sampling.max_new_tokens:
                    break
                if (len(rows) - len(alive)) * DROP_SHARE >= len(rows):
                    rows = [rows[i] for i in alive]
                    kept = torch.tensor(alive, device=device)
                    decoder.keep(kept)
                    streams.keep(kept)
                    tokens = tokens[kept]
                    if seen is not None:
                        seen = seen[kept]
            logits = decoder(tokens)

    grouped = []
    start = 0
    for size in groups:
        grouped.append(rollouts[start : start + size])
        start += size
    return grouped


@dataclass(frozen=True)
class Request:
    """One prompt to sample from. kind and uid name its random streams; the question lends its
    images.
    """

    kind: str
    uid: str
    text: str
    question: Question | None = None
    prefix: Sequence[
        int
    ] = ()  # tokens that every response is made to start with (the Prefix baseline)

    @property
    def images(self) -> int:
        return len(self.question.images) if self.question else 0


@dataclass(frozen=True)
class Reply:
    text: str  # a forced prefix included
    tokens: list[int]  # as sampled: end token included, forced prefix not
    finished: bool  # False: cut at max_new_tokens


def ask(actor, key: tuple, texts: Sequence[str]) -> list[str]:
    """One greedy reply to each text, from any actor: what the judge says (rewards.judge)."""
    sampling = Sampling(max_new_tokens=JUDGE_MAX_NEW_TOKENS, temperature=JUDGE_TEMPERATURE)
    requests = [Request("judge", str(i), text) for i, text in enumerate(texts)]
    return [reply.text for (reply,) in actor(requests, 1, sampling, key, "judge")]


def deal(items: Sequence, process: int, processes: int) -> list:
    """One process's share: 0, 1, ..., P-1, P-1, ..., 1, 0, 0, 1, ..."""
    turns = 2 * processes
    return [
        item for i, item in enumerate(items) if min(i % turns, turns - 1 - i % turns) == process
    ]


class Actor:
    """A model that answers requests: the student or an in-process teacher, on all processes
    together.

    Requests are sorted by length and cut into batches of at most `rows` rollouts, of one size and
    as many for every process. They are dealt longest first, there and back, so that no process gets
    the longer ones throughout. Which rollouts share a batch changes them by rounding alone. Every
    process gets all replies.

    template: arguments of the chat template. seconds: wall-clock time by phase is added there.
    """

    def __init__(
        self,
        model,
        processor,
        rows: int = 64,
        template: dict | None = None,
        seconds: dict | None = None,
    ):
        self.model = model
        self.processor = processor
        self.rows = rows
        self.encoder = Encoder(processor, template)
        self.end_ids = end_token_ids(model, processor)
        self.banned_ids = banned_token_ids(model, processor)
        self.seconds = {} if seconds is None else seconds
        # Mixed precision, entered for each batch.
        self.autocast: Callable[[], AbstractContextManager] = nullcontext
        # Sharded weights made whole, entered for a call: engine.update.gathered.
        self.whole_weights: Callable[[], AbstractContextManager] = nullcontext

    @classmethod
    def load(
        cls,
        path: str,
        accelerator: Accelerator,
        dtype: torch.dtype,
        pixels: tuple[int, int],
        **settings,
    ):
        """The model of a folder or hub id. pixels: least and most of an image. Raises SystemExit:
        what is missing.
        """
        try:
            processor = load_processor(path)
            if not processor.chat_template:
                raise ValueError(
                    "it has no chat template: name an instruction-tuned model, or add one to its folder"
                )
            if hasattr(processor, "image_processor"):
                bound_pixels(processor, *pixels)
            model = load_model(path, dtype).to(accelerator.device)
        except Exception as error:  # each format of weights has errors of its own
            raise SystemExit(f"the model {path!r} cannot be loaded: {error}") from error
        actor = cls(model, processor, **settings)
        actor.autocast = accelerator.autocast
        return actor

    def reply(self, request: Request, tokens: list[int]) -> Reply:
        """What these sampled tokens say."""
        text = tokenizer_of(self.processor).decode(
            [*request.prefix, *tokens], skip_special_tokens=True
        )
        return Reply(text, tokens, finished=bool(tokens) and tokens[-1] in self.end_ids)

    def draw(
        self, requests: Sequence[Request], samples: Sequence[int], sampling: Sampling, key: tuple
    ) -> list[list[Reply]]:
        """These samples of each request, on this process. Where memory runs out it goes on with
        half as many rows.
        """
        rows = len(requests) * len(samples)
        if rows > max(1, self.rows):  # in halves, by requests or else by samples
            if len(requests) > 1:
                half = len(requests) // 2
                first = self.draw(requests[:half], samples, sampling, key)
                return first + self.draw(requests[half:], samples, sampling, key)
            half = len(samples) // 2
            (first,) = self.draw(requests, samples[:half], sampling, key)
            (second,) = self.draw(requests, samples[half:], sampling, key)
            return [first + second]
        prompts = [
            extend(self.encoder(request.text, request.question), request.prefix)
            for request in requests
        ]
        seeds = [
            [seed_of(*key, request.kind, request.uid, j) for j in samples] for request in requests
        ]
        try:
            with self.autocast():
                drawn = generate(
                    self.model, prompts, seeds, sampling, self.end_ids, self.banned_ids
                )
        except RuntimeError as error:
            if rows == 1 or not should_reduce_batch_size(error):
                raise
            self.rows = rows // 2
        else:
            pairs = zip(requests, drawn, strict=True)
            return [[self.reply(request, row) for row in group] for request, group in pairs]
        clear_device_cache(garbage_collection=True)
        tqdm.write(
            f"out of memory with {rows} rollouts at a time: going on with {self.rows} (see --rollout_rows)"
        )
        return self.draw(requests, samples, sampling, key)

    def batches(
        self, requests: Sequence[Request], n: int, sampling: Sampling, key: tuple, phase: str
    ) -> Iterator[dict[int, list[Reply]]]:
        """This process's share of a call, one batch after another: {place of a request: its n
        replies}.
        """
        start = time.perf_counter()
        state = PartialState()
        order = sorted(
            range(len(requests)), key=lambda i: (requests[i].images, len(requests[i].text))
        )
        rounds = math.ceil(
            len(order) / (state.num_processes * max(1, self.rows // n))
        )  # batches on each process
        size = math.ceil(len(order) / (state.num_processes * max(1, rounds)))
        cut = [order[i : i + size] for i in range(0, len(order), max(1, size))]
        bar = tqdm(
            total=len(requests) * n,
            desc=phase,
            leave=False,
            disable=not state.is_main_process or None,
        )
        with self.whole_weights(), bar:
            for batch in deal(cut[::-1], state.process_index, state.num_processes):
                rows = self.draw([requests[i] for i in batch], range(n), sampling, key)
                yield dict(zip(batch, rows, strict=True))
                bar.update(len(batch) * n * state.num_processes)
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - start

    def gather(self, drawn: dict[int, list[Reply]], phase: str) -> list[list[Reply]]:
        """The replies that all processes have drawn, in the order of the requests."""
        start = time.perf_counter()
        replies = dict(gather_object(list(drawn.items())))
        self.rows = min(
            gather_object([self.rows])
        )  # where memory ran out on one process: batches are cut alike
        self.seconds[phase] += time.perf_counter() - start
        return [replies[i] for i in range(len(replies))]

    def __call__(
        self, requests: Sequence[Request], n: int, sampling: Sampling, key: tuple, phase: str
    ) -> list[list[Reply]]:
        """n replies to each request. key: (seed, step), with kind, uid and sample number the root
        of all randomness.
        """
        drawn: dict[int, list[Reply]] = {}
        for batch in self.batches(requests, n, sampling, key, phase):
            drawn |= batch
        return self.gather(drawn, phase)
