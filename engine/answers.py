"""Comparison of two short answers: LaTeX, numbers, units, sets, intervals, words and options.

The reward of ZPPO (arXiv 2606.18216, App. D.1) calls mathruler here; we compare ourselves. This file imports
nothing from the rest of the project: copy what you need. Decisions and deviations:

 1. What is ambiguous is refused: a false positive trains a wrong model, a miss costs one reward.
 2. Nothing is run as code: a parser with fixed lists of commands and functions builds nested tuples; what it
    cannot read is plain text. sympy's simplifier has no bound; of sympy only mpmath is used.
 3. Work is bounded by counting characters, nesting, bits and evaluations, not by signals, threads or clocks:
    the same answer in every thread, on every machine. Beyond a bound only identical text is equal.
 4. Numbers are exact: 0.333 is not 1/3, 3.14 is not pi, 2/4 is 1/2; only a decimal of 10 digits or more stands
    for what it is cut or rounded from. Expressions are equal if 250 digits agree at fixed points wherever both
    are real: (sqrt x)^2 is x; sqrt(x^2) is |x|, not x.
 5. A percent mark divides by 100, a degree mark multiplies by pi/180; only the second pass drops them.
 6. 1,000 is a number and "1, 000" is not; inside brackets of any kind a comma always separates.
 7. Sets and lists without brackets have no order; tuples, intervals and matrices have one, and the brackets
    count: (1,2) is neither [1,2] nor {1,2} nor "1, 2". A set of one is its member.
 8. "x = 5" is 5, "x > 5" is (5, oo); "x+y = 5" is not 5, "x = 5" is not "y = 5". Other relations are equal if
    left minus right is, up to its sign for an equation: "2x = 10" is not "x = 5".
 9. One side may lack the unit or currency of the other; two different units are refused, not converted.
10. log without a base has an unknown one: log ab = log a + log b holds, log 100 = 2 and log x = ln x do not.
11. 101_2 is neither 101 nor 5; 2:3 is 2/3, but 2:4 is not 1:2; "5-10" and 2024-05-01 are text; 2 3/2, x/2y
    and 1/xy are refused, while 1 1/2 is 1.5 and 1/2x is (1/2)x.
12. One letter is a variable, so b is not B; in the brackets of an option, (b), it is. Words ignore case.
"""

import hashlib
import math
import re
import unicodedata
from fractions import Fraction

MAX_CHARS = 2000  # of an answer that is read as mathematics
MAX_DEPTH = 80  # of nested expressions
MAX_BITS = 10_000  # of an exact number
MAX_MAGNITUDE = 800  # of any other number: from 2^-800 to 2^800
MAX_STEPS = 4000  # evaluations of a node per comparison
DIGITS = 300  # of any other number; two are equal that differ by less than 1e-250 of the sizes on the way


class Refused(ValueError):
    """A text that is no mathematics this file reads, or would take more work than its bounds allow."""


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
    if not given or not gold:
        return False
    if (first := option(given)) and (second := option(gold)):
        (letter, text), (other, words) = first, second
        return letter == other and (not text or not words or answers_match(text, words))
    if as_words(given) == as_words(gold):
        return True
    try:
        (first, unit), (second, other) = read(given), read(gold)
        return (not unit or not other or unit == other) and Comparison().same(first, second)
    except (ArithmeticError, ValueError, RecursionError):
        return False


# ------------------------------------------------------------------------------------------------------------
# Surface forms: one spelling for every sign, then words, options and units

PLAIN_NUMBER = re.compile(r"[+-]?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?|[+-]?\.[0-9]+")
GREEK = ("alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho sigma "
         "tau upsilon phi chi psi omega").split()
TRIG = "sin cos tan cot sec csc sinh cosh tanh".split()
ARCS = {arc + name: "a" + name for name in TRIG for arc in ("a", "ar", "arc")}
FUNCTIONS = {*TRIG, *ARCS, *"ln log lg exp sqrt abs".split()}
SIGNS = {ord(sign): plain for signs, plain in (
    ("−–—‐‑‒", "-"), ("×·⋅∙∗•", "*"), ("÷⁄∕", "/"), ("“”„", '"'), ("‘’′", "'"), ("≦⩽", "≤"), ("≧⩾", "≥"),
    ("≃", "≈"), ("º", "°"), ("〈", "⟨"), ("〉", "⟩"), ("√", "\\sqrt "), ("∛", "\\sqrt[3]"),
    ("ℝ", "\\mathbb R "), *zip("αβγδεζηθικλμνξοπρστυφχψω", [f"\\{name} " for name in GREEK]))
    for sign in signs}
