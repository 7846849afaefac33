"""What leaves a row before it is a question: image markers, format directives, a gold's working.

Decisions where the paper is silent (App. B.2 only says that format directives are stripped):
1. A sentence leaves only if it begins like the wish for a format, and each of its words belongs to
   such wishes. A model can answer a question beside a wish, but not half a question.
2. What changes the answer itself stays: "round to two decimals", "give the answer in cm", "answer
   yes or no".
3. If only options would be left, the question stays as it was.
4. The gold of a worked solution is what follows its closing "####", or else its last \\boxed{}.
5. A gold that lists several accepted strings is skipped: the reward knows one gold. Numbers in
   brackets stay text: "[0, 1]" is an interval or a point.

This file imports nothing from the rest of the project: copy what you need.
"""

import ast
import re

MAX_ANSWER_CHARS = 512  # App. B.1
FREE_FORM_WORDS = 3  # a gold with more words of natural language goes to the judge

MARKER = re.compile(
    r"<\|vision_start\|><\|image_pad\|><\|vision_end\|>|<\|image_pad\|>|<image[ _]?(\d*)>"
)
NOT_PROSE = re.compile(r"\$[^$]*\$|\\[a-zA-Z]+|\\\(.*?\\\)|\\\[.*?\\\]", re.DOTALL)
# Not behind the name of an option ("A.") nor behind "e.g.".
SENTENCE_GAP = re.compile(r"((?<=[.!?])(?<!^[A-J\d]\.)(?<!e\.g\.)\s+|\n+)", re.MULTILINE)
OPTION = re.compile(r"(?i)\W*(?:(?:answer )?(?:options|choices)\W*$|[A-J][.):])")

# ---------------------------------------------------------------- the words of wishes

VERBS = (
    "put place enclose write give provide present output return state box wrap mark show select "
    "choose pick answer respond reply report think reason solve use conduct perform"
).split()
VERB = f"(?:{'|'.join(VERBS)})"
BOX = r"\$*\\?\bboxed\b(?:\s*\{[^{}]*\})?\$*"
FORMAT = re.compile(  # what a wish is about; a sentence without any of these stays
    rf"(?i){BOX}|</?(?:answer|think)>|"
    r"\b(?:single|one)[ -](?:word|letter|number|phrase)\b|\bword or (?:short )?phrase\b|"
    r"\bletters?\b|\bstep[ -]by[ -]step\b|\bdirectly\b|\bat the end\b|\b(?:last|own) line\b|"
    r"\bjson\b|"
    r"\b(?:your|the) (?:reasoning|thinking)\b|\bin the following format\b|"
    r"\b(?:with|from|using) the (?:correct|given|right) (?:option|choice)s?\b"
)
FILLER = re.compile(  # what belongs to a wish in this form alone
    r"\b[A-J](?:(?:,| or|, or|/) ?[A-J]\b)+|\be\.g\.,? [A-J]\b|"
    r"\b[Ff]inal (?=answer|result|solution)|\b(?:options|choices) (?:above|below)\b|"
    rf"\bafter (?=\W?Answer)|\b[Ff](?:irst|IRST),? (?={VERB})"
)
WISH = re.compile(  # how a wish begins
    r"(?i)\W*(?:(?:hint|note|instructions?|important|format)\W+)?"
    r"(?:(?:please|and|now|then|finally|first|let|s|you|should|must|remember|make|sure|to|"
    r"directly|only)\W+)*"
    rf"{VERB}\b|"
    r"\W*(?:the|your|it)\b.*\b(?:must|should|needs?)\b"
)
ABOUT = re.compile(r"(?i)\b(?:answer|option|choice|respon|repl|reason|think|solve|solution)|boxed")
WISH_WORDS = set(VERBS) | set(
    "a about an the you your my its it this that these given provided listed following correct "
    "right best single one only just simply clearly answers answering question questions problem "
    "math mathematical option options choice choices solution response result reasoning process "
    "thinking internal monologue step steps word number phrase here user mind in into inside "
    "within between using with without from for of to on at by as and or then now finally before "
    "please let s lets me be is are must should need needs make sure remember enclosed boxed tag "
    "tags format form line own where no not do any other else nothing text explanation quotes "
    "hint note instruction instructions important e g abcd xxx".split()
)
# A wish at the end of a sentence that carries the question: only the clause goes.
CLAUSE = re.compile(
    rf"(?i),?\s?\b(?:and|then)\s(?:then\s)?{VERB}\s+(?:your|the)\s+(?:final\s+)?answer\s+"
    rf"(?:with)?in(?:side)?\s+(?:{BOX}|<answer>\s*</answer>(?:\s+tags)?)"
)

# ---------------------------------------------------------------- questions


