"""Pixels and prompts: image cells to upright RGB, pixel bounds, a prompt's turns and tokens.

Decisions where the paper is silent:
1. Images come first, then the text. The model's processor resizes images (`bound_pixels`, Table 8).
2. Transparency is laid on white. An animation gives its first frame.
3. Grey of more than 8 bits is scaled. White is 65535 for 16 bits; for 32 bits and floats the first
   of 1, 255, 65535 that no pixel exceeds. With negative pixels it goes from the lowest to the
   highest.

This file imports nothing from the rest of the project: copy what you need.
"""

import base64
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

MIN_PIXELS, MAX_PIXELS = 256 * 32 * 32, 1280 * 32 * 32  # Table 8
ORIENTATION = 0x0112  # EXIF tag


def image_bytes(cell, folder: str = "") -> bytes:
    """Encoded bytes of a cell: {"bytes", "path"}, bytes, data URI or file in `folder`.
    Raises OSError, ValueError."""
    if isinstance(cell, dict):
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, str):
        if cell.startswith("data:"):
            return base64.b64decode(cell.partition(",")[2])
        return Path(folder, cell).read_bytes()
    if not isinstance(cell, bytes) or not cell:
        raise OSError(f"no image bytes in a cell of type {type(cell).__name__}")
    return cell


def to_rgb(image: Image.Image) -> Image.Image:
    """Upright RGB image (decision 2); an upright RGB image is returned as it is."""
    if image.getexif().get(ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):  # Pillow would cut at 255
        image = scale_grey(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image if image.mode == "RGB" else image.convert("RGB")


def scale_grey(image: Image.Image) -> Image.Image:
    """The image in 8 bits (decision 3)."""
    grey = np.nan_to_num(np.asarray(image, float), posinf=0, neginf=0)
    lowest = min(grey.min(), 0)
    grey -= lowest
    white = grey.max() or 1
    if image.mode.startswith("I;16"):
        white = 65535
    elif lowest == 0:
        levels = (1, 255, 65535, white)
        white = min(level for level in levels if level >= white)
    grey = grey * 255 / white
    return Image.fromarray(grey.round().astype(np.uint8))


def fit_pixels(image: Image.Image, least: int, most: int) -> Image.Image:
    """The image scaled, proportions kept, to least <= width * height <= most."""
    pixels = image.width * image.height
    if least <= pixels <= most:
        return image
    target = most
    rounding = np.floor
    if pixels < least:
        target = least
        rounding = np.ceil
    scale = (target / pixels) ** 0.5
    sides = [max(1, int(rounding(side * scale))) for side in image.size]
    return image.resize(sides)  # bicubic


def bound_pixels(processor, min_pixels: int = MIN_PIXELS, max_pixels: int = MAX_PIXELS):
    """Set the pixel bounds (Table 8) on a processor of the Qwen family; returns the processor.
    Raises ValueError for one of another family: it neither counts nor scales as we do."""
    scaler = processor.image_processor
    if not hasattr(scaler, "merge_size"):
        name = type(scaler).__name__
        raise ValueError(f"its {name} is not known here: choose a VLM of the Qwen family")
    scaler.size = {
        "shortest_edge": min_pixels,
        "longest_edge": max_pixels,
    }
    return processor


def chat(text: str, images=(), system: str = "", turns=()) -> list[dict]:
    """The messages of a prompt: a system turn and earlier turns (role, text) if there are any, then
    the user turn with images and text."""
    said = [("system", system)] if system else []
    said += [*turns, ("user", text)]
    messages = [{"role": role, "content": words} for role, words in said]
    if images:
        for message in messages:
            message["content"] = [{"type": "text", "text": message["content"]}]
        pictures = [{"type": "image", "image": image} for image in images]
        messages[-1]["content"] = pictures + messages[-1]["content"]
    return messages


def prompt_tokens(
    processor, prompt_text: str, images, system: str = "", turns=(), **template
) -> int:
    """Tokens of `chat(prompt_text, images, system, turns)` in the chat template with its generation
    prompt.

    images: anything with `.size` = (width, height). The arithmetic of the Qwen family's image
    processors counts their tokens. Without images, `processor` may be a bare tokenizer.
    """
    template |= dict(tokenize=False, add_generation_prompt=True)
    messages = chat(prompt_text, images, system, turns)
    text = processor.apply_chat_template(messages, **template)
    tokenizer = getattr(processor, "tokenizer", processor)
    tokens = len(tokenizer(text)["input_ids"])
    for image in images:  # each has a placeholder of one token in the template
        scaler = processor.image_processor
        width, height = image.size
        patches = scaler.get_number_of_image_patches(height, width, {})
        tokens += patches // scaler.merge_size**2 - 1
    return tokens
