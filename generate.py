"""Sampling in plain PyTorch: one running batch, whose rows come and go.

Each prompt is prefilled once and its KV cache shared out to its G rollouts.

Decisions:
1. All randomness of a token comes from one uniform number per (rollout, position): the inverse of
   the cumulative distribution picks the token. A rollout has its own random stream, seeded from
   (seed, step, question, sample), so it does not depend on the batch or the number of processes.
2. Rows that have ended leave the batch, and the next rollouts take their places: no row waits for
   the longest. Tokens and lengths are recorded here, so nothing later has to guess from token
   values where a response ended.
3. The model's generation_config never decides how to sample: `Sampling` alone does.
4. Vision placeholder tokens have probability 0, here and when log-probs are computed.
5. On a GPU the host looks at the tokens every few steps only, because it has to wait for them. A
   finished row keeps sampling until the next look; those tokens are dropped.
"""

import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import gather_object
from accelerate.utils.memory import clear_device_cache
from tqdm import tqdm

from engine.decode import decoding, prefill
from engine.images import bound_pixels
from engine.linear import lighten
from engine.memory import out_of_memory
from engine.models import (
    Encoder,
    Tensors,
    banned_token_ids,
    end_token_ids,
    extend,
    load_model,
    load_processor,
    tokenizer_of,
)
from engine.questions import Question
from engine.sampling import Sampling, UniformStreams, sample_tokens
from rewards import JUDGE_MAX_NEW_TOKENS, JUDGE_TEMPERATURE

DROP_SHARE = 8  # rows that have ended leave once they are 1/8 of the batch
LOOK_EVERY = {"cuda": 16}  # steps between two looks at the tokens; elsewhere 1


@dataclass
class Draw:
    """One rollout on its way. place: of its prompt. ended: by an end token, or at its limit."""

    place: int
    seed: int
    tokens: list[int] = field(default_factory=list)
    ended: bool = False


