"""Questions: any `datasets` source in, `Question`s out; images stay on disk until asked for.

    questions, report = load_questions("my.jsonl", columns=["question=problem"])

Decisions where the paper is silent (texts and golds: cleaning.py; pixels: images.py):
1. A row that cannot be used is skipped and counted under one reason, never repaired by a guess.
2. uid = the set's own `uid` column, or else a hash of cleaned texts and image bytes. An exact copy
   of a question is thus a duplicate, whatever its answer, and a question whose image file was
   repaired is a new question.
3. Of a chat the last user turn is the question. A system turn and earlier turns stay, without
   format directives and image markers: all images stand before the question.
4. JSON and CSV files are read here: `datasets` makes numbers and dates of golds such as "007".
   They do without that library, as the embedded world does: it is imported where it is used. A gold
   of JSON stays as it is written; a reward of one's own gets its row's numbers as numbers.
5. Options in a column of their own are listed behind the question, and the gold is then a letter. A
   number is the place of an option, counted from 0.
"""

import csv
import hashlib
import io
import json
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
from accelerate import PartialState
from accelerate.utils import gather_object
from PIL import Image
from tqdm import tqdm

from engine.cleaning import (
    MARKER,
    clean_answer,
    clean_text,
    is_free_form,
    spelled_list,
    worked_answer,
)
from engine.images import fit_pixels, image_bytes, to_rgb
from engine.screen import print_main

MAX_ASPECT = 200  # Qwen's image processors refuse a longer strip
COLUMNS = {  # without a map: the first name that exists
    "question": ("question", "problem", "prompt"),
    "images": ("images", "image"),
    "uid": ("uid",),
    "answer": ("answer", "solution", "reward_model.ground_truth"),
    "options": ("options", "choices"),
}
UNSEEN = ("video", "videos", "audio", "audios")  # what no question can show
ROLES = ("system", "user", "assistant")
Rows = Sequence[dict]  # a datasets.Dataset, or the list of a text file's rows


class DataError(ValueError):
    """A source is not as expected; the message says what was, what exists, and the fix."""


class WrittenNumber(str):
    """A number in a JSON file, as it is written there (decision 4)."""


DECODER = json.JSONDecoder(parse_float=WrittenNumber, parse_int=WrittenNumber)


@dataclass(frozen=True)
class Question:
    uid: str  # unique in the set; does not depend on order or workers
    text: str  # no image marker, no format directive; the images come before it
    images: tuple = field(compare=False, repr=False)  # LazyImage or PIL images: see open_images
    answer: str  # short gold answer
    free_form: bool = False  # graded by the judge, see is_free_form
    system: str = ""  # the row's own system turn
    turns: tuple[tuple[str, str], ...] = ()  # of a conversation, before the question: (role, text)
    # Reads the row that it was made from, without images: a reward of one's own may need it.
    row: Callable[[], dict] = field(default=dict, compare=False, repr=False)


@dataclass(frozen=True)
class LazyImage:
    """One image of one row: a position in rows on disk, no pixels."""

    rows: Rows  # `undecoded`, or rows of a text file, which name files
    row: int
    column: str
    position: int
    folder: str  # where relative file names start
    size: tuple[int, int]  # (width, height), read from the header at load

    def read(self) -> bytes:
        row = names_in(self.rows[self.row])
        cells = as_list(row[self.column])
        return image_bytes(cells[self.position], self.folder)


# ---------------------------------------------------------------- a source becomes questions


