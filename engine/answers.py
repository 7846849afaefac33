"""Comparison of two short answers: LaTeX, numbers, units, sets, intervals, words and options.

The reward of ZPPO (arXiv 2606.18216, App. D.1) calls mathruler here; we compare ourselves. An
expression is its values at sixteen fixed points: two expressions are equal if their values are.
This file imports nothing from the rest of the project: copy it. Five phases:

    1. spelling: `clean` gives one spelling to signs that mean the same
    2. words, options and units, which are no mathematics
    3. values: what an operation gives at the points
    4. parser: `read` makes a tree of values and shapes (lists, sets, tuples, relations)
    5. comparison: `same` compares two trees

Decisions and deviations:

 1. What is ambiguous is refused: a false positive trains a wrong model, a miss costs one reward.
 2. Nothing is run as code: the parser has fixed lists of commands and functions. Text that the
    parser cannot read is compared as text. sympy is not used, because its simplifier has no bound.
 3. Work is bounded by counting characters, names, nesting and steps, not by signals, threads or
    clocks: the answer is the same in every thread, on every machine. Beyond a bound only identical
    text is equal.
 4. Numbers are exact: 0.333 is not 1/3, 3.14 is not pi, 2/4 is 1/2; 0.333... is 1/3. Only a decimal
    of 10 digits or more stands for the number it is cut or rounded from. Expressions are equal if
    they differ by less than 1e-250 at the points where both are real: (sqrt x)^2 is x; sqrt(x^2) is
    |x|, not x. Variables are whole numbers at some points, and x! is defined only there.
 5. A percent mark divides by 100, a degree mark multiplies by pi/180.
 6. 1,000 is a number and "1, 000" is not. Inside brackets of any kind a comma always separates.
 7. Sets and lists without brackets have no order; tuples, intervals and matrices have one, and the
    brackets count: (1,2) is neither [1,2] nor {1,2} nor "1, 2". A set of one is its member.
 8. "x = 5" is 5, "x > 5" is (5, oo); "x+y = 5" is not 5, "x = 5" is not "y = 5". Other relations
    are equal if left minus right differs by a constant factor, positive for an inequality. If one
    of the two is solved for a number, the factor has to be 1: "2x = 10" is not "x = 5".
 9. One side may lack the unit or currency of the other. Two different units are refused, not
    converted: m/s is metre per second, but not 3.6 km/h. 5m and 6 s^2 are expressions, 25 m^2 is
    an area.
10. log without a base has an unknown one: log ab = log a + log b holds, log 100 = 2 and
    log x = ln x do not.
11. 101_2 is neither 101 nor 5; 2:3 is 2/3, but 2:4 is not 1:2; "5-10" and 2024-05-01 are text;
    2 3/2, x/2y and 1/xy are refused, while 1 1/2 is 1.5 and 1/2x is (1/2)x.
12. One letter is a variable, so b is not B; in the brackets of an option, (b), it is. Several
    options are a set: AC, "A, C" and "(A) and (C)" are one, and none of them is A. Words ignore
    case.
13. A number has to be written as a number: where the gold is 9, the answer 7 + 2, 3^2, sqrt(81) or
    18/2 is wrong. Digits with a sign, a mark, a power of ten, a unit, "x =" in front are right, and
    where the gold is no whole number a fraction of two numbers or a mixed number. The same holds
    for each number in a list, tuple or interval. The paper's grader takes all of them; a student
    learnt within eight steps to put the question's own expression into the box. Where the gold is
    an expression, every equal expression is right: a question that asks to simplify sqrt(8) stays
    open to this.
"""

import functools
import math
import random
import re
import threading
import unicodedata
from collections import Counter
from fractions import Fraction
from typing import NamedTuple

import mpmath

MAX_CHARS = 2000  # of an answer that is read as mathematics
MAX_DEPTH = 80  # of nested expressions
MAX_TERMS = 200  # names, powers, marks and factorials of an answer
MAX_WORK = 30_000  # steps of a comparison, each about 5 microseconds
MAX_EXPONENT = 1000  # of a number that is not exact
MAX_MAGNITUDE = 800  # of such a number: from 2^-800 to 2^800, about 1e-241 to 1e241
DIGITS = 500  # of such a number: rounding errors stay far below the tolerance
TOLERANCE = Fraction(1, 10**250)  # two such numbers that differ by less are equal
LOCK = threading.Lock()  # mpmath's functions change the precision of their context for a moment


def answers_match(given: str, gold: str) -> bool:
    """True if an answer means the same as the gold answer. Never raises; only strings match.

    Symmetric but for decision 13: the gold may be an expression where the answer is a number, not
    the other way round.
    """
    if not isinstance(given, str) or not isinstance(gold, str):
        return False
    given, gold = given.strip(), gold.strip()
    if given == gold:
        return given != ""
    if max(len(given), len(gold)) > MAX_CHARS:
        return given.split() == gold.split()
    if PLAIN_NUMBER.fullmatch(given) and PLAIN_NUMBER.fullmatch(gold):
        return Fraction(given.replace(",", "")) == Fraction(gold.replace(",", ""))
    given, gold = clean(given), clean(gold)
    given_options, gold_options = options(given), options(gold)
    if given_options and gold_options:
        (letters, text), (gold_letters, gold_text) = given_options, gold_options
        same_text = not text or not gold_text or answers_match(text, gold_text)
        return letters == gold_letters and same_text
    given, gold = without_numbers(given, gold), without_numbers(gold, given)
    if as_words(given) == as_words(gold):
        return given != ""
    try:
        with LOCK:
            MP.steps = 0
            (tree, unit), (gold_tree, gold_unit) = read(given), read(gold)
            same_unit = not unit or not gold_unit or unit == gold_unit
            return same_unit and same(tree, gold_tree)
    except (ArithmeticError, ValueError, RecursionError):
        return False


# ------------------------------------------------------------------------------------------------
# 1. Spelling: one for the many ways to write the same signs

