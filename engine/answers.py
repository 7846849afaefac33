"""Comparison of two short answers: LaTeX, numbers, units, sets, intervals, words and options.

The reward of ZPPO (arXiv 2606.18216, App. D.1) calls mathruler here; we compare ourselves. An expression is its values
at eight fixed points: two expressions are equal if their values are. Five phases, each under a banner:

    spelling      `clean` gives one spelling to signs that mean the same
    words         options, words and units, which are no mathematics
    values        what an operation gives at the eight points
    parser        `read` makes a tree of values and shapes (lists, sets, tuples, relations)
    comparison    `same` compares two trees

This file imports nothing from the rest of the project: copy what you need. Decisions and deviations:

 1. What is ambiguous is refused: a false positive trains a wrong model, a miss costs one reward.
 2. Nothing is run as code: the parser has fixed lists of commands and functions. Text that the parser cannot read is
    compared as text. sympy is not used, because its simplifier has no bound; mpmath is.
 3. Work is bounded by counting characters, names, nesting and bits, not by signals, threads or clocks: the answer is
    the same in every thread, on every machine. Beyond a bound only identical text is equal.
 4. Numbers are exact: 0.333 is not 1/3, 3.14 is not pi, 2/4 is 1/2. Only a decimal of 10 digits or more stands for
    the number it is cut or rounded from. Expressions are equal if they differ by less than 1e-250 at fixed points,
    wherever both are real: (sqrt x)^2 is x; sqrt(x^2) is |x|, not x.
 5. A percent mark divides by 100, a degree mark multiplies by pi/180.
 6. 1,000 is a number and "1, 000" is not. Inside brackets of any kind a comma always separates.
 7. Sets and lists without brackets have no order; tuples, intervals and matrices have one, and the brackets count:
    (1,2) is neither [1,2] nor {1,2} nor "1, 2". A set of one is its member.
 8. "x = 5" is 5, "x > 5" is (5, oo); "x+y = 5" is not 5, "x = 5" is not "y = 5". Other relations are equal if left
    minus right is, up to its sign for an equation: "2x = 10" is not "x = 5".
 9. One side may lack the unit or currency of the other. Two different units are refused, not converted.
10. log without a base has an unknown one: log ab = log a + log b holds, log 100 = 2 and log x = ln x do not.
11. 101_2 is neither 101 nor 5; 2:3 is 2/3, but 2:4 is not 1:2; "5-10" and 2024-05-01 are text; 2 3/2, x/2y and 1/xy
    are refused, while 1 1/2 is 1.5 and 1/2x is (1/2)x.
12. One letter is a variable, so b is not B; in the brackets of an option, (b), it is. Words ignore case.
"""

import math
import random
import re
import threading
import unicodedata
from fractions import Fraction
from typing import NamedTuple

import mpmath

MAX_CHARS = 2000  # of an answer that is read as mathematics
MAX_DEPTH = 80  # of nested expressions
MAX_TERMS = 200  # names, powers, marks and factorials of an answer
MAX_BITS = 10_000  # of an exact number
MAX_EXPONENT = 10_000
MAX_MAGNITUDE = 800  # of any other number: from 2^-800 to 2^800, about 1e-241 to 1e241
DIGITS = 500  # of any other number: rounding errors stay far below the tolerance
TOLERANCE = Fraction(1, 10**250)  # two other numbers that differ by less are equal
LOCK = threading.Lock()  # mpmath's functions change the precision of their context for a moment

PLAIN_NUMBER = re.compile(
    r"[+-]?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?|[+-]?\.[0-9]+"
)


def answers_match(given: str, gold: str) -> bool:
    """True if two short answers mean the same. Symmetric, never raises; only strings match."""
    if not isinstance(given, str) or not isinstance(gold, str):
        return False
    given = given.strip()
    gold = gold.strip()
    if given == gold:
        return given != ""
    if max(len(given), len(gold)) > MAX_CHARS:
        return given.split() == gold.split()
    if PLAIN_NUMBER.fullmatch(given) and PLAIN_NUMBER.fullmatch(gold):
        return plain_value(given) == plain_value(gold)
    given = clean(given)
    gold = clean(gold)
    given_option = option(given)
    gold_option = option(gold)
    if given_option and gold_option:
        return same_option(given_option, gold_option)
    if as_words(given) == as_words(gold):
        return given != ""
    try:
        with LOCK:
            return same_answer(read(given), read(gold))
    except (ArithmeticError, ValueError, RecursionError):
        return False


def plain_value(text):
    return Fraction(text.replace(",", ""))


# ------------------------------------------------------------------------------------------------
# 1. Spelling: one for the many ways to write the same signs