def load_questions(
    source, split="train", columns=(), config: str = "", system: str = ""
) -> tuple[list[Question], dict]:
    """Questions of any `datasets` source, in its order, images left on disk, and a report.

    source: hub id, folder (parquet, images, ...), .parquet/.jsonl/.json/.csv file, or Dataset.
    columns: our names (COLUMNS) = the set's: ["question=problem"]. "question=a.b" reads a nested
        field, "answer=a,b" the first that holds something, "images=a,b" takes both, "images=" makes
        a text set.
    system: the system turn of questions that have none of their own.
    Report: {"rows", "columns", "skipped": {reason: rows}, "free_form": questions, "gold_from":
    {"column", "####", "boxed", "class name", "float32", "boolean": questions}}. Raises DataError if
    names do not fit or no question is left.
    """
    rows, folder = open_source(source, split, config)
    source = source if isinstance(source, str) else "data set in memory"
    features = features_of(rows)
    names = map_columns(source, features, columns)
    others = rows
    if not isinstance(rows, list):
        rows, others = narrow(rows, features, names)
    questions, skipped, gold_from = {}, Counter(), Counter()
    hide_bar = len(rows) < 10_000 or None  # None: hidden where the screen is a file
    for index, row in enumerate(tqdm(rows, "questions", disable=hide_bar)):
        row = names_in(row)
        answer, kind = written_gold(row, names["answer"], features)
        question, reason = read_row(row, names, answer, rows, index, folder)
        if question and question.uid in questions:
            reason = "duplicate_uid"
        if reason:
            skipped[reason] += 1
            continue
        gold_from[kind] += 1
        row = partial(read_others, others, index)
        questions[question.uid] = replace(question, row=row, system=question.system or system)
    if not questions:
        what = f"no question left of {len(rows)} rows; skipped: {dict(skipped)}; columns: {names}"
        fix = f"the set has {list(features)}. If one is the wrong column: --columns question=<name>"
        raise DataError(f"{source}: {what}; {fix}")
    report = {"rows": len(rows), "columns": names, "skipped": dict(skipped.most_common())}
    report["gold_from"] = dict(gold_from)
    report["free_form"] = sum(question.free_form for question in questions.values())
    return list(questions.values()), report


def narrow(rows, features: dict, names: dict[str, list[str]]) -> tuple:
    """(the columns of `names`, all columns but pictures) of a data set, nothing decoded."""
    rows = undecoded(rows)
    pictures = {name.split(".")[0] for name in features if is_kind("Image", features[name])}
    roots = {name.split(".")[0] for group in names.values() for name in group}
    return rows.select_columns(sorted(roots)), rows.remove_columns(sorted(pictures))


def read_others(rows: Rows, index: int) -> dict:
    """A row, for a reward of one's own."""
    return with_numbers(rows[index])


def with_numbers(value):
    """The same value, the numbers of a JSON file no longer as text."""
    if isinstance(value, WrittenNumber):
        return json.loads(value)
    if isinstance(value, dict):
        return {key: with_numbers(part) for key, part in value.items()}
    if isinstance(value, list):
        return [with_numbers(part) for part in value]
    return value


def counted(what: str, counts: dict[str, int]) -> str:
    """A line of a report, as "skipped: question_empty 1, answer_missing 2"."""
    found = ", ".join(f"{kind} {count}" for kind, count in counts.items())
    return f"{what}: {found or 0}"


def open_source(source, split: str, config: str) -> tuple[Rows, str]:
    """(rows, folder where relative image names start) of a source. Raises DataError."""
    if not isinstance(source, str | Path):
        return source, ""
    path = Path(source).absolute()
    folder = str(path if path.is_dir() else path.parent)
    kind = path.suffix.lower()
    try:
        if kind in (".jsonl", ".json", ".csv"):
            return part_of(read_text_file(source), split), folder
        import datasets  # decision 4

        if kind == ".parquet":
            return datasets.load_dataset("parquet", data_files=source, split=split), folder
        return datasets.load_dataset(source, config or None, split=split), folder
    except DataError:
        raise
    except ModuleNotFoundError as error:
        fix = "pip install datasets, or give --data as a .jsonl, .json or .csv file"
        raise DataError(f"{source}, split={split!r}: needs a library ({error}): {fix}") from error
    except Exception as error:  # the library raises many kinds; their messages list what exists
        cause = error.__cause__ or repr(error)
        what = f"cannot be opened with split={split!r}, config={config!r}: {cause}"
        kinds = "hub id, folder, .parquet, .jsonl, .json or .csv file"
        fix = f"Set --split or --config to what exists. A source: {kinds}"
        raise DataError(f"{source}: {what}. {fix}") from error


def part_of(rows: list[dict], split: str) -> list[dict]:
    """The rows that a split names: "train", "train[:100]", "train[10%:]"."""
    if split == "train":
        return rows
    import datasets  # decision 4

    (part,) = datasets.ReadInstruction.from_spec(split).to_absolute({"train": len(rows)})
    if part.from_ >= part.to:
        raise ValueError("there are no such rows")
    return rows[part.from_ : part.to]


def read_text_file(path: str) -> list[dict]:
    """Rows of a .jsonl, .json or .csv file. Raises DataError with the cause, its line, the fix."""
    raw = Path(path).read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        what = f"{path}, line {line}: not UTF-8 (UTF-16 or Latin-1?)"
        raise DataError(f"{what}. Save the file as UTF-8") from error
    table = csv.DictReader(io.StringIO(text, newline=""), restkey="more")
    rows = list(table) if path.lower().endswith(".csv") else read_json(path, text)
    if not rows or not all(isinstance(row, dict) for row in rows):
        what = "a row is no object" if rows else "the file is empty"
        example = '{"question": "1 + 1?", "answer": "2"}'
        raise DataError(f"{path}: {what}. Expected are rows like {example}")
    return rows


