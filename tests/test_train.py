"""Whole runs of train.py on the embedded world: exact resume, several processes, bad input."""

import json
import re
import shutil
from contextlib import nullcontext
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
import tiny
import transformers
from accelerate import Accelerator
from runs import ROOT, assert_close, torchrun, train
from safetensors.torch import load_file

from arguments import parse
from build import load_actors, rows_from_memory
from engine.decode import MEMORY_SHARE, row_bytes
from engine.run import check_same_run
from generate import Actor
from world import pretrain


def test_a_run_leaves_what_the_docstring_says(reference):
    run, screen = reference
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in metrics] == [1, 2, 3, 4]
    assert metrics[0]["replayed"] == 0 and metrics[1]["replayed"] == 2  # rho_replay * 8, once the buffer has any
    assert all(line["bcq_prompts"] + line["ncq_prompts"] <= 4 for line in metrics)  # rho_aug * 8
    assert sum(line["bcq_prompts"] for line in metrics) > 0 < sum(line["ncq_prompts"] for line in metrics)
    assert all(0 <= line["active_share"] <= 1 and line["grad_norm"] >= 0 for line in metrics)
    for step in (2, 4):
        records = [json.loads(line) for line in (run / f"dumps/step_{step:05d}.jsonl").read_text().splitlines()]
        assert {record["kind"] for record in records} <= {"bcq", "ncq"}
        assert all(len(record["rollouts"]) == 4 for record in records)
    assert "held-out questions" in screen and "accuracy at admission" in screen
    assert len((run / "eval_before.jsonl").read_text().splitlines()) == 18  # 3 questions x 3 families x known and hard
    before = load_file(ROOT / "world" / "student" / "model.safetensors")
    after = load_file(run / "model" / "model.safetensors")
    assert before.keys() == after.keys()
    assert any((before[name].float() != after[name]).any() for name in after)


def test_two_processes_make_the_same_rollouts_and_weights(reference, tmp_path):
    run, _ = reference
    two = tmp_path / "run"
    assert "on 2 processes" in train(two, launch=torchrun(2)).stdout
    assert (two / "dumps/step_00002.jsonl").read_bytes() == (run / "dumps/step_00002.jsonl").read_bytes()
    assert_close(two, run)


def test_rollouts_in_tensors_of_fixed_shape_are_the_same(reference, tmp_path):
    run, _ = reference
    train(tmp_path / "run", "--cuda_graphs", "--rollout_rows", "0", "--steps", "1")
    assert (tmp_path / "run" / "eval_before.jsonl").read_bytes() == (run / "eval_before.jsonl").read_bytes()
    lines = [(folder / "metrics.jsonl").read_text().splitlines()[0] for folder in (tmp_path / "run", run)]
    assert json.loads(lines[0]) == pytest.approx(json.loads(lines[1]), rel=1e-3, abs=1e-5)


def test_a_launcher_that_starts_fewer_processes_than_asked_is_named(reference):
    run, _ = reference
    launch = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    done = train(run, launch=launch, check=False)
    assert "torchrun --nproc_per_node 2" in done.stdout + done.stderr


def test_a_run_is_not_overwritten(reference):
    run, _ = reference
    done = train(run, check=False)
    assert done.returncode != 0 and "--resume" in done.stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--group_sise", "4"], "--group_sise"),
        (["--new_per_step", "5000"], "fewer than one step needs"),
        (["--student", "somewhere"], "--teacher"),
        (["--data", "somewhere"], "--student"),
        (["--norm", "zscore"], "norm_wo_zero"),
    ],
)
def test_bad_arguments_are_refused_before_training(tmp_path, args, message):
    done = train(tmp_path / "run", *args, check=False)
    assert done.returncode != 0 and message in done.stderr
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_bad_rows_and_long_prompts_are_counted_before_training(tmp_path):
    rows = [{"prompt": f"{i} + 1 = ?", "answer": str(i + 1)} for i in range(9)]
    rows += [{"prompt": "", "answer": "1"}, {"prompt": "x", "answer": None}, {"prompt": "y" * 999, "answer": "1"}]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    models = f"--student {ROOT}/world/student --teacher {ROOT}/world/teacher --data {tmp_path}/sums.jsonl".split()
    limits = "--columns question=prompt --max_prompt_tokens 200 --steps 1 --max_response_tokens 8".split()
    done = train(tmp_path / "run", *models, *limits)
    assert "9 questions" in done.stdout and "'prompt over budget': 1" in done.stdout
    assert all(f"'{reason}': 1" in done.stdout for reason in ("question_empty", "answer_missing"))
    metrics = json.loads((tmp_path / "run" / "metrics.jsonl").read_text())
    assert metrics["plain_prompts"] == 8 and metrics["no_answer_share"] > 0  # the world's student cannot add
    done = train(tmp_path / "other", *models, *limits, "--new_per_step", "10", check=False)
    assert done.returncode != 0 and "fewer than one step needs" in done.stderr


def test_buffer_of_another_data_set_is_refused(reference, tmp_path):
    run, _ = reference
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    path = copy / "checkpoints" / "step_00004" / "state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "data": "another set"}))
    done = train(copy, "--resume", "--steps", "5", check=False)
    assert done.returncode != 0 and "other questions" in done.stderr


def test_resume_under_another_method_is_refused(reference):
    run, _ = reference
    done = train(run, "--resume", "--steps", "5", "--method", "grpo", check=False)
    assert done.returncode != 0 and "--method zppo (now grpo)" in done.stderr