PLAIN_NUMBER = re.compile(r"[+-]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|[+-]?\.\d+", re.ASCII)
GREEK = """alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho
sigma tau upsilon phi chi psi omega""".split()
# The first of each stands for the others. There _ is a space, so that names do not grow together.
# 3 ÷ 4 is 3*1/4, which is equal to 3/4 and yet not written as a number.
SPELLINGS = r"""
- − – — ‐ ‑ ‒; * × · ⋅ ∙ ∗ • \cdot \times \ast; / ⁄ ∕; *1/ ÷ \div; " “ ” „; ' ‘ ’ ′ \prime
; < \lt; > \gt; ≈ ≃ \approx; ≤ ≦ ⩽ \le \leq \leqslant; ≥ ≧ ⩾ \ge \geq \geqslant; ≠ \ne \neq
; ± \pm; ∓ \mp; ° º \degree \degrees; ∞ \infty; ∈ \in; ∪ \cup; ∩ \cap; ∖ \setminus \backslash
; \Omega_ Ω; ∅ \emptyset \varnothing; | \lvert \rvert \vert \mid; ⌊ \lfloor; ⌋ \rfloor
; ⌈ \lceil; ⌉ \rceil; ⟨ 〈 \langle; ⟩ 〉 \rangle; \{ \lbrace; \} \rbrace; [ \lbrack; ] \rbrack
; € \euro; £ \pounds; : \colon; ... \ldots \dots \cdots; \frac \dfrac \tfrac \cfrac
; \binom \dbinom \tbinom; \epsilon \varepsilon; \phi \varphi; \theta \vartheta
; \root{2} √; \root{3} ∛; \mathbb_R_ ℝ
; _and_ \land \wedge; _or_ \lor \vee
; _ \quad \qquad \hfill \rm \bf \it \vec \limits \displaystyle \textstyle"""
PLAIN = {sign: f"\\{name} " for sign, name in zip("αβγδεζηθικλμνξοπρστυφχψω", GREEK)}
for line in SPELLINGS.split(";"):
    first, *others = line.split()
    PLAIN |= dict.fromkeys(others, first.replace("_", " "))
SIGNS = {ord(sign): plain for sign, plain in PLAIN.items() if len(sign) == 1}

