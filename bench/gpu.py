"""A self-check for whoever has a GPU: are the numbers those of a CPU, does the host wait, how fast?

    python -m bench.gpu            under five minutes, no download
    python -m bench.gpu --small    the same code with small shapes, also on a CPU

Prints one table. Nothing is written but folders that go again.

1. "world": train.py on the embedded world for three steps, here and on the CPU, side by side. On a
   GPU rounding flips a token now and then, so accuracies agree, not the last digits.
2. "student": a random model of the 0.8B student's shape, with a vision tower and images in every
   other prompt. Its rollouts never end by themselves: all have the greatest length.
3. Log-probs as sampling computes them, with a cache, beside those of the update, in bf16 and fp32.
4. "waits": operations of a decoding step after which the host needs a value from the device.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import transformers
from accelerate import Accelerator
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from bench.machine import CUDA, clock
from bench.shapes import model_of
from engine.checks import CHECKED, draw, sample, score
from engine.decode import Decoder, decoding
from engine.linear import lighten
from engine.models import collate, encode
from engine.questions import Question
from engine.update import make_learner
from generate import Actor, Request, Sampling
from world import pretrain
from zppo import Group, Recipe, Rollout, update

ROOT = Path(__file__).parent.parent
COMPARED = ("plain_accuracy", "teacher_accuracy", "bcq_accuracy", "grad_norm", "entropy")
WAITS = ("_local_scalar_dense", "nonzero", "equal", "masked_select", "unique_dim")


def show(what: str, found) -> None:
    """One row of the table."""
    print(f"| {what} | {found} |", flush=True)


# ---------------------------------------------------------------- the embedded world


def run_world(folder: Path, steps: int, questions: int, **env: str) -> list[dict]:
    """The metrics of a run."""
    words = f"--steps {steps} --new_per_step {questions} --eval_questions 0 --seed 0".split()
    command = [sys.executable, str(ROOT / "train.py"), "--output", str(folder), *words]
    done = subprocess.run(command, env=os.environ | env, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return [json.loads(line) for line in (folder / "metrics.jsonl").open(encoding="utf-8")]


def check_world(small: bool) -> None:
    steps, questions = (1, 4) if small else (3, 64)
    with tempfile.TemporaryDirectory() as folder:
        here = run_world(Path(folder, "here"), steps, questions)
        cpu = run_world(Path(folder, "cpu"), steps, questions, CUDA_VISIBLE_DEVICES="")
    for name in COMPARED:
        both = [f"{a[name] or 0:.4f} / {b[name] or 0:.4f}" for a, b in zip(here, cpu)]
        show(f"world, {name}, here / CPU, step by step", ", ".join(both))


# ---------------------------------------------------------------- a random student


def make_student(small: bool) -> Actor:
    """An actor of the 0.8B student's shape, with the embedded world's tokenizer."""
    processor = pretrain.make_processor()
    processor.chat_template = pretrain.CHAT_TEMPLATE
    model = pretrain.make_model(processor, 64, 4, seed=0)
    if not small:
        config = model.config
        config.text_config = model_of("0.8B").config
        config.vision_config.depth = 12
        config.vision_config.hidden_size = 768
        config.vision_config.intermediate_size = 3072
        config.vision_config.num_heads = 12
        config.vision_config.out_hidden_size = config.text_config.hidden_size
        with torch.device("cuda" if CUDA else "cpu"):
            model = transformers.Qwen3_5ForConditionalGeneration(config)
        model.tie_weights()
    lighten(model)
    actor = Actor(model, processor, rows=128)
    actor.end_ids = [len(processor.tokenizer) - 1]
    return actor


def make_requests(prompts: int, words: int) -> list[Request]:
    """Prompts of unequal length, every other one with an image."""
    requests = []
    for i in range(prompts):
        images = (Image.new("RGB", (64, 64), (40 * i % 256, 90, 200)),) if i % 2 else ()
        text = "why? " * (words + i)
        requests.append(Request("plain", str(i), text, Question(str(i), text, images, "1")))
    return requests


class Waits(TorchDispatchMode):
    """Counts the operations after which the host needs a value."""

    def __init__(self):
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in WAITS:
            self.names.append(name)
        return func(*args, **(kwargs or {}))


def waits_of_a_step(actor: Actor, requests: list[Request]) -> list[str]:
    """Names of the operations in one decoding step of unequal prompts."""
    found = []
    forward = Decoder.__call__

    def watched(decoder, tokens):
        with Waits() as waits:
            logits = forward(decoder, tokens)
        found.append(waits.names)
        return logits

    Decoder.__call__ = watched
    try:
        actor(requests, 2, Sampling(max_new_tokens=4), (0, 1), "waits")
    finally:
        Decoder.__call__ = forward
    return found[-1]


def speed_of_transformers(actor: Actor, requests: list[Request], group: int, new: int) -> float:
    """Response tokens per second of model.generate on the same prompts."""
    prompts = [actor.encoder(request.text, request.question) for request in requests]
    batch = collate(prompts, device=actor.model.device)
    start = clock()
    with decoding(actor.model), torch.no_grad(), actor.autocast():
        actor.model.generate(
            **batch,
            do_sample=True,
            top_k=0,
            min_new_tokens=new,
            max_new_tokens=new,
            num_return_sequences=group,
        )
    return len(prompts) * group * new / (clock() - start)


def check_log_probs(actor: Actor) -> None:
    """Sampling beside scoring: the greatest difference of a token's log-prob."""
    model = actor.model
    prompt = encode(actor.processor, "How many?")
    for name, on in (("fp32", False), ("bf16", True)):
        generator = torch.Generator().manual_seed(0)
        rows = [draw(prompt, length, generator) for length in (17, 65)]
        with torch.no_grad(), torch.autocast(model.device.type, torch.bfloat16, enabled=on):
            with decoding(model):
                tokens, sampled = sample(model, rows, generator)
            gap = (sampled - score(model, rows, tokens)).abs().max().item()
        show(f"student, log-probs of sampling v scoring, {CHECKED} tokens, {name}", f"{gap:.1e}")


