"""examples/trl_zppo.py beside zppo.py: the same rows, advantages and gradient, on one process and on two.

usage: test_trl.py FOLDER   (two rollout steps; each process pickles what TRL had in the second one)
"""

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from runs import ENV, ROOT, torchrun
from torch.nn.utils import parameters_to_vector as flat
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from engine.models import Encoder
from engine.questions import Question
from engine.update import Learner, Policy, Row
from world import table as world
from zppo import Recipe, advantages, policy_loss, update

pytest.importorskip("trl", "1.16.0", reason="examples/trl_zppo.py needs TRL: pip install trl==1.16.0")
from examples.trl_zppo import Arguments, make_trainer  # noqa: E402

CPU = {**ENV, "CUDA_VISIBLE_DEVICES": "", "TRL_EXPERIMENTAL_SILENCE": "1"}
STUDENT = str(world.WORLD / "student")
RECIPE = Recipe(group_size=4, teacher_group_size=2, rho_aug=0.5, updates_per_step=1, max_response_tokens=32)


class Watch(TrainerCallback):
    """Keeps the weights before each optimiser step and the gradient that it gets."""

    def on_step_begin(self, args, state, control, model, **_):
        self.weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def on_pre_optimizer_step(self, args, state, control, model, **_):
        self.gradient = flat(parameter.grad for parameter in model.parameters())


def surrogate(trainer, batch: dict) -> tuple[torch.Tensor, ...]:
    """(TRL's loss, log-probs, old log-probs) of a batch whose ratios reach all branches of the clip."""
    ids, mask = (torch.cat([batch[f"prompt_{x}"], batch[f"completion_{x}"]], 1) for x in ("ids", "mask"))
    model, length = trainer.model.train(), batch["completion_ids"].shape[1]
    with torch.no_grad():
        logp = trainer._get_per_token_logps_and_entropies(model, ids, mask, length)[0]
        old = logp + 2 * torch.randn(logp.shape, generator=torch.Generator().manual_seed(0))
        return trainer.compute_loss(model, {**batch, "old_per_token_logps": old}), logp, old


def two_steps(folder: Path) -> None:
    args = Arguments(steps=2, new_per_step=8, micro_batches=16, output=str(folder / "run"))
    questions = [world.question("text", *world.asked(q), q.answer) for q in world.questions()[0][:32]]
    trainer, watch, batches = make_trainer(args, RECIPE, questions), Watch(), []
    trainer.add_callback(watch)
    rollout_step = trainer._generate_and_score_completions
    trainer._generate_and_score_completions = lambda inputs: batches.append(rollout_step(inputs)) or batches[-1]
    trainer.train()
    found = {"groups": trainer.groups, "buffer": trainer.replay_buffer.state_dict(), "batch": batches[-1]}
    found |= {"weights": watch.weights, "gradient": watch.gradient, "surrogate": surrogate(trainer, batches[-1])}
    (folder / f"process_{trainer.accelerator.process_index}.pkl").write_bytes(pickle.dumps(found))


