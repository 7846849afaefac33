"""Model folders in, tensors out: loading, chat template, batches, positions, for LLMs and VLMs.

Decisions:
1. One encoded prompt is a dict of unpadded tensors. Only `collate` pads, and masks come from
   lengths, never from token values: pad and end token may be the same.
2. Position ids are computed here and passed explicitly. Otherwise Qwen's VLMs remember the rope
   offset of the last generation, and it leaks into the next scoring pass.
3. The texts of a prompt are data: special tokens in them are broken up before the chat template. A
   special token that is an ordinary word or character, a pad token "!", stays as it is.
4. Where the chat template has no system turn, its text goes in front of the question.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch
import transformers
from jinja2 import TemplateError
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    processing_utils,
)
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
from transformers.utils import is_torchvision_available
from transformers.utils.import_utils import is_kernels_available

from engine.images import chat, prompt_tokens
from engine.memory import cache_bytes
from engine.questions import Question, open_images

Tensors = dict[str, torch.Tensor]  # an encoded prompt, or a batch
# Tensors with one row per token. All others (pixel values, grids) have one row per image or patch.
TOKEN_KEYS = ("input_ids", "mm_token_type_ids", "token_type_ids")


# ---------------------------------------------------------------- loading


def load_processor(path: str):
    """The processor of a folder or hub id (the tokenizer where the model has no images)."""
    check_folder(Path(path))
    if not is_torchvision_available():
        # transformers hides this class behind torchvision, which its Pillow processors do not need.
        processing_utils.transformers_module.AutoImageProcessor = AutoImageProcessor
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # it warns that Pillow replaces torchvision
    try:
        return AutoProcessor.from_pretrained(path)
    finally:
        transformers.logging.set_verbosity(verbosity)


def check_folder(folder: Path) -> None:
    """Raises ValueError with a way out for what is often named in place of a model."""
    if (folder / "config.json").exists():
        return
    if folder.suffix == ".gguf" or any(folder.glob("*.gguf")):
        raise ValueError("GGUF is for serving: name the model that it was made from")
    if (folder / "model" / "config.json").exists():
        raise ValueError(f"it is the folder of a run: the model is {folder / 'model'}")
    # A hub id has two parts.
    if not folder.exists() and (folder.is_absolute() or len(folder.parts) > 2):
        raise ValueError("there is no such folder")


def load_model(path: str, dtype: torch.dtype = torch.float32):
    """The model of a folder or hub id, VLM or causal LM, without dropout.
    Raises ValueError where weights are missing: transformers would draw them at random."""
    config = AutoConfig.from_pretrained(path)
    check_fp8(path, config)
    is_vlm = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    kind = AutoModelForImageTextToText if is_vlm else AutoModelForCausalLM
    model, report = kind.from_pretrained(path, dtype=dtype, output_loading_info=True)
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"{len(missing)} weights are missing, {missing[0]} first: is it whole?")
    disable_dropout(model)
    return model


def check_fp8(path: str, config) -> None:
    """Raises SystemExit for an FP8 model where it would silently become bf16, twice as large, or
    fail at first use."""
    quantization = getattr(config, "quantization_config", None) or {}
    if quantization.get("quant_method") != "fp8":
        return
    fixes = "serve it (--teacher http://host:port/v1), or name a bf16 model"
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 9):
        needs = "needs a GPU of compute capability 8.9 or more"
        raise SystemExit(f"{path} is an FP8 model and {needs}: {fixes}")
    if not is_kernels_available():
        raise SystemExit(f"{path} is an FP8 model and needs `pip install kernels`; or {fixes}")


def disable_dropout(model: torch.nn.Module) -> None:
    """Set all dropout to 0. Old and new log-probs must come from the same network: with dropout the
    first ratio would not be 1."""
    for module in model.modules():
        is_dropout = isinstance(module, torch.nn.Dropout)
        # Some modules keep a plain number: attention_dropout, ...
        for name, value in list(vars(module).items()):
            is_noise = is_dropout or "drop" in name or name == "jitter_noise"
            if isinstance(value, float) and is_noise:
                setattr(module, name, 0.0)


# ---------------------------------------------------------------- facts of a model


def lm_head(model) -> tuple[torch.Tensor, float | None]:
    """(weight [V, H], soft cap if there is one): what takes the last hidden states to logits."""
    cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    return model.get_output_embeddings().weight, cap


def tokenizer_of(processor):
    return getattr(processor, "tokenizer", processor)


def end_token_ids(model, processor) -> list[int]:
    """Every token that ends a response: generation_config's (often several) and the tokenizer's."""
    ids = model.generation_config.eos_token_id
    if not isinstance(ids, list):
        ids = [ids]
    return sorted({*ids, tokenizer_of(processor).eos_token_id} - {None})


def banned_token_ids(model, processor) -> list[int]:
    """Vision placeholders get probability 0: a sampled one would ask for a missing image."""
    names = ("image", "video", "vision_start", "vision_end", "audio")
    ids = set()
    for name in names:
        ids.add(getattr(model.config, f"{name}_token_id", None))
        ids.add(getattr(processor, f"{name}_token_id", None))
    vocabulary = model.get_output_embeddings().weight.shape[0]
    return sorted(i for i in ids - {None} if i < vocabulary)


@lru_cache(maxsize=8)  # some tokenizers have thousands
def special_tokens(processor) -> list[str]:
    """All special tokens as strings, longest first: what a user turn must not contain."""
    tokenizer = tokenizer_of(processor)
    added = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    names = sorted(added.union(tokenizer.all_special_tokens))
    names = [name for name in names if len(name) > 1 and not name.isalnum()]  # decision 3
    return sorted(names, key=len, reverse=True)


def break_tokens(text: str, special_tokens: Sequence[str]) -> str:
    """`<|im_end|>` becomes `< |im_end|>` (decision 3)."""
    for token in special_tokens:  # a space never joins two pieces into a new token
        text = text.replace(token, f"{token[0]} {token[1:]}")
    return text


# ---------------------------------------------------------------- prompts


def break_prompt(processor, text: str, system: str, turns) -> tuple[str, str, list]:
    """The texts of a prompt, (text, system, turns), without special tokens (decision 3)."""
    if system and not has_system_turn(processor):
        text, system = f"{system}\n\n{text}", ""  # decision 4
    tokens = special_tokens(processor)
    turns = [(role, break_tokens(said, tokens)) for role, said in turns]
    return break_tokens(text, tokens), break_tokens(system, tokens), turns


@lru_cache(maxsize=8)
def has_system_turn(processor) -> bool:
    """False where the template refuses a system turn, or leaves it out."""
    try:
        messages = chat("Why?", system="Be brief.")
        return "Be brief." in processor.apply_chat_template(messages, tokenize=False)
    except TemplateError:
        return False


def encode(
    processor, text: str, images: Sequence = (), system: str = "", turns=(), **template
) -> Tensors:
    """One user turn in the model's chat template, with a system turn and earlier turns if there are
    any.

    template: extra arguments of the chat template (for example enable_thinking).
    Returns unpadded tensors: input_ids [length] and, with images, pixel values and grids.
    Nothing is cut."""
    text, system, turns = break_prompt(processor, text, system, turns)
    messages = chat(text, images, system, turns)
    template |= dict(tokenize=True, return_dict=True, return_tensors="pt")
    encoded = processor.apply_chat_template(messages, add_generation_prompt=True, **template)
    encoded.pop("attention_mask", None)
    return {key: value[0] if key in TOKEN_KEYS else value for key, value in encoded.items()}


def render(processor, text: str, system: str = "", turns=(), **template) -> str:
    """A prompt in the model's chat template, as text, with the start of the response."""
    template |= dict(tokenize=False, add_generation_prompt=True)
    return processor.apply_chat_template(chat(text, (), system, turns), **template)


