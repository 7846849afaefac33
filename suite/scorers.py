"""From responses to rewards: a deterministic rule first, the judge for what the rule cannot settle, official judges.

Decisions where the paper is silent:
1. A rule sees only the final answer, the content of the last box. Without a box the judge is asked (the metrics of
   InfographicVQA and OCRBench v2, which have no judge, then take the text behind the thoughts).
2. A rule settles a number against a number, and a choice that is clear: exactly one option, several options, or a
   letter that no option has. Not clear are "2" among options that are no numbers, a letter whose text is another
   option's, an answer that fits two options. So a wrong choice is never taken for a right one.
3. Without a judge an unsettled answer counts as wrong, and the table says how many there are.
4. The official judges are asked in words of ours (configs/judges.toml), which a file with the published ones replaces.
   A reply that does not keep to its form counts as wrong and is counted.
5. MathVista takes the nearest choice only where there is a final answer; DynaMath's substring rule needs a text.
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
    reward: float | None  # None: a judge is needed, or the metric cannot be computed here
    method: str  # rule, judge, official judge, unsettled (no judge), unreadable (judge) or not scored
    why: str = ""  # a judge was needed


# ---- an answer against options, numbers, edit distances ------------------------------------------------------


def letters_in(answer: str) -> set[int]:
    """Numbers of the options that an answer of nothing but letters names: "B", "(b)", "option B", "A and C", "AC"."""
    text = re.sub(OPENING, "", WRAPPED.sub(r"\1", answer).strip(" \n$*."))
    parts = list(text) if re.fullmatch("[A-J]{2,5}", text) else re.split(r"[\s,;/&]+|\band\b|\bor\b", text)
    found = [re.fullmatch(r"[(\[]?([A-Za-z])[)\].:]*", part) for part in parts if part]
    return {LETTERS.index(match[1].upper()) for match in found} if all(found) else set()


def same_text(answer: str, options: Sequence[str]) -> set[int]:
    """The options with this text; else the one option that means the same, if there is exactly one."""
    plain, *texts = (" ".join(text.casefold().split()) for text in (answer, *options))
    if equal := {i for i, text in enumerate(texts) if text and text == plain}:
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


# ---- rules: (item, final answer) -> 1.0, 0.0, a share, or None where they cannot settle it ------------------


def answer_rule(item: Item, answer: str) -> float | None:
    if item.options:
        chosen = choose(answer, item.options)
        return None if chosen is None else float(len(chosen) == 1 and chosen <= set(item.golds))
    if any(grade(f"\\boxed{{{answer}}}", gold) for gold in item.golds):
        return 1.0
    return 0.0 if number(answer) is not None and all(number(gold) is not None for gold in item.golds) else None


def same_rounded(answer: str, gold: str, digits: int) -> float | None:
    """Are two numbers equal when they are rounded? None if one of them is no number."""
    numbers = number(answer), number(gold)
    return None if None in numbers else float(round(numbers[0], digits) == round(numbers[1], digits))


def dynamath(item: Item, answer: str) -> float | None:
    if item.options or answer_rule(item, answer) == 1:
        return answer_rule(item, answer)
    if item.row["answer_type"] == "text":
        return 1.0 if answer.strip() and answer.strip().casefold() in item.golds[0].casefold() else None
    values = []
    for text in (answer, item.golds[0]):  # "2.5", "2.5\\pi", "pi"
        factor, pi = re.fullmatch(r"(.*?)\s*\*?\s*(\\pi|π|pi)?", text.strip(" $")).groups()
        values.append(number(factor or "1" if pi else factor))
        values[-1] = values[-1] and values[-1] * (math.pi if pi else 1)
    return None if None in values else float(abs(values[0] - values[1]) <= 0.001)


def mathvista(item: Item, answer: str) -> float | None:
    """Its chain: letter or text of a choice, else the nearest one; integers are cut, floats rounded to `precision`."""
    settled = answer_rule(item, answer)
    if item.options:
        far = [distance(answer.casefold(), option.casefold()) for option in item.options]
        one_is_nearest = far.count(min(far)) == 1
        return float(far.index(min(far)) in item.golds) if settled is None and one_is_nearest else settled
    (gold,), kind, digits = item.golds, item.row["answer_type"], item.row.get("precision")
    if kind == "integer" and number(answer) is not None:
        return float(int(number(answer)) == int(float(gold)))
    if kind == "float" and number(answer) is not None:
        return same_rounded(answer, gold, len(gold.partition(".")[2]) if digits is None else int(digits))
    return 1.0 if settled or answer.strip() == gold.strip() else None


def blind(item: Item, answer: str) -> float | None:
    """By the form of the answer. A pair is rows, columns, or in the order of its words."""
    text, gold, form = WRAPPED.sub(r"\1", answer).casefold(), item.golds[0].casefold(), BLIND_TASKS[item.row["task"]]
    numbers, words = re.findall(r"\d+", text), set(re.findall(r"\w+", text))
    if form == "number":
        return float(int(numbers[0]) == int(gold)) if len(numbers) == 1 else None
    if form == "pair":
        turned = "col" in text and "row" in text and text.index("col") < text.index("row")
        return float(numbers[:: -1 if turned else 1] == re.findall(r"\d+", gold)) if len(numbers) == 2 else None
    words &= {"yes", "no"} if form == "yes/no" else words
    return float(words == {gold.strip("{} ")}) if len(words) == 1 else None


def videommmu(item: Item, answer: str) -> float | None:
    """Open answers: numbers rounded to two decimals, or the gold's words inside the answer."""
    settled, (gold, *_) = answer_rule(item, answer), item.golds
    if item.options or settled:
        return settled
    if number(gold) is not None:
        return same_rounded(answer, gold, 2)
    words = re.escape(gold.strip().casefold())
    return 1.0 if re.search(rf"(?<!\w){words}(?!\w)", answer.casefold()) else None


