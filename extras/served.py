"""A teacher behind a URL: any OpenAI-compatible chat server (vLLM, SGLang, `transformers serve`) as an actor.

Decisions:
1. n samples are n requests, each with its own seed: servers disagree on what `n` with a seed means, or ignore `n`.
2. Every sampling setting is sent, also those that are off: servers fill gaps from the model's generation_config, which
   often has a top-k. vLLM and SGLang take top_k = -1; `transformers serve` takes a generation_config: see `check`.
3. What may pass is tried again after 1, 2, 4, 8 seconds, or after what Retry-After says: no connection, 408, 429, 5xx,
   a broken or unreadable answer. Another 4xx is final.
4. A request that fails for good gives an empty, unfinished reply and is counted, and the step goes on. A call gives up
   what is left when nothing has come for `timeout` seconds. The next call of the step waits a tenth of that, so that a
   server that hangs costs about one time-out per step. A signal ends the waiting too, and with it the step.
5. A reply is cut to 16 characters for each token that was asked for, then to these tokens, as the student's tokenizer
   counts them, and 16 for the tags of thinking. An answer much longer than such a reply is not read to its end.
6. Thinking that the server has split off goes back in front of a rollout: it is part of the trace. Summaries, hints and
   verdicts do not think, for want of tokens: they get enable_thinking = False, unless `check` finds that refused.
"""

import asyncio
import base64
import io
import json
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

from engine.images import chat
from engine.models import break_tokens, special_tokens, tokenizer_of
from engine.questions import open_images
from engine.screen import print_main
from generate import Actor, Reply, Request, Sampling, seed_of
from rewards import grade

MAX_DELAY, LOOK = 60.0, 0.5  # seconds, at most: between two tries; between two looks at the requests under way
CHARACTERS, SPARE_TOKENS = 16, 16  # of a reply: for each token that was asked for; beyond these tokens (decision 5)
ENVELOPE, CHARACTER_BYTES = 2**20, 12  # of an answer, at most: bytes around the reply; bytes of a character as JSON
EMPTY_REPLY, CUT, GIVEN_UP = Reply("", [], finished=False), "longer than asked for", "given up: the server is silent"
Rows = list[list[Reply]]  # the replies to each request


def server_works(cause: str) -> bool:
    """Does the server work? So it does where it refuses a request."""
    return cause in ("", CUT) or cause.startswith("HTTP 4")


def read_reply(answer: bytes, thinking: bool, most: int) -> Reply:
    """At most `most` characters of a chat completion (thinking: decision 6). Raises some error if it has no text."""
    choice = json.loads(answer)["choices"][0]
    message, reason = choice["message"], choice.get("finish_reason")
    text, thought = message.get("content"), message.get("reasoning_content") or message.get("reasoning")
    if text is None and (thought or reason == "length"):  # the server stopped it while it thought
        text = ""
    if thought and thinking:
        text = "<think>" + thought + (text and "</think>" + text)
    text.encode()  # half a surrogate pair is no text: it would stop the tokenizer and the dumps
    return Reply(text[:most], [], finished=reason == "stop")