GREEK = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho sigma "
    "tau upsilon phi chi psi omega"
).split()
# A line holds spellings of its first entry. There _ is a space, so that names do not grow together.
SPELLINGS = r"""
- − – — ‐ ‑ ‒
* × · ⋅ ∙ ∗ • \cdot \times \ast
/ ÷ ⁄ ∕ \div
" “ ” „
' ‘ ’ ′ \prime
< \lt
> \gt
≈ ≃ \approx
≤ ≦ ⩽ \le \leq \leqslant
≥ ≧ ⩾ \ge \geq \geqslant
≠ \ne \neq
° º \degree \degrees
∞ \infty
∈ \in
∪ \cup
∩ \cap
∖ \setminus \backslash
∅ \emptyset \varnothing
± \pm
∓ \mp
| \lvert \rvert \vert \mid
⌊ \lfloor
⌋ \rfloor
⌈ \lceil
⌉ \rceil
⟨ 〈 \langle
⟩ 〉 \rangle
\{ \lbrace
\} \rbrace
[ \lbrack
] \rbrack
€ \euro
£ \pounds
: \colon
\frac \dfrac \tfrac \cfrac
\binom \dbinom \tbinom
\epsilon \varepsilon
\phi \varphi
\theta \vartheta
\root{2} √
\root{3} ∛
\mathbb_R_ ℝ
_and_ \land \wedge
_or_ \lor \vee
_ \quad \qquad \hfill \rm \bf \it \vec \limits \displaystyle \textstyle
"""
# name: an example ⟹ what becomes of it, then the pattern ⟹ its replacement. ␣ is a space, ＄ a
# dollar that is money, ⏎ a new row. A name with () is a function below.
RULES = r"""
# spaces, wrappers and signs with a backslash
new row: a\\b ⟹ a⏎b
    \\\\(?: ?\[[\d.]+[a-z]{2}\])? ⟹ ⏎
money: \$5 ⟹ ＄5
    \\\$ ⟹ ＄
escaped sign: 5\% ⟹ 5%
    \\([%#&]) ⟹ \1
mathematics: \(x\) ⟹ ␣x␣
    \\[()\[\]] ⟹ ␣
explicit thousands: 12{,}345 ⟹ 12345
    (?<=\d)(?:, ?\\! ?|\{,\}|\\[,;:! ])(?=\d{3}(?!\d)) ⟹
negative space: x\!y ⟹ xy
    \\! ⟹
space: 5\,m ⟹ 5␣m
    \\[,;: ]|(?<=.)~ ⟹ ␣
only dollar: $5 ⟹ ＄5
    ^([^$]*)\$([^$]*)$ ⟹ \1＄\2
dollar: $x$ ⟹ ␣x␣
    \$ ⟹ ␣
wrapper: 5\text{ cm} ⟹ 5␣ cm␣
    \\(?:text(?:bf|it|rm|sf|tt|up|normal|sc)?|math(?:rm|bf|it|sf|tt)|[mh]box|emph|boldsymbol|bm
    |boxed|underline|operatorname\*?) *\{([^{}]*)\} ⟹ ␣\1␣
bracket size: \left(x\right) ⟹ (x)
    \\(?:left|right|middle|[bB]igg?[lrm]?)(?![A-Za-z]) *\.? ⟹
command: x\leq 5 ⟹ x≤ 5
    \\[A-Za-z]+ ⟹ first_spelling()
spaces: x   y ⟹ x y
    ␣+ ⟹ ␣

# what stands around the answer
announcement: The final answer is 5 ⟹ ␣5
    (?i)^ ?(?:the )?(?:final )?answer(?: is|:)(?=[ :]) ⟹
outer spaces: ␣5␣ ⟹ 5
    ^[ :]+|[ :]+$ ⟹
emphasis: **5** ⟹ 5
    ^(\*+|[`"_]+)([^*`"]+)\1$ ⟹ \2
outer signs: = 5. ⟹ 5
    ^[=≈ ]+|[.,; ]+$ ⟹

# operators and relations
at most: x<=5 ⟹ x≤5
    <= ⟹ ≤
at least: x>=5 ⟹ x≥5
    >= ⟹ ≥
equal: x==5 ⟹ x=5
    == ⟹ =
unequal: x != 5 ⟹ x≠ 5
    ␣!= ⟹ ≠
power: x**2 ⟹ x^2
    (?<=[\w)}]) ?\*\* ?(?=[\w({\\-]) ⟹ ^
comma and: 1, and 2 ⟹ 1, 2
    ([,;]) ?(?:and|or)\b ⟹ \1
empty set: \{\} ⟹ ∅
    \\\{ ?\\\} ⟹ ∅
member of a set of one: x∈\{5\} ⟹ x=5
    ∈ ?\\\{([^,;{}\\]*)\\\} ⟹ =\1
index: x_12 ⟹ x_{12}
    _ ?(\d+) ⟹ _{\1}
index of two roots: x_{±} ⟹ x
    _ ?\{ ?[±∓] ?\} ⟹
prime: f^' ⟹ f'
    \^ ?(') ⟹ \1
infinity: -oo ⟹ -∞
    (?<![A-Za-z\\])(?:inf|infinity|oo)(?![A-Za-z]) ⟹ ∞
all reals: (-∞,∞) ⟹ \mathbb R
    \( ?- ?∞ ?, ?\+? ?∞ ?\) ⟹ \\mathbb R

# matrices become lists of rows, all roots \root{3}{x}
matrix: \begin{pmatrix}1&2⏎3&4\end{pmatrix} ⟹ [[1,2],[3,4]]
    ([(\[] *)?\\begin *\{ *(?:[bpB]|small)?(?:matrix|array) *\}(?: *\{[lcr| ]*\})?
    (.*?)(?:⏎ *)?\\end *\{ *\w+ *\}(?(1) *[)\]]) ⟹ list_of_rows()
root: \sqrt[3]{x} ⟹ \root{3}{x}
    \\sqrt ?\[([^\[\]]*)\] ⟹ \\root{\1}
square root: sqrt(x) ⟹ \root{2}(x)
    \\?(?<![A-Za-z])sqrt ⟹ \\root{2}
choose: {n\choose 2} ⟹ \choose{n}{ 2}
    \{([^{}]*)\\(over|choose)\b([^{}]*)\} ⟹ \\\2{\1}{\3}

# numbers
repeating decimal: 0.1\overline{6} ⟹ (0.1+6/90)
    (\d*)\.(\d*) ?\\(?:overline|bar|dot) ?\{ ?(\d+) ?\} ⟹ sum_with_period()
mixed number: 1\frac12 ⟹ 1 1/2
    (?<![\w.^_}])(\d+) ?\\frac ?(?:\{ ?(\d+) ?\}|(\d)) ?(?:\{ ?(\d+) ?\}|(\d)) ?(?![\d.])
    ⟹ \1 \2\3/\4\5
mixed sum: 1 1/2 ⟹ (1+1/2)
    (?<![\w.^_}])(\d+) ?(?<= )(\d+) ?/ ?(\d+)(?![\d.]) ⟹ sum_with_fraction()
thousand: 5 thousand ⟹ 5*10^3
    (?<=\d) ?thousand\b ⟹ *10^3
million: 1.5 million ⟹ 1.5*10^6
    (?<=\d) ?million\b ⟹ *10^6
billion: 2billion ⟹ 2*10^9
    (?<=\d) ?billion\b ⟹ *10^9

# marks and units
power of ten: 3 x 10^5 ⟹ 3*10^5
    (?<=\d) ?[xX] ?(?=10 ?\^) ⟹ *
degree: 45^{\circ} ⟹ 45°
    \^ ?(?:\\circ\b|°|\{ ?(?:\\circ|°) ?\}) ⟹ °
measure of an angle: m\angle A ⟹ \angle A
    \bm ?(?=\\angle) ⟹
percent: 5 percent ⟹ 5%
    (?<=[\d)}]) ?per ?cent\b ⟹ %
degrees: 45 degrees ⟹ 45°
    (?<=[\d)}]) ?deg(?:rees?)?\b ⟹ °
temperature: 25° Celsius ⟹ 25 °C
    ␣?° ?([CF])[a-z]*\b ⟹ ␣°\1
"""
TIMES = {"wrapper": 3}  # wrappers stand inside each other; every other rule is applied once


