"""Questions: any `datasets` source in, `Question`s out; images stay on disk until they are asked for.

    questions, report = load_questions("my.jsonl", columns={"question": "problem"})

Decisions where the paper is silent (texts and golds: cleaning.py; pixels: images.py):
1. A row that cannot be used is skipped and counted under one reason, never repaired by a guess.
2. uid = the set's own `uid` column, or else a hash of cleaned text and image bytes: no row number, no order. An exact
   copy of a question thus has the same uid and is a duplicate, whatever its answer. A question whose image file was
   repaired is a new question.
3. Of a chat the last user turn is the question. A system turn is kept, without its format directives.
4. JSON and CSV files are read here, because `datasets` makes numbers and dates of golds such as "007".
"""

import csv
import hashlib
import io
import json
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

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
    """The question's images, decoded now: RGB, upright, scaled only if bounds are given.

    Raises DataError if an image cannot be decoded: only its header was read at load.
    """
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
    """Both lists without the questions whose images cannot be decoded, and the number of these.

    All processes get the same. broken: the uids that were named on the screen before; the others are added to them.
    """
    state, found = PartialState(), {}
    for question in [*new, *replayed][state.process_index :: state.num_processes]:
        try:
            open_images(question)
        except DataError as error:
            found[question.uid] = str(error)
    found = dict(gather_object(list(found.items())))
    for uid in sorted(found.keys() - broken):
        if state.is_main_process:
            tqdm.write(found[uid])
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
    values = [row.get(name) for name in names]
    return next((value for value in values if value is not None and value != ""), None)


def last_turn(question) -> tuple[str | None, str]:
    """(last user turn, system turn) of a chat: [{"role", "content"}], content a string or a list of parts."""
    if isinstance(question, dict):  # {"role": [...], "content": [...]}: so older sets hold a chat
        question = [dict(zip(question, turn)) for turn in zip(*map(as_list, question.values()))]
    if not isinstance(question, list):
        return question if isinstance(question, str) else None, ""
    said = {"user": None, "system": ""}
    for turn in question:
        turn = turn if isinstance(turn, dict) else {}
        parts = [part if isinstance(part, str) else part.get("text") for part in as_list(turn.get("content"))]
        said[turn.get("role")] = "\n".join("<image>" if part is None else part for part in parts)
    return said["user"], said["system"]


def clean_row(question, answer, cells: list, folder: str = ""):
    """The checks that every set must pass: ((text, system, answer, images, digest), "") or (None, reason to skip).

    cells: undecoded images; images: the same, open but not decoded. digest: of texts and image bytes (decision 2).
    """
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
        images = [Image.open(io.BytesIO(image)) for image in encoded]
    except Exception:  # see open_images
        return None, "image_unreadable"
    if any(max(image.size) > MAX_ASPECT * min(image.size) for image in images):
        return None, "image_too_narrow"
    said = (f"{system}\0{text}" if system else text).encode()
    content = b"\0".join([said, *(hashlib.sha256(image).digest() for image in encoded)])
    return (text, system, answer, images, hashlib.sha256(content).hexdigest()[:16]), ""


def read_text_file(path: str) -> list[dict]:
    """Rows of a .jsonl, .json or .csv file. Raises DataError: what is wrong, in which line, and the fix."""
    raw = Path(path).read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}, line {line}: not UTF-8 (UTF-16 or Latin-1?). Save the file as UTF-8") from error
    if not text.strip():
        raise DataError(f"{path}: the file is empty. Expected are rows with a question and an answer")
    if path.lower().endswith(".csv"):
        return list(csv.DictReader(io.StringIO(text, newline=""), restkey="more"))
    rows, pieces = [], [text] if text.lstrip().startswith("[") else text.split("\n")  # a line ends at "\n" alone
    for before, piece in enumerate(pieces):
        try:
            rows += as_list(json.loads(piece, parse_float=str, parse_int=str)) if piece.strip() else []
        except json.JSONDecodeError as error:
            where = f"{path}, line {before + error.lineno}"
            raise DataError(f"{where}: not JSON ({error.msg}). Cut short? Expected is one object a line") from error
    if not all(isinstance(row, dict) for row in rows):
        raise DataError(f'{path}: a row is no object. Expected are rows like {{"question": "1 + 1?", "answer": "2"}}')
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
        fix = "Set --split or --config to what exists. A source: hub id, folder, .parquet, .jsonl, .json or .csv file"
        what = f"cannot be opened with split={split!r}, config={config!r}"
        raise DataError(f"{source}: {what}: {error.__cause__ or repr(error)}. {fix}") from error


