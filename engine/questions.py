"""Questions: any `datasets` source in, `Question`s out; images stay on disk until they are asked for.

    questions, report = load_questions("my.jsonl", columns={"question": "problem"})

Decisions where the paper is silent (texts and golds: cleaning.py; pixels: images.py):
1. A row that cannot be used is skipped and counted under one reason, never repaired by a guess.
2. uid = the set's own `uid` column, or else a hash of cleaned text and image bytes: no row number, no order. An exact
   copy of a question thus has the same uid and is a duplicate, whatever its answer.
3. Of a chat the last user turn is the question. A system turn is kept, without its format directives.
4. JSON and CSV files are read here, because `datasets` makes numbers and dates of golds such as "007".
"""

import csv
import hashlib
import io
import json
import os
import re
from collections import Counter
from dataclasses import dataclass, field

import datasets
from accelerate import PartialState
from accelerate.utils import gather_object
from PIL import Image
from tqdm import tqdm

from engine.cleaning import MARKER, clean_answer, clean_text, is_free_form, worked_answer
from engine.images import fit_pixels, image_bytes, to_rgb

MAX_ASPECT = 200  # Qwen's image processors refuse a longer strip
COLUMNS = {  # without a map: the first name that exists
    "question": ("question", "problem", "prompt"), "images": ("images", "image"), "uid": ("uid",),
    "answer": ("answer", "solution", "reward_model.ground_truth"),
}


class DataError(ValueError):
    """A source is not as expected; the message names what was expected, what exists, and the fix."""


class ImageError(DataError):
    """An image of the question `uid` cannot be decoded, although its header is good."""

    def __init__(self, uid: str, cause: Exception):
        super().__init__(f"question {uid}: image cannot be decoded ({type(cause).__name__}: {cause}); repair the file")
        self.uid = uid


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

    rows: datasets.Dataset | list[dict]  # in arrow format, or rows of a text file, which name files
    row: int
    column: str
    position: int
    folder: str  # where relative file names start
    size: tuple[int, int]  # (width, height), read from the header at load

    def read(self) -> bytes:
        row = self.rows[self.row]
        row = row if isinstance(row, dict) else names_in(row.to_pylist()[0])
        return image_bytes(as_list(row[self.column])[self.position], self.folder)


def open_images(question: Question, min_pixels: int = 0, max_pixels: int | None = None) -> list[Image.Image]:
    """The question's images, decoded now: RGB, upright, scaled only if bounds are given. Raises ImageError."""
    images = []
    for image in question.images:
        try:
            image = Image.open(io.BytesIO(image.read())) if isinstance(image, LazyImage) else image
            image.load()
            images.append(fit_pixels(to_rgb(image), min_pixels or 0, max_pixels or image.width * image.height))
        except Exception as error:  # Pillow: OSError, SyntaxError, ValueError, struct.error, ...
            raise ImageError(question.uid, error) from error
    return images


def broken_images(questions) -> dict[str, str]:
    """{uid: what is wrong} of the questions whose images cannot be decoded. Decodes every image once."""
    broken = {}
    for question in questions:
        try:
            open_images(question)
        except ImageError as error:
            broken[question.uid] = str(error)
    return broken


def intact(
    new: list[Question], replayed: list[Question], broken: set[str]
) -> tuple[list[Question], list[Question], int]:
    """Both lists without the questions whose images cannot be decoded, and the number of these.

    The same on all processes. broken: uids that were named on the screen before; it gets the others."""
    state, drawn = PartialState(), [*new, *replayed]
    found = dict(gather_object([*broken_images(drawn[state.process_index :: state.num_processes]).items()]))
    for uid in sorted(found.keys() - broken):
        if state.is_main_process:
            tqdm.write(found[uid])
    broken |= found.keys()
    new, replayed = ([question for question in part if question.uid not in found] for part in (new, replayed))
    return new, replayed, len(found)


def as_list(value) -> list:
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]


def names_in(row: dict, prefix: str = "") -> dict:
    """{"a": value, "a.b": value, ...} of a nested row or of nested features."""
    names = {}
    for key, value in row.items():
        names |= {prefix + key: value} | (names_in(value, f"{prefix}{key}.") if isinstance(value, dict) else {})
    return names


def last_turn(question) -> tuple[str | None, str]:
    """(last user turn, system turn) of a chat: [{"role", "content"}], content a string or a list of parts."""
    if isinstance(question, dict):  # {"role": [...], "content": [...]}: so older sets hold a chat
        question = [dict(zip(question, turn)) for turn in zip(*map(as_list, question.values()))]
    if not isinstance(question, list):
        return question if isinstance(question, str) else None, ""
    said = {"user": None, "system": None}
    for turn in question:
        turn = turn if isinstance(turn, dict) else {}
        parts = [{"text": part} if isinstance(part, str) else part for part in as_list(turn.get("content"))]
        said[turn.get("role")] = "\n".join("<image>" if part.get("text") is None else part["text"] for part in parts)
    return said["user"], said["system"] or ""


