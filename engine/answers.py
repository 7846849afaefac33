"""Comparison of two short answers: LaTeX, numbers, units, sets, intervals, words and options.

The reward of ZPPO (arXiv 2606.18216, App. D.1) calls mathruler here; we compare ourselves, in three stages: `clean`
gives one spelling to equal signs, `Parser` computes values and builds shapes, `same` compares. This file imports
nothing from the rest of the project: copy what you need. Decisions and deviations:

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

import mpmath

MAX_CHARS = 2000  # of an answer that is read as mathematics
MAX_DEPTH = 80  # of nested expressions
MAX_TERMS = 200  # names, powers, marks and factorials of an answer
MAX_BITS = 10_000  # of an exact number
MAX_EXPONENT = 10_000
MAX_MAGNITUDE = 800  # of any other number: from 2^-800 to 2^800, about 1e-241 to 1e241
DIGITS = 500  # of any other number: rounding errors stay far below the tolerance
TOLERANCE = Fraction(1, 10**250)  # two other numbers that differ by less are equal


def answers_match(given: str, gold: str) -> bool:
    """True if two short answers mean the same. Symmetric, never raises; only strings match anything."""
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
    if (first := option(given)) and (second := option(gold)):
        (letter, text), (other, words) = first, second
        return letter == other and (not text or not words or answers_match(text, words))
    if as_words(given) == as_words(gold):
        return given != ""
    try:
        with LOCK:
            (first, unit), (second, other) = read(given), read(gold)
            return (not unit or not other or unit == other) and same(first, second)
    except (ArithmeticError, ValueError, RecursionError):
        return False


PLAIN_NUMBER = re.compile(r"[+-]?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?|[+-]?\.[0-9]+")
GREEK = ("alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho sigma tau upsilon "
         "phi chi psi omega").split()
TRIG = "sin cos tan cot sec csc sinh cosh tanh".split()
ARCS = {arc + name: "a" + name for name in TRIG for arc in ("a", "ar", "arc")}
FUNCTIONS = {*TRIG, *ARCS, *"ln log lg exp abs".split()}
SPELLINGS = r"""- − – — ‐ ‑ ‒; * × · ⋅ ∙ ∗ • \cdot \times \ast; / ÷ ⁄ ∕ \div; " “ ” „; ' ‘ ’ ′ \prime; < \lt; > \gt
; ≈ ≃ \approx; ≤ ≦ ⩽ \le \leq \leqslant; ≥ ≧ ⩾ \ge \geq \geqslant; ≠ \ne \neq; ° º \degree \degrees; ∞ \infty; ∈ \in
; ∪ \cup; ∩ \cap; ∖ \setminus \backslash; ∅ \emptyset \varnothing; ± \pm; ∓ \mp; | \lvert \rvert \vert \mid; ⌊ \lfloor
; ⌋ \rfloor; ⌈ \lceil; ⌉ \rceil; ⟨ 〈 \langle; ⟩ 〉 \rangle; \{ \lbrace; \} \rbrace; [ \lbrack; ] \rbrack; € \euro
; £ \pounds; \frac \dfrac \tfrac \cfrac; \binom \dbinom \tbinom; \epsilon \varepsilon; \phi \varphi; \theta \vartheta
; : \colon; \root{2} √; \root{3} ∛; \mathbb_R_ ℝ; _and_ \land \wedge; _or_ \lor \vee
; _ \quad \qquad \hfill \rm \bf \it \vec \limits \displaystyle \textstyle"""  # in the first of each, _ is a space
PLAIN = {name: names.split()[0].replace("_", " ") for names in SPELLINGS.split(";") for name in names.split()[1:]}
PLAIN |= {sign: f"\\{name} " for sign, name in zip("αβγδεζηθικλμνξοπρστυφχψω", GREEK)}
SIGNS = {ord(sign): plain for sign, plain in PLAIN.items() if len(sign) == 1}
WRAPPED = (r"\\(?:text(?:bf|it|rm|sf|tt|up|normal|sc)?|math(?:rm|bf|it|sf|tt)|[mh]box|emph|boldsymbol|bm|boxed"
           r"|underline|operatorname\*?) *\{([^{}]*)\}")
MATRIX = (r"([(\[] *)?\\begin *\{ *(?:[bpB]|small)?(?:matrix|array) *\}(?: *\{[lcr| ]*\})?"
          r"(.*?)(?:⏎ *)?\\end *\{ *\w+ *\}(?(1) *[)\]])")
WHOLE, PART = r"(?<![\w.^_}])(\d+) ?", r"(?:\{ ?(\d+) ?\}|(\d)) ?"  # of a mixed number
REWRITES = [
    # spaces, wrappers and signs with a backslash
    (r"\\\\(?: ?\[[\d.]+[a-z]{2}\])?", "⏎"), (r"\\\$", "＄"), (r"\\([%#&])", r"\1"), (r"\\[()\[\]]", " "),
    (r"(?<=\d)(?:, ?\\! ?|\{,\}|\\[,;:! ])(?=\d{3}(?!\d))", ""),  # explicit thousands separators
    (r"\\!", ""), (r"\\[,;: ]|(?<=.)~", " "), (r"^([^$]*)\$([^$]*)$", r"\1＄\2"), (r"\$", " "),
    *[(WRAPPED, r" \1 ")] * 3, (r"\\(?:left|right|middle|[bB]igg?[lrm]?)(?![A-Za-z]) *\.?", ""),
    (r"\\[A-Za-z]+", lambda match: PLAIN.get(match[0], match[0])), (" +", " "),
    # what stands around the answer
    (r"(?i)^ ?(?:the )?(?:final )?answer(?: is|:)(?=[ :])", ""), (r"^[ :]+|[ :]+$", ""),
    (r"^(\*+|[`\"_]+)([^*`\"]+)\1$", r"\2"), (r"^[=≈ ]+|[.,; ]+$", ""),
    # operators and relations
    ("<=", "≤"), (">=", "≥"), ("==", "="), (" !=", "≠"), (r"(?<=[\w)}]) ?\*\* ?(?=[\w({\\-])", "^"),
    ("([,;]) ?(?:and|or)\\b", r"\1"), (r"\\\{ ?\\\}", "∅"), (r"∈ ?\\\{([^,;{}\\]*)\\\}", r"=\1"),
    (r"_ ?(\d+)", r"_{\1}"), (r"_ ?\{ ?[±∓] ?\}", ""), (r"\^ ?(')", r"\1"),
    (r"(?<![A-Za-z\\])(?:inf|infinity|oo)(?![A-Za-z])", "∞"), (r"\( ?- ?∞ ?, ?\+? ?∞ ?\)", r"\\mathbb R"),
    # matrices become [[1,2],[3,4]], all roots \root{3}{x}
    (MATRIX, lambda match: f"[[{re.sub(',(?=[0-9]{3})', '', match[2]).replace('&', ',').replace('⏎', '],[')}]]"),
    (r"\\sqrt ?\[([^\[\]]*)\]", r"\\root{\1}"), (r"\\?(?<![A-Za-z])sqrt", r"\\root{2}"),
    (r"\{([^{}]*)\\(over|choose)\b([^{}]*)\}", r"\\\2{\1}{\3}"),
    # numbers: 0.1\overline{6} is 0.1 + 6/90, 1\frac12 is 1 1/2, 1 1/2 is 1 + 1/2 (2 3/2 stays: mixed or a product?)
    (r"(\d*)\.(\d*) ?\\(?:overline|bar|dot) ?\{ ?(\d+) ?\}", lambda match:
     f"({match[1] or 0}.{match[2] or 0}+{match[3]}/{'9' * len(match[3]) + '0' * len(match[2])})"),
    (rf"{WHOLE}\\frac ?{PART}{PART}(?![\d.])", r"\1 \2\3/\4\5"),
    (rf"{WHOLE}(?<= )(\d+) ?/ ?(\d+)(?![\d.])", lambda match:
     f"({match[1]}+{match[2]}/{match[3]})" if 0 < int(match[2]) < int(match[3]) else match[0]),
    (r"(?<=\d) ?thousand\b", "*10^3"), (r"(?<=\d) ?million\b", "*10^6"), (r"(?<=\d) ?billion\b", "*10^9"),
    # marks and units
    (r"(?<=\d) ?[xX] ?(?=10 ?\^)", "*"), (r"\^ ?(?:\\circ\b|°|\{ ?(?:\\circ|°) ?\})", "°"), (r"\bm ?(?=\\angle)", ""),
    (r"(?<=[\d)}]) ?per ?cent\b", "%"), (r"(?<=[\d)}]) ?deg(?:rees?)?\b", "°"), (r" ?° ?([CF])[a-z]*\b", r" °\1"),
]


def clean(text):
    """One spelling for the many ways to write the same signs; wrappers, delimiters and spacing go."""
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿⁱ]+", r"^{\g<0>}", text)
    text = re.sub("[₀₁₂₃₄₅₆₇₈₉₊₋ₙₓ]+", r"_{\g<0>}", text)
    text = re.sub("[¼-¾⅐-⅞]", r" \g<0>", text)
    text = unicodedata.normalize("NFKC", text.translate(SIGNS)).translate(SIGNS)
    text = "".join(sign if sign.isprintable() else " " for sign in text if unicodedata.category(sign) != "Cf")
    text = re.sub(r"[^\x00-\x7f]", lambda match: str(unicodedata.digit(match[0], match[0])), text)
    for pattern, replacement in REWRITES:
        text = re.sub(pattern, replacement, text)
    return text


def as_words(text):
    """The answer as text. Spaces that separate stay: 2 1/2 is not 21/2. Plain words lose case and article."""
    text = re.sub(r"\{(\w)\}(?!\w)", r"\1", re.sub(r"(?<![\w,]) | (?!\w)", "", text))
    words = re.search(r"(?i)[^\W\d_]{3}|^no$|\d ?[ap]\.?m\b", text)
    if not words or re.search(r"[\\^_=<>+*/{}|≤≥≠∈∪∞]", text):
        return text
    text = re.sub(r"([ap])\.m\b\.?", r"\1m", text.casefold())
    return re.sub(r"^(?:the|an?) (?=.{3})", "", text).strip(" .!?'")


OPTION = re.compile(r"(?i:(?:the )?(?:correct )?(?:option|choice|answer)(?: is)?:? ?)?"
                    r"(?:([A-J])(?:[.:)]? ?$|[.:)] )|[(\[]([A-Ja-j])[)\]][.:]?)(?: ?(?![A-J]\b)(.+))?")


def option(text):
    """(letter, text) of a multiple-choice answer: B, (b), B., "Option B", "B: text", "(B) text", or None."""
    match = OPTION.fullmatch(text.replace("**", "").strip())
    return match and ((match[1] or match[2]).upper(), match[3])


UNIT_NAMES = """m metre meter; cm centimetre centimeter; mm millimetre millimeter; km kilometre kilometer; ft feet foot;
in inch inche; yd yard; mi mile; g gram; kg kilogram; mg milligram; lb pound; oz ounce; L liter litre; mL ml;
gal gallon; cup; s sec second; min minute; h hr hour; day; week; month; year; mph; kmh kph; ton; rad radian; °C; °F;
K kelvin; N newton; J joule; kJ; cal calorie; W watt; kW; V volt; A amp; Hz hertz; Pa pascal; mol mole; eV;
＄ $ dollar USD; ¢ cent; € euro EUR; £ GBP; ¥ yen; ₹ rupee; unit; way; time; point; person people"""
UNITS = {name + plural: names.split()[0] for names in UNIT_NAMES.split(";") for name in names.split()
         for plural in ("", "s" if len(name) > 2 else "")}
ONE = rf"(?:{'|'.join(map(re.escape, sorted(UNITS, key=len, reverse=True)))})(?![A-Za-z])"
ONE = rf"(?:(?:square|sq\.?|cubic|cu\.?) )?{ONE}(?: ?\^ ?\{{?-?\d\}}?| squared| cubed)?"
UNIT = re.compile(rf"(?:(?<=[\d)}}\]%°])|(?<=\\pi)) ?{ONE}(?: ?(?:/|\*| per | ) ?{ONE}){{0,3}}$")
NO_NOUNS = ("less|plus|minus|is|was|has|and|or|of|over|to|by|if|not|than|more|ones|tens|dozens|hundreds|thousands"
            "|remainders|millions|billions|halves|thirds|quarters|(?:four|fif|six|seven|eigh|nin|ten|hundred|thousand)ths")
NOUNS = re.compile(rf"([+-]?[\d,.]+) (?!.*\b(?:{NO_NOUNS})\b)((?:[a-z]+ ){{0,2}}[a-z]{{3,}}s)")


def split_unit(text):
    """(value, unit) of "5 cm", "\\$5", "3 red apples"; the unit is "" if there is none."""
    if match := re.match(r"([+-]?) ?([＄€£¥₹]) ?", text):
        return match[1] + text[match.end():], match[2]
    if match := UNIT.search(text):
        value, unit = text[: match.start()], match[0]
        letters = re.search("[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", value.rsplit("=")[-1]))
        if len(unit.strip()) > 1 or unit[0] == " " and not letters:  # "5m" and "3x + 5 m" end with a variable
            unit = re.sub(r"[°＄¢€£¥₹]?[A-Za-z]+|\$", lambda match: UNITS.get(match[0], match[0]), unit)
            unit = re.sub(r"(?:square|sq\.?) (\w+)| squared", r"\1^2", unit.replace(" per ", "/"))
            return value, re.sub("[ {}]", "", re.sub(r"(?:cubic|cu\.?) (\w+)| cubed", r"\1^3", unit))
    match = NOUNS.fullmatch(text)
    return match.groups() if match else (text, "")


# Trees. A value is ("num", Fraction), ("sym", name) or ("at", *entries): what an expression is at the fixed points.
# All else is a shape: ("list", ...), ("set", ...), ("∪", ...), ("seq", brackets, ...), ("rel", signs, ...), ...
SHAPES = {"list", "set", "∪", "∩", "∖", "seq", "rel", "ratio"}
POINTS = (1, -1, 3, -3, 0.1, -0.1, 30, 1000)  # at each of them, every variable lies between 0 and this number
IN_MPMATH = {"\\pi": "pi", "i": "j", "+": "fsum", "*": "fprod", "^": "power", "abs": "fabs", "!": "factorial", **ARCS}
LOCK, MP = threading.Lock(), mpmath.MPContext()  # mpmath's functions change the precision of their context for a moment
MP.dps = DIGITS


def number(value):
    return ("num", Fraction(value))


def entries(value):
    """At each point (number, whether all on the way to it was real), or None where the value is undefined."""
    kind, *parts = value
    if kind == "at":
        return parts
    if kind == "num":
        return [(MP.convert(parts[0]), True)] * len(POINTS)
    if parts[0] in ("\\pi", "e", "i"):
        return [(+getattr(MP, IN_MPMATH.get(parts[0], "e")), True)] * len(POINTS)
    return [(MP.mpf(random.Random(f"{point}{parts[0]}").random() * point), True) for point in POINTS]


def build(operation, *parts):
    """Value of an operation on values: a number if all of them are numbers and the result is small."""
    if any(part[0] in SHAPES for part in parts):
        raise ValueError("arithmetic on something that is no value")
    if operation in "+*^" and all(part[0] == "num" for part in parts):
        numbers = [part[1] for part in parts]
        bits = [x.numerator.bit_length() + x.denominator.bit_length() for x in numbers]
        if sum(bits) > MAX_BITS or operation == "^" and not any(numbers):
            raise ValueError("too large a number, or zero to the power of zero")
        if operation != "^":
            return number(sum(numbers) if operation == "+" else math.prod(numbers))
        if numbers[1].denominator == 1 and abs(numbers[1]) * bits[0] <= MAX_BITS:
            return number(numbers[0] ** numbers[1].numerator)
    exponent = parts[1][1] if operation == "^" and parts[1][0] == "num" else None
    rows = [None if None in row else at_point(operation, row, exponent) for row in zip(*map(entries, parts))]
    if not any(rows):
        raise ValueError("too large, or undefined at every point")
    return ("at", *rows)


def at_point(operation, arguments, exponent):
    """Entry of an operation on entries. exponent: of a power, if it is an exact number."""
    numbers = [number for number, _ in arguments]
    real = not any(isinstance(number, MP.mpc) for number in numbers)
    if operation == "^" and abs(numbers[1]) > MAX_EXPONENT:
        return None
    try:
        if exponent and exponent.denominator % 2 and real and numbers[0] < 0:  # the real root of -8 is -2
            result = MP.power(-numbers[0], numbers[1]) * (-1) ** exponent.numerator
        else:
            function = getattr(MP, IN_MPMATH.get(operation, operation))
            result = function(numbers) if operation in "+*" else function(*numbers)
    except (ArithmeticError, TypeError, ValueError):
        return None
    if result and not abs(MP.mag(result)) <= MAX_MAGNITUDE:  # true for nan, too
        return None
    return result, all(flag for _, flag in arguments) and not (real and isinstance(result, MP.mpc))


MINUS_ONE, PI, INF = number(-1), ("sym", "\\pi"), ("sym", "∞")
MINUS_INF = build("*", MINUS_ONE, INF)
MARKS = {"%": number("1/100"), "°": build("*", number("1/180"), PI)}
LOGS = {"lg": build("^", build("ln", number(10)), MINUS_ONE), "log": ("sym", "\\log")}  # by base: the factor of ln


class Parser:
    """Precedence climbing over one cleaned answer."""

    OPERATORS = {sign: (rank, kind) for rank, kind, signs in (
        (1, "list", [",", ";", "and", "or"]), (2, "rel", "=<>≤≥≠≈∈"), (3, "ratio", ":"), (4, "∪", "∪U"), (4, "∩", "∩"),
        (4, "∖", "∖"), (5, "+", "+-"), (6, "*", "*/"), (7, "*", [""]), (8, "^", "^")) for sign in signs}
    INFIX = r"(?:and|or)\b|U(?= ?[(\[{\\])|[,;=<>≤≥≠≈∈:∪∩∖+*/^-]|(?=[A-Za-z({⌊⌈∞]|\\[A-Za-z])"  # last: a product
    FUNCTION = rf"\\?(?:{'|'.join(FUNCTIONS)})\b"
    LABEL = (r"([A-Za-z]{4,}(?: [A-Za-z]+)*|[A-Z]{2,3}|[A-Wa-w](?:_\w|_\{[^{}]*\})?'*(?:\^ ?\{ ?-1 ?\})? ?"
             r"\( ?\w+(?: ?, ?\w+)* ?\)) ?(?==)")  # Area, AB, f(x), f^{-1}(x), P(A), naming the rest
    CLOSING = {"(": r"[)\]]", "[": r"[)\]]", "⟨": "⟩", "{": r"\}", "\\{": r"\\\}", "|": r"\|", "⌊": "⌋", "⌈": "⌉"}
    ROUNDING = {"|": "abs", "⌊": "floor", "⌈": "ceil"}

    def __init__(self, text):
        self.text, self.at, self.depth = text, 0, 0

    def look(self, pattern):
        return re.compile(f" ?({pattern})").match(self.text, self.at)

    def take(self, pattern, needed=False):
        """The text of what comes next if it fits the pattern; else None. Needed: ValueError instead of None."""
        match = self.look(pattern)
        if needed and not match:
            raise ValueError(f"expected {pattern}")
        self.at = match.end() if match else self.at
        return match and match[1]

    def expression(self, rank):
        """The tree of what follows, up to the first operator that binds less tightly than the rank."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise ValueError("too deep")
        label, slash = self.look(self.LABEL) if rank <= 2 else None, False
        if label and FUNCTIONS.isdisjoint(label[2].split()):
            self.at, left = label.end(), ("sym", label[2].replace(" ", ""))
        elif mark := self.take("[-+]"):
            left = self.expression(max(rank, 6))
            left = build("*", MINUS_ONE, left) if mark == "-" else left
        else:
            left = self.atom()
            while mark := self.take("!(?![!=])|%|°"):
                left = build("!", left) if mark == "!" else build("*", left, MARKS[mark])
        while infix := self.look(self.INFIX):
            sign, strength = infix[1], self.OPERATORS[infix[1]][0]
            if strength < rank or rank == 7 and not sign and self.look(self.FUNCTION):
                break
            if slash and not sign:
                raise ValueError("a/bc can be read in two ways")
            self.at = infix.end()
            right = self.atom() if sign == "^" and self.look("{") else self.expression(
                8 if sign in ("*", "/", "^") else strength + 1)
            slash = sign == "/" and not left[0] == right[0] == "num"
            left = self.join(sign, left, right)
        self.depth -= 1
        return left

    def join(self, sign, left, right):
        kind = self.OPERATORS[sign][1]
        if kind == "rel":
            return ("rel", left[1] + sign, *left[2:], right) if left[0] == "rel" else ("rel", sign, left, right)
        if sign in ("-", "/"):
            right = build("*", MINUS_ONE, right) if sign == "-" else build("^", right, MINUS_ONE)
        if kind in ("+", "*", "^"):
            return build(kind, left, right)
        if kind == "ratio" and not {left[0], right[0]}.isdisjoint(SHAPES - {"ratio"}):
            raise ValueError("a ratio of something that is no value")
        return (kind, *(left[1:] if left[0] == kind else [left]), right)

    def argument(self):
        return number(self.take(r"\d")) if self.look(r"\d") else self.atom()  # \frac12 is 1/2

    def atom(self):
        if self.look(r"\.?\d"):
            return self.number()
        if opening := self.take(r"\\\{|[(\[⟨{|⌊⌈]"):
            return self.enclosed(opening)
        if sign := self.take("[∞∅]"):
            return INF if sign == "∞" else ("set",)
        name = self.take(r"\\?[A-Za-z]+", True)
        if name[0] == "\\" or name in FUNCTIONS or name.lower() in GREEK:
            return self.command(name.strip("\\"))
        if len(name) > 3:
            raise ValueError("a word")
        self.at -= len(name) - 1  # letters side by side are a product
        return self.symbol(name[0])

    def symbol(self, name):
        index = self.take(r"_ ?(?:\{[^{}]*\}|[A-Za-z])")
        name += "_" + index.replace(" ", "").strip("_{}") if index else ""
        return ("sym", name + (self.take("'(?: ?')*") or "").replace(" ", ""))

    def number(self):
        """A number as it is written. A comma separates thousands only outside of brackets."""
        before = self.text[: self.at]
        bracketed = sum(map(before.count, "([{⟨")) > sum(map(before.count, ")]}⟩"))
        thousands = "" if bracketed else r"\d{1,3}(?:,\d{3})+(?![\d,])|"
        match = self.look(rf"({thousands}\d*)((?:\.\d+)?)(?:[eE]([-+]?\d{{1,4}}))?")
        self.at, digits = match.end(), match[2].replace(",", "")
        if re.match(r"0\d", digits) or self.look(r"[\d._]"):
            raise ValueError("numbers side by side, or a part of a time, a date or a number cut at its commas")
        return build("*", number(digits + match[3]), build("^", number(10), number(match[4] or 0)))

    def enclosed(self, opening):
        inner = self.expression(5 if opening in self.ROUNDING else 1)
        brackets = opening + self.take(self.CLOSING[opening], True)
        if opening in self.ROUNDING:
            return build(self.ROUNDING[opening], inner)
        items = inner[1:] if inner[0] == "list" else (inner,)
        if len(items) == 1 and brackets in ("()", "{}"):
            return inner
        if "{" in opening:
            return ("set", *dict.fromkeys(items))
        if brackets == "[]" and all(item[:2] == ("seq", "[]") and len(item) == 3 for item in items):
            return ("seq", "()", *(item[2] for item in items))  # a matrix is a list of rows, a column is a tuple
        return ("seq", "()" if opening == "⟨" else brackets, *items)

    def command(self, name):
        if name in ("frac", "over", "binom", "choose"):
            a, b = self.argument(), self.argument()
            return build("*", a, build("^", b, MINUS_ONE)) if name in ("frac", "over") else build("binomial", a, b)
        if name == "root":
            power = build("^", self.argument(), MINUS_ONE)
            return build("^", self.atom(), power)
        if name in FUNCTIONS:
            return self.function(name)
        if name.lower() in GREEK:
            return self.symbol("\\" + name)
        if name in ("mathbb", "mathcal", "overline", "hat", "widehat", "bar", "tilde", "angle", "triangle"):
            marked = self.take(r"\{[\w ]+\}|[A-Z]{1,3}|\w", True)
            return self.symbol(f"\\{name}" + marked.replace(" ", "").strip("{}"))
        raise ValueError("a command that is not in the list")

    def function(self, name):
        factor, exponent = LOGS.get(name), number(1)
        if name == "log" and self.take("_"):
            factor = build("^", build("ln", self.argument()), MINUS_ONE)
        if self.take(r"\^"):
            exponent = self.argument()
        if exponent == MINUS_ONE:
            name, exponent = "a" + name, number(1)
        if name not in FUNCTIONS:
            raise ValueError("an inverse without a name")
        argument = self.atom() if self.look(r"[({]") else self.expression(7)
        value = build("*", build("ln", argument), factor) if factor else build(name, argument)
        return build("^", value, exponent)