class Rule(NamedTuple):
    name: str
    example: str
    result: str
    pattern: re.Pattern
    replacement: object  # a template of re.sub, or a function of the match


def first_spelling(match):
    return PLAIN.get(match[0], match[0])


def list_of_rows(match):
    text = re.sub(",(?=[0-9]{3})", "", match[2])  # 1,000 is one entry
    rows = text.replace("&", ",").replace("⏎", "],[")
    return f"[[{rows}]]"


def sum_with_period(match):
    whole, digits, period = match.groups()
    nines = "9" * len(period) + "0" * len(digits)
    return f"({whole or 0}.{digits or 0}+{period}/{nines})"


def sum_with_fraction(match):
    """1 1/2 is 1 + 1/2. 2 3/2 stays as it is: it could be mixed or a product (decision 11)."""
    whole, numerator, denominator = match.groups()
    if 0 < int(numerator) < int(denominator):
        return f"({whole}+{numerator}/{denominator})"
    return match[0]


def plain_signs():
    """{spelling: the one that we use}."""
    plain = {}
    for line in SPELLINGS.strip().splitlines():
        first, *others = line.split()
        for name in others:
            plain[name] = first.replace("_", " ")
    for sign, name in zip("αβγδεζηθικλμνξοπρστυφχψω", GREEK):
        plain[sign] = f"\\{name} "
    return plain


def read_rules():
    """The rules of the table, in its order."""
    functions = (first_spelling, list_of_rows, sum_with_period, sum_with_fraction)
    by_name = {f"{function.__name__}()": function for function in functions}
    table = re.sub(r"(?m)^(?:#.*)?\n", "", RULES)
    rules = []
    for rule in re.split(r"\n(?=\S)", table.rstrip()):
        head, *lines = rule.split("\n")
        name, example = head.split(": ", 1)
        before, after = example.split(" ⟹ ")
        body = "".join(line.strip() for line in lines)
        pattern, replacement = re.split(" ?⟹ ?", body)
        texts = [text.replace("␣", " ") for text in (before, after, pattern, replacement)]
        texts[-1] = by_name.get(replacement, texts[-1])
        rules.append(Rule(name, *texts))
    return rules


PLAIN = plain_signs()
SIGNS = {ord(sign): plain for sign, plain in PLAIN.items() if len(sign) == 1}
REWRITES = read_rules()


def clean(text):
    """The answer in one spelling, without wrappers, delimiters and needless spaces."""
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿⁱ]+", r"^{\g<0>}", text)
    text = re.sub("[₀₁₂₃₄₅₆₇₈₉₊₋ₙₓ]+", r"_{\g<0>}", text)
    text = re.sub("[¼-¾⅐-⅞]", r" \g<0>", text)
    text = unicodedata.normalize("NFKC", text.translate(SIGNS)).translate(SIGNS)
    text = "".join(map(printable, text))
    text = re.sub(r"[^\x00-\x7f]", ascii_digit, text)
    for rule in REWRITES:
        for _ in range(TIMES.get(rule.name, 1)):
            text = re.sub(rule.pattern, rule.replacement, text)
    return text


def printable(sign):
    """The sign, a space for one that is not printable, nothing for one that only formats."""
    if unicodedata.category(sign) == "Cf":
        return ""
    return sign if sign.isprintable() else " "


def ascii_digit(match):
    return str(unicodedata.digit(match[0], match[0]))


# ------------------------------------------------------------------------------------------------
# 2. What is no mathematics: words, options, units


