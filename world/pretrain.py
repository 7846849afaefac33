"""How the two models of the embedded world were made: ordinary `qwen3_5` folders with a processor.

    python -m world.pretrain    rebuilds world/student and world/teacher from a seed; what ships is what it makes

Both models know the formats of BCQ, NCQ and Hint, as a pretrained model does, but not how to tell the right candidate.
The student learns to copy one of two candidates at random; all candidates come from its own beliefs and random guesses.
Its texts hold the true value of a misremembered entry no more often than any other value that it does not believe.

Decisions:
1. Each fixed template of prompts.py is one token, so prompts stay short; any other text falls back to bytes.
2. One 16 x 16 pixel cell is one image token (patch 8, merge 2).
3. The processor class needs no video processor, which would need torchvision. Several frames are several images.
"""

import random
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tqdm import tqdm
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

import prompts
from engine.models import banned_token_ids, collate, encode, position_ids, response_positions
from engine.update import Policy
from generate import seed_of
from world import table as world

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
KINDS = {"student": ("plain", "plain", "bcq", "ncq", "hint"), "teacher": ("plain", "plain", "compress", "tip")}


def make_processor() -> transformers.PaddleOCRVLProcessor:
    """Bytes plus one token for each piece of text that the world repeats."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    special = dict(im_start_token="<|im_start|>", image_token="<|image_pad|>", video_token="<|video_pad|>",
                   vision_start_token="<|vision_start|>", vision_end_token="<|vision_end|>")
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>", extra_special_tokens=special
    )
    pieces = [*world.PLACES, *world.SIGNS, *world.FILLER["student"][1:], *world.FILLER["teacher"][1:]]
    templates = [*world.QUESTION.values(), prompts.CLOSER, prompts.BCQ_HEADER, prompts.NCQ_HEADER]
    for text in [*templates, prompts.NCQ_ANSWERS.split("{")[0], prompts.COMPRESSION, prompts.HINT]:
        pieces += re.split(r"\{\w+\}", text)  # the fixed text around {start}, {signs}, {response}
    pieces += [f"{a}{slash}{tag}{z}" for a, z in ("<>", "[]") for tag in prompts.TAGS for slash in ("", "/")]
    pieces += ["\\boxed{", "\n\n", "user\n", "assistant\n"]
    tokenizer.add_tokens([AddedToken(piece, normalized=False) for piece in dict.fromkeys(pieces)])
    size = {"shortest_edge": world.CELL**2, "longest_edge": 64 * world.CELL**2}
    image_processor = Qwen2VLImageProcessorPil(patch_size=8, merge_size=2, temporal_patch_size=2, size=size)
    return transformers.PaddleOCRVLProcessor(image_processor, tokenizer, chat_template=CHAT_TEMPLATE)


def make_model(processor, hidden: int, layers: int, seed: int) -> transformers.Qwen3_5ForConditionalGeneration:
    """A tiny Qwen3.5: linear and full attention in turn, a vision tower, tied embeddings."""
    tokenizer = processor.tokenizer
    ends = dict(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    text = dict(
        vocab_size=len(tokenizer), max_position_embeddings=4096, tie_word_embeddings=True, **ends,
        hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=layers,
        layer_types=["linear_attention", "full_attention"] * (layers // 2),
        num_attention_heads=4, num_key_value_heads=2, head_dim=32,
        linear_num_key_heads=2, linear_num_value_heads=2, linear_key_head_dim=32, linear_value_head_dim=32,
        rope_parameters=dict(partial_rotary_factor=1.0, mrope_section=[6, 5, 5], mrope_interleaved=True),
    )
    vision = dict(depth=1, hidden_size=64, intermediate_size=128, num_heads=2, patch_size=8, num_position_embeddings=64,
                  out_hidden_size=hidden)
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    ids = {name: getattr(tokenizer, name) for name in names}
    config = transformers.Qwen3_5Config(text_config=text, vision_config=vision, tie_word_embeddings=True, **ids)
    torch.manual_seed(seed)
    model = transformers.Qwen3_5ForConditionalGeneration(config)
    model.generation_config = transformers.GenerationConfig(**ends)
    return model


class Lesson:
    """Draws pre-training examples (prompt text, images, response) for the student or the teacher."""

    def __init__(self, who: str, seed: int):
        self.who, self.table = who, world.beliefs(who, seed)

    def recall(self, start: str, signs: str, rng: random.Random, guess_at: int = -1) -> list[str]:
        """Walk by belief, with the occasional lapse; the step `guess_at` is a pure guess."""
        places = [start]
        for i, sign in enumerate(signs):
            guess = i == guess_at or rng.random() > world.FIRMNESS
            places.append(rng.choice(world.PLACES) if guess else self.table[places[-1], sign])
        return places

    def guess(self, start: str, signs: str, rng: random.Random, avoid: Collection[str] = ()) -> list[str]:
        """A walk with one guessed step that ends elsewhere than at the places in `avoid`."""
        while True:
            places = self.recall(start, signs, rng, guess_at=rng.randrange(len(signs)))
            if places[-1] not in avoid:
                return places

    def example(self, rng: random.Random) -> tuple[str, tuple, str]:
        family, start = rng.choice(world.FAMILIES), rng.choice(world.PLACES)
        signs = "".join(rng.choice(world.SIGNS) for _ in range(rng.choice((1, 2, 3, 3))))
        asked, filler = world.question(family, start, signs, ""), rng.choice(world.FILLER[self.who])
        places, kind = self.recall(start, signs, rng), rng.choice(KINDS[self.who])
        if kind in ("compress", "tip"):
            return self.rewriting(kind, start, signs, rng)
        if kind == "plain":
            prompt = prompts.plain_prompt(asked.text)
        elif kind == "bcq":  # copy one of the two, whichever
            pair = places, self.guess(start, signs, rng, avoid=places[-1:])
            prompt = prompts.bcq_prompt(asked.text, *(summary(signs, path) for path in pair), rng)
            places = rng.choice(pair)
        elif kind == "ncq":  # try something that is not in the list
            wrong = [self.recall(start, signs, rng) for _ in range(rng.randint(1, 8))]
            places = self.guess(start, signs, rng, avoid=[path[-1] for path in wrong])
            prompt = prompts.ncq_prompt(asked.text, [w[-1] for w in wrong], [summary(signs, w) for w in wrong])
        else:  # take the hint's steps, then go on by belief
            hinted = self.guess(start, signs, rng)
            prompt = prompts.hinted_prompt(asked.text, tip(signs, hinted))
            places = hinted[:-1] + self.recall(hinted[-2], signs[-1:], rng)[1:]
        return prompt, asked.images, world.response(signs, places, filler)

    def rewriting(self, kind: str, start: str, signs: str, rng: random.Random) -> tuple[str, tuple, str]:
        """The teacher rewrites what it is given, right or wrong: into a summary, or into a hint."""
        places = self.guess(start, signs, rng)
        given = world.response(signs, places, rng.choice(world.FILLER["student"] + world.FILLER["teacher"]))
        if kind == "tip":
            return prompts.hint_prompt(given), (), tip(signs, places)
        text = summary(signs, places)
        if rng.random() < 0.1:  # a response that never boxes
            given, text = given.split("\\boxed")[0], world.chain(signs, places)
        return prompts.compression_prompt(given), (), f"<summary>{text}</summary>"


def summary(signs: str, places: Sequence[str]) -> str:
    return f"{world.chain(signs, places)}\n\\boxed{{{places[-1]}}}"


def tip(signs: str, places: Sequence[str]) -> str:
    """A hint: everything but the last look-up's result."""
    return world.chain(signs, places)[: -len(places[-1])]


