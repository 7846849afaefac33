"""ZPPO inside TRL: its GRPOTrainer samples (with vLLM, too), scores and steps; the rollout step is Algorithm 1's.

    python -m examples.trl_zppo        (pip install trl==1.16.0) a few steps in the embedded world, on any CPU
    accelerate launch -m examples.trl_zppo --student Qwen/Qwen3-0.6B --teacher Qwen/Qwen3-8B --data questions.jsonl
        --use_vllm True --steps 200 --new_per_step 384 --micro_batches 96 --max_response_tokens 12288 --lr 1e-6

`ZPPOTrainer.collect` is the method; it calls the functions that train.py calls. Images, resuming, served teachers and
baselines are in train.py alone. TRL's update differs from zppo.update in this:
1. Each of the I updates divides by 1/I of the step's tokens, not by its own tokens. With I = 1 the two are one.
2. Rollouts with advantage 0 run through the model, and the optimiser steps even where no group has any signal.
3. Rollouts come from each process's random stream, not from (seed, step, question, sample).
4. With vLLM, TRL also weights tokens by a truncated ratio: probability under the model to that under the sampler.
"""

import math
import sys
from dataclasses import dataclass

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from buffer import ReplayBuffer
from engine.models import Encoder, load_model, load_processor, special_tokens
from engine.options import option, parse
from engine.questions import Question, load_questions
from generate import Actor, Reply
from world import table as world
from zppo import Context, Group, Recipe, advantages, plain_groups, quota, reformulate, roll_out, select, summarise

COLUMNS = ("prompt_ids", "completion_ids", "logprobs", "env_mask")  # of TRL's rollouts


@dataclass
class Arguments:
    """ZPPO in TRL's GRPOTrainer, for text-only models."""

    student: str = option(str(world.WORLD / "student"), "causal language model: folder or hub id")
    teacher: str = option(str(world.WORLD / "teacher"), "frozen teacher: folder or hub id")
    data: str = option("", "questions without images: hub id, folder or file; none: the embedded world's")
    output: str = option("runs/trl", "folder for the trained student")
    steps: int = option(10, "rollout steps", minimum=1)
    new_per_step: int = option(16, "|X_new|, new questions per rollout step", minimum=1)
    micro_batches: int = option(1, "forward passes of each update on each process", minimum=1)
    max_response_tokens: int = option(32, "response length, student and teacher", minimum=1)
    lr: float = option(3e-4, "AdamW learning rate, constant", minimum=0)
    use_vllm: bool = option(False, "sample with vLLM on the GPUs that train")


