"""From responses to rewards: a rule first, the judge for what it cannot settle, official judges.

Decisions where the paper is silent:
1. A rule sees only the final answer, the content of the last box. Without a box the judge is asked
   (the metrics of InfographicVQA and OCRBench v2 have no judge: they take the text behind the
   thoughts; VLMs-are-Blind asks for curly brackets: there they are a box).
2. A rule settles a number against a number, and a choice that is clear: exactly one option, several
   options, or a letter that no option has. A letter comes first: "B" is option B, also where
   another option's text is "B". Not clear are "2" among options that are no numbers, and an
   answer that fits two options. So a wrong choice is never taken for a right one.
3. Without a judge an unsettled answer counts as wrong; beside the score stands the one without it.
4. The official judges are asked in words of ours (configs/judges.toml), which a file with the
   published ones replaces. A reply that does not keep to its form counts as wrong and is counted.
   HLE's own judge also asks for a confidence, for a calibration error; ours does not.
5. MathVista takes the nearest choice only where there is a final answer. DynaMath's substring rule
   needs a text, and is not for a number against another number.
"""

import json
import math
import re
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.answers import answers_match
from engine.questions import DataError
from rewards import extract_boxed, grade, judge_prompt, parse_verdict
from suite.entries import BLIND_TASKS, BY_NAME
from suite.rows import LETTERS, Item, lettered

WRAPPED = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\s*\{([^{}]*)\}")
OPENING = r"(?i)^(the )?((correct|right|final) )*(answer|option|choice)s?\b( is| are)?[\s:]*"


@dataclass
class Score:
    reward: float | None  # None: a judge is needed
    # rule, judge, official judge, unsettled (no judge) or unreadable (the judge)
    method: str
    why: str = ""  # a judge was needed


def score(asked: Sequence[tuple[Item, str]], ask: Callable | None, prompts: dict) -> list[Score]:
    """The score of each (item, response).

    ask: texts for prompts, from the judge; None without one. prompts: configs/judges.toml.
    Raises DataError where an official judge needs `ask`.
    """
    scores = [by_rule(item, response) for item, response in asked]
    texts = {}
    for i, (item, response) in enumerate(asked):
        if scores[i].method == "official judge":
            texts[i] = official_prompt(item, response, prompts)
        elif scores[i].method == "judge":  # the shared one (Fig. 9)
            options = lettered(item.options)
            texts[i] = judge_prompt(item.judge_question, response, item.answer, options)
    if ask is None:
        return without_judge(scores)
    replies = ask([*texts.values()]) if texts else []
    for i, reply in zip(texts, replies, strict=True):
        if scores[i].method == "judge":
            scores[i].reward = float(parse_verdict(reply))
        else:
            scores[i] = read_official(asked[i][0], reply)
    return scores


def without_judge(scores: Sequence[Score]) -> Sequence[Score]:
    """The scores where there is no judge to ask (decision 3)."""
    for one in scores:
        if one.method == "official judge":
            fix = "give one (--judge), or leave their sets out"
            raise DataError(f"these questions need a judge: {fix}")
        if one.method == "judge":
            one.reward = 0.0
            one.method = "unsettled"
    return scores


def by_rule(item: Item, response: str) -> Score:
    """What can be settled without a judge.

    Reward None and method "judge" or "official judge" where a judge is needed.
    """
    scorer = BY_NAME[item.benchmark].scorer
    answer = extract_boxed(response)  # decision 1: the final answer alone
    if answer is None and scorer == "blind":
        # "{5}", or "rows={3} columns={4}"
        found = re.findall(r"\w*=?\{[^{}]*\}", behind_thoughts(response))
        answer = " ".join(found) or None
    if scorer in JUDGES:
        return Score(None, "official judge")
    if scorer in METRICS:
        given = behind_thoughts(response) if answer is None else answer
        return Score(METRICS[scorer](item, given), "rule")
    if answer is None:
        return Score(None, "judge", "no box")
    reward = RULES[scorer](item, answer)
    if reward is None:
        return Score(None, "judge", "not settled by the rule")
    return Score(reward, "rule")


