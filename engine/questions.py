"""Questions: any `datasets` source in, `Question`s out; images stay on disk until they are asked for.

    questions, report = load_questions("my.jsonl", columns=["question=problem"])

Decisions where the paper is silent (texts and golds: cleaning.py; pixels: images.py):
1. A row that cannot be used is skipped and counted under one reason, never repaired by a guess.
2. uid = the set's own `uid` column, or else a hash of cleaned text and image bytes. An exact copy of a question is thus
   a duplicate, whatever its answer, and a question whose image file was repaired is a new question.
3. Of a chat the last user turn is the question. A system turn is kept, without its format directives.
4. JSON and CSV files are read here, because `datasets` makes numbers and dates of golds such as "007".
"""

import csv
import hashlib
import io
import json
import re
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

import datasets
from accelerate import PartialState
from accelerate.utils import gather_object
from PIL import Image
from tqdm import tqdm

from engine.cleaning import MARKER, clean_answer, clean_text, is_free_form, worked_answer
from engine.images import fit_pixels, image_bytes, to_rgb
from engine.screen import print_main

MAX_ASPECT = 200  # Qwen's image processors refuse a longer strip
COLUMNS = {  # without a map: the first name that exists
    "question": ("question", "problem", "prompt"), "images": ("images", "image"), "uid": ("uid",),
    "answer": ("answer", "solution", "reward_model.ground_truth"),
}
DECODER = json.JSONDecoder(parse_float=str, parse_int=str)  # decision 4


class DataError(ValueError):
    """A source is not as expected; the message names what was expected, what exists, and the fix."""


@dataclass(frozen=True)
class Question:
    uid: str  # unique in the set; does not depend on order or workers
    text: str  # no image marker, no format directive; the images come before it
    images: tuple = field(compare=False, repr=False)  # LazyImage or PIL images: read them with open_images
    answer: str  # short gold answer
    free_form: bool = False  # graded by the judge, see is_free_form
    system: str = ""  # the row's own system turn
    turns: tuple[tuple[str, str], ...] = ()  # of a conversation, before the question: (role, text)


@dataclass(frozen=True)
class LazyImage:
    """One image of one row: a position in rows on disk, no pixels."""

    rows: datasets.Dataset | list[dict]  # `undecoded`, or rows of a text file, which name files
    row: int
    column: str
    position: int
    folder: str  # where relative file names start
    size: tuple[int, int]  # (width, height), read from the header at load

    def read(self) -> bytes:
        return image_bytes(as_list(names_in(self.rows[self.row])[self.column])[self.position], self.folder)


def open_images(question: Question, min_pixels: int = 0, max_pixels: int | None = None) -> list[Image.Image]:
    """The question's images, decoded now: RGB, upright, scaled only if bounds are given. Raises DataError."""
    images = []
    for image in question.images:
        try:
            image = Image.open(io.BytesIO(image.read())) if isinstance(image, LazyImage) else image
            image.load()
            images.append(fit_pixels(to_rgb(image), min_pixels or 0, max_pixels or image.width * image.height))
        except Exception as error:  # Pillow: OSError, SyntaxError, ValueError, struct.error, ...
            what = f"image cannot be decoded ({type(error).__name__}: {error}); repair the file"
            raise DataError(f"question {question.uid}: {what}") from error
    return images


def intact(new: list[Question], replayed: list[Question], broken: set[str]) -> tuple[list, list, int]:
    """Both lists without the questions whose images cannot be decoded, and the number of these; on all processes alike.
    broken: the uids that were named on the screen before. The others are named now and added."""
    state, found = PartialState(), {}
    for question in [*new, *replayed][state.process_index :: state.num_processes]:
        try:
            open_images(question)
        except DataError as error:
            found[question.uid] = str(error)
    found = dict(gather_object(list(found.items())))
    for uid in sorted(found.keys() - broken):
        print_main(found[uid])
    broken.update(found)
    return [q for q in new if q.uid not in found], [q for q in replayed if q.uid not in found], len(found)


def as_list(value) -> list:
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]


def names_in(row: dict, prefix: str = "") -> dict:
    """{"a": value, "a.b": value, ...} of a nested row or of nested features."""
    names = {}
    for key, value in row.items():
        names[prefix + key] = value
        if isinstance(value, dict):
            names |= names_in(value, f"{prefix}{key}.")
    return names


def value_of(row: dict, names: list[str]):
    """The first of these columns that holds something, or None."""
    return next((row[name] for name in names if row.get(name) not in (None, "")), None)


