"""served.py against servers on loopback: the embedded world's teacher, and all ways to fail."""

import base64
import contextlib
import io
import json
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from accelerate import Accelerator
from PIL import Image
from runs import ENV, ROOT, command, read_metrics, read_state, train
from stages import collect
from tiny import PROCESSOR, TOKENIZER

import baselines
from engine.models import encode, load_model, load_processor
from engine.questions import Question, load_questions, open_images
from extras import served
from extras.served import ServedActor, roll_out_beside_teacher
from extras.setup import load_actors
from generate import Actor, Reply, Request, Sampling, generate, seed_of
from prompts import plain_prompt
from train import read_options
from world import table as world
from zppo import Context, Recipe

KEY = (0, 7)
SHORT = Sampling(max_new_tokens=24)
CLOSED = "http://127.0.0.1:1/v1"  # nobody listens there


class Server(ThreadingHTTPServer):
    request_queue_size = 64  # connections that wait to be accepted


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def send(self, status: int, body: bytes, length: int | None = None):
        self.send_response(status)
        self.send_header("Content-Length", str(length or len(body)))
        self.send_header("Retry-After", "1" if status == 429 else "soon")
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        models = json.dumps({"data": [{"id": name} for name in self.server.models]}).encode()
        path = urlsplit(self.path).path  # a proxy is asked for the whole URL
        self.send(*(200, models) if path == "/v1/models" else (404, b"no such page"))

    def do_POST(self):
        """The n-th time a prompt is seen, the n-th of its ways to behave; then the last one."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        content = body["messages"][0]["content"]
        *parts, text = (
            [content] if isinstance(content, str) else [*content[:-1], content[-1]["text"]]
        )
        urls = [part["image_url"]["url"].removeprefix("data:image/png;base64,") for part in parts]
        images = [Image.open(io.BytesIO(base64.b64decode(url, validate=True))) for url in urls]
        with self.server.lock:
            self.server.seen.append(
                {**body, "text": text, "images": images, "key": self.headers["Authorization"]}
            )
            self.server.times[text].append(time.monotonic())
            ways = self.server.plan(body, text)
            way = ways[min(len(self.server.times[text]), len(ways)) - 1]
        if way == "late":
            self.server.gate.wait(5)
        if way == "hang":
            self.server.over.wait(5)
        elif isinstance(way, int):
            self.send(way, f"status {way}".encode())
        elif isinstance(way, bytes):
            self.send(200, way)
        elif isinstance(way, tuple):
            self.send(*way)
        else:
            message = (
                way
                if isinstance(way, dict)
                else {"content": self.server.answer(text, images, body["seed"])}
            )
            answer = json.dumps(
                {"choices": [{"index": 0, "finish_reason": "stop", "message": message}]}
            ).encode()
            self.send(200, answer[:-9] if way == "cut" else answer, length=len(answer))


@contextlib.contextmanager
def serve(plan=lambda body, text: [""], answer=lambda text, images, seed: f"echo {text} {seed}"):
    with Server(("127.0.0.1", 0), Handler) as server:
        server.plan, server.answer, server.models = plan, answer, ["the-teacher"]
        server.lock, server.over, server.seen, server.times = (
            threading.Lock(),
            threading.Event(),
            [],
            defaultdict(list),
        )
        server.gate = threading.Event()
        server.url = f"http://127.0.0.1:{server.server_port}/v1"
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.over.set()
        server.shutdown()


@pytest.fixture(autouse=True)
def look_often(monkeypatch):
    monkeypatch.setattr(served, "LOOK", 0.01)


class Clock:
    """It stands still until `runs` says otherwise; then each look at it takes 0.1 seconds."""

    def __init__(self, runs=lambda: False):
        self.now, self.looks, self.runs = 0.0, 0, runs

    def __call__(self) -> float:
        self.looks += 1
        self.now += 0.1 if self.runs() else 0.0
        return self.now


def actor_of(server, **settings) -> ServedActor:
    return ServedActor(
        server.url, "the-teacher", **{"delays": (0.01, 0.02), "timeout": 4.0, **settings}
    )


def test_the_worlds_teacher_behind_a_url_says_what_it_says_in_process():
    model, processor = (
        load_model(str(world.WORLD / "teacher")),
        load_processor(str(world.WORLD / "teacher")),
    )
    actor, lock = Actor(model, processor), threading.Lock()

    def say(text: str, images: list, seed: int) -> str:
        with lock:
            prompt = encode(processor, text, images)
            tokens = generate(model, [prompt], [[seed]], SHORT, actor.end_ids, actor.banned_ids)[0][
                0
            ]
            return processor.tokenizer.decode(tokens, skip_special_tokens=True)

    asked = world.questions()[1]["image/known"][0]
    request = Request("teacher", asked.uid, plain_prompt(asked.text), asked)
    with serve(answer=say) as server:
        replies = actor_of(server, timeout=30.0)([request], 2, SHORT, KEY, "teacher")
    seeds = [seed_of(*KEY, "teacher", asked.uid, j) >> 32 for j in range(2)]
    assert replies == [
        [Reply(say(request.text, open_images(asked), seed), [], True) for seed in seeds]
    ]


def test_what_is_sent(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(
        "huggingface_hub.constants.HF_HUB_OFFLINE", True
    )  # no reason not to ask our own server
    noise = np.random.default_rng(0).integers(0, 256, (5, 7, 4), dtype=np.uint8)
    pictures = (
        Image.fromarray(noise),
        Image.fromarray(noise[:, :, 0]),
        Image.new("RGB", (64, 32), "red"),
    )
    question = Question("q", "which <|im_end|>?", pictures, "1")
    requests = [Request("teacher", "q", question.text, question), Request("judge", "0", "right?")]
    with serve() as server:
        template = {"enable_thinking": True, "effort": 1}
        actor = actor_of(server, processor=PROCESSOR, pixels=(None, 512), template=template)
        first = actor(requests, 3, SHORT, KEY, "teacher")
        assert actor(requests, 3, SHORT, KEY, "teacher") == first  # same seeds again
        actor(requests, 3, Sampling(24, 0.6, 0.95, 20), (0, 8), "teacher")
        seen = server.seen
    with serve() as server:  # a question that is there twice
        assert (
            len(actor_of(server)(2 * requests, 2, SHORT, KEY, "teacher")) == 4
            and len(server.seen) == 4
        )
    assert actor.failures == actor.cut == 0 and not actor.silent and actor.seconds["teacher"] > 0
    assert all(len({reply.text for reply in row}) == 3 and not row[0].tokens for row in first)
    assert len({body["seed"] for body in seen}) == 12 and all(
        0 <= body["seed"] < 2**31 for body in seen
    )
    names = (
        "model temperature top_p top_k min_p repetition_penalty presence_penalty max_tokens".split()
    )
    assert [seen[0][name] for name in names] == ["the-teacher", 1, 1, -1, 0, 1, 0, 24]
    assert [seen[-1][name] for name in names] == ["the-teacher", 0.6, 0.95, 20, 0, 1, 0, 24]
    assert {body["key"] for body in seen} == {"Bearer none"}
    for body in seen:  # summaries, hints and verdicts do not think
        assert body["chat_template_kwargs"] == template | {
            "enable_thinking": body["text"] != "right?"
        }
    expected = {"which < |im_end|>?": open_images(question, None, 512), "right?": []}
    for body in seen:
        pairs = zip(body["images"], expected[body["text"]], strict=True)
        assert all(np.array_equal(np.asarray(sent), np.asarray(image)) for sent, image in pairs)


def test_thinking_that_the_server_split_off_goes_back_before_a_rollout_only():
    requests = [
        Request("teacher", "q", "2+2?", Question("q", "2+2?", (), "4")),
        Request("compress", "0", "shorten"),
    ]
    with serve(lambda body, text: [{"content": "so 4", "reasoning_content": "2+2"}]) as server:
        rollout, summary = actor_of(server)(requests, 1, SHORT, KEY, "teacher")
    assert (rollout[0].text, summary[0].text) == ("<think>2+2</think>so 4", "so 4")


@pytest.mark.parametrize("early", [False, True])
def test_processes_share_the_requests_and_all_get_all_replies(monkeypatch, early):
    """Also where each has begun one that would be the other's."""
    requests = [Request("compress", str(i), f"p{i}") for i in range(3)]
    parts, meet, here = (
        {},
        threading.Barrier(2, timeout=10),
        threading.local(),
    )  # each thread is a process

    def gather(part):
        parts[here.process_index] = part
        meet.wait()
        both = parts[0] + parts[1]
        meet.wait()
        return both

    def process(rank: int):
        here.num_processes, here.process_index, here.is_main_process = 2, rank, rank == 0
        actor = actor_of(server)
        if early:
            actor.begin(requests[1 - rank], 2, SHORT, KEY)
        return actor(requests, 2, SHORT, KEY, "compress"), actor.failures

    monkeypatch.setattr(served, "PartialState", lambda: here)
    monkeypatch.setattr(served, "gather_object", gather)
    with (
        serve(lambda body, text: [400] if text == "p1" else [""]) as server,
        ThreadPoolExecutor(2) as pool,
    ):
        one, other = pool.map(process, (0, 1))
        assert {text: len(times) for text, times in server.times.items()} == {
            "p0": 2,
            "p1": 2,
            "p2": 2,
        }
    assert (
        one == other
        and one[1] == 2
        and [row[0].text[:7] for row in one[0]] == ["echo p0", "", "echo p2"]
    )