COMMANDS = dict(pair.split(":", 1) for pair in (
    "cdot:* times:* ast:* div:/ le:≤ leq:≤ leqslant:≤ ge:≥ geq:≥ geqslant:≥ lt:< gt:> ne:≠ neq:≠ approx:≈ "
    "infty:∞ in:∈ cup:∪ cap:∩ setminus:∖ backslash:∖ emptyset:∅ varnothing:∅ pm:± mp:∓ degree:° degrees:° "
    "prime:' lfloor:⌊ rfloor:⌋ lceil:⌈ rceil:⌉ langle:⟨ rangle:⟩ lvert:| rvert:| vert:| mid:| lbrace:\\{ "
    "rbrace:\\} lbrack:[ rbrack:] colon:: dfrac:\\frac tfrac:\\frac cfrac:\\frac dbinom:\\binom "
    "tbinom:\\binom varepsilon:\\epsilon varphi:\\phi vartheta:\\theta euro:€ pounds:£ vec: limits: "
    "displaystyle: textstyle:").split())
COMMANDS |= dict.fromkeys(["land", "wedge"], " and ") | dict.fromkeys(["lor", "vee"], " or ")
COMMANDS |= dict.fromkeys("quad qquad rm bf it hfill".split(), " ")


def mixed(n, p, q):
    return f"({n}+{p}/{q})" if 0 < p < q else f"{n} {p}/{q}"  # the latter is refused: mixed or a product?


RAISED = [("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿⁱ]+", r"^{\g<0>}"), ("[₀₁₂₃₄₅₆₇₈₉₊₋ₙₓ]+", r"_{\g<0>}"), ("[¼-¾⅐-⅞]", r" \g<0>")]
WRAPPED = (r"\\(?:text(?:bf|it|rm|sf|tt|up|normal|sc)?|math(?:rm|bf|it|sf|tt)|[mh]box|emph|boldsymbol|bm"
           r"|boxed|underline|operatorname\*?) *\{([^{}]*)\}")
REWRITES = [
    (r"\\\\(?: ?\[[\d.]+[a-z]{2}\])?", "⏎"), (r"\\\$", "＄"), (r"\\([%#&])", r"\1"), (r"\\[()\[\]]", " "),
    (r"(?<=\d)(?:, ?\\! ?|\{,\}|\\[,;:! ])(?=\d{3}(?!\d))", ""),  # explicit thousands separators
    (r"\\!", ""), (r"\\[,;: ]|(?<=.)~", " "), (r"^([^$]*)\$([^$]*)$", r"\1＄\2"), (r"\$", " "),
    *[(WRAPPED, r" \1 ")] * 3, (r"\\(?:left|right|middle|[bB]igg?[lrm]?)(?![A-Za-z]) *\.?", ""),
    (r"\\([A-Za-z]+)", lambda match: COMMANDS.get(match[1], match[0])),
    (r"\{([^{}]*)\\over\b([^{}]*)\}", r"\\frac{\1}{\2}"),
    (r"\{([^{}]*)\\choose\b([^{}]*)\}", r"\\binom{\1}{\2}"),
    (r"\^ *(?:\\circ\b|°|\{ *(?:\\circ|°) *\})", "°"), (r"\^ *(?:\{ *('+) *\}|('))", r"\1\2"),
    (r"\\not *=", "≠"), ("<=", "≤"), (">=", "≥"), ("==", "="), (" !=", "≠"),
    (r"(?<=[\w)}]) *\*\* *(?=[\w({\\-])", "^"), (r"(?<=\d) *(?:(thousand)|(million)|billion)\b",
     lambda match: "*10^" + ("3" if match[1] else "6" if match[2] else "9")),
    (r"(?<![A-Za-z\\])(?:inf|infinity|oo)(?![A-Za-z])", "∞"),
    (r"(\d*)\.(\d*) ?\\(?:overline|bar|dot) ?\{ ?(\d+) ?\}", lambda match:
     f"({match[1] or 0}.{match[2] or 0}+{match[3]}/{'9' * len(match[3]) + '0' * len(match[2])})"),
    (r"(?<![\w.^_}])(\d+)(?: (\d+) ?/ ?(\d+)| ?\\frac ?(?:\{ ?(\d+) ?\}|(\d)) ?(?:\{ ?(\d+) ?\}|(\d)))"
     r"(?![\d.])", lambda match: mixed(*(int(digits) for digits in match.groups() if digits))),
    (r"(?<=\d) *[xX] *(?=10 *\^)", "*"), (r"\bm *(?=\\angle)", ""), (r"(?<=[\d)}]) *per ?cent\b", "%"),
    (r"(?<=[\d)}]) *deg(?:rees?)?\b", "°"),
    (r"° *([CF])(?:elsius|ahrenheit)?\b", r" °\1"),
    (r"(?i)^ *(?:the )?(?:final )?answer(?: is|:)(?=[ :])", ""), (" +", " "),
    (r"^[ :]+|[ :]+$", ""), (r"^(\*+|[`\"_]+)([^*`\"]+)\1$", r"\2"), (r"^[=≈ ]+|[.,; ]+$", ""),
]