def clean_row(question, answer, cells: list, folder: str = ""):
    """The checks that every set must pass: ((text, system, answer, sizes, digest), "") or (None, reason to skip).

    cells: undecoded images. sizes: [(width, height)]. digest: hash of texts and image bytes (decision 2).
    """
    answer, reason = clean_answer(answer)
    if reason:
        return None, reason
    question, system = last_turn(question)
    if not question or not (text := clean_text(question, len(cells))):
        return None, "question_empty"
    numbers = [re.findall(r"\d+", marker) for marker in MARKER.findall(question)]
    wanted = max([sum(not n for n in numbers)] + [int(n[0]) for n in numbers if n])
    if None in cells or wanted > len(cells):
        return None, "image_missing"
    system = clean_text(system, 0)
    if re.search("[\ud800-\udfff]", text + system + answer):
        return None, "lone_surrogate"  # half a character: no tokenizer and no file takes it
    digest, sizes = hashlib.sha256((f"{system}\0{text}" if system else text).encode()), []
    for cell in cells:
        try:
            encoded = image_bytes(cell, folder)
            sizes.append(Image.open(io.BytesIO(encoded)).size)
        except Exception:  # see open_images
            return None, "image_unreadable"
        digest.update(b"\0" + hashlib.sha256(encoded).digest())
    if any(max(size) > MAX_ASPECT * min(size) for size in sizes):
        return None, "image_too_narrow"
    return (text, system, answer, sizes, digest.hexdigest()[:16]), ""


def read_text_file(path: str) -> list[dict]:
    """Rows of a .jsonl, .json or .csv file. Raises DataError: what is wrong, in which line, and the fix."""
    with open(path, "rb") as file:
        raw = file.read()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}, line {line}: not UTF-8 (UTF-16 or Latin-1?). Save the file as UTF-8") from error
    if not text.strip():
        raise DataError(f"{path}: the file is empty. Expected are rows with a question and an answer")
    if path.lower().endswith(".csv"):
        return list(csv.DictReader(io.StringIO(text, newline=""), restkey="more"))
    whole, rows = text.lstrip().startswith("["), []
    for number, line in enumerate([text] if whole else text.split("\n"), 1):  # a line ends at "\n" alone
        try:
            rows += as_list(json.loads(line, parse_float=str, parse_int=str)) if line.strip() else []
        except json.JSONDecodeError as error:
            where = f"{path}, line {error.lineno if whole else number}"
            raise DataError(f"{where}: not JSON ({error.msg}). Cut short? Expected is one object a line") from error
    if not all(isinstance(row, dict) for row in rows):
        raise DataError(f'{path}: a row is no object. Expected are rows like {{"question": "1 + 1?", "answer": "2"}}')
    return [names_in(row) for row in rows]


def open_source(source, split: str, config: str | None) -> tuple[datasets.Dataset | list[dict], str]:
    """(rows, folder where relative image names start) of a hub id, file or folder; a Dataset stays one."""
    if isinstance(source, datasets.Dataset):
        return source, ""
    kind, folder = os.path.splitext(source)[1].lower(), os.path.abspath(source)
    folder = folder if os.path.isdir(folder) else os.path.dirname(folder)
    try:
        if kind in (".jsonl", ".json", ".csv"):
            rows = read_text_file(source)
            (part,) = datasets.ReadInstruction.from_spec(split).to_absolute({"train": len(rows)})
            return rows[part.from_ : part.to], folder
        if kind == ".parquet":
            return datasets.load_dataset("parquet", data_files=source, split=split), folder
        return datasets.load_dataset(source, config, split=split), folder
    except DataError:
        raise
    except Exception as error:  # the library raises many kinds; their messages list what exists
        fix = "Set --split or --config to what exists. A source: hub id, folder, .parquet, .jsonl, .json or .csv file"
        what = f"cannot be opened with split={split!r}, config={config!r}"
        raise DataError(f"{source}: {what}: {error.__cause__ or repr(error)}. {fix}") from error


def map_columns(source: str, features: dict, columns) -> dict[str, list[str]]:
    """{"question": [name], "answer": [name], "images": [names], "uid": [name] or []}. Raises DataError."""
    if not isinstance(columns, dict):
        columns = dict(item.partition("=")[::2] for item in columns or ())
    if unknown := sorted(set(columns) - set(COLUMNS)):
        raise DataError(f"column map: {unknown} are not our names; ours are {list(COLUMNS)} (ours=theirs)")
    found, exist = {}, f"the set has {list(features)}"
    for ours, usual in COLUMNS.items():
        found[ours] = [name for name in usual if name in features][:1]
        if ours in columns:
            found[ours] = [name for name in ",".join(as_list(columns[ours])).split(",") if name]
            if missing := [name for name in found[ours] if name not in features]:
                raise DataError(f"{source}: {ours} is mapped to {missing}, {exist}. Correct --columns {ours}=<name>")
        elif not found[ours] and ours in ("question", "answer"):
            expected = f"no column for the {ours}: expected one of {list(usual)}"
            raise DataError(f"{source}: {expected}, {exist}. Map it: --columns {ours}=<name>")
    pictures = [name for name, feature in features.items() if re.match(r"(List\()?Image\(", repr(feature))]
    if pictures and not found["images"] and "images" not in columns:
        fix = f"Map it: --columns images={pictures[0]}, or leave it out: --columns images="
        raise DataError(f"{source}: image column {pictures} is not mapped. {fix}")
    return found