def behind_thoughts(response: str) -> str:
    return response.rpartition("</think>")[2].strip()


# ---- rules: (item, final answer) -> 1.0, 0.0, a share, or None where they cannot settle it -------


def answer_rule(item: Item, answer: str) -> float | None:
    """A choice among options; else what the grader takes for equal, and two numbers that differ."""
    if item.options:
        chosen = choose(answer, item.options)
        if chosen is None:
            return None
        return float(len(chosen) == 1 and chosen <= set(item.golds))
    if any(grade(f"\\boxed{{{answer}}}", gold) for gold in item.golds):
        return 1.0
    numbers = [number(text) for text in (answer, *item.golds)]
    return None if None in numbers else 0.0


def dynamath(item: Item, answer: str) -> float | None:
    """A float, with a factor of pi or a unit, within 0.001; all else as a part of the gold."""
    settled = answer_rule(item, answer)
    if item.options or settled == 1:
        return settled
    (gold,) = item.golds
    if item.row["answer_type"] != "float":
        part = answer.strip().casefold()
        # Decision 5: a number against a number is settled.
        if settled is None and part and part in gold.casefold():
            return 1.0
        return settled
    alone = re.match(r"[+-]?[\d.,]*\d", answer)
    has_unit = alone and alone[0] != answer and answers_match(answer, alone[0])
    if has_unit:
        answer = alone[0]
    values = [number_with_pi(text) for text in (answer, gold)]
    if None in values:
        return None
    is_close = abs(values[0] - values[1]) <= 0.001
    if has_unit and not is_close:
        return None  # perhaps another unit: the judge
    return float(is_close)


def number_with_pi(text: str) -> float | None:
    """The value of "2.5", "2.5\\pi" or "pi"; else None."""
    parts = re.fullmatch(r"(.*?)\s*\*?\s*(\\pi|π|pi)?", text.strip(" $"))
    factor, pi = parts.groups()
    if not pi:
        return number(factor)
    value = number(factor or "1")
    return None if value is None else value * math.pi


def mathvista(item: Item, answer: str) -> float | None:
    """Its chain: letter or text of a choice, else the nearest one.

    Integers are cut, floats rounded to the row's precision.
    """
    settled = answer_rule(item, answer)
    if item.options:
        given = answer.casefold()
        far = [distance(given, option.casefold()) for option in item.options]
        nearest = min(far)
        if settled is None and far.count(nearest) == 1:  # decision 5
            return float(far.index(nearest) in item.golds)
        return settled
    (gold,) = item.golds
    kind = item.row["answer_type"]
    value = number(answer)
    if kind == "integer" and value is not None:
        return float(int(value) == int(float(gold)))
    if kind == "float" and value is not None:
        digits = item.row.get("precision")
        if digits is None:
            digits = len(gold.partition(".")[2])
        return same_rounded(answer, gold, int(digits))
    return 1.0 if settled or answer.strip() == gold.strip() else None


def blind(item: Item, answer: str) -> float | None:
    """By the form of the answer. A pair is rows, columns, or in the order of its words."""
    text = WRAPPED.sub(r"\1", answer).casefold()
    gold = item.golds[0].casefold()
    form = BLIND_TASKS[item.row["task"]]
    numbers = re.findall(r"\d+", text)
    if form == "number":
        return float(int(numbers[0]) == int(gold)) if len(numbers) == 1 else None
    if form == "pair":
        if len(numbers) != 2:
            return None
        if "row" in text and re.search("row|col", text)[0] == "col":
            numbers.reverse()
        return float(numbers == re.findall(r"\d+", gold))
    words = set(re.findall(r"\w+", text))
    if form == "yes/no":
        words &= {"yes", "no"}
    return float(words == {gold.strip("{} ")}) if len(words) == 1 else None