def test_configuration_file(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("lr: 1e-5\nmethod: grpo_both\nsteps: 7\ncolumns:\n  question: prompt\n")
    args, recipe, is_toy = parse([str(file), "--steps", "3"])
    assert args.columns == ["question=prompt"]
    assert (args.lr, recipe.replay, args.steps, is_toy, args.new_per_step) == (1e-5, False, 3, True, 32)
    file.write_text("learning_rate: 1e-5\n")
    with pytest.raises(SystemExit, match="learning_rate"):
        parse([str(file)])


def test_template_arguments_reach_the_actors_and_count_as_results(tmp_path, capsys):
    file = tmp_path / "run.yaml"
    file.write_text("teacher_chat_template_kwargs:\n  enable_thinking: true\n")
    args, recipe, _ = parse([str(file), "--chat_template_kwargs", '{"enable_thinking":false}'])
    student, teacher = load_actors(args, recipe, Accelerator(cpu=True), {})
    assert (student.template, teacher.template) == ({"enable_thinking": False}, {"enable_thinking": True})
    (tmp_path / "args.json").write_text(json.dumps(asdict(args)))
    check_same_run(tmp_path, asdict(args))
    with pytest.raises(SystemExit):
        check_same_run(tmp_path, asdict(parse([str(file)])[0]))
    assert re.search("--chat_template_kwargs .*False.*now {}", capsys.readouterr().err)
    for bad in ("{enable_thinking: true}", "[1]", "5"):
        with pytest.raises(SystemExit):
            parse(["--teacher_chat_template_kwargs", bad])
        assert f"--teacher-chat-template-kwargs: not a JSON object: '{bad}'" in capsys.readouterr().err


def test_an_architecture_with_another_head_is_refused_before_training(tmp_path):
    config = {name: value for name, value in tiny.CAUSAL.items() if name != "head_dim"}
    transformers.CohereForCausalLM(transformers.CohereConfig(**config, logit_scale=0.5)).save_pretrained(tmp_path)
    # not tiny's: one that was saved with its processor asks for that again
    tokenizer = pretrain.make_processor().tokenizer
    tokenizer.chat_template = pretrain.CHAT_TEMPLATE
    tokenizer.save_pretrained(tmp_path)
    args, recipe, _ = parse(["--student", str(tmp_path), "--teacher", str(ROOT / "world/teacher"), "--data", "d"])
    with pytest.raises(SystemExit, match="cohere: its head does more"):
        load_actors(args, recipe, Accelerator(cpu=True), {})
    args = replace(args, student=str(ROOT / "world/student"), teacher=str(tmp_path))
    load_actors(args, recipe, Accelerator(cpu=True), {})  # a teacher that only writes text may have any head
    with pytest.raises(SystemExit, match="cohere: its head does more"):
        load_actors(args, replace(recipe, method="on_distill"), Accelerator(cpu=True), {})


def test_rows_from_memory(capsys):
    args, recipe, _ = parse(["--student", "s", "--teacher", "t", "--data", "d"])
    accelerator, student = Accelerator(cpu=True), Actor(tiny.make("qwen3_5"), tiny.PROCESSOR)
    teacher = Actor(tiny.make("qwen3"), tiny.TOKENIZER)
    trained = 3 * 4 * sum(p.numel() for p in student.model.parameters())  # gradients and AdamW's moments, fp32
    rows = [row_bytes(actor.model, 4096 + 12_288) for actor in (student, teacher)]
    rows_from_memory(args, recipe, accelerator, [student, teacher, "served"], trained + 20.5 * rows[0] / MEMORY_SHARE)
    assert (student.rows, teacher.rows) == (20, int(20.5 * rows[0] / rows[1]))
    assert f"[20, {teacher.rows}]" in capsys.readouterr().out
    rows_from_memory(args, recipe, accelerator, [student], 1e15)
    assert student.rows == 384 * 8  # all of a step's plain rollouts
    rows_from_memory(args, recipe, accelerator, [student], 0)
    assert student.rows == 1
    # FSDP2 over 8: of weights, gradients and moments an eighth stays, and the rest of what is here now gets free
    sharded = SimpleNamespace(
        num_processes=8, is_fsdp2=True, mixed_precision="no", autocast=nullcontext, print=accelerator.print
    )
    left = trained / 3 * (4 / 8 + 1) - trained / 3  # and once the whole weights, for the rollouts
    rows_from_memory(args, recipe, sharded, [student], left + 20.5 * rows[0] / MEMORY_SHARE)
    assert student.rows == 20


def test_defaults_are_table_8():
    args, recipe, _ = parse(["--student", "s", "--teacher", "t", "--data", "d"])
    expected = dict(
        group_size=8, teacher_group_size=4, tau=0.5, rho_replay=0.25, rho_aug=0.25, buffer_capacity=10_000,
        norm="norm_wo_zero", updates_per_step=4, eps_low=0.20, eps_high=0.28, dual_clip=10.0, max_grad_norm=1.0,
        max_response_tokens=12_288, method="zppo", teacher_on_all_hard=False, dynamic_sampling=False,
    )  # fmt: skip
    assert vars(recipe) == expected
    assert (args.lr, args.weight_decay, args.steps, args.new_per_step) == (1e-6, 0.1, 200, 384)
    assert (args.max_prompt_tokens, args.micro_tokens) == (4096, 16_384)