@dataclass(eq=False)
class ServedActor:
    """A served model that answers requests with the call of generate.Actor; replies have no tokens."""

    url: str  # with its /v1
    model: str | None = None  # the name under which it is served; None: `check` asks the server
    processor: object = None  # the student's: its special tokens are broken up in what is sent, its tokens counted
    pixels: tuple[int | None, int | None] = (None, None)  # of an image that is sent; the server's bounds come after
    template: dict = field(default_factory=dict)  # arguments of the chat template
    concurrency: int = 64  # requests under way at a time, over all processes
    timeout: float = 900.0  # seconds that a call waits while nothing comes
    delays: Sequence[float] = (1.0, 2.0, 4.0, 8.0)  # seconds before each further try
    seconds: dict[str, float] = field(default_factory=dict)  # wall-clock time by phase
    stop: threading.Event = field(default_factory=threading.Event)  # set by a signal

    def __post_init__(self):
        self.url, key = self.url.rstrip("/"), os.environ.get("TEACHER_API_KEY") or "none"
        self.special_tokens = special_tokens(self.processor) if self.processor else []
        self.takes_no_thinking = self.takes_top_k = True  # decisions 6 and 2
        self.failures = self.cut = 0  # so far, on all processes: requests that failed for good, replies that were cut
        self.silent: set[tuple] = set()  # steps (seed, step) in which calls went unanswered, since one that did not
        self.memo: dict[int, Future] = {}  # requests begun before their call, by seed
        self.turns = asyncio.Semaphore(max(1, self.concurrency // PartialState().num_processes))
        headers, no_limits = {"Authorization": f"Bearer {key}"}, httpx.Limits()  # else 100 connections at most
        self.client = httpx.AsyncClient(headers=headers, limits=no_limits, timeout=None)
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
        except Exception:  # some servers list only what they have downloaded, or fail at it
            models = f"no list at {self.url}/models (HTTP {response.status_code})"
        if self.model is None and (isinstance(models, str) or len(models) != 1):
            raise ConnectionError(f"{self.url}: name the model with --teacher_model; models served: {models}")
        self.model, sampling = self.model or models[0], Sampling(max_new_tokens=1)
        for self.takes_no_thinking, self.takes_top_k in ((True, True), (True, False), (False, True), (False, False)):
            seeds = self.begin(Request("check", "0", "Say yes."), 1, sampling, ())
            ((_, cause),) = self.wait_for(seeds, self.timeout, sampling, "check")
            if not cause.startswith(("HTTP 400", "HTTP 422")):
                break
        if cause not in ("", CUT):
            raise ConnectionError(f"{self.url} (model {self.model}): {cause}; models served: {models}")

    def body(self, request: Request, sampling: Sampling) -> dict:
        """What is sent for a request, all but the seed (decisions 2 and 6)."""
        question, parts = request.question, []
        messages = chat(request.text, (), question.system, question.turns) if question else chat(request.text)
        for message in messages:
            message["content"] = break_tokens(message["content"], self.special_tokens)
        for image in open_images(question, *self.pixels) if request.images else ():
            image.save(file := io.BytesIO(), "PNG", compress_level=1)  # nothing is lost
            url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
            parts.append({"type": "image_url", "image_url": {"url": url}})
        if parts:
            messages[-1]["content"] = [*parts, {"type": "text", "text": messages[-1]["content"]}]
        body = dict(model=self.model, messages=messages, max_tokens=sampling.max_new_tokens, top_p=sampling.top_p)
        body |= dict(temperature=sampling.temperature, presence_penalty=sampling.presence_penalty)
        more = dict(top_k=sampling.top_k, min_p=sampling.min_p, repetition_penalty=1.0)
        config = {"generation_config": json.dumps({"do_sample": sampling.temperature > 0, **more})}
        body |= more | {"top_k": sampling.top_k or -1} if self.takes_top_k else config
        template = self.template | ({} if question or not self.takes_no_thinking else {"enable_thinking": False})
        return body | ({"chat_template_kwargs": template} if template else {})

    async def ask(self, body: Callable[[], dict], seed: int, thinking: bool) -> tuple[Reply, str]:
        """(reply, ""), or (an empty one, the cause) after the last try. `body` is called when its turn comes."""
        async with self.turns:
            sent, after = body() | {"seed": seed}, ""
            most = sent["max_tokens"] * CHARACTERS
            for delay in (0.0, *self.delays):
                await asyncio.sleep(min(max(delay, float(after) if after.isdecimal() else 0.0), MAX_DELAY))
                after, answer = "", b""
                try:
                    async with self.client.stream("POST", f"{self.url}/chat/completions", json=sent) as response:
                        async for part in response.aiter_bytes():
                            answer += part
                            if len(answer) > ENVELOPE + most * CHARACTER_BYTES:
                                return EMPTY_REPLY, f"an answer of more than {len(answer)} bytes"
                    if response.is_success:
                        return read_reply(answer, thinking, most + 1), ""  # one more, for `shorten` to see the cut
                    cause = f"HTTP {response.status_code}"
                    if response.status_code < 500 and response.status_code not in (408, 429):
                        break
                    after = response.headers.get("retry-after", "")
                except Exception as error:  # no connection, or an answer of another form
                    cause = f"{type(error).__name__}: {error}"
        return EMPTY_REPLY, f"{cause}: {answer[:200].decode(errors='replace')}"

    def begin(self, request: Request, n: int, sampling: Sampling, key: tuple) -> list[int]:
        """Send a request n times, unless it has been sent. Returns n seeds: the memo holds the future of each."""
        seeds = [seed_of(*key, request.kind, request.uid, j) for j in range(n)]
        body = cache(partial(self.body, request, sampling))  # images are encoded once, when the first turn comes
        for seed in (seed for seed in seeds if seed not in self.memo):
            asked = self.ask(body, seed >> 32, thinking=request.question is not None)  # some servers take only 31 bits
            self.memo[seed] = asyncio.run_coroutine_threadsafe(asked, self.loop)
        return seeds

    def wait_for(self, seeds: list[int], patience: float, sampling: Sampling, phase: str) -> list[tuple[Reply, str]]:
        """What `ask` returns for each, cut to what was asked for. Raises InterruptedError on all processes (`stop`)."""
        taken = {seed: self.memo.pop(seed) for seed in set(seeds)}  # a question may be there twice
        sent = [taken[seed] for seed in seeds]
        pending, last = set(sent), time.monotonic()
        with tqdm(total=len(sent), desc=phase, leave=False, disable=not PartialState().is_main_process or None) as bar:
            while pending and not self.stop.is_set() and time.monotonic() - last < patience:
                done, pending = wait(pending, timeout=LOOK)
                if any(server_works(future.result()[1]) for future in done):
                    last = time.monotonic()
                bar.update(len(done))
        if any(gather_object([self.stop.is_set() and not all(future.done() for future in sent)])):
            raise InterruptedError(f"stopped while {self.url} was asked")
        return [(EMPTY_REPLY, GIVEN_UP) if f.cancel() else self.shorten(*f.result(), sampling.max_new_tokens) for f in sent]

    def shorten(self, reply: Reply, cause: str, tokens: int) -> tuple[Reply, str]:
        """A reply that is longer than asked for is cut (decision 5)."""
        text, tokenizer = reply.text[: tokens * CHARACTERS], tokenizer_of(self.processor)
        ids = tokenizer(text, add_special_tokens=False, verbose=False).input_ids if tokenizer else []
        if len(ids) > tokens + SPARE_TOKENS:
            text = tokenizer.decode(ids[: tokens + SPARE_TOKENS]).rstrip("\ufffd")  # half of a character
        return (reply, cause) if text == reply.text else (Reply(text, [], finished=False), CUT)

    def __call__(self, requests: Sequence[Request], n: int, sampling: Sampling, key: tuple, phase: str) -> Rows:
        """n replies to each request, as generate.Actor gives them. Nothing that the server does raises an error."""
        start, state, step = time.perf_counter(), PartialState(), key[:2]
        # Each process asks what it has begun, and its share of what nobody has begun.
        mine = [i for i, r in enumerate(requests) if seed_of(*key, r.kind, r.uid, 0) in self.memo]
        begun = set(gather_object(mine))
        mine += [i for i in range(len(requests)) if i not in begun][state.process_index :: state.num_processes]
        seeds = {(i, j): seed for i in mine for j, seed in enumerate(self.begin(requests[i], n, sampling, key))}
        patience = self.timeout / (10 if step in self.silent else 1)
        drawn = self.wait_for(list(seeds.values()), patience, sampling, phase)
        answers = dict(gather_object(list(zip(seeds, drawn, strict=True))))  # the same on all processes from here on
        causes = Counter(cause for _, cause in answers.values())
        if GIVEN_UP in causes or (causes and not any(map(server_works, causes))):
            self.silent.add(step)
        elif causes:
            self.silent.clear()
        self.cut += causes.pop(CUT, 0)
        del causes[""]  # what is left has failed
        self.failures += causes.total()
        if causes:
            failed, often = f"{causes.total()} of {len(answers)}", causes.most_common(1)[0][0]
            print_main(f"{phase}: {failed} requests to {self.url} (model {self.model}) failed, most often: {often}")
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - start
        return [[answers[i, j][0] for j in range(n)] for i in range(len(requests))]


def overlapped(student: Actor, teacher: ServedActor, first_round: int, teacher_n: int, requests: Sequence[Request],
               n: int, sampling: Sampling, key: tuple, phase: str) -> Rows:  # fmt: skip
    """The student's call, beside whose plain rollouts the teacher already works; results are the same.

    After each batch the teacher is asked for teacher_n rollouts of the all-wrong questions that will be among the
    first_round questions of zppo.select's first round. It ranks them in the same way. A question that is free-form or
    still to come counts with the share of all-wrong ones so far: little is begun for nothing.
    """
    if phase != "rollout":
        return student(requests, n, sampling, key, phase)
    while teacher.memo:  # begun for nothing in the step before
        teacher.memo.popitem()[1].cancel()
    ranking = sorted(range(len(requests)), key=lambda i: seed_of(*key, "tie", requests[i].uid))
    drawn, wrong = {}, {}  # by index of the request: replies; are they all wrong?
    for batch in student.batches(requests, n, sampling, key, phase):
        drawn |= batch
        for i, row in batch.items():
            if not requests[i].question.free_form:  # else the judge decides
                wrong[i] = not any(grade(reply.text, requests[i].question.answer) for reply in row)
        share = (2 + sum(wrong.values())) / (2 + len(wrong))  # careful while few are known
        before = 0.0  # all-wrong questions that are ranked before this one, as expected
        for i in ranking:
            if wrong.get(i) and before < first_round:
                teacher.begin(replace(requests[i], kind="teacher"), teacher_n, sampling, key)
            before += wrong.get(i, share)
    return student.gather(drawn, phase)