def as_words(text):
    """The answer as text. Spaces that separate stay: 2 1/2 is not 21/2.

    Plain words lose case and article.
    """
    text = re.sub(r"(?<![\w,]) | (?!\w)", "", text)
    text = re.sub(r"\{(\w)\}(?!\w)", r"\1", text)
    words = re.search(r"(?i)[^\W\d_]{3}|^no$|\d ?[ap]\.?m\b", text)
    if not words or re.search(r"[\\^_=<>+*/{}|≤≥≠∈∪∞]", text):
        return text
    text = re.sub(r"([ap])\.m\b\.?", r"\1m", text.casefold())
    return re.sub(r"^(?:the|an?) (?=.{3})", "", text).strip(" .!?'")


OPTION = re.compile(
    r"(?i:(?:the )?(?:correct )?(?:option|choice|answer)(?: is)?:? ?)?"
    r"(?:([A-J])(?:[.:)]? ?$|[.:)] )|[(\[]([A-Ja-j])[)\]][.:]?)(?: ?(?![A-J]\b)(.+))?"
)


def option(text):
    """(letter, text) of a multiple-choice answer: B, (b), B., "Option B", "B: text"; or None."""
    match = OPTION.fullmatch(text.replace("**", "").strip())
    if not match:
        return None
    letter, bracketed, rest = match.groups()
    return (letter or bracketed).upper(), rest


def same_option(given, gold):
    letter, text = given
    gold_letter, gold_text = gold
    if letter != gold_letter:
        return False
    return not text or not gold_text or answers_match(text, gold_text)


# A line is one unit: our name, then other names. A name of three letters or more has a plural.
UNIT_NAMES = """
m metre meter
cm centimetre centimeter
mm millimetre millimeter
km kilometre kilometer
ft feet foot
in inch inche
yd yard
mi mile
g gram
kg kilogram
mg milligram
lb pound
oz ounce
L liter litre
mL ml
gal gallon
s sec second
min minute
h hr hour
kmh kph
rad radian
K kelvin
N newton
J joule
cal calorie
W watt
V volt
A amp
Hz hertz
Pa pascal
＄ $ dollar USD
¢ cent
€ euro EUR
£ GBP
¥ yen
₹ rupee
person people
"""
OTHER_UNITS = "cup day week month year mph ton °C °F kJ kW mol mole eV unit way time point"


def unit_names():
    """{name or plural: the name that we use}."""
    units = {}
    for line in UNIT_NAMES.strip().splitlines() + OTHER_UNITS.split():
        names = line.split()
        for name in names:
            units[name] = names[0]
            if len(name) > 2:
                units[name + "s"] = names[0]
    return units


UNITS = unit_names()
ANY_UNIT = "|".join(map(re.escape, sorted(UNITS, key=len, reverse=True)))
ONE_UNIT = (
    rf"(?:(?:square|sq\.?|cubic|cu\.?) )?(?:{ANY_UNIT})(?![A-Za-z])"
    r"(?: ?\^ ?\{?-?\d\}?| squared| cubed)?"
)
UNIT = re.compile(
    rf"(?:(?<=[\d)}}\]%°])|(?<=\\pi)) ?{ONE_UNIT}(?: ?(?:/|\*| per | ) ?{ONE_UNIT}){{0,3}}$"
)
CURRENCY = re.compile(r"([+-]?) ?([＄€£¥₹]) ?")
# "5 apples" is 5, but these words say that the number alone is not the answer.
NO_NOUNS = (
    "less|plus|minus|is|was|has|and|or|of|over|to|by|if|not|than|more|ones|tens|dozens|hundreds"
    "|thousands|remainders|millions|billions|halves|thirds|quarters"
    "|(?:four|fif|six|seven|eigh|nin|ten|hundred|thousand)ths"
)
NOUNS = re.compile(
    rf"([+-]?[\d,.]+) (?!.*\b(?:{NO_NOUNS})\b)((?:[a-z]+ ){{0,2}}[a-z]{{3,}}s)"
)


def split_unit(text):
    """(value, unit) of "5 cm", "\\$5", "3 red apples"; the unit is "" if there is none."""
    currency = CURRENCY.match(text)
    if currency:
        return currency[1] + text[currency.end() :], currency[2]
    unit = UNIT.search(text)
    if unit:
        value = text[: unit.start()]
        if not is_variable(value, unit[0]):
            return value, plain_unit(unit[0])
    noun = NOUNS.fullmatch(text)
    return noun.groups() if noun else (text, "")


def is_variable(value, unit):
    """True if a unit of one letter is a variable: "5m" and "3x + 5 m" end with one."""
    if len(unit.strip()) > 1:
        return False
    last_side = value.rsplit("=")[-1]
    letters = re.search("[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", last_side))
    return unit[0] != " " or letters is not None


def plain_unit(unit):
    """One spelling of a unit: m^2 for "square meters"."""
    unit = re.sub(r"[°＄¢€£¥₹]?[A-Za-z]+|\$", lambda match: UNITS.get(match[0], match[0]), unit)
    unit = re.sub(r"(?:square|sq\.?) (\w+)| squared", r"\1^2", unit.replace(" per ", "/"))
    unit = re.sub(r"(?:cubic|cu\.?) (\w+)| cubed", r"\1^3", unit)
    return re.sub("[ {}]", "", unit)


# ------------------------------------------------------------------------------------------------
# 3. Values: an expression is its values at eight points
#
# A tree is a value or a shape. A value is ("num", Fraction), ("sym", name), or ("values", ...): one
# AtPoint for each of the points, None where the expression is undefined. A shape is ("list", ...),
# ("set", ...), ("∪", ...), ("seq", brackets, ...), ("rel", signs, ...), ("ratio", ...).