def videommmu(item: Item, answer: str) -> float | None:
    """Open answers: numbers rounded to two decimals, or the gold's words inside the answer."""
    settled = answer_rule(item, answer)
    if item.options or settled:
        return settled
    gold = item.golds[0]
    if number(gold) is not None:
        return same_rounded(answer, gold, 2)
    words = re.escape(gold.strip().casefold())
    return 1.0 if re.search(rf"(?<!\w){words}(?!\w)", answer.casefold()) else None


def anls(item: Item, answer: str) -> float:
    """1 - the least normalised edit distance to an accepted string, 0 below a half."""
    given = one_spelling(WRAPPED.sub(r"\1", answer))
    shares = []
    for text in item.golds:
        gold = one_spelling(WRAPPED.sub(r"\1", text))
        longest = max(len(given), len(gold), 1)
        shares.append(1 - distance(given, gold) / longest)
    share = max(shares)
    return share if share >= 0.5 else 0.0


def ocrbench(item: Item, answer: str) -> float:
    """OCRBench v2's own metric, from the installed lmms-eval (exam.py asks for the package)."""
    from lmms_eval.tasks.ocrbench_v2.utils import ocrbench_v2_process_results

    row = item.row | {"question": item.text, "answers": list(item.golds)}
    result = ocrbench_v2_process_results(row, [answer])
    return float(result["ocrbench_v2_accuracy"]["score"])


RULES = {
    "answer": answer_rule,
    "dynamath": dynamath,
    "mathvista": mathvista,
    "blind": blind,
    "videommmu": videommmu,
}
METRICS = {"anls": anls, "ocrbench": ocrbench}  # no judge behind them


# ---- an answer against options, numbers, edit distances ------------------------------------------


def choose(answer: str, options: Sequence[str]) -> set[int] | None:
    """The options (0-based) that a final answer commits to; None if that is not clear (decision 2).

    A number behind the last option stands for a letter that no option has.
    options: texts, "" where not known. Never raises.
    """
    answer = answer.strip()
    letters = letters_in(answer)
    if len(letters) == 1 and max(letters) < len(options):
        return letters  # decision 2: the letter comes first
    plain = re.sub(OPENING, "", WRAPPED.sub(r"\1", answer))
    both = re.fullmatch(r"[(\[]?([A-Ja-j])[)\].:]+\s*(\S.*)", plain, re.DOTALL)
    if both:  # "B. its text"
        letter = LETTERS.index(both[1].upper())
        behind = same_text(both[2].strip(), options)
        if behind == {letter}:
            return behind
    if letters:
        return equal_text(answer, options) or letters
    texts = same_text(answer, options)
    if not both:
        return texts if len(texts) == 1 else None
    is_drawn = letter < len(options) and not options[letter] and not behind
    return {letter} if texts == {letter} or (is_drawn and not texts) else None


def letters_in(answer: str) -> set[int]:
    """Numbers of the options that an answer of nothing but letters names.

    "B", "(b)", "option B", "A and C", "AC".
    """
    plain = WRAPPED.sub(r"\1", answer).strip(" \n$*.")
    text = re.sub(OPENING, "", plain)
    parts = re.split(r"[\s,;/&]+|\band\b|\bor\b", text)
    if re.fullmatch("[A-J]{2,5}", text):
        parts = list(text)
    found = [re.fullmatch(r"[(\[]?([A-Za-z])[)\].:]*", part) for part in parts if part]
    return {LETTERS.index(match[1].upper()) for match in found} if all(found) else set()


def same_text(answer: str, options: Sequence[str]) -> set[int]:
    """The options with this text; else the one option that means the same, if exactly one does."""
    equal = equal_text(answer, options)
    if equal:
        return equal
    alike = set()
    for i, text in enumerate(options):
        if text and answers_match(answer, text):
            alike.add(i)
    return alike if len(alike) == 1 else set()


def equal_text(answer: str, options: Sequence[str]) -> set[int]:
    plain = one_spelling(answer)
    return {i for i, text in enumerate(options) if text and one_spelling(text) == plain}