def pretrain(who: str, hidden: int, layers: int, steps: int, seed: int, batch_size: int = 128, lr: float = 3e-3):
    """Supervised pre-training of one model on its lessons. Returns (model, processor)."""
    processor = make_processor()
    model = make_model(processor, hidden, layers, seed=seed_of("init", who, seed) % 2**31)
    policy = Policy(model, banned_token_ids(model, processor))
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.05)
    lesson, rng = Lesson(who, seed), random.Random(f"lessons/{who}/{seed}")
    tokenizer, end = processor.tokenizer, processor.tokenizer.eos_token
    progress = tqdm(range(steps), desc=f"pre-training the {who}", disable=None)
    for _ in progress:
        lessons = [lesson.example(rng) for _ in range(batch_size)]
        rows = [(encode(processor, text, images), tokenizer(reply + end).input_ids) for text, images, reply in lessons]
        rows.sort(key=lambda row: len(row[0]["input_ids"]))  # so that rows of like length share a micro-batch
        count, total = 0, 0.0
        for i in range(0, batch_size, 32):
            encoded, answers = zip(*rows[i : i + 32], strict=True)
            batch = collate(encoded, answers)
            predicts = response_positions(encoded, answers, batch["input_ids"].shape)
            logp, _ = policy(batch, position_ids(model, batch), predicts)
            (-logp.sum() / 1000).backward()
            count, total = count + len(logp), total - logp.sum().item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        progress.set_postfix(loss=f"{total / count:.3f}")
    return model, processor


@dataclass
class BuildArguments:
    """Rebuild the folders world/student and world/teacher from a seed (about twenty minutes on one core)."""

    out: str = str(world.WORLD)
    seed: int = 0
    student_steps: int = 1000
    teacher_steps: int = 1000


if __name__ == "__main__":
    (args,) = transformers.HfArgumentParser(BuildArguments).parse_args_into_dataclasses()
    for who, hidden, steps in (("student", 96, args.student_steps), ("teacher", 128, args.teacher_steps)):
        model, processor = pretrain(who, hidden, 4, steps, args.seed)
        model.to(torch.bfloat16).save_pretrained(Path(args.out) / who)
        processor.save_pretrained(Path(args.out) / who)
