"""Questions: any `datasets` source in, and the builder of ZPPO-77K (App. B.1 of the paper).

    questions, report = load_questions("my.jsonl", columns={"question": "problem"})
    python data.py build --out zppo77k            # hours of download; a rerun resumes.  --help explains every filter

Decisions where the paper is silent:
 1. Images come first, in the order of the row; the text follows. Image markers leave the text; with several images a
    marker inside a sentence becomes "[image k]", so that "compare <image> and <image>" stays readable.
 2. Pixels are resized ONCE, by the model's processor (`bound_pixels` sets the bounds of Table 8 there). `open_images`
    decodes, turns by EXIF and makes RGB; it resizes only for a caller who passes bounds.
 3. Transparency is laid on white (diagrams are black on nothing). 16-bit grey is divided by 257; integer and float
    images, whose range is unknown, are stretched from their minimum to their maximum. Of an animation: first frame.
 4. A row that cannot be used is skipped and counted under one reason, never repaired by a guess. Examples: a gold that
    lists several accepted strings (the reward knows one gold); an MMFineReason row without a pass_rate.
 5. uid = the set's own `uid` column, or else a hash of cleaned text and image bytes: no row number, no order. So an
    exact copy of a question has the same uid and is a duplicate, whatever its answer.
 6. Caps count canonical sub-datasets (two WeMath configs share one cap). A sub-dataset that both sources hold is taken
    from Vero alone. Caps choose by the hash of (seed, uid): independent of workers, shards and order.
 7. Vero rows whose reward needs a box, a click, a web action or an instruction check have no short answer: dropped.
 8. Exact copies across sub-datasets are dropped after the caps, without a refill.
"""

import ast
import functools
import hashlib
import heapq
import io
import json
import multiprocessing
import os
import re
import shutil
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from types import SimpleNamespace

import datasets
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageOps
from tqdm import tqdm

import prompts

MIN_PIXELS, MAX_PIXELS = 256 * 32 * 32, 1280 * 32 * 32  # Table 8
MAX_ASPECT = 200  # Qwen's image processors refuse a longer strip
MAX_ANSWER_CHARS = 512  # App. B.1
FREE_FORM_WORDS = 3  # a gold with more words of natural language goes to the judge
COLUMNS = {"question": ("question", "problem"), "answer": ("answer", "solution"), "images": ("images", "image"),
           "uid": ("uid",)}  # without a map, the first name that exists


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

    def read(self) -> bytes:
        return image_bytes(as_list(self.rows[self.row][self.column])[self.position], self.folder)


# ---- images ----------------------------------------------------------------------------------------------


def as_list(value) -> list:
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]


def image_bytes(cell, folder: str = "") -> bytes:
    """Encoded bytes of an undecoded cell: {"bytes", "path"}, bytes, or a file name relative to `folder`. OSError."""
    if isinstance(cell, dict):
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, str):
        with open(os.path.join(folder, cell), "rb") as file:
            return file.read()
    if not isinstance(cell, bytes) or not cell:
        raise OSError(f"no image bytes in a cell of type {type(cell).__name__}")
    return cell