def last_turn(question) -> tuple[str | None, str]:
    """(last user turn, system turn) of a chat: [{"role", "content"}], content a string or a list of parts."""
    if isinstance(question, str):
        return question, ""
    if isinstance(question, dict):  # {"role": [...], "content": [...]}: so older sets hold a chat
        question = [dict(zip(question, turn)) for turn in zip(*map(as_list, question.values()))]
    said = {"user": None, "system": ""}
    for turn in as_list(question):
        turn = turn if isinstance(turn, dict) else {}
        parts = [part if isinstance(part, str) else part.get("text") for part in as_list(turn.get("content"))]
        said[turn.get("role")] = "\n".join("<image>" if part is None else part for part in parts)
    return said["user"], said["system"]


def clean_row(question, answer, cells: list, folder: str = "") -> tuple[Question | None, str]:
    """The checks that every set must pass: (the question, "") or (None, reason to skip).
    Its images are the cells, open but not decoded; its uid is the hash of texts and image bytes (decision 2)."""
    answer, reason = clean_answer(answer)
    question, system = last_turn(question)
    text, system = clean_text(question or "", len(cells)), clean_text(system, 0)
    if reason or not text:
        return None, reason or "question_empty"
    markers = MARKER.findall(question)  # of each marker its number, or ""
    wanted = max([markers.count(""), *(int(number) for number in markers if number)])
    if None in cells or wanted > len(cells):
        return None, "image_missing"
    if re.search("[\ud800-\udfff]", text + system + answer):
        return None, "lone_surrogate"  # half a character: no tokenizer and no file takes it
    try:
        encoded = [image_bytes(cell, folder) for cell in cells]
        images = tuple(Image.open(io.BytesIO(image)) for image in encoded)
    except Exception:  # see open_images
        return None, "image_unreadable"
    if any(max(image.size) > MAX_ASPECT * min(image.size) for image in images):
        return None, "image_too_narrow"
    said = (f"{system}\0{text}" if system else text).encode()
    content = b"\0".join([said, *(hashlib.sha256(image).digest() for image in encoded)])
    uid = hashlib.sha256(content).hexdigest()[:16]
    return Question(uid, text, images, answer, is_free_form(answer), system), ""


def read_text_file(path: str) -> list[dict]:
    """Rows of a .jsonl, .json or .csv file. Raises DataError: what is wrong, in which line, and the fix."""
    raw, rows, place = Path(path).read_bytes(), [], 0
    try:
        text = raw.decode("utf-8-sig")
        if path.lower().endswith(".csv"):
            rows = list(csv.DictReader(io.StringIO(text, newline=""), restkey="more"))
        else:  # one object after another, or one array
            while start := re.compile(r"\S").search(text, place):
                value, place = DECODER.raw_decode(text, start.start())
                rows += as_list(value)
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}, line {line}: not UTF-8 (UTF-16 or Latin-1?). Save the file as UTF-8") from error
    except json.JSONDecodeError as error:
        line = text[: error.pos].rstrip().count("\n") + 1
        what = f"{path}, line {line}: not JSON ({error.msg})"
        raise DataError(f"{what}. Cut short? Expected is one object a line") from error
    if not rows or not all(isinstance(row, dict) for row in rows):
        what = "a row is no object" if rows else "the file is empty"
        raise DataError(f'{path}: {what}. Expected are rows like {{"question": "1 + 1?", "answer": "2"}}')
    return rows


def open_source(source, split: str, config: str | None) -> tuple[datasets.Dataset | list[dict], str]:
    """(rows, folder where relative image names start) of a hub id, file or folder; a Dataset stays one."""
    if isinstance(source, datasets.Dataset):
        return source, ""
    path = Path(source).absolute()
    kind, folder = path.suffix.lower(), str(path if path.is_dir() else path.parent)
    try:
        if kind in (".jsonl", ".json", ".csv"):
            rows = read_text_file(source)
            (part,) = datasets.ReadInstruction.from_spec(split).to_absolute({"train": len(rows)})
            return rows[part.from_ : part.to], folder
        given = {"path": "parquet", "data_files": source} if kind == ".parquet" else {"path": source, "name": config}
        return datasets.load_dataset(**given, split=split), folder
    except DataError:
        raise
    except Exception as error:  # the library raises many kinds; their messages list what exists
        what = f"cannot be opened with split={split!r}, config={config!r}: {error.__cause__ or repr(error)}"
        fix = "Set --split or --config to what exists. A source: hub id, folder, .parquet, .jsonl, .json or .csv file"
        raise DataError(f"{source}: {what}. {fix}") from error