SHAPES = {"list", "set", "∪", "∩", "∖", "seq", "rel", "ratio"}
# At each point, every variable has a random value between 0 and this number.
POINTS = (1, -1, 3, -3, 0.1, -0.1, 30, 1000)
MP = mpmath.MPContext()
MP.dps = DIGITS
TRIGONOMETRIC = "sin cos tan cot sec csc sinh cosh tanh".split()
ARCS = {arc + name: "a" + name for name in TRIGONOMETRIC for arc in ("a", "ar", "arc")}
FUNCTIONS = {*TRIGONOMETRIC, *ARCS, "ln", "log", "lg", "exp", "abs"}
CONSTANTS = {"\\pi": MP.pi, "e": MP.e, "i": MP.j}
IN_MPMATH = {"+": "fsum", "*": "fprod", "^": "power", "abs": "fabs", "!": "factorial"} | ARCS


class AtPoint(NamedTuple):
    number: object  # mpf or mpc
    real: bool  # whether every step on the way to the number was real


def number(value):
    return ("num", Fraction(value))


def values_at_points(value):
    """The values of a number, a name or an expression at the points: AtPoint or None each."""
    kind, *parts = value
    if kind == "values":
        return parts
    if kind == "num":
        return [AtPoint(MP.convert(parts[0]), True)] * len(POINTS)
    name = parts[0]
    if name in CONSTANTS:
        return [AtPoint(+CONSTANTS[name], True)] * len(POINTS)
    return [variable_at(point, name) for point in POINTS]


def variable_at(point, name):
    share = random.Random(f"{point}{name}").random()
    return AtPoint(MP.mpf(share * point), True)


def build(operation, *parts):
    """Value of an operation on values: an exact number where it can be, else values at points."""
    if any(part[0] in SHAPES for part in parts):
        raise ValueError("arithmetic on something that is no value")
    exact = exact_result(operation, parts)
    if exact is not None:
        return number(exact)
    exponent = None
    if operation == "^" and parts[1][0] == "num":
        exponent = parts[1][1]
    rows = zip(*map(values_at_points, parts))
    values = [value_at_point(operation, row, exponent) for row in rows]
    if not any(values):
        raise ValueError("too large, or undefined at every point")
    return ("values", *values)


def exact_result(operation, parts):
    """Sum, product or power of exact numbers; None where there is no exact result."""
    if operation not in ("+", "*", "^") or any(part[0] != "num" for part in parts):
        return None
    numbers = [part[1] for part in parts]
    if sum(map(bits, numbers)) > MAX_BITS:
        raise ValueError("too large a number")
    if operation == "+":
        return sum(numbers)
    if operation == "*":
        return math.prod(numbers)
    base, exponent = numbers
    if not base and not exponent:
        raise ValueError("zero to the power of zero")
    if exponent.denominator == 1 and abs(exponent) * bits(base) <= MAX_BITS:
        return base**exponent.numerator
    return None


def bits(x):
    return x.numerator.bit_length() + x.denominator.bit_length()


def value_at_point(operation, arguments, exponent):
    """Value of an operation at one point, or None. exponent: of a power, if it is exact."""
    if None in arguments:
        return None
    numbers = [argument.number for argument in arguments]
    real = not any(isinstance(number, MP.mpc) for number in numbers)
    if operation == "^" and abs(numbers[1]) > MAX_EXPONENT:
        return None
    try:
        if exponent and exponent.denominator % 2 and real and numbers[0] < 0:
            # The real root of -8 is -2, not a complex one.
            result = MP.power(-numbers[0], numbers[1]) * (-1) ** exponent.numerator
        elif operation in ("+", "*"):
            result = getattr(MP, IN_MPMATH[operation])(numbers)
        else:
            result = getattr(MP, IN_MPMATH.get(operation, operation))(*numbers)
    except (ArithmeticError, TypeError, ValueError):
        return None
    if result and not abs(MP.mag(result)) <= MAX_MAGNITUDE:  # true for nan, too
        return None
    stays_real = not (real and isinstance(result, MP.mpc))
    return AtPoint(result, stays_real and all(argument.real for argument in arguments))


def negative(value):
    return build("*", MINUS_ONE, value)


def quotient(value, divisor):
    return build("*", value, build("^", divisor, MINUS_ONE))


MINUS_ONE = number(-1)
PI = ("sym", "\\pi")
INFINITY = ("sym", "∞")
MINUS_INFINITY = negative(INFINITY)
MARKS = {"%": number("1/100"), "°": build("*", number("1/180"), PI)}
# By base: the factor of ln. log without a base has an unknown one (decision 10).
LOG_FACTORS = {"lg": build("^", build("ln", number(10)), MINUS_ONE), "log": ("sym", "\\log")}


# ------------------------------------------------------------------------------------------------
# 4. Parser: from the cleaned text to a tree

