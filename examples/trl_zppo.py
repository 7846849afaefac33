"""ZPPO inside TRL: GRPOTrainer samples (also with vLLM), scores and steps; Algorithm 1 is ours.

A few steps in the embedded world, on any CPU (pip install trl==1.16.0):

    python -m examples.trl_zppo

The paper's settings on GPUs:

    accelerate launch -m examples.trl_zppo --student Qwen/Qwen3-0.6B --teacher Qwen/Qwen3-8B
        --data questions.jsonl --use_vllm True --steps 200 --new_per_step 384 --micro_batches 96
        --max_response_tokens 12288 --lr 1e-6

`ZPPOTrainer.collect` is the method; it calls the functions that train.py calls. Images, resuming,
served teachers and baselines are in train.py alone. TRL's update differs from zppo.update in this:
1. Each of the I updates divides by 1/I of the step's tokens, not by its own tokens. With I = 1 the
   two are one.
2. Rollouts with advantage 0 run through the model, and the optimiser steps even where no group has
   any signal.
3. Rollouts come from each process's random stream, not from (seed, step, question, sample).
4. With vLLM, TRL also weights tokens by a truncated ratio: probability under the model to that
   under the sampler.
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
from engine.models import Encoder, load_model, load_processor
from engine.options import option, parse
from engine.questions import Question, load_questions
from generate import Actor, Reply
from world import table as world
from zppo import (
    Context,
    Group,
    Recipe,
    advantages,
    plain_groups,
    quota,
    reformulate,
    roll_out,
    select,
    summarise,
)

COLUMNS = ("prompt_ids", "completion_ids", "logprobs", "env_mask")  # of TRL's rollouts


@dataclass
class Arguments:
    """ZPPO in TRL's GRPOTrainer, for text-only models."""

    student: str = option(str(world.WORLD / "student"), "causal language model: folder or hub id")
    teacher: str = option(str(world.WORLD / "teacher"), "frozen teacher: folder or hub id")
    data: str = option("", "questions without images: hub id, folder or file; '': the world's")
    output: str = option("runs/trl", "folder for the trained student")
    steps: int = option(10, "rollout steps", minimum=1)
    new_per_step: int = option(16, "|X_new|, new questions per rollout step", minimum=1)
    micro_batches: int = option(1, "forward passes of each update on each process", minimum=1)
    max_response_tokens: int = option(32, "response length, student and teacher", minimum=1)
    lr: float = option(3e-4, "AdamW learning rate, constant", minimum=0)
    use_vllm: bool = option(False, "sample with vLLM on the GPUs that train")


class ZPPOTrainer(GRPOTrainer):
    """GRPOTrainer with Algorithm 1's rollout step.

    A row of its data set is {"prompt": uid of a question}.
    """

    def __init__(self, teacher: str, questions: list[Question], recipe: Recipe, **settings):
        uids = [question.uid for question in questions]
        super().__init__(
            train_dataset=Dataset.from_dict({"prompt": uids}),
            rollout_func=columns_of_rows,
            reward_funcs=advantage_as_reward,
            **settings,
        )
        dtype = torch.bfloat16 if self.args.bf16 else torch.float32
        model = load_model(teacher, dtype).to(self.accelerator.device)
        self.teacher = Actor(model, load_processor(teacher))
        self.recipe = recipe
        self.questions = {question.uid: question for question in questions}
        self.replay_buffer = ReplayBuffer(recipe.buffer_capacity)

    def collect(self, new: list[Question]) -> list[Group]:
        """Algorithm 1 without the gradient: all groups of a step, the same on all processes."""
        recipe = self.recipe
        buffer = self.replay_buffer
        step = self.state.global_step // recipe.updates_per_step
        ctx = Context(self.draw, self.teacher, recipe, (self.args.seed, step))
        count = quota(recipe.rho_replay, len(new))
        there = [question.uid for question in new]
        drawn = buffer.sample(count, ctx.rng("replay"), there)
        replayed = [self.questions[uid] for uid in drawn]
        plain = roll_out(ctx, plain_groups(new + replayed), "rollout")  # stage 1
        chosen = select(ctx, plain, quota(recipe.rho_aug, len(new)))  # stages 2 and 3, the caps
        groups = plain + roll_out(ctx, reformulate(ctx, chosen), "reformulate")  # stages 4 and 5
        accuracies = [(group.question.uid, group.accuracy) for group in plain]
        buffer.update(accuracies, step, recipe.tau)  # stage 6
        metrics = summarise(groups, recipe) | ctx.counts
        metrics["buffer"] = len(buffer)
        for name, value in metrics.items():
            self._log_metric(name, math.nan if value is None else value)
        return groups

    def draw(self, requests, n: int, sampling, key: tuple, phase: str) -> list[list[Reply]]:
        """The student, called as generate.Actor is: n replies to each request.

        Every process samples its share.
        """
        if not requests:
            return []
        share = math.ceil(len(requests) / self.accelerator.num_processes)
        first = share * self.accelerator.process_index
        prompts = []
        for i in range(first, first + share):
            # All shares are equally long, so the last ones may start again from the first request.
            request = requests[i % len(requests)]
            encoded = self.encoder(request.text, request.question)
            tokens = encoded["input_ids"].tolist()
            prompts += [tokens] * n
        responses, logps = self._generate_single_turn(prompts, None, {}, n)
        logps = logps or [[0.0]] * len(prompts)  # without vLLM nobody reads them
        masks = [[1] * len(tokens) for tokens in responses]
        sampled = zip(prompts, responses, logps, masks, strict=True)
        rows = gather_object([dict(zip(COLUMNS, row)) for row in sampled])
        rows = rows[: len(requests) * n]
        self.rows += rows  # in the order of the groups
        replies = []
        for row in rows:
            tokens = row["completion_ids"]
            text = self.processing_class.decode(tokens, skip_special_tokens=True)
            replies.append(Reply(text, tokens, tokens[-1] in self.eos_token_ids))
        return [replies[i : i + n] for i in range(0, len(replies), n)]

    def _generate_and_score_completions(self, inputs: list[dict]) -> dict:
        """One rollout step of ours in place of TRL's.

        TRL then pads its rows and computes their old log-probs.
        """
        self.rows = []
        self.encoder = Encoder(self.processing_class)  # remembers what it encodes for one step
        uids = gather_object([row["prompt"] for row in inputs])
        new = dict.fromkeys(uids)  # TRL repeats a prompt for each rollout
        self.groups = self.collect([self.questions[uid] for uid in new])
        rewards = [[rollout.reward for rollout in group.rollouts] for group in self.groups]
        weights = advantages(torch.tensor(rewards), self.recipe.norm).flatten()
        for row, weight in zip(self.rows, weights.tolist(), strict=True):
            row.update(prompt="", advantage=weight)
        self.add_blank_rows()
        with self.accelerator.split_between_processes(self.rows) as self.rows:
            return super()._generate_and_score_completions(self.rows)

    def add_blank_rows(self) -> None:
        """TRL drops the rows that fill no micro-batch. Blank rows fill the last one.

        The mask of a blank row keeps it out of the loss.
        """
        micro_batches = self.accelerator.num_processes * self.args.steps_per_generation
        unit = math.lcm(self.num_generations, micro_batches)
        end = self.eos_token_ids[:1]
        blank = dict(
            prompt="",
            prompt_ids=end,
            completion_ids=end,
            logprobs=[0.0],
            env_mask=[0],
            advantage=0.0,
        )
        missing = -len(self.rows) % unit
        self.rows += [blank] * missing


