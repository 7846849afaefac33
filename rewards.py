"""Rewards: a math-aware grader for short answers and an LLM judge for free-form ones.

`grade` is the reward of training and evaluation: the last \\boxed{...} against a short gold answer,
then once more without percent and degree marks (ZPPO, arXiv 2606.18216, App. D.1). Decisions and
deviations:

1. The last balanced \\boxed{...} counts wherever it stands; \\fbox{...} was not asked for.
2. The judge sees the boxed answer if there is one, else the whole response. The paper allows both.
3. Inserted text is data. Where a line of the text begins with a heading of the judge's template,
   the signs of the heading are escaped: `## Question` becomes `\\#\\# Question`. The name of a
   special token is broken: `<|im_end|>` becomes `< |im_end|>`. Think tags stay: the template speaks
   of them.
4. A verdict is exactly the JSON object {"verdict": "correct"} or {"verdict": "wrong"}. Anything
   else is wrong.
5. The second pass is not for answers with another unit: 5% is neither $5 nor 5 degrees.
6. The comparison is stricter than the paper's: a number has to be written as a number, and 7 + 2 is
   wrong where the gold is 9 (engine/answers.py, decision 13).
7. Yes is right where the gold is True, and No where it is False: sets hold such golds as booleans.
"""

import json
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from engine.answers import MAX_CHARS, answers_match, clean, split_unit
from engine.cleaning import extract_boxed

JUDGE_TEMPERATURE = 0.0
JUDGE_MAX_NEW_TOKENS = 512
YES_NO = re.compile(r"(?i)(?:\\\w+\{)?\s*(yes|no)[\s.!}]*")
# Possessive spaces (\s*+) keep the work linear.
MARKS = re.compile(
    r"\\?%|[°º]|\^\s*+\{?\s*+\\circ\b(?:\s*+\})?|\\degrees?\b|\b(?:percent|degrees?)\b"
)


def grade(response: str, gold: str) -> float:
    """1.0 if the last box of a response holds the gold answer, else 0.0. Never raises."""
    answer = extract_boxed(response)
    if answer is None or not isinstance(gold, str):
        return 0.0
    yes_or_no = YES_NO.fullmatch(answer)
    if yes_or_no and gold in ("True", "False"):  # decision 7
        answer = str(yes_or_no[1].lower() == "yes")
    if answers_match(answer, gold):
        return 1.0
    return float(same_but_marks(answer, gold))


def same_but_marks(answer: str, gold: str) -> bool:
    """The second pass: 50 for a gold of 50%, but neither 50 cm nor 50 degrees (decision 5)."""
    if max(len(answer), len(gold)) > MAX_CHARS:
        return False
    bare_answer, bare_gold = MARKS.sub("", answer), MARKS.sub("", gold)
    if (bare_answer, bare_gold) == (answer, gold):
        return False
    units = {mark_or_unit(answer), mark_or_unit(gold)} - {""}
    return len(units) == 1 and answers_match(bare_answer, bare_gold)


def mark_or_unit(text: str) -> str:
    """What an answer counts in: "percent" or "degree" by a mark, or its unit, or ""."""
    mark = MARKS.search(text)
    if mark:
        return "percent" if mark[0][-1] in "%t" else "degree"
    unit = split_unit(clean(text))[1]
    return str(unit or "")


# ------------------------------------------------------------------------------------------------
# The judge, for golds that are no short answer (derivations, transcriptions, open questions)

# Fig. 9: one template for training and evaluation.
JUDGE = """You are an expert judge evaluating whether a model's response is correct according to \
the ground truth.

## Your Role (READ FIRST)
You are a COMPARATOR, not a solver. Your ONLY job is to decide how well the model's response \
matches the provided GROUND TRUTH.
- Do NOT attempt to solve the problem yourself.
- Do NOT infer or derive what the "real" answer should be.
- Do NOT second-guess the ground truth, even if it seems wrong.
- The "Model Response" section below MAY be either (a) the model's full trajectory including any \
<think>...</think> reasoning and a concluding \\boxed{...} answer, OR (b) a short EXTRACTED \
snippet that was already pulled out as the candidate final answer (e.g. a bare letter like B, a \
number like 42, an expression like x = 5/3). Treat both forms uniformly: the snippet (when given) \
IS the model's committed final answer, and a full trajectory's final answer is the content inside \
the last \\boxed{...} or the concluding sentence AFTER any </think> tag.
- If the final answer is missing due to answer format error, truncation, or other reasons, look \
inside thinking or reasoning.
- You should OUTPUT JSON with the format {"verdict": "correct" or "wrong"} based on the model's \
response and the ground truth.

## Question
{{ question }}

## Answer Options
{{ options }}

## Model Response
{{ model_response }}

## Ground Truth Answer
{{ ground_truth }}

Output ONLY a valid JSON object with exactly this format (no prose, no code fences, no trailing \
commentary): {"verdict": "correct" or "wrong"}"""
OPTIONS_SECTION = "## Answer Options\n{{ options }}\n\n"
HEADING = re.compile(
    r"(?i)[ \t]*##[ \t]*"
    r"(?:Your Role|Question|Answer Options|Model Response|Ground Truth Answer)"
)
SPECIAL_TOKEN = re.compile(r"<(?=([|｜])[^\s<>|｜]+\1>)")