def clean_text(text: str, images: int) -> str:
    """The question of a row with `images` images, without image markers and format directives. With
    several images, a marker inside a sentence becomes "[image k]": "compare <image> and <image>"
    stays readable."""
    text = text.replace("\r\n", "\n")
    if images <= 1:  # the space around a marker goes with it
        around = rf"(?m)^(?:{MARKER.pattern})\s*|[ \t]*(?:{MARKER.pattern})"
        return strip_directives(re.sub(around, "", text))
    numbers = MARKER.findall(text)
    question, *pieces = MARKER.split(text)[::2]  # split also gives the numbers
    for place, (number, piece) in enumerate(zip(numbers, pieces), 1):
        if question.strip():  # markers in front of the text go
            question += f"[image {number or place}]"
        question += piece
    return strip_directives(question)


def strip_directives(text: str) -> str:
    """The question without the sentences that ask for a reasoning or answer format (App. B.2)."""
    pieces = SENTENCE_GAP.split(text)  # sentence, gap, sentence, ..., sentence
    gaps = pieces[1::2] + [""]
    kept = []
    for sentence, gap in zip(pieces[::2], gaps):
        rest = CLAUSE.sub("", sentence)
        if not is_wish(sentence) and not is_wish(rest):
            kept += [rest, gap]
        elif kept and gap.count("\n") > kept[-1].count("\n"):
            kept[-1] = gap  # of the two gaps around the sentence, the one with more line ends stays
    question = "".join(kept).strip()
    lines = [line for line in question.split("\n") if line.strip()]
    if lines and all(OPTION.match(line) for line in lines):  # decision 3
        return text.strip()
    return question


def is_wish(sentence: str) -> bool:
    """True if the sentence asks for a reasoning or answer format and says nothing else (decisions
    1, 2)."""
    if "?" in sentence or not WISH.match(sentence) or not ABOUT.search(sentence):
        return False
    rest, found = FORMAT.subn(" ", FILLER.sub(" ", sentence))
    for word in re.findall(r"[^\W_]+", rest):
        if len(word) > 1:  # a lone capital is an option or a point, not the article
            word = word.lower()
        if word not in WISH_WORDS:
            return False
    return found > 0


# ---------------------------------------------------------------- golds


def clean_answer(value) -> tuple[str, str]:
    """(gold answer, "") or ("", reason to skip). Numbers become text; <answer> tags around the
    whole go. A list of strings, real or spelled out ("['cat', 'kitten']"), must hold one answer
    (decision 5)."""
    value = spelled_list(value)
    if isinstance(value, (list, tuple)):
        distinct = {str(item).strip().casefold(): item for item in value}
        if len(distinct) > 1:
            return "", "answer_is_a_list"
        value = next(iter(distinct.values()), None)
    if isinstance(value, (dict, bytes)):
        return "", "answer_is_not_text"
    if value is None or value != value:  # NaN is not equal to itself
        return "", "answer_missing"
    text = re.sub(r"(?s)\A<answer>(.*)</answer>\Z", r"\1", str(value).strip())
    text, _ = worked_answer(text.strip())
    if not text:
        return "", "answer_missing"
    if len(text) > MAX_ANSWER_CHARS:
        return "", "answer_too_long"
    return text, ""


def spelled_list(value, kinds: tuple = (str,)):
    """The list that a string spells out, if its items are of these kinds; else the string."""
    if not isinstance(value, str) or not value.strip().startswith("["):
        return value
    try:
        items = ast.literal_eval(value.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return value
    is_list = isinstance(items, list) and items
    return items if is_list and all(isinstance(item, kinds) for item in items) else value


def worked_answer(text: str) -> tuple[str, str]:
    """(short answer, "####" or "boxed") of a worked solution, else (text, "column"): decision 4."""
    if closing := re.search(r"####[ \t]*([^\n#]+)\s*\Z", text):
        return closing[1].strip(), "####"
    box = extract_boxed(text)
    return (box, "boxed") if box else (text, "column")


def extract_boxed(text: str) -> str | None:
    """Content of the last \\boxed{...} whose braces balance, stripped; None without one. Linear
    time.

    "Last" is by where the box opens: of two nested boxes the inner one. Escaped braces do not
    count.
    """
    if not isinstance(text, str):
        return None
    starts = []  # of each open brace: where its content begins if it is a box's, else -1
    last, content = -1, None
    for token in re.finditer(r"(\\boxed\s*)?\{|\\.|\}", text, re.DOTALL):
        if token[0] == "}":
            start = starts.pop() if starts else -1
            if start > last:
                last = start
                content = text[start : token.start()].strip()
        elif token[1]:
            starts.append(token.end())
        elif token[0] == "{":
            starts.append(-1)
    return content


def is_free_form(answer: str) -> bool:
    """True if the judge compares this gold (App. D.1: derivations, OCR, open VQA): several lines,
    or more than FREE_FORM_WORDS words outside mathematics. Letters, numbers, formulas, names go by
    rule."""
    words = re.findall(r"[^\W\d_]{2,}", NOT_PROSE.sub(" ", answer))
    return len(words) > FREE_FORM_WORDS or "\n" in answer.strip()
