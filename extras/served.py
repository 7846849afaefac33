"""A teacher behind a URL: any OpenAI-compatible chat server (vLLM, SGLang, `transformers serve`) as an actor.

Decisions:
1. n samples are n requests, each with its own seed: servers disagree on what `n` with a seed means, or ignore `n`.
2. Every sampling setting is sent, also those that are off: servers fill gaps from the model's generation_config, which
   often has a top-k. vLLM and SGLang take top_k = -1; `transformers serve` takes a generation_config: see `check`.
3. What may pass is tried again after 1, 2, 4, 8 seconds, or after what Retry-After says: no connection, 408, 429, 5xx,
   a broken or unreadable answer. Another 4xx would come again: the request is not tried again.
4. A request that fails for good gives an empty, unfinished reply and is counted, and the step goes on. A call gives up
   what is left when nothing has come for `timeout` seconds. The next call of the step waits a tenth of that, so that a
   server that hangs costs about one time-out per step.
5. Thinking that the server has split off goes back in front of a rollout: it is part of the trace. Summaries, hints and
   verdicts do not think, for want of tokens: they get enable_thinking = False, unless `check` finds that refused.
"""

import asyncio
import base64
import io
import json
import math
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field, replace
from functools import cache, partial

import httpx
from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm import tqdm

from engine.models import break_tokens, special_tokens
from engine.questions import open_images
from generate import Actor, Reply, Request, Sampling, seed_of
from rewards import grade

MAX_DELAY, LOOK = 60.0, 0.5  # seconds, at most: between two tries; between two looks at the requests under way
UNREADABLE = (ValueError, LookupError, TypeError, AttributeError, RecursionError)  # raised by an answer of another form
LOST, GIVEN_UP = Reply("", [], finished=False), "given up: the server is silent"
Rows = list[list[Reply]]  # the replies to each request


def heard(cause: str) -> bool:
    """Does the server work? So it does where it refuses a request."""
    return cause == "" or cause.startswith("HTTP 4")


def read_reply(answer: bytes, thinking: bool) -> Reply:
    """The first choice of a chat completion (thinking: decision 5). Raises UNREADABLE if it has no text."""
    choice = json.loads(answer)["choices"][0]
    message, reason = choice["message"], choice.get("finish_reason")
    text, thought = message.get("content"), message.get("reasoning_content") or message.get("reasoning")
    if text is None and (thought or reason == "length"):  # the server stopped it while it thought
        text = ""
    if thought and thinking:
        text = "<think>" + thought + (text and "</think>" + text)
    text.encode()  # half a surrogate pair is no text: it would stop the tokenizer and the dumps
    return Reply(text, [], finished=reason == "stop")