def clean(text):
    """One spelling for the many ways to write the same signs; wrappers, delimiters and spacing go."""
    for pattern, replacement in RAISED:
        text = re.sub(pattern, replacement, text)
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


UNITS = {name + plural: names.split()[0] for names in (
    "m metre meter; cm centimetre centimeter; mm millimetre millimeter; km kilometre kilometer; ft feet "
    "foot; in inch inche; yd yard; mi mile; g gram; kg kilogram; mg milligram; lb pound; oz ounce; L "
    "liter litre; mL ml; gal gallon; cup; s sec second; min minute; h hr hour; day; week; month; year; "
    "mph; kmh kph; ton; rad radian; °C; °F; K kelvin; N newton; J joule; kJ; cal calorie; W watt; kW; V "
    "volt; A amp; Hz hertz; Pa pascal; mol mole; eV; ＄ $ dollar USD; ¢ cent; € euro EUR; £ GBP; ¥ yen; ₹ "
    "rupee; unit; way; time; point; person people").split(";")
    for name in names.split() for plural in ("", "s" if len(name) > 2 else "")}
UNIT = rf"(?:{'|'.join(map(re.escape, sorted(UNITS, key=len, reverse=True)))})(?![A-Za-z])"
UNIT = rf"(?:(?:square|sq\.?|cubic|cu\.?) )?{UNIT}(?: ?\^ ?(?:\{{-?\d\}}|-?\d)| squared| cubed)?"
UNIT = re.compile(rf"(?:(?<=[\d)}}\]%°])|(?<=\\pi)) ?{UNIT}(?: ?(?:/|\*| per | ) ?{UNIT}){{0,3}}$")
UNIT_WORDS = [
    (r"[°＄¢€£¥₹]?[A-Za-z]+|\$", lambda match: UNITS.get(match[0], match[0])), (" per ", "/"),
    (r"(?:square|sq\.?) (\w+)| squared", r"\1^2"), (r"(?:cubic|cu\.?) (\w+)| cubed", r"\1^3"), ("[ {}]", ""),
]
NOUNS = re.compile(r"([+-]?[\d,.]+) ((?:[a-z]+ ){0,2}[a-z]{3,}s)")
NO_NOUNS = set("less plus minus is was has and or of over to by if not than more ones tens dozens "
               "hundreds thousands millions billions halves thirds quarters fourths fifths sixths "
               "sevenths eighths ninths tenths hundredths thousandths remainders".split())


def split_unit(text):
    """(value, unit) of "5 cm", "\\$5", "3 red apples"; the unit is "" if there is none."""
    if match := re.match(r"([+-]?) ?([＄€£¥₹]) ?", text):
        return match[1] + text[match.end():], match[2]
    if match := UNIT.search(text):
        value, unit = text[: match.start()], match[0]
        letters = re.search("[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", value.rsplit("=")[-1]))
        if len(unit) > 1 and not (letters and re.fullmatch(" [A-Za-z]", unit)):  # 5m, 3x + 5 m: variable
            for pattern, replacement in UNIT_WORDS:
                unit = re.sub(pattern, replacement, unit)
            return value, unit
    match = NOUNS.fullmatch(text)
    return match.groups() if match and NO_NOUNS.isdisjoint(match[2].split()) else (text, "")


# ------------------------------------------------------------------------------------------------------------
# Trees. Values are ("num", Fraction), ("sym", name) and (operation, *values). All else is a shape:
# ("list", ...), ("set", ...), ("∪", "∩" or "∖", ...), ("seq", brackets, ...), ("rel", signs, ...),
# ("ratio", ...), ("matrix", kind, ("row", ...), ...), ("base", digits, base)

