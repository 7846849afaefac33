"""Rows of a benchmark's snapshot in, questions with their options, golds, images and frames out.

Decisions:
1. What is not as suite/benchmarks.yaml says stops with a DataError that says what was expected and found: a wrong guess
   would be a wrong number. Another number of rows than published is no error; the table shows both.
2. Options are listed under the question as "A. text"; not where the question has them, or is itself in the picture.
3. GPQA's options are shuffled by a seed of their own row: the same order for every model and every --seed.
4. Precision and unit that MathVista and CharXiv score by are asked for in a sentence of ours.
5. A row's uid is its set, config, split and number.
"""

import ast
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import datasets

from engine.cleaning import clean_text
from engine.questions import DataError, Question, names_in
from generate import seed_of
from suite.entries import BLIND_TASKS, OCR_CAPABILITIES, Benchmark, config_names, read_splits
from suite.media import find_file, picture, sample, subtitles

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
IN_PICTURE = "Answer the question in the picture."
MARKER = re.compile(r"<image[ _]?(\d*)>")
AROUND = re.compile(r"^(\s*<image[ _]?\d*>)+\s*|\s*(<image[ _]?\d*>\s*)+$")


@dataclass(frozen=True)
class Item(Question):
    """A question of a benchmark."""

    benchmark: str = ""
    options: tuple[str, ...] = ()  # their texts, "" where only the picture or the question shows one
    judge_question: str = ""  # the question as a judge should see it
    golds: tuple = ()  # what is accepted: numbers (0-based) of options, or strings
    scored_with: str = ""  # the same for questions that are scored together
    row: dict = field(default_factory=dict, compare=False, repr=False)  # what the scorer reads
    groups: dict = field(default_factory=dict, compare=False, repr=False)  # {name: value or list of values}


def expect(value, known):
    """The value, if it is one of the known ones. Raises DataError."""
    if value not in known:
        raise DataError(f"expected one of {list(known)}, found {value!r}")
    return value


# ---- options and golds -------------------------------------------------------------------------------------


def lettered(options: Sequence[str]) -> list[str]:
    """"A. text" of each option whose text is known."""
    return [f"{letter}. {text}" for letter, text in zip(LETTERS, options) if text]


def option_texts(cell, drawn: int = 0, question: str = "") -> list[str]:
    """The texts of a row's options without their letters, "" where they are not known; [] if it has none.

    cell: a list, a Python list as a string, one string "A. x;B. y", a dict by letter, or None. Without a cell: lines
    "A: x" of the question; without those, `drawn` options whose texts are not known.
    """
    if isinstance(cell, str) and cell.lstrip().startswith("["):
        cell = ast.literal_eval(cell.strip())
    elif isinstance(cell, str):
        cell = re.split(r";\s*(?=[A-J]\.)", cell)
    elif isinstance(cell, dict):
        cell = [cell[letter] for letter in sorted(cell) if cell[letter]]
    elif cell is None and drawn:
        lines = re.findall(r"(?m)^\s*\(?([A-J])[:.)]\s*(.+?)\s*$", question)
        in_order = [letter for letter, _ in lines] == list(LETTERS[: len(lines)])
        cell = [text for _, text in lines] if in_order else None
    texts = [str(text).strip() for text in cell or [""] * drawn]
    if texts == list(LETTERS[: len(texts)]):  # only the letters are given: drawn
        return [""] * len(texts)
    plain = [re.sub(rf"^\(?{letter}[.:)]\s*", "", text) for letter, text in zip(LETTERS, texts)]
    return plain if all(one != text for one, text in zip(plain, texts, strict=True)) else texts


def gold_numbers(encoding: str, golds: Sequence, options: Sequence[str]) -> tuple[int, ...]:
    """The numbers (0-based) of the right options. encoding: letter, index (0-based) or text.

    A gold that should be a letter may be the text of an option. Raises DataError where a gold is none of the options.
    """
    texts = [str(gold).strip() for gold in golds]
    if encoding == "index":
        numbers = [int(float(text)) for text in texts if re.fullmatch(r"\d+(\.0)?", text)]
    elif encoding == "letter" and re.fullmatch(r"\(?[A-Z][).]?", texts[0]):
        numbers = [LETTERS.index(texts[0].strip("()."))]
    else:
        numbers = [i for i, option in enumerate(options) if option == texts[0]][:1]
    if not numbers or max(numbers) >= len(options):
        raise DataError(f"expected the {encoding} of one of the options {list(options)}, found {list(golds)}")
    return tuple(numbers)


# ---- what no column says: {name: (row, prompts) -> what replaces or joins its columns, for each question of it} ----