def one_spelling(text: str) -> str:
    """The text in lower case, with single spaces."""
    return " ".join(text.casefold().split())


def number(text: str) -> float | None:
    """The value of a plain decimal number; else None.

    It may have thousands separators, dollar or percent signs.
    """
    text = WRAPPED.sub(r"\1", text).strip().strip("$%\\ ").replace(",", "")
    plain = re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", text)
    return float(text) if plain else None


def same_rounded(answer: str, gold: str, digits: int) -> float | None:
    """Are two numbers equal when they are rounded? None if one of them is no number."""
    numbers = [number(answer), number(gold)]
    if None in numbers:
        return None
    return float(round(numbers[0], digits) == round(numbers[1], digits))


def distance(a: str, b: str) -> int:
    """Levenshtein's: the fewest insertions, deletions and changes of a sign that make b of a."""
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        last = row[0]
        row[0] = i
        for j, right in enumerate(b, 1):
            changed = last + (left != right)
            last = row[j]
            row[j] = min(last + 1, row[j - 1] + 1, changed)
    return row[-1]


# ---- official judges (Figs. 10-15) ---------------------------------------------------------------

# Names of scorers, and of their benchmarks too.
JUDGES = ("charxiv", "mmvet", "hle", "multichallenge", "mmvu")
VERDICTS = {"correct": 1, "yes": 1, "true": 1, "wrong": 0, "no": 0, "false": 0}
PROMPTS = Path(__file__).parent.parent / "configs" / "judges.toml"


def read_prompts(path: str = "") -> dict:
    """The official judges' prompts: configs/judges.toml, those of another file in their place.

    Raises DataError.
    """
    read = tomllib.loads(PROMPTS.read_text("utf-8"))
    try:
        given = tomllib.loads(Path(path).read_text("utf-8")) if path else {}
    except ValueError as error:
        raise DataError(f"{path}: cannot be read as TOML: {error}") from error
    unknown = [k for k, value in given.items() if type(value) is not type(read.get(k))]
    if unknown:
        raise DataError(f"{path}: expected prompts called {sorted(read)}, found {unknown}")
    rubrics = read["rubrics"] | given.get("rubrics", {})
    return read | given | {"rubrics": rubrics}


def official_prompt(item: Item, response: str, prompts: dict) -> str:
    """The prompt of the benchmark's own judge; it sees what stands behind the thoughts."""
    name = item.benchmark
    if name == "mmvu":
        name += "_choice" if item.options else "_open"
    elif name == "charxiv":
        name += f"_{item.groups['half']}"
    values = {
        "question": item.row.get("target_question") or item.text,
        "options": "\n".join(lettered(item.options)),
        "response": behind_thoughts(response),
        "gold": item.answer,
        "rubric": prompts["rubrics"].get(item.row.get("rubric"), ""),
    }

    def inserted(placeholder):
        value = values.get(placeholder[1])
        # A closing tag inside an inserted text is text.
        return placeholder[0] if value is None else value.replace("</", "< /")

    # One pass: so is a placeholder.
    return re.sub(r"\{(\w+)\}", inserted, prompts[name])


def read_official(item: Item, reply: str) -> Score:
    """The score in the JSON of an official judge's reply (decision 4)."""
    try:
        said = json.loads(reply[reply.index("{") : reply.rindex("}") + 1])
        verdicts = [said[name] for name in ("score", "verdict", "correct") if name in said]
        verdict = str(verdicts[0]).casefold()
        reward = round(float(VERDICTS.get(verdict, verdicts[0])), 2)
        in_parts = item.benchmark == "mmvet" and 0 <= reward <= 1
        if not in_parts and reward not in (0, 1):
            raise ValueError(verdict)
    except (ValueError, TypeError, AttributeError, LookupError):
        return Score(0.0, "unreadable", f"the judge said {reply[:200]!r}")
    if item.benchmark == "multichallenge" and item.golds[0].upper() == "NO":
        reward = 1 - reward
    return Score(reward, "official judge")