def undecoded(rows: datasets.Dataset | list[dict]):
    """The rows as dicts, nested names as in `names_in`, image cells as {"bytes", "path"}: no pixel is decoded."""
    if isinstance(rows, list):
        return (yield from rows)
    plain = json.dumps(rows.features.to_dict())
    plain = json.loads(plain, object_hook=lambda f: f | {"decode": False} if f.get("_type") == "Image" else f)
    features = datasets.Features.from_dict(plain)
    for table in rows.with_format("arrow"):
        yield names_in(features.decode_example(table.to_pylist()[0]))


def load_questions(source, split="train", columns=None, limit=None, config=None) -> tuple[list[Question], dict]:
    """Questions of any `datasets` source, images left on disk, and a report.

    source: hub id, folder (parquet, image folder, ...), .parquet/.jsonl/.json/.csv file, or datasets.Dataset.
    columns: our names (COLUMNS) to the set's, as dict or ["question=problem"]. "a.b" reads a nested field,
        "images=left,right" takes several columns, "images=" makes a text set.
    limit: stop after so many questions, in the order of the set (the report then has rows_read < rows).
    Report: {"source", "split", "columns", "rows", "rows_read", "skipped": {reason: rows}, "questions", "with_images",
    "free_form", "gold_from": {"column", "####", "boxed": questions}}. Of two rows with one uid the first stays.
    Raises DataError if names do not fit or no question is left.
    """
    rows, folder = open_source(source, split, config)
    source = source if isinstance(source, str) else "data set in memory"
    on_disk = isinstance(rows, datasets.Dataset)
    features = names_in(rows.features) if on_disk else {name: None for row in rows for name in row}
    names = map_columns(source, features, columns)
    if on_disk:
        pictures = rows.select_columns(sorted({name.split(".")[0] for name in names["images"]})).with_format("arrow")
        rows = rows.select_columns(sorted({name.split(".")[0] for group in names.values() for name in group}))
    questions, seen, skipped, gold_from, read = [], set(), Counter(), Counter(), 0
    for index, row in enumerate(tqdm(undecoded(rows), "questions", len(rows), disable=len(rows) < 10_000 or None)):
        if limit is not None and len(questions) >= limit:
            break
        read += 1
        question, answer, uid = (row.get("".join(names[ours])) for ours in ("question", "answer", "uid"))
        cells = [(name, i, cell) for name in names["images"] for i, cell in enumerate(as_list(row.get(name)))]
        checked, reason = clean_row(question, answer, [cell for _, _, cell in cells], folder)
        if not reason:
            text, system, gold, sizes, digest = checked
            uid = digest if uid is None else str(uid).encode(errors="replace").decode()
            reason = "duplicate_uid" if uid in seen else ""
        if reason:
            skipped[reason] += 1
            continue
        seen.add(uid)
        gold_from[worked_answer(answer)[1] if isinstance(answer, str) else "column"] += 1
        home = (pictures, index) if on_disk else ([row], 0)
        images = tuple(LazyImage(*home, name, i, folder, size) for (name, i, _), size in zip(cells, sizes))
        questions.append(Question(uid, text, images, gold, is_free_form(gold), system))
    report = {"source": source, "split": split, "columns": names, "rows": len(rows), "rows_read": read}
    report |= {"skipped": dict(skipped.most_common()), "questions": len(questions), "gold_from": dict(gold_from)}
    report["with_images"] = sum(bool(question.images) for question in questions)
    report["free_form"] = sum(question.free_form for question in questions)
    if not questions:
        fix = f"the set has {list(features)}. If one is the wrong column: --columns question=<name>"
        raise DataError(f"{source}: no question left of {read} rows; skipped: {dict(skipped)}; columns: {names}; {fix}")
    return questions, report


def fingerprint(questions) -> str:
    """Hash (16 hex) of uids, texts and answers in order: a checkpoint refuses another or a reordered set.

    A uid made from image bytes changes when the image file is repaired. To a run, the broken question is gone and the
    repaired one is new, as after a dropped row. `changes` names both.
    """
    parts = [(q.uid, q.text, q.answer, *([q.system] if q.system else [])) for q in questions]
    return hashlib.sha256("".join(map(repr, parts)).encode()).hexdigest()[:16]


def changes(before: list[str], questions) -> tuple[set[str], set[str]]:
    """(uids that are gone, uids that are new) since a run saved its uids `before`."""
    now = {question.uid for question in questions}
    return set(before) - now, now - set(before)