def charxiv(row: dict, prompts: dict) -> list[dict]:
    """One reasoning question and four descriptive ones, whose texts are templates for a place in the figure."""
    question, kind, answer = row["reasoning_q"], int(row["reasoning_a_type"]), str(row["reasoning_a"])
    if expect(kind, (1, 2, 3, 4)) == 4:
        decimals = len(answer.partition(".")[2])
        question += f" Give the answer {f'with {decimals} decimals' if decimals else 'as an integer'}."
    parts = [dict(half="reasoning", rubric=f"reasoning_{kind}", reasoning_q=question, reasoning_a=answer)]
    at = f"the subplot at row {row['subplot_row']} and column {row['subplot_col']}"
    place = row["subplot_loc"] or (at if row["subplot_row"] else "the current plot")
    for i in "1234":
        number, answer = expect(int(row[f"descriptive_q{i}"]), range(1, 20)), row[f"descriptive_a{i}"]
        kind, question = prompts["charxiv_questions"][number - 1]
        question = question if number in (18, 19) else f"For {place}, {question[0].lower()}{question[1:]}"
        parts.append(dict(half="descriptive", rubric=f"descriptive_{kind}", reasoning_q=question, reasoning_a=answer))
    return parts


def mathvista(row: dict, prompts: dict) -> list[dict]:
    question = row["question"] + (f" (Unit: {row['unit']})" if row["unit"] else "")
    kind = expect(row["answer_type"], ("text", "integer", "float", "list"))
    if kind == "float" and row["precision"] is not None:
        question += f" Give the answer with {int(row['precision'])} decimals."
    return [{"question": question}]


def redux(row: dict, prompts: dict) -> list[dict]:
    """Corrected golds: another text for the gold option, another option, or several (a string such as "A and B")."""
    error, fix = row["error_type"], str("" if row["correct_answer"] is None else row["correct_answer"]).strip()
    choices, gold = list(row["choices"]), row["answer"]
    if fix and error == "no_correct_answer":
        choices[int(gold)] = fix
    elif fix and error in ("wrong_groundtruth", "multiple_correct_answers"):
        found = re.findall(r"(?<![A-Za-z0-9])(?:\d+|[A-D])(?![A-Za-z0-9])", fix)
        gold = [LETTERS.index(one) if one in LETTERS else int(one) for one in found]
        if not gold or (len(gold) > 1 and error == "wrong_groundtruth"):
            raise DataError(f"expected the number or letter of an option in correct_answer, found {fix!r}")
    return [{"choices": choices, "answer": gold}]


def multichallenge(row: dict, prompts: dict) -> list[dict]:
    """The last turn is the question. A conversation comes as a list of turns, or as lists of roles and contents."""
    turns = row["conversation"]
    if not isinstance(turns, dict):
        turns = {key: [turn[key] for turn in turns] for key in ("role", "content")}
    turns = list(zip(turns["role"], turns["content"], strict=True))
    expect(turns[-1][0], ("user",))
    expect(str(row["pass_criteria"]).upper(), ("YES", "NO"))
    return [{"conversation": turns[-1][1], "turns": tuple(turns[:-1])}]


def blind(row: dict, prompts: dict) -> list[dict]:
    task = expect(row["task"].strip().casefold(), BLIND_TASKS)
    return [{"task": task, "group": task.partition(" - ")[0] if "grid" in task else task}]


def capabilities(row: dict, prompts: dict) -> list[dict]:
    """OCRBench v2 by type, MM-Vet by a list in one string."""
    if "type" in row:
        return [{"capability": OCR_CAPABILITIES[expect(row["type"].rpartition(" ")[0], OCR_CAPABILITIES)]}]
    return [{"capability": [name.strip() for name in row["capability"].split(",")]}]


PREPARE = {f.__name__: f for f in (charxiv, mathvista, redux, multichallenge, blind, capabilities)}


# ---- rows to items -----------------------------------------------------------------------------------------


def check_columns(entry: Benchmark, config: str, rows: datasets.Dataset) -> datasets.Dataset:
    """The rows, with columns of another case renamed. Raises DataError if a column is missing that the entry needs."""
    needed = {entry.question, *entry.answers, *entry.options, *entry.needs, *entry.kind[:1], entry.video} - {""}
    needed -= {"question"} if config == "vision" else set()  # MMMU-Pro: it is in the picture
    there = {name.casefold(): name for name in rows.column_names}
    if missing := sorted(name for name in needed if name.casefold() not in there):
        raise DataError(f"expected columns {missing}, found {rows.column_names}")
    return rows.rename_columns({there[name.casefold()]: name for name in needed if name not in rows.column_names})


