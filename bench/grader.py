"""Agreement and time of the grader beside mathruler and math-verify, where they are installed.

    python bench/grader.py            # pip install mathruler math-verify for their rows

The pairs are listed here, made here, or the kinds of tests/test_answers.py: every kind of answer,
written in two ways (must match) and changed a little (must not match). Other graders are asked as
the reward asks: once more without percent and degree marks. Then the longest call over the hostile
answers of the tests, in seconds of CPU time; what bounds it is counted, not timed.
"""

import pathlib
import random
import statistics
import sys
import time
from collections import Counter

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from test_answers import HOSTILE, kinds  # noqa: E402

from rewards import MARKS, grade  # noqa: E402

LISTED = r"""
fraction: \frac{3}{4} = 0.75 = \dfrac34 = 3/4 != \frac{4}{3} != 0.8
mixed: 1\frac{1}{2} = 1.5 = \frac32 != \frac12 != 11/2
thousands: 12,345 = 12345 = 12{,}345 != (12,345) != 12,34
percent: 40\% = 40% = 40 percent != 4\%
degrees: 60^\circ = 60° = 60^{\circ} != 61^\circ
power: 3 \times 10^4 = 30000 = 3\cdot10^{4} != 3 \times 10^3
root: \sqrt{12} = 2\sqrt3 = 12^{1/2} != 3\sqrt2
surd: \frac{1}{\sqrt2} = \frac{\sqrt{2}}{2} != \sqrt2
pi: \frac{\pi}{6} = \pi/6 = π/6 != 0.5236
log: \log_2 8 = 3 != \log_3 8
complex: 2+3i = 3i+2 != 2-3i
trigonometry: \sin^2 x+\cos^2 x = 1 != \sin^2 x
expression: (x+1)^2 = x^2+2x+1 = (1+x)(x+1) != x^2+x+1
assignment: x=7 = 7 != y=7
interval: [0,\infty) = x \ge 0 != (0,\infty)
inequality: x>5 = 5<x != x<5
set: \{1,2,3\} = \{3,1,2\} != \{1,2\}
tuple: (1,-2) = \left(1, -2\right) != (-2,1)
union: (-\infty,1)\cup(2,\infty) = (2,\infty) \cup (-\infty,1) != (1,2)
row: \begin{pmatrix}1&2\end{pmatrix} = \begin{bmatrix}1&2\end{bmatrix} != [[2,1]]
choice: B = (B) = \text{B} = **B** != C != AB
unit: 5 cm = 5\text{ cm} = 5 != 5 m
money: \$12.50 = 12.5 = 12.50 dollars != 12
words: east = \text{East} = East. != seat
infinity: -\infty = -∞ != \infty
base: 101_2 = 101_{2} != 101_3
ratio: 3:4 = 3 : 4 != 4:3
ambiguous: {2,100} != 2100
part: x+y=5 != 5
list: 2 and 100 != 2
"""


def cases(rng):
    """(kind, given, gold, whether they mean the same)."""
    for line in LISTED.strip().splitlines():
        kind, forms = line.split(": ", 1)
        equal, *different = forms.split(" != ")
        first, *others = equal.split(" = ")
        yield from ((kind, other, first, True) for other in others)
        yield from ((kind, other, first, False) for other in different)
    for _ in range(40):
        n, d = rng.randint(-9999, 9999), rng.randint(2, 99)
        yield "plain number", f"{n}.0", str(n), True
        yield "plain number", f"{n + rng.choice([-1, 1])}", str(n), False
        yield "plain fraction", rf"\frac{{{n}}}{{{d}}}", f"{n}/{d}", True
        yield "plain fraction", rf"\frac{{{n}}}{{{d}}}", f"{n}/{d + 1}", n == 0
        yield "polynomial", f"x^2+{d}x+{n % 50}", f"{n % 50} + {d} x + x^{{2}}", True
        yield "polynomial", f"x^2+{d}x+{n % 50}", f"x^2+{d + 1}x+{n % 50}", False


def graders():
    """(name, function of an answer and its gold)."""
    yield "rewards.py", ours
    try:
        from mathruler.grader import grade_answer

        yield "mathruler", grade_answer
    except ImportError:
        print("mathruler is not installed: its row is left out")
    try:
        from math_verify import parse, verify

        yield "math-verify", lambda given, gold: verify(parse(f"${gold}$"), parse(f"${given}$"))
    except ImportError:
        print("math-verify is not installed: its row is left out")


def ours(given, gold):
    return grade(f"\\boxed{{{given}}}", gold) == 1.0


def main():
    pairs = [*cases(random.Random(0)), *kinds()]
    equal = [pair for pair in pairs if pair[-1]]
    print(f"{len(pairs)} pairs, {len(equal)} of them equal")
    print(
        f"{'grader':12} {'agree':>6} {'misses':>7} {'false positives':>16} "
        f"{'median ms':>10} {'plain number':>13} {'worst ms':>9}"
    )
    for name, grader in graders():
        report(name, grader, pairs)
    hostile()


def report(name, grader, pairs):
    """One line of the table, then the pairs on which the grader is wrong."""
    milliseconds = {}
    misses = []
    false_positives = []
    for kind, given, gold, same in pairs:
        start = time.perf_counter()
        found = matches(grader, given, gold)
        milliseconds.setdefault(kind, []).append(1000 * (time.perf_counter() - start))
        if found != same:
            wrong = misses if same else false_positives
            wrong.append(f"{kind}: {given} | {gold}")
    agree = 1 - len(misses + false_positives) / len(pairs)
    every = [value for values in milliseconds.values() for value in values]
    plain = statistics.median(milliseconds["plain number"])
    print(
        f"{name:12} {agree:6.3f} {len(misses):7} {len(false_positives):16} "
        f"{statistics.median(every):10.3f} {plain:13.4f} {max(every):9.1f}"
    )
    kinds_of_misses = Counter(pair.split(": ")[0] for pair in misses)
    kinds_of_false_positives = Counter(pair.split(": ")[0] for pair in false_positives)
    print("    misses by kind", dict(kinds_of_misses))
    print("    false positives by kind", dict(kinds_of_false_positives))
    if grader is not ours:
        return
    for pair in misses:
        print(f"    missed  {pair}")
    for pair in false_positives:
        print(f"    false positive  {pair}")


def hostile():
    """The longest calls over answers that are made to take long."""
    calls = []
    for text in HOSTILE:
        for given, gold in ((text, "5"), ("5", text), (text, text + " + 0"), (text, text[::-1])):
            start = time.thread_time()
            ours(given, gold)
            calls.append((time.thread_time() - start, given[:40], gold[:40]))
    calls.sort(reverse=True)
    print(f"longest of {len(calls)} calls with hostile answers, in seconds:")
    for seconds, given, gold in calls[:3]:
        print(f"    {seconds:.2f}  {given} | {gold}")


def matches(grader, given, gold):
    """The two passes of the reward. An error of another project's grader is a miss."""
    if grader is ours:
        return ours(given, gold)
    try:
        return bool(grader(given, gold) or grader(MARKS.sub("", given), MARKS.sub("", gold)))
    except Exception:
        return False


if __name__ == "__main__":
    main()