def map_columns(source: str, features: dict, columns) -> dict[str, list[str]]:
    """{"question": [names], "answer": [names], "images": [names], "uid": [names]} of the set. Raises DataError."""
    if not isinstance(columns, dict):
        columns = dict(item.partition("=")[::2] for item in columns or ())
    if unknown := sorted(set(columns) - set(COLUMNS)):
        raise DataError(f"column map: {unknown} are not our names; ours are {list(COLUMNS)} (ours=theirs)")
    exist = f"the set has {list(features)}"
    found = {ours: [name for name in usual if name in features][:1] for ours, usual in COLUMNS.items()}
    for ours, theirs in columns.items():
        found[ours] = [name for name in ",".join(as_list(theirs)).split(",") if name]
        if missing := [name for name in found[ours] if name not in features]:
            raise DataError(f"{source}: {ours} is mapped to {missing}, {exist}. Correct --columns {ours}=<name>")
    for ours in ("question", "answer"):
        if not found[ours]:
            expected = f"no column for the {ours}: expected one of {list(COLUMNS[ours])}"
            raise DataError(f"{source}: {expected}, {exist}. Map it: --columns {ours}=<name>")
    pictures = [name for name, feature in features.items() if re.match(r"(List\()?Image\(", repr(feature))]
    if pictures and not found["images"] and "images" not in columns:
        fix = f"Map it: --columns images={pictures[0]}, or leave it out: --columns images="
        raise DataError(f"{source}: image column {pictures} is not mapped. {fix}")
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
    columns: our names (COLUMNS) to the set's, as dict or ["question=problem"]. "a.b" reads a nested field,
        "answer=a,b" the first that holds something, "images=a,b" takes both, "images=" makes a text set.
    Report: {"rows", "columns", "skipped": {reason: rows}, "free_form": questions, "gold_from": {"column", "####",
    "boxed": questions}}. Of two rows with one uid the first stays. Raises DataError if names do not fit or no question
    is left.
    """
    rows, folder = open_source(source, split, config)
    source = source if isinstance(source, str) else "data set in memory"
    on_disk = isinstance(rows, datasets.Dataset)
    features = names_in(rows.features) if on_disk else {name: None for row in rows for name in names_in(row)}
    names = map_columns(source, features, columns)
    if on_disk:
        roots = {name.split(".")[0] for group in names.values() for name in group}
        rows = undecoded(rows.select_columns(sorted(roots)))
    questions, seen, skipped, gold_from = [], set(), Counter(), Counter()
    bar = tqdm(map(names_in, rows), "questions", len(rows), disable=len(rows) < 10_000 or None)
    for index, row in enumerate(bar):
        question, answer, uid = (value_of(row, names[ours]) for ours in ("question", "answer", "uid"))
        cells = [(name, i, cell) for name in names["images"] for i, cell in enumerate(as_list(row.get(name)))]
        checked, reason = clean_row(question, answer, [cell for _, _, cell in cells], folder)
        if not reason:
            text, system, gold, opened, digest = checked
            uid = digest if uid is None else str(uid).encode(errors="replace").decode()
            reason = "duplicate_uid" if uid in seen else ""
        if reason:
            skipped[reason] += 1
            continue
        seen.add(uid)
        gold_from[worked_answer(answer)[1] if isinstance(answer, str) else "column"] += 1
        place = (rows, index) if on_disk else ([row], 0)
        images = tuple(LazyImage(*place, name, i, folder, image.size) for (name, i, _), image in zip(cells, opened))
        questions.append(Question(uid, text, images, gold, is_free_form(gold), system))
    if not questions:
        fix = f"the set has {list(features)}. If one is the wrong column: --columns question=<name>"
        what = f"no question left of {len(rows)} rows; skipped: {dict(skipped)}; columns: {names}"
        raise DataError(f"{source}: {what}; {fix}")
    report = {"rows": len(rows), "columns": names, "skipped": dict(skipped.most_common()), "gold_from": dict(gold_from)}
    return questions, report | {"free_form": sum(question.free_form for question in questions)}


def fingerprint(questions) -> str:
    """Hash (16 hex) of uids and texts in order: a checkpoint refuses another or a reordered set."""
    parts = [repr((q.uid, q.text, q.answer, q.system)) for q in questions]
    return hashlib.sha256("".join(parts).encode()).hexdigest()[:16]