def check_student(small: bool) -> None:
    prompts, words, group, new = (4, 4, 2, 12) if small else (16, 150, 8, 256)
    accelerator = Accelerator(cpu=not CUDA, mixed_precision="bf16" if CUDA else "no")
    actor = make_student(small)
    actor.model.to(accelerator.device)
    actor.autocast = accelerator.autocast
    requests = make_requests(prompts, words)
    check_log_probs(actor)
    names = waits_of_a_step(actor, requests)
    show("student, waits in a decoding step", f"{len(names)} {sorted(set(names))}")
    actor(requests, group, Sampling(max_new_tokens=4), (0, 0), "warm-up")
    start = clock()
    replies = actor(requests, group, Sampling(max_new_tokens=new), (0, 2), "rollout")
    seconds = clock() - start
    tokens = sum(len(reply.tokens) for row in replies for reply in row)
    show(f"student, {prompts * group} rollouts, tokens per second", f"{tokens / seconds:.0f}")
    theirs = speed_of_transformers(actor, requests, group, new)
    show("the same by model.generate", f"{theirs:.0f}")
    check_update(actor, accelerator, requests, replies)


def check_update(actor: Actor, accelerator: Accelerator, requests, replies) -> None:
    """One step of zppo.update on these rollouts, every other one right."""
    groups = []
    for request, row in zip(requests, replies):
        rewards = [float(j % 2) for j in range(len(row))]
        rollouts = [Rollout(x.text, x.tokens, reward, None) for x, reward in zip(row, rewards)]
        groups.append(Group(request.question, "plain", request.text, rollouts))
    actor.model.gradient_checkpointing_enable({"use_reentrant": False})
    actor.model.train()
    learner = make_learner(accelerator, actor, 1e-6, 0.1, 16_384)
    start = clock()
    metrics = update(learner, groups, Recipe(updates_per_step=1), (0, 0))
    seconds = clock() - start
    finite = all(parameter.isfinite().all().item() for parameter in actor.model.parameters())
    show(
        "student, update, response tokens per second", f"{metrics['response_tokens'] / seconds:.0f}"
    )
    show("student, gradient norm", f"{metrics['grad_norm']:.3g}")
    show("student, all weights finite", finite and not metrics["updates_not_finite"])
    if CUDA:
        peak = torch.cuda.max_memory_allocated() / 2**30
        show("peak memory, GiB allocated", f"{peak:.1f}")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--small", action="store_true", help="small shapes, also on a CPU")
    small = parser.parse_args(argv).small
    if not CUDA and not small:
        raise SystemExit("there is no GPU here: --small runs the same code on a CPU")
    transformers.logging.set_verbosity_error()
    machine = torch.cuda.get_device_name() if CUDA else f"{platform.machine()} CPU"
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    print(f"| {machine}, {versions} | |\n|---|---|")
    check_student(small)
    check_world(small)


if __name__ == "__main__":
    main()
