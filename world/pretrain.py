"""How the two models of the embedded world were made: ordinary `qwen3_5` folders with a processor.

    python -m world.pretrain

rebuilds world/student and world/teacher from a seed. What ships is what this command makes.

Both models know the formats of BCQ, NCQ and Hint, as a pretrained model does, but not how to tell
the right candidate. The student learns to copy one of two candidates at random; all candidates come
from its own beliefs and random guesses. Its texts hold the true value of a misremembered entry no
more often than any other wrong value.

Decisions:
1. Each fixed template of prompts.py is one token, so prompts stay short; any other text falls back
   to bytes.
2. One 16 x 16 pixel cell is one image token (patch 8, merge 2).
3. The processor class needs no video processor, which would need torchvision. Several frames are
   several images.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

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
    "{% if message.content is string %}{{ message.content }}"
    "{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# What a lesson teaches; plain questions come twice as often as each other kind.
KINDS = {
    "student": ("plain", "plain", "bcq", "ncq", "hint"),
    "teacher": ("plain", "plain", "compress", "tip"),
}
PEAK = 3e-3  # the largest learning rate


# ---------------------------------------------------------------- the processor and the model


def make_processor():
    """Bytes plus one token for each piece of text that the world repeats."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = dict(zip(alphabet, range(len(alphabet))))
    backend = Tokenizer(BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=dict(
            im_start_token="<|im_start|>",
            image_token="<|image_pad|>",
            video_token="<|video_pad|>",
            vision_start_token="<|vision_start|>",
            vision_end_token="<|vision_end|>",
        ),
    )
    # Normalisation would change the text of a piece.
    tokenizer.add_tokens([AddedToken(piece, normalized=False) for piece in pieces_of_text()])
    image_processor = Qwen2VLImageProcessorPil(
        patch_size=8,
        merge_size=2,
        temporal_patch_size=2,
        size={"shortest_edge": world.CELL**2, "longest_edge": 64 * world.CELL**2},
    )
    return transformers.PaddleOCRVLProcessor(
        image_processor, tokenizer, chat_template=CHAT_TEMPLATE
    )


def pieces_of_text() -> list[str]:
    """What becomes one token (decision 1), without duplicates, in the order of their ids."""
    pieces = [*world.PLACES, *world.SIGNS]
    for fillers in world.FILLER.values():
        pieces += fillers
    templates = [
        *world.QUESTION.values(),
        prompts.CLOSER,
        prompts.BCQ_HEADER,
        prompts.NCQ_HEADER,
        prompts.NCQ_ANSWERS.split("{")[0],
        prompts.COMPRESSION,
        prompts.HINT,
    ]
    for template in templates:
        # The fixed text around {start}, {signs}, {response}.
        pieces += re.split(r"\{\w+\}", template)
    for opening, closing in ("<>", "[]"):
        for tag in prompts.TAGS:
            pieces += [f"{opening}{tag}{closing}", f"{opening}/{tag}{closing}"]
    pieces += ["\\boxed{", "\n\n", "user\n", "assistant\n"]
    return list(dict.fromkeys(pieces))


