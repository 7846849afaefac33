"""bf16 beside fp32 on this CPU: tokens per CPU second when sampling and when training.

    python -m bench.smollm.precision --model runs/smollm/student

The two precisions take turns, each round in processes of their own. CPU time is counted, so that
other work on the machine matters little. One thread.
"""

import argparse
import os
import subprocess
import sys
import time
from statistics import median

import torch

from engine.questions import Question
from engine.update import Row, make_accelerator, make_learner
from generate import Actor, Request, Sampling
from prompts import plain_prompt

PRECISIONS = ("no", "bf16")  # accelerate's names; "no" is fp32
QUESTION = Question("sum", "What is 34 + 45?", (), "79")
RESPONSE = list(range(100, 140))  # any tokens


def sampling_speed(actor: Actor, length: int) -> float:
    """Sampled tokens per CPU second: 8 rollouts for each of 4 prompts."""
    text = plain_prompt(QUESTION.text)
    requests = [Request("plain", str(i), text, QUESTION) for i in range(4)]
    start = time.process_time()
    replies = actor(requests, 8, Sampling(max_new_tokens=length), (0, 0), "rollout")
    seconds = time.process_time() - start
    return sum(len(reply.tokens) for row in replies for reply in row) / seconds


def update_speed(learner) -> float:
    """Tokens per CPU second, forward and backward: 4 rows of about 240 tokens."""
    rows = [Row(20 * QUESTION.text, QUESTION, RESPONSE, 1.0) for _ in range(4)]
    prompt = learner.encoder(rows[0].prompt, QUESTION)["input_ids"]
    start = time.process_time()
    for micro in learner.micro_batches(rows):
        logp, *_ = learner.log_probs(micro)
        learner.backward(logp.sum())
    seconds = time.process_time() - start
    return len(rows) * (len(prompt) + len(RESPONSE)) / seconds


def measure(model: str) -> None:
    torch.set_num_threads(1)
    accelerator = make_accelerator()
    actor = Actor.load(model, accelerator, torch.float32, pixels=(None, None))
    learner = make_learner(accelerator, actor, 0.0, 0.0, 4096)
    # The first call of each is slower.
    sampling_speed(actor, 2)
    update_speed(learner)
    print(sampling_speed(actor, 12), update_speed(learner))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="runs/smollm/student", help="model folder or hub id")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--once", action="store_true", help="in the precision of the environment")
    args = parser.parse_args()
    if args.once:
        return measure(args.model)
    speeds = {precision: [] for precision in PRECISIONS}
    for _ in range(args.rounds):
        for precision in PRECISIONS:
            env = {**os.environ, "ACCELERATE_MIXED_PRECISION": precision, "OMP_NUM_THREADS": "1"}
            command = [sys.executable, "-m", "bench.smollm.precision", "--once"]
            command += ["--model", args.model]
            done = subprocess.run(command, env=env, check=True, capture_output=True, text=True)
            speeds[precision].append([float(word) for word in done.stdout.split()[-2:]])
    for precision, pairs in speeds.items():
        sampled, trained = (median(column) for column in zip(*pairs))
        print(f"{precision:>5}: sampling {sampled:.0f} tok/s, update {trained:.0f} tok/s")


if __name__ == "__main__":
    main()
