"""Rows of a benchmark's snapshot in; questions with their options, golds, images and frames out.

Decisions:
1. A row that is not as suite/benchmarks.yaml says is left out, named and counted: a wrong guess
   would be a wrong number. Where a column is missing, or more than 2% of the rows are like this,
   the set is refused. Another number of rows than published is no error; the table shows both.
2. Options are listed under the question as "A. text", or as letters alone where their texts are not
   known; not where the question has them, or is itself in the picture.
3. GPQA's options are shuffled by a seed of their own row: one order for every model and --seed.
4. What MathVista, CharXiv and DynaMath score by (precision, unit, words of the chart) is asked for
   in a sentence of ours. So is what Video-MMMU says of a video: its last frame may show a quiz.
5. A row's uid is its set, config, split and number.
6. Where a row has one picture, every marker of an image means it. Options that are only the letters
   A, B, ... or that picture have no known text: a gold among them is a letter.
7. MMLU-Redux: where the right answer "depends on interpretation", any letter counts.
"""

import ast
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import datasets

from engine.cleaning import clean_text
from engine.questions import DataError, Question, names_in
from generate import seed_of
from suite.entries import (
    BLIND_TASKS,
    OCR_CAPABILITIES,
    Benchmark,
    config_names,
    read_splits,
)
from suite.media import find_file, picture, sample, subtitles

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
IN_PICTURE = "Answer the question in the picture."
MARKER = re.compile(r"<image[ _]?(\d*)>")
UNREADABLE = 0.02  # of a set's rows: with more the set is refused (decision 1)
AROUND = re.compile(r"^(\s*<image[ _]?\d*>)+\s*|\s*(<image[ _]?\d*>\s*)+$")


@dataclass(frozen=True)
class Item(Question):
    """A question of a benchmark."""

    benchmark: str = ""
    # Their texts, "" where only the picture or the question shows one.
    options: tuple[str, ...] = ()
    judge_question: str = ""  # the question as a judge should see it
    golds: tuple = ()  # what is accepted: numbers (0-based) of options, or strings
    scored_with: str = ""  # the same for questions that are scored together
    # What the scorer reads of the row, and {name: value or list of values} of its categories.
    row: dict = field(default_factory=dict, compare=False, repr=False)
    groups: dict = field(default_factory=dict, compare=False, repr=False)


class Media(NamedTuple):
    """What is seen with a question."""

    images: tuple
    intro: str  # what introduces a video
    # {k of the marker <image k>, "" where there is one picture: what the text calls it}
    names: dict


def load(
    entry: Benchmark,
    folder: Path,
    prompts: dict,
    frames: int = 32,
    limit: int | None = None,
) -> tuple[list[Item], list[str]]:
    """(the questions of a benchmark, a sentence for each row that cannot be read).

    folder: of its set. prompts: configs/judges.toml. frames: of a video. limit: see places_of.
    Raises DataError.
    """
    items = []
    problems = []
    withheld = f" ({entry.withheld})" if entry.withheld else ""
    try:
        places = places_of(entry, folder, limit)
    except Exception as error:  # the formats have errors of their own
        raise DataError(f"{entry.name}: {error}{withheld}") from error
    for place in places:
        split = place["split"] if entry.every_split else ""
        words = (entry.name, place["config"], split, str(place["number"]))
        uid = "/".join(filter(None, words))  # decision 5
        row = place["rows"][place["number"]] | place
        try:
            media = media_of(entry, row, folder, frames)
            parts = PREPARE[entry.prepare](row, prompts) if entry.prepare else [{}]
            asked = []  # CharXiv's rows have five questions
            for i, part in enumerate(parts):
                suffix = f".{i}" if i else ""
                asked.append(item_of(entry, uid + suffix, row | part, media))
            items += asked
        # Decision 1: a DataError, or whatever else a row of another form raises.
        except Exception as error:
            problems.append(f"{uid}: {error}")
        if len(problems) > UNREADABLE * len(places):
            rest = f"more than {UNREADABLE:.0%} of {len(places)} rows cannot be read"
            raise DataError(f"{problems[0]}{withheld}; {rest}")
    return items, problems