# A rule: its name, an example ⟹ what becomes of it, four spaces, its pattern ⟹ the replacement.
# ␣ is a space, ＄ a dollar that is money, ⏎ a new row, ␀ nothing, name() a function of the match.
RULES = r"""
# spaces, wrappers and signs with a backslash
new row: a\\b ⟹ a⏎b    \\\\(?: ?\[[\d.]+[a-z]{2}\])? ⟹ ⏎
money: \$5 ⟹ ＄5    \\\$ ⟹ ＄
escaped sign: 5\% ⟹ 5%    \\([%#&]) ⟹ \1
mathematics: \(x\) ⟹ ␣x␣    \\[()\[\]] ⟹ ␣
thousands: 12{,}345 ⟹ 12345    (?<=\d)(?:, ?\\! ?|\{,\}|\\[,;:! ])(?=\d{3}(?!\d)) ⟹ ␀
negative space: x\!y ⟹ xy    \\! ⟹ ␀
thin space: 5\,m ⟹ 5␣m    \\(?:[,;: ]|$)|(?<=.)~ ⟹ ␣
only dollar: $5 ⟹ ＄5    ^([^$]*)\$([^$]*)$ ⟹ \1＄\2
dollar: $x$ ⟹ ␣x␣    \$ ⟹ ␣
wrapper: 5\text{ cm} ⟹ 5␣ cm␣    \\(?:text(?:bf|it|rm|sf|tt|up|normal|sc)?|math(?:rm|bf|it|sf|tt)
    |[mh]box|emph|boldsymbol|bm|boxed|underline|operatorname\*?) *
    \{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\} ⟹ ␣\1␣
size: \left(x\right) ⟹ (x)    \\(?:left|right|middle|[bB]igg?[lrm]?)(?![A-Za-z]) *\.? ⟹ ␀
command: x\leq 5 ⟹ x≤ 5    \\[A-Za-z]+ ⟹ first_spelling()
spaces: x   y ⟹ x y    ␣+ ⟹ ␣
# what stands around the answer
outer braces: {Paris} ⟹ Paris    ^ ?\{(?!.*\\(?:over|choose)\b)
    ((?:[^{}]|\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\})*)\} ?$ ⟹ inside()
phrase: The answer is 5 ⟹ ␣5    (?i)^ ?(?:the )?(?:final )?answer(?: is|:)(?=[ :]) ⟹ ␀
outer space: ␣5: ⟹ 5    ^[ :]+|[ :]+$ ⟹ ␀
emphasis: **5** ⟹ 5    ^(\*{1,3}|[`\"_]{1,3})([^*`\"]+)\1$ ⟹ \2
long period: 0.333... ⟹ 0.\overline{3}    (\.(?=\d+ ?\.{3})\d*?)(?:(\d)\2{2,}|(\d{2,9})\3+) ?\.{3}
    ⟹ \1\\overline{\2\3}
outer sign: = 5. ⟹ 5    ^[=≈ ]+|(?<![.,; ])(?:[,; ]|\.(?!\.))+$ ⟹ ␀
# operators and relations
at most: x<=5 ⟹ x≤5    <= ⟹ ≤
at least: x>=5 ⟹ x≥5    >= ⟹ ≥
equal: x==5 ⟹ x=5    == ⟹ =
unequal: x != 5 ⟹ x≠ 5    ␣!= ⟹ ≠
power: x**2 ⟹ x^2    (?<=[\w)}]) ?\*\* ?(?=[\w({\\-]) ⟹ ^
comma and: 1, and 2 ⟹ 1, 2    ([,;]) ?(?:and|or)\b ⟹ \1
empty set: \{\} ⟹ ∅    \\\{ ?\\\} ⟹ ∅
member of one: x∈\{5\} ⟹ x=5    ∈ ?\\\{([^,;{}\\]*)\\\} ⟹ =\1
set builder: \{x|x>5\} ⟹ x>5    \\\{ ?[a-z] ?(?:∈ ?\\mathbb ?\{? ?R ?\}? ?)?[|:] ?
    (.*[<>≤≥≠=].*)\\\} ⟹ \1
index: x_12 ⟹ x_{12}    _ ?(\d+) ⟹ _{\1}
index of two: x_{±} ⟹ x    _ ?\{ ?(?:[±∓]|1 ?, ?2) ?\} ⟹ ␀
prime: f^{'} ⟹ f'    \^ ?(?:\{ ?('+) ?\}|(')) ⟹ \1\2
infinity: -oo ⟹ -∞    (?<![A-Za-z\\])(?:inf|infinity|oo)(?![A-Za-z]) ⟹ ∞
named point: P(-2,3) ⟹ P=(-2,3)    (?<![\w)}\\])([A-TV-Z]) ?
    (?=\( ?[-\d\\][^()]*,[^()]*\) ?(?:$|,|and)) ⟹ \1=
# the real numbers without some
without: \mathbb R - \{3\} ⟹ \mathbb R ∖\{3\}    (\\mathbb ?\{? ?R ?\}?) ?- ?(?=\\\{) ⟹ \1∖
all reals: (-∞,∞) ⟹ \mathbb R    \( ?- ?∞ ?, ?\+? ?∞ ?\) ⟹ \\mathbb R
real numbers: all real numbers except 3 ⟹ \mathbb R except 3    (?i)^(?:(?:the )?set of )?
    (?:(?:all|any|every) )?reals?(?: numbers?)?(?= (?:except|but)|$) ⟹ \\mathbb R
all except: \mathbb R except 3 ⟹ \mathbb R∖\{3\}    (?<=\\mathbb R) (?:except|but)(?: for| not)?
    (?: x ?=)? (.+) ⟹ ∖\\{\1\\}
real, not: x∈\mathbb R, x≠3 ⟹ x≠3    ^\w ?∈ ?\\mathbb ?\{? ?R ?\}? ?(?:,| and ) ?(?=\w ?≠) ⟹ ␀
not, turned: 2≠x ⟹ x≠2    ^((?:[^A-Za-z,≠]|\\[a-z]+)+)≠ ?([A-Za-z])$ ⟹ \2≠\1
not plus or minus: x≠±3 ⟹ x∈\mathbb R∖\{3,-3\}    ^([A-Za-z]) ?≠ ?±([^,]+)$
    ⟹ \1∈\\mathbb R∖\\{\2,-\2\\}
not: x≠3 ⟹ x∈\mathbb R∖\{3\}    ^([A-Za-z]) ?≠ ?((?:[^A-Za-z≠±]|\\[a-z]+)+)$
    ⟹ \1∈\\mathbb R∖\\{\2\\}
not two: x≠1, x≠2 ⟹ x∈\mathbb R∖\{1, 2\}    ^([A-Za-z]) ?≠ ?([^,≠]+)(?:,| and) ?\1 ?≠ ?([^,≠]+)$
    ⟹ \1∈\\mathbb R∖\\{\2, \3\\}
gap: (-∞,3)∪(3,∞) ⟹ \mathbb R∖\{3\}    \( ?-∞ ?, ?([^()∞,]+)\) ?∪ ?\( ?\1, ?\+?∞ ?\)
    ⟹ \\mathbb R∖\\{\1\\}
gaps: (-∞,1)∪(1,2)∪(2,∞) ⟹ \mathbb R∖\{1, 2\}    \( ?-∞ ?, ?([^()∞,]+)\) ?∪ ?
    \( ?\1, ?([^()∞,]+)\) ?∪ ?\( ?\2, ?\+?∞ ?\) ⟹ \\mathbb R∖\\{\1, \2\\}
# matrices become lists of rows, all roots \root{3}{x}
matrix: \begin{bmatrix}1&2⏎3&4\end{bmatrix} ⟹ [[1,2],[3,4]]    ([(\[] *)?\\begin *
    \{ *(?:[bpB]|small)?(?:matrix|array) *\}(?: *\{[lcr| ]*\})?(.*?)(?:⏎ *)?\\end *\{ *\w+ *\}
    (?(1) *[)\]]) ⟹ list_of_rows()
root: \sqrt[3]{x} ⟹ \root{3}{x}    \\sqrt ?\[([^\[\]]*)\] ⟹ \\root{\1}
square root: sqrt(x) ⟹ \root{2}(x)    \\?(?<![A-Za-z])sqrt ⟹ \\root{2}
over: {1\over 2} ⟹ \frac{1}{ 2}    \{([^{}]*)\\over\b([^{}]*)\} ⟹ \\frac{\1}{\2}
choose: {n\choose 2} ⟹ \binom{n}{ 2}    \{([^{}]*)\\choose\b([^{}]*)\} ⟹ \\binom{\1}{\2}
# numbers
period: 0.1\overline{6} ⟹ (1/6)    (\d*)\.(\d*) ?\\(?:overline|bar|dot) ?\{ ?(\d+) ?\}
    ⟹ fraction_of_period()
mixed number: 1\frac12 ⟹ 1 1/2    (?<![\w.^_}])(\d+) ?\\frac ?(?:\{ ?(\d+) ?\}|(\d)) ?
    (?:\{ ?(\d+) ?\}|(\d)) ?(?![\d.]) ⟹ \1 \2\3/\4\5
mixed slash: 1 1/2 ⟹ (3/2)    (?<![\w.^_}])(\d+) ?(?<= )(\d+) ?/ ?(\d+)(?![\d.])
    ⟹ fraction_of_mixed()
thousand: 5 thousand ⟹ 5*10^3    (?<=\d) ?thousand\b ⟹ *10^3
million: 1.5 million ⟹ 1.5*10^6    (?<=\d) ?million\b ⟹ *10^6
billion: 2billion ⟹ 2*10^9    (?<=\d) ?billion\b ⟹ *10^9
clock: 03:05 ⟹ 3:05    (?<![\d:.])0(?=\d ?: ?[0-5]\d(?!\d)) ⟹ ␀
noon: 10 a.m. ⟹ 10 am    (?i)(?<=\d) ?([ap])\.m\b\.? ⟹ ␣\1m
# marks and units
power of ten: 3 x 10^5 ⟹ 3*10^5    (?<=\d) ?[xX] ?(?=10 ?\^) ⟹ *
degree: 45^{\circ} ⟹ 45°    \^ ?(?:\\circ\b|°|\{ ?(?:\\circ|°) ?\}) ⟹ °
minutes: 30° 15' ⟹ (121/4)°    (?<![\d.])(\d+) ?° ?(\d+) ?'(?: ?(\d+) ?(?:''|\"))? ⟹ degrees()
unit as a fraction: 60\frac{ km }{ h } ⟹ 60 km/h    (?<=\d) ?\\frac ?
    \{ ([A-Za-z]+) \} ?\{ ([A-Za-z]+) (\^ ?(?:\d|\{ ?\d ?\}))? ?\}$ ⟹ ␣\1/\2\3
measured angle: m\angle A ⟹ \angle A    \bm ?(?=\\angle) ⟹ ␀
percent: 5 percent ⟹ 5%    (?<=[\d)}]) ?per ?cent\b ⟹ %
degrees: 45 deg. ⟹ 45°    (?<=[\d)}]) ?(?:deg(?:rees?)?\b\.?|度) ⟹ °
temperature: 25° Celsius ⟹ 25 °C    ␣?° ?([CF])[a-z]*\b ⟹ ␣°\1
"""


def first_spelling(match):
    return PLAIN.get(match[0], match[0])


def inside(match):
    return re.sub(r",(?=\d)", ", ", match[1].strip())  # {2,100} is no number


def list_of_rows(match):
    text = re.sub(",(?=[0-9]{3})", "", match[2])  # 1,000 is one entry
    rows = text.replace("&", ",").replace("⏎", "],[")
    return f"[[{rows}]]"


def fraction_of_period(match):
    whole, digits, period = match.groups()
    nines = int("9" * len(period) + "0" * len(digits))
    return f"({Fraction(int(whole + digits + period) - int(whole + digits or 0), nines)})"


def fraction_of_mixed(match):
    """1 1/2 is 3/2. 2 3/2 stays as it is: it could be mixed or a product (decision 11)."""
    whole, numerator, denominator = map(int, match.groups())
    proper = 0 < numerator < denominator
    return f"({whole * denominator + numerator}/{denominator})" if proper else match[0]


def degrees(match):
    whole, minutes, seconds = match.groups()
    return f"({Fraction(3600 * int(whole) + 60 * int(minutes) + int(seconds or 0), 3600)})°"