# A line holds operators of one rank and kind. The last infix is none: letters side by side.
OPERATOR_TABLE = """
1 list , ; and or
2 rel = < > ≤ ≥ ≠ ≈ ∈
3 ratio :
4 ∪ ∪ U
4 ∩ ∩
4 ∖ ∖
5 + + -
6 * * /
8 ^ ^
"""
PRODUCT_RANK = 7  # of factors side by side
INFIX = (
    r"(?:and|or)\b|U(?= ?[(\[{\\])|[,;=<>≤≥≠≈∈:∪∩∖+*/^-]"
    r"|(?=[A-Za-z({⌊⌈∞]|\\[A-Za-z])"
)
FUNCTION = rf"\\?(?:{'|'.join(FUNCTIONS)})\b"
# Area, AB, f(x), f^{-1}(x), P(A): what a side is called that names the other one.
LABEL = (
    r"([A-Za-z]{4,}(?: [A-Za-z]+)*|[A-Z]{2,3}"
    r"|[A-Wa-w](?:_\w|_\{[^{}]*\})?'*(?:\^ ?\{ ?-1 ?\})? ?\( ?\w+(?: ?, ?\w+)* ?\)) ?(?==)"
)
CLOSING = {
    "(": r"[)\]]",
    "[": r"[)\]]",
    "⟨": "⟩",
    "{": r"\}",
    "\\{": r"\\\}",
    "|": r"\|",
    "⌊": "⌋",
    "⌈": "⌉",
}
ROUNDING = {"|": "abs", "⌊": "floor", "⌈": "ceil"}
MARKED = "mathbb mathcal overline hat widehat bar tilde angle triangle".split()


class Operator(NamedTuple):
    rank: int
    kind: str


def operators():
    """{sign: Operator}."""
    found = {"": Operator(PRODUCT_RANK, "*")}
    for line in OPERATOR_TABLE.strip().splitlines():
        rank, kind, *signs = line.split()
        for sign in signs:
            found[sign] = Operator(int(rank), kind)
    return found


OPERATORS = operators()