def seed_of(*key) -> int:
    """A 63-bit seed from anything with a stable repr, the same on every machine and process."""
    text = repr(key).encode("utf-8", "surrogatepass")
    digest = hashlib.blake2b(text, digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@torch.no_grad()
def generate(
    model,
    prompts: Sequence[Tensors],
    seeds: Sequence[Sequence[int]],
    sampling: Sampling,
    end_ids: Sequence[int],
    banned_ids: Sequence[int] = (),
    rows: int | None = None,
) -> list[list[list[int]]]:
    """Draw G rollouts for each of P prompts.

    prompts: P encoded prompts (`models.encode`). seeds: P lists of G seeds, one per rollout.
    rows: rollouts at a time, at most; None: all. Which of them share a batch changes them by
    rounding alone. Returns P lists of G token lists. A list ends with its end token; one without
    was cut at max_new_tokens.
    """
    groups = [[Draw(place, seed) for seed in group] for place, group in enumerate(seeds)]
    draws = [draw for group in groups for draw in group]
    pool = Pool(model, sampling, end_ids, banned_ids, rows or len(draws))
    with decoding(model):
        for _ in pool.run(draws, prompts.__getitem__):
            pass
    return [[draw.tokens for draw in group] for group in groups]


class Pool:
    """One running batch. draws: the rollout of each row. tokens: the rows' last ones [B].

    logits: of the rows' next tokens [B, V]. recent: tokens of the steps since the last look.
    """

    def __init__(self, model, sampling: Sampling, end_ids, banned_ids, size: int):
        """size: rows, at most."""
        self.model = model
        self.sampling = sampling
        self.ends = set(end_ids)
        self.size = size
        self.device = model.get_output_embeddings().weight.device
        self.banned = torch.tensor(list(banned_ids), device=self.device, dtype=torch.long)
        self.look_every = LOOK_EVERY.get(self.device.type, 1)
        self.streams = UniformStreams([], self.device)
        self.draws: list[Draw] = []
        self.recent: list[torch.Tensor] = []

    @torch.no_grad()
    def run(
        self, draws: Sequence[Draw], prompt_of: Callable[[int], Tensors]
    ) -> Iterator[list[Draw]]:
        """All draws from start to end. Yields those that have just ended.

        prompt_of: the encoded prompt of a place, asked for when it is its turn.
        """
        waiting = deque(draws)
        while waiting or self.draws:
            self.admit(waiting, prompt_of)
            self.sample()
            if ended := self.record():
                yield ended
                self.drop()
            if self.draws:
                self.decode()

    def admit(self, waiting: deque[Draw], prompt_of: Callable[[int], Tensors]) -> None:
        """The next draws take the free rows. Each prompt is read once for all of its draws."""
        free = min(self.size - len(self.draws), len(waiting))
        if not free:
            return
        new = [waiting.popleft() for _ in range(free)]
        places = list(dict.fromkeys(draw.place for draw in new))
        prompts = [prompt_of(place) for place in places]
        logits, decoder = prefill(self.model, prompts, self.device, self.sampling.max_new_tokens)
        row_of = {place: row for row, place in enumerate(places)}
        rows = torch.tensor([row_of[draw.place] for draw in new], device=self.device)
        decoder.keep(rows)
        logits = logits[rows]
        # Tokens that are already in the response: for the presence penalty alone.
        width = logits.shape[1] if self.sampling.presence_penalty else 0
        seen = torch.zeros(len(new), width, dtype=torch.bool, device=self.device)
        if self.draws:
            decoder = self.decoder.join(decoder)
            logits = torch.cat([self.logits, logits])
            seen = torch.cat([self.seen, seen])
        self.decoder = decoder
        self.logits = logits
        self.seen = seen
        self.streams.add([draw.seed for draw in new])
        self.draws += new

    def sample(self) -> None:
        """One token for every row."""
        logits = self.logits.index_fill_(1, self.banned, -torch.inf)  # decision 4
        if self.sampling.presence_penalty:
            logits = logits - self.sampling.presence_penalty * self.seen
        self.tokens = sample_tokens(logits, self.streams.next(), self.sampling)  # [B]
        if self.sampling.presence_penalty:
            self.seen.scatter_(1, self.tokens.unsqueeze(1), True)
        self.recent.append(self.tokens)

    def record(self) -> list[Draw]:
        """Now and then, look at the tokens (decision 5). Returns the draws that have ended."""
        limit = self.sampling.max_new_tokens
        if len(self.recent) < self.look_every:
            longest = max(len(draw.tokens) for draw in self.draws if not draw.ended)
            if longest + len(self.recent) < limit:
                return []
        ended = []
        recent = torch.stack(self.recent, 1).tolist()  # of each row; here the host waits
        for draw, new in zip(self.draws, recent, strict=True):
            if draw.ended:
                continue
            draw.tokens += until_end(new, self.ends)
            draw.ended = draw.tokens[-1] in self.ends or len(draw.tokens) == limit
            if draw.ended:
                ended.append(draw)
        self.recent = []
        return ended

    def drop(self) -> None:
        """Rows that have ended leave, if they are enough."""
        alive = [row for row, draw in enumerate(self.draws) if not draw.ended]
        ended = len(self.draws) - len(alive)
        if alive and ended * DROP_SHARE < len(self.draws):
            return  # each time the cache is copied
        self.draws = [self.draws[row] for row in alive]
        rows = torch.tensor(alive, dtype=torch.long, device=self.device)
        self.decoder.keep(rows)
        self.streams.keep(rows)
        self.tokens = self.tokens[rows]
        self.seen = self.seen[rows]

    def decode(self) -> None:
        """The logits behind the rows' last tokens."""
        self.logits = self.decoder(self.tokens)


def until_end(tokens: list[int], ends: set[int]) -> list[int]:
    """The tokens up to the first end token, it included."""
    for i, token in enumerate(tokens):
        if token in ends:
            return tokens[: i + 1]
    return tokens


# ---------------------------------------------------------------- the actor


@dataclass(frozen=True)
class Request:
    """One prompt to sample from, with the question's images. kind, uid: of its random streams."""

    kind: str
    uid: str
    text: str
    question: Question | None = None
    # Tokens that every response is made to start with (the Prefix baseline).
    prefix: Sequence[int] = ()

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


class Actor:
    """A model that answers requests: the student or a local teacher, on all processes together.

    Requests are sorted by length and shared out to the processes. Each works through its share,
    longest first, with one pool of at most `rows` rollouts. Which rollouts share a batch changes
    them by rounding alone. Every process gets all replies.

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
        # Mixed precision, entered while the model computes.
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
        """The model of a folder or hub id. Raises SystemExit: what is missing.

        pixels: least and most of an image.
        """
        try:
            processor = load_processor(path)
            if not processor.chat_template:
                raise ValueError(
                    "it has no chat template: "
                    "name an instruction-tuned model, or add one to its folder"
                )
            if hasattr(processor, "image_processor"):
                bound_pixels(processor, *pixels)
            model = load_model(path, dtype).to(accelerator.device)
            lighten(model)
        except Exception as error:  # each format of weights has errors of its own
            raise SystemExit(f"the model {path!r} cannot be loaded: {error}") from error
        actor = cls(model, processor, **settings)
        actor.autocast = accelerator.autocast
        return actor

    def __call__(
        self, requests: Sequence[Request], n: int, sampling: Sampling, key: tuple, phase: str
    ) -> list[list[Reply]]:
        """n replies to each request.

        key: (seed, step), with kind, uid and sample number the root of all randomness.
        """
        drawn: dict[int, list[Reply]] = {}
        for some in self.batches(requests, n, sampling, key, phase):
            drawn |= some
        return self.gather(drawn, phase)

    def batches(
        self, requests: Sequence[Request], n: int, sampling: Sampling, key: tuple, phase: str
    ) -> Iterator[dict[int, list[Reply]]]:
        """This process's share of a call, as it is drawn: {place of a request: its n replies}."""
        start = time.perf_counter()
        state = PartialState()
        lengths = [(request.images, len(request.text)) for request in requests]
        order = sorted(range(len(requests)), key=lengths.__getitem__, reverse=True)
        groups = {}
        for place in order[state.process_index :: state.num_processes]:
            root = (*key, requests[place].kind, requests[place].uid)
            groups[place] = [Draw(place, seed_of(*root, sample)) for sample in range(n)]
        hidden = None if state.is_main_process else True  # None: shown on a terminal only
        bar = tqdm(total=len(requests) * n, desc=phase, leave=False, disable=hidden)
        with self.whole_weights(), bar:
            for ended in self.draw(requests, groups, sampling):
                bar.update(len(ended) * state.num_processes)
                places = {draw.place for draw in ended}
                whole = [x for x in places if all(draw.ended for draw in groups[x])]
                if whole:
                    yield {x: self.replies(requests[x], groups[x]) for x in whole}
        self.seconds.setdefault(phase, 0.0)
        self.seconds[phase] += time.perf_counter() - start

    def draw(
        self, requests: Sequence[Request], groups: dict[int, list[Draw]], sampling: Sampling
    ) -> Iterator[list[Draw]]:
        """All draws, those first that end first. Where memory runs out: on with half the rows."""

        def prompt_of(place: int) -> Tensors:
            request = requests[place]
            return extend(self.encoder(request.text, request.question), request.prefix)

        waiting = [draw for group in groups.values() for draw in group]
        while waiting:
            rows = min(self.rows, len(waiting))
            pool = Pool(self.model, sampling, self.end_ids, self.banned_ids, rows)
            running = pool.run(waiting, prompt_of)
            del pool  # its memory goes with the run
            try:
                while ended := self.proceed(running):
                    yield ended
            except RuntimeError as error:
                if rows == 1 or not out_of_memory(error):
                    raise
                self.rows = rows // 2
            # Only after an error: these begin again, with the same streams and so the same tokens.
            waiting = [draw for draw in waiting if not draw.ended]
            for draw in waiting:
                draw.tokens = []
            if waiting:
                clear_device_cache(garbage_collection=True)
                tqdm.write(
                    f"out of memory with {rows} rollouts at a time: "
                    f"going on with {self.rows} (see --rollout_rows)"
                )

    def proceed(self, running: Iterator[list[Draw]]) -> list[Draw] | None:
        """The next draws that end; None where there are no more.

        Nothing of this may last while the caller of `batches` works: mixed precision, eval mode.
        """
        with self.autocast(), decoding(self.model):
            return next(running, None)

    def replies(self, request: Request, draws: Sequence[Draw]) -> list[Reply]:
        """What the sampled tokens say."""
        tokenizer = tokenizer_of(self.processor)
        found = []
        for draw in draws:
            tokens = [*request.prefix, *draw.tokens]
            text = tokenizer.decode(tokens, skip_special_tokens=True)
            finished = draw.tokens[-1] in self.end_ids
            found.append(Reply(text, draw.tokens, finished))
        return found

    def gather(self, drawn: dict[int, list[Reply]], phase: str) -> list[list[Reply]]:
        """The replies that all processes have drawn, in the order of the requests."""
        start = time.perf_counter()
        replies = dict(gather_object(list(drawn.items())))
        self.seconds[phase] += time.perf_counter() - start
        return [replies[i] for i in range(len(replies))]