@pytest.fixture(scope="module", params=[1, 2], ids=["one process", "two processes"])
def processes(request, tmp_path_factory) -> list[dict]:
    """What each process has pickled."""
    folder = tmp_path_factory.mktemp("trl")
    line = [sys.executable, *torchrun(request.param), __file__, str(folder)]
    done = subprocess.run(line, env=CPU, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return [pickle.loads((folder / f"process_{i}.pkl").read_bytes()) for i in range(request.param)]


def test_a_step_has_plain_replayed_bcq_and_ncq_groups(processes):
    kinds = [group.kind for group in processes[0]["groups"]]
    assert kinds.count("plain") in (9, 10)  # 8 new, at most 2 replayed
    assert {*kinds} == {"plain", "bcq", "ncq"} and len(kinds) - kinds.count("plain") <= 4
    entries = processes[0]["buffer"]["entries"] + processes[0]["buffer"]["history"]
    assert any(entry["visits"] for entry in entries)


def test_all_processes_have_the_same_groups_and_buffer(processes):
    for other in processes[1:]:
        assert other["groups"] == processes[0]["groups"] and other["buffer"] == processes[0]["buffer"]
        assert torch.equal(other["gradient"], processes[0]["gradient"])


def test_rows_and_advantages_are_those_of_the_groups(processes):
    groups, encoder = processes[0]["groups"], Encoder(AutoTokenizer.from_pretrained(STUDENT))
    weights = advantages(torch.tensor([[rollout.reward for rollout in group.rollouts] for group in groups]))
    expected = [(encoder(g.prompt, g.question)["input_ids"].tolist(), r.tokens) for g in groups for r in g.rollouts]
    batches, rows, blank = [found["batch"] for found in processes], [], []
    for batch in batches:
        shape = ("prompt_ids", "prompt_mask"), ("completion_ids", "completion_mask")
        pairs = zip(*([ids[mask == 1].tolist() for ids, mask in zip(batch[i], batch[m])] for i, m in shape))
        rows += pairs
        blank += (batch["tool_mask"] * batch["completion_mask"]).sum(-1).eq(0).tolist()
    n = len(expected)
    assert n < len(rows) and rows[:n] == expected and blank == [False] * n + [True] * (len(rows) - n)
    found = torch.cat([batch["advantages"] for batch in batches])
    torch.testing.assert_close(found[:n], weights.flatten(), rtol=0, atol=1e-6)
    assert (found[:n] != 0).any() and (found[:n][weights.flatten() == 0] == 0).all() and (found[n:] == 0).all()
    assert batches[0]["num_items_in_batch"] == sum(len(tokens) for _, tokens in expected)


def test_the_gradient_is_that_of_our_update(processes):
    groups, weights, theirs = (processes[0][name] for name in ("groups", "weights", "gradient"))
    model = AutoModelForCausalLM.from_pretrained(STUDENT, dtype=torch.float32).train()
    model.load_state_dict(weights)
    accelerator, encoder, gradients = Accelerator(cpu=True), Encoder(AutoTokenizer.from_pretrained(STUDENT)), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    optimizer.register_step_pre_hook(lambda *_: gradients.append(flat(p.grad for p in model.parameters())))
    policy, optimizer = accelerator.prepare(Policy(model), optimizer)
    blank = Row("blank", Question("blank", "blank", (), ""), [1], 0.0)
    update(Learner(policy, optimizer, accelerator, encoder, blank, micro_tokens=2000), groups, RECIPE, (0, 1))
    (ours,) = gradients
    assert ours.norm() > 1e-3 and (theirs - ours).norm() < 2e-5 * ours.norm()


def test_the_clipped_surrogate_is_ours(processes):
    total, branches = 0.0, torch.zeros(3, dtype=torch.bool)
    for found in processes:
        (_, logp, old), batch = found["surrogate"], found["batch"]
        weights, mask = batch["advantages"].unsqueeze(1), batch["completion_mask"] * batch["tool_mask"]
        total += (policy_loss(logp, old, weights) * mask).sum() / batch["num_items_in_batch"]
        ratio = (logp - old).exp().masked_fill(mask == 0, 1.0)
        clipped = (ratio > 1.28) & (weights > 0), (ratio < 0.8) & (weights < 0), (ratio > 10) & (weights < 0)
        branches |= torch.stack([branch.any() for branch in clipped])
    assert branches.all()
    theirs = torch.stack([found["surrogate"][0] for found in processes]).mean()  # as gradients are averaged
    torch.testing.assert_close(theirs, total, rtol=1e-5, atol=1e-7)


def test_the_command(tmp_path):
    line = [sys.executable, "-m", "examples.trl_zppo", "--output", str(tmp_path / "run")]
    run = dict(cwd=ROOT, env=CPU, capture_output=True, text=True, timeout=600)
    done = subprocess.run([*line, "--steps", "1", "--new_per_step", "4", "--micro_batches", "2"], **run)
    assert done.returncode == 0 and "'bcq_accuracy'" in done.stdout, done.stdout + done.stderr
    AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    done = subprocess.run([*line, "--micro_batches", "7"], **run)
    assert done.returncode == 1 and "change --data, --new_per_step or --micro_batches" in done.stderr


if __name__ == "__main__":
    two_steps(Path(sys.argv[1]))
