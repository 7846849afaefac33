"""Whole runs of train.py on the embedded world: exact resume, several processes, bad input."""

import json
import re
import shutil
from dataclasses import asdict, replace
from threading import Event

import pytest
import stages
import tiny
import torch
import transformers
from accelerate import Accelerator
from PIL import Image
from runs import ROOT, assert_close, train
from safetensors.torch import load_file

import zppo
from engine.output import check_same_run
from engine.questions import Question
from engine.update import make_accelerator, make_learner
from evaluate import DECODING
from generate import Actor, Sampling
from train import load_actors, main, read_options
from world import pretrain
from world.table import CELL, WORLD


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
        assert {record["kind"] for record in records} <= {"plain", "bcq", "ncq"}
        assert [record["kind"] for record in records].count("plain") == 4
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
    assert "on 2 processes" in train(two, processes=2).stdout
    assert (two / "dumps/step_00002.jsonl").read_bytes() == (run / "dumps/step_00002.jsonl").read_bytes()
    assert_close(two, run)


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


MODELS = f"--student {ROOT}/world/student --teacher {ROOT}/world/teacher".split()


def test_bad_rows_and_long_prompts_are_counted_before_training(tmp_path):
    rows = [{"prompt": f"{i} + 1 = ?", "answer": str(i + 1)} for i in range(9)]
    rows += [{"prompt": "", "answer": "1"}, {"prompt": "x", "answer": None}, {"prompt": "y" * 999, "answer": "1"}]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    limits = f"--data {tmp_path}/sums.jsonl --max_prompt_tokens 200 --steps 1 --max_response_tokens 8".split()
    done = train(tmp_path / "run", *MODELS, *limits)
    assert "9 questions, steps 1 to 1" in done.stdout and "1 questions are left out" in done.stdout
    assert all(f"{reason} 1" in done.stdout for reason in ("question_empty", "answer_missing"))
    assert "10 of 10 gold answers go to the rule: '1', '2'" in done.stdout
    assert "gold answers taken from: " in done.stdout
    metrics = json.loads((tmp_path / "run" / "metrics.jsonl").read_text())
    assert metrics["plain_prompts"] == 8 and metrics["no_answer_share"] > 0  # the world's student cannot add
    done = train(tmp_path / "other", *MODELS, *limits, "--new_per_step", "10", check=False)
    assert done.returncode == 2 and "fewer than one step needs" in done.stderr and "Traceback" not in done.stderr