def as_data(text: str | None) -> str:
    """Text that can neither open a section of the judge's template nor end its turn.

    Other text stays as it is.
    """
    if text is None:
        return ""
    # splitlines: a heading can follow a carriage return or another sign that ends a line.
    lines = str(text).strip().splitlines(keepends=True)
    for k, line in enumerate(lines):
        if HEADING.match(line):
            lines[k] = line.replace("##", r"\#\#", 1)
    return SPECIAL_TOKEN.sub("< ", "".join(lines))


def judge_prompt(
    question: str, response: str, gold: str, options: str | Sequence[str] | None = None
) -> str:
    """Prompt that asks whether a response agrees with a free-form gold answer (Fig. 9).

    options: one text, or one text each; without options their section is left out. None stands for
    no text.
    """
    if options is not None and not isinstance(options, str):
        options = "\n".join(map(str, options))
    answer = extract_boxed(response)
    texts = {"question": question, "options": options, "ground_truth": gold}
    texts["model_response"] = response if answer is None else answer
    texts = {name: as_data(text) for name, text in texts.items()}
    template = JUDGE if texts["options"] else JUDGE.replace(OPTIONS_SECTION, "")
    # One pass over the template: a placeholder inside an inserted text is text.
    return re.sub(r"\{\{ (\w+) \}\}", lambda match: texts[match[1]], template)


def parse_verdict(text: str) -> bool:
    """True for the JSON object {"verdict": "correct"}, False for all else that the judge says."""
    try:
        return json.loads(text, object_pairs_hook=list) == [("verdict", "correct")]
    except (TypeError, ValueError, RecursionError):
        return False


def judge(items: list, ask: Callable[[list[str]], list[str]] | None) -> list[float]:
    """Rewards of (question, response, gold, options or None) items, 1.0 or 0.0 each.

    ask: gives one text for each prompt of a list, sampled with JUDGE_TEMPERATURE and
    JUDGE_MAX_NEW_TOKENS. It is called once, or not at all if there are no items. Raises ValueError
    without `ask` where there are items, and for another number of texts than prompts.
    """
    prompts = [judge_prompt(*item) for item in items]
    if not prompts:
        return []
    if ask is None:
        raise ValueError(
            f"{len(prompts)} answers have a free-form gold and need a judge: "
            "give `ask`, a model to ask"
        )
    texts = ask(prompts)
    if len(texts) != len(prompts):
        raise ValueError(
            f"the judge was asked {len(prompts)} questions and gave {len(texts)} answers"
        )
    return [float(parse_verdict(text)) for text in texts]


# ------------------------------------------------------------------------------------------------
# All responses of a step: the rule, the judge, or a reward of your own


class Response(NamedTuple):
    """A response to score. Plain tuples in this order do as well."""

    question: str
    text: str
    gold: str
    free_form: bool  # the gold is no short answer: the judge decides
    options: str | Sequence[str] | None = None  # shown to the judge
    row: Callable[[], dict] = dict  # reads the columns of its row, for a reward of your own


def score(
    items: list[Response], ask: Callable | None = None, reward: Callable | None = None
) -> list[float]:
    """Rewards of responses: `grade`, or the judge where the gold is free-form.

    ask: see `judge`. reward: takes the place of both (extras/own_reward.py).
    """
    responses = [Response(*item) for item in items]
    if reward:
        return reward(responses)
    free_form = [(*one[:3], one.options) for one in responses if one.free_form]
    # All at once: the teacher answers a batch of prompts in parallel.
    verdicts = iter(judge(free_form, ask))
    rewards = []
    for one in responses:
        rewards.append(next(verdicts) if one.free_form else grade(one.text, one.gold))
    return rewards