class Rule(NamedTuple):
    name: str
    example: str
    result: str
    pattern: str
    replacement: object  # a template of re.sub, or a function of the match


RULE = r"(?m)^(\w.*?): (.*?) ⟹ (.*?)    (.*?) ?⟹ (.*)$"
REWRITES = []
for name, *texts in re.findall(RULE, RULES.replace("\n    ", "")):
    texts = [text.replace("␣", " ").replace("␀", "") for text in texts]
    if texts[-1].endswith("()"):
        texts[-1] = globals()[texts[-1].removesuffix("()")]
    REWRITES.append(Rule(name, *texts))


def clean(text):
    """The answer in one spelling, without wrappers, delimiters and needless spaces."""
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿⁱ]+", r"^{\g<0>}", text)
    text = re.sub("[₀₁₂₃₄₅₆₇₈₉₊₋ₙₓ]+", r"_{\g<0>}", text)
    text = re.sub("[¼-¾⅐-⅞]", r" \g<0>", text)
    text = unicodedata.normalize("NFKC", text.translate(SIGNS)).translate(SIGNS)
    seen = [sign for sign in text if unicodedata.category(sign) != "Cf"]
    seen = [sign if sign.isprintable() else " " for sign in seen]
    text = "".join(str(unicodedata.digit(sign, sign)) for sign in seen)
    for rule in REWRITES:
        for _ in range(3 if rule.name == "wrapper" else 1):  # wrappers stand inside each other
            text = re.sub(rule.pattern, rule.replacement, text)
    return text


# ------------------------------------------------------------------------------------------------
# 2. What is no mathematics: words, options, units

OPTION = re.compile(
    r"(?i:(?:the )?(?:correct )?(?:option|choice|answer)(?: is)?:? ?)?"
    r"(?:([A-J])(?:[.:)]? ?$|[.:)] )|[(\[]([A-Ja-j])[)\]][.:]?)(?: ?(?![A-J]\b)(.+))?"
)
# Several options: "(A), C." or "A and C", and with a text behind each "A. 5, B. 6".
LETTER = r"(?:[A-J]|\([A-Ja-j]\)|\[[A-Ja-j]\])[.:)]?"
BETWEEN = r"(?: ?(?:[,;&]|\band\b) ?(?:and )?| ?(?=\()|(?<=[A-J]) (?=[A-J]\b))"
MARK = r"(?:\b[A-J][.:)]|\([A-J]\))"
BEHIND = rf"(?:(?! and {MARK})[^,;])"  # each text ends in one way alone: no search through splits
SEVERAL = re.compile(
    rf"(?i:(?:option|choice|answer)s?:? )?({LETTER}(?:{BETWEEN}{LETTER})+)"
    rf"|{MARK}{BEHIND}+(?:[,;] ?{MARK}{BEHIND}*| and {MARK}{BEHIND}+)+"
    rf"|{MARK}[^A-Za-z]+(?:{MARK}[^A-Za-z]+)+"
)
NUMBERED = re.compile(r"\b([a-z])_\{\d\} ?(?==)")
# The first name of each unit is ours. Names of three letters or more have a plural.
UNIT_NAMES = r"""
m metre meter 米; cm centimetre centimeter 厘米; mm millimetre millimeter 毫米; nanometer
; km kms kilometre kilometer 公里; \mu_m micron; ft feet foot; in inch inche; yd yds yard; mi mile
; acre; hectare; g gram 克; kg kgs kilogram 千克 公斤; mg milligram; lb lbs pound; oz ounce
; ton tonne 吨; L liter litre 升; mL ml milliliter 毫升; gal gallon; cup; s sec second 秒
; millisecond; min minute 分钟; h hr hrs hour 小时; day 天; week 周; month 月
; year yr yrs year_old years_old 年 岁; rpm; mi/h mph; km/h kmh kph kmph; rad radian; °C; °F
; K kelvin; N newton; kN; J joule; kJ; MJ; cal calorie; kcal; W watt; kW; MW; kWh; V volt; kV; mV
; A amp ampere; mA; \Omega ohm; k\Omega; Hz hertz; kHz; MHz; GHz; Pa pascal; kPa; MPa; atm; mmHg
; mol mole; eV; keV; MeV; GeV; dB decibel; bit; byte; kB KB; MB; GB; TB; ＄ $ dollar USD 美元
; ¢ cent; € euro EUR; £ GBP; ¥ yen JPY 円; yuan RMB CNY 元; ₹ rupee INR Rs Rs.; unit 个; way
; time 次; point; person people 人"""
UNITS = {}
for line in UNIT_NAMES.split(";"):
    names = [name.replace("_", " ") for name in line.split()]
    names += [name + "s" for name in names if len(name) > 2]
    UNITS |= dict.fromkeys(names, names[0])
POWERS = dict.fromkeys("square sq sq. 平方 squared".split(), 2)
POWERS |= dict.fromkeys("cubic cu cu. 立方 cubed".split(), 3)
ANY_UNIT = "|".join(map(re.escape, sorted(UNITS, key=len, reverse=True)))
POWER = r" ?\^ ?(?:\{ ?-? ?\d ?\}|-?\d)| squared| cubed"
# "per", "square", the name, its exponent
ONE_UNIT = (
    r"(/|per)? ?(?:(square|sq\.?|cubic|cu\.?|平方|立方) ?)?"
    rf"({ANY_UNIT})(?![A-Za-z])({POWER})?"
)
UNIT = re.compile(
    rf"(?:(?<=[\d)}}\]%°])|(?<=\\pi)) ?(?!/|per)(?:{ONE_UNIT} ?\*? ?){{1,4}}(?<![* ])$"
)
CURRENCY = r"([+-]?) ?((?:US ?)?[＄€£¥₹]|(?:USD|EUR|GBP|JPY|CNY|RMB|INR|Rs\.?)(?= ?\d)) ?"
# "5 apples" is 5, but with one of these words the number alone is not the answer.
NO_NOUNS = """less|plus|minus|is|was|has|and|or|of|over|to|by|if|not|than|more|ones|tens|dozens
|hundreds|thousands|remainders|millions|billions|halves|thirds|quarters
|(?:four|fif|six|seven|eigh|nin|ten|hundred|thousand)ths""".replace("\n", "")
NOUNS = rf"([+-]?[\d,.]+) (?!.*\b(?:{NO_NOUNS})\b)((?:[a-z]+ ){{0,2}}[a-z]{{3,}}s)"


def as_words(text):
    """The answer as text. Spaces that separate stay: 2 1/2 is not 21/2.

    Plain words lose case and article.
    """
    text = re.sub(r"(?<![\w,]) | (?!\w)|(?<=,) (?=\D)", "", text)
    text = re.sub(r"\{(\w)\}(?!\w)", r"\1", text)
    words = re.search(r"(?i)[^\W\d_]{3}|^no$|\d ?[ap]m\b", text)
    if not words or re.search(r"[\\^_=<>+*/{}|≤≥≠∈∪∞]", text):
        return text
    return re.sub(r"^(?:the|an?) (?=.{3})", "", text.casefold()).strip(" .!?'")