def expect(value, known):
    """The value, if it is one of the known ones. Raises DataError."""
    if value not in known:
        raise DataError(f"expected one of {list(known)}, found {value!r}")
    return value


# ---- where the rows are --------------------------------------------------------------------------


def places_of(entry: Benchmark, folder: Path, limit: int | None) -> list[dict]:
    """Where the rows to ask are: config, split, rows, number, scored_with.

    Rows that are scored together have one value of scored_with, and stay together under a limit.
    limit: about so many rows, evenly spaced over the set.
    """
    places = []
    configs = config_names(folder) if "*" in entry.configs else entry.configs
    for config in configs:
        splits = read_splits(folder, config, entry.splits, entry.every_split)
        splits = {split: check_columns(entry, config, rows) for split, rows in splits.items()}
        units = units_of(entry, config, splits)
        for split, rows in splits.items():
            shared = dict(config=config, split=split, rows=rows)
            for number in asked_rows(entry, rows):
                unit = units[split][number]
                places.append(shared | {"number": number, "scored_with": unit})
    if not limit or limit >= len(places):
        return places
    units = list(dict.fromkeys(place["scored_with"] for place in places))
    n = max(1, limit * len(units) // len(places))
    kept = {units[i * len(units) // n] for i in range(n)}
    return [place for place in places if place["scored_with"] in kept]


def check_columns(entry: Benchmark, config: str, rows: datasets.Dataset) -> datasets.Dataset:
    """The rows, with columns of another case renamed. Raises DataError if a column is missing."""
    needed = {entry.video, *entry.kind[:1]}
    needed.update(entry.answers, entry.options, entry.needs)
    if config != "vision":  # MMMU-Pro: there the question is in the picture
        needed.add(entry.question)
    needed.discard("")
    there = {name.casefold(): name for name in rows.column_names}
    if entry.video_alias in there:
        there.setdefault(entry.video, entry.video_alias)
    missing = sorted(name for name in needed if name.casefold() not in there)
    if missing:
        raise DataError(f"expected columns {missing}, found {rows.column_names}")
    others = needed.difference(rows.column_names)
    return rows.rename_columns({there[name.casefold()]: name for name in others})


def units_of(entry: Benchmark, config: str, splits: dict) -> dict:
    """{split: the scored_with of each row}."""
    if entry.together:
        ids = {split: list(map(str, rows[entry.together])) for split, rows in splits.items()}
        # Where ids differ from split to split, rows of the same number belong together.
        if len({frozenset(one) for one in ids.values()}) == 1:
            return ids
    return {split: [f"{config}/{i}" for i in range(len(rows))] for split, rows in splits.items()}


def asked_rows(entry: Benchmark, rows: datasets.Dataset) -> Sequence[int]:
    """The numbers of the rows that belong to this benchmark."""
    if not entry.where:
        return range(len(rows))
    column, ending = entry.where
    return [i for i, value in enumerate(rows[column]) if value.endswith(ending)]


# ---- a row's images, and its questions -----------------------------------------------------------


def media_of(entry: Benchmark, row: dict, folder: Path, frames: int) -> Media:
    """What is seen with a row's questions. Raises DataError where something is missing."""
    images = ()
    intro = ""
    names = {}
    if entry.video:
        images, intro = video_of(entry, row, folder, frames)
    for column in entry.images:
        if row.get(column) in (None, ""):
            continue
        images += (picture(row["rows"], row["number"], column, folder),)
        name = f"image {len(images)}"
        if entry.video:
            name = "the image after the frames"
            intro += "The image after the frames belongs to the question.\n"
        names[re.sub(r"\D", "", column)] = f"[{name}]"
    if not images and entry.family == "vlm" and entry.name != "mmvet":
        columns = " or ".join(entry.images)
        raise DataError(f"expected an image in {columns}, found none")
    return Media(images, intro, names)


def video_of(entry: Benchmark, row: dict, folder: Path, frames: int) -> tuple[tuple, str]:
    """(frames of a row's video, what introduces them: subtitles too, where the entry has them)."""
    name = row[entry.video]
    hint = entry.configs[row["config"]] if isinstance(entry.configs, dict) else ""
    file = find_file(folder, name, hint)
    if not file:
        place = f"in {folder}, unpacked or in a zip"
        raise DataError(f"expected the video {name} {place}, found none")
    images, times = sample(file, frames, row.get("start"), row.get("end"))
    intro = f"The images are {len(images)} frames of a video, evenly spaced in time.\n"
    if entry.subtitles:
        shown = subtitles(find_file(folder, name, srt=True), times)
        intro += f"The subtitles of these frames:\n{shown}\n\n"
    return images, intro


def item_of(entry: Benchmark, uid: str, row: dict, media: Media) -> Item:
    """One question. row: with what `prepare` made."""
    question = re.sub(entry.strip, "", str(row.get(entry.question) or "")).strip()
    if entry.adds:  # decision 4
        column, sentences = entry.adds
        question += sentences.get(row[column], "")
    judge_question = row.get(entry.judge_question)
    options = options_of(entry, row, judge_question or question, media.names)
    gold = row[entry.answers[0 if options else -1]]
    if gold in (None, "", []):
        raise DataError(f"expected an answer, found {gold!r}")
    if entry.shuffled:
        random.Random(seed_of(uid)).shuffle(options)  # decision 3
    accepted = gold if isinstance(gold, list) else [gold]
    if options:
        golds = gold_numbers(entry.encoding, accepted, options)
        answer = ", ".join(LETTERS[number] for number in golds)
    else:
        golds = tuple(map(str, accepted))
        answer = golds[0]
    text = media.intro + text_of(entry, question, options, media.names)
    kept = (*entry.needs, "rubric")
    values = names_in(row)
    return Item(
        uid,
        text,
        media.images,
        answer,
        turns=row.get("turns", ()),
        benchmark=entry.name,
        options=tuple(options),
        judge_question=judge_question or text,
        golds=golds,
        scored_with=row["scored_with"],
        row={name: row[name] for name in kept if name in row},
        groups={k: v for k, v in values.items() if k in entry.groups and v is not None},
    )


def text_of(entry: Benchmark, question: str, options: Sequence[str], names: dict) -> str:
    """The text of a question, with its options (decision 2)."""
    text = named(AROUND.sub("", question), names)  # the images come first anyway
    if entry.clean:
        text = clean_text(text, 1)
    text = text or IN_PICTURE
    if question and entry.options and options:
        letters = ", ".join(LETTERS[: len(options)])
        lines = lettered(options) or [f"Options: {letters}"]
        text = "\n".join([text, *lines])
    return text


def named(text: str, names: dict) -> str:
    """The text with the names of its pictures in the place of markers. Raises DataError."""

    def name_of(marker):
        return names.get("") or names[expect(marker[1] or "1", names)]  # decision 6

    return MARKER.sub(name_of, text) if names else text


# ---- options and golds ---------------------------------------------------------------------------


def options_of(entry: Benchmark, row: dict, question: str, names: dict) -> list[str]:
    """The texts of a row's options; [] without any. question: where they stand without columns."""
    if entry.kind:
        column, *kinds = entry.kind
        if expect(row[column], kinds) != kinds[0]:
            return []
    cells = [row[name] for name in entry.options]
    if len(cells) == 1:
        cells = cells[0]
    elif entry.drawn and not cells:
        cells = lines_with_letters(question)
    texts = [named(text, names) for text in option_texts(cells, entry.drawn)]
    letters = list(LETTERS[: len(texts)])
    if texts == letters or set(texts) == {names.get("")}:  # decision 6
        return [""] * len(texts)
    return texts


def option_texts(cell, drawn: int) -> list[str]:
    """The texts of options without their letters, "" where they are not known; [] without any.

    cell: a list, a Python list as a string, one string "A. x;B. y", a dict by letter, or None.
    Without texts there are `drawn` options of unknown texts.
    """
    if isinstance(cell, str) and cell.lstrip().startswith("["):
        cell = ast.literal_eval(cell.strip())
        if cell and isinstance(cell[0], list):  # one row of MMMU-Pro is one level deeper
            cell = cell[0]
    elif isinstance(cell, str):
        cell = split_at_letters(cell)
    elif isinstance(cell, dict):
        cell = [cell[letter] for letter in sorted(cell) if cell[letter]]
    texts = [str(text).strip() for text in cell or [""] * drawn]
    plain = []
    for letter, text in zip(LETTERS, texts):
        plain.append(re.sub(rf"^\(?{letter}[.:)]\s*", "", text))
    all_had_letters = all(one != text for one, text in zip(plain, texts, strict=True))
    return plain if all_had_letters else texts


def split_at_letters(text: str) -> list[str]:
    """The options of "A. x;B. y": cut before each next letter.

    A letter behind a semicolon goes first, because three rows of We-Math lack some semicolons.
    """
    options = []
    for letter in LETTERS[1:]:
        cut = re.search(rf";\s*(?={letter}\.)", text)
        cut = cut or re.search(rf"\s*(?={letter}\.\s*\S)", text)
        if not cut:
            break
        options.append(text[: cut.start()])
        text = text[cut.end() :]
    return [*options, text]


def lines_with_letters(question: str) -> list[str]:
    """The texts of lines "A: x", "B: y", ... of a question; [] where the letters have no order."""
    lines = re.findall(r"(?m)^\s*\(?([A-J])[:.)]\s*(.+?)\s*$", question)
    letters = "".join(letter for letter, _ in lines)
    return [text for _, text in lines] if LETTERS.startswith(letters) else []


def lettered(options: Sequence[str]) -> list[str]:
    """The line "A. text" of each option whose text is known."""
    return [f"{letter}. {text}" for letter, text in zip(LETTERS, options) if text]


def gold_numbers(encoding: str, golds: Sequence, options: Sequence[str]) -> tuple[int, ...]:
    """The numbers (0-based) of the right options. encoding: letter, index (0-based) or text.

    A gold that should be a letter may be letters, one a line, or the text of an option.
    Raises DataError where a gold is none of the options.
    """
    texts = [str(gold).strip() for gold in golds]
    letters = re.fullmatch(r"\(?[A-Z][).]?(\s*\n\s*\(?[A-Z][).]?)*", texts[0])
    if encoding == "index":
        numbers = [int(float(text)) for text in texts if re.fullmatch(r"\d+(\.0)?", text)]
    elif letters and (encoding == "letter" or not any(options)):
        numbers = [LETTERS.index(letter) for letter in re.findall("[A-Z]", texts[0])]
    else:
        numbers = [i for i, option in enumerate(options) if option == texts[0]][:1]
    if not numbers or max(numbers) >= len(options):
        expected = f"the {encoding} of one of the options {list(options)}"
        raise DataError(f"expected {expected}, found {list(golds)}")
    return tuple(numbers)


# ---- what no column says: (row, prompts) -> what replaces its columns, for each question ---------


def charxiv(row: dict, prompts: dict) -> list:
    """One reasoning question and four descriptive ones, whose texts are templates for a place."""
    question = row["reasoning_q"]
    answer = str(row["reasoning_a"])
    kind = expect(int(row["reasoning_a_type"]), (1, 2, 3, 4))
    decimals = len(answer.partition(".")[2])
    if kind == 4:  # decision 4
        form = f"with {decimals} decimals" if decimals else "as an integer"
        question += f" Give the answer {form}."
    asked = [("reasoning", kind, question, answer)]
    place = row["subplot_loc"] or "the current plot"
    if row["subplot_row"] and not row["subplot_loc"]:
        place = f"the subplot at row {row['subplot_row']} and column {row['subplot_col']}"
    for i in "1234":
        number = expect(int(row[f"descriptive_q{i}"]), range(1, 20))
        rubric, question = prompts["charxiv_questions"][number - 1]
        if number not in (18, 19):  # these two are about the whole figure
            question = f"For {place}, {question[0].lower()}{question[1:]}"
        asked.append(("descriptive", rubric, question, row[f"descriptive_a{i}"]))
    return [
        dict(
            half=half,
            rubric=f"{half}_{rubric}",
            reasoning_q=question,
            reasoning_a=answer,
        )
        for half, rubric, question, answer in asked
    ]


def mathvista(row: dict, prompts: dict) -> list:
    """Unit and precision in the question (decision 4)."""
    question = row["question"]
    if row["unit"]:
        question += f" (Unit: {row['unit']})"
    kind = expect(row["answer_type"], ("text", "integer", "float", "list"))
    if kind == "float" and row["precision"] is not None:
        question += f" Give the answer with {int(row['precision'])} decimals."
    return [{"question": question}]


def redux(row: dict, prompts: dict) -> list:
    """Corrected golds: another text for the gold option, another option, or several.

    Several come as a string such as "A and B".
    """
    error = row["error_type"]
    fix = row["correct_answer"]
    fix = "" if fix is None else str(fix).strip()
    choices = list(row["choices"])
    gold = row["answer"]
    if fix and error == "no_correct_answer":
        choices[int(gold)] = fix
    elif fix and error in ("wrong_groundtruth", "multiple_correct_answers"):
        found = re.findall(r"(?<![A-Za-z0-9])(?:\d+|[A-D])(?![A-Za-z0-9])", fix)
        gold = [LETTERS.index(one) if one in LETTERS else int(one) for one in found]
        if "depends on interpretation" in fix:  # decision 7
            gold = list(range(len(choices)))
        if not gold or (len(gold) > 1 and error == "wrong_groundtruth"):
            expected = "the number or letter of an option in correct_answer"
            raise DataError(f"expected {expected}, found {fix!r}")
    return [{"choices": choices, "answer": gold}]


def multichallenge(row: dict, prompts: dict) -> list:
    """The last turn is the question.

    A conversation comes as a list of turns, or as lists of roles and contents.
    """
    turns = row["conversation"]
    if isinstance(turns, dict):
        turns = zip(turns["role"], turns["content"], strict=True)
    else:
        turns = [(turn["role"], turn["content"]) for turn in turns]
    *before, (role, question) = turns
    expect(role, ("user",))
    expect(str(row["pass_criteria"]).upper(), ("YES", "NO"))
    return [{"conversation": question, "turns": tuple(before)}]


def blind(row: dict, prompts: dict) -> list:
    """The task, and its group: the two tasks about grids are one."""
    task = expect(row["task"].strip().casefold(), BLIND_TASKS)
    group = task.partition(" - ")[0] if "grid" in task else task
    return [{"task": task, "group": group}]


def capabilities(row: dict, prompts: dict) -> list:
    """OCRBench v2 by type, MM-Vet by a list in one string."""
    if "type" not in row:
        names = row["capability"].split(",")
        return [{"capability": [name.strip() for name in names]}]
    kind = row["type"].rpartition(" ")[0]  # without its language
    return [{"capability": OCR_CAPABILITIES[expect(kind, OCR_CAPABILITIES)]}]


FUNCTIONS = (charxiv, mathvista, redux, multichallenge, blind, capabilities)
PREPARE = {function.__name__: function for function in FUNCTIONS}