def test_own_data_with_a_broken_image_a_reward_and_evaluations(tmp_path):
    """One image is cut behind its header: the run names it once, goes on, and resumes once the file is repaired."""
    for i in range(10):
        Image.new("RGB", (64, 64), (20 * i, 9, 9)).save(tmp_path / f"{i}.png")
    whole = (tmp_path / "3.png").read_bytes()
    (tmp_path / "3.png").write_bytes(whole[:60])
    rows = [{"question": f"which colour is {i}?", "answer": "red", "image": f"{i}.png"} for i in range(10)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "held.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:2]))
    code = "def even(question, response, gold):\n    return len(response) % 2 == 0 and gold in ('red', '2')\n"
    (tmp_path / "own.py").write_text(code)
    own = f"--data {tmp_path}/data.jsonl --eval_data {tmp_path}/held.jsonl --eval_every 1".split()
    own += f"--reward {tmp_path}/own.py:even --max_response_tokens 8 --new_per_step 5".split()
    own += "--min_pixels 256 --max_pixels 4096".split()  # as the images are: the default would scale them up
    own += ["--system_prompt", "Be brief."]
    done = train(tmp_path / "run", *MODELS, *own, "--steps", "2")
    assert done.stdout.count("image cannot be decoded") + done.stderr.count("image cannot be decoded") == 1
    first, second = (json.loads(x) for x in (tmp_path / "run/metrics.jsonl").read_text().splitlines())
    assert {first["broken_images"], second["broken_images"]} == {0, 1}
    assert first["plain_prompts"] + second["plain_prompts"] - first["replayed"] - second["replayed"] == 9
    for name in ("eval_before", "eval_00001", "eval_after"):
        records = [json.loads(x) for x in (tmp_path / f"run/{name}.jsonl").read_text().splitlines()]
        assert [record["reward"] for record in records] == [len(r["response"]) % 2 == 0 for r in records]
        assert len(records) == 2

    (tmp_path / "3.png").write_bytes(whole)
    refused = train(tmp_path / "run", *MODELS, *own, "--resume", "--steps", "3", check=False)
    assert refused.returncode == 2 and "other questions" in refused.stderr and "--data_may_differ" in refused.stderr
    train(tmp_path / "run", *MODELS, *own, "--resume", "--steps", "3", "--data_may_differ")
    steps = [json.loads(x) for x in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [x["step"] for x in steps] == [1, 2, 3] and steps[2]["broken_images"] == 0


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        ("--student {tmp}/none --teacher x --data {tmp}/good.jsonl", "none' cannot be loaded"),
        ("--student {tmp}/bare --teacher x --data {tmp}/good.jsonl", "has no chat template"),
        ("--student x --data {tmp}/good.jsonl", "belong together"),
        ("--student x --teacher y --data {tmp}/none.jsonl", "No such file"),
        ("--student x --teacher y --data {tmp}/empty.jsonl", "the file is empty"),
        ("--student x --teacher y --data {tmp}/latin.jsonl", "not UTF-8"),
        ("--student x --teacher y --data {tmp}/cut.jsonl", "not JSON"),
        ("--student x --teacher y --data {tmp}/good.jsonl --columns question=text", "text"),
        ("--reward {tmp}/none.py:f", "expected file.py:function"),
        ("--reward {tmp}/half.py:f", "gave 0.5: expected is 0 or 1"),
        ("--log_with foo", "foo"),
    ],
)
def test_bad_input_is_one_sentence_with_status_2(args, sentence, tmp_path, capsys):
    row = json.dumps({"question": "é + 1", "answer": "2"}, ensure_ascii=False) + "\n"
    (tmp_path / "good.jsonl").write_text(row, encoding="utf-8")
    (tmp_path / "latin.jsonl").write_text(row, encoding="latin-1")
    (tmp_path / "cut.jsonl").write_text(row + row[:20], encoding="utf-8")
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "half.py").write_text("def f(question, response, gold):\n    return 0.5\n")
    shutil.copytree(WORLD / "student", tmp_path / "bare", ignore=shutil.ignore_patterns("*.jinja"))
    line = args.format(tmp=tmp_path).split()
    if sentence in ("not JSON", "has no chat template"):  # through the real command
        done = train(tmp_path / "run", *line, check=False)
        assert done.returncode == 2 and sentence in done.stderr, done.stderr
        assert "Traceback" not in done.stderr
    else:
        with pytest.raises(SystemExit) as stopped:
            main([*line, "--output", str(tmp_path / "run")])
        said = stopped.value.code if isinstance(stopped.value.code, str) else capsys.readouterr().err
        assert sentence in said and (isinstance(stopped.value.code, str) or stopped.value.code == 2)
    assert not (tmp_path / "run/metrics.jsonl").exists()


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


def test_configuration_file(tmp_path, capsys):
    file = tmp_path / "run.yaml"
    file.write_text("lr: 1e-5\nmethod: grpo_both\nsteps: 7\nresume: true\ncolumns:\n  question: prompt\n")
    models = "--student s --teacher t --data d".split()
    args, recipe = read_options([str(file), "--steps", "3", *models])
    assert args.columns == ["question=prompt"] and args.resume is True
    assert (args.lr, recipe.replay, args.steps, args.new_per_step) == (1e-5, False, 3, 384)
    for text, message in [
        ("learning_rate: 1e-5", "unknown option --learning_rate"),
        ("rolout_rows: 5", "did you mean --rollout_rows"),
        ("method: zpo", "zpo"),
        ("steps: 0", "1 or more"),
        ("steps: many", "invalid int value: 'many'"),
        ("steps:", "steps has no value"),
        ("- 1", "name: value"),
        ("a: b: c", "cannot be read"),
    ]:
        file.write_text(text)
        with pytest.raises(SystemExit) as stopped:
            read_options([str(file), *models])
        assert message in f"{stopped.value}{capsys.readouterr().err}"
    with pytest.raises(SystemExit, match="missing.yaml: cannot be read"):
        read_options([str(tmp_path / "missing.yaml")])