class Parser:
    """Precedence climbing over one cleaned answer."""

    def __init__(self, text):
        self.text = text
        self.at = 0
        self.depth = 0

    def look(self, pattern):
        return re.compile(f" ?({pattern})").match(self.text, self.at)

    def take(self, pattern):
        """The text of what comes next if it fits the pattern; else None."""
        match = self.look(pattern)
        if not match:
            return None
        self.at = match.end()
        return match[1]

    def need(self, pattern):
        """The text of what comes next. Raises ValueError if it does not fit the pattern."""
        text = self.take(pattern)
        if text is None:
            raise ValueError(f"expected {pattern}")
        return text

    def expression(self, rank):
        """The tree of what follows, up to the first operator that binds less than the rank."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise ValueError("too deep")
        left = self.operand(rank)
        divided = False
        while infix := self.look(INFIX):
            sign = infix[1]
            strength = OPERATORS[sign].rank
            if strength < rank:
                break
            if rank == PRODUCT_RANK and not sign and self.look(FUNCTION):
                break  # sin x cos x is a product of two functions
            if divided and not sign:
                raise ValueError("a/bc can be read in two ways")
            self.at = infix.end()
            right = self.right_operand(sign, strength)
            divided = sign == "/" and not left[0] == right[0] == "num"
            left = join(sign, left, right)
        self.depth -= 1
        return left

    def operand(self, rank):
        """A name in front of an equal sign, a signed expression, or an atom with its marks."""
        label = self.look(LABEL) if rank <= 2 else None
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

    def right_operand(self, sign, strength):
        if sign == "^" and self.look("{"):
            return self.atom()  # a^{b}c is a^{b} times c
        return self.expression(8 if sign in ("*", "/", "^") else strength + 1)

    def argument(self):
        """A digit or an atom: \\frac12 is 1/2."""
        return number(self.take(r"\d")) if self.look(r"\d") else self.atom()

    def atom(self):
        if self.look(r"\.?\d"):
            return self.number()
        opening = self.take(r"\\\{|[(\[⟨{|⌊⌈]")
        if opening:
            return self.enclosed(opening)
        sign = self.take("[∞∅]")
        if sign:
            return INFINITY if sign == "∞" else ("set",)
        name = self.need(r"\\?[A-Za-z]+")
        if name[0] == "\\" or name in FUNCTIONS or name.lower() in GREEK:
            return self.command(name.strip("\\"))
        if len(name) > 3:
            raise ValueError("a word")
        self.at -= len(name) - 1  # letters side by side are a product
        return self.symbol(name[0])

    def symbol(self, name):
        index = self.take(r"_ ?(?:\{[^{}]*\}|[A-Za-z])")
        if index:
            name += "_" + index.replace(" ", "").strip("_{}")
        primes = self.take("'(?: ?')*") or ""
        return ("sym", name + primes.replace(" ", ""))

    def number(self):
        """A number as it is written. A comma separates thousands only outside of brackets."""
        before = self.text[: self.at]
        opened = sum(map(before.count, "([{⟨"))
        closed = sum(map(before.count, ")]}⟩"))
        thousands = "" if opened > closed else r"\d{1,3}(?:,\d{3})+(?![\d,])|"
        match = self.look(rf"({thousands}\d*)((?:\.\d+)?)(?:[eE]([-+]?\d{{1,4}}))?")
        _, whole, decimals, exponent = match.groups()
        self.at = match.end()
        digits = whole.replace(",", "")
        if re.match(r"0\d", digits) or self.look(r"[\d._]"):
            raise ValueError("a part of a time, a date, a list or a number cut at its commas")
        power = build("^", number(10), number(exponent or 0))
        return build("*", number(digits + decimals), power)

    def enclosed(self, opening):
        """What stands in brackets: a value, a set, a tuple, an interval, a matrix."""
        inner = self.expression(5 if opening in ROUNDING else 1)
        brackets = opening + self.need(CLOSING[opening])
        if opening in ROUNDING:
            return build(ROUNDING[opening], inner)
        items = inner[1:] if inner[0] == "list" else (inner,)
        if len(items) == 1 and brackets in ("()", "{}"):
            return inner
        if "{" in opening:
            return ("set", *dict.fromkeys(items))
        rows_of_one = [item for item in items if item[:2] == ("seq", "[]") and len(item) == 3]
        if brackets == "[]" and len(rows_of_one) == len(items):
            return ("seq", "()", *(row[2] for row in rows_of_one))  # a column is a tuple
        return ("seq", "()" if opening == "⟨" else brackets, *items)

    def command(self, name):
        if name in ("frac", "over", "binom", "choose"):
            first = self.argument()
            second = self.argument()
            if name in ("frac", "over"):
                return quotient(first, second)
            return build("binomial", first, second)
        if name == "root":
            power = build("^", self.argument(), MINUS_ONE)
            return build("^", self.atom(), power)
        if name in FUNCTIONS:
            return self.function(name)
        if name.lower() in GREEK:
            return self.symbol("\\" + name)
        if name in MARKED:
            marked = self.need(r"\{[\w ]+\}|[A-Z]{1,3}|\w")
            return self.symbol(f"\\{name}" + marked.replace(" ", "").strip("{}"))
        raise ValueError("a command that is not in the list")

    def function(self, name):
        factor = LOG_FACTORS.get(name)
        if name == "log" and self.take("_"):
            factor = build("^", build("ln", self.argument()), MINUS_ONE)
        exponent = self.argument() if self.take(r"\^") else number(1)
        if exponent == MINUS_ONE:
            name = "a" + name  # sin^{-1} is the inverse function
            exponent = number(1)
        if name not in FUNCTIONS:
            raise ValueError("an inverse without a name")
        argument = self.atom() if self.look(r"[({]") else self.expression(PRODUCT_RANK)
        if factor:
            value = build("*", build("ln", argument), factor)
        else:
            value = build(name, argument)
        return build("^", value, exponent)


def join(sign, left, right):
    """The tree of an operator and its two operands."""
    kind = OPERATORS[sign].kind
    if kind == "rel":
        if left[0] == "rel":  # a chain: 1 < x < 2
            return ("rel", left[1] + sign, *left[2:], right)
        return ("rel", sign, left, right)
    if sign == "-":
        return build("+", left, negative(right))
    if sign == "/":
        return quotient(left, right)
    if kind in ("+", "*", "^"):
        return build(kind, left, right)
    if kind == "ratio" and not {left[0], right[0]}.isdisjoint(SHAPES - {"ratio"}):
        raise ValueError("a ratio of something that is no value")
    items = left[1:] if left[0] == kind else [left]
    return (kind, *items, right)


DATES = re.compile(
    r"(?i)\d+(?:-\d+){2,}|\d+(?:/\d+){2,}|\d+(?::\d\d)* ?[ap]\.?m\.?|(\d+)-(\d+)"  # ranges, too
)
WORDS = re.compile(r"(?![b-df-hj-np-tv-z]{2,3}$)[^\W\d_]{2,}(?:[ '-][^\W\d_]+)*")
TERMS = re.compile(r"\\?[A-Za-z]+|[\^!%°]")
SET_BUILDER = re.compile(
    r"\\\{ ?[a-z] ?(?:∈ ?\\mathbb ?\{? ?R ?\}? ?)?[|:](.*[<>≤≥≠=].*)\\\}"
)


def read(text):
    """(tree, unit) of a cleaned answer. Raises ValueError where it is no mathematics or too long."""
    if is_words(text) or is_date(text) or len(TERMS.findall(text)) > MAX_TERMS:
        raise ValueError("words, a date, a time, a range, or too long")
    text, unit = split_unit(SET_BUILDER.sub(r"\1", text))
    two_signs = "±" in text or "∓" in text
    items = []
    for plus, minus in ("+-", "-+") if two_signs else ("+-",):
        tree = parse(text.replace("±", plus).replace("∓", minus))
        items += tree[1:] if tree[0] == "list" else [tree]
    items = [smaller_first(item) for item in items]
    if two_signs:
        items = list(dict.fromkeys(items))
    tree = items[0] if len(items) == 1 else ("list", *items)
    if tree[0] == "set" and len(tree) == 2 and tree[1][0] != "set":
        tree = tree[1]
    return tree, unit


def is_words(text):
    return WORDS.fullmatch(text) and FUNCTIONS.union(GREEK).isdisjoint(text.split())


def is_date(text):
    """True for dates, times and ranges. 5-2 is 3, because no range falls."""
    date = DATES.fullmatch(text)
    if not date or not date[1]:
        return date is not None
    return int(date[1]) < int(date[2])


def parse(text):
    parser = Parser(text)
    tree = parser.expression(1)
    if parser.at < len(parser.text):
        raise ValueError("text left over")
    return tree


def smaller_first(tree):
    """5 > x as x < 5; every other tree as it is."""
    if tree[0] != "rel" or not set(tree[1]) <= {">", "≥"}:
        return tree
    signs = tree[1].replace(">", "<").replace("≥", "≤")
    return ("rel", signs[::-1], *tree[:1:-1])


# ------------------------------------------------------------------------------------------------
# 5. Comparison


def same_answer(given, gold):
    tree, unit = given
    gold_tree, gold_unit = gold
    if unit and gold_unit and unit != gold_unit:
        return False
    return same(tree, gold_tree)


def same(a, b):
    """True if two trees mean the same answer."""
    kinds = {a[0], b[0]}
    if a == b:
        return True
    if kinds == {"rel"} and same_relation(a, b):
        return True
    if is_system(a) and is_system(b) and same_members(a, b):
        return True
    name, value = named(a)
    other_name, other_value = named(b)
    if value is not a or other_value is not b:
        if name and other_name and name != other_name:
            return False
        return value[0] != "rel" and other_value[0] != "rel" and same(value, other_value)
    if not kinds & SHAPES:
        return agree(a, b)
    if kinds <= {"list", "set", "∪"}:
        return same_members(a, b)
    if kinds == {"ratio", "num"}:
        return same_ratio(*sorted((a, b)))
    if a[0] != b[0] or len(a) != len(b):
        return False
    return all(same_part(p, q) for p, q in zip(a, b))


def same_part(p, q):
    """True for equal brackets or signs, and for subtrees that mean the same."""
    if isinstance(p, tuple) and isinstance(q, tuple):
        return same(p, q)
    return p == q


def is_system(tree):
    return tree[0] == "list" and all(item[0] == "rel" for item in tree[1:])


def same_members(a, b):
    """True if each member of one means the same as a member of the other, in any order."""
    rest = list(b[1:])
    for member in a[1:]:
        equal = [other for other in rest if same(member, other)]
        if not equal:
            return False
        rest.remove(equal[0])
    return not rest


def same_ratio(fraction, ratio):
    """2:3 is 2/3, but 2:4 is not 1/2 and 2:1 is not 2."""
    x = fraction[1]
    return x.denominator > 1 and ratio[1:] == (number(x.numerator), number(x.denominator))


def same_relation(a, b):
    """True if left minus right is equal, up to its sign for an equation."""
    signs = a[1]
    if signs != b[1] or signs not in ("=", "≠", "<", "≤"):
        return False
    difference = minus(a[2], a[3])
    if agree(difference, minus(b[2], b[3])):
        return True
    return signs in ("=", "≠") and agree(difference, minus(b[3], b[2]))


def minus(left, right):
    return build("+", left, negative(right))


def label(tree):
    """Name of a side that only names the other one: x, f(x), Area, (x, y); else None."""
    if tree[:2] == ("seq", "()"):
        names = [label(item) for item in tree[2:]]
        return ",".join(names) if all(names) else None
    if tree[0] != "sym" or tree in (INFINITY, *((("sym", name)) for name in CONSTANTS)):
        return None
    return tree[1]


def named(tree):
    """(name, value) of "x = 5", "x > 5", "x ∈ ..." or a list of them; (None, tree) otherwise."""
    if tree[0] == "list":
        return named_list(tree)
    if tree[0] != "rel":
        return None, tree
    signs, sides = tree[1], tree[2:]
    if set(signs) <= {"=", "≈"}:
        return named_equation(tree)
    if signs == "∈" and label(sides[0]):
        return label(sides[0]), sides[1]
    return named_interval(tree)


def named_list(tree):
    """x = 1, y = 2 is (1, 2), called x,y. "x = k pi, k ∈ Z" is no point: the names must rise."""
    names, values = zip(*map(named, tree[1:]))
    if all(names) and sorted(set(names)) == list(names):
        return ",".join(names), ("seq", "()", *values)
    return None, tree


def named_equation(tree):
    """x = 5, 5 = x, x = 2 + 3 = 5, and 1/3 ≈ 0.333 without a name."""
    signs, sides = tree[1], tree[2:]
    if label(sides[-1]) and not label(sides[0]):
        signs = signs[::-1]
        sides = sides[::-1]
    name = label(sides[0])
    if name:
        signs = signs[1:]
        sides = sides[1:]
    for sign, side in zip(signs, sides[1:]):
        if sign == "=" and not same(sides[0], side):
            return None, tree
    return name, sides[0]


def named_interval(tree):
    """x > 5 is (5, ∞), 1 < x ≤ 2 is (1, 2]."""
    signs, sides = tree[1], tree[2:]
    if signs in ("<", "≤"):
        if label(sides[0]):
            signs = "<" + signs
            sides = (MINUS_INFINITY, *sides)
        else:
            signs = signs + "<"
            sides = (*sides, INFINITY)
    if len(sides) != 3 or not set(signs) <= {"<", "≤"} or not label(sides[1]):
        return None, tree
    opening = "[" if signs[0] == "≤" else "("
    closing = "]" if signs[1] == "≤" else ")"
    return label(sides[1]), ("seq", opening + closing, sides[0], sides[2])


def decimal_slack(value):
    """One unit in the last place of a decimal of 10 places and 10 digits or more; else 0."""
    x = value[1] if value[0] == "num" else Fraction(0)
    for places in range(100):
        if 10**places % x.denominator == 0:
            break
    else:
        return 0
    long_enough = places >= 10 and abs(x) * 10**places >= 10**9
    return Fraction(1, 10**places) if long_enough else 0


def agree(a, b):
    """True if two values are equal at all points where both are real.

    If there are hardly any, they have to be equal at all points where they are defined.
    """
    slack = max(decimal_slack(a), decimal_slack(b))
    if a[0] == b[0] == "num":
        return a[1] == b[1] or abs(a[1] - b[1]) < slack
    slack = MP.convert(max(slack - TOLERANCE, TOLERANCE))  # less than a whole unit
    pairs = [(x, y) for x, y in zip(values_at_points(a), values_at_points(b)) if x and y]
    real = [(x, y) for x, y in pairs if x.real and y.real]
    if len(real) >= 2:
        pairs = real
    return len(pairs) >= 2 and all(abs(x.number - y.number) <= slack for x, y in pairs)
