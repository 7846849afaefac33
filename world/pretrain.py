"""How the two models of the embedded world were made: ordinary `qwen3_5` folders with a processor.

    python -m world.pretrain    rebuilds world/student and world/teacher from a seed; what ships is what it makes

Before training starts both models understand the formats of BCQ, NCQ and Hint, as a pretrained model does,
without any skill in telling the right candidate: in pre-training the student copies one of two candidates at
random, and all candidates are made from its own beliefs and random guesses. No text it was pre-trained on
holds the true value of a misremembered entry more often than any other value.

Decisions:
1. Each fixed template of prompts.py is one token, so prompts stay short; any other text falls back to bytes.
2. One 16 x 16 pixel cell is one image token (patch 8, merge 2).
3. The processor class is one of transformers' that needs an image processor but no video processor, as
   the latter would need torchvision. Several frames are several images.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tqdm import tqdm
from transformers import (
    GenerationConfig,
    HfArgumentParser,
    PaddleOCRVLProcessor,
    PreTrainedTokenizerFast,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

import prompts
from engine.models import banned_token_ids, collate, encode, position_ids, response_positions
from engine.update import Policy
from generate import seed_of
from world.table import (
    CELL,
    FAMILIES,
    FILLER,
    FIRMNESS,
    PLACES,
    QUESTION,
    SIGNS,
    WORLD,
    beliefs,
    chain,
    question,
    response,
)

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# ---------------------------------------------------------------- model folders


def make_processor() -> PaddleOCRVLProcessor:
    """Bytes plus one token for each piece of text that the world repeats."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens={
            "im_start_token": "<|im_start|>",
            "image_token": "<|image_pad|>",
            "video_token": "<|video_pad|>",
            "vision_start_token": "<|vision_start|>",
            "vision_end_token": "<|vision_end|>",
        },
    )
    pieces = [*PLACES, *SIGNS, *FILLER["student"][1:], *FILLER["teacher"][1:]]
    for text in QUESTION.values():
        pieces += [piece for piece in text.replace("{signs}", "{start}").split("{start}") if piece]
    pieces += [prompts.CLOSER, prompts.BCQ_HEADER, prompts.NCQ_HEADER, prompts.NCQ_ANSWERS.split("{")[0]]
    for template in (prompts.COMPRESSION, prompts.HINT):
        pieces += template.split("{response}")
    pieces += [f"<{slash}{tag}>" for tag in prompts.TAGS for slash in ("", "/")]
    pieces += [f"[{slash}{tag}]" for tag in prompts.TAGS for slash in ("", "/")]
    pieces += ["\\boxed{", "\n\n", "user\n", "assistant\n"]
    tokenizer.add_tokens([AddedToken(piece, normalized=False) for piece in dict.fromkeys(pieces)])
    image_processor = Qwen2VLImageProcessorPil(
        patch_size=8, merge_size=2, temporal_patch_size=2, size={"shortest_edge": CELL**2, "longest_edge": 64 * CELL**2}
    )
    return PaddleOCRVLProcessor(image_processor=image_processor, tokenizer=tokenizer, chat_template=CHAT_TEMPLATE)