def map_columns(source: str, features: dict, columns) -> dict[str, list[str]]:
    """{"question": [names], "answer": [names], "images": [names], "uid": [names]} of the set. Raises DataError."""
    columns = dict(item.partition("=")[::2] for item in columns or ())
    if unknown := sorted(set(columns) - set(COLUMNS)):
        raise DataError(f"column map: {unknown} are not our names; ours are {list(COLUMNS)} (ours=theirs)")
    found = {ours: [name for name in usual if name in features][:1] for ours, usual in COLUMNS.items()}
    found |= {ours: [name for name in theirs.split(",") if name] for ours, theirs in columns.items()}
    pictures = [name for name, feature in features.items() if re.match(r"(List\()?Image\(", repr(feature))]
    for ours, names in found.items():
        if missing := [name for name in names if name not in features]:
            problem = f"{ours} is mapped to {missing}"
        elif not names and ours in ("question", "answer"):
            problem = f"no column for the {ours}: expected one of {list(COLUMNS[ours])}"
        elif ours == "images" and not names and pictures and ours not in columns:
            problem = f"image column {pictures} is not mapped (leave it out: --columns images=)"
        else:
            continue
        raise DataError(f"{source}: {problem}, the set has {list(features)}. Map it: --columns {ours}=<name>")
    return found


def undecoded(rows: datasets.Dataset) -> datasets.Dataset:
    """The same rows, but their image cells are {"bytes", "path"}: no pixel is decoded."""
    rows = rows.with_format(None)
    plain = json.dumps(rows.features.to_dict())
    plain = json.loads(plain, object_hook=lambda f: f | {"decode": False} if f.get("_type") == "Image" else f)
    rows.info.features = datasets.Features.from_dict(plain)
    return rows


def load_questions(source, split="train", columns=None, config=None) -> tuple[list[Question], dict]:
    """Questions of any `datasets` source in the order of the set, images left on disk, and a report.

    source: hub id, folder (parquet, image folder, ...), .parquet/.jsonl/.json/.csv file, or datasets.Dataset.
    columns: our names (COLUMNS) = the set's: ["question=problem"]. "question=a.b" reads a nested field, "answer=a,b"
        the first that holds something, "images=a,b" takes both, "images=" makes a text set.
    Report: {"rows", "columns", "skipped": {reason: rows}, "free_form": questions, "gold_from": {"column", "####",
    "boxed": questions}}. Raises DataError if names do not fit or no question is left.
    """
    rows, folder = open_source(source, split, config)
    source = source if isinstance(source, str) else "data set in memory"
    on_disk = isinstance(rows, datasets.Dataset)
    features = names_in(rows.features) if on_disk else {name: None for row in rows for name in names_in(row)}
    names = map_columns(source, features, columns)
    if on_disk:
        roots = {name.split(".")[0] for group in names.values() for name in group}
        rows = undecoded(rows.select_columns(sorted(roots)))
    questions, skipped, gold_from = {}, Counter(), Counter()
    bar = tqdm(map(names_in, rows), "questions", len(rows), disable=len(rows) < 10_000 or None)
    for index, row in enumerate(bar):
        asked, answer, uid = (value_of(row, names[ours]) for ours in ("question", "answer", "uid"))
        places = [(name, i) for name in names["images"] for i, _ in enumerate(as_list(row.get(name)))]
        question, reason = clean_row(asked, answer, [as_list(row[name])[i] for name, i in places], folder)
        if question:
            uid = question.uid if uid is None else str(uid).encode(errors="replace").decode()
            reason = "duplicate_uid" if uid in questions else ""
        if reason:
            skipped[reason] += 1
            continue
        gold_from[worked_answer(answer)[1] if isinstance(answer, str) else "column"] += 1
        lazy = (LazyImage(rows, index, *place, folder, image.size) for place, image in zip(places, question.images))
        questions[uid] = replace(question, uid=uid, images=tuple(lazy))
    if not questions:
        what = f"no question left of {len(rows)} rows; skipped: {dict(skipped)}; columns: {names}"
        fix = f"the set has {list(features)}. If one is the wrong column: --columns question=<name>"
        raise DataError(f"{source}: {what}; {fix}")
    report = {"rows": len(rows), "columns": names, "skipped": dict(skipped.most_common()), "gold_from": dict(gold_from)}
    report["free_form"] = sum(question.free_form for question in questions.values())
    return list(questions.values()), report


def fingerprint(questions) -> str:
    """Hash (16 hex) of uids and texts in order: a checkpoint refuses another or a reordered set."""
    parts = [repr((q.uid, q.text, q.answer, q.system)) for q in questions]
    return hashlib.sha256("".join(parts).encode()).hexdigest()[:16]