def options(text):
    """(letters, text) of a multiple-choice answer: B, (b), "Option B", "B: text", AC; or None."""
    text = text.replace("**", "").strip()
    if re.fullmatch("[A-J]{2,}", text):
        return text, None
    if several := SEVERAL.fullmatch(text):
        marks = re.findall(LETTER if several[1] else MARK, several[1] or text)
        return "".join(sorted(re.sub(r"\W", "", "".join(marks).upper()))), None
    match = OPTION.fullmatch(text)
    return match and ((match[1] or match[2]).upper(), match[3])


def without_numbers(text, other):
    """x = 1, x = 3 for the roots x_1 = 1, x_2 = 3, if the other answer does not number them."""
    if NUMBERED.search(other) or other.startswith("(") or len(NUMBERED.findall(text)) < 2:
        return text
    return NUMBERED.sub(r"\1", text)


def split_unit(text):
    """(value, unit) of "5 cm", "\\$5", "3 red apples"; the unit is "" if there is none."""
    currency = re.match(CURRENCY, text)
    if currency:
        return currency[1] + text[currency.end() :], plain_unit(currency[2])
    unit = UNIT.search(text)
    if unit and not are_variables(text[: unit.start()], unit[0]):
        return text[: unit.start()], plain_unit(unit[0])
    noun = re.fullmatch(NOUNS, text)
    return noun.groups() if noun else (text, "")


def are_variables(value, unit):
    """True if what looks like a unit are variables: "5m", "6 s^2", "2x + 3m^2" (decision 9)."""
    letters = re.search("[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", value.rsplit("=")[-1]))
    symbol = re.fullmatch(rf" ?([A-Za-z])({POWER})?", unit)
    if letters and unit[0] != " ":
        return True
    if not symbol:
        return False
    return letters is not None or unit[0] != " " or symbol[2] is not None and symbol[1] != "m"


def plain_unit(unit):
    """The powers of the names in a unit: m 1, s -2 for m/s^2 and "metres s^{-2}"."""
    powers = Counter()
    for per, before, name, exponent in re.findall(ONE_UNIT, unit):
        power = POWERS.get(before or exponent.strip()) or int(re.sub("[ ^{}]", "", exponent) or 1)
        for base in re.findall("/?[^/]+", UNITS[name]):  # mi/h for mph
            below = bool(per) != base.startswith("/")
            powers[base.strip("/")] += -power if below else power
    return powers


# ------------------------------------------------------------------------------------------------
# 3. Values: an expression is its values at sixteen points
#
# A tree is a value or a shape. A value is ("num", Fraction), ("sym", name), or ("values", ...): an
# mpf for each of the points, an mpc where some step on the way to it was not real, None where the
# expression is undefined. A shape is ("list", ...), ("set", ...), ("∪", ...), ("seq", brackets,
# ...), ("rel", signs, ...), ("ratio", ...).

SHAPES = {"list", "set", "∪", "∩", "∖", "seq", "rel", "ratio"}
# At a point, a variable lies between half of the size and the size; or the variables are whole.
WHOLE = 5  # points: floor(x) is not ceil(x) - 1, and only here is x! defined
SIZES = (0.1, 1, 3, 30, 1e5, -1, -30, -1e5)
MIXED = (1, 3, 30)  # some variables are positive, others negative: |xy| is not xy
POINTS = WHOLE + len(SIZES) + len(MIXED)
MP = mpmath.MPContext()
MP.dps = DIGITS
MP.steps = 0
CONSTANTS = {"\\pi": MP.pi, "e": MP.e, "i": MP.j}
TRIG = "sin cos tan cot sec csc sinh cosh tanh coth sech csch".split()
ARCS = {arc + name: "a" + name for name in TRIG for arc in ("a", "ar", "arc")}
FUNCTIONS = {*TRIG, *ARCS, "ln", "log", "lg", "exp", "abs", "cis"}
IN_MPMATH = {"+": "fsum", "*": "fprod", "^": "power", "abs": "fabs", "cis": "expj"} | ARCS
COUNTS = {"!": math.factorial, "binom": math.comb}
SIZED = ("^", *COUNTS)  # their last number says how large the result is
CHEAP = ("+", "*", "abs", "floor", "ceil")


class Numeral(tuple):
    """A value that is written as a number (decision 13)."""


def number(value):
    return ("num", Fraction(value))


def spend(steps):
    """Counts work. Raises ValueError beyond the bound (decision 3)."""
    MP.steps += steps
    if MP.steps > MAX_WORK:
        raise ValueError("too much work")


def values_at_points(value):
    """The values of a number, a name or an expression at the points."""
    kind, *parts = value
    if kind == "values":
        return parts
    if kind == "num":
        return [MP.convert(parts[0])] * POINTS
    name = parts[0]
    if name in CONSTANTS:
        return [+CONSTANTS[name]] * POINTS
    return list(map(MP.mpf, variable_at_points(name)))


@functools.lru_cache(1000)
def variable_at_points(name):
    rng = random.Random(name)
    whole = [rng.randint(2, 30) for _ in range(WHOLE)]
    letters = sum(map(ord, name))
    mixed = [(-1) ** (letters >> k) * size for k, size in enumerate(MIXED)]
    sizes = list(SIZES) + mixed
    return whole + [size * rng.uniform(0.5, 1) for size in sizes]


def build(operation, *parts):
    """Value of an operation on values: an exact number where it can be, else values at points."""
    if any(part[0] in SHAPES for part in parts):
        raise ValueError("arithmetic on something that is no value")
    if all(part[0] == "num" for part in parts):
        exact = exact_result(operation, [part[1] for part in parts])
        if exact is not None:
            return number(exact)
    exponent = parts[1][1] if operation == "^" and parts[1][0] == "num" else None
    values = []
    last_row = None
    for row in zip(*map(values_at_points, parts)):
        if row != last_row:  # numbers are the same at all points
            value = value_at_point(operation, row, exponent)
        last_row = row
        values.append(value)
    if all(value is None for value in values):
        raise ValueError("too large, or undefined at every point")
    return ("values", *values)