def places_of(entry: Benchmark, folder: Path, limit: int | None) -> list[dict]:
    """Where the rows to ask are: config, split, rows, number, scored_with (one value for rows scored together).

    limit: about so many rows; what is scored together stays together, evenly spaced over the set.
    """
    places = []
    for config in config_names(folder) if "*" in entry.configs else entry.configs:
        splits = read_splits(folder, config, entry.splits, entry.every_split)
        splits = {split: check_columns(entry, config, rows) for split, rows in splits.items()}
        ids = [rows[entry.together] for rows in splits.values()] if entry.together else []
        # Where ids differ from split to split, rows of the same number belong together.
        by_id = ids and (not entry.every_split or len({frozenset(one) for one in ids}) == 1)
        for i, (split, rows) in enumerate(splits.items()):
            units = map(str, ids[i]) if by_id else (f"{config}/{number}" for number in range(len(rows)))
            asked = [value.endswith(entry.where[1]) for value in rows[entry.where[0]]] if entry.where else None
            places += [dict(config=config, split=split, rows=rows, number=number, scored_with=unit)
                       for number, unit in enumerate(units) if asked is None or asked[number]]  # fmt: skip
    units = list(dict.fromkeys(place["scored_with"] for place in places))
    n = max(1, limit * len(units) // len(places)) if limit and limit < len(places) else len(units)
    kept = {units[i * len(units) // n] for i in range(n)}
    return [place for place in places if place["scored_with"] in kept]


def media_of(entry: Benchmark, row: dict, folder: Path, frames: int) -> tuple[tuple, str, dict]:
    """(images, what introduces a video, {k of the marker <image k>: what the text calls its picture})."""
    images, intro, names = (), "", {}
    if entry.video:
        hint = entry.configs[row["config"]] if isinstance(entry.configs, dict) else ""
        if not (file := find_file(folder, row[entry.video], hint)):
            raise DataError(f"expected the video {row[entry.video]} in {folder}, unpacked or in a zip, found none")
        images, times = sample(file, frames, row.get("start"), row.get("end"))
        intro = f"The images are {len(images)} frames of a video, evenly spaced in time.\n"
        if entry.subtitles:
            shown = subtitles(find_file(folder, row[entry.video], srt=True), times)
            intro += f"The subtitles of these frames:\n{shown}\n\n"
    for column in entry.images:
        if row.get(column) not in (None, ""):
            images += (picture(row["rows"], row["number"], column, folder),)
            name = "the image after the frames" if entry.video else f"image {len(images)}"
            names[re.sub(r"\D", "", column) or "1"] = f"[{name}]"
    if not images and entry.family == "vlm" and entry.name != "mmvet":
        raise DataError(f"expected an image in {' or '.join(entry.images)}, found none")
    return images, intro, names


def item_of(entry: Benchmark, uid: str, row: dict, images: tuple, intro: str, names: dict) -> Item:
    """One question. row: with what `prepare` made. images, intro, names: see media_of."""

    def named(text: str) -> str:
        return MARKER.sub(lambda match: names[expect(match[1] or "1", names)], text) if names else text

    question = re.sub(entry.strip, "", str(row.get(entry.question) or "")).strip()
    judge_question = row.get(entry.judge_question)
    cells = [row[name] for name in entry.options]
    cell = cells[0] if len(cells) == 1 else cells or None
    options = [named(text) for text in option_texts(cell, entry.drawn, "" if entry.options else judge_question or question)]
    if entry.kind:
        column, with_options, *without = entry.kind
        options = options if expect(row[column], (with_options, *without)) == with_options else []
    gold = row[entry.answers[0 if options else -1]]
    if gold in (None, "", []):
        raise DataError(f"expected an answer, found {gold!r}")
    if entry.shuffled:
        random.Random(seed_of(uid)).shuffle(options)
    accepted = gold if isinstance(gold, list) else [gold]
    golds = gold_numbers(entry.encoding, accepted, options) if options else tuple(map(str, accepted))
    text = named(AROUND.sub("", question))  # the images come first anyway
    text = (clean_text(text, 1) if entry.clean else text) or IN_PICTURE
    if question and entry.options and any(options):
        text = "\n".join([text, *lettered(options)])
    answer = ", ".join(LETTERS[gold] for gold in golds) if options else golds[0]
    kept = {name: row[name] for name in (*entry.needs, "rubric") if name in row}
    groups = {name: value for name, value in names_in(row).items() if name in entry.groups and value is not None}
    text = intro + text
    return Item(uid, text, images, answer, benchmark=entry.name, options=tuple(options), judge_question=judge_question or text, golds=golds,
                turns=row.get("turns", ()), scored_with=row["scored_with"], row=kept, groups=groups)  # fmt: skip


def load(entry: Benchmark, folder: Path, prompts: dict, frames: int = 32, limit: int | None = None) -> list[Item]:
    """The questions of a benchmark from the folder of its set. prompts: configs/judges.toml. Raises DataError."""
    items, uid = [], entry.name
    try:
        for place in places_of(entry, folder, limit):
            split, number = place["split"] if entry.every_split else "", str(place["number"])
            uid = "/".join(filter(None, (entry.name, place["config"], split, number)))
            row = place["rows"][place["number"]] | place
            media = media_of(entry, row, folder, frames)
            parts = PREPARE[entry.prepare](row, prompts) if entry.prepare else [{}]
            items += [item_of(entry, uid + (f".{i}" if i else ""), row | part, *media) for i, part in enumerate(parts)]
    except (ValueError, OSError, LookupError, TypeError, AttributeError) as error:  # DataError is a ValueError
        withheld = f" ({entry.withheld})" if entry.withheld else ""
        raise DataError(f"{uid}: {error}{withheld}") from error
    return items