DATES = re.compile(r"(?i)\d+(?:-\d+){2,}|\d+(?:/\d+){2,}|\d+(?::\d\d)* ?[ap]\.?m\.?|(\d+)-(\d+)")  # ranges, too
WORDS = re.compile(r"(?![b-df-hj-np-tv-z]{2,3}$)[^\W\d_]{2,}(?:[ '-][^\W\d_]+)*")
SET_BUILDER = re.compile(r"\\\{ ?[a-z] ?(?:∈ ?\\mathbb ?\{? ?R ?\}? ?)?[|:](.*[<>≤≥≠=].*)\\\}")


def read(text):
    """(tree, unit) of a cleaned answer. Raises ValueError where the text is no mathematics or exceeds a bound."""
    words = WORDS.fullmatch(text) and FUNCTIONS.union(GREEK).isdisjoint(text.split())
    date, terms = DATES.fullmatch(text), re.findall(r"\\?[A-Za-z]+|[\^!%°]", text)
    if words or len(terms) > MAX_TERMS or date and not (date[1] and int(date[1]) >= int(date[2])):  # 5-2 is 3
        raise ValueError("words, a date, a time, a range, or too long")
    text, unit = split_unit(SET_BUILDER.sub(r"\1", text))
    items, both = [], "±" in text or "∓" in text
    for plus, minus in ("+-", "-+") if both else ("+-",):
        parser = Parser(text.replace("±", plus).replace("∓", minus))
        tree = parser.expression(1)
        if parser.at < len(parser.text):
            raise ValueError("text left over")
        items += tree[1:] if tree[0] == "list" else [tree]
    for k, item in enumerate(items):
        if item[0] == "rel" and set(item[1]) <= {">", "≥"}:  # turned round
            items[k] = ("rel", item[1][::-1].translate({ord(">"): "<", ord("≥"): "≤"}), *item[:1:-1])
    items = [*dict.fromkeys(items)] if both else items
    tree = items[0] if len(items) == 1 else ("list", *items)
    return tree[1] if tree[0] == "set" and len(tree) == 2 and tree[1][0] != "set" else tree, unit