def exact_result(operation, numbers):
    """Result of an operation on exact numbers; None where it is not exact."""
    bits = sum(x.numerator.bit_length() + x.denominator.bit_length() for x in numbers)
    last = numbers[-1]
    if operation in SIZED:
        bits *= 1 + int(abs(last))
    spend(1 + (bits // 2000) ** 2)
    if operation == "+":
        return sum(numbers)
    if operation == "*":
        return math.prod(numbers)
    if operation in COUNTS:
        return count(operation, numbers)
    if operation != "^" or last.denominator > 1:
        return None
    if not any(numbers):
        raise ValueError("zero to the power of zero")
    return numbers[0] ** last.numerator


def count(operation, numbers):
    """n! or n over k, for whole numbers. Raises ValueError for others."""
    whole = [int(x) for x in numbers]
    if whole != list(numbers):
        raise ValueError("no whole number")
    return COUNTS[operation](*whole)


def value_at_point(operation, numbers, exponent):
    """Value of an operation at one point, or None. exponent: of a power, if it is exact."""
    if None in numbers:
        return None
    if operation in SIZED and abs(numbers[-1]) > MAX_EXPONENT:
        return None
    real = not any(isinstance(number, MP.mpc) for number in numbers)
    price = 5 if operation in CHEAP else 50
    spend(price if real else 150)
    try:
        if exponent and exponent.denominator % 2 and real and numbers[0] < 0:
            # The real root of -8 is -2, not a complex one.
            result = MP.power(-numbers[0], numbers[1]) * (-1) ** exponent.numerator
        elif operation in COUNTS:
            result = MP.mpf(count(operation, numbers))
        else:
            function = getattr(MP, IN_MPMATH.get(operation, operation))
            result = function(numbers) if operation in ("+", "*") else function(*numbers)
    except (ArithmeticError, TypeError, ValueError):
        return None
    if result and not abs(MP.mag(result)) <= MAX_MAGNITUDE:  # true for nan, too
        return None
    return result if real else MP.mpc(result)  # |sqrt(x)| is real again, but sqrt(x) was not


def negative(value):
    return build("*", MINUS_ONE, value)


def inverse(value):
    return build("^", value, MINUS_ONE)


MINUS_ONE = number(-1)
INFINITY = ("sym", "∞")
MINUS_INFINITY = negative(INFINITY)
MARKS = {"%": number("1/100"), "°": build("*", number("1/180"), ("sym", "\\pi"))}
# The factor of ln, by base. log without a base has an unknown one (decision 10).
LOG_FACTORS = {"lg": inverse(build("ln", number(10))), "log": ("sym", "\\log")}


# ------------------------------------------------------------------------------------------------
# 4. Parser: from the cleaned text to a tree

# Rank, kind and signs of the operators. The rank is how tightly they bind.
OPERATOR_TABLE = """1 list , ; and or
2 rel = < > ≤ ≥ ≠ ≈ ∈
3 ratio :
4 ∪ ∪ U
4 ∩ ∩
4 ∖ ∖
5 + + -
6 * * /
8 ^ ^"""
FACTORS = 7  # the rank of letters and brackets side by side
OPERATORS = {"": (FACTORS, "*")}
for line in OPERATOR_TABLE.splitlines():
    rank, kind, *signs = line.split()
    OPERATORS |= dict.fromkeys(signs, (int(rank), kind))
INFIX = (
    r"(?:and|or)\b|U(?= ?[(\[{\\])|[,;=<>≤≥≠≈∈:∪∩∖+*/^-]"
    r"|(?=[A-Za-z({⌊⌈∞]|\\[A-Za-z])"  # last: nothing between two factors
)
FUNCTION = rf"\\?(?:{'|'.join(FUNCTIONS)})\b"
# Area, AB, f(x), f^{-1}(x), P(A): what a side is called that names the other one.
LABEL = (
    r"([A-Za-z]{4,}(?: [A-Za-z]+)*|[A-Z]{2,3}"
    r"|[A-Wa-w](?:_\w|_\{[^{}]*\})?'*(?:\^ ?\{ ?-1 ?\})? ?\( ?\w+(?: ?, ?\w+)* ?\)) ?(?==)"
)
CLOSING = dict(re.findall(r"(\S+) (\S+)", r"( [)\]] [ [)\]] { \} \{ \\\} | \| ⟨ ⟩ ⌊ ⌋ ⌈ ⌉"))
TURNED = {">": "<", "≥": "≤"}
ROUNDING = {"|": "abs", "⌊": "floor", "⌈": "ceil"}
MARKED = "mathbb mathcal overline hat widehat bar tilde angle triangle".split()
# What is written as a number: a decimal, perhaps times a power of ten, or a fraction of decimals.
DECIMAL = r" ?[+-]? ?(?:\d[\d,]*(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)? ?"
TEN = r" ?10 ?\^ ?(?:\{ ?[+-]? ?\d+ ?\}|[+-]?\d+)"
QUOTIENT = rf"\(?{DECIMAL}/{DECIMAL}\)?|\\frac ?(?:\{{{DECIMAL}\}}|\d) ?(?:\{{{DECIMAL}\}}|\d)"
NUMERAL = re.compile(rf"(?:{DECIMAL}(?:\*{TEN})?| ?[+-]? ?(?:{TEN}|({QUOTIENT}))) ?[%°]?")


class Parser:
    """Precedence climbing over one cleaned answer."""

    def __init__(self, text):
        self.text = text
        self.at = 0
        self.depth = 0
        self.brackets = 0

    def look(self, pattern):
        return re.compile(f" ?({pattern})").match(self.text, self.at)

    def take(self, pattern, needed=False):
        """The text of what comes next if it fits the pattern; else None, or ValueError."""
        match = self.look(pattern)
        if match:
            self.at = match.end()
            return match[1]
        if needed:
            raise ValueError(f"expected {pattern}")
        return None

    def expression(self, rank):
        """The tree of what follows, up to the first operator that binds less than the rank."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise ValueError("too deep")
        start = self.at
        left = self.operand(rank)
        divided = False
        while infix := self.look(INFIX):
            left = self.written(start, left)
            sign = infix[1]
            strength = OPERATORS[sign][0]
            if strength < rank or rank == FACTORS and not sign and self.look(FUNCTION):
                break  # in sin x cos x, cos x is no part of the argument of sin
            if divided and not sign:
                raise ValueError("a/bc can be read in two ways")
            self.at = infix.end()
            if sign == "^" and self.look("{"):
                right = self.atom()  # in a^{b}c, c is no part of the exponent
            else:
                right = self.expression(8 if sign in ("*", "/", "^") else strength + 1)
            divided = sign == "/" and not left[0] == right[0] == "num"
            left = join(sign, left, right)
        self.depth -= 1
        return self.written(start, left)

    def written(self, start, value):
        """The value, as a Numeral if the text since the start is a number (decision 13)."""
        match = NUMERAL.fullmatch(self.text[start : self.at])
        if not match or value[0] in SHAPES:
            return value
        whole = value[0] == "num" and value[1].denominator == 1
        return value if match[1] and whole else Numeral(value)  # 8/2 has to be computed

    def operand(self, rank):
        """A name in front of an equal sign, a signed expression, or an atom with its marks."""
        label = self.look(LABEL) if rank <= 3 else None
        if label and FUNCTIONS.isdisjoint(label[2].split()):
            self.at = label.end()
            return ("sym", label[2].replace(" ", ""))
        sign = self.take("[-+]")
        if sign:
            value = self.expression(max(rank, 6))
            return negative(value) if sign == "-" else value
        value = self.atom()
        while mark := self.take("!(?![!=])|%|°"):
            value = build("!", value) if mark == "!" else build("*", value, MARKS[mark])
        return value

    def argument(self):
        """A digit or an atom: \\frac12 is 1/2."""
        return number(self.take(r"\d")) if self.look(r"\d") else self.atom()

    def atom(self):
        if self.look(r"\.?\d"):
            return self.number()
        if opening := self.take(r"\\\{|[(\[⟨{|⌊⌈]"):
            return self.enclosed(opening)
        if sign := self.take("[∞∅]"):
            return INFINITY if sign == "∞" else ("set",)
        name = self.take(r"\\?[A-Za-z]+", needed=True)
        if name[0] == "\\" or name in FUNCTIONS or name.lower() in GREEK:
            return self.command(name.strip("\\"))
        if len(name) > 3:
            raise ValueError("a word")
        self.at -= len(name) - 1  # letters side by side are a product
        return self.symbol(name[0])

    def symbol(self, name):
        """A name with its index and primes."""
        index = self.take(r"_ ?(?:\{[^{}]*\}|[A-Za-z])")
        if index:
            name += "_" + index.replace(" ", "").strip("_{}")
        primes = self.take("'(?: ?')*") or ""
        return ("sym", name + primes.replace(" ", ""))

    def number(self):
        """A number as it is written. A comma separates thousands only outside of brackets."""
        thousands = "" if self.brackets else r"\d{1,3}(?:,\d{3})+(?![\d,])|"
        match = self.look(rf"({thousands}\d*)((?:\.\d+)?)(?:[eE]([-+]?\d{{1,4}}))?")
        self.at = match.end()
        digits = match[2].replace(",", "")
        if re.match(r"0\d", digits) or self.look(r"[\d._]"):
            raise ValueError("a part of a time, a date, a list or a number cut at its commas")
        power = build("^", number(10), number(match[4] or 0))
        return build("*", number(digits + match[3]), power)

    def enclosed(self, opening):
        """What stands in brackets: a value, a set, a tuple, an interval, a matrix."""
        self.brackets += opening not in ROUNDING
        inner = self.expression(5 if opening in ROUNDING else 1)
        self.brackets -= opening not in ROUNDING
        brackets = opening + self.take(CLOSING[opening], needed=True)
        if opening in ROUNDING:
            return build(ROUNDING[opening], inner)
        items = inner[1:] if inner[0] == "list" else (inner,)
        if len(items) == 1 and brackets in ("()", "{}"):
            return inner
        if "{" in opening:
            return ("set", *dict.fromkeys(items))
        if brackets == "[]" and all(item[:2] == ("seq", "[]") and len(item) == 3 for item in items):
            return ("seq", "()", *(item[2] for item in items))  # rows of one: a column is a tuple
        return ("seq", "()" if opening == "⟨" else brackets, *items)

    def command(self, name):
        """What a command or a function with its arguments stands for."""
        if name in ("frac", "binom"):
            first, second = self.argument(), self.argument()
            return join("/", first, second) if name == "frac" else build(name, first, second)
        if name == "root":
            power = inverse(self.argument())
            return build("^", self.atom(), power)
        if name in FUNCTIONS:
            return self.function(name)
        if name.lower() in GREEK:
            return self.symbol("\\" + name)
        if name in MARKED:
            marked = self.take(r"\{[\w ]+\}|[A-Z]{1,3}|\w", needed=True)
            return self.symbol(f"\\{name}" + marked.replace(" ", "").strip("{}"))
        raise ValueError("a command that is not in the list")

    def function(self, name):
        factor = LOG_FACTORS.get(name)
        if name == "log" and self.take("_"):
            factor = inverse(build("ln", self.argument()))
        exponent = self.argument() if self.take(r"\^") else number(1)
        if exponent == MINUS_ONE:  # sin^{-1} is the inverse function
            name, exponent = "a" + name, number(1)
        if name not in FUNCTIONS:
            raise ValueError("an inverse without a name")
        argument = self.atom() if self.look(r"[({]") else self.expression(FACTORS)
        value = build("*", build("ln", argument), factor) if factor else build(name, argument)
        return build("^", value, exponent)


def join(sign, left, right):
    """The tree of an operator and its two operands."""
    kind = OPERATORS[sign][1]
    if kind == "rel":
        signs, sides = (left[1], left[2:]) if left[0] == "rel" else ("", (left,))  # 1 < x < 2
        if sign in TURNED and set(signs) <= {"<", "≤"}:  # 5 > x is x < 5
            return ("rel", TURNED[sign] + signs, right, *sides)
        return ("rel", signs + sign, *sides, right)
    if sign in ("-", "/"):
        right = negative(right) if sign == "-" else inverse(right)
    if kind in ("+", "*", "^"):
        return build(kind, left, right)
    if kind == "ratio" and not {left[0], right[0]}.isdisjoint(SHAPES - {"ratio"}):
        raise ValueError("a ratio of something that is no value")
    items = left[1:] if left[0] == kind else [left]
    return (kind, *items, right)


DATES = r"(?i)\d+(?:-\d+){2,}|\d+(?:/\d+){2,}|\d+(?::\d\d)* ?[ap]m|(\d+)-(\d+)"
WORDS = r"(?![b-df-hj-np-tv-z]{2,3}$)[^\W\d_]{2,}(?:[ '-][^\W\d_]+)*"
TERMS = r"\\?[A-Za-z]+|[\^!%°]"


def read(text):
    """(tree, unit) of a cleaned answer. Raises ValueError: no mathematics, or beyond a bound."""
    refuse_text(text)
    text, unit = split_unit(text)
    two_signs = "±" in text or "∓" in text
    items = []
    for plus, minus in ("+-", "-+") if two_signs else ("+-",):
        parser = Parser(text.replace("±", plus).replace("∓", minus))
        tree = parser.expression(1)
        if parser.at < len(parser.text):
            raise ValueError("text left over")
        items += tree[1:] if tree[0] == "list" else [tree]
    if two_signs:
        items = list(dict.fromkeys(items))
    tree = items[0] if len(items) == 1 else ("list", *items)
    if tree[0] == "set" and len(tree) == 2 and tree[1][0] != "set":
        tree = tree[1]  # decision 7: a set of one is its member
    return tree, unit


def refuse_text(text):
    """Raises ValueError for words, a date, a time, a range, and for too many terms."""
    if re.fullmatch(WORDS, text) and FUNCTIONS.union(GREEK).isdisjoint(text.split()):
        raise ValueError("words")
    date = re.fullmatch(DATES, text)
    if date and not (date[1] and int(date[1]) >= int(date[2])):  # 5-2 is 3
        raise ValueError("a date, a time or a range")
    if len(re.findall(TERMS, text)) > MAX_TERMS:
        raise ValueError("too many terms")


# ------------------------------------------------------------------------------------------------
# 5. Comparison of two trees


def same(given, gold):
    """True if two trees mean the same answer."""
    spend(3)
    kinds = {given[0], gold[0]}
    if not kinds & SHAPES:
        if isinstance(gold, Numeral) and not isinstance(given, Numeral):
            return False  # decision 13: a number has to be written as a number
        return given == gold or agree(given, gold)
    if kinds == {"rel"} and same_relation(given, gold):
        return True
    relations = kinds == {"list"} and all(item[0] == "rel" for item in given[1:] + gold[1:])
    if relations and same_members(given, gold):
        return True
    (name, value), (gold_name, gold_value) = named(given), named(gold)
    if value is not given or gold_value is not gold:  # at most one name, and the name is gone
        one_name = not name or not gold_name or name == gold_name
        return one_name and value[0] != "rel" != gold_value[0] and same(value, gold_value)
    if kinds <= {"list", "set", "∪"}:
        return same_members(given, gold)
    if kinds == {"ratio", "num"}:  # decision 11: 2:3 is 2/3, but 2:4 is not 1/2
        (_, value), ratio = sorted((given, gold))
        parts = (number(value.numerator), number(value.denominator))
        return value.denominator > 1 and ratio[1:] == parts
    if given[0] != gold[0] or len(given) != len(gold):
        return False
    return all(same(p, q) if isinstance(p, tuple) else p == q for p, q in zip(given, gold))


def same_members(given, gold):
    """True if each member of one means the same as a member of the other, in any order."""
    rest = list(gold[1:])
    for member in given[1:]:
        equal = [other for other in rest if same(member, other)]
        if not equal:
            return False
        rest.remove(equal[0])
    return not rest


def same_relation(given, gold):
    """True if left minus right differs by a constant factor, positive for inequalities.

    Where one is solved for a number, the factor has to be 1, and the gold must not be the solved
    one: x - 5 = 0 still has to be computed (decisions 8 and 13).
    """
    signs, sides = gold[1], (*given[2:], *gold[2:])
    if given[1] != signs or signs not in ("=", "≠", "<", "≤") or is_number(named(gold)[1]):
        return False
    if any(side[0] in SHAPES for side in sides):
        return False
    ratio = join("/", join("-", *given[2:]), join("-", *gold[2:]))
    factors = [x for x in values_at_points(ratio) if isinstance(x, MP.mpf) and x]
    if not factors or not agree(ratio, ("values", *factors[:1] * POINTS)):
        return False
    factor = factors[0]
    if is_number(named(given)[1]):
        return abs(factor) == 1
    return signs in ("=", "≠") or factor > 0


def is_number(tree):
    """True for a number, and for an interval with an end that is a number."""
    if tree[0] == "seq":
        return any(is_number(end) for end in tree[2:])
    return tree[0] not in SHAPES and len(set(values_at_points(tree))) == 1


def label(tree):
    """Name of a side that only names the other one: x, f(x), Area, (x, y); else None."""
    if tree[:2] == ("seq", "()"):
        names = [label(item) for item in tree[2:]]
        return ",".join(names) if all(names) else None
    return tree[1] if tree[0] == "sym" and tree[1] not in {*CONSTANTS, "∞"} else None


def named(tree):
    """(name, value) of "x = 5", "x > 5", "x ∈ ..." or a list of them; (None, tree) otherwise."""
    if tree[0] == "list":
        names, values = zip(*map(named, tree[1:]))
        if all(names) and sorted(set(names)) == list(names):  # "x = k pi, k ∈ Z" is no point
            return ",".join(names), ("seq", "()", *values)
    if tree[0] != "rel":
        return None, tree
    signs, sides = tree[1], tree[2:]
    if set(signs) <= {"=", "≈"}:
        return named_equation(tree)
    if signs == "∈" and label(sides[0]):
        return label(sides[0]), sides[1]
    return named_interval(tree)


def named_equation(tree):
    """x = 5, 5 = x, AB = CD = 8, x = 2 + 3 = 5, and 1/3 ≈ 0.333 without a name."""
    signs, sides = tree[1], tree[2:]
    if label(sides[-1]) and not label(sides[0]):
        signs, sides = signs[::-1], sides[::-1]
    name = label(sides[0])
    while label(sides[0]) and not label(sides[-1]):
        signs, sides = signs[1:], sides[1:]
    if label(sides[0]):  # x = y
        signs, sides = signs[1:], sides[1:]
    exact = [sides[0]]
    exact += [side for sign, side in zip(signs, sides[1:]) if sign == "="]
    if not all(same(side, exact[0]) or same(exact[0], side) for side in exact):
        return None, tree
    numerals = [side for side in exact if isinstance(side, Numeral)]
    return name, (numerals or exact)[0]  # 2 + 3 = 5 is written as a number


def named_interval(tree):
    """x > 5 is (5, ∞), 1 < x ≤ 2 is (1, 2]."""
    signs, sides = tree[1], tree[2:]
    if signs in ("<", "≤") and label(sides[0]):
        signs, sides = "<" + signs, (MINUS_INFINITY, *sides)
    elif signs in ("<", "≤"):
        signs, sides = signs + "<", (*sides, INFINITY)
    if len(sides) != 3 or not set(signs) <= {"<", "≤"} or not label(sides[1]):
        return None, tree
    opening = "[" if signs[0] == "≤" else "("
    closing = "]" if signs[1] == "≤" else ")"
    return label(sides[1]), ("seq", opening + closing, sides[0], sides[2])


def decimal_slack(value):
    """One unit in the last place of a decimal of 10 places and 10 digits or more; else 0."""
    if value[0] != "num" or 10**99 % value[1].denominator:
        return 0
    places = next(n for n in range(100) if 10**n % value[1].denominator == 0)
    long_enough = places >= 10 and abs(value[1]) * 10**places >= 10**9
    return Fraction(1, 10**places) if long_enough else 0


def agree(a, b):
    """True if two values are equal at all points where both are real.

    If there are hardly any, they have to be equal at all points where they are defined.
    """
    slack = max(decimal_slack(a), decimal_slack(b))
    if a[0] == b[0] == "num":
        return a[1] == b[1] or abs(a[1] - b[1]) < slack
    spend(10)
    slack = MP.convert(max(slack - TOLERANCE, TOLERANCE))  # less than a whole unit
    rows = enumerate(zip(values_at_points(a), values_at_points(b)))
    pairs = [(k, x, y) for k, (x, y) in rows if None not in (x, y)]
    real = [pair for pair in pairs if not any(isinstance(x, MP.mpc) for x in pair[1:])]
    # (-1)^n is real at whole numbers alone: they are no reason to leave out the other points.
    if sum(k >= WHOLE for k, *_ in real) >= 2:
        pairs = real
    return len(pairs) >= 2 and all(abs(x - y) <= slack for _, x, y in pairs)
