"""The tables of bench/replicate.py: rows, the paper's claims, secondary measures, graduation.

Decisions:
1. A claim of the paper "agrees" if the 95% interval of the paired difference over seeds is above 0.
   It "differs" if the interval is below 0, and is "within noise" otherwise. Each claim stands
   alone: no correction for their number.
2. Claims are judged on the held-out questions that the base student gets wrong ("hard") and on all
   of them ("all"). The paper's numbers beside them are macro averages over its 16 VLM benchmarks.
3. What is not a row of the paper stands below a line, and no claim is about it.
4. An interval over seeds is the 95% t-interval of the mean; two rows are compared by their
   differences at equal seeds. It covers what another seed would change (order of questions,
   sampling), not other held-out questions.
5. "hard", "known" and "all" are macro means over held-out families, as the paper averages
   benchmarks.
"""

import math

import pandas as pd

from extras import analysis
from extras.analysis import ROWS

REFERENCE = "grpo_replay"
MEASURES = ("hard", "known", "all")
# Macro averages over 16 VLM benchmarks at 0.8B and 2B: Tables 1-3, 10-13, 19-21.
PAPER = {
    "base": (41.0, 56.8),
    "off_distill": (41.0, 56.9),
    "off_distill_replay": (41.5, 57.3),
    "on_distill": (41.9, 57.7),
    "on_distill_replay": (42.3, 58.0),
    "grpo": (43.8, 58.7),
    "grpo_replay": (45.4, 59.2),
    "grpo_both": (45.2, 58.9),
    "hint": (47.2, 60.4),
    "prefix": (45.5, 59.5),
    "grpo_replay_bcq": (48.6, 60.8),
    "grpo_replay_ncq": (46.2, 60.1),
    "zppo": (50.3, 62.0),
}
# Fig. 4 (2B): percent of admissions that graduated, by plain accuracy at admission.
PAPER_GRADUATION = {
    "zppo": {"0%": 28, "12.5%": 54, "25%": 76, "37.5%": 93, "all": 26.6},
    "grpo_replay": {"0%": 4, "12.5%": 14, "25%": 49, "37.5%": 82, "all": 14.3},
}
CLAIMS = [("zppo", other) for other in PAPER if other not in ("zppo", "base")]
CLAIMS += [("grpo_replay", "grpo"), ("grpo_replay", "grpo_both")]
# The 97.5% quantile of Student's t by degrees of freedom, from 0.
T_QUANTILES = [math.nan, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262]


# ---------------------------------------------------------------- numbers


def by_key(results: dict) -> dict[tuple[str, int], dict]:
    """{(method, seed): the run's line in results.json}."""
    return {(run["method"], run["seed"]): run for run in results["runs"]}


def mean_interval(values: pd.Series) -> tuple[float, float, float]:
    """(mean, sample standard deviation, half width of the 95% t-interval of the mean).

    NaN where values are too few.
    """
    freedom = max(len(values) - 1, 0)
    if freedom < len(T_QUANTILES):
        quantile = T_QUANTILES[freedom]
    else:
        quantile = 1.960 + 2.372 / freedom + 2.822 / freedom**2
    deviation = values.std()
    return values.mean(), deviation, quantile * deviation / math.sqrt(freedom + 1)


def measures(families: pd.DataFrame) -> pd.DataFrame:
    """Columns hard, known and all (decision 5), then the families.

    families: a line per run, a column per family.
    """
    ends = {"hard": "/hard$", "known": "/known$", "all": "."}
    means = {name: families.filter(regex=end).mean(axis=1) for name, end in ends.items()}
    return pd.DataFrame(means).dropna(axis=1, how="all").join(families)


def measured(results: dict, when: str) -> pd.DataFrame:
    """Held-out accuracy in percent "before" or "after": a line per (method, seed), a column per
    measure and family."""
    families = pd.DataFrame({key: run[when] for key, run in by_key(results).items()}).T
    return measures(families.rename_axis(["method", "seed"]))


def compare(values: pd.DataFrame, reference: str) -> pd.DataFrame:
    """`mean_interval` of each row over seeds, and of its difference to the reference row at the
    seeds that both have.

    values: a line per (method, seed), a column per measure. Returns a line per (measure, method).
    """
    lines = []
    for measure in values:
        theirs = values[measure].get(reference, math.nan)
        for method, column in values[measure].groupby("method", sort=False):
            gaps = (column.loc[method] - theirs).dropna()
            gap, _, gap_half = mean_interval(gaps)
            own = mean_interval(column)
            lines.append((measure, method, len(column), *own, gap, gap_half))
    header = "held-out method seeds mean std half difference difference_half".split()
    return pd.DataFrame(lines, columns=header).set_index(["held-out", "method"])


def graduations(results: dict, method: str) -> pd.DataFrame:
    """Fig. 4, over all seeds of a method."""
    lines = []
    for run in results["runs"]:
        if run["method"] == method:
            for accuracy, counts in run["graduation"].items():
                lines.append((float(accuracy), *counts))
    return analysis.graduation(pd.DataFrame(lines, columns=["accuracy", "graduated", "admitted"]))