def until(done, seconds: float = 60.0) -> None:
    """Wait for what another thread does."""
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def rollouts_of(*texts: str) -> list[Request]:
    return [Request("teacher", text, text, Question(text, text, (), "1")) for text in texts]


def test_what_was_begun_early_is_taken_over_and_not_asked_again():
    late, there, unasked, never = rollouts = rollouts_of("late", "there", "unasked", "never")
    with serve(lambda body, text: ["late"] if text == "late" else [""]) as server:
        expected = actor_of(server)([there, unasked], 2, SHORT, KEY, "teacher")
        server.times.clear()
        actor = actor_of(server)
        for request in (late, there, unasked, there):
            actor.begin(request, 2, SHORT, KEY)
        until(
            lambda: (
                sum(future.done() for future in actor.memo.values()) == 4
                and len(server.times["late"]) == 2
            )
        )
        assert actor.failures == 0 and "teacher" not in actor.seconds  # nobody waits
        actor([Request("judge", "0", "p")], 1, SHORT, KEY, "judge")
        server.gate.set()
        rows = actor([late, there], 2, SHORT, KEY, "teacher")
        assert rows[1] == expected[0] and all(reply.finished for row in rows for reply in row)
        assert actor([unasked], 2, SHORT, KEY, "teacher") == expected[1:]  # the next round
        assert [len(server.times[request.text]) for request in rollouts] == [2, 2, 2, 0]
        assert actor.failures == 0 and not actor.memo
        actor.begin(never, 2, SHORT, (0, 8))  # another step: not for this one's calls
        actor([never], 2, SHORT, KEY, "teacher")
        until(lambda: len(server.times["never"]) == 4)


