"""Multiple choice: options and golds of a row, and a final answer against the options. Numbers, edit distances.

Decision: only a clear choice counts. Clear are exactly one option, several options, and a letter that no option has.
What is ambiguous is None: "2" among options that are no numbers, a letter whose text is another option's, an answer
that fits two options. So a wrong choice is never taken for a right one.
"""

import ast
import re
from collections.abc import Sequence

from engine.answers import answers_match
from engine.questions import DataError

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
WRAPPED = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\s*\{([^{}]*)\}")
OPENING = r"(?i)^(the )?((correct|right|final) )*(answer|option|choice)s?\b( is| are)?[\s:]*"


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


def letters_in(answer: str) -> set[int]:
    """Numbers of the options that an answer of nothing but letters names: "B", "(b)", "option B", "A and C", "AC"."""
    text = re.sub(OPENING, "", WRAPPED.sub(r"\1", answer).strip(" \n$*."))
    if re.fullmatch("[A-J]{2,5}", text):
        return {LETTERS.index(letter) for letter in text}
    parts = [part for part in re.split(r"[\s,;/&]+|\band\b|\bor\b", text) if part]
    found = [re.fullmatch(r"[(\[]?([A-Za-z])[)\].:]*", part) for part in parts]
    return {LETTERS.index(match[1].upper()) for match in found} if all(found) else set()


def same_text(answer: str, options: Sequence[str]) -> set[int]:
    """The options with this text; else the one option that means the same, if there is exactly one."""
    plain = [" ".join(text.casefold().split()) for text in (answer, *options)]
    if equal := {i for i, text in enumerate(plain[1:]) if text and text == plain[0]}:
        return equal
    alike = {i for i, option in enumerate(options) if option and answers_match(answer, option)}
    return alike if len(alike) == 1 else set()


def choose(answer: str, options: Sequence[str]) -> set[int] | None:
    """The options (0-based) that a final answer commits to; None if that is not clear. Never raises.

    A number behind the last option stands for a letter that no option has. options: texts, "" where not known.
    """
    answer = answer.strip()
    letters, texts = letters_in(answer), same_text(answer, options)
    if letters:
        if not texts or texts == letters:
            return letters
        return texts if len(letters) > 1 or max(letters) >= len(options) else None
    plain = re.sub(OPENING, "", WRAPPED.sub(r"\1", answer))
    if both := re.fullmatch(r"[(\[]?([A-Ja-j])[)\].:]+\s*(\S.*)", plain, re.DOTALL):  # "B. its text"
        letter, texts = LETTERS.index(both[1].upper()), texts or same_text(both[2].strip(), options)
        if not texts and letter < len(options) and not options[letter]:
            return {letter}
        return texts if texts == {letter} else None
    return texts if len(texts) == 1 else None


def number(text: str) -> float | None:
    """The value of a plain decimal number, with thousands separators, dollar or percent signs; else None."""
    text = WRAPPED.sub(r"\1", text).strip().strip("$%\\ ").replace(",", "")
    return float(text) if re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", text) else None


def distance(a: str, b: str) -> int:
    """Levenshtein's: the fewest insertions, deletions and changes of a sign that make b of a."""
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        last, row[0] = row[0], i
        for j, right in enumerate(b, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (left != right))
    return row[-1]
