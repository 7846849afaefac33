"""A teacher behind a URL: any OpenAI-compatible chat server (vLLM, SGLang, ...) as an actor.

Four parts: the actor, which asks for many replies on all processes; patience, which says how long a
call waits; one request, which ends with a reply or with the cause why there is none; the teacher's
work beside the student's.

Decisions:
1. n samples are n requests, each with its own seed: servers disagree on what `n` with a seed means,
   or ignore `n`.
2. Every sampling setting is sent, also those that are off: servers fill gaps from the model's
   generation_config, which often has a top-k. vLLM and SGLang take top_k = -1; `transformers serve`
   takes a generation_config: see `check`.
3. What may pass is tried again after 1, 2, 4, 8 seconds, or after what Retry-After says: no
   connection, 408, 429, 5xx, a broken or unreadable answer. Another 4xx is final.
4. A request that fails for good gives an empty, unfinished reply and is counted, and the step goes
   on. A call gives up what is left when nothing has come for `timeout` seconds. The step's next
   call waits a tenth of `timeout`, so that a server that hangs costs about one time-out per step. A
   step without any reply is silent: train.py ends a run after three. A signal ends the waiting too,
   and with it the step.
5. A reply is cut to 16 characters for each token that was asked for, then to these tokens, as the
   student's tokenizer counts them, and 16 for the tags of thinking. An answer much longer than such
   a reply is not read to its end.
6. Thinking that the server has split off goes back in front of a rollout: it is part of the trace.
   Summaries, hints and verdicts do not think, for want of tokens: they get enable_thinking = False,
   unless `check` finds that refused. What some servers split off even then is the reply.
7. The key is in TEACHER_API_KEY alone. No message shows it, also where a server repeats it.
8. The way to this machine itself has no proxy. Elsewhere HTTP_PROXY, ALL_PROXY, NO_PROXY, ... hold.
"""

import asyncio
import base64
import io
import json
import os
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import dataclass, field, replace
from email.utils import parsedate_to_datetime
from functools import cache, partial
from typing import NamedTuple

import httpx
from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm import tqdm

from engine.images import chat
from engine.models import break_tokens, special_tokens, tokenizer_of
from engine.questions import Question, open_images
from engine.screen import print_main
from generate import Actor, Reply, Request, Sampling, seed_of
from rewards import grade

MAX_DELAY = 60.0  # seconds between two tries, at most
LOOK = 0.5  # seconds between two looks at the requests under way, at most
CHARACTERS = 16  # of a reply, for each token that was asked for (decision 5)
SPARE_TOKENS = 16  # of a reply, beyond those that were asked for (decision 5)
ENVELOPE = 2**20  # bytes of an answer around its reply, at most
CHARACTER_BYTES = 12  # of a character as JSON, at most
FINISHED = ("stop", "eos_token", "stop_sequence", "end_turn")  # servers' names for it
EMPTY_REPLY = Reply("", [], finished=False)
CUT = "longer than asked for"
GIVEN_UP = "given up: the server is silent"
LOOPBACK = ("localhost", "127.0.0.1", "0.0.0.0", "::1")  # names of this machine itself
Rows = list[list[Reply]]  # the replies to each request


class Answer(NamedTuple):
    """What came of one request."""

    reply: Reply
    cause: str  # why there is no reply, or CUT; "" if nothing went wrong