@dataclass(eq=False)
class ServedActor:
    """A served model that answers requests with the call of generate.Actor; replies have no tokens."""

    url: str  # with its /v1
    model: str | None = None  # the name under which it is served; None: `check` asks the server
    processor: object = None  # the student's: its special tokens are broken up in what is sent
    pixels: tuple[int | None, int | None] = (None, None)  # of an image that is sent; the server's bounds come after
    template: dict = field(default_factory=dict)  # arguments of the chat template
    concurrency: int = 64  # requests under way at a time, over all processes
    timeout: float = 900.0  # seconds that a call waits while nothing comes
    delays: Sequence[float] = (1.0, 2.0, 4.0, 8.0)  # seconds before each further try
    seconds: dict[str, float] = field(default_factory=dict)  # wall-clock time by phase

    def __post_init__(self):
        self.url, key = self.url.rstrip("/"), os.environ.get("TEACHER_API_KEY") or "none"
        self.special_tokens = special_tokens(self.processor) if self.processor else []
        self.takes_no_thinking = self.takes_top_k = True  # decisions 5 and 2
        self.failures = 0  # requests that failed for good so far, on all processes
        self.silent: set[tuple] = set()  # steps (seed, step) in which calls went unanswered, since one that did not
        self.memo: dict[int, Future] = {}  # requests begun before their call, by seed
        self.turns = asyncio.Semaphore(max(1, self.concurrency // PartialState().num_processes))
        headers, limits = {"Authorization": f"Bearer {key}"}, httpx.Limits()  # httpx's own: 100 connections
        self.client = httpx.AsyncClient(headers=headers, limits=limits, timeout=None)
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()

    def check(self) -> None:
        """One small request before training. Raises ConnectionError: no server, unknown model, settings refused."""
        PartialState().print(f"waiting for {self.url} to answer, {self.timeout:g} seconds at most")
        try:
            response = httpx.get(f"{self.url}/models", headers=self.client.headers, timeout=min(30, self.timeout))
            models = [entry["id"] for entry in response.json()["data"]]
        except (httpx.RequestError, httpx.InvalidURL) as error:
            raise ConnectionError(f"{self.url}: no server ({type(error).__name__}: {error})") from error
        except UNREADABLE:  # some servers list only what they have downloaded, or fail at it
            models = f"no list at {self.url}/models (HTTP {response.status_code})"
        if self.model is None and (isinstance(models, str) or len(models) != 1):
            raise ConnectionError(f"{self.url}: name the model with --teacher_model; models served: {models}")
        self.model = self.model or models[0]
        for self.takes_no_thinking, self.takes_top_k in ((True, True), (True, False), (False, True), (False, False)):
            (seed,) = self.begin(Request("check", "0", "Say yes."), 1, Sampling(max_new_tokens=1), ())
            ((_, cause),) = self.wait_for([self.memo.pop(seed)], self.timeout, "check")
            if not cause.startswith(("HTTP 400", "HTTP 422")):
                break
        if cause:
            raise ConnectionError(f"{self.url} (model {self.model}): {cause}; models served: {models}")

    def body(self, request: Request, sampling: Sampling) -> dict:
        """What is sent for a request, all but the seed (decisions 2 and 5)."""
        content: str | list = break_tokens(request.text, self.special_tokens)
        if request.images:
            parts = []
            for image in open_images(request.question, *self.pixels):
                image.save(file := io.BytesIO(), "PNG", compress_level=1)  # nothing is lost
                url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
                parts.append({"type": "image_url", "image_url": {"url": url}})
            content = [*parts, {"type": "text", "text": content}]
        body = {"model": self.model, "messages": [{"role": "user", "content": content}]}
        body |= {"max_tokens": sampling.max_new_tokens, "presence_penalty": sampling.presence_penalty}
        body |= {"temperature": sampling.temperature, "top_p": sampling.top_p}
        more = {"top_k": sampling.top_k, "min_p": sampling.min_p, "repetition_penalty": 1.0}
        if self.takes_top_k:
            body |= more | {"top_k": sampling.top_k or -1}
        else:
            body["generation_config"] = json.dumps({"do_sample": sampling.temperature > 0, **more})
        off = {"enable_thinking": False} if self.takes_no_thinking and not request.question else {}
        if template := self.template | off:
            body["chat_template_kwargs"] = template
        return body

    async def ask(self, body: Callable[[], dict], seed: int, thinking: bool) -> tuple[Reply, str]:
        """(reply, ""), or (an empty one, the cause) after the last try. `body` is called when its turn comes."""
        async with self.turns:
            sent, after = body() | {"seed": seed}, ""
            for delay in (0.0, *self.delays):
                await asyncio.sleep(min(max(delay, float(after) if after.isdecimal() else 0.0), MAX_DELAY))
                after, answer = "", b""
                try:
                    response = await self.client.post(f"{self.url}/chat/completions", json=sent)
                    answer = response.content
                    if response.is_success:
                        return read_reply(answer, thinking), ""
                    cause = f"HTTP {response.status_code}: {answer[:200].decode(errors='replace')}"
                    if response.status_code < 500 and response.status_code not in (408, 429):
                        break
                    after = response.headers.get("retry-after", "")
                except (httpx.RequestError, *UNREADABLE) as error:
                    cause = f"{type(error).__name__}: {error} {answer[:200].decode(errors='replace')}"
        return LOST, cause

    def begin(self, request: Request, n: int, sampling: Sampling, key: tuple) -> list[int]:
        """Send a request n times, unless it has been sent. Returns n seeds: the memo holds the future of each."""
        seeds = [seed_of(*key, request.kind, request.uid, j) for j in range(n)]
        body = cache(partial(self.body, request, sampling))  # images are encoded once, when the first turn comes
        for seed in seeds:
            if seed not in self.memo:  # some servers take seeds of 31 bits; rollouts have their question
                asked = self.ask(body, seed >> 32, thinking=request.question is not None)
                self.memo[seed] = asyncio.run_coroutine_threadsafe(asked, self.loop)
        return seeds

    def wait_for(self, sent: list[Future], patience: float, phase: str) -> list[tuple[Reply, str]]:
        """What `ask` returns for each. What is left when nothing has come for `patience` seconds is given up."""
        pending, last = set(sent), time.monotonic()
        with tqdm(total=len(sent), desc=phase, leave=False, disable=not PartialState().is_main_process or None) as bar:
            while pending and time.monotonic() - last < patience:
                done, pending = wait(pending, timeout=LOOK)
                if any(heard(future.result()[1]) for future in done):
                    last = time.monotonic()
                bar.update(len(done))
        return [(LOST, GIVEN_UP) if future.cancel() else future.result() for future in sent]

    def __call__(self, requests: Sequence[Request], n: int, sampling: Sampling, key: tuple, phase: str) -> Rows:
        """n replies to each request, as generate.Actor gives them. Nothing that the server does raises an error."""
        start, state, step = time.perf_counter(), PartialState(), key[:2]
        # Each process asks what it has begun, and its share of what nobody has begun.
        mine = [i for i, r in enumerate(requests) if seed_of(*key, r.kind, r.uid, 0) in self.memo]
        begun = set(gather_object(mine))
        mine += [i for i in range(len(requests)) if i not in begun][state.process_index :: state.num_processes]
        seeds = {(i, j): seed for i in mine for j, seed in enumerate(self.begin(requests[i], n, sampling, key))}
        patience = self.timeout / (10 if step in self.silent else 1)
        drawn = self.wait_for([self.memo.pop(seed) for seed in seeds.values()], patience, phase)
        answers = dict(gather_object(list(zip(seeds, drawn, strict=True))))  # the same on all processes from here on
        causes = Counter(cause for _, cause in answers.values())
        if GIVEN_UP in causes or (causes and not any(map(heard, causes))):
            self.silent.add(step)
        elif causes:
            self.silent.clear()
        del causes[""]  # what is left has failed
        self.failures += causes.total()
        if causes and state.is_main_process:
            failed, often = f"{causes.total()} of {len(answers)}", causes.most_common(1)[0][0]
            tqdm.write(f"{phase}: {failed} requests to {self.url} (model {self.model}) failed, most often: {often}")
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - start
        return [[answers[i, j][0] for j in range(n)] for i in range(len(requests))]


def overlapped(
    student: Actor, teacher: ServedActor, first_round: int, teacher_n: int,
    requests: Sequence[Request], n: int, sampling: Sampling, key: tuple, phase: str,
) -> Rows:  # fmt: skip
    """The student's call, beside whose plain rollouts the teacher already works; results are the same.

    Questions that a batch leaves all wrong are at the head of the ranking: the teacher is asked at once for teacher_n
    rollouts of each, for first_round questions over all processes. Free-form ones wait, since the judge decides.
    """
    if phase != "rollout":
        return student(requests, n, sampling, key, phase)
    while teacher.memo:  # begun for nothing in the step before
        teacher.memo.popitem()[1].cancel()
    drawn, room = {}, math.ceil(first_round / PartialState().num_processes)
    for batch in student.batches(requests, n, sampling, key, phase):
        drawn |= batch
        for i, row in batch.items():
            question = requests[i].question
            right = question.free_form or any(grade(reply.text, question.answer) for reply in row)
            if not right and len(teacher.memo) < room * teacher_n:
                teacher.begin(replace(requests[i], kind="teacher"), teacher_n, sampling, key)
    return student.gather(drawn, phase)