@pytest.mark.parametrize(
    "line",
    """--steps 0; --save_every -1; --keep_checkpoints -1; --dump_every -1; --updates_per_step 0; --group_size 1; --tau 2
    --max_response_tokens 0; --new_per_step -4; --tau nan; --eps_low -0.1; --eps_high -1; --rho_aug -1; --rho_replay -1
    --rollout_rows -1; --micro_tokens 0; --lr -1; --buffer_capacity -1; --dual_clip 0.5; --teacher_group_size 0
    --weight_decay -1; --max_grad_norm -1; --max_prompt_tokens 0; --min_pixels 0; --max_pixels 0; --eval_questions -1
    """.replace("\n", ";").split(";")[:-1],
)
def test_every_option_has_its_range(line, capsys):
    name, _ = line.split()
    with pytest.raises(SystemExit) as stopped:
        read_options(line.split())
    assert stopped.value.code == 2 and re.search(f"{name}.*or more", capsys.readouterr().err)


def test_the_embedded_world_has_options_of_its_own():
    args, recipe = read_options(["--steps", "3"])
    assert (args.steps, args.new_per_step, args.lr, recipe.max_response_tokens) == (3, 64, 3e-4, 32)
    assert args.student == str(ROOT / "world/student") and not args.data
    (pixels,) = {args.min_pixels, CELL**2}
    assert args.max_pixels == 64 * pixels


def test_template_arguments_reach_the_actors_and_count_as_results(tmp_path, capsys):
    file = tmp_path / "run.yaml"
    file.write_text("teacher_chat_template_kwargs:\n  enable_thinking: true\n")
    models = ["--student", str(WORLD / "student"), "--teacher", str(WORLD / "teacher"), "--data", "d"]
    args, recipe = read_options([str(file), "--chat_template_kwargs", '{"enable_thinking":false}', *models])
    student, teacher = load_actors(args, recipe, Accelerator(cpu=True), {}, Event())
    assert student.encoder.template == {"enable_thinking": False}
    assert teacher.encoder.template == {"enable_thinking": True}
    (tmp_path / "args.json").write_text(json.dumps(asdict(args)))
    check_same_run(tmp_path, asdict(args))
    with pytest.raises(SystemExit):
        check_same_run(tmp_path, asdict(read_options([str(file), *models])[0]))
    assert re.search("--chat_template_kwargs .*False.*now {}", capsys.readouterr().err)
    for bad in ("{enable_thinking: true}", "[1]", "5"):
        with pytest.raises(SystemExit):
            read_options(["--teacher_chat_template_kwargs", bad])
        assert f"--teacher-chat-template-kwargs: not a JSON object: '{bad}'" in capsys.readouterr().err


def test_rows_with_teacher_tokens_need_one_rendering_of_prompts(tmp_path):
    """The teacher's template opens its response differently: its tokens would start in the wrong place."""
    shutil.copytree(WORLD / "teacher", tmp_path / "teacher")
    template = tmp_path / "teacher" / "chat_template.jinja"
    switch = "{% if enable_thinking is defined and enable_thinking %}on{% else %}off{% endif %}"
    models = ["--student", str(WORLD / "student"), "--teacher", str(tmp_path / "teacher"), "--data", "d"]
    template.write_text(template.read_text() + switch)
    for method in ("prefix", "teacher_response", "off_distill", "on_distill"):
        with pytest.raises(SystemExit, match=f"--method {method} needs one rendering of prompts: .*off' is not|assist"):
            load_actors(*read_options([*models, "--method", method]), Accelerator(cpu=True), {}, Event())
    load_actors(*read_options([*models, "--method", "hint"]), Accelerator(cpu=True), {}, Event())
    student = tmp_path / "student"
    shutil.copytree(WORLD / "student", student)
    (student / "chat_template.jinja").write_text(template.read_text())
    models[1] = str(student)
    thinking = ["--chat_template_kwargs", '{"enable_thinking": true}']
    args = read_options([*models, "--method", "prefix", *thinking])
    actors = load_actors(*args, Accelerator(cpu=True), {}, Event())
    assert [actor.encoder.template for actor in actors] == [{"enable_thinking": True}] * 2  # alike