def make_model(processor, hidden: int, layers: int, seed: int) -> Qwen3_5ForConditionalGeneration:
    """A tiny Qwen3.5: linear and full attention in turn, a vision tower, tied embeddings."""
    tokenizer = processor.tokenizer
    ids = {
        name: tokenizer.convert_tokens_to_ids(f"<|{name}|>")
        for name in ("image_pad", "video_pad", "vision_start", "vision_end")
    }
    config = Qwen3_5Config(
        text_config=dict(
            vocab_size=len(tokenizer),
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
            rope_parameters={
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 1.0,
                "mrope_section": [6, 5, 5],
                "mrope_interleaved": True,
            },
            max_position_embeddings=4096,
            tie_word_embeddings=True,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        ),
        vision_config=dict(
            depth=1,
            hidden_size=64,
            intermediate_size=128,
            num_heads=2,
            patch_size=8,
            spatial_merge_size=2,
            temporal_patch_size=2,
            out_hidden_size=hidden,
            num_position_embeddings=64,
        ),
        image_token_id=ids["image_pad"],
        video_token_id=ids["video_pad"],
        vision_start_token_id=ids["vision_start"],
        vision_end_token_id=ids["vision_end"],
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    model = Qwen3_5ForConditionalGeneration(config)
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    return model


# ---------------------------------------------------------------- pre-training: what both know before step one


class Lesson:
    """Draws pre-training examples (prompt text, images, response) for the student or the teacher."""

    def __init__(self, who: str, seed: int):
        self.who, self.table = who, beliefs(who, seed)

    def recall(self, start: str, signs: str, rng: random.Random, guess_at: int = -1) -> list[str]:
        """Walk by belief, with the occasional lapse; the step `guess_at` is a pure guess."""
        places = [start]
        for i, sign in enumerate(signs):
            guess = i == guess_at or rng.random() > FIRMNESS
            places.append(rng.choice(PLACES) if guess else self.table[places[-1], sign])
        return places

    def guess(self, start: str, signs: str, rng: random.Random, avoid: set[str]) -> list[str]:
        """A walk with one guessed step that ends elsewhere than at the places in `avoid`."""
        while True:
            places = self.recall(start, signs, rng, guess_at=rng.randrange(len(signs)))
            if places[-1] not in avoid:
                return places

    def example(self, rng: random.Random) -> tuple[str, tuple, str]:
        family, start = rng.choice(FAMILIES), rng.choice(PLACES)
        signs = "".join(rng.choice(SIGNS) for _ in range(rng.choice((1, 2, 3, 3))))
        asked = question(family, start, signs, "")
        filler = rng.choice(FILLER[self.who])
        places = self.recall(start, signs, rng)
        kinds = {"student": ("plain", "plain", "bcq", "ncq", "hint"), "teacher": ("plain", "plain", "compress", "tip")}
        kind = rng.choice(kinds[self.who])
        if kind == "plain":
            return prompts.plain_prompt(asked.text), asked.images, response(signs, places, filler)
        if kind == "bcq":  # copy one of the two, whichever
            other = self.guess(start, signs, rng, avoid={places[-1]})
            texts = [summary(signs, path) for path in (places, other)]
            text = prompts.bcq_prompt(asked.text, *texts, rng)
            return text, asked.images, response(signs, rng.choice((places, other)), filler)
        if kind == "ncq":  # try something that is not in the list
            wrong = [self.recall(start, signs, rng) for _ in range(rng.randint(1, 8))]
            places = self.guess(start, signs, rng, avoid={path[-1] for path in wrong})
            text = prompts.ncq_prompt(asked.text, [w[-1] for w in wrong], [summary(signs, w) for w in wrong])
            return text, asked.images, response(signs, places, filler)
        if kind == "hint":  # take the hint's steps, then go on by belief
            places = self.guess(start, signs, rng, avoid=set())
            text = prompts.hinted_prompt(asked.text, tip(signs, places))
            places = places[:-1] + self.recall(places[-2], signs[-1:], rng)[1:]
            return text, asked.images, response(signs, places, filler)
        # The teacher rewrites what it is given, right or wrong.
        places = self.guess(start, signs, rng, avoid=set())
        given = response(signs, places, rng.choice(FILLER["student"] + FILLER["teacher"]))
        if kind == "tip":
            return prompts.hint_prompt(given), (), tip(signs, places)
        if rng.random() < 0.1:  # a response that never boxes
            given = given.split("\\boxed")[0]
            return prompts.compression_prompt(given), (), f"<summary>{chain(signs, places)}</summary>"
        return prompts.compression_prompt(given), (), f"<summary>{summary(signs, places)}</summary>"


def summary(signs: str, places: Sequence[str]) -> str:
    return f"{chain(signs, places)}\n\\boxed{{{places[-1]}}}"


def tip(signs: str, places: Sequence[str]) -> str:
    """A hint: everything but the last look-up's result."""
    return chain(signs, places)[: -len(places[-1])]


def pretrain(who: str, hidden: int, layers: int, steps: int, seed: int, batch_size: int = 128, lr: float = 3e-3):
    """Supervised pre-training of one model on its lessons. Returns (model, processor)."""
    processor = make_processor()
    model = make_model(processor, hidden, layers, seed=seed_of("init", who, seed) % 2**31)
    policy = Policy(model, banned_token_ids(model, processor))
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.05)
    lesson, rng = Lesson(who, seed), random.Random(f"lessons/{who}/{seed}")
    end = processor.tokenizer.eos_token_id
    progress = tqdm(range(steps), desc=f"pre-training the {who}")
    for _ in progress:
        rows = []
        for text, images, answer in (lesson.example(rng) for _ in range(batch_size)):
            rows.append((encode(processor, text, images), processor.tokenizer(answer).input_ids + [end]))
        rows.sort(key=lambda row: len(row[0]["input_ids"]))
        count, total = 0, 0.0
        for i in range(0, batch_size, 32):  # rows of like length together
            part = rows[i : i + 32]
            encoded, answers = zip(*part, strict=True)
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

    out: str = str(WORLD)
    seed: int = 0
    student_steps: int = 1000
    teacher_steps: int = 1000


def build(args: BuildArguments) -> None:
    for who, hidden, layers in (("student", 96, 4), ("teacher", 128, 4)):
        steps = getattr(args, f"{who}_steps")
        model, processor = pretrain(who, hidden, layers, steps, args.seed)
        folder = Path(args.out) / who
        model.to(torch.bfloat16).save_pretrained(folder)
        processor.save_pretrained(folder)


if __name__ == "__main__":
    build(*HfArgumentParser(BuildArguments).parse_args_into_dataclasses())