def image_size(encoded: bytes, full: bool = False) -> tuple[int, int]:
    """(width, height) from the header; `full` decodes all pixels too, which finds cut files. OSError if unreadable."""
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            size = image.size
            if full:
                image.draft(None, (size[0] // 8, size[1] // 8))  # JPEG: reads the whole stream, makes fewer pixels
                image.load()
            return size
    except Exception as error:  # broken files make Pillow raise OSError, SyntaxError, ValueError, struct.error, ...
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
    return image.resize([max(1, int(rounding(side * scale))) for side in image.size], Image.Resampling.BICUBIC)


def open_images(question: Question, min_pixels: int | None = None, max_pixels: int | None = None) -> list[Image.Image]:
    """The question's images, decoded now: RGB, upright, scaled only if bounds are given; [] for a text question.

    Images made in memory keep their pixels. DataError naming the uid if a file is broken behind a good header.
    """
    images = []
    for image in question.images:
        if isinstance(image, LazyImage):
            try:
                image = Image.open(io.BytesIO(image.read()))
                image.load()
            except Exception as error:
                raise DataError(
                    f"question {question.uid}: image cannot be decoded ({type(error).__name__}: {error}); "
                    'load_questions(..., check="full") finds, skips and counts such rows') from error
        images.append(fit_pixels(to_rgb(image), min_pixels, max_pixels))
    return images


def bound_pixels(processor, min_pixels: int = MIN_PIXELS, max_pixels: int = MAX_PIXELS):
    """Set the pixel bounds (Table 8) on a processor of the Qwen family, in place; returns the processor."""
    processor.image_processor.size = {"shortest_edge": min_pixels, "longest_edge": max_pixels}
    return processor


def prompt_tokens(processor, prompt_text: str, images) -> int:
    """Tokens of one user turn (images, then `prompt_text`) in the chat template with its generation prompt.

    images: PIL images, or anything with `.size` = (width, height): the image tokens come from the image processor's
    own arithmetic, no pixel is touched. (A processor without that arithmetic is run, and needs PIL images.)
    `processor` may be a bare tokenizer if there are no images.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    parts = [{"type": "image"} for _ in images] + [{"type": "text", "text": prompt_text}]
    turn = {"role": "user", "content": prompt_text if tokenizer is processor else parts}
    text = processor.apply_chat_template([turn], tokenize=False, add_generation_prompt=True)
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

# A sentence goes if it BEGINS like one of these and asks no question. What changes the answer itself stays: "round
# to two decimals", "give the answer in cm", "answer yes or no".
_FORM = (r"(?:\\?boxed|</?(?:answer|think)>|\btags?\b|\b(?:single|one) (?:word|letter|number|phrase)|\bword or phrase|"
         r"\bletters?\b|\bdirectly\b|\bat the end\b|\bjson\b|\b(?:correct|given|right) (?:option|choice)s?\b)")
_ANSWER = r"(?:answer|choice|option|solution|response|result)s?\b"
_VERB = r"(?:put|place|enclose|write|give|provide|present|output|return|state|box|wrap|mark)"
DIRECTIVE = re.compile(
    r"(?:(?:hint|note|instructions?|important|format)\s*:\s*)?(?:(?:and|now|then|finally),?\s+)?(?:please\s+)?(?:"
    + "|".join((
        r"(?:let'?s\s+)?(?:first\s+)?(?:think|reason|(?:solve|answer)\s+(?:the|this)\s+(?:problem|question))\b.{0,60}"
        r"\bstep[\s-]+by[\s-]+step",
        rf"{_VERB}\s+(?:\w+\s+){{0,3}}{_ANSWER}.*?{_FORM}",
        r"(?:your|the)\s+(?:final\s+)?(?:answer|reasoning|thinking|response)\b.{0,30}?\b(?:should|must|needs?\s+to)\b.*?"
        + _FORM,
        rf"(?:answer|respond|reply)\b(?:\s+(?:to\s+)?(?:the|this)\s+question)?.{{0,40}}?{_FORM}",
        rf"(?:select|choose)\s+(?:\w+\s+){{0,3}}{_ANSWER}.*\bletters?\b",
        r"(?:output|show|enclose|write|put)\s+(?:the|your)\s+(?:thinking|reasoning)\b",
        r"you\s+(?:should\s+|must\s+)?first\s+think\s+about\s+the\s+reasoning",
        r"first\b.*\b(?:conduct|perform|think|reason)\w*\b.*\bthen\b.*\banswer",
    )) + ")", re.IGNORECASE)
# the same wish hung on to a sentence that carries the question: only the clause goes
CLAUSE = re.compile(
    rf",?\s*(?:and|then)\s+{_VERB}\s+(?:your|the)\s+(?:final\s+)?answer\s+(?:with)?in(?:side)?\s+"
    r"(?:\$?\\boxed\{[^{}]*\}\$?|<answer>\s*</answer>(?:\s+tags)?)", re.IGNORECASE)


def strip_directives(text: str) -> str:
    """The question without the sentences that ask for a reasoning or answer format: the shared closer does (App. B.2)."""
    pieces = re.split(r"((?<=[.!?])\s+|\n+)", CLAUSE.sub("", text))  # sentence, gap, sentence, gap, ..., sentence
    kept = []
    for sentence, gap in zip(pieces[::2], pieces[1::2] + [""]):
        if "?" in sentence or not DIRECTIVE.match(sentence.strip(" *#_-")):
            kept += [sentence, gap]
        elif kept:  # of the two gaps around it the one with more line ends stays
            kept[-1] = max(kept[-1], gap, key=lambda white: white.count("\n"))
    return "".join(kept).strip()


def clean_text(text: str, images: int) -> str:
    """Question text without image markers (decision 1; `images`: how many the row has) and format directives."""
    lead = re.match(rf"(?:\s*(?:{MARKER.pattern}))*", text).end()
    seen = len(MARKER.findall(text[:lead]))

    def name(marker) -> str:
        nonlocal seen
        seen += 1
        number = re.search(r"\d+", marker.group())
        return f"[image {number.group() if number else seen}]" if images > 1 else ""

    text = MARKER.sub(name, text[lead:])
    return strip_directives(re.sub(r"[ \t]{2,}", " ", re.sub(r"[ \t]+(?=[\n.,;:?!]|$)", "", text)))


def clean_answer(value, max_chars: int = MAX_ANSWER_CHARS) -> tuple[str, str]:
    """(gold answer, "") or ("", reason to skip the row). Numbers become text; <answer> tags around the whole go.

    A list of strings, real or spelled out ("['cat', 'kitten']"), counts only if it holds one answer (decision 4).
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
    text = "" if value is None or value != value else str(value).strip()  # nan is not equal to itself
    if wrapped := re.fullmatch(r"<answer>(.*?)</answer>", text, re.DOTALL):
        text = wrapped.group(1).strip()
    if not text:
        return "", "answer_missing"
    return (text, "") if len(text) <= max_chars else ("", "answer_too_long")


def is_free_form(answer: str) -> bool:
    """True if the judge compares this gold (App. D.1: derivations, OCR, open VQA): it has more than FREE_FORM_WORDS
    words of natural language outside mathematics, or several lines. Letters, numbers, formulas, names go by rule."""
    words = re.findall(r"[^\W\d_]{2,}", NOT_PROSE.sub(" ", answer))
    return len(words) > FREE_FORM_WORDS or "\n" in answer.strip()


def clean_row(question, answer, cells: list, folder="", max_answer_chars=MAX_ANSWER_CHARS, check="header"):
    """The checks every set must pass: ((text, answer, sizes, digest), "") or (None, reason to skip the row).

    cells: undecoded images. sizes: [(width, height)]. digest: content hash of text and image bytes (decision 5).
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
    """A column map from a dict (recipe file) or from ["question=problem", "images=left,right"] (command line)."""
    if not isinstance(columns, dict):
        columns = dict(item.partition("=")[::2] for item in columns or ())
    if unknown := sorted(set(columns) - set(known)):
        raise DataError(f"column map: {unknown} are not our names; ours are {list(known)} (question=<their name>)")
    return dict(columns)


def map_columns(source: str, features, columns) -> dict[str, list[str]]:
    """{"question": [name], "answer": [name], "images": [names], "uid": [name] or []}; DataError if names do not fit."""
    columns, exist, found = parse_columns(columns), list(features), {}
    for ours, usual in COLUMNS.items():
        names = columns.get(ours)
        if names is None:
            found[ours] = [name for name in usual if name in exist][:1]
            if not found[ours] and ours in ("question", "answer"):
                raise DataError(f"{source}: no column for the {ours}: expected one of {list(usual)}, the set has {exist}."
                                f' Map it: --columns {ours}=<name> or columns={{"{ours}": "<name>"}}')
        else:
            found[ours] = [n for n in (names.split(",") if isinstance(names, str) else names) if n]
            if missing := [name for name in found[ours] if name.split(".")[0] not in exist]:
                raise DataError(f"{source}: {ours} is mapped to {missing}, the set has {exist}. "
                                f"Correct --columns {ours}=<name>")
    pictures = [name for name, feature in features.items() if "Image(" in repr(feature)]
    if pictures and not found["images"] and "images" not in columns:
        raise DataError(f"{source}: image column {pictures} is not mapped (expected {list(COLUMNS['images'])}). "
                        f"Map it: --columns images={pictures[0]}, or --columns images= to leave the images out")
    return found


def undecoded(rows: datasets.Dataset) -> datasets.Dataset:
    """The same rows with image cells as {"bytes", "path"}: reading a row decodes nothing."""

    def switch(feature):
        if isinstance(feature, datasets.Image):
            return datasets.Image(decode=False)
        return datasets.List(switch(feature.feature)) if isinstance(feature, datasets.List) else feature

    for name, feature in rows.features.items():
        if switch(feature) != feature:
            rows = rows.cast_column(name, switch(feature))
    return rows


def open_source(source, split: str, config: str | None) -> tuple[datasets.Dataset, str]:
    """(rows, folder where relative image names start) of a hub id, file or folder; a Dataset is taken as it is."""
    if isinstance(source, datasets.Dataset):
        return source, ""
    kinds = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv"}
    kind = kinds.get(os.path.splitext(source)[1].lower())
    try:
        if os.path.isfile(source) and kind:
            rows = datasets.load_dataset(kind, data_files=source, split=split)
            return rows, os.path.dirname(os.path.abspath(source))
        rows = datasets.load_dataset(source, config, split=split)
        return rows, os.path.abspath(source) if os.path.isdir(source) else ""
    except (ValueError, FileNotFoundError) as error:  # the library's message lists what exists
        raise DataError(f"{source}: cannot be opened with split={split!r}, config={config!r}: {error}. Set --split or "
                        f"--config to what exists; a source is a hub id, a folder or a {'/'.join(kinds)} file") from error


def dig(row: dict, path: str):
    """row["a"]["b"] for "a.b"; None where a level is missing."""
    for part in path.split("."):
        row = row.get(part) if isinstance(row, dict) else None
    return row


def load_questions(source, split: str = "train", columns=None, limit: int | None = None, config: str | None = None,
                   check: str = "header", max_answer_chars: int = MAX_ANSWER_CHARS) -> tuple[list[Question], dict]:
    """Questions of any `datasets` source, images left on disk, and a report.

    source: hub id, folder (parquet, image folder, ...), .parquet/.jsonl/.json/.csv file, or a datasets.Dataset.
    columns: our names (COLUMNS) to the set's, dict or ["question=problem"]. "a.b" reads a nested field (not for
        images), "images=left,right" takes several columns in this order, "images=" makes a text set.
    limit: stop after so many questions, in the order of the set (the report then has rows_read < rows).
    check: "header" reads image headers; "full" decodes every image once and so finds cut files (slower).
    Report: {"source", "split", "columns", "rows", "rows_read", "skipped": {reason: rows}, "questions",
    "with_images", "free_form"}. Reasons: those of clean_answer and clean_row; duplicate_uid (the first row stays).
    Raises DataError if names do not fit or no question is left.
    """
    if check not in ("header", "full"):
        raise DataError(f"check={check!r}: expected 'header' or 'full'")
    rows, folder = open_source(source, split, config)
    source, exist = source if isinstance(source, str) else "data set in memory", list(rows.features)
    names = map_columns(source, rows.features, columns)
    rows = undecoded(rows.select_columns(sorted({name.split(".")[0] for group in names.values() for name in group})))
    questions, seen, skipped, read = [], set(), Counter(), 0
    for index, row in enumerate(rows):
        if limit is not None and len(questions) >= limit:
            break
        read += 1
        cells = [(name, i, cell) for name in names["images"] for i, cell in enumerate(as_list(row[name]))]
        checked, reason = clean_row(dig(row, names["question"][0]), dig(row, names["answer"][0]),
                                    [cell for _, _, cell in cells], folder, max_answer_chars, check)
        if not reason:
            text, answer, _, digest = checked
            uid = dig(row, names["uid"][0]) if names["uid"] else None
            uid = digest if uid is None else str(uid)
            reason = "duplicate_uid" if uid in seen else ""
        if reason:
            skipped[reason] += 1
            continue
        seen.add(uid)
        images = tuple(LazyImage(rows, index, name, i, folder) for name, i, _ in cells)
        questions.append(Question(uid, text, images, answer, is_free_form(answer)))
    report = {"source": source, "split": split, "columns": names, "rows": len(rows), "rows_read": read,
              "skipped": dict(skipped.most_common()), "questions": len(questions),
              "with_images": sum(bool(q.images) for q in questions), "free_form": sum(q.free_form for q in questions)}
    if not questions:
        raise DataError(f"{source}: no question left of {read} rows; skipped: {report['skipped']}; columns used: {names};"
                        f" the set has {exist}. If a column is the wrong one: --columns question=<name>")
    return questions, report


def fingerprint(questions) -> str:
    """Hash (16 hex) of uids, texts and answers in their order: a checkpoint refuses another set, or a reordered one."""
    digest = hashlib.sha256()
    for question in questions:
        digest.update(repr((question.uid, question.text, question.answer)).encode())
    return digest.hexdigest()[:16]


# ---- ZPPO-77K --------------------------------------------------------------------------------------------

VERO, FINE = "vero", "mmfinereason"
RECIPE = {  # source -> tier -> canonical sub-datasets
    VERO: {1: "ai2d geo170k geomverse geoqa_plus mmk12 cosyn_math cosyn_chart cosyn_diagram cosyn_table wemath tqa "
              "visualwebinstruct chartqa arxivqa".split(),
           2: "pathvqa vqarad raven evochart infographic_vqa aokvqa gqa iconqa vqav2 visual7w tallyqa pixelreasoner "
              "multihop pixmo visual_probe".split()},
    FINE: {1: "mmr1 euclid geo170k geometry3k mm_openr1 wemath visualwebinstruct bmmr tqa ai2d scienceqa "
              "virl39k".split(),
           2: "raven visualsphinx puzzleqa llava_cot zebra_cot".split()},
}
NAMES = {source: set().union(*tiers.values()) for source, tiers in RECIPE.items()}
ALIASES = {  # how the sources write a name of RECIPE, after canonical()'s tidying; --aliases adds to it
    "ai2d_merged": "ai2d", "wemath20_pro": "wemath", "wemath20_standard": "wemath", "wemath2_pro": "wemath",
    "wemath2_standard": "wemath", "wemath2_sft": "wemath", "cosyn_400k_math": "cosyn_math",
    "cosyn_400k_chart": "cosyn_chart", "cosyn_400k_diagram": "cosyn_diagram", "cosyn_400k_table": "cosyn_table",
    "chartqa_difficulty": "chartqa", "arxivqa_formatted": "arxivqa", "multihop_qa": "multihop",
    "euclid30k": "euclid", "mmopenr1_8k": "mm_openr1", "zebra_cot_physics": "zebra_cot",
}
SOURCE_COLUMNS = {
    VERO: {"question": "extra_info.question", "answer": "reward_model.ground_truth", "images": "image", "row_id": "id",
           "reward_type": "extra_info.reward_type"},
    FINE: {"question": "question", "answer": "answer", "images": "image", "row_id": "id", "source": "source",
           "pass_rate": "pass_rate"},
}
NO_SHORT_ANSWER = ("grounding", "clicking", "web_action", "instruction_following")  # Vero reward types (decision 7)
ROWS_PER_FILE = 2000
FEATURES = datasets.Features({
    **{name: datasets.Value("string") for name in ("uid", "question", "answer")}, "images": datasets.List(datasets.Image()),
    **{name: datasets.Value("string") for name in ("source", "subset", "origin", "row_id", "rank")}})


def arg(default, text: str):
    return field(default_factory=lambda: default, metadata={"help": text})


@dataclass
class BuildArgs:
    """Build ZPPO-77K (App. B.1) from its two public sources: parquet files that train.py takes as they are."""

    out: str = field(metadata={"help": "folder of the set; the same command again resumes there"})
    student: str = arg("Qwen/Qwen3.5-0.8B", "model id or folder whose processor measures the prompts")
    vero: str = arg("zlab-princeton/Vero-600k", "hub id or folder of the first source; '' leaves it out")
    mmfinereason: str = arg("OpenDataArena/MMFineReason-SFT-586K-Qwen3-VL-235B-Thinking",
                            "hub id or folder of the second source; '' leaves it out")
    vero_split: str = arg("train", "split of the first source")
    mmfinereason_config: str = arg("default", "config of the second source")
    mmfinereason_split: str = arg("train", "split of the second source")
    vero_columns: list[str] = arg([], "ours=theirs where a column has another name, e.g. answer=extra_info.answer")
    mmfinereason_columns: list[str] = arg([], "the same, e.g. pass_rate=qwen3vl_4b_pass_rate")
    aliases: list[str] = arg([], "theirs=ours where a sub-dataset has another name, e.g. chartqa_v2=chartqa")
    allow_missing: list[str] = arg([], "sub-datasets of the recipe that the sources may lack")
    tier1_cap: int = arg(2800, "most questions of a tier 1 sub-dataset")
    tier2_cap: int = arg(1400, "most questions of a tier 2 sub-dataset")
    max_pass_rate: float = arg(0.5, "MMFineReason rows above it are too easy")
    max_answer_chars: int = arg(MAX_ANSWER_CHARS, "longest gold answer, characters")
    min_side: int = arg(100, "shortest allowed image side, pixels")
    max_prompt_tokens: int = arg(4096, "longest prompt: template, image tokens, question and closer")
    min_pixels: int = arg(MIN_PIXELS, "lower pixel bound of the processor")
    max_pixels: int = arg(MAX_PIXELS, "upper pixel bound of the processor")
    seed: int = arg(0, "of the choice under the caps")
    workers: int = arg(max(1, (os.cpu_count() or 2) - 1), "processes; the set does not depend on their number")


@dataclass(frozen=True)
class Shard:
    """One parquet file of a source, the unit of work and of resuming."""

    source: str
    config: str
    url: str
    rows: int

    @property
    def key(self) -> str:
        return f"{self.source}-{self.config}-{hashlib.sha256(self.url.encode()).hexdigest()[:12]}"


def subset_of(source: str, label: str, args: BuildArgs) -> str:
    """Canonical name: Vero config "chart_ocr-CoSyn_400k_math" -> cosyn_math, "FineVision-geo170k(qa)" -> geo170k."""
    name = label.split("-", 1)[-1] if source == VERO else re.sub(r"\(.*?\)|^FineVision-", "", label)
    name = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
    return (ALIASES | dict(alias.split("=") for alias in args.aliases)).get(name, name)


def cap_of(subset: str, args: BuildArgs) -> int:
    first = any(subset in tiers[1] for tiers in RECIPE.values())  # no name has two tiers
    return args.tier1_cap if first else args.tier2_cap


def rank_of(uid: str, seed: int) -> str:
    return hashlib.sha256(f"{seed} {uid}".encode()).hexdigest()[:16]


def columns_of(source: str, args: BuildArgs) -> dict[str, str]:
    return SOURCE_COLUMNS[source] | parse_columns(getattr(args, f"{source}_columns"), SOURCE_COLUMNS[source])


def find_files(path: str, source: str, config: str, split: str) -> list[str]:
    """URLs or paths of the parquet files of one config and split; DataError lists what exists."""
    try:
        files = datasets.load_dataset_builder(path, config).config.data_files or {}
    except (ValueError, FileNotFoundError) as error:
        raise DataError(f"{path}: config {config!r} was expected: {error}. Set --{source}_config") from error
    if split not in files:
        raise DataError(f"{path} ({config}): split {split!r} was expected, the source has {sorted(files)}. "
                        f"Set --{source}_split")
    return sorted(files[split])


def open_shard(url: str, source: str, columns: dict[str, str]) -> pq.ParquetFile:
    """The file, opened for streaming, once all its columns are known to exist. DataError otherwise."""
    file = pq.ParquetFile(fsspec.open(url, "rb").open())
    leaves = [file.schema.column(i).path.split(".") for i in range(len(file.schema))]
    exist = {".".join(leaf[:depth]) for leaf in leaves for depth in (1, 2)}
    if missing := {ours: theirs for ours, theirs in columns.items() if theirs not in exist}:
        raise DataError(f"{url}: columns {missing} were expected, the file has {sorted(exist)}. "
                        f"Map them: --{source}_columns {next(iter(missing))}=<name>")
    return file


def plan(args: BuildArgs) -> tuple[list[Shard], set[str], list[str]]:
    """(shards, sub-datasets that Vero holds, labels of both sources outside the recipe), from metadata alone.

    DataError if a sub-dataset of the recipe matches nothing: a name differs from those known here.
    """
    files, labels = [], {VERO: set(), FINE: set()}
    if args.vero:
        try:
            labels[VERO] = set(datasets.get_dataset_config_names(args.vero))
        except (ValueError, FileNotFoundError) as error:
            raise DataError(f"--vero {args.vero}: cannot be opened: {error}") from error
        for config in sorted(labels[VERO]):
            if subset_of(VERO, config, args) in NAMES[VERO]:
                files += [(VERO, config, url) for url in find_files(args.vero, VERO, config, args.vero_split)]
    if args.mmfinereason:
        config = args.mmfinereason_config
        files += [(FINE, config, url) for url in find_files(args.mmfinereason, FINE, config, args.mmfinereason_split)]
    shards = []
    for source, config, url in tqdm(files, desc="file headers", unit="file"):
        columns = columns_of(source, args)
        with open_shard(url, source, columns) as file:
            shards.append(Shard(source, config, url, file.metadata.num_rows))
            if source == FINE:
                labels[FINE] |= {str(dig(row, columns["source"])) for row in file.read([columns["source"]]).to_pylist()}
    names = {source: {subset_of(source, label, args) for label in labels[source]} for source in labels}
    held, outside = names[VERO] & NAMES[VERO], []
    for source, path in ((VERO, args.vero), (FINE, args.mmfinereason)):
        others = sorted(label for label in labels[source] if subset_of(source, label, args) not in NAMES[source])
        outside += [f"{source}/{label}" for label in others]
        lost = sorted(NAMES[source] - names[source] - held - set(args.allow_missing))
        if path and lost:
            raise DataError(f"{path}: nothing there matches {lost} of the recipe; its names outside the recipe are {others}. "
                            f"If one of these is meant: --aliases <their name, lower case with _>={lost[0]}; to build "
                            f"without: --allow_missing {' '.join(lost)}")
    return shards, held, outside


def judge_row(row: dict, source: str, subset: str, columns: dict, args: BuildArgs, held: set, processor):
    """One source row through all filters, in the order of the report: (row of the set, "") or (None, reason)."""
    if subset not in NAMES[source]:
        return None, "not_in_recipe"
    if source == FINE:
        if subset in held:
            return None, "held_by_vero"
        if (rate := dig(row, columns["pass_rate"])) is None:
            return None, "pass_rate_missing"
        if float(rate) > args.max_pass_rate:
            return None, "pass_rate_too_high"
    elif dig(row, columns["reward_type"]) in NO_SHORT_ANSWER:
        return None, "no_short_answer"
    cells = as_list(dig(row, columns["images"])) or [None]  # a question of this set has an image
    checked, reason = clean_row(dig(row, columns["question"]), dig(row, columns["answer"]), cells,
                                max_answer_chars=args.max_answer_chars)
    if reason:
        return None, reason
    text, answer, sizes, uid = checked
    if min(min(size) for size in sizes) < args.min_side:
        return None, "image_too_small"
    prompt, boxes = prompts.plain_prompt(text), [SimpleNamespace(size=size) for size in sizes]
    if prompt_tokens(processor, prompt, boxes) > args.max_prompt_tokens:
        return None, "prompt_too_long"
    images = [image_bytes(cell) for cell in cells]
    try:
        for encoded in images:
            image_size(encoded, full=True)  # the costly check comes last
    except OSError:
        return None, "image_unreadable"
    return {"uid": uid, "question": text, "answer": answer, "images": [{"bytes": i, "path": None} for i in images],
            "source": source, "subset": subset, "row_id": str(dig(row, columns["row_id"])),
            "rank": rank_of(uid, args.seed)}, ""


def choice_order(row: dict) -> tuple:
    return row["rank"], row["origin"], row["answer"], row["row_id"]


def lowest_ranks(rows: list[dict], cap: int) -> list[dict]:
    """The rows that a cap can still choose: the `cap` lowest ranks, one row per (uid, origin)."""
    chosen, ranks = {}, set()
    for row in sorted(rows, key=choice_order):
        ranks.add(row["rank"])
        if len(ranks) > cap:
            break
        chosen.setdefault((row["uid"], row["origin"]), row)
    return list(chosen.values())


def scan_shard(shard: Shard, args: BuildArgs, held: set, folder: str, processor) -> int:
    """Filter one file into `folder`; returns its number of rows. <key>.parquet: the rows a cap can still choose, in
    choice order. <key>.json, written last: {"counts": {origin: {"rows", reason: n}}, "passed": {origin: [uid]}}."""
    columns, counts, passed, kept = columns_of(shard.source, args), {}, {}, {}
    with open_shard(shard.url, shard.source, columns) as file:
        for batch in file.iter_batches(batch_size=32, columns=sorted(set(columns.values()))):
            for row in batch.to_pylist():
                label = shard.config if shard.source == VERO else str(dig(row, columns["source"]))
                subset, origin = subset_of(shard.source, label, args), f"{shard.source}/{label}"
                made, reason = judge_row(row, shard.source, subset, columns, args, held, processor)
                counts.setdefault(origin, Counter()).update(["rows"] + [reason] * bool(reason))
                if made:
                    passed.setdefault(origin, []).append(made["uid"])
                    kept.setdefault(subset, []).append(made | {"origin": origin})
    rows = [row for subset, group in kept.items() for row in lowest_ranks(group, cap_of(subset, args))]
    target = os.path.join(folder, shard.key)
    table = pa.Table.from_pylist(sorted(rows, key=choice_order), schema=FEATURES.arrow_schema)
    pq.write_table(table, f"{target}.parquet", row_group_size=32)
    with open(f"{target}.part", "w") as file:
        json.dump({"counts": counts, "passed": passed}, file)
    os.replace(f"{target}.part", f"{target}.json")  # only a finished shard has this name
    return shard.rows


def scan_all(shards: list[Shard], scan, workers: int) -> None:
    """Run `scan` on the shards, in this process or in `workers` new ones (spawned: no lock or thread is inherited)."""
    with tqdm(total=sum(shard.rows for shard in shards), desc="filter", unit="row") as bar:
        if workers <= 1:
            for shard in shards:
                bar.update(scan(shard))
            return
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
            running = {pool.submit(scan, shard): shard for shard in shards}
            try:
                for done in as_completed(running):
                    bar.update(done.result())
            except BaseException:
                pool.shutdown(cancel_futures=True)  # finished shards stay; the same command resumes
                raise


def choose(stats: list[dict], args: BuildArgs) -> tuple[dict[str, str], dict[str, Counter]]:
    """({uid: origin} of the set, {origin: counts}): duplicates, caps and the numbers of the report, from uids alone."""
    counts, passed = {}, {}
    for stat in stats:
        for origin, count in stat["counts"].items():
            counts.setdefault(origin, Counter()).update(count)
        for origin, uids in stat["passed"].items():
            passed.setdefault(origin, Counter()).update(uids)
    owners = {}  # subset -> {uid: origin}
    for origin in sorted(passed):
        owner = owners.setdefault(subset_of(*origin.split("/", 1), args), {})
        for uid, copies in passed[origin].items():
            counts[origin]["duplicate"] += copies - (uid not in owner)
            owner.setdefault(uid, origin)
    chosen = {}
    for subset in sorted(owners, key=lambda name: (next(iter(owners[name].values())).startswith(FINE), name)):
        ranked = sorted(owners[subset], key=lambda uid: rank_of(uid, args.seed))
        for place, uid in enumerate(ranked):
            origin = owners[subset][uid]
            fate = ("over_cap" if place >= cap_of(subset, args) else
                    "duplicate_of_another_subset" if uid in chosen else "kept")
            counts[origin][fate] += 1
            if fate == "kept":
                chosen[uid] = origin
    for origin, count in counts.items():  # every row has exactly one fate
        assert 2 * count["rows"] == count.total(), (origin, count)
    return chosen, {origin: +counts[origin] for origin in sorted(counts)}


def write_set(files: list[str], chosen: dict[str, str], folder: str) -> None:
    """Stream the chosen rows from the sorted shard files into train-*.parquet, in rank order: a seeded shuffle."""
    def stream(path):
        for batch in pq.ParquetFile(path).iter_batches(batch_size=8):
            yield from batch.to_pylist()

    total, batch, written = -(-len(chosen) // ROWS_PER_FILE), [], set()

    def flush():
        name = f"train-{(len(written) - 1) // ROWS_PER_FILE:05d}-of-{total:05d}.parquet"
        table = pa.Table.from_pylist(batch, schema=FEATURES.arrow_schema)
        pq.write_table(table, os.path.join(folder, name), row_group_size=100)
        batch.clear()

    for row in tqdm(heapq.merge(*map(stream, files), key=choice_order), desc="write", unit="row"):
        if chosen.get(row["uid"]) == row["origin"] and row["uid"] not in written:
            written.add(row["uid"])
            batch.append(row)
            if len(batch) == ROWS_PER_FILE:
                flush()
    if batch:
        flush()


def card(report: dict) -> str:
    """README.md of the set."""
    reasons = list(dict.fromkeys(reason for count in report["origins"].values() for reason in count if reason != "rows"))
    reasons = sorted(reasons, key=lambda reason: reason == "kept")
    lines = ["---", "configs:", "- config_name: default", "  data_files:", "  - split: train", "    path: data/train-*",
             "---", "# ZPPO-77K, rebuilt", "",
             f"{report['questions']} questions (image, text, short answer) chosen from two public sets by the recipe of "
             "App. B.1 of the ZPPO paper (arXiv 2606.18216). The licences are those of the sources.", "",
             "Columns: uid, question (no image marker, no format directive), answer, images (bytes as in the source), "
             "source, subset (canonical name), origin, row_id (id in the source), rank (hash that chose the row).", "",
             "## Settings", "", *(f"- {name}: `{value}`" for name, value in report["settings"].items()), "",
             f"In the sources, but not in the recipe: {', '.join(report['outside_the_recipe']) or 'nothing'}.", "",
             "## Questions per sub-dataset", "", "| sub-dataset | cap | questions |", "|---|---|---|",
             *(f"| {name} | {cap} | {kept} |" for name, (cap, kept) in report["subsets"].items()), "",
             "## Every row of the sources", "", "| " + " | ".join(["origin", "rows", *reasons]) + " |",
             "|---" * (len(reasons) + 2) + "|"]
    for origin, count in (report["origins"] | {"all": report["totals"]}).items():
        lines.append("| " + " | ".join([origin, *(str(count.get(key, 0)) for key in ["rows", *reasons])]) + " |")
    return "\n".join(lines) + "\n"


def build(args: BuildArgs, processor=None) -> dict:
    """Make the set in args.out: data/train-*.parquet, README.md, report.json. Returns the report:

    {"settings", "questions", "subsets": {subset: [cap, questions]}, "totals": {"rows", reason: n, "kept"},
    "origins": {"<source>/<label>": the same}, "outside_the_recipe"}. processor: default that of args.student.
    Shards finished by an interrupted run with the same settings are not read again. They hold every row that a cap
    could still choose, so args.out needs a multiple of the final size until the end.
    """
    final = os.path.join(args.out, "data")
    if os.path.exists(final):
        raise DataError(f"{final} exists: the set is finished. Delete it or choose another --out")
    if processor is None:
        from transformers import AutoProcessor

        processor = AutoProcessor.from_pretrained(args.student)
    bound_pixels(processor, args.min_pixels, args.max_pixels)
    shards, held, outside = plan(args)
    settings = {name: value for name, value in asdict(args).items() if name not in ("out", "workers")}
    with open(__file__, "rb") as code:  # other settings or other code: other shards
        key = hashlib.sha256(json.dumps([settings, prompts.CLOSER]).encode() + code.read()).hexdigest()[:12]
    work = os.path.join(args.out, f"work-{key}")
    os.makedirs(work, exist_ok=True)
    todo = [shard for shard in shards if not os.path.exists(os.path.join(work, f"{shard.key}.json"))]
    print(f"{len(shards)} files, {sum(s.rows for s in shards)} rows; {len(shards) - len(todo)} files done before")
    scan = functools.partial(scan_shard, args=args, held=held, folder=work, processor=processor)
    scan_all(todo, scan, args.workers)
    stats = []
    for shard in shards:
        with open(os.path.join(work, f"{shard.key}.json")) as file:
            stats.append(json.load(file))
    chosen, counts = choose(stats, args)
    part = os.path.join(work, "set")
    shutil.rmtree(part, ignore_errors=True)
    os.makedirs(part)
    write_set([os.path.join(work, f"{shard.key}.parquet") for shard in shards], chosen, part)
    subsets = Counter(subset_of(*origin.split("/", 1), args) for origin in chosen.values())
    report = {"settings": settings, "questions": len(chosen),
              "subsets": {name: [cap_of(name, args), subsets[name]] for name in sorted(subsets)},
              "totals": dict(sum(counts.values(), Counter())), "origins": {o: dict(c) for o, c in counts.items()},
              "outside_the_recipe": outside}
    with open(os.path.join(args.out, "report.json"), "w") as file:
        json.dump(report, file, indent=1)
    with open(os.path.join(args.out, "README.md"), "w") as file:
        file.write(card(report))
    os.replace(part, final)  # the set appears whole
    shutil.rmtree(work)
    return report


def main(arguments: list[str]) -> None:
    from transformers import HfArgumentParser

    if arguments[:1] != ["build"]:
        sys.exit("usage: python data.py build --out DIR [...]    (python data.py build --help explains)")
    (args,) = HfArgumentParser(BuildArgs, prog="data.py build", description=BuildArgs.__doc__) \
        .parse_args_into_dataclasses(arguments[1:])
    report = build(args)
    print(json.dumps({"questions": report["questions"], "totals": report["totals"]}, indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