def test_what_was_begun_for_nothing_is_cancelled_by_the_next_step_and_is_no_failure():
    with serve(lambda body, text: ["hang"] if text != "wanted" else [""]) as server:
        actor = actor_of(server, concurrency=2, timeout=60.0)
        for request in rollouts_of("a", "b"):
            actor.begin(request, 4, SHORT, KEY)  # two hang, six are in line
        until(lambda: len(server.seen) == 2)
        begun = list(actor.memo.values())
        student = Actor(
            load_model(str(world.WORLD / "student")), load_processor(str(world.WORLD / "student"))
        )
        roll_out_beside_teacher(student, actor, 0, 4, [], 1, SHORT, (0, 8), "rollout")
        assert not actor.memo and all(future.cancelled() for future in begun)
        assert (
            actor(rollouts_of("wanted"), 4, SHORT, (0, 8), "teacher")[0][3].finished
            and len(server.seen) == 2 + 4
        )
        assert actor.failures == 0 and not actor.silent


def test_a_server_that_dies_between_early_requests_and_their_call():
    rollouts = rollouts_of("hang", "there")
    with serve(lambda body, text: ["hang"] if text == "hang" else [""]) as server:
        actor = actor_of(server)
        for request in rollouts:
            actor.begin(request, 2, SHORT, KEY)
        until(
            lambda: (
                sum(future.done() for future in actor.memo.values()) == 2 and len(server.seen) == 4
            )
        )
    hung, there = actor(rollouts, 2, SHORT, KEY, "teacher")
    assert hung == [Reply("", [], False)] * 2 and all(reply.finished for reply in there)
    assert actor.failures == 2
    actor(rollouts, 2, SHORT, (0, 8), "teacher")
    assert actor.failures == 6 and (0, 8) in actor.silent