def secondary(results: dict, curves: pd.DataFrame) -> pd.DataFrame:
    """Secondary measures in percent, a line per (method, seed); NaN where a row has none."""
    runs = by_key(results)
    lines = {}
    for key, steps in curves.groupby(level=["method", "seed"], sort=False):
        after = runs[key]["after"]
        lines[key] = {
            "known, text": after.get("text/known", math.nan),
            "known, frames": after.get("frames/known", math.nan),
            "BCQ accuracy": 100 * steps.bcq_accuracy.mean(),
            "BCQ with signal": 100 * steps.bcq_active_share.mean(),
            "NCQ accuracy": 100 * steps.ncq_accuracy.mean(),
            "NCQ with signal": 100 * steps.ncq_active_share.mean(),
            "graduates from 0%": share_from_zero(runs[key]["graduation"]),
            "no box, at most": 100 * steps.no_answer_share[-30:].max(),
        }
    return pd.DataFrame(lines).T.rename_axis(["method", "seed"])


def share_from_zero(graduation: dict) -> float:
    """Percent of a run's graduates that had entered at 0%; NaN where none was admitted."""
    if not graduation:
        return math.nan
    counts = {float(accuracy): graduated for accuracy, (graduated, _) in graduation.items()}
    return 100 * counts.get(0.0, 0) / max(1, sum(counts.values()))


def graduated_from_zero(results: dict) -> pd.Series:
    """Percent of the admissions at 0% that graduated, by (method, seed) that had any."""
    found = {}
    for key, run in by_key(results).items():
        graduated, admitted = run["graduation"].get("0.0", (0, 0))
        if admitted:
            found[key] = 100 * graduated / admitted
    keys = pd.MultiIndex.from_tuples(list(found), names=["method", "seed"])
    return pd.Series(found.values(), keys, dtype=float)


# ---------------------------------------------------------------- texts


def markdown(table: pd.DataFrame) -> str:
    """An aligned Markdown table of the columns; floats with one decimal, NaN as a dash."""
    texts = [list(map(as_text, row)) for row in table.itertuples(index=False)]
    columns = zip(table.columns, *texts)
    first, *rest = (max(map(len, column)) for column in columns)
    cells = [f"| {{:<{first}}}"] + [f"{{:>{width}}}" for width in rest]
    form = " | ".join(cells) + " |"
    dashes = [f"|{'-' * (first + 2)}"] + [f"{'-' * (width + 1)}:" for width in rest]
    rule = "|".join(dashes) + "|"
    lines = [form.format(*row) for row in texts]
    return "\n".join([form.format(*table.columns), rule, *lines])


def as_text(value) -> str:
    if value != value:
        return "–"
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def plus_minus(mean: float, half: float, sign: str = "") -> str:
    """Both with one decimal; a NaN stands for what is not known."""
    if mean != mean:
        return "–"
    text = f"{mean:{sign}.1f}"
    return text if half != half else f"{text} ± {half:.1f}"


def mean_text(values: pd.Series) -> str:
    """Mean and interval over seeds."""
    mean, _, half = mean_interval(values)
    return plus_minus(mean, half)


def verdict(difference: float, half: float) -> str:
    """What a paired difference says about the claim that it is positive (decision 1)."""
    if half != half:
        return "fewer than two seeds in common"
    if difference > half:
        return "agrees"
    return "differs" if difference < -half else "within noise"


def agrees(holds: bool) -> str:
    return "agrees" if holds else "differs"


def short_label(method: str) -> str:
    """A row's name without what stands in brackets."""
    return ROWS[method].label.split(" (")[0]


# ---------------------------------------------------------------- tables


def rows_table(results: dict) -> str:
    """A line per row of the paper, the base student first; then, below a line, what is not in the
    paper (decision 3)."""
    base = measured(results, "before").groupby("seed").first()
    after = measured(results, "after")
    compared = compare(after, REFERENCE)
    means = [mean_text(base[measure]) for measure in MEASURES]
    lines = [("base", len(base), *means, "–", *PAPER["base"])]
    others = []
    for method in after.index.unique("method"):
        found = [compared.loc[measure, method] for measure in MEASURES]
        cells = [plus_minus(cell["mean"], cell.half) for cell in found]
        hard = found[0]
        difference = "–"
        if method != REFERENCE:
            difference = plus_minus(hard.difference, hard.difference_half, "+")
        paper = PAPER.get(method, ("–", "–"))
        line = (short_label(method), len(after.loc[method]), *cells, difference, *paper)
        if method in PAPER:
            lines.append(line)
        else:
            others.append(line)
    name = ROWS[REFERENCE].label
    header = ["row", "seeds", *MEASURES, f"hard: minus {name}", "paper 0.8B", "paper 2B"]
    if others:
        empty = [""] * (len(header) - 1)
        lines += [("**not in the paper**", *empty), *others]
    return markdown(pd.DataFrame(lines, columns=header))