def read_json(path: str, text: str) -> list:
    """The values of a text: one object after another, or one array of them."""
    something = re.compile(r"\S")
    rows, place = [], 0
    try:
        while start := something.search(text, place):
            value, place = DECODER.raw_decode(text, start.start())
            rows += as_list(value)
    except json.JSONDecodeError as error:
        line = text[: error.pos].rstrip().count("\n") + 1
        what = f"{path}, line {line}: not JSON ({error.msg})"
        raise DataError(f"{what}. Cut short? Expected is one object a line") from error
    return rows


def features_of(rows: Rows) -> dict:
    """{name of a column or of a nested field: its feature, None in a text file}."""
    if not isinstance(rows, list):
        return names_in(rows.features)
    return {name: None for row in rows for name in names_in(row)}


def map_columns(source: str, features: dict, columns) -> dict[str, list[str]]:
    """{"question": [names], "answer": [names], "images": [names], "uid": [names]} of the set.
    Raises DataError."""
    wished = dict(item.partition("=")[::2] for item in columns)
    if unknown := sorted(wished.keys() - COLUMNS.keys()):
        ours = f"ours are {list(COLUMNS)} (ours=theirs)"
        raise DataError(f"column map: {unknown} are not our names; {ours}")
    found = {}
    for ours, usual in COLUMNS.items():
        if ours in wished:
            found[ours] = [name for name in wished[ours].split(",") if name]
        else:
            found[ours] = [name for name in usual if name in features][:1]
    used = Counter(name for names in found.values() for name in names)
    if twice := [name for name in used if used[name] > 1]:
        raise DataError(f"column map: {twice} would be two of {list(COLUMNS)}")
    for name, feature in features.items():
        # Such a row would be asked about what nobody shows.
        if name in UNSEEN or is_kind("Video|Audio", feature):
            fix = "take the column out of the set, and the questions about it"
            raise DataError(f"{source}: column {name!r} is no text and no image; {fix}")
    pictures = [name for name, feature in features.items() if is_kind("Image", feature)]
    for ours, names in found.items():
        problem = ""
        if missing := [name for name in names if name not in features]:
            problem = f"{ours} is mapped to {missing}"
        elif not names and ours in ("question", "answer"):
            problem = f"no column for the {ours}: expected one of {list(COLUMNS[ours])}"
        elif ours == "images" and not names and pictures and ours not in wished:
            problem = f"image column {pictures} is not mapped (leave it out: --columns images=)"
        if problem:
            fix = f"Map it: --columns {ours}=<name>"
            raise DataError(f"{source}: {problem}, the set has {list(features)}. {fix}")
    return found


def is_kind(kind: str, feature) -> bool:
    return re.match(rf"(List\()?({kind})\(", repr(feature)) is not None


def undecoded(rows):
    """The same data set, but its image cells are {"bytes", "path"}: no pixel is decoded."""
    import datasets  # decision 4

    def undecode(feature: dict) -> dict:
        return feature | {"decode": False} if feature.get("_type") == "Image" else feature

    rows = rows.with_format(None)
    plain = json.dumps(rows.features.to_dict())
    plain = json.loads(plain, object_hook=undecode)
    rows.info.features = datasets.Features.from_dict(plain)
    return rows


# ---------------------------------------------------------------- a row becomes a question


def read_row(
    row: dict, names: dict, answer, rows, index: int, folder: str
) -> tuple[Question | None, str]:
    """(the question of rows[index] with images left on disk, "") or (None, reason to skip).
    row: the same row, as `names_in` flattens it. names: of `map_columns`."""
    places = []  # of each image: (column, position in the column's list)
    cells = []
    for column in names["images"]:
        for position, cell in enumerate(as_list(row.get(column))):
            # Of a mixed set, text rows have an empty cell.
            if not is_empty(cell):
                places.append((column, position))
                cells.append(cell)
    asked = value_of(row, names["question"])
    options = value_of(row, names["options"])
    question, reason = clean_row(asked, answer, cells, folder, options)
    if reason:
        return None, reason
    images = []
    for (column, position), image in zip(places, question.images):
        images.append(LazyImage(rows, index, column, position, folder, image.size))
    uid = value_of(row, names["uid"])
    uid = question.uid if uid is None else str(uid).encode(errors="replace").decode()
    return replace(question, uid=uid, images=tuple(images)), ""