def anls(item: Item, answer: str) -> float:
    """1 - the least normalised edit distance to an accepted string, 0 below a half."""
    texts = [" ".join(WRAPPED.sub(r"\1", text).casefold().split()) for text in (answer, *item.golds)]
    share = max(1 - distance(texts[0], gold) / max(len(texts[0]), len(gold), 1) for gold in texts[1:])
    return share if share >= 0.5 else 0.0


def ocrbench(item: Item, answer: str) -> float | None:
    """OCRBench v2's own metric, from the installed lmms-eval; None without that package."""
    try:
        from lmms_eval.tasks.ocrbench_v2.utils import ocrbench_v2_process_results
    except ImportError:
        return None
    row = item.row | {"question": item.text, "answers": list(item.golds)}
    return float(ocrbench_v2_process_results(row, [answer])["ocrbench_v2_accuracy"]["score"])


RULES = {"answer": answer_rule, "dynamath": dynamath, "mathvista": mathvista, "blind": blind, "videommmu": videommmu}
METRICS = {"anls": anls, "ocrbench": ocrbench}  # no judge behind them


# ---- official judges (Figs. 10-15) -------------------------------------------------------------------------

JUDGES = ("charxiv", "mmvet", "hle", "multichallenge", "mmvu")  # scorers, and names of benchmarks too
VERDICTS = {"correct": 1, "yes": 1, "true": 1, "wrong": 0, "no": 0, "false": 0}
PROMPTS = Path(__file__).parent.parent / "configs" / "judges.toml"


def read_official(item: Item, reply: str) -> Score:
    """The score in the JSON of an official judge's reply."""
    try:
        said = json.loads(reply[reply.index("{") : reply.rindex("}") + 1])
        verdict = next(said[name] for name in ("score", "verdict", "correct") if name in said)
        reward = round(float(VERDICTS.get(str(verdict).casefold(), verdict)), 2)
        if not (0 <= reward <= 1 if item.benchmark == "mmvet" else reward in (0, 1)):
            raise ValueError(verdict)
    except (ValueError, TypeError, AttributeError, StopIteration):
        return Score(0.0, "unreadable", f"the judge said {reply[:200]!r}")
    wanted_no = item.benchmark == "multichallenge" and item.golds[0].upper() == "NO"
    return Score(1 - reward if wanted_no else reward, "official judge")


def official_prompt(item: Item, response: str, prompts: dict) -> str:
    """The prompt of the benchmark's own judge; it sees what stands behind the thoughts."""
    kinds = {"mmvu": "_choice" if item.options else "_open", "charxiv": f"_{item.groups.get('half')}"}
    prompt = prompts[item.benchmark + kinds.get(item.benchmark, "")]
    values = {"question": item.row.get("target_question") or item.text, "options": "\n".join(lettered(item.options)),
              "response": response.rpartition("</think>")[2].strip(), "gold": item.answer,
              "rubric": prompts["rubrics"].get(item.row.get("rubric"), "")}  # fmt: skip
    # One pass: a placeholder inside an inserted text is text, and so is a closing tag.
    return re.sub(r"\{(\w+)\}", lambda m: values[m[1]].replace("</", "< /") if m[1] in values else m[0], prompt)


def read_prompts(path: str = "") -> dict:
    """The official judges' prompts: configs/judges.toml, those of another file in their place. Raises DataError."""
    read, given = (tomllib.loads(Path(file).read_text("utf-8")) if file else {} for file in (PROMPTS, path))
    if unknown := sorted(set(given) - set(read)):
        raise DataError(f"{path}: expected prompts called {sorted(read)}, found {unknown}")
    return read | given | {"rubrics": read["rubrics"] | given.get("rubrics", {})}


# ---- all together ------------------------------------------------------------------------------------------


def by_rule(item: Item, response: str) -> Score:
    """What can be settled without a judge; reward None and method "judge" or "official judge" where one is needed."""
    scorer, answer = BY_NAME[item.benchmark].scorer, extract_boxed(response)
    if scorer in JUDGES:
        return Score(None, "official judge")
    if scorer in METRICS:
        reward = METRICS[scorer](item, response.rpartition("</think>")[2].strip() if answer is None else answer)
        return Score(None, "not scored", "pip install lmms-eval") if reward is None else Score(reward, "rule")
    reward = None if answer is None else RULES[scorer](item, answer)
    if reward is None:
        return Score(None, "judge", "no box" if answer is None else "not settled by the rule")
    return Score(reward, "rule")


def score(asked: Sequence[tuple[Item, str]], ask: Callable | None, prompts: dict) -> list[Score]:
    """The score of each (item, response). ask: texts for prompts, from the judge; None: no judge (decision 3).

    prompts: configs/judges.toml. Raises DataError where an official judge needs `ask`.
    """
    scores, texts = [by_rule(*one) for one in asked], {}
    for i, (item, response) in enumerate(asked):
        if scores[i].method == "official judge":
            texts[i] = official_prompt(item, response, prompts)
        elif scores[i].method == "judge":  # the shared one (Fig. 9)
            texts[i] = judge_prompt(item.judge_question, response, item.answer, lettered(item.options))
    if ask is None:
        if any(one.method == "official judge" for one in scores):
            raise DataError("these questions need a judge: give one (--judge), or leave their sets out")
        return [Score(0.0, "unsettled", one.why) if one.method == "judge" else one for one in scores]
    for i, reply in zip(texts, ask([*texts.values()]) if texts else [], strict=True):
        if scores[i].method == "judge":
            scores[i].reward = float(parse_verdict(reply))
        else:
            scores[i] = read_official(asked[i][0], reply)
    return scores