def claims_table(results: dict) -> str:
    """A line per claim of the paper about two rows that are both there."""
    after = measured(results, "after")
    there = set(after.index.unique("method"))
    lines = []
    for first, second in CLAIMS:
        if not {first, second} <= there:
            continue
        compared = compare(after, second)
        paper = [f"{a - b:+.1f}" for a, b in zip(PAPER[first], PAPER[second])]
        ours = []
        for measure in ("hard", "all"):
            cell = compared.loc[measure, first]
            gap = cell.difference, cell.difference_half
            ours += [plus_minus(*gap, "+"), verdict(*gap)]
        lines.append((f"{ROWS[first].label} > {ROWS[second].label}", *paper, *ours))
    judged = ["hard: difference", "hard: says", "all: difference", "all: says"]
    header = ["claim", "paper 0.8B", "paper 2B", *judged]
    return markdown(pd.DataFrame(lines, columns=header))


def other_claims(results: dict, curves: pd.DataFrame) -> str:
    """Claims that are not about the accuracy of two rows (bench/miniature/preregistration.md)."""
    zero = graduated_from_zero(results)
    methods = set(zero.index.unique("method"))
    lines = []
    if {"zppo", REFERENCE} <= methods:
        mean, _, half = mean_interval((zero["zppo"] - zero[REFERENCE]).dropna())
        name = f"Admitted at 0%: graduation in percent, ZPPO minus {ROWS[REFERENCE].label}"
        lines.append((name, "+24", plus_minus(mean, half, "+"), verdict(mean, half)))
    if "zppo" in methods:
        lines += claims_about_zppo(results, curves)
    if not lines:
        return "None."
    return markdown(pd.DataFrame(lines, columns=["claim", "paper, 2B", "here", "says"]))


def claims_about_zppo(results: dict, curves: pd.DataFrame) -> list[tuple]:
    counts = graduations(results, "zppo").graduated
    share = 100 * counts.get("0%", 0) / max(1, counts["all"])
    bcq = 100 * curves.loc["zppo"].bcq_accuracy.mean()
    before = measured(results, "before")["known"]
    after = measured(results, "after")["known"]
    mean, _, half = mean_interval((after - before)["zppo"])
    minority = "ZPPO's graduates that entered at 0%: a minority"
    forgets = "ZPPO forgets nothing: known, after minus before"
    return [
        (minority, "13 to 21", f"{share:.1f}", agrees(share < 50)),
        ("ZPPO's BCQ accuracy", "36 to 69", f"{bcq:.1f}", agrees(36 <= bcq <= 69)),
        (forgets, "above 0", plus_minus(mean, half, "+"), agrees(not mean < -half)),
    ]


def secondary_table(results: dict, curves: pd.DataFrame) -> str:
    """A line per row: mean and interval over seeds; of the last column the largest value."""
    table = secondary(results, curves)
    *averaged, last = table
    lines = []
    for method in table.index.unique("method"):
        runs = table.loc[method]
        cells = [mean_text(runs[name].dropna()) for name in averaged]
        largest = plus_minus(runs[last].max(), math.nan)
        lines.append((short_label(method), *cells, largest))
    return markdown(pd.DataFrame(lines, columns=["row", *table]))


def graduation_table(results: dict) -> str:
    """Fig. 4 beside the paper's numbers."""
    lines = []
    for method, paper in PAPER_GRADUATION.items():
        for line in graduations(results, method).query("admitted > 0").itertuples():
            interval = f"[{line.low:.1f}, {line.high:.1f}]"
            found = (line.graduated, line.admitted, line.percent, interval)
            theirs = paper.get(line.Index, "–")
            lines.append((ROWS[method].label, line.Index, *found, theirs))
    counted = ["graduated", "admitted", "%", "95% interval"]
    header = ["row", "at admission", *counted, "paper, 2B (%)"]
    return markdown(pd.DataFrame(lines, columns=header))


def report(results: dict, curves: pd.DataFrame) -> str:
    """The results as a Markdown page: rows, claims, secondary measures, graduation."""
    return f"""# Rows of the paper's tables on the embedded world

`{results["command"]}`

Held-out accuracy in percent after training, macro mean over families: mean ± 95% t-interval over
seeds. Differences to {ROWS[REFERENCE].label} are at equal seeds. Paper: macro averages over its
16 VLM benchmarks.

{rows_table(results)}

## The paper's claims

Agrees or differs: the 95% interval of the difference at equal seeds excludes 0. Each claim stands
alone.

{claims_table(results)}

{other_claims(results, curves)}

## Secondary measures

In percent. With signal: groups with right and wrong rollouts, mean over steps. No box, at most:
rollouts without an answer, the largest share of any of the last 30 steps of any seed.

{secondary_table(results, curves)}

## Graduation by plain accuracy at admission (Fig. 4)

Admissions of all seeds together; Wilson's 95% interval.

{graduation_table(results)}
"""
