"""Tiny random models of real architectures, and prompts for them."""

import torch
import transformers
from PIL import Image

from engine.models import encode
from world import pretrain

torch.set_num_threads(1)

PROCESSOR = pretrain.make_processor()
TOKENIZER = (
    pretrain.make_processor().tokenizer
)  # not the processor's: to save that one marks its tokenizer as a part
TOKENIZER.chat_template = pretrain.CHAT_TEMPLATE
END = TOKENIZER.eos_token_id
VOCABULARY = len(TOKENIZER)
IMAGE = TOKENIZER.convert_tokens_to_ids("<|image_pad|>")
CAUSAL = dict(
    vocab_size=VOCABULARY,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=512,
    eos_token_id=END,
    pad_token_id=TOKENIZER.pad_token_id,
    bos_token_id=None,
)


def sharpen(model, factor: float = 15.0):
    """Larger weights: every input matters, and next-token distributions are far from uniform."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(factor)
    return model.eval()


def make(name: str, seed: int = 0, **config):
    """A model by the name of its architecture, all with one vocabulary."""
    torch.manual_seed(seed)
    if name == "qwen3_5":
        return sharpen(pretrain.make_model(PROCESSOR, 32, 2, seed))
    if name == "qwen3":
        return sharpen(transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**CAUSAL, **config)))
    if name == "gemma2":  # soft-capped logits, sliding windows
        config = dict(
            sliding_window=8, final_logit_softcapping=2.0, query_pre_attn_scalar=8, **config
        )
        return sharpen(
            transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**CAUSAL, **config))
        )
    if name == "qwen2_5_vl":
        text = dict(
            CAUSAL,
            rope_parameters=dict(rope_type="default", rope_theta=1e4, mrope_section=[2, 1, 1]),
        )
        text.pop("head_dim")
        vision = dict(
            depth=1,
            hidden_size=32,
            intermediate_size=32,
            num_heads=2,
            patch_size=8,
            out_hidden_size=32,
        )
        names = ("image_pad", "video_pad", "vision_start", "vision_end")
        ids = TOKENIZER.convert_tokens_to_ids([f"<|{name}|>" for name in names])
        tokens = {
            f"{key}_token_id": i
            for key, i in zip(("image", "video", "vision_start", "vision_end"), ids)
        }
        config = transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision, **tokens)
        return sharpen(transformers.Qwen2_5_VLForConditionalGeneration(config))
    raise KeyError(name)


def colour(name: str, width: int = 32, height: int = 32) -> Image.Image:
    return Image.new("RGB", (width, height), name)


def prompts(model) -> list[dict[str, torch.Tensor]]:
    """Encoded prompts of unequal lengths: with no, one and two images where the model sees."""
    if not hasattr(model.model, "visual"):
        return [encode(TOKENIZER, text) for text in ("one", "a longer question", "why?")]
    two = [colour("blue", 16, 48), colour("lime", 32, 16)]
    return [
        encode(PROCESSOR, "which colour?", [colour("red")]),
        encode(PROCESSOR, "no picture at all"),
        encode(PROCESSOR, "and these?", two),
    ]


def naive_logits(model, prompt: dict[str, torch.Tensor], response: list[int]) -> torch.Tensor:
    """Logits [V] behind prompt + response: one row, no cache, no padding, own positions."""
    inputs = dict(prompt)
    tail = torch.tensor(response, dtype=torch.long)
    inputs["input_ids"] = torch.cat([prompt["input_ids"], tail])[None]
    if "mm_token_type_ids" in prompt:
        inputs["mm_token_type_ids"] = torch.cat(
            [prompt["mm_token_type_ids"], torch.zeros_like(tail)]
        )[None]
    if hasattr(model.model, "rope_deltas"):
        model.model.rope_deltas = None
    return model(**inputs, use_cache=False).logits[0, -1].float()