def make_model(processor, hidden: int, layers: int, seed: int):
    """A tiny Qwen3.5: linear and full attention in turn, a vision tower, tied embeddings."""
    tokenizer = processor.tokenizer
    ends = dict(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    positions = dict(partial_rotary_factor=1.0, mrope_section=[6, 5, 5], mrope_interleaved=True)
    text = dict(
        vocab_size=len(tokenizer),
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        layer_types=["linear_attention", "full_attention"] * (layers // 2),
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        linear_num_key_heads=2,
        linear_num_value_heads=2,
        linear_key_head_dim=32,
        linear_value_head_dim=32,
        rope_parameters=positions,
        **ends,
    )
    vision = dict(
        depth=1,
        hidden_size=64,
        intermediate_size=128,
        num_heads=2,
        patch_size=8,
        num_position_embeddings=64,
        out_hidden_size=hidden,
    )
    config = transformers.Qwen3_5Config(
        text_config=text,
        vision_config=vision,
        tie_word_embeddings=True,
        image_token_id=tokenizer.image_token_id,
        video_token_id=tokenizer.video_token_id,
        vision_start_token_id=tokenizer.vision_start_token_id,
        vision_end_token_id=tokenizer.vision_end_token_id,
    )
    torch.manual_seed(seed)
    model = transformers.Qwen3_5ForConditionalGeneration(config)
    model.generation_config = transformers.GenerationConfig(**ends)
    return model


# ---------------------------------------------------------------- the lessons


class Lesson:
    """Draws examples for pre-training: (prompt text, images, response)."""

    def __init__(self, who: str, seed: int):
        self.who = who
        self.table = world.beliefs(who)
        self.rng = Random(f"lessons/{who}/{seed}")

    def example(self) -> tuple:
        """One example of a random kind."""
        choice = self.rng.choice
        family = choice(world.FAMILIES)
        start = choice(world.PLACES)
        length = choice((1, 2, 3, 3))
        signs = "".join(choice(world.SIGNS) for _ in range(length))
        question = world.question(family, start, signs, "")
        filler = choice(world.FILLER[self.who])
        places = self.recall(start, signs)
        kind = choice(KINDS[self.who])
        if kind in ("compress", "tip"):
            return self.rewriting(kind, start, signs)
        # Every other kind is a method.
        lesson = getattr(self, kind)
        prompt, places = lesson(question.text, signs, places)
        return prompt, question.images, world.response(signs, places, filler)

    def recall(self, start: str, signs: str, guess_at: int = -1) -> list[str]:
        """A walk by belief, with an occasional slip. The step `guess_at` is a pure guess."""
        places = [start]
        for i, sign in enumerate(signs):
            guess = i == guess_at or self.rng.random() > world.FIRMNESS
            believed = self.table[places[-1], sign]
            places.append(self.rng.choice(world.PLACES) if guess else believed)
        return places

    def guess(self, start: str, signs: str, avoid: Sequence[str] = ()) -> list[str]:
        """A walk with one guessed step. It ends at none of the places in `avoid`."""
        while True:
            step = self.rng.randrange(len(signs))
            places = self.recall(start, signs, step)
            if places[-1] not in avoid:
                return places

    def plain(self, text: str, signs: str, places: list[str]):
        """(prompt, places of the response), like the kinds below: the student believes."""
        return prompts.plain_prompt(text), places

    def bcq(self, text: str, signs: str, places: list[str]):
        """The student copies one of the two candidates, whichever."""
        pair = places, self.guess(places[0], signs, places[-1:])
        summaries = [summary(signs, path) for path in pair]
        return prompts.bcq_prompt(text, *summaries, self.rng), self.rng.choice(pair)

    def ncq(self, text: str, signs: str, places: list[str]):
        """The student tries an answer that is not listed."""
        count = self.rng.randint(1, 8)
        wrong = [self.recall(places[0], signs) for _ in range(count)]
        answers = [path[-1] for path in wrong]
        places = self.guess(places[0], signs, answers)
        summaries = [summary(signs, path) for path in wrong]
        return prompts.ncq_prompt(text, answers, summaries), places

    def hint(self, text: str, signs: str, places: list[str]):
        """The student takes the hint's steps, then believes."""
        hinted = self.guess(places[0], signs)
        last = self.recall(hinted[-2], signs[-1:])[1:]
        return prompts.hinted_prompt(text, tip(signs, hinted)), hinted[:-1] + last

    def rewriting(self, kind: str, start: str, signs: str) -> tuple:
        """The teacher rewrites a response, right or wrong, into a summary or into a hint."""
        places = self.guess(start, signs)
        filler = self.rng.choice(world.FILLER["student"] + world.FILLER["teacher"])
        given = world.response(signs, places, filler)
        if kind == "tip":
            return prompts.hint_prompt(given), (), tip(signs, places)
        text = summary(signs, places)
        if self.rng.random() < 0.1:  # a response that was cut has no box
            given = given.split("\\boxed")[0]
            text = world.chain(signs, places)
        return prompts.compression_prompt(given), (), f"<summary>{text}</summary>"


def summary(signs: str, places: Sequence[str]) -> str:
    """The look-ups, then the answer in a box."""
    return f"{world.chain(signs, places)}\n\\boxed{{{places[-1]}}}"


def tip(signs: str, places: Sequence[str]) -> str:
    """A hint: all look-ups without the result of the last one."""
    return world.chain(signs, places)[: -len(places[-1])]


# ---------------------------------------------------------------- the training


def pretrain(who: str, hidden: int, layers: int, steps: int, seed: int, batch_size: int = 128):
    """Supervised pre-training of one model on its lessons. Returns (model, processor)."""
    processor = make_processor()
    model = make_model(processor, hidden, layers, seed=seed_of("init", who, seed) % 2**31)
    policy = Policy(model, banned_token_ids(model, processor))
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK, steps, pct_start=0.05)
    lesson = Lesson(who, seed)
    progress = tqdm(range(steps), desc=f"pre-training the {who}", disable=None)
    for _ in progress:
        loss = backward(policy, encoded_lessons(lesson, batch_size, processor))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        progress.set_postfix(loss=f"{loss:.3f}")
    return model, processor


def encoded_lessons(lesson: Lesson, count: int, processor) -> list[tuple]:
    """[(encoded prompt, tokens of the response), ...], the shortest prompt first."""
    tokenizer = processor.tokenizer
    rows = []
    for _ in range(count):
        text, images, reply = lesson.example()
        tokens = tokenizer(reply + tokenizer.eos_token).input_ids
        rows.append((encode(processor, text, images), tokens))
    # Rows of similar length share a micro-batch, so little of it is padding.
    rows.sort(key=lambda row: len(row[0]["input_ids"]))
    return rows


def backward(policy: Policy, rows: list[tuple]) -> float:
    """Add the gradient of all rows, 32 at a time. Returns the mean loss of a token."""
    tokens = 0
    total = 0.0
    for i in range(0, len(rows), 32):
        encoded, answers = zip(*rows[i : i + 32])
        batch = collate(encoded, answers)
        predicts = response_positions(encoded, answers, batch["input_ids"].shape)
        logp, _ = policy(batch, position_ids(policy.model, batch), predicts)
        (-logp.sum() / 1000).backward()
        tokens += len(logp)
        total -= logp.sum().item()
    return total / tokens


@dataclass
class BuildArguments:
    """Rebuild world/student and world/teacher from a seed (about twenty minutes on one core)."""

    out: str = str(world.WORLD)
    seed: int = 0
    steps: int = 1000


def main() -> None:
    parser = transformers.HfArgumentParser(BuildArguments)
    (args,) = parser.parse_args_into_dataclasses()
    for who, hidden in (("student", 96), ("teacher", 128)):
        model, processor = pretrain(who, hidden, 4, args.steps, args.seed)
        folder = Path(args.out) / who
        model.to(torch.bfloat16).save_pretrained(folder)
        processor.save_pretrained(folder)


if __name__ == "__main__":
    main()