SHAPES = {"list", "set", "∪", "∩", "∖", "seq", "matrix", "row", "rel", "ratio", "base"}
CONSTANTS = {"\\pi", "e", "i", "∞"}


def number(value):
    return ("num", Fraction(value))


def bits(*xs):
    return sum(x.numerator.bit_length() + x.denominator.bit_length() for x in xs)


def exact_power(x, y):
    if not x and y <= 0:
        raise Refused("zero to a power that is not positive")
    return x ** y.numerator if y.denominator == 1 and abs(y) * bits(x) <= MAX_BITS else None


EXACT = {  # operations on Fractions; None where the result is not rational or not small
    "+": lambda *xs: sum(xs), "*": lambda *xs: math.prod(xs), "^": exact_power, "abs": abs,
    "floor": math.floor, "ceil": math.ceil,
    "!": lambda n: math.factorial(int(n)) if n in range(1001) else None,
    "binom": lambda n, k: math.comb(int(n), int(k)) if n in range(1001) and k in range(1001) else None,
}


def build(operation, *parts):
    """Tree of an operation on values, computed at once if all of them are numbers and the result is small."""
    if any(part[0] in SHAPES for part in parts):
        raise Refused("arithmetic on something that is no value")
    exact = None
    if operation in EXACT and all(part[0] == "num" for part in parts):
        if bits(*(part[1] for part in parts)) > MAX_BITS:
            raise Refused("too large a number")
        exact = EXACT[operation](*(part[1] for part in parts))
    return (operation, *parts) if exact is None else number(exact)


MINUS_ONE, INFINITY = number(-1), ("sym", "∞")
MINUS_INFINITY = build("*", MINUS_ONE, INFINITY)
POSTFIX = {
    "!": lambda x: build("!", x), "%": lambda x: build("*", x, number("1/100")),
    "°": lambda x: build("*", x, number("1/180"), ("sym", "\\pi")), "'": lambda x: ("sym", x[1] + "'"),
}
CALLS = {  # functions in terms of others; a log without a base is in an unknown one
    "log": lambda x: build("*", build("ln", x), ("sym", "\\log")),
    "lg": lambda x: build("*", build("ln", x), build("^", build("ln", number(10)), MINUS_ONE)),
    "exp": lambda x: build("^", ("sym", "e"), x), "sqrt": lambda x: build("^", x, number("1/2")),
} | {name: lambda x, name=name: build(ARCS.get(name, name), x) for name in (*TRIG, *ARCS, "ln", "abs")}