def label(node):
    """Name of a side that only names the other one: x, f(x), Area, (x, y); else None."""
    if node[:2] == ("seq", "()") and all(map(label, node[2:])):
        return ",".join(map(label, node[2:]))
    return node[1] if node[0] == "sym" and node[1] not in ("\\pi", "e", "i", "∞") else None


def decimal_slack(node):
    """One unit in the last place of a decimal with at least 10 places and 10 significant digits; else 0."""
    x = node[1] if node[0] == "num" else Fraction(0)
    places = next((places for places in range(100) if 10**places % x.denominator == 0), 0)
    return Fraction(1, 10**places) if places >= 10 and abs(x) * 10**places >= 10**9 else 0


def same(a, b):
    """True if two trees mean the same answer."""
    kinds = {a[0], b[0]}
    relations = kinds == {"list"} and all(item[0] == "rel" for item in a[1:] + b[1:])
    if a == b or kinds == {"rel"} and same_relation(a, b) or relations and same_members(a, b):
        return True
    (name, x), (other, y) = named(a), named(b)
    if x is not a or y is not b:  # at most one name, and it is gone
        return len({name, other, None}) < 3 and x[0] != "rel" != y[0] and same(x, y)
    if not kinds & SHAPES:
        return agree(a, b)
    if kinds <= {"list", "set", "∪"}:
        return same_members(a, b)
    if kinds == {"ratio", "num"}:
        (_, x), ratio = sorted((a, b))
        return x.denominator > 1 and ratio[1:] == (number(x.numerator), number(x.denominator))
    return a[0] == b[0] and len(a) == len(b) and all(
        p == q or isinstance(p, tuple) and isinstance(q, tuple) and same(p, q) for p, q in zip(a, b))