def test_a_process_ends_with_early_requests_under_way():
    code = (
        "import sys; from generate import Request, Sampling\n"
        "from extras.served import ServedActor\n"
        "actor = ServedActor(sys.argv[1], 'm')\n"
        "actor.begin(Request('teacher', 'q', 'p'), 2, Sampling(4), (0, 0)); sys.stdin.read()"
    )
    with serve(lambda body, text: ["hang"]) as server:
        pipes = dict(stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        with subprocess.Popen(
            [sys.executable, "-c", code, server.url], cwd=ROOT, **pipes
        ) as process:
            until(lambda: len(server.seen) == 2)
            assert process.communicate(timeout=60)[1] == "" and process.returncode == 0


@pytest.mark.parametrize("method", ["zppo", "hint", "grpo_replay_ncq"])
def test_a_step_with_overlap_is_the_step_without(method):
    """The teacher has been asked before the student's last batch is drawn."""
    questions = world.questions()[0][:16]
    gold = {plain_prompt(question.text): question.answer for question in questions}
    questions[0] = replace(questions[0], free_form=True)
    recipe = Recipe(
        group_size=4, teacher_group_size=3, rho_aug=0.4, method=method, max_response_tokens=32
    )
    limit = (
        0 if method == "grpo_replay_ncq" else 3 if method == "zppo" else 6
    )  # cap 6, over the branches
    local = Actor(
        load_model(str(world.WORLD / "student")),
        load_processor(str(world.WORLD / "student")),
        rows=16,
    )
    gather = baselines.collect if method == "hint" else lambda *call: collect(*call)[0]

    def say(text: str, images: list, seed: int) -> str:
        time.sleep(0.02)
        return (
            f"\\boxed{{{gold[text] if seed % 3 == 0 else 0}}}"
            if text in gold
            else f"<summary>{seed}</summary>"
        )

    class Watched:
        """The student. After a batch it waits until the teacher was asked about the one before."""

        gather, __call__ = local.gather, local.__call__

        def batches(self, *call):
            for batch in local.batches(*call):
                yield batch
                if teacher.memo:
                    until(lambda: any(body["text"] in gold for body in server.seen))
                early.append(len(teacher.memo))

    results, early = [], []
    for overlaps in (False, True):
        with serve(answer=say) as server:
            teacher = actor_of(server, timeout=30.0, concurrency=4)
            roller = partial(roll_out_beside_teacher, Watched(), teacher, limit, 3) if overlaps else local
            ctx = Context(roller, teacher, recipe, KEY)
            results.append((gather(ctx, questions, []), ctx.counts))
            assert teacher.failures == 0
    assert results[0] == results[1] and results[0][1]["teacher_questions"] >= limit
    assert early == sorted(early) and (early[-2] > 0 if limit else not any(early))


@pytest.mark.parametrize("wrong_share", [0.1, 0.4, 0.9])
@pytest.mark.parametrize("processes", [1, 8])
def test_early_questions_are_those_of_the_first_round(wrong_share, processes):
    """480 questions in batches of 8, 48 for the teacher: what share is asked early, not needed?"""
    requests = [
        Request("plain", str(i), f"p{i}", Question(str(i), f"p{i}", (), "1")) for i in range(480)
    ]
    all_wrong = {r.uid for r in requests if seed_of("wrong", r.uid) / 2**63 < wrong_share}
    ranked = sorted(all_wrong, key=lambda uid: seed_of(*KEY, "tie", uid))

    class Student:
        def __init__(self, process):
            self.process = process

        def batches(self, requests, n, sampling, key, phase):
            for start in range(8 * self.process, len(requests), 8 * processes):
                yield {i: [self.reply(requests[i])] * n for i in range(start, start + 8)}
                after.append(len(teacher.memo))

        def reply(self, request):
            return Reply("\\boxed{0}" if request.uid in all_wrong else "\\boxed{1}", [1], True)

        def gather(self, drawn, phase):
            return drawn

    with serve() as server:
        begun, half = set(), 0
        for process in range(processes):
            teacher, after = actor_of(server), []
            roll_out_beside_teacher(Student(process), teacher, 48, 1, requests, 2, SHORT, KEY, "rollout")
            seeds = {seed_of(*KEY, "teacher", uid, 0): uid for uid in all_wrong}
            begun |= {seeds[seed] for seed in teacher.memo}
            half += after[len(after) // 2]
            until(lambda teacher=teacher: all(future.done() for future in teacher.memo.values()))
    first = set(ranked[:48])
    wasted = len(begun - first) / len(begun)
    print(
        f"{wrong_share} wrong, {processes} processes: {len(begun)} begun, {half} at half time, "
        f"{wasted:.1%} wasted"
    )
    assert wasted < 0.1 and len(begun & first) > 0.7 * len(first) and half > 0.3 * len(first)


WAYS = {  # what the server does -> (requests it should get with two retries, answered in the end?)
    "fine": ([""], 1, True),
    "recovers": ([500, 503, ""], 3, True),
    "broken": ([500], 3, False),
    "busy": ([429, ""], 2, True),
    "refuses the request": ([400], 1, False),
    "hangs": (["hang"], 1, False),
    "cuts the body": (["cut", ""], 2, True),
    "nonsense": ([b"<html>", ""], 2, True),
    "bytes": ([b"\xff\xfe\x00"], 3, False),
    "deep": ([b"[" * 100_000], 3, False),
    "an error with status 200": ([b'{"error": "overloaded"}'], 3, False),
    "no choices": (
        [b'{"choices": []}', b'{"choices": [{"message": null}]}', b'{"choices": "abc"}'],
        3,
        False,
    ),
    "no text": ([{"content": None}, {"content": 5}, {"content": "\ud800"}], 3, False),
}


def test_every_failure_leaves_the_other_requests_alone(capsys):
    requests = [Request("compress", str(i), way) for i, way in enumerate(WAYS)]
    with serve(lambda body, text: WAYS[text][0]) as server:
        clock = Clock(
            lambda: sum(future.done() for future in begun) == len(WAYS) - 1
        )  # all but the one that hangs
        actor = actor_of(server, clock=clock)
        begun = [
            actor.memo[seed] for request in requests for seed in actor.begin(request, 1, SHORT, KEY)
        ]
        replies = actor(requests, 1, SHORT, KEY, "compress")
        assert {text: len(server.times[text]) for text in WAYS} == {
            way: n for way, (_, n, _) in WAYS.items()
        }
        assert server.times["busy"][1] - server.times["busy"][0] >= 0.95  # Retry-After
    for way, (reply,) in zip(WAYS, replies, strict=True):
        answered = WAYS[way][2]
        assert reply.text.startswith(f"echo {way} ") if answered else reply == Reply("", [], False)
    assert actor.failures == sum(not answered for *_, answered in WAYS.values())
    assert f"requests to {server.url} (model the-teacher) failed" in capsys.readouterr().out


def test_dead_steps_are_counted_and_a_dead_server_is_not_asked_for_ever(capsys):
    requests = [Request("compress", str(i), "p") for i in range(30)]
    actor = ServedActor(CLOSED, "m", delays=[0.01])
    for step in (0, 0, 1, 1, 2):  # two dead calls of one step are one dead step
        assert actor(requests[:2], 1, SHORT, (0, step), "compress") == 2 * [[Reply("", [], False)]]
    assert actor([], 1, SHORT, (0, 9), "compress") == [] and actor.silent == {
        (0, 0),
        (0, 1),
        (0, 2),
    }
    with serve(lambda body, text: [503]) as server:
        actor = actor_of(server, concurrency=4)
        for _ in range(3):
            actor(requests[:4], 1, SHORT, KEY, "compress")
        assert actor.failures == 3 * 4
        assert "4 of 4 requests" in capsys.readouterr().out
        server.plan = lambda body, text: [""]
        actor(requests[:1], 1, SHORT, (0, 8), "compress")
        assert not actor.silent
        server.plan = lambda body, text: [400] if text == "p" else [""]
        for step in (9, 10, 11):  # a teacher that refuses everything teaches nothing
            actor(requests[:1], 1, SHORT, (0, step), "compress")
        assert actor.silent == {(0, 9), (0, 10), (0, 11)} and actor.failures == 15
        actor(rollouts_of("q"), 1, SHORT, (0, 11), "teacher")
        actor(requests[:1], 1, SHORT, (0, 11), "compress")  # some of the step was answered
        assert not actor.silent and actor.failures == 16


def test_a_step_is_not_silent_while_some_requests_are_answered():
    """Three of ten requests of every step hang."""
    asked = rollouts_of(*"abcdefghij")
    with serve(lambda body, text: ["hang"] if text in "abc" else [""]) as server:
        clock = Clock(lambda: sum(future.done() for future in begun) == 7)
        actor = actor_of(server, concurrency=64, clock=clock)
        for step in range(4):
            begun = [
                actor.memo[seed] for one in asked for seed in actor.begin(one, 1, SHORT, (0, step))
            ]
            rows = actor(asked, 1, SHORT, (0, step), "teacher")
            assert [row[0].finished for row in rows] == [False] * 3 + [
                True
            ] * 7 and not actor.silent
        assert actor.failures == 12


def test_a_server_that_hangs_costs_one_time_out_per_step():
    requests = [Request("compress", str(i), "p") for i in range(30)]
    with serve(lambda body, text: ["hang"]) as server:
        asked = 0
        clock = Clock(
            lambda: len(server.seen) == asked
        )  # time passes while the server hangs, no earlier
        actor = actor_of(server, concurrency=4, timeout=10.0, clock=clock)
        for phase in ("judge", "teacher", "compress"):
            asked += 4
            actor(requests, 2, SHORT, KEY, phase)
            actor([], 2, SHORT, KEY, "hint")  # says nothing about the server
        assert 10.0 < clock.now < 20.0 and len(server.seen) == 3 * 4 and actor.failures == 180
        assert [round(actor.seconds[phase]) for phase in ("judge", "teacher", "compress")] == [
            10,
            1,
            1,
        ]
        server.plan = lambda body, text: [""]
        assert all(
            reply.finished for row in actor(requests, 2, SHORT, (0, 8), "judge") for reply in row
        )
        assert not actor.silent and actor.failures == 180


def test_one_request_that_hangs_fails_and_a_slow_server_goes_on():
    """An answer takes 0.5 seconds, or 1.0 with the one before; nothing in 1.5 is too long."""
    clock, took = Clock(lambda: sum(future.done() for future in begun) == 8), 0.5

    def slowly(text: str, images: list, seed: int) -> str:
        clock.now += took
        looks = clock.looks
        until(lambda: clock.looks > looks + 2)  # what came before has been seen by then
        return "late"

    with serve(lambda body, text: ["hang"] if text == "hangs" else [""], slowly) as server:
        actor = actor_of(server, concurrency=2, timeout=1.5, clock=clock)
        asked = [Request("compress", text, text) for text in ["hangs", *"abcdefgh"]]
        begun = [
            actor.memo[seed] for request in asked for seed in actor.begin(request, 1, SHORT, KEY)
        ]
        rows = actor(asked, 1, SHORT, KEY, "compress")
        assert [row[0].finished for row in rows] == [False] + 8 * [True] and len(server.seen) == 9
        assert (
            actor.failures == 1 and actor.seconds["compress"] > 7 * 0.5 + 1.5
        )  # the first began before the call
        clock.runs, took = (
            (lambda: False),
            0.05,
        )  # the same step: nothing in 0.15 seconds is too long
        assert all(
            row[0].finished for row in actor(rollouts_of("a", "b"), 1, SHORT, KEY, "teacher")
        )
    assert actor.failures == 1 and not actor.silent


def test_a_signal_ends_the_waiting_on_all_processes(monkeypatch):
    with serve(lambda body, text: ["hang"]) as server:
        actor = actor_of(server, clock=Clock())  # no time-out: the clock stands still
        previous = signal.signal(signal.SIGTERM, lambda *_: actor.stop.set())
        threading.Timer(0.3, signal.raise_signal, [signal.SIGTERM]).start()
        with pytest.raises(InterruptedError, match="stopped while http"):
            actor(rollouts_of("a", "b"), 2, SHORT, KEY, "teacher")
        signal.signal(signal.SIGTERM, previous)
        assert actor.failures == 0 and not actor.silent
        server.plan = lambda body, text: [""]
        for request in rollouts_of("there"):
            actor.begin(request, 1, SHORT, KEY)
        until(lambda: all(future.done() for future in actor.memo.values()))
        assert actor(rollouts_of("there"), 1, SHORT, KEY, "teacher")[0][
            0
        ].finished  # nothing to wait for
        monkeypatch.setattr(
            served, "gather_object", lambda part: [*part, True] if part == [False] else part
        )
        with pytest.raises(InterruptedError):  # another process was stopped
            actor_of(server)(rollouts_of("a"), 1, SHORT, KEY, "teacher")


def long_answer(text: str, reason: str = "stop") -> bytes:
    return json.dumps(
        {"choices": [{"finish_reason": reason, "message": {"content": text}}]}
    ).encode()


@pytest.mark.parametrize("size", [20_000, 2**20])
def test_replies_are_cut_to_the_tokens_that_were_asked_for(size):
    asked = [
        Request("compress", str(i), text)
        for i, text in enumerate(("short", "long", "wide", "spaces"))
    ]
    bodies = {
        "short": "x" * 24,
        "long": "ab" * (size // 2),
        "wide": "\u4f60" * (size // 6),
        "spaces": " " * size,
    }
    with serve(lambda body, text: [long_answer(bodies[text])]) as server:
        actor = actor_of(server, processor=PROCESSOR)
        rows = actor(asked, 1, SHORT, KEY, "compress")
        without = actor_of(server)(asked, 1, SHORT, KEY, "compress")
    assert rows[0] == [Reply("x" * 24, [], True)] and actor.cut == 3 and actor.failures == 0
    for (reply,), (other,), request in zip(rows[1:], without[1:], asked[1:], strict=True):
        whole = bodies[request.text]
        assert (
            not reply.finished
            and len(TOKENIZER(reply.text, add_special_tokens=False).input_ids) <= 24 + 16
        )
        assert whole.startswith(reply.text) and reply.text
        assert not other.finished and other.text == whole[: 24 * 16]


def test_an_answer_without_end_is_not_read(monkeypatch):
    monkeypatch.setattr(served, "ENVELOPE", 100_000)
    with serve(lambda body, text: [long_answer("x" * 10**7) if text == "huge" else ""]) as server:
        actor = actor_of(server)
        rows = actor(
            [Request("judge", "0", "huge"), Request("judge", "1", "fine")], 1, SHORT, KEY, "judge"
        )
        assert len(server.times["huge"]) == 1  # the same seed would give the same
    assert (
        rows[0] == [Reply("", [], False)]
        and rows[1][0].finished
        and actor.failures == 1
        and not actor.silent
    )


def test_a_reply_of_exactly_what_was_asked_for_keeps_its_thinking():
    """Tags that go back around thinking are not counted."""
    message = {"content": "y" * 12, "reasoning_content": "x" * 12}
    with serve(lambda body, text: [message]) as server:
        actor = actor_of(server, processor=PROCESSOR)
        ((reply,),) = actor(rollouts_of("q"), 1, SHORT, KEY, "teacher")
    assert reply == Reply(f"<think>{'x' * 12}</think>{'y' * 12}", [], True) and actor.cut == 0


def test_a_step_with_a_dead_teacher_keeps_its_student_rollouts():
    def student(requests, n, sampling, key, phase):
        texts = ["<think>a\nb</think>\\boxed{2}", "\\boxed{3}", "no answer", "\\boxed{4}"]
        return [
            [Reply(texts[seed_of(*key, r.kind, r.uid, j) % 4], [1, 2], True) for j in range(n)]
            for r in requests
        ]

    new = [Question(f"q{i}", f"question {i}", (), "4", free_form=i == 3) for i in range(8)]
    recipe, dead = Recipe(group_size=4, rho_aug=0.5), ServedActor(CLOSED, "m", delays=[0.01])
    groups, stats = collect(Context(student, dead, recipe, KEY), new, [])
    mute = Context(
        student, lambda asked, n, *_: [[Reply("", [], False)] * n for _ in asked], recipe, KEY
    )
    silent = collect(mute, new, [])
    assert (groups, stats) == silent
    assert [group.question for group in groups[:8]] == new and {
        group.kind for group in groups[8:]
    } == {"ncq"}
    assert stats["compression_fallbacks"] == stats["compressed"] > 0 == stats["bcq_possible"]
    assert groups[3].accuracy == 0  # no judge, no reward
    assert dead.silent == {KEY} and dead.failures > stats["compressed"]


def test_check(capsys):
    for url in (CLOSED, "http://127.0.0.1:x/v1"):
        with pytest.raises(ConnectionError, match=f"{url}: no server.*(ConnectError|InvalidURL)"):
            ServedActor(url).check()
    with serve(lambda body, text: [404] if body["model"] != "the-teacher" else [""]) as server:
        actor = ServedActor(server.url + "/")
        actor.check()
        assert actor.model == "the-teacher" and actor.takes_top_k and len(server.seen) == 1
        with pytest.raises(
            ConnectionError, match=r"model other\): HTTP 404.*models served: \['the-teacher'\]"
        ):
            ServedActor(server.url, "other").check()
        with pytest.raises(ConnectionError, match="no list at .*404"):
            ServedActor(server.url.removesuffix("/v1")).check()
        server.models = ["one", "two"]
        with pytest.raises(
            ConnectionError, match=r"with --teacher_model; models served: \['one', 'two'\]"
        ):
            ServedActor(server.url).check()
        assert f"waiting for {server.url} to answer, 900 seconds at most" in capsys.readouterr().out
    with (
        serve(lambda body, text: ["hang"]) as server,
        pytest.raises(ConnectionError, match="the server is silent"),
    ):
        actor_of(server, timeout=0.2).check()
    with serve(
        lambda body, text: [422] if "top_k" in body else [""]
    ) as server:  # as `transformers serve` does
        actor = actor_of(server)
        actor.check()
        actor([Request("judge", "0", "p")], 1, Sampling(4, temperature=0.0), KEY, "judge")
        config = json.loads(server.seen[-1]["generation_config"])
        assert config == {"do_sample": False, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
        assert (
            server.seen[-1]["chat_template_kwargs"] == {"enable_thinking": False}
            and len(server.seen) == 3
        )


def test_check_asks_for_what_training_asks_for():
    def plan(body, text):
        shows = not isinstance(body["messages"][0]["content"], str)
        return [400] if body["max_tokens"] > 100 or shows else [""]

    picture = Question("q", "which?", (Image.new("RGB", (9, 9)),), "1")
    with serve(plan) as server:
        actor_of(server).check(100)
        with pytest.raises(ConnectionError, match="HTTP 400"):
            actor_of(server).check(101)
        with pytest.raises(ConnectionError, match="HTTP 400"):
            actor_of(server).check(100, picture)
        server.plan = lambda body, text: [""]
        actor_of(server).check(101, picture)
        assert [len(body["images"]) for body in server.seen[-2:]] == [0, 1]


@pytest.mark.parametrize(
    ("method", "asked"),
    [
        ("zppo", [(0, 99), (1, 99)]),
        ("grpo_both", [(0, 99), (1, 99)]),
        ("grpo_replay_ncq", [(0, 512)]),
    ],
)
def test_a_run_asks_its_server_as_it_will_in_training(method, asked, tmp_path):
    """With the first image that can be read; NCQ alone asks for nothing but summaries."""
    for i in range(3):
        Image.new("RGB", (64, 64)).save(tmp_path / f"{i}.png")
    cut = (tmp_path / "1.png").read_bytes()[:60]
    (tmp_path / "1.png").write_bytes(cut)
    rows = [{"question": "which?", "answer": "1"}]
    rows += [{"question": f"{i}?", "answer": "1", "image": f"{i}.png"} for i in (1, 2)]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    questions, _ = load_questions(str(tmp_path / "d.jsonl"))
    assert len(questions) == 3
    with serve() as server:
        line = sums_for(server.url, tmp_path) + ["--method", method, "--max_response_tokens", "99"]
        load_actors(*read_options(line), Accelerator(cpu=True), {}, threading.Event(), questions)
        assert [(len(body["images"]), body["max_tokens"]) for body in server.seen] == asked


@pytest.mark.parametrize("unknown", [{"chat_template_kwargs"}, {"chat_template_kwargs", "top_k"}])
def test_a_server_that_refuses_unknown_fields(unknown):
    with serve(lambda body, text: [400] if unknown & set(body) else [""]) as server:
        actor = actor_of(server)
        actor.check()
        actor([Request("judge", "0", "p")], 1, SHORT, KEY, "judge")
        assert not unknown & set(server.seen[-1]) and actor.failures == 0
        with pytest.raises(
            ConnectionError, match="HTTP 400"
        ):  # what the user asked for is never left out in silence
            actor_of(server, template={"enable_thinking": True}).check()


def test_a_signal_ends_a_runs_waiting_for_its_teacher_and_the_step_is_done_again(tmp_path):
    hangs, run = threading.Event(), tmp_path / "run"
    with serve(
        lambda body, text: ["hang"] if text != "Say yes." and not hangs.is_set() else [""]
    ) as server:
        line = command(run, "--teacher", server.url, "--eval_questions", "0", "--steps", "1")
        line += f"--student {ROOT}/world/student --data {tmp_path}/d.jsonl".split()
        line += ["--max_response_tokens", "8"]
        rows = [{"question": f"{i} + 1 = ?", "answer": "2"} for i in range(8)]
        (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        process = subprocess.Popen(
            line, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        until(lambda: len(server.seen) > 1, seconds=200)  # the probe, then what hangs
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=100)
        assert (
            process.returncode == 1 and "step 1 is to be done again" in said and "--resume" in said
        ), said
        assert (run / "checkpoints/step_00000/state.json").exists() and not (
            run / "metrics.jsonl"
        ).exists()
        hangs.set()
        done = subprocess.run(
            [*line, "--resume"], env=ENV, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
    assert json.loads((run / "metrics.jsonl").read_text())["step"] == 1


# ---------------------------------------------------------------- odd servers, proxies, secrets


def completion(message: dict, reason: str = "stop") -> bytes:
    return json.dumps({"choices": [{"finish_reason": reason, "message": message}]}).encode()


PARTS = [{"type": "text", "text": "so "}, "it is ", {"type": "text", "text": "4"}]
ODD_REPLIES = {  # name: (message, finish_reason, of a rollout?, template, text, finished)
    "thinking is off": ({"content": None, "reasoning_content": "4"}, "stop", False, {}, "4", True),
    "off, empty": ({"content": "", "reasoning": "4"}, "stop", False, {}, "4", True),
    "off in a rollout": (
        {"content": None, "reasoning_content": "\\boxed{4}"},
        *("stop", True, {"enable_thinking": False}, "\\boxed{4}", True),
    ),
    "on in a rollout": (
        {"content": None, "reasoning_content": "4"},
        *("stop", True, {"enable_thinking": True}, "<think>4", True),
    ),
    "off, but it thinks": ({"content": None, "reasoning": "hm"}, "length", False, {}, "", False),
    "a list of parts": ({"content": PARTS}, "stop", False, {}, "so it is 4", True),
    "another end": ({"content": "4"}, "eos_token", True, {}, "4", True),
    "one more": ({"content": "4"}, "stop_sequence", True, {}, "4", True),
    "a cut": ({"content": "4"}, "length", True, {}, "4", False),
}


@pytest.mark.parametrize("name", ODD_REPLIES)
def test_replies_of_other_forms(name):
    message, reason, is_rollout, template, text, finished = ODD_REPLIES[name]
    requests = rollouts_of("p") if is_rollout else [Request("judge", "0", "p")]
    with serve(lambda body, text: [completion(message, reason)]) as server:
        actor = actor_of(server, template=template)
        assert actor(requests, 1, SHORT, KEY, "p") == [[Reply(text, [], finished)]]
        assert actor.failures == 0


def test_what_retry_after_says():
    def wanted(status: int, after: str) -> float | None:
        return served.wait_before_retry(httpx.Response(status, headers={"retry-after": after}))

    assert [wanted(429, after) for after in ("2", "1.5", "soon", "")] == [2.0, 1.5, 0.0, 0.0]
    assert wanted(503, "Fri, 31 Dec 2999 23:59:59 GMT") > 1e9
    assert wanted(503, "Fri, 31 Dec 1999 23:59:59 GMT") < 0  # the delay of the next try holds
    assert wanted(404, "2") is None


@pytest.fixture
def no_proxies(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.parametrize("name", ["HTTP_PROXY", "ALL_PROXY"])
def test_no_proxy_on_the_way_to_this_machine(name, no_proxies, monkeypatch):
    monkeypatch.setenv(name, "socks5://127.0.0.1:1" if name == "ALL_PROXY" else CLOSED)
    with serve() as server:
        actor_of(server).check()
        ServedActor(server.url.replace("127.0.0.1", "localhost"), "the-teacher").check()


def test_a_proxy_is_used_and_named(no_proxies, monkeypatch):
    with serve() as server:
        monkeypatch.setenv("HTTP_PROXY", server.url.removesuffix("/v1"))
        ServedActor("http://teacher.example/v1").check()
        assert server.seen[-1]["model"] == "the-teacher"
    monkeypatch.setenv("HTTP_PROXY", "user:geheim@127.0.0.1:1")
    with pytest.raises(ConnectionError, match="through the proxy 127.0.0.1: no server") as error:
        ServedActor("http://teacher.example/v1").check()
    assert "geheim" not in str(error.value)
    monkeypatch.setenv("HTTP_PROXY", "socks5://127.0.0.1:1")
    with pytest.raises(ConnectionError, match="through the proxy 127.0.0.1: no server.*socks"):
        ServedActor("http://teacher.example/v1")
    monkeypatch.setenv("NO_PROXY", ".example")
    ServedActor("http://teacher.example/v1")


def test_the_key_is_never_shown(monkeypatch, capsys):
    monkeypatch.setenv("TEACHER_API_KEY", " sk-geheim\n")
    with serve(
        lambda body, text: [(401, f"no such key: {server.seen[-1]['key']}".encode())]
    ) as server:
        actor = actor_of(server)
        with pytest.raises(ConnectionError, match="no such key: Bearer ") as error:
            actor.check()
        actor(rollouts_of("p"), 1, SHORT, KEY, "teacher")
        assert {body["key"] for body in server.seen} == {"Bearer sk-geheim"}
    assert "geheim" not in f"{error.value}{capsys.readouterr()}"
    for key in ("schlüssel-geheim", "sk-\ngeheim", "sk-geheim\u200b"):
        monkeypatch.setenv("TEACHER_API_KEY", key)
        with pytest.raises(ConnectionError, match="TEACHER_API_KEY") as error:
            ServedActor(CLOSED, "m").check()
        assert "geheim" not in str(error.value)
    monkeypatch.delenv("TEACHER_API_KEY")
    with pytest.raises(ConnectionError, match="set TEACHER_API_KEY") as error:
        ServedActor("http://user:geheim@127.0.0.1:1/v1").check()
    assert "geheim" not in str(error.value)


def sums_for(server_url: str, folder: Path) -> list[str]:
    """Options of a run on eight sums, none of which the world's student can do."""
    rows = [{"question": f"{i} + 1 = ?", "answer": str(i + 1)} for i in range(8)]
    (folder / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    line = f"--teacher {server_url} --student {ROOT}/world/student --data {folder}/d.jsonl"
    return [*line.split(), "--max_response_tokens", "8", "--eval_questions", "0"]


def test_a_teacher_that_refuses_everything_stops_the_run_with_its_state_saved(tmp_path):
    def plan(body, text):
        return [""] if text == "Say yes." else [(400, server.seen[-1]["key"].encode())]

    run = tmp_path / "run"
    with serve(plan) as server:
        line = [*sums_for(server.url, tmp_path), "--steps", "6"]
        done = train(run, *line, check=False, TEACHER_API_KEY="sk-geheim\n")
    assert done.returncode == 1 and "for 3 steps; the state is saved" in done.stderr, done.stderr
    assert len(read_metrics(run)) == 3 and read_state(run, 3)[2]["step"] == 3
    written = b"".join(path.read_bytes() for path in run.rglob("*") if path.is_file())
    assert "geheim" not in done.stdout + done.stderr and b"geheim" not in written


def test_a_key_that_is_none_is_one_sentence_with_status_2(tmp_path):
    line = sums_for(CLOSED, tmp_path)
    done = train(tmp_path / "run", *line, check=False, TEACHER_API_KEY="schlüssel")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "TEACHER_API_KEY" in done.stderr and "schl" not in done.stdout + done.stderr