class ZPPOTrainer(GRPOTrainer):
    """GRPOTrainer with Algorithm 1's rollout step. A row of its data set is {"prompt": uid of a question}."""

    def __init__(self, teacher: str, questions: list[Question], recipe: Recipe, **settings):
        settings["train_dataset"] = Dataset.from_dict({"prompt": [question.uid for question in questions]})
        settings["rollout_func"] = lambda _, trainer: {name: [row[name] for row in trainer.rows] for name in COLUMNS}
        # TRL subtracts the mean of each group. Our advantages sum to 0 in each, so they stay as they are.
        settings["reward_funcs"] = lambda advantage, **_: advantage
        super().__init__(**settings)
        model = load_model(teacher, torch.bfloat16 if self.args.bf16 else torch.float32).to(self.accelerator.device)
        self.teacher, self.recipe = Actor(model, load_processor(teacher)), recipe
        self.questions, self.replay_buffer = {q.uid: q for q in questions}, ReplayBuffer(recipe.buffer_capacity)

    def collect(self, new: list[Question]) -> list[Group]:
        """Algorithm 1 without the gradient: all groups of one rollout step, the same on all processes."""
        recipe, step = self.recipe, self.state.global_step // self.recipe.updates_per_step
        ctx = Context(self.draw, self.teacher, recipe, (self.args.seed, step), special_tokens(self.processing_class))
        old = self.replay_buffer.sample(quota(recipe.rho_replay, len(new)), ctx.rng("replay"), [q.uid for q in new])
        plain = roll_out(ctx, plain_groups([*new, *map(self.questions.get, old)]), "rollout")  # stage 1
        chosen = select(ctx, plain, quota(recipe.rho_aug, len(new)))  # stages 2 and 3: the teacher, the caps
        groups = plain + roll_out(ctx, reformulate(ctx, chosen), "reformulate")  # stages 4 and 5: BCQ and NCQ
        self.replay_buffer.update([(group.question.uid, group.accuracy) for group in plain], step, recipe.tau)  # 6
        for name, value in {**summarise(groups, recipe), **ctx.counts, "buffer": len(self.replay_buffer)}.items():
            self._log_metric(name, math.nan if value is None else value)
        return groups

    def draw(self, requests, n: int, sampling, key: tuple, phase: str) -> list[list[Reply]]:
        """The student, called as generate.Actor is: n replies to each request. Every process samples its share."""
        if not requests:
            return []
        share = math.ceil(len(requests) / self.accelerator.num_processes)
        first = share * self.accelerator.process_index
        mine = [requests[i % len(requests)] for i in range(first, first + share) for _ in range(n)]
        prompts = [self.encoder(r.text, r.question)["input_ids"].tolist() for r in mine]
        tokens, logps = self._generate_single_turn(prompts, None, {}, n)
        logps = logps or [[0.0] * len(row) for row in tokens]  # without vLLM nobody reads them
        rows = zip(prompts, tokens, logps, [[1] * len(row) for row in tokens], strict=True)
        rows = gather_object([dict(zip(COLUMNS, row)) for row in rows])[: len(requests) * n]
        self.rows += rows  # in the order of the groups
        tokens = [row["completion_ids"] for row in rows]
        texts = self.processing_class.batch_decode(tokens, skip_special_tokens=True)
        replies = [Reply(text, ids, ids[-1] in self.eos_token_ids) for text, ids in zip(texts, tokens, strict=True)]
        return [replies[i : i + n] for i in range(0, len(replies), n)]

    def _generate_and_score_completions(self, inputs: list[dict]) -> dict:
        """One rollout step of ours in place of TRL's, which then pads its rows and computes their old log-probs."""
        self.rows, self.encoder = [], Encoder(self.processing_class)  # whose memory lasts a step
        new = dict.fromkeys(gather_object([row["prompt"] for row in inputs]))  # TRL repeats a prompt for each rollout
        self.groups = self.collect([self.questions[uid] for uid in new])
        rewards = torch.tensor([[rollout.reward for rollout in group.rollouts] for group in self.groups])
        for row, weight in zip(self.rows, advantages(rewards, self.recipe.norm).flatten().tolist(), strict=True):
            row |= {"prompt": "", "advantage": weight}
        # TRL drops the rows that fill no micro-batch. Blank rows fill it up; their mask keeps them out of the loss.
        unit = math.lcm(self.num_generations, self.accelerator.num_processes * self.args.steps_per_generation)
        end = self.eos_token_ids[:1]
        blank = dict(zip(COLUMNS, (end, end, [0.0], [0])), prompt="", advantage=0.0)
        self.rows += [dict(blank) for _ in range(-len(self.rows) % unit)]
        with self.accelerator.split_between_processes(self.rows) as self.rows:
            return super()._generate_and_score_completions(self.rows)


def make_trainer(args: Arguments, recipe: Recipe, questions: list[Question]) -> ZPPOTrainer:
    """The trainer with TRL's settings under which its update is ours, but for what the top of the file says."""
    gpu, passes = torch.cuda.is_available(), args.micro_batches * recipe.updates_per_step
    rows, processes = args.new_per_step * recipe.group_size, PartialState(cpu=not gpu).num_processes
    micro_rows, rest = divmod(rows, passes * processes)  # replay, BCQ and NCQ add half as many
    if rest or len(questions) < args.new_per_step or any(question.images for question in questions):
        needed = f"{args.new_per_step} questions or more without images, and {passes} equal parts of {rows} rollouts"
        raise SystemExit(f"needed: {needed} on each process: change --data, --new_per_step or --micro_batches")
    config = GRPOConfig(
        loss_type="dapo", beta=0.0, epsilon=recipe.eps_low, epsilon_high=recipe.eps_high, delta=recipe.dual_clip,
        scale_rewards="none", disable_dropout=True, temperature=1.0, num_generations=recipe.group_size,
        max_completion_length=recipe.max_response_tokens, per_device_train_batch_size=micro_rows,
        gradient_accumulation_steps=args.micro_batches, steps_per_generation=passes,
        max_steps=args.steps * recipe.updates_per_step, learning_rate=args.lr, lr_scheduler_type="constant",
        weight_decay=0.1, max_grad_norm=recipe.max_grad_norm, bf16=gpu, gradient_checkpointing=gpu,
        use_vllm=args.use_vllm, vllm_mode="colocate", logging_steps=recipe.updates_per_step, save_strategy="no",
        report_to="none", use_cpu=not gpu, output_dir=args.output)  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(args.student, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(args.student)
    return ZPPOTrainer(args.teacher, questions, recipe, args=config, model=model, processing_class=tokenizer)


def main(argv: list[str]) -> ZPPOTrainer:
    (args,) = parse([Arguments], argv, Arguments.__doc__)
    in_words = [world.question("text", *world.asked(q), q.answer) for q in world.questions()[0]]  # no pictures
    questions = load_questions(args.data)[0] if args.data else in_words
    trainer = make_trainer(args, Recipe(max_response_tokens=args.max_response_tokens), questions)
    trainer.train()
    trainer.save_model(args.output)
    return trainer


if __name__ == "__main__":
    main(sys.argv[1:])
