"""A teacher behind a URL: any OpenAI-compatible chat server (vLLM, SGLang, `transformers serve`) as an actor.

    python train.py --student Qwen/Qwen3.5-2B --teacher http://localhost:8000/v1 --data ...

Decisions:
1. n samples are n requests, each with its own seed: servers disagree on what `n` with a seed means, or ignore `n`. The
   shared prompt costs them little, since they cache prefixes. A reply repeats as far as the server honours the seed.
2. Every sampling setting is sent, also those that are off: servers fill in what is missing from the model's
   generation_config, which often holds a top-k. vLLM and SGLang take top_k = -1 in the request; `transformers serve`
   refuses it there and takes a generation_config. `check` finds out which.
3. What may pass is tried again after 1, 2, 4, ... seconds, or after what Retry-After says: no connection, 408, 429,
   5xx, a cut or unreadable answer. Another 4xx comes again, and a time-out too, with the same seed: not tried again.
4. A request that fails for good gives an empty, unfinished reply and is counted, and the step goes on: no correct
   rollout, a summary cut from the trace, a verdict "wrong". After as many failures in a row as requests are under way
   the call gives up the rest, and the next call asks one small thing first: a server that hangs costs one time-out.
5. Thinking that the server has split off is put back in front of a rollout, since it is part of the trace, and left out
   of summaries, hints and verdicts. Those have too few tokens to think first, so enable_thinking = False goes with them
   to the chat template, unless `check` finds that the server refuses the field.
6. Requests run in a thread of their own, so `start` can send some before their call. The call takes over those it asks
   for, asks again for those that had failed by then, and cancels the others that are still under way; a reply that is
   there waits for a later round of the step. So replies are the same as without `start`, and only calls count failures.
7. The user's Hugging Face token is never sent to a server; the environment variable TEACHER_API_KEY is, if it is set.
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
from concurrent.futures import Future, as_completed
from dataclasses import replace
from functools import cache, partial
from itertools import chain, product

import httpx
from accelerate import PartialState
from accelerate.utils import gather_object
from huggingface_hub import AsyncInferenceClient, set_async_client_factory
from huggingface_hub.errors import HfHubHTTPError
from tqdm import tqdm

from baselines import NEEDS
from engine.questions import open_images
from generate import Actor, Reply, Request, Sampling, seed_of
from prompts import neutralise
from rewards import grade
from zppo import Recipe, quota

MAX_DELAY = 60.0  # seconds between two tries, also where Retry-After asks for more
MIN_STREAK = 8  # failures in a row before a call gives up, where fewer requests are under way


class ServedError(RuntimeError):
    """A server that cannot be used, or did not answer: the message has its URL, the model and the cause."""


def data_url(image) -> str:
    """A PIL image as a PNG data URL: nothing is lost."""
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def read_reply(output, thinking: bool) -> Reply:
    """The first choice of a chat completion; ValueError if there is none or it has no text (decision 5: thinking)."""
    try:
        choice = output.choices[0]
        text, reason = choice.message.content, choice.finish_reason
        thought = choice.message.get("reasoning_content") or choice.message.reasoning
    except (AttributeError, LookupError, TypeError) as error:
        raise ValueError(f"an answer without a choice: {str(output)[:200]}") from error
    if text is None and (thought or reason == "length"):  # cut while it thought
        text = ""
    if not isinstance(text, str):
        raise ValueError(f"an answer without text: {str(output)[:200]}")
    if thought and thinking:
        text = f"<think>{thought}</think>{text}" if text else f"<think>{thought}"
    text.encode()  # half a surrogate pair would stop the tokenizer and the dumps: no text, a ValueError
    return Reply(text, [], finished=reason == "stop")


def is_lost(future: Future) -> bool:
    """Is it over, without a reply?"""
    return future.done() and (future.cancelled() or future.exception() is not None or future.result()[1] != "")


class ServedActor:
    """A served model that answers requests with the call of generate.Actor; replies have no tokens.

    url: with its /v1. model: the name under which it is served; asked from the server by `check` if not given.
    special_tokens: neutralised in what is sent, since the server's chat template would obey them; the student's stand
    in for the teacher's, which are not known here. pixels: (least, most) of an image that is sent; the server's own
    bounds come after. template: arguments of the chat template. concurrency: requests under way at a time, over all
    processes. timeout: seconds for one request, all its tries together.

    failures: requests that failed for good so far. dead_steps: steps since any request was answered in which a call
    failed as a whole. Both are the same on all processes.
    """

    def __init__(
        self,
        url: str,
        model: str | None = None,
        special_tokens: Sequence[str] = (),
        pixels: tuple[int | None, int | None] = (None, None),
        template: dict | None = None,
        concurrency: int = 64,
        timeout: float = 900.0,
        retries: int = 4,
        delay: float = 1.0,
        seconds: dict[str, float] | None = None,
    ):
        self.url, self.model = url.rstrip("/"), model
        self.special_tokens, self.pixels, self.template = special_tokens, pixels, template or {}
        self.timeout, self.retries, self.delay = timeout, retries, delay
        self.slots = max(1, concurrency // PartialState().num_processes)
        self.turns = asyncio.Semaphore(self.slots)
        self.seconds = {} if seconds is None else seconds
        self.takes_top_k = True  # False: a generation_config instead (decision 2)
        self.takes_no_thinking = True  # decision 5
        self.failures = 0
        self.dead: set[tuple] = set()
        self.streak, self.given_up = 0, ""  # failures in a row; why nothing more is asked (decision 4)
        self.early: dict[tuple, list[Future]] = {}  # begun by `start`, n of each request (decision 6)
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        # The hub's default client refuses all servers under HF_HUB_OFFLINE, ours too, and holds 100 connections.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        set_async_client_factory(lambda: httpx.AsyncClient(limits=limits))
        self.key = os.environ.get("TEACHER_API_KEY") or "none"  # without a key the client would send the hub's token
        self.client = AsyncInferenceClient(base_url=self.url, api_key=self.key)

    @property
    def dead_steps(self) -> int:
        return len(self.dead)

    def check(self, branches: Sequence[str] = ()) -> None:
        """One small request before training starts. branches: of the recipe, to refuse what text alone cannot give.

        Raises ServedError: no server there, unknown model, settings refused; it lists the models that are served.
        """
        for branch in branches:
            if branch in NEEDS:
                raise ServedError(f"{branch} needs the teacher's {NEEDS[branch]}; {self.url} serves only text: "
                                  "give --teacher a model folder or hub id")
        try:
            response = httpx.get(f"{self.url}/models", headers={"Authorization": f"Bearer {self.key}"}, timeout=30)
        except (httpx.RequestError, httpx.InvalidURL) as error:
            raise ServedError(f"{self.url}: no server ({type(error).__name__}: {error})") from error
        try:
            models = [entry["id"] for entry in response.json()["data"]]
        except (ValueError, LookupError, TypeError):  # some servers list only what they have downloaded, or fail at it
            models = f"no list at {self.url}/models (HTTP {response.status_code})"
        if self.model is None:
            if isinstance(models, str) or len(models) != 1:
                raise ServedError(f"{self.url}: name the model with --teacher_model; models served: {models}")
            self.model = models[0]

        for self.takes_no_thinking, self.takes_top_k in product((True, False), repeat=2):
            cause = self.submit(self.probe(self.timeout)).result()
            if not cause.startswith(("HTTP 400", "HTTP 422")):
                break
        if cause:
            raise ServedError(f"{self.url} (model {self.model}): {cause}; models served: {models}")

    async def probe(self, timeout: float) -> str:
        """One small request, tried once: "" if it is answered, else the cause."""
        return (await self.ask("Say yes.", Sampling(max_new_tokens=1), 0, False, 0, timeout))[1]

    def submit(self, coroutine) -> Future:
        """Run it beside the calling thread."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)

    def messages(self, request: Request) -> list[dict]:
        """The turns that are sent: what comes before the question, then the question."""
        turns, question = [], request.question
        if question:
            turns = [*([("system", question.system)] if question.system else []), *question.turns]
        said = [{"role": role, "content": neutralise(words, self.special_tokens, tags=())} for role, words in turns]
        return [*said, {"role": "user", "content": self.content(request)}]

    def content(self, request: Request) -> str | list[dict]:
        """What the user turn says: images first, then the text."""
        text = neutralise(request.text, self.special_tokens, tags=())
        if not request.images:
            return text
        urls = [data_url(image) for image in open_images(request.question, *self.pixels)]
        parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
        return [*parts, {"type": "text", "text": text}]

    def settings(self, sampling: Sampling, thinking: bool) -> dict:
        """The sampling settings and template arguments that are not OpenAI's (decisions 2 and 5)."""
        if self.takes_top_k:
            body = {"top_k": sampling.top_k or -1, "min_p": sampling.min_p, "repetition_penalty": 1.0}
        else:
            config = {"do_sample": sampling.temperature > 0, "top_k": sampling.top_k, "min_p": sampling.min_p}
            body = {"generation_config": json.dumps({**config, "repetition_penalty": 1.0})}
        off = {} if thinking or not self.takes_no_thinking else {"enable_thinking": False}
        template = self.template | off
        return body | ({"chat_template_kwargs": template} if template else {})

    async def ask(self, content, sampling, seed, thinking, retries, timeout) -> tuple[Reply, str]:
        """(reply, ""), or (an empty unfinished reply, the cause) where all tries failed (decisions 3 and 4)."""
        cause, wait = "", 0.0
        try:
            async with asyncio.timeout(timeout):
                for attempt in range(retries + 1):
                    await asyncio.sleep(min(wait, MAX_DELAY))
                    wait = self.delay * 2**attempt
                    try:
                        output = await self.client.chat_completion(
                            content if isinstance(content, list) else [{"role": "user", "content": content}],
                            model=self.model,
                            max_tokens=sampling.max_new_tokens,
                            temperature=sampling.temperature,
                            top_p=sampling.top_p,
                            presence_penalty=sampling.presence_penalty,
                            seed=seed,
                            extra_body=self.settings(sampling, thinking),
                        )
                        return read_reply(output, thinking), ""
                    except HfHubHTTPError as error:
                        status, asked = error.response.status_code, error.response.headers.get("retry-after", "")
                        cause = f"HTTP {status}: {error.response.text[:200]}"
                        if status < 500 and status not in (408, 429):
                            break
                        wait = max(wait, float(asked)) if asked.isdecimal() else wait
                    except (httpx.RequestError, ValueError, RecursionError) as error:  # also JSON that is none
                        cause = f"{type(error).__name__}: {error}"
        except TimeoutError:
            cause = f"no answer within {timeout:g} s{cause and f' ({cause})'}"
        return Reply("", [], finished=False), cause

    async def answer(self, content, sampling: Sampling, seed: int, thinking: bool) -> tuple[Reply, str]:
        """What `ask` returns, when its turn comes. content: called then."""
        async with self.turns:
            if self.given_up:
                return Reply("", [], finished=False), self.given_up
            reply, cause = await self.ask(content(), sampling, seed, thinking, self.retries, self.timeout)
        self.streak = self.streak + 1 if cause else 0
        if self.streak >= max(MIN_STREAK, self.slots):
            self.given_up = cause
        return reply, cause

    def begin(self, request: Request, n: int, sampling: Sampling, key: tuple) -> list[Future]:
        """The n replies to come of a request; those that `start` has begun are taken over, unless they are lost."""
        name, thinking = (*key, request.kind, request.uid), request.question is not None  # rollouts have their question
        content = cache(partial(self.messages, request))  # images are encoded once, when their turn comes

        def ask(j: int) -> Future:
            seed = seed_of(*name, j) >> 32  # some servers take 31 bits
            return self.submit(self.answer(content, sampling, seed, thinking))

        early = self.early.pop(name, [None] * n)
        return [ask(j) if future is None or is_lost(future) else future for j, future in enumerate(early)]

    def start(self, requests: Sequence[Request], n: int, sampling: Sampling, key: tuple, limit: int) -> None:
        """Begin what a later call will ask for with these same arguments, and return at once (decision 6).

        At most `limit` requests of a key over all processes, the first that come. Processes need not call it together.
        """
        state = PartialState()
        self.early = {name: futures for name, futures in self.early.items() if name[: len(key)] == key}
        share = len(range(state.process_index, limit, state.num_processes))
        for request in requests[: max(0, share - len(self.early))]:
            self.early[*key, request.kind, request.uid] = self.begin(request, n, sampling, key)

    def __call__(
        self, requests: Sequence[Request], n: int, sampling: Sampling, key: tuple, phase: str
    ) -> list[list[Reply]]:
        """n replies to each request. key: (seed, step), with kind, uid and sample number the root of all seeds.

        Never raises for what the server does: see `failures` and `dead_steps`.
        """
        start, state = time.perf_counter(), PartialState()
        world = state.num_processes
        self.streak, self.given_up = 0, self.submit(self.probe(MAX_DELAY)).result() if self.dead else ""
        mine = [i for i, request in enumerate(requests) if (*key, request.kind, request.uid) in self.early]
        started = set(gather_object(mine))
        mine += [i for i in range(len(requests)) if i not in started][state.process_index :: world]
        futures = {(i, j): future for i in mine for j, future in enumerate(self.begin(requests[i], n, sampling, key))}
        if phase != "judge":  # the teacher may judge between the student's rollouts and its own
            for future in chain.from_iterable(self.early.values()):
                future.cancel()
        with tqdm(total=len(requests) * n, desc=phase, leave=False, disable=not state.is_main_process) as bar:
            for _ in as_completed(futures.values()):
                bar.update(world)
        answers = gather_object([(i, j, *future.result()) for (i, j), future in futures.items()])
        causes = Counter(cause for *_, cause in answers if cause)
        failed = causes.total()
        self.failures += failed
        if failed < len(answers):
            self.dead.clear()
        elif failed:
            self.dead.add(tuple(key[:2]))
        if failed and state.is_main_process:
            server, often = f"{self.url} (model {self.model})", causes.most_common(1)[0][0]
            tqdm.write(f"{phase}: {failed} of {len(answers)} requests to {server} failed, most often: {often}")
        replies = {(i, j): reply for i, j, reply, _ in answers}
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - start
        return [[replies[i, j] for j in range(n)] for i in range(len(requests))]


def overlap(student: Actor, teacher: ServedActor, recipe: Recipe, new: int) -> Callable[..., list[list[Reply]]]:
    """The student as an actor beside whose plain rollouts the teacher already works; results are the same.

    Questions that a finished batch leaves all wrong are at the head of the ranking, and `teacher` is asked for them as
    zppo.select will: for as many as its first round takes. new: |X_new|. Free-form ones wait, since the judge decides.
    """
    slots = quota(recipe.rho_aug, new) if set(recipe.branches) - {"ncq"} else 0
    limit = math.ceil(slots / max(1, len(recipe.branches)))

    def actor(requests: Sequence[Request], n: int, sampling: Sampling, key: tuple, phase: str) -> list[list[Reply]]:
        drawn = []
        for batch, rows in student.batches(requests, n, sampling, key, phase):
            hard = [
                replace(requests[i], kind="teacher")
                for i, row in zip(batch, rows, strict=True)
                if not requests[i].question.free_form
                and not any(grade(reply.text, requests[i].question.answer) for reply in row)
            ]
            if phase == "rollout" and limit:
                teacher.start(hard, recipe.teacher_group_size, sampling, key, limit)
            drawn.append((batch, rows))
        return student.collect(drawn)

    return actor