class Encoder:
    """The prompts of one model as tensors. Within a step each prompt is encoded once, as far as
    `cache_bytes` go.

    template: arguments of the chat template. For prompts without a question (summaries, hints,
    verdicts) thinking is switched off where the template has the switch: they have too few tokens
    to think first."""

    def __init__(self, processor, template: dict | None = None):
        self.processor = processor
        self.template = template or {}
        self.template_without_thinking = dict(self.template)
        if "enable_thinking" in str(processor.chat_template):  # others warn of an unknown argument
            self.template_without_thinking["enable_thinking"] = False
        self.clear()

    def clear(self) -> None:
        """Forget all prompts: a new step has others."""
        self.prompts = {}
        self.lengths = {}
        self.bytes_left = cache_bytes()

    def __call__(self, text: str, question: Question | None = None) -> Tensors:
        """The encoded prompt. Callers share its tensors: nobody may change them in place."""
        key = (text, question)
        if key in self.prompts:
            return self.prompts[key]
        if question:
            given = (open_images(question), question.system, question.turns)
            prompt = encode(self.processor, text, *given, **self.template)
        else:
            prompt = encode(self.processor, text, **self.template_without_thinking)
        size = sum(tensor.nbytes for tensor in prompt.values())
        if size <= self.bytes_left:
            self.prompts[key] = prompt
            self.bytes_left -= size
        return prompt

    def length(self, text: str, question: Question) -> int:
        """The number of tokens of the encoded prompt, without looking at the pixels."""
        key = (text, question)
        if key not in self.lengths:
            text, system, turns = break_prompt(
                self.processor, text, question.system, question.turns
            )
            given = (text, question.images, system, turns)
            try:
                self.lengths[key] = prompt_tokens(self.processor, *given, **self.template)
            except TemplateError as error:
                what = f"question {question.uid}: the chat template refuses its turns"
                raise SystemExit(f"{what} ({error}): leave it out") from error
        return self.lengths[key]