def columns_of_rows(_, trainer: ZPPOTrainer) -> dict[str, list]:
    """What TRL takes for its own rollouts."""
    return {name: [row[name] for row in trainer.rows] for name in COLUMNS}


def advantage_as_reward(advantage: list[float], **_) -> list[float]:
    """TRL subtracts the mean of each group. Our advantages sum to 0 there, so they stay."""
    return advantage


def make_trainer(args: Arguments, recipe: Recipe, questions: list[Question]) -> ZPPOTrainer:
    """The trainer for these questions.

    Raises SystemExit where the questions or the options do not fit TRL.
    """
    processes = PartialState(cpu=not torch.cuda.is_available()).num_processes
    passes = args.micro_batches * recipe.updates_per_step
    rows = args.new_per_step * recipe.group_size
    micro_rows, rest = divmod(rows, passes * processes)  # replay, BCQ and NCQ add half as many
    pictures = any(question.images for question in questions)
    if rest or pictures or len(questions) < args.new_per_step:
        raise SystemExit(
            f"needed: {args.new_per_step} questions or more without images, and "
            f"{passes} equal parts of {rows} rollouts on each process: "
            "change --data, --new_per_step or --micro_batches"
        )
    config = make_config(args, recipe, micro_rows)
    model = AutoModelForCausalLM.from_pretrained(args.student, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(args.student)
    return ZPPOTrainer(
        args.teacher,
        questions,
        recipe,
        args=config,
        model=model,
        processing_class=tokenizer,
    )


def make_config(args: Arguments, recipe: Recipe, micro_rows: int) -> GRPOConfig:
    """TRL's settings under which its update is ours, but for what the top of the file says."""
    gpu = torch.cuda.is_available()
    return GRPOConfig(
        # the loss
        loss_type="dapo",
        beta=0.0,
        epsilon=recipe.eps_low,
        epsilon_high=recipe.eps_high,
        delta=recipe.dual_clip,
        scale_rewards="none",
        disable_dropout=True,
        # the rollouts
        temperature=1.0,
        num_generations=recipe.group_size,
        max_completion_length=recipe.max_response_tokens,
        use_vllm=args.use_vllm,
        # the step and its parts
        per_device_train_batch_size=micro_rows,
        gradient_accumulation_steps=args.micro_batches,
        steps_per_generation=args.micro_batches * recipe.updates_per_step,
        max_steps=args.steps * recipe.updates_per_step,
        # the optimiser
        learning_rate=args.lr,
        lr_scheduler_type="constant",
        weight_decay=0.1,
        max_grad_norm=recipe.max_grad_norm,
        bf16=gpu,
        gradient_checkpointing=gpu,
        use_cpu=not gpu,
        # the screen and the disk
        logging_steps=recipe.updates_per_step,
        save_strategy="no",
        output_dir=args.output,
    )


def main(argv: list[str]) -> ZPPOTrainer:
    (args,) = parse([Arguments], argv, Arguments.__doc__)
    if args.data:
        questions = load_questions(args.data)[0]
    else:  # the world's questions in words, without pictures
        pictured = world.questions()[0]
        questions = [world.question("text", *world.asked(q), q.answer) for q in pictured]
    recipe = Recipe(max_response_tokens=args.max_response_tokens)
    trainer = make_trainer(args, recipe, questions)
    trainer.train()
    trainer.save_model(args.output)
    return trainer


if __name__ == "__main__":
    main(sys.argv[1:])