def clean_row(
    question, answer, cells: list, folder: str = "", options=None
) -> tuple[Question | None, str]:
    """The checks that every set must pass: (the question, "") or (None, reason to skip).
    Its images are the cells, open but not decoded; its uid is the hash of texts and image bytes."""
    try:
        asked, system, turns = read_chat(question)
    except ValueError:
        return None, "question_unreadable"
    try:
        if not is_empty(options):
            asked, answer = with_options(asked, answer, options)
    except ValueError:
        return None, "options_unclear"
    answer, reason = clean_answer(answer)
    if reason:
        return None, reason
    text = clean_text(asked, len(cells))
    if not text:
        return None, "question_empty"
    said = "\n".join(words for _, words in turns)
    markers = MARKER.findall(said + asked)  # of each marker the number of its image, or ""
    numbers = [int(number or 0) for number in markers]
    if max([markers.count(""), *numbers]) > len(cells):
        return None, "image_missing"
    system = clean_text(system, 0)
    turns = [(role, clean_text(words, 0)) for role, words in turns]
    if re.search("[\ud800-\udfff]", text + system + said + answer):
        return None, "lone_surrogate"  # half a character: no tokenizer and no file takes it
    try:
        encoded = [image_bytes(cell, folder) for cell in cells]
        images = [Image.open(io.BytesIO(content)) for content in encoded]
    except Image.DecompressionBombError:
        return None, "image_too_large"
    except Exception:  # see open_images
        return None, "image_unreadable"
    if any(max(image.size) > MAX_ASPECT * min(image.size) for image in images):
        return None, "image_too_narrow"
    uid = content_hash(text, system, turns, encoded)
    free_form = is_free_form(answer)
    return Question(uid, text, tuple(images), answer, free_form, system, tuple(turns)), ""


def read_chat(asked) -> tuple[str, str, list[tuple[str, str]]]:
    """(last user turn, system turns, the turns between) of a text or a chat [{"role", "content"}].
    What follows the last user turn is an answer and goes. Raises ValueError: this is no chat."""
    if isinstance(asked, str):
        return asked, "", []
    if isinstance(asked, dict):  # {"role": [...], "content": [...]}: so older sets hold a chat
        turns = zip(*map(as_list, asked.values()))
        asked = [dict(zip(asked, turn)) for turn in turns]
    system, turns = [], []
    for turn in as_list(asked):
        if not isinstance(turn, dict) or turn.get("role") not in ROLES:
            raise ValueError("a turn without a known role")
        text = "\n".join(text_of(part) for part in as_list(turn.get("content")))
        if turn["role"] == "system":
            system.append(text)
        else:
            turns.append((turn["role"], text))
    while turns and turns[-1][0] != "user":
        turns.pop()
    question = turns.pop()[1] if turns else ""
    return question, "\n\n".join(system), turns


def text_of(part) -> str:
    """The text of a part of a turn's content. An image is a marker. Raises ValueError: neither."""
    if isinstance(part, dict):
        is_image = part.get("type") in ("image", "image_url") or part.get("image")
        part = "<image>" if part.get("text") is None and is_image else part.get("text")
    if not isinstance(part, str):
        raise ValueError("a part that is neither text nor an image")
    return part


# ---------------------------------------------------------------- golds and options


def written_gold(row: dict, names: list[str], features: dict) -> tuple:
    """(the answer as people write it, where it comes from: see `load_questions`)."""
    name = name_of(row, names)
    answer, feature = row.get(name), features.get(name)
    if isinstance(answer, str):
        return answer, worked_answer(answer)[1]
    if isinstance(answer, bool):
        return answer, "boolean"
    if is_kind("ClassLabel", feature) and answer in range(feature.num_classes):
        return feature.int2str(answer), "class name"
    if isinstance(answer, float) and repr(feature) == "Value('float32')":
        return np.float32(answer), "float32"  # as a Python float 0.1 is 0.10000000149
    return answer, "column"