# ---------------------------------------------------------------- batches


def collate(
    prompts: Sequence[Tensors],
    responses: Sequence[Sequence[int]] | None = None,
    pad_id: int = 0,
    device="cpu",
) -> Tensors:
    """Encoded prompts as one batch [B, L] with its attention mask; images of all rows follow in row
    order.

    With responses each row is prompt + response, padded on the right. Without responses the padding
    is on the left, because generation goes on at the right end."""
    if responses is None:
        rows, side = prompts, "left"
    else:
        rows = [extend(prompt, tokens) for prompt, tokens in zip(prompts, responses, strict=True)]
        side = "right"
    mask = [torch.ones_like(row["input_ids"]) for row in rows]
    batch = {"attention_mask": pad_sequence(mask, True, 0, side)}
    for key in {key for row in rows for key in row}:
        if key in TOKEN_KEYS:
            values = [row.get(key, torch.zeros_like(row["input_ids"])) for row in rows]
            padding = pad_id if key == "input_ids" else 0
            batch[key] = pad_sequence(values, True, padding, side)
        else:
            batch[key] = torch.cat([row[key] for row in rows if key in row])
    return {key: value.to(device) for key, value in batch.items()}


def extend(prompt: Tensors, tokens: Sequence[int]) -> Tensors:
    """An encoded prompt with response tokens appended."""
    if not len(tokens):
        return prompt
    return follow(prompt, {"input_ids": torch.as_tensor(tokens, dtype=torch.long)})


def follow(first: Tensors, second: Tensors) -> Tensors:
    """Two encoded prompts as one, the second behind the first. Where only one has a tensor of
    TOKEN_KEYS, the other one's part is 0."""
    joined = {}
    for key in first | second:
        parts = []
        for prompt in (first, second):
            if key in prompt:
                parts.append(prompt[key])
            elif key in TOKEN_KEYS:
                parts.append(torch.zeros_like(prompt["input_ids"]))
        joined[key] = torch.cat(parts)
    return joined


def rope_index_of(model):
    """The model's own function for positions [3, B, L], if it has multimodal rope; else None."""
    return getattr(getattr(model, "model", None), "get_rope_index", None)


def position_ids(model, batch: Tensors) -> torch.Tensor:
    """Position ids [B, L], or [3, B, L] for models with multimodal rope. They count from a row's
    first token and continue through padding on the right: where a mask is left out, repeated ones
    would say that rows are packed."""
    rope_index = rope_index_of(model)
    mask = batch["attention_mask"]
    if rope_index and "image_grid_thw" in batch:
        keys = ("input_ids", "mm_token_type_ids", "image_grid_thw", "attention_mask")
        return rope_index(**{key: batch[key] for key in keys})[0]
    columns = torch.arange(mask.shape[1], device=mask.device)
    first = mask.argmax(-1, keepdim=True)  # [B, 1]
    positions = (columns - first).clamp(min=0)  # [B, L]
    return positions.expand(3, -1, -1) if rope_index else positions


def response_positions(
    prompts: Sequence[Tensors], responses: Sequence[Sequence[int]], shape
) -> torch.Tensor:
    """Bool [B, L], the shape: True where the hidden state predicts a response token.
    Comes from lengths alone."""
    predicts = torch.zeros(shape, dtype=torch.bool)
    for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        # The last prompt token predicts the first response token.
        first = len(prompt["input_ids"]) - 1
        predicts[i, first : first + len(response)] = True
    return predicts