class Parser:
    """Precedence climbing over one cleaned answer. `sign` is what ± stands for, `both` if one was met."""

    RANKS = dict.fromkeys([",", ";", "and", "or"], 1) | dict.fromkeys("=<>≤≥≠≈∈", 2) | {":": 3}
    RANKS |= dict.fromkeys("∪∩∖U", 4) | dict.fromkeys("-+±∓", 5) | {"*": 6, "/": 6, "": 7, "^": 8}
    INFIX = (r"(?:and|or)\b|U(?= ?[(\[{\\])|[,;=<>≤≥≠≈∈:∪∩∖+±∓*/^-]"
             r"|(?=[A-Za-z({⌊⌈∞]|\\(?!end\b|begin\b)[A-Za-z])")  # nothing, before a factor, is a product
    FUNCTION = rf"\\?(?:{'|'.join(FUNCTIONS)})\b"
    LABEL = (r"([A-Za-z]{4,}(?: [A-Za-z]+)*|[A-Z]{2,3}|[A-Wa-w](?:_\w|_\{[^{}]*\})?'*(?:\^ ?\{ ?-1 ?\})? ?"
             r"\( ?\w+(?: ?, ?\w+)* ?\)) ?(?==)")  # Area, AB, f(x), f^{-1}(x), P(A), naming the rest
    CLOSING = {"(": r"[)\]]", "[": r"[)\]]", "⟨": "⟩", "{": r"\}", "\\{": r"\\\}"}
    ROUNDING = {"|": (r"\|", "abs"), "⌊": ("⌋", "floor"), "⌈": ("⌉", "ceil")}

    def __init__(self, text, sign):
        self.text, self.at, self.sign, self.both = text, 0, sign, False
        self.depth = self.brackets = 0

    def look(self, pattern):
        return re.compile(f" ?({pattern})").match(self.text, self.at)

    def take(self, pattern, needed=False):
        """The text of what comes next if it fits the pattern; else None, or Refused where it is needed."""
        match = self.look(pattern)
        if needed and not match:
            raise Refused(f"expected {pattern}")
        self.at = match.end() if match else self.at
        return match and match[1]

    def expression(self, rank):
        """The tree of what follows, up to the first operator that binds less tightly than the rank."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Refused("too deep")
        label, slash = self.look(self.LABEL) if rank <= 2 else None, False
        if label and FUNCTIONS.isdisjoint(label[2].split()):
            self.at, left = label.end(), ("sym", label[2].replace(" ", ""))
        elif mark := self.take("[-+±∓]"):
            left = self.signed(mark, self.expression(max(rank, 6)))
        else:
            left = self.atom()
            while mark := self.take("!(?![!=])|%|°|'" if left[0] == "sym" else "!(?![!=])|%|°"):
                left = POSTFIX[mark](left)
        while infix := self.look(self.INFIX):
            sign = infix[1]
            if self.RANKS[sign] < rank or rank == 7 and not sign and self.look(self.FUNCTION):
                break
            if slash and not sign:
                raise Refused("a/bc can be read in two ways")
            self.at = infix.end()
            if sign in (",", ";"):
                self.take(r"(?:and|or)\b")
            tighter = 8 if sign in ("*", "/", "^") else self.RANKS[sign] + 1
            right = self.atom() if sign == "^" and self.look("{") else self.expression(tighter)
            slash = sign == "/" and not left[0] == right[0] == "num"
            left = self.join(sign, left, right)
        self.depth -= 1
        return left

    def signed(self, mark, value):
        self.both |= mark in "±∓"
        return build("*", MINUS_ONE, value) if mark == {1: "∓", -1: "±"}[self.sign] or mark == "-" else value

    def join(self, sign, left, right):
        rank = self.RANKS[sign]
        if rank == 2:
            signs, sides = (left[1], left[2:]) if left[0] == "rel" else ("", (left,))
            return ("rel", signs + sign, *sides, right)
        if rank == 8:
            return build("^", left, right)
        if rank == 5 or sign == "/":
            right = self.signed(sign, right) if rank == 5 else build("^", right, MINUS_ONE)
        kind = {1: "list", 3: "ratio", 5: "+", 6: "*", 7: "*"}.get(rank, "∪" if sign == "U" else sign)
        parts = *(left[1:] if left[0] == kind else (left,)), right
        return build(kind, *parts) if kind in ("+", "*", "ratio") else (kind, *parts)

    def argument(self):
        digit = self.take(r"\d")  # \frac12 is 1/2
        return number(digit) if digit else self.atom()

    def atom(self):
        if self.look(r"\.?\d"):
            return self.number()
        if opening := self.take(r"\\\{|[(\[⟨{|⌊⌈]"):
            return self.enclosed(opening)
        if sign := self.take("[∞∅]"):
            return INFINITY if sign == "∞" else ("set",)
        if name := self.take(r"\\[A-Za-z]+"):
            return self.command(name[1:])
        word = self.take("[A-Za-z]+", True)
        if word in FUNCTIONS or word.lower() in GREEK:
            return self.command(word)
        if len(word) > 3:
            raise Refused("a word")
        self.at -= len(word) - 1  # letters side by side are a product
        return self.symbol(word[0])

    def symbol(self, name):
        index = self.take(r"_ ?(?:\{[^{}]*\}|\d+|[A-Za-z])")
        return ("sym", name + "_" + index.replace(" ", "").strip("_{}") if index else name)

    def number(self):
        digits = self.take(r"\d{1,3}(?:,\d{3})+(?![\d,])") if not self.brackets else None
        digits = (digits or self.take(r"\d+") or "").replace(",", "")
        if base := self.take(r"_ ?(?:\d+|\{ ?\w+ ?\})"):
            return ("base", digits, base.strip("_{} ").lower())
        rest = re.compile(r"((?:\.\d+)?)((?:[eE][-+]?\d{1,4})?)").match(self.text, self.at)
        self.at = rest.end()
        if re.match(r"0\d", digits) or self.look(r"[\d._]"):
            raise Refused("numbers side by side, or a part of a time, a date or a number cut at its commas")
        return build("*", number(digits + rest[1]), build("^", number(10), number(rest[2][1:] or 0)))

    def enclosed(self, opening):
        """What stands between an opening bracket and its closing one."""
        if opening in self.ROUNDING:
            closing, operation = self.ROUNDING[opening]
            inner = self.expression(5)
            self.take(closing, True)
            return build(operation, inner)
        if opening == "\\{" and self.take(r"\\\}"):
            return ("set",)
        self.brackets += 1
        inner = self.expression(1)
        self.brackets -= 1
        brackets = opening + self.take(self.CLOSING[opening], True)
        items = inner[1:] if inner[0] == "list" else (inner,)
        if len(items) == 1 and (brackets in ("()", "{}") or inner[0] == "matrix"):
            return inner
        if brackets == "()" and items == (MINUS_INFINITY, INFINITY):
            return ("sym", "\\mathbbR")
        if opening in ("{", "\\{"):
            return ("set", *dict.fromkeys(items))
        return ("seq", "()" if opening == "⟨" else brackets, *items)

    def matrix(self):
        kind = self.take(r"\{ ?(?:[bpvBV]|small)?(?:matrix|array) ?\}(?: ?\{[lcr| ]*\})?", True)
        rows = [["row", self.expression(5)]]
        while not self.take(r"⏎? ?\\end ?\{ ?\w+ ?\}"):
            if self.take("[&⏎]", True) == "⏎":
                rows.append(["row"])
            rows[-1].append(self.expression(5))
        return ("matrix", "determinant" if "vmatrix" in kind.lower() else "", *map(tuple, rows))

    def command(self, name):
        if name == "begin":
            return self.matrix()
        if name in ("frac", "binom"):
            a, b = self.argument(), self.argument()
            return build("binom", a, b) if name == "binom" else build("*", a, build("^", b, MINUS_ONE))
        if name == "sqrt" and self.take(r"\["):
            degree = self.expression(5)
            self.take(r"\]", True)
            return build("^", self.atom(), build("^", degree, MINUS_ONE))
        if name in FUNCTIONS:
            return self.function(name)
        if name.lower() in GREEK:
            return self.symbol("\\" + name)
        if name in ("mathbb", "mathcal", "overline", "hat", "widehat", "bar", "tilde", "angle", "triangle"):
            marked = self.take(r"\{[\w ]+\}|[A-Z]{1,3}|\w", True)
            return ("sym", f"\\{name}" + marked.replace(" ", "").strip("{}"))
        if name.startswith("text"):
            return self.argument()
        raise Refused("a command that is not in the list")

    def function(self, name):
        base = exponent = None
        if name == "log" and self.take("_"):
            digits = self.take(r"\d+")
            base = build("^", build("ln", number(digits) if digits else self.argument()), MINUS_ONE)
        if self.take(r"\^"):
            exponent = self.argument()
            name, exponent = ("a" + name, None) if exponent == MINUS_ONE else (name, exponent)
        if name not in FUNCTIONS:
            raise Refused("an inverse without a name")
        argument = self.atom() if name == "sqrt" or self.look(r"[({]") else self.expression(7)
        value = CALLS[name](argument) if base is None else build("*", build("ln", argument), base)
        return build("^", value, exponent) if exponent else value


NO_DIFFERENCE = re.compile(r"(?i)\d+(?:-\d+){2,}|\d+(?:/\d+){2,}|\d+(?::\d\d)* ?[ap]\.?m\.?|(\d+)-(\d+)")
WORDS = re.compile(r"(?![b-df-hj-np-tv-z]{2,3}$)[^\W\d_]{2,}(?:[ '-][^\W\d_]+)*")
SET_BUILDER = re.compile(r"\\\{ ?[a-z] ?(?:∈ ?\\mathbb ?\{? ?R ?\}? ?)?[|:](.*[<>≤≥≠=].*)\\\}")


def read(text):
    """(tree, unit) of a cleaned answer. Raises Refused where it is not mathematics or exceeds a bound."""
    match = NO_DIFFERENCE.fullmatch(text)
    if match and not (match[1] and int(match[1]) >= int(match[2])):
        raise Refused("a date, a time or a range")
    if WORDS.fullmatch(text) and FUNCTIONS.union(GREEK).isdisjoint(text.split()):
        raise Refused("words")
    text, unit = split_unit(text)
    items = []
    for sign in (1, -1):
        parser = Parser(SET_BUILDER.sub(r"\1", text), sign)
        tree = parser.expression(1)
        if parser.at < len(parser.text):
            raise Refused("text left over")
        items += tree[1:] if tree[0] == "list" else [tree]
        if not parser.both:
            break
    for k, item in enumerate(items):
        if item[0] == "rel" and set(item[1]) <= {">", "≥"}:  # turned round
            items[k] = ("rel", item[1][::-1].translate({ord(">"): "<", ord("≥"): "≤"}), *item[:1:-1])
    items = [*dict.fromkeys(items)] if parser.both else items
    return only_member(items[0] if len(items) == 1 else ("list", *items)), unit


def only_member(node):
    return node[1] if node[0] == "set" and len(node) == 2 and node[1][0] != "set" else node


# ------------------------------------------------------------------------------------------------------------
# Comparison of trees


def grid(node):
    """The matrix that a nested list or a tuple, as a column, can stand for; other trees unchanged."""
    if node[0] != "seq" or node[1] != "()" and any(item[0] != "seq" for item in node[2:]):
        return node
    return ("matrix", "", *(("row", *(item[2:] if node[1] != "()" else (item,))) for item in node[2:]))


def label(node):
    """Name of a side that only names the other one: x, f(x), Area, (x, y); else None."""
    if node[:2] == ("seq", "()") and all(map(label, node[2:])):
        return ",".join(map(label, node[2:]))
    return node[1] if node[0] == "sym" and node[1] not in CONSTANTS else None


NUMERIC = {
    "\\pi": lambda mp: +mp.pi, "e": lambda mp: +mp.e, "i": lambda mp: mp.j, "+": lambda mp, *xs: mp.fsum(xs),
    "*": lambda mp, *xs: mp.fprod(xs), "^": lambda mp, x, y: mp.power(x, y), "abs": lambda mp, x: abs(x),
    "!": lambda mp, x: mp.factorial(x), "binom": lambda mp, n, k: mp.binomial(n, k),
} | {name: lambda mp, x, name=name: getattr(mp, name)(x) for name in (
    "ln", "floor", "ceil", *TRIG, *(f"a{name}" for name in TRIG))}
SCALES = (1, -1, 3, -3, 0.1, -0.1, 30, 1000)  # of the points: variables lie between 0 and these


def decimal_slack(node):
    """One unit in the last place of a decimal with at least 10 places and 10 significant digits; else 0."""
    if node[0] != "num":
        return Fraction(0)
    rest, places = node[1].denominator, 0
    for prime in (2, 5):
        power = 0
        while rest % prime == 0:
            rest, power = rest // prime, power + 1
        places = max(places, power)
    long = rest == 1 and places >= 10 and abs(node[1]) * 10**places >= 10**9
    return Fraction(1, 10**places) if long else Fraction(0)


class Comparison:
    """One comparison of two trees, with a budget of evaluations."""

    def __init__(self):
        self.left, self.cache, self.mp = MAX_STEPS, {}, None

    def same(self, a, b):
        """True if two trees mean the same answer."""
        if a == b or a[0] == b[0] == "rel" and self.same_relation(a, b):
            return True
        relations = a[0] == b[0] == "list" and all(item[0] == "rel" for item in a[1:] + b[1:])
        if relations and self.same_members(a, b):
            return True
        (name, x), (other, y) = self.named(a), self.named(b)
        if name and other and name != other:
            return False
        if x is not a or y is not b:
            return x[0] != "rel" and y[0] != "rel" and self.same(x, y)
        kinds = {a[0], b[0]}
        if not kinds & SHAPES:
            return self.agree(a, b)
        if kinds <= {"list", "set", "∪"}:
            return self.same_members(a, b)
        if kinds == {"ratio", "num"}:
            ratio, (_, x) = (a, b) if a[0] == "ratio" else (b, a)
            return x.denominator > 1 and ratio[1:] == (number(x.numerator), number(x.denominator))
        if "matrix" in kinds:
            a, b = grid(a), grid(b)
        return a[0] == b[0] and len(a) == len(b) and all(
            p == q or isinstance(p, tuple) and isinstance(q, tuple) and self.same(p, q) for p, q in zip(a, b))

    def same_members(self, a, b):
        rest = list(b[1:])
        for x in a[1:]:
            found = next((k for k, y in enumerate(rest) if self.same(x, y)), None)
            if found is None:
                return False
            rest.pop(found)
        return not rest

    def same_relation(self, a, b):
        """True if left minus right is equal, up to its sign for an equation."""
        if len(a) != 4 or len(b) != 4 or a[1] != b[1] or a[1] not in "=≠<≤":
            return False
        left, right, other = (build("+", x, build("*", MINUS_ONE, y)) for x, y in (a[2:], b[2:], b[:1:-1]))
        return self.agree(left, right) or a[1] in "=≠" and self.agree(left, other)

    def named(self, node):
        """(name, value) of "x = 5", "x > 5", "x ∈ ..." or a list of them; (None, value) without a name."""
        if node[0] == "list":
            names, found = zip(*map(self.named, node[1:]))
            if names[0] and {*names} <= {names[0], None} and all(value[0] != "rel" for value in found):
                return names[0], ("list", *found)
            if all(names) and sorted({*names}) == [*names]:
                return ",".join(names), ("seq", "()", *found)
        if node[0] != "rel":
            return None, node
        signs, sides = node[1], node[2:]
        if set(signs) <= {"=", "≈"}:
            if label(sides[-1]) and not label(sides[0]):
                signs, sides = signs[::-1], sides[::-1]
            name = label(sides[0])
            if name:
                signs, sides = signs[1:], sides[1:]
            chain = all(sign == "≈" or self.same(sides[0], side) for sign, side in zip(signs, sides[1:]))
            if chain:
                return name, sides[0]
        if signs == "∈" and label(sides[0]):
            return label(sides[0]), only_member(sides[1])
        if set(signs) <= {"<", "≤"}:
            if len(sides) == 2 and label(sides[0]):
                signs, sides = "<" + signs, (MINUS_INFINITY, *sides)
            elif len(sides) == 2:
                signs, sides = signs + "<", (*sides, INFINITY)
            if len(sides) == 3 and label(sides[1]):
                brackets = "(["[signs[0] == "≤"] + ")]"[signs[1] == "≤"]
                return label(sides[1]), ("seq", brackets, sides[0], sides[2])
        return None, node

    def agree(self, a, b):
        """True if two values are equal wherever both are real, or defined if they hardly ever are real."""
        slack = max(decimal_slack(a), decimal_slack(b))
        if a[0] == b[0] == "num":
            return a[1] == b[1] or abs(a[1] - b[1]) < slack
        pairs = [(x, y) for x, y in ((self.at(a, scale), self.at(b, scale)) for scale in SCALES) if x and y]
        real = [(x, y) for x, y in pairs if x[1] and y[1]]
        pairs = real if len(real) >= 2 else pairs
        slack = self.mp.mpf(slack.numerator) / slack.denominator
        return len(pairs) >= 2 and all(
            abs(x[0] - y[0]) <= max(slack, max(x[2], y[2]) * self.mp.mpf(10) ** (50 - DIGITS)) for x, y in pairs)

    def at(self, node, scale):
        """(value, whether all on the way was real, largest size on the way) at a point; None if undefined."""
        if not self.mp:
            import mpmath

            self.mp = mpmath.MPContext()  # one of its own: mpmath.mp is shared between threads
            self.mp.dps = DIGITS
        if (node, scale) not in self.cache:
            self.real, self.size = True, 0
            try:
                self.cache[node, scale] = self.value(node, scale), self.real, self.size
            except (ArithmeticError, TypeError):
                self.cache[node, scale] = None
        return self.cache[node, scale]

    def value(self, node, scale):
        self.left -= 50 if node[0] in ("!", "binom") else 1
        if self.left < 0:
            raise Refused("too much work")
        (kind, *parts), mp = node, self.mp
        if kind == "num":
            return mp.mpf(parts[0].numerator) / parts[0].denominator
        if kind == "sym" and parts[0] in NUMERIC:
            return NUMERIC[parts[0]](mp)
        if kind == "sym":
            digest = hashlib.sha256(f"{scale}{parts[0]}".encode()).digest()
            return mp.ldexp(int.from_bytes(digest, "big"), -256) * scale
        if kind not in NUMERIC:
            raise Refused("a function without a numeric value")
        x, *others = arguments = [self.value(part, scale) for part in parts]
        real = all(isinstance(argument, mp.mpf) for argument in arguments)
        slow = kind in ("!", "binom") and max(map(abs, arguments)) > 100
        if slow or kind == "^" and abs(others[0]) > 10_000:
            raise ArithmeticError("out of range")
        if kind == "^" and real and x < 0 and parts[1][0] == "num" and parts[1][1].denominator % 2:
            value = mp.power(-x, others[0]) * (-1) ** parts[1][1].numerator  # the real root of -8 is -2
        else:
            value = NUMERIC[kind](mp, *arguments)
        if not mp.isfinite(value) or value and abs(mp.mag(value)) > MAX_MAGNITUDE:
            raise ArithmeticError("out of range")
        self.real &= isinstance(value, mp.mpf) or not real
        self.size = max(self.size, abs(value))
        return value