def same_members(a, b):
    """True if each member of one means the same as a member of the other, in any order."""
    rest = list(b[1:])
    for x in a[1:]:
        equal = [y for y in rest if same(x, y)]
        if not equal:
            return False
        rest.remove(equal[0])
    return not rest


def same_relation(a, b):
    """True if left minus right is equal, up to its sign for an equation."""
    if a[1] != b[1] or a[1] not in ("=", "≠", "<", "≤"):
        return False
    first, second, turned = (build("+", x, build("*", MINUS_ONE, y)) for x, y in (a[2:], b[2:], b[:1:-1]))
    return agree(first, second) or a[1] in ("=", "≠") and agree(first, turned)


def named(node):
    """(name, value) of "x = 5", "x > 5", "x ∈ ..." or a list of them; (None, value) without a name."""
    if node[0] == "list":
        names, values = zip(*map(named, node[1:]))
        if all(names) and sorted({*names}) == [*names]:  # "x = k pi, k ∈ Z" is no point
            return ",".join(names), ("seq", "()", *values)
    if node[0] != "rel":
        return None, node
    signs, sides = node[1], node[2:]
    if set(signs) <= {"=", "≈"}:
        if label(sides[-1]) and not label(sides[0]):
            signs, sides = signs[::-1], sides[::-1]
        if name := label(sides[0]):
            signs, sides = signs[1:], sides[1:]
        if all(sign == "≈" or same(sides[0], side) for sign, side in zip(signs, sides[1:])):
            return name, sides[0]
    if signs == "∈" and label(sides[0]):
        return label(sides[0]), sides[1]
    if signs in ("<", "≤"):
        signs, sides = ("<" + signs, (MINUS_INF, *sides)) if label(sides[0]) else (signs + "<", (*sides, INF))
    if set(signs) <= {"<", "≤"} and len(sides) == 3 and label(sides[1]):
        brackets = "(["[signs[0] == "≤"] + ")]"[signs[1] == "≤"]
        return label(sides[1]), ("seq", brackets, sides[0], sides[2])
    return None, node


def agree(a, b):
    """True if two values are equal at all points where both are real; if there are hardly any, at all points."""
    slack = max(decimal_slack(a), decimal_slack(b))
    if a[0] == b[0] == "num":
        return a[1] == b[1] or abs(a[1] - b[1]) < slack
    slack = MP.convert(max(slack - TOLERANCE, TOLERANCE))  # less than a whole unit
    pairs = [(x, y) for x, y in zip(entries(a), entries(b)) if x and y]
    real = [(x, y) for x, y in pairs if x[1] and y[1]]
    pairs = real if len(real) >= 2 else pairs
    return len(pairs) >= 2 and all(abs(x - y) <= slack for (x, _), (y, _) in pairs)
