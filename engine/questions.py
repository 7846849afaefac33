"""Questions: any `datasets` source in, `Question`s out; images stay on disk until they are asked for.

    questions, report = load_questions("my.jsonl", columns={"question": "problem"})

Decisions where the paper is silent:
1. Images come first, in the order of the row, then the text. Image markers leave the text; with several images a
   marker inside a sentence becomes "[image k]": "compare <image> and <image>" stays readable.
2. Pixels are resized once, by the model's processor (`bound_pixels` sets the bounds of Table 8 there). `open_images`
   decodes, turns by EXIF and makes RGB; it resizes only for a caller who passes bounds.
3. Transparency is laid on white (diagrams are black on nothing). 16-bit grey is divided by 257; integer and float
   images, of unknown range, are stretched from minimum to maximum. Of an animation: the first frame.
4. A row that cannot be used is skipped and counted under one reason, never repaired by a guess: a gold that lists
   several accepted strings (the reward knows one gold), an empty question, a broken image, ...
5. uid = the set's own `uid` column, or else a hash of cleaned text and image bytes: no row number, no order. An exact
   copy of a question thus has the same uid and is a duplicate, whatever its answer.
"""

import ast
import hashlib
import io
import os
import re
from collections import Counter
from dataclasses import dataclass, field

import datasets
import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

MIN_PIXELS, MAX_PIXELS = 256 * 32 * 32, 1280 * 32 * 32  # Table 8
MAX_ASPECT = 200  # Qwen's image processors refuse a longer strip
MAX_ANSWER_CHARS = 512  # App. B.1
FREE_FORM_WORDS = 3  # a gold with more words of natural language goes to the judge
COLUMNS = {"question": ("question", "problem"), "answer": ("answer", "solution"),
           "images": ("images", "image"), "uid": ("uid",)}  # without a map: the first name that exists


class DataError(ValueError):
    """A source is not as expected; the message names what was expected, what exists, and the fix."""


@dataclass(frozen=True)
class Question:
    uid: str  # unique in the set; does not depend on order or workers
    text: str  # no image marker, no format directive; the images come before it
    images: tuple = field(compare=False, repr=False)  # LazyImage or PIL images: read them with open_images
    answer: str  # short gold answer
    free_form: bool = False  # graded by the judge, see is_free_form


@dataclass(frozen=True)
class LazyImage:
    """One image of one row: the memory-mapped data set and a position, no pixels."""

    rows: datasets.Dataset
    row: int
    column: str
    position: int
    folder: str  # where relative file names start
    size: tuple[int, int]  # (width, height), read from the header at load

    def read(self) -> bytes:
        return image_bytes(as_list(dig(self.rows[self.row], self.column))[self.position], self.folder)


# ---- images ----------------------------------------------------------------------------------------------


def as_list(value) -> list:
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]


def image_bytes(cell, folder: str = "") -> bytes:
    """Encoded bytes of an undecoded cell: {"bytes", "path"}, bytes, or a file in `folder`. Raises OSError."""
    if isinstance(cell, dict):
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, str):
        with open(os.path.join(folder, cell), "rb") as file:
            return file.read()
    if not isinstance(cell, bytes) or not cell:
        raise OSError(f"no image bytes in a cell of type {type(cell).__name__}")
    return cell