def with_options(asked: str, answer, options) -> tuple:
    """(the question with its options as A., B., ..., the gold: a letter where it names an option).
    options: a list, also one spelled as text, or {"text": [...], "label": [...]}.
    Raises ValueError where an option is no text, or the gold may name none or two."""
    options, labels = spelled_list(options), []
    if isinstance(options, dict):
        labels = [str(label) for label in as_list(options.get("label"))]
        options = options.get("text")
    if isinstance(options, str):
        options = options.splitlines()
    options = as_list(options)
    texts = [str(option) for option in options if isinstance(option, (str, int, float))]
    letters = string.ascii_uppercase[: len(options)]
    if len(texts) != len(letters) or len(texts) < 2:
        raise ValueError("an option that is no text, or more options than letters, or none")
    # "A) red" becomes "red".
    texts = [re.sub(rf"^\W*{a}[.):]", "", text).strip() for a, text in zip(letters, texts)]
    lines = [f"{letter}. {text}" for letter, text in zip(letters, texts)]
    gold = str(answer).strip()
    places = {names.index(gold) for names in (list(letters), texts) if gold in names}
    letter = re.fullmatch(r"\(?([A-Za-z])[.):]?", gold)
    if letter and gold not in texts:
        places.add(string.ascii_uppercase.index(letter[1].upper()))
    if gold.isdecimal():
        places.add(int(gold))
    if gold in labels:
        places = {labels.index(gold)}
    if len(places) > 1 or max(places, default=0) >= len(lines):
        raise ValueError("the gold names no option, or two")
    for place in places:
        answer = letters[place]
    return "\n".join([asked, *lines]), answer


# ---------------------------------------------------------------- small helpers


def content_hash(text: str, system: str, turns: list, images: list[bytes]) -> str:
    """16 hex digits of texts and image bytes (decision 2)."""
    said = f"{system}\0{text}" if system else text
    parts = [said.encode()]
    parts += [f"{role}\0{words}".encode() for role, words in turns]
    parts += [hashlib.sha256(image).digest() for image in images]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def as_list(value) -> list:
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def is_empty(cell) -> bool:
    """True for a cell that holds nothing: None, "", NaN, lists and dicts of these."""
    if isinstance(cell, dict):
        cell = list(cell.values())
    if isinstance(cell, (list, tuple)):
        return all(is_empty(part) for part in cell)
    return cell is None or cell == "" or cell != cell


def names_in(row: dict, prefix: str = "") -> dict:
    """{"a": value, "a.b": value, ...} of a nested row or of nested features."""
    names = {}
    for key, value in row.items():
        names[f"{prefix}{key}"] = value
        if isinstance(value, dict):
            names |= names_in(value, f"{prefix}{key}.")
    return names


def value_of(row: dict, names: list[str]):
    """The first of these columns that holds something, or None."""
    return row.get(name_of(row, names))


def name_of(row: dict, names: list[str]) -> str:
    for name in names:
        if row.get(name) not in (None, ""):
            return name
    return ""


# ---------------------------------------------------------------- questions in use


def open_images(
    question: Question, min_pixels: int = 0, max_pixels: int | None = None
) -> list[Image.Image]:
    """The question's images, decoded now: RGB, upright, scaled only if bounds are given.
    Raises DataError."""
    images = []
    for image in question.images:
        try:
            if isinstance(image, LazyImage):
                image = Image.open(io.BytesIO(image.read()))
            image.load()
            most = max_pixels or image.width * image.height
            images.append(fit_pixels(to_rgb(image), min_pixels or 0, most))
        except Exception as error:  # Pillow: OSError, SyntaxError, ValueError, struct.error, ...
            cause = f"{type(error).__name__}: {error}"
            what = f"image cannot be decoded ({cause}); repair the file"
            raise DataError(f"question {question.uid}: {what}") from error
    return images


def intact(
    new: list[Question], replayed: list[Question], broken: set[str]
) -> tuple[list[Question], list[Question], int]:
    """Both lists without the questions whose images cannot be decoded, and the number of these. All
    processes return the same. broken: the uids that the screen has named; new ones are added."""
    state = PartialState()
    found = {}
    for question in (new + replayed)[state.process_index :: state.num_processes]:
        try:
            open_images(question)
        except DataError as error:
            found[question.uid] = str(error)
    found = dict(gather_object(list(found.items())))
    for uid in sorted(found.keys() - broken):
        print_main(found[uid])
    broken.update(found)
    new = [question for question in new if question.uid not in found]
    replayed = [question for question in replayed if question.uid not in found]
    return new, replayed, len(found)


def fingerprint(questions) -> str:
    """Hash (16 hex) of uids and texts in order: a checkpoint refuses another or a reordered set."""
    parts = []
    for question in questions:
        said = (question.uid, question.text, question.answer, question.system)
        parts.append(repr(said + question.turns))
    return hashlib.sha256("".join(parts).encode()).hexdigest()[:16]