def test_an_architecture_with_another_head_is_refused_before_training(tmp_path):
    config = {name: value for name, value in tiny.CAUSAL.items() if name != "head_dim"}
    transformers.CohereForCausalLM(transformers.CohereConfig(**config, logit_scale=0.5)).save_pretrained(tmp_path)
    # not tiny's: one that was saved with its processor asks for that again
    tokenizer = pretrain.make_processor().tokenizer
    tokenizer.chat_template = pretrain.CHAT_TEMPLATE
    tokenizer.save_pretrained(tmp_path)
    args, recipe = read_options(["--student", str(tmp_path), "--teacher", str(ROOT / "world/teacher"), "--data", "d"])
    with pytest.raises(SystemExit, match="cohere.*other log-probs"):
        load_actors(args, recipe, Accelerator(cpu=True), {}, Event())
    args = replace(args, student=str(ROOT / "world/student"), teacher=str(tmp_path))
    load_actors(args, recipe, Accelerator(cpu=True), {}, Event())  # a teacher that only writes text may have any head
    with pytest.raises(SystemExit, match="cohere.*other log-probs"):
        load_actors(args, replace(recipe, method="on_distill"), Accelerator(cpu=True), {}, Event())


def test_defaults_are_table_8():
    """Every value of Table 8, sampling and optimiser included."""
    args, recipe = read_options(["--student", "s", "--teacher", "t", "--data", "d"])
    expected = dict(
        group_size=8, teacher_group_size=4, tau=0.5, rho_replay=0.25, rho_aug=0.25, buffer_capacity=10_000,
        norm="norm_wo_zero", updates_per_step=4, eps_low=0.20, eps_high=0.28, dual_clip=10.0, max_grad_norm=1.0,
        max_response_tokens=12_288, method="zppo", teacher_on_all_hard=False,
    )  # fmt: skip
    assert vars(recipe) == expected
    assert (args.lr, args.weight_decay, args.steps, args.new_per_step) == (1e-6, 0.1, 200, 384)
    assert args.new_per_step // recipe.updates_per_step == 96
    assert (args.max_prompt_tokens, args.min_pixels, args.max_pixels) == (4096, 256 * 32 * 32, 1280 * 32 * 32)
    assert zppo.COMPRESSION_TOKENS == 512

    # rollouts of both models: temperature 1, nothing cut off, 12,288 new tokens; summaries 512; a greedy judge
    student, teacher = stages.actors({"a": 1}, {"a": 4}, recipe)
    essay = Question("b", "why?", (), "because of that", free_form=True)
    stages.collect(zppo.Context(student, teacher, recipe, (0, 0)), [stages.ask("a"), essay] * 1, [])
    tokens = {"rollout": 12_288, "reformulate": 12_288, "teacher": 12_288, "compress": 512, "judge": 512}
    for call in student.calls + teacher.calls:
        wanted = Sampling(tokens[call.phase], float(call.phase != "judge"), 1.0, 0, 0.0, 0.0)
        assert call.sampling == wanted and call.n == {"teacher": 4, "compress": 1, "judge": 1}.get(call.phase, 8)

    student = Actor(tiny.make("qwen3_5"), tiny.PROCESSOR)
    learner = make_learner(make_accelerator(), student, args.lr, args.weight_decay, args.micro_tokens)
    optimizer = learner.optimizer.optimizer
    (settings,) = optimizer.param_groups
    assert type(optimizer) is torch.optim.AdamW
    assert [settings[name] for name in ("lr", "betas", "eps", "weight_decay")] == [1e-6, (0.9, 0.999), 1e-8, 0.1]

    decoding = dict(max_new_tokens=12_288, temperature=0.6, top_p=0.95, top_k=20, min_p=0.0, presence_penalty=1.5)
    assert vars(DECODING) == decoding  # of the benchmarks (App. B.2)
