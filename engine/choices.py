"""A final answer against the options of a multiple-choice question: letters, texts, or both.

Decision: only a clear choice counts. Clear are exactly one option, several options, and a letter that no option has.
What is ambiguous is None: "2" among options that are no numbers, a letter whose text is another option's, an answer
that fits two options. So a wrong choice is never taken for a right one.
"""

import re
from collections.abc import Sequence

from engine.answers import answers_match

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
WRAPPED = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\s*\{([^{}]*)\}")
OPENING = r"(?i)^(the )?((correct|right|final) )*(answer|option|choice)s?\b( is| are)?[\s:]*"


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


def distance(a: str, b: str) -> int:
    """Levenshtein's: the fewest insertions, deletions and changes of a sign that make b of a."""
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        last, row[0] = row[0], i
        for j, right in enumerate(b, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (left != right))
    return row[-1]