@dataclass(eq=False)
class ServedActor:
    """A served model, called as a generate.Actor is. Its replies have no tokens."""

    url: str  # with its /v1
    model: str | None = None  # the name under which it is served; None: `check` asks the server
    # The student's: its special tokens are broken up in what is sent, and its tokens are counted.
    processor: object = None
    # Of an image that is sent, at least and at most; the server's own bounds come after.
    pixels: tuple[int | None, int | None] = (None, None)
    template: dict = field(default_factory=dict)  # arguments of the chat template
    concurrency: int = 64  # requests under way at a time, over all processes
    timeout: float = 900.0  # seconds that a call waits while nothing comes
    delays: Sequence[float] = (1.0, 2.0, 4.0, 8.0)  # seconds before each further try
    seconds: dict[str, float] = field(default_factory=dict)  # time by phase
    stop: threading.Event = field(default_factory=threading.Event)  # set by a signal
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self):
        self.url = self.url.rstrip("/")
        self.special_tokens = special_tokens(self.processor) if self.processor else []
        self.takes_no_thinking = True  # decision 6
        self.takes_top_k = True  # decision 2
        self.failures = 0  # requests that failed for good, so far, on all processes
        self.cut = 0  # replies that were cut, so far, on all processes
        self.memo: dict[int, Future] = {}  # requests begun before their call, by seed
        self.patience = Patience(self.timeout, self.clock)
        at_a_time = max(1, self.concurrency // PartialState().num_processes)
        self.connection = Connection(self.url, self.delays, at_a_time)

    @property
    def silent(self) -> set[tuple]:
        """The last steps (seed, step), as far as they had no reply at all."""
        return self.patience.silent

    def check(self, most: int = 1, question: Question | None = None) -> None:
        """One request before training, and one with the images of a question, if it is given.

        most: tokens of a reply, as training asks for them: a server may not have as many.
        Raises ConnectionError: no server, unknown model, settings or images refused."""
        server = self.connection.name
        PartialState().print(f"waiting for {server} to answer, {self.timeout:g} seconds at most")
        models = self.connection.models(min(30, self.timeout))
        if self.model is None and (isinstance(models, str) or len(models) != 1):
            fix = "name the model with --teacher_model; models served:"
            raise ConnectionError(f"{server}: {fix} {models}")
        self.model = self.model or models[0]
        for takes in ((True, True), (True, False), (False, True), (False, False)):
            self.takes_no_thinking, self.takes_top_k = takes
            cause = self.probe(most)
            if not cause.startswith(("HTTP 400", "HTTP 422")):
                break
        if question and not cause:
            cause = self.probe(most, question)
        if cause:
            raise ConnectionError(
                f"{server} (model {self.model}): {cause}; models served: {models}"
            )

    def probe(self, most: int, question: Question | None = None) -> str:
        """The cause why one request fails, or ""."""
        sampling = Sampling(max_new_tokens=most)
        request = Request("check", "0", "Say yes.", question)
        seeds = self.begin(request, 1, sampling, ())
        (answer,) = self.wait_for(seeds, self.timeout, sampling, "check")
        return answer.cause if answer.cause != CUT else ""

    def __call__(
        self, requests: Sequence[Request], n: int, sampling: Sampling, key: tuple, phase: str
    ) -> Rows:
        """n replies to each request, as generate.Actor gives them.

        Nothing that the server does raises an error."""
        start = self.clock()
        step = key[:2]
        seeds = {}  # of this process's requests: (place, sample) -> seed
        for i in self.share_of(requests, key):
            for j, seed in enumerate(self.begin(requests[i], n, sampling, key)):
                seeds[i, j] = seed
        patience = self.patience.of(step)
        drawn = self.wait_for(list(seeds.values()), patience, sampling, phase)
        ours = list(zip(seeds, drawn, strict=True))
        answers = dict(gather_object(ours))  # from here on the same on all processes
        causes = Counter(answer.cause for answer in answers.values())
        self.patience.learn(step, causes)
        self.count(causes, phase)
        self.seconds[phase] = self.seconds.get(phase, 0.0) + self.clock() - start
        rows = []
        for i in range(len(requests)):
            rows.append([answers[i, j].reply for j in range(n)])
        return rows

    def share_of(self, requests: Sequence[Request], key: tuple) -> list[int]:
        """The places of this process's requests: those it has begun, and its share of the rest."""
        state = PartialState()
        first = [seed_of(*key, request.kind, request.uid, 0) for request in requests]
        mine = [i for i, seed in enumerate(first) if seed in self.memo]
        begun = set(gather_object(mine))
        left = [i for i in range(len(requests)) if i not in begun]
        return mine + left[state.process_index :: state.num_processes]

    def begin(self, request: Request, n: int, sampling: Sampling, key: tuple) -> list[int]:
        """Send a request n times, unless it has been sent.

        Returns n seeds: the memo holds the future of each."""
        seeds = [seed_of(*key, request.kind, request.uid, j) for j in range(n)]
        # Images are encoded once, when the first turn comes.
        body = cache(partial(self.body, request, sampling))
        thinking = request.question is not None
        for seed in seeds:
            if seed not in self.memo:
                sent = seed >> 32  # some servers take only 31 bits
                asked = self.connection.ask(body, sent, thinking)
                self.memo[seed] = self.connection.run(asked)
        return seeds

    def body(self, request: Request, sampling: Sampling) -> dict:
        """What is sent for a request, all but the seed (decisions 2 and 6)."""
        body = {
            "model": self.model,
            "messages": self.messages(request),
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "presence_penalty": sampling.presence_penalty,
        }
        more = {
            "top_k": sampling.top_k,
            "min_p": sampling.min_p,
            "repetition_penalty": 1.0,
        }
        if self.takes_top_k:
            body |= more | {"top_k": sampling.top_k or -1}
        else:
            config = {"do_sample": sampling.temperature > 0, **more}
            body["generation_config"] = json.dumps(config)
        template = dict(self.template)
        if self.takes_no_thinking and not request.question:
            template["enable_thinking"] = False
        if template:
            body["chat_template_kwargs"] = template
        return body

    def messages(self, request: Request) -> list[dict]:
        """The turns of a request, special tokens broken up; images come before the last text."""
        question = request.question
        earlier = (question.system, question.turns) if question else ()
        messages = chat(request.text, (), *earlier)
        for message in messages:
            message["content"] = break_tokens(message["content"], self.special_tokens)
        if request.images:
            text = {"type": "text", "text": messages[-1]["content"]}
            images = [image_part(image) for image in open_images(question, *self.pixels)]
            messages[-1]["content"] = [*images, text]
        return messages

    def wait_for(
        self, seeds: list[int], seconds: float, sampling: Sampling, phase: str
    ) -> list[Answer]:
        """The answer to each, cut to what was asked for. seconds: to wait while nothing comes.

        Raises InterruptedError, on all processes, where one was told to stop."""
        taken = {seed: self.memo.pop(seed) for seed in set(seeds)}  # a question may be there twice
        sent = [taken[seed] for seed in seeds]
        self.patience.wait(sent, seconds, self.stop, phase)
        stopped = self.stop.is_set() and not all(future.done() for future in sent)
        if any(gather_object([stopped])):
            raise InterruptedError(f"stopped while {self.url} was asked")
        # Backwards: who waits for a turn must not get the turn of one that is given up.
        for future in reversed(sent):
            future.cancel()
        return [self.answer_of(future, sampling.max_new_tokens) for future in sent]

    def answer_of(self, future: Future, tokens: int) -> Answer:
        """What came so far. A reply that is longer than asked for is cut (decision 5)."""
        if future.cancelled():
            return Answer(EMPTY_REPLY, GIVEN_UP)
        answer = future.result()
        text = answer.reply.text[: tokens * CHARACTERS]
        if self.processor:
            tokenizer = tokenizer_of(self.processor)
            ids = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
            most = tokens + SPARE_TOKENS
            if len(ids) > most:
                # What stays of half a character is not text.
                text = tokenizer.decode(ids[:most]).rstrip("\ufffd")
        if text == answer.reply.text:
            return answer
        return Answer(Reply(text, [], finished=False), CUT)

    def count(self, causes: Counter, phase: str) -> None:
        """Add up what failed in a call and what was cut, and say so on the screen."""
        total = causes.total()
        self.cut += causes.pop(CUT, 0)
        del causes[""]  # what is left has failed
        failed = causes.total()
        self.failures += failed
        if failed:
            ((often, _),) = causes.most_common(1)
            server = f"{self.connection.name} (model {self.model})"
            print_main(
                f"{phase}: {failed} of {total} requests to {server} failed, most often: {often}"
            )


# ---------------------------------------------------------------- patience


class Patience:
    """How long calls wait for a server (decision 4). clock: seconds from any beginning."""

    def __init__(self, timeout: float, clock: Callable[[], float]):
        self.timeout = timeout
        self.clock = clock
        self.hung: tuple | None = None  # the step (seed, step) whose last call gave up
        self.answered: tuple | None = None  # the last step with a reply
        self.silent: set[tuple] = set()  # the steps since then, as far as the server was asked

    def of(self, step: tuple) -> float:
        """Seconds that a call waits while nothing comes."""
        return self.timeout / 10 if step == self.hung else self.timeout

    def wait(self, sent: list[Future], seconds: float, stop: threading.Event, phase: str) -> None:
        """Until all is answered, or no answer has come for so long, or `stop` is set."""
        pending = set(sent)
        last = self.clock()
        hidden = not PartialState().is_main_process or None  # None: shown on a terminal only
        with tqdm(total=len(sent), desc=phase, leave=False, disable=hidden) as bar:
            while pending and not stop.is_set() and self.clock() - last < seconds:
                done, pending = wait(pending, timeout=LOOK)
                if any(server_works(future.result().cause) for future in done):
                    last = self.clock()
                bar.update(len(done))

    def learn(self, step: tuple, causes: Counter) -> None:
        """causes: of all requests of a call, which may be none."""
        if not causes:
            return
        self.hung = step if GIVEN_UP in causes else None
        if "" in causes or CUT in causes:
            self.answered = step
            self.silent.clear()
        elif step != self.answered:
            self.silent.add(step)


def server_works(cause: str) -> bool:
    """Does the server work? It does where it refuses a request."""
    return cause in ("", CUT) or cause.startswith("HTTP 4")


# ---------------------------------------------------------------- one request


class Connection:
    """One server, asked in a thread of its own.

    delays: seconds before each further try. at_a_time: requests under way, at most."""

    def __init__(self, url: str, delays: Sequence[float], at_a_time: int):
        self.url = url
        self.delays = delays
        self.turns = asyncio.Semaphore(at_a_time)
        self.key = read_key()
        self.client, self.name = open_client(url, self.key)
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()

    def models(self, timeout: float) -> list[str] | str:
        """The names of the models that are served, or a sentence where there is no list.

        Raises ConnectionError: no server."""
        place = f"{self.url}/models"
        try:
            response = self.run(self.client.get(place, timeout=timeout)).result()
        except httpx.RequestError as error:
            raise no_server(self.name, error) from error
        try:
            return [entry["id"] for entry in response.json()["data"]]
        except Exception:  # some servers list only what they have downloaded, or fail at it
            return f"no list at {place} (HTTP {response.status_code})"

    def hide(self, text: str) -> str:
        """The text without the key (decision 7)."""
        return text.replace(self.key, "***") if self.key else text

    def run(self, asked: Coroutine) -> Future:
        """Begin it in the other thread."""
        return asyncio.run_coroutine_threadsafe(asked, self.loop)

    async def ask(self, body: Callable[[], dict], seed: int, thinking: bool) -> Answer:
        """The answer to one request, after all its tries (decision 3).

        `body` is called when its turn comes."""
        async with self.turns:
            sent = body() | {"seed": seed}
            wanted = 0.0
            for delay in (0.0, *self.delays):
                await asyncio.sleep(min(max(delay, wanted), MAX_DELAY))
                answer, wanted = await self.post(sent, thinking)
                if wanted is None:
                    break
        return answer

    async def post(self, sent: dict, thinking: bool) -> tuple[Answer, float | None]:
        """One try: (what came of it, seconds that the next try waits at least; None: no next)."""
        answer = b""
        again = 0.0
        place = f"{self.url}/chat/completions"
        most = sent["max_tokens"] * CHARACTERS
        try:
            async with self.client.stream("POST", place, json=sent) as response:
                async for part in response.aiter_bytes():
                    answer += part
                    if len(answer) > ENVELOPE + most * CHARACTER_BYTES:
                        cause = f"an answer of more than {len(answer)} bytes"
                        return Answer(EMPTY_REPLY, cause), None
            if response.is_success:
                return Answer(read_reply(answer, sent, thinking), ""), None
            cause = f"HTTP {response.status_code}"
            again = wait_before_retry(response)
        except Exception as error:  # no connection, or an answer of another form
            cause = f"{type(error).__name__}: {error}"
        said = self.hide(f"{cause}: {answer.decode(errors='replace')}")
        return Answer(EMPTY_REPLY, said[:300]), again


def read_key() -> str:
    """The key of the server, or "". Raises ConnectionError, without the key: it cannot be used."""
    key = os.environ.get("TEACHER_API_KEY", "").strip()
    if not (key.isascii() and key.isprintable()):
        raise ConnectionError("TEACHER_API_KEY is no key: it is not plain ASCII")
    return key


def open_client(url: str, key: str) -> tuple[httpx.AsyncClient, str]:
    """(client, the name of the server in messages: its URL, and the proxy on the way to it).

    Raises ConnectionError: an address that is none, a proxy that cannot be used."""
    name = url
    try:
        place = httpx.URL(url)
        if place.userinfo:
            raise ConnectionError("a password does not belong in the URL: set TEACHER_API_KEY")
        proxy = proxy_of(place)
        if proxy:
            name += f" through the proxy {httpx.URL(proxy).host}"
        # Without limits: else 100 connections at most.
        transport = httpx.AsyncHTTPTransport(proxy=proxy, limits=httpx.Limits())
    except (httpx.InvalidURL, ImportError, ValueError) as error:
        raise no_server(name, error) from error
    headers = {"Authorization": f"Bearer {key or 'none'}"}
    return httpx.AsyncClient(headers=headers, transport=transport, timeout=None), name


def no_server(name: str, error: Exception) -> ConnectionError:
    return ConnectionError(f"{name}: no server ({type(error).__name__}: {error})")


def proxy_of(url: httpx.URL) -> str | None:
    """The proxy on the way to a server (decision 8)."""
    if url.host in LOOPBACK or urllib.request.proxy_bypass(url.netloc.decode()):
        return None
    proxies = urllib.request.getproxies()
    proxy = proxies.get(url.scheme) or proxies.get("all")
    return f"http://{proxy}" if proxy and "://" not in proxy else proxy


def wait_before_retry(response: httpx.Response) -> float | None:
    """Seconds that a failed request waits at least; None: it is not tried again (decision 3)."""
    status = response.status_code
    if status < 500 and status not in (408, 429):
        return None
    after = response.headers.get("retry-after", "")
    with suppress(ValueError):
        return float(after)
    with suppress(ValueError):
        return parsedate_to_datetime(after).timestamp() - time.time()
    return 0.0


def read_reply(answer: bytes, sent: dict, thinking: bool) -> Reply:
    """The reply in a chat completion (thinking: decision 6), cut one character beyond decision 5.

    Raises some error if it has no text."""
    choice = json.loads(answer)["choices"][0]
    message = choice["message"]
    reason = choice.get("finish_reason")
    finished = reason in FINISHED
    text = joined(message.get("content"))
    thought = joined(message.get("reasoning_content") or message.get("reasoning"))
    off = sent.get("chat_template_kwargs", {}).get("enable_thinking") is False
    if off and finished and not text:
        text = thought
    elif text is None and (thought or reason == "length"):  # stopped while it thought
        text = ""
    if thought and thinking and text != thought:
        text = "<think>" + thought + (text and "</think>" + text)
    text.encode()  # half a surrogate pair is no text: it would stop the tokenizer and the dumps
    # The one character more shows `answer_of` that there was a cut.
    return Reply(text[: sent["max_tokens"] * CHARACTERS + 1], [], finished)


def joined(content) -> str | None:
    """A text that may come as a list of parts; None stays None."""
    if not isinstance(content, list):
        return content
    texts = []
    for part in content:
        texts.append(part if isinstance(part, str) else part.get("text", ""))
    return "".join(texts)


def image_part(image) -> dict:
    """A part of a chat message: the image as PNG, so that nothing is lost."""
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    data = base64.b64encode(file.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}


# ---------------------------------------------------------------- beside the student's rollouts


def roll_out_beside_teacher(
    student: Actor,
    teacher: ServedActor,
    first_round: int,
    teacher_n: int,
    requests: Sequence[Request],
    n: int,
    sampling: Sampling,
    key: tuple,
    phase: str,
) -> Rows:
    """The student's call. The teacher works beside its plain rollouts; results are the same.

    After each batch the teacher is asked for teacher_n rollouts of the all-wrong questions that are
    likely among the first_round questions of zppo.select's first round, whose ranking is the same.
    A question that is free-form or still to come counts with the share of all-wrong ones so far, so
    that little is asked early and not needed."""
    if phase != "rollout":
        return student(requests, n, sampling, key, phase)
    while teacher.memo:  # asked early in the step before, not needed
        _, future = teacher.memo.popitem()
        future.cancel()

    def tie_breaker(i: int) -> int:
        return seed_of(*key, "tie", requests[i].uid)

    ranking = sorted(range(len(requests)), key=tie_breaker)
    drawn = {}  # by place of the request: its replies
    all_wrong = {}  # by place of the request, as far as the rule decides
    for batch in student.batches(requests, n, sampling, key, phase):
        drawn |= batch
        for i, replies in batch.items():
            question = requests[i].question
            if not question.free_form:  # else the judge decides
                all_wrong[i] = not any(grade(reply.text, question.answer) for reply in replies)
        # Careful while few are known.
        share = (2 + sum(all_wrong.values())) / (2 + len(all_wrong))
        before = 0.0  # all-wrong questions that are ranked before this one, as expected
        for i in ranking:
            if all_wrong.get(i) and before < first_round:
                teacher.begin(replace(requests[i], kind="teacher"), teacher_n, sampling, key)
            before += all_wrong.get(i, share)
    return student.gather(drawn, phase)