def image_size(encoded: bytes, full: bool = False) -> tuple[int, int]:
    """(width, height) from the header; `full` decodes the pixels too, which finds cut files. Else OSError."""
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            size = image.size
            if full:
                image.draft(None, (size[0] // 8, size[1] // 8))  # JPEG: whole stream read, fewer pixels made
                image.load()
                image.getexif()
            return size
    except Exception as error:  # Pillow: OSError, SyntaxError, ValueError, struct.error, ...
        raise OSError(f"{type(error).__name__}: {error}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Upright RGB image (decision 3); an upright RGB image is returned as it is."""
    if image.getexif().get(0x0112, 1) != 1:  # the orientation tag
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image).astype(np.float32) / 257).round().astype(np.uint8))
    elif image.mode in ("I", "F"):
        values = np.nan_to_num(np.asarray(image, dtype=np.float64))
        spread = max(values.max() - values.min(), 1e-12)
        image = Image.fromarray(((values - values.min()) / spread * 255).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def fit_pixels(image: Image.Image, min_pixels: int | None, max_pixels: int | None) -> Image.Image:
    """The image scaled, proportions kept, to min_pixels <= width*height <= max_pixels (None: no bound)."""
    pixels = image.width * image.height
    if max_pixels and pixels > max_pixels:
        scale, rounding = (max_pixels / pixels) ** 0.5, np.floor
    elif min_pixels and pixels < min_pixels:
        scale, rounding = (min_pixels / pixels) ** 0.5, np.ceil
    else:
        return image
    sides = [max(1, int(rounding(side * scale))) for side in image.size]
    return image.resize(sides, Image.Resampling.BICUBIC)


def open_images(question: Question, min_pixels: int | None = None, max_pixels: int | None = None) -> list:
    """The question's PIL images, decoded now: RGB, upright, scaled only if bounds are given; [] if none.

    Images made in memory keep their pixels. Raises DataError if a file is broken behind a good header.
    """
    images = []
    for image in question.images:
        try:
            if isinstance(image, LazyImage):
                image = Image.open(io.BytesIO(image.read()))
            image.load()
            images.append(fit_pixels(to_rgb(image), min_pixels, max_pixels))
        except Exception as error:  # see image_size
            raise DataError(
                f"question {question.uid}: image cannot be decoded ({type(error).__name__}: {error}); "
                'load_questions(..., check="full") finds, skips and counts such rows') from error
    return images


def bound_pixels(processor, min_pixels: int = MIN_PIXELS, max_pixels: int = MAX_PIXELS):
    """Set the pixel bounds (Table 8) on a processor of the Qwen family, in place; returns the processor."""
    processor.image_processor.size = {"shortest_edge": min_pixels, "longest_edge": max_pixels}
    return processor


def prompt_tokens(processor, prompt_text: str, images, **template) -> int:
    """Tokens of one user turn (images, then `prompt_text`) in the chat template with its generation prompt.

    images: PIL images, or anything with `.size` = (width, height): image tokens come from the processor's
    own arithmetic, no pixel is touched. (A processor without that arithmetic is run, and needs PIL images.)
    `processor` may be a bare tokenizer if there are no images. template: extra arguments of the chat template.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    parts = [{"type": "image"} for _ in images] + [{"type": "text", "text": prompt_text}]
    turn = {"role": "user", "content": prompt_text if tokenizer is processor else parts}
    text = processor.apply_chat_template([turn], tokenize=False, add_generation_prompt=True, **template)
    if not images:
        return len(tokenizer(text)["input_ids"])
    patches = getattr(processor.image_processor, "get_number_of_image_patches", None)
    if patches is None:
        return len(processor(text=[text], images=list(images))["input_ids"][0])
    per_token = processor.image_processor.merge_size**2
    sizes = [image.size for image in images]  # the template holds one placeholder token per image already
    return len(tokenizer(text)["input_ids"]) + sum(patches(h, w, {}) // per_token - 1 for w, h in sizes)


# ---- text ------------------------------------------------------------------------------------------------

MARKER = re.compile(r"<\|vision_start\|><\|image_pad\|><\|vision_end\|>|<\|image_pad\|>|<image[ _]?\d*>")
NOT_PROSE = re.compile(r"\$[^$]*\$|\\[a-zA-Z]+|\\\(.*?\\\)|\\\[.*?\\\]", re.DOTALL)

# A sentence goes if it BEGINS like one of these and asks no question. What changes the answer itself stays:
# "round to two decimals", "give the answer in cm", "answer yes or no".
_FORM = (r"(?:\\?boxed|</?(?:answer|think)>|\btags?\b|\b(?:single|one) (?:word|letter|number|phrase)"
         r"|\bword or phrase|\bletters?\b|\bdirectly\b|\bat the end\b|\bjson\b"
         r"|\b(?:correct|given|right) (?:option|choice)s?\b)")
_ANSWER = r"(?:answer|choice|option|solution|response|result)s?\b"
_VERB = r"(?:put|place|enclose|write|give|provide|present|output|return|state|box|wrap|mark)"
_OPENING = (r"(?:(?:hint|note|instructions?|important|format)\s*:\s*)?(?:(?:and|now|then|finally),?\s+)?"
            r"(?:please\s+)?")
_WISHES = (
    rf"{_VERB}\s+(?:\w+\s+){{0,3}}{_ANSWER}.{{0,120}}?{_FORM}",
    rf"(?:answer|respond|reply)\b(?:\s+(?:to\s+)?(?:the|this)\s+question)?.{{0,40}}?{_FORM}",
    rf"(?:select|choose)\s+(?:\w+\s+){{0,3}}{_ANSWER}.{{0,120}}\bletters?\b",
    (r"(?:your|the)\s+(?:final\s+)?(?:answer|reasoning|thinking|response)\b.{0,30}?"
     rf"\b(?:should|must|needs?\s+to)\b.{{0,120}}?{_FORM}"),
    (r"(?:let'?s\s+)?(?:first\s+)?(?:think|reason|(?:solve|answer)\s+(?:the|this)\s+(?:problem|question))\b"
     r".{0,60}\bstep[\s-]+by[\s-]+step"),
    r"(?:output|show|enclose|write|put)\s+(?:the|your)\s+(?:thinking|reasoning)\b",
    r"you\s+(?:should\s+|must\s+)?first\s+think\s+about\s+the\s+reasoning",
    r"first\b.{0,120}\b(?:conduct|perform|think|reason)\w*\b.{0,120}\bthen\b.{0,120}\banswer",
)
DIRECTIVE = re.compile(_OPENING + "(?:" + "|".join(_WISHES) + ")", re.IGNORECASE)
CLAUSE = re.compile(  # the same wish hung on to a sentence that carries the question: only the clause goes
    rf",?\s*(?:and|then)\s+{_VERB}\s+(?:your|the)\s+(?:final\s+)?answer\s+(?:with)?in(?:side)?\s+"
    r"(?:\$?\\boxed\{[^{}]*\}\$?|<answer>\s*</answer>(?:\s+tags)?)", re.IGNORECASE)


def strip_directives(text: str) -> str:
    """The question without the sentences that ask for a reasoning or answer format (App. B.2)."""
    pieces = re.split(r"((?<=[.!?])\s+|\n+)", CLAUSE.sub("", text))  # sentence, gap, sentence, ..., sentence
    kept = []
    for sentence, gap in zip(pieces[::2], pieces[1::2] + [""]):
        if "?" in sentence or not DIRECTIVE.match(sentence.strip(" *#_-")):
            kept += [sentence, gap]
        elif kept:  # of the two gaps around it the one with more line ends stays
            kept[-1] = max(kept[-1], gap, key=lambda white: white.count("\n"))
    return "".join(kept).strip()


def clean_text(text: str, images: int) -> str:
    """The question without image markers (decision 1; the row has `images` images) and format directives."""
    text = text.replace("\r\n", "\n")
    if images <= 1:  # the space around a marker goes with it
        return strip_directives(re.sub(rf"(?m)^(?:{MARKER.pattern})\s*|[ \t]*(?:{MARKER.pattern})", "", text))
    lead = re.match(rf"(?:\s*(?:{MARKER.pattern}))*", text).end()
    seen = len(MARKER.findall(text[:lead]))

    def name(marker) -> str:
        nonlocal seen
        seen += 1
        number = re.search(r"\d+", marker.group())
        return f"[image {number.group() if number else seen}]"

    return strip_directives(MARKER.sub(name, text[lead:]))


def clean_answer(value, max_chars: int = MAX_ANSWER_CHARS) -> tuple[str, str]:
    """(gold answer, "") or ("", reason to skip). Numbers become text; <answer> tags around the whole go.

    A list of strings, real or spelled out ("['cat', 'kitten']"), must hold one answer (decision 4).
    Numbers in brackets stay text: "[0, 1]" is an interval or a point.
    """
    if isinstance(value, str) and value.strip()[:1] == "[":
        try:
            spelled = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            spelled = None
        if isinstance(spelled, list) and spelled and all(isinstance(item, str) for item in spelled):
            value = spelled
    if isinstance(value, (list, tuple)):
        distinct = {str(item).strip().casefold(): item for item in value}
        if len(distinct) > 1:
            return "", "answer_is_a_list"
        value = next(iter(distinct.values()), None)
    if isinstance(value, (dict, bytes)):
        return "", "answer_is_not_text"
    missing = value is None or isinstance(value, float) and np.isnan(value)
    text = "" if missing else str(value).strip()
    if wrapped := re.fullmatch(r"<answer>(.*?)</answer>", text, re.DOTALL):
        text = wrapped.group(1).strip()
    if not text:
        return "", "answer_missing"
    return (text, "") if len(text) <= max_chars else ("", "answer_too_long")


def is_free_form(answer: str) -> bool:
    """True if the judge compares this gold (App. D.1: derivations, OCR, open VQA): several lines, or more
    than FREE_FORM_WORDS words outside mathematics. Letters, numbers, formulas, names go by rule."""
    words = re.findall(r"[^\W\d_]{2,}", NOT_PROSE.sub(" ", answer))
    return len(words) > FREE_FORM_WORDS or "\n" in answer.strip()


def clean_row(question, answer, cells: list, folder="", max_answer_chars=MAX_ANSWER_CHARS, check="header"):
    """The checks every set must pass: ((text, answer, sizes, digest), "") or (None, reason to skip the row).

    cells: undecoded images. sizes: [(width, height)]. digest: hash of text and image bytes (decision 5).
    """
    answer, reason = clean_answer(answer, max_answer_chars)
    if reason:
        return None, reason
    if not isinstance(question, str) or not (text := clean_text(question, len(cells))):
        return None, "question_empty"
    numbers = [re.findall(r"\d+", marker) for marker in MARKER.findall(question)]
    wanted = max([sum(not n for n in numbers)] + [int(n[0]) for n in numbers if n])
    if None in cells or wanted > len(cells):
        return None, "image_missing"
    digest, sizes = hashlib.sha256(text.encode()), []
    for cell in cells:
        try:
            encoded = image_bytes(cell, folder)
            sizes.append(image_size(encoded, full=check == "full"))
        except OSError:
            return None, "image_unreadable"
        digest.update(b"\0" + hashlib.sha256(encoded).digest())
    if any(max(size) > MAX_ASPECT * min(size) for size in sizes):
        return None, "image_too_narrow"
    return (text, answer, sizes, digest.hexdigest()[:16]), ""


# ---- loading ---------------------------------------------------------------------------------------------


def parse_columns(columns, known=COLUMNS) -> dict[str, str]:
    """A column map from a dict (recipe file) or ["question=problem", "images=left,right"] (command line)."""
    if not isinstance(columns, dict):
        columns = dict(item.partition("=")[::2] for item in columns or ())
    if unknown := sorted(set(columns) - set(known)):
        raise DataError(f"column map: {unknown} are not our names; ours are {list(known)} (ours=theirs)")
    return dict(columns)


def map_columns(source: str, features, columns) -> dict[str, list[str]]:
    """{"question": [name], "answer": [name], "images": [names], "uid": [name] or []}, or DataError."""
    columns, exist, found = parse_columns(columns), list(features), {}
    for ours, usual in COLUMNS.items():
        names = columns.get(ours)
        if names is None:
            found[ours] = [name for name in usual if name in exist][:1]
            if not found[ours] and ours in ("question", "answer"):
                raise DataError(
                    f"{source}: no column for the {ours}: expected one of {list(usual)}, the set has {exist}."
                    f' Map it: --columns {ours}=<name> or columns={{"{ours}": "<name>"}}')
        else:
            found[ours] = [n for n in (names.split(",") if isinstance(names, str) else names) if n]
            if missing := [name for name in found[ours] if name.split(".")[0] not in exist]:
                raise DataError(f"{source}: {ours} is mapped to {missing}, the set has {exist}. "
                                f"Correct --columns {ours}=<name>")
    pictures = [name for name, feature in features.items() if "Image(" in repr(feature)]
    if pictures and not found["images"] and "images" not in columns:
        raise DataError(
            f"{source}: image column {pictures} is not mapped (expected one of {list(COLUMNS['images'])}). "
            f"Map it: --columns images={pictures[0]}, or leave it out: --columns images=")
    return found


def undecoded(rows: datasets.Dataset) -> datasets.Dataset:
    """The same rows with image cells as {"bytes", "path"}: reading a row decodes nothing."""

    def switch(feature):
        if isinstance(feature, datasets.Image):
            return datasets.Image(decode=False)
        if isinstance(feature, (datasets.List, datasets.LargeList)):
            return type(feature)(switch(feature.feature))
        return {k: switch(v) for k, v in feature.items()} if isinstance(feature, dict) else feature

    for name, feature in rows.features.items():
        if switch(feature) != feature:
            rows = rows.cast_column(name, switch(feature))
    return rows


def open_source(source, split: str, config: str | None) -> tuple[datasets.Dataset, str]:
    """(rows, folder where relative image names start) of a hub id, file or folder; a Dataset stays one."""
    if isinstance(source, datasets.Dataset):
        return source, ""
    kinds = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv"}
    kind = kinds.get(os.path.splitext(source)[1].lower())
    try:
        if os.path.isfile(source) and kind:
            rows = datasets.load_dataset(kind, data_files=source, split=split)
            return rows, os.path.dirname(os.path.abspath(source))
        if not os.path.isdir(source):
            return datasets.load_dataset(source, config, split=split), ""
        # the library's cache knows a folder by its last name alone: each state of a folder gets its own cache
        source, digest = os.path.abspath(source), hashlib.sha256()
        for path in sorted(os.path.join(at, name) for at, _, names in os.walk(source) for name in names):
            digest.update(repr((path, os.stat(path).st_mtime_ns, os.stat(path).st_size)).encode())
        cache = os.path.join(datasets.config.HF_DATASETS_CACHE, f"folder-{digest.hexdigest()[:16]}")
        return datasets.load_dataset(source, config, split=split, cache_dir=cache), source
    except (ValueError, OSError) as error:  # the library's message lists what exists
        raise DataError(
            f"{source}: cannot be opened with split={split!r}, config={config!r}: {error}. Set --split or "
            f"--config to what exists; a source is a hub id, a folder or a file of {list(kinds)}") from error


def dig(row: dict, path: str):
    """row["a"]["b"] for "a.b"; None where a level is missing."""
    for part in path.split("."):
        row = row.get(part) if isinstance(row, dict) else None
    return row


def load_questions(source, split: str = "train", columns=None, limit: int | None = None,
                   config: str | None = None, check: str = "header",
                   max_answer_chars: int = MAX_ANSWER_CHARS) -> tuple[list[Question], dict]:
    """Questions of any `datasets` source, images left on disk, and a report.

    source: hub id, folder (parquet, image folder, ...), .parquet/.jsonl/.json/.csv file, or datasets.Dataset.
    columns: our names (COLUMNS) to the set's, as dict or ["question=problem"]. "a.b" reads a nested field,
        "images=left,right" takes several columns, "images=" makes a text set.
    limit: stop after so many questions, in the order of the set (the report then has rows_read < rows).
    check: "header" reads image headers; "full" decodes every image once and so finds cut files (slower).
    Report: {"source", "split", "columns", "rows", "rows_read", "skipped": {reason: rows}, "questions",
    "with_images", "free_form"}. Reasons: those of clean_answer and clean_row; duplicate_uid (first stays).
    Raises DataError if names do not fit or no question is left.
    """
    if check not in ("header", "full"):
        raise DataError(f"check={check!r}: expected 'header' or 'full'")
    rows, folder = open_source(source, split, config)
    source, exist = source if isinstance(source, str) else "data set in memory", list(rows.features)
    names = map_columns(source, rows.features, columns)
    used = {name.split(".")[0] for group in names.values() for name in group}
    rows = undecoded(rows.select_columns(sorted(used)))
    questions, seen, skipped, read = [], set(), Counter(), 0
    for index, row in enumerate(tqdm(rows, desc="questions", unit="row", disable=len(rows) < 10_000)):
        if limit is not None and len(questions) >= limit:
            break
        read += 1
        cells = [(name, i, cell) for name in names["images"]
                 for i, cell in enumerate(as_list(dig(row, name)))]
        checked, reason = clean_row(dig(row, names["question"][0]), dig(row, names["answer"][0]),
                                    [cell for _, _, cell in cells], folder, max_answer_chars, check)
        if not reason:
            text, answer, sizes, digest = checked
            uid = dig(row, names["uid"][0]) if names["uid"] else None
            uid = digest if uid is None else str(uid)
            reason = "duplicate_uid" if uid in seen else ""
        if reason:
            skipped[reason] += 1
            continue
        seen.add(uid)
        images = tuple(LazyImage(rows, index, name, i, folder, size) for (name, i, _), size in zip(cells, sizes))
        questions.append(Question(uid, text, images, answer, is_free_form(answer)))
    report = {"source": source, "split": split, "columns": names, "rows": len(rows), "rows_read": read,
              "skipped": dict(skipped.most_common()), "questions": len(questions),
              "with_images": sum(bool(question.images) for question in questions),
              "free_form": sum(question.free_form for question in questions)}
    if not questions:
        raise DataError(
            f"{source}: no question left of {read} rows; skipped: {report['skipped']}; columns: {names}; "
            f"the set has {exist}. If one is the wrong column: --columns question=<name>")
    return questions, report


def fingerprint(questions) -> str:
    """Hash (16 hex) of uids, texts and answers in order: a checkpoint refuses another or a reordered set."""
    digest = hashlib.sha256()
    for question in questions:
        digest.update(repr((question.uid, question.text, question.answer)).encode())
    return digest.hexdigest()[:16]
