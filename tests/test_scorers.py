"""suite/: answers against options and golds, and numbers by hand."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from extras.analysis import cluster_bootstrap
from suite import compare
from suite.entries import BENCHMARKS, BY_NAME
from suite.rows import Item
from suite.scorers import anls, blind, by_rule, choose, dynamath, mathvista


def boxed(answer: str) -> str:
    return f"<think>Is it \\boxed{{A}}? No.</think>So \\boxed{{{answer}}}"


# ---- answers against options: one table ----------------------------------------------------------

ANIMALS = ("cat", "dog", "owl", "cow")
NUMBERS = ("4", "1", "2", "3")
LABELS = ("(c)", "(a)", "(e)", "(d)", "(b)")
SIGNS = ("C", "A", "B", "D")
CHOICES = [  # answer, options, what it commits to
    ("B", ANIMALS, {1}),
    ("b", ANIMALS, {1}),
    ("(b)", ANIMALS, {1}),
    ("B.", ANIMALS, {1}),
    ("[B]", ANIMALS, {1}),
    ("option B", ANIMALS, {1}),
    ("Option (B)", ANIMALS, {1}),
    ("The correct answer is B", ANIMALS, {1}),
    ("answer: B", ANIMALS, {1}),
    ("\\text{B}", ANIMALS, {1}),
    ("\\textbf{(B)}", ANIMALS, {1}),
    ("**B**", ANIMALS, {1}),
    ("$B$", ANIMALS, {1}),
    ("dog", ANIMALS, {1}),
    ("The dog.", ANIMALS, {1}),
    ("DOG", ANIMALS, {1}),
    ("B. dog", ANIMALS, {1}),
    ("(B) dog", ANIMALS, {1}),
    ("B: the dog", ANIMALS, {1}),
    ("Option B: dog", ANIMALS, {1}),
    ("\\text{B. dog}", ANIMALS, {1}),
    ("B. owl", ANIMALS, None),  # the letter of one, the text of another
    ("B. a big bird", ANIMALS, None),
    ("a dog or a cat", ANIMALS, None),
    ("not B", ANIMALS, None),
    ("2", ANIMALS, None),
    ("option 2", ANIMALS, None),  # counted from 0 or from 1?
    ("A, B", ANIMALS, {0, 1}),
    ("A and B", ANIMALS, {0, 1}),
    ("AB", ANIMALS, {0, 1}),
    ("B or C", ANIMALS, {1, 2}),
    ("B C", ANIMALS, {1, 2}),
    ("E", ANIMALS, {4}),
    ("(z)", ANIMALS, {25}),
    ("A, F", ANIMALS, {0, 5}),
    ("I", ANIMALS, {8}),
    ("I do not know", ANIMALS, None),
    ("", ANIMALS, None),
    ("?", ANIMALS, None),
    ("none", ANIMALS, None),
    ("unicorn", ANIMALS, None),
    ("a", ANIMALS, {0}),
    ("A dog", ANIMALS, {1}),
    ("1", NUMBERS, {1}),
    ("2.0", NUMBERS, {2}),
    ("option 1", NUMBERS, None),
    ("C", NUMBERS, {2}),
    ("5", NUMBERS, None),
    ("A. cat", ("cat", "A"), {0}),
    ("A. cow", ("cat", "dog", "A"), None),
    ("b. 3", ("2", "3"), {1}),
    ("B", ("C", "A", "B", "D"), {1}),
    ("D", ("C", "A", "B", "D"), {3}),
    ("E", ("E", "F", "G", "H"), {0}),
    ("x", ("y", "x"), {1}),
    ("B", ("A and B", "B"), {1}),
    ("A and B", ("A and B", "B"), {0}),
    ("\\frac{1}{2}", ("$0.5$", "$2$"), {0}),
    ("0.5", ("\\frac{1}{2}", "0.5"), {1}),
    ("5", ("5 cm", "5 m"), None),
    ("5 cm", ("5", "5 cm"), {1}),
    ("same", ("same", "same"), None),
    ("II", ("I", "II", "III"), {1}),
    ("I", ("I", "II", "III"), {0}),
    ("C", ("", "", "", ""), {2}),
    ("C. seven", ("", "", "", ""), {2}),
    ("seven", ("", "", "", ""), None),
    ("300, 400", ("300, 400", "3.5"), {0}),
    ("F", ("", "", ""), {5}),
    # The letter comes first, also where another option's text is a letter.
    ("B", LABELS, {1}),
    ("(b)", LABELS, {1}),
    ("b", LABELS, {1}),
    ("\\text{(b)}", LABELS, {1}),
    ("F", LABELS, {5}),
    ("E. (b)", LABELS, {4}),
    ("(a) and (b)", LABELS, {0, 1}),
    ("option (e)", LABELS, {4}),
    ("\\text{B}", SIGNS, {1}),
    ("\\textbf{(B)}", SIGNS, {1}),
    ("$B$", SIGNS, {1}),
    ("C. B", SIGNS, {2}),
    ("A. C", SIGNS, {0}),
    ("A, B", SIGNS, {0, 1}),
    ("BD", SIGNS, {1, 3}),
    ("b", ("x", "y", "b"), {1}),
    ("\\mathrm{C}", ("volt", "C", "A", "ohm"), {2}),
    ("J", ("J", "W", "N"), {0}),
    ("N", ("J", "W", "N"), {2}),
    ("yes", ("Yes", "No"), {0}),
    ("no", ("Yes", "No"), {1}),
    ("No.", ("Yes", "No"), {1}),
    ("C D", ("A B", "C D"), {1}),
]


@pytest.mark.parametrize(("answer", "options", "chosen"), CHOICES)
def test_answers_against_letters(answer, options, chosen):
    assert choose(answer, options) == chosen
    item = Item("x/0", "?", (), "", benchmark="ai2d", options=options, golds=())
    for gold in range(
        len(options)
    ):  # no false positive: only the one option that was meant is ever right
        result = by_rule(replace(item, golds=(gold,)), boxed(answer))
        assert (result.reward == 1) == (chosen == {gold})


@pytest.mark.parametrize("seed", range(20))
def test_options_shuffled(seed):
    options = tuple(
        np.random.default_rng(seed).permutation(["red", "7", "a cat", "3/4", "x+1"])
    )
    for i, text in enumerate(options):
        forms = (
            text,
            f"{'ABCDE'[i]}",
            f"({'abcde'[i]})",
            f"{'ABCDE'[i]}. {text}",
            f"option {'ABCDE'[i]}",
        )
        assert [choose(form, options) for form in forms] == [{i}] * 5
        assert choose(f"{'ABCDE'[i - 1]}. {text}", options) is None


# ---- numbers by hand -----------------------------------------------------------------------------


def an_item(benchmark: str, *golds, options=(), **row) -> Item:
    return Item(
        f"{benchmark}/0",
        "?",
        (),
        str(golds[0]),
        benchmark=benchmark,
        options=options,
        golds=golds,
        row=row,
    )


@pytest.mark.parametrize(
    ("answer", "golds", "value"),
    [
        ("kitten", ("kitten",), 1),
        ("  KITTEN ", ("kitten",), 1),
        ("sitten", ("kitten",), 5 / 6),
        ("sitting", ("kitten",), 4 / 7),
        ("sit", ("kitten",), 0),
        ("ab", ("abcd",), 0.5),
        ("a", ("abcd",), 0),
        ("\\text{New   York}", ("new york",), 1),
        ("NYC", ("new york", "nyc"), 1),
        ("", ("a",), 0),
    ],
)
def test_anls(answer, golds, value):
    assert anls(an_item("infovqa", *golds), answer) == pytest.approx(value)


@pytest.mark.parametrize(
    ("answer", "gold", "row", "value"),
    [
        ("7.9", "7", dict(answer_type="integer"), 1),
        ("7", "7", dict(answer_type="integer"), 1),
        ("8", "7", dict(answer_type="integer"), 0),
        ("1,200", "1200", dict(answer_type="integer"), 1),
        ("$7$", "7", dict(answer_type="integer"), 1),
        ("seven", "7", dict(answer_type="integer"), None),
        ("0.5", "0.50", dict(answer_type="float", precision=1.0), 1),
        ("0.54", "0.5", dict(answer_type="float", precision=1.0), 1),
        ("0.56", "0.5", dict(answer_type="float", precision=1.0), 0),
        ("0.567", "0.57", dict(answer_type="float", precision=2.0), 1),
        ("[1, 2]", "[1, 2]", dict(answer_type="list", precision=None), 1),
        ("[2, 1]", "[1, 2]", dict(answer_type="list", precision=None), None),
        ("blue", "blue", dict(answer_type="text"), 1),
    ],
)
def test_mathvista_free_form(answer, gold, row, value):
    assert mathvista(an_item("mathvista", gold, **row), answer) == value


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("(B)", 1),
        ("A", 0),
        ("smaller", 1),
        ("smalller", 1),
        ("larges", 0),
        ("A, B", 0),
        ("E", 0),
    ],
)
def test_mathvista_choices(answer, value):
    item = an_item("mathvista", 1, options=("larger", "smaller", "same"), answer_type="text")
    assert mathvista(item, answer) == value


@pytest.mark.parametrize(
    ("answer", "gold", "kind", "value"),
    [
        ("1.5", "1.5", "float", 1),
        ("1.5009", "1.5", "float", 1),
        ("1.502", "1.5", "float", 0),
        ("3/2", "1.5", "float", 1),
        ("0.5\\pi", "1.5708", "float", 1),
        ("π", "3.14159", "float", 1),
        ("2pi", "2\\pi", "float", 1),
        ("3", "\\pi", "float", 0),
        ("none", "1.5", "float", None),
        ("", "even", "text", None),
        ("Even", "even", "text", 1),
        ("even", "an even function", "text", 1),
        ("odd", "even", "text", None),
    ],
)
def test_dynamath_rule(answer, gold, kind, value):
    assert dynamath(an_item("dynamath", gold, answer_type=kind), answer) == value


def test_dynamath_letters():
    item = an_item("dynamath", 1, options=("",) * 5, answer_type="multiple choice")
    assert [dynamath(item, answer) for answer in ("B", "(b)", "A", "B, C", "two")] == [
        1,
        1,
        0,
        0,
        None,
    ]


@pytest.mark.parametrize(
    ("task", "answer", "gold", "value"),
    [
        ("nested squares", "{4}", "4", 1),
        ("nested squares", "5", "4", 0),
        ("nested squares", "4 or 5", "4", None),
        ("touching circles", "Yes", "Yes", 1),
        ("touching circles", "No, they are not", "Yes", 0),
        ("touching circles", "yes and no", "Yes", None),
        ("circled letter", "{w}", "w", 1),
        ("circled letter", "W", "w", 1),
        ("circled letter", "v", "w", 0),
        ("circled letter", "the w", "w", None),
        ("counting grid - blank grids", "(3, 4)", "3,4", 1),
        ("counting grid - blank grids", "rows={3} columns={4}", "3,4", 1),
        ("counting grid - blank grids", "4 columns, 3 rows", "3,4", 1),
        ("counting grid - word grids", "(4,3)", "3,4", 0),
        ("counting grid - word grids", "3", "3,4", None),
    ],
)
def test_blind_rule(task, answer, gold, value):
    assert blind(an_item("vlmsareblind", gold, task=task), answer) == value


def test_numbers_in_the_thoughts_do_not_count():
    item = an_item("vlmsareblind", "4", task="olympic counting - circles")
    assert by_rule(item, "<think>4 rings</think>\\boxed{5}").reward == 0
    assert (
        by_rule(item, "<think>\\boxed{4}? no</think>five").reward == 1
    )  # the last box counts wherever it stands


def a_record(name: str, reward, uid="", unit="", finished=True, **groups) -> dict:
    method = groups.pop("method", "rule")
    return {
        "family": name,
        "uid": uid,
        "reward": reward,
        "finished": finished,
        "method": method,
        "scored_with": unit,
        "groups": groups,
    }


def test_dynamath_average_and_worst_case():
    records = [
        a_record("dynamath", float(variant > wrong), unit=str(seed), split=str(variant))
        for seed, wrong in enumerate((0, 1, 5))
        for variant in range(1, 11)
    ]
    records += [
        a_record("dynamath", 1.0, unit="partly", split=str(variant)) for variant in range(1, 10)
    ]
    summary = compare.summarise(records)["dynamath"]
    assert summary["score"] == pytest.approx(100 * (10 + 9 + 5 + 9) / 39)
    assert summary["beside"]["worst case"] == pytest.approx(
        100 / 3
    )  # of three seeds with all variants


def test_we_maths_four_ways():
    cases = {  # key: (single steps, several) -> by hand
        "cm": ((1, 1), 1),
        "rm": ((1, 0), 1),
        "rm_both": ((0, 0), 1),
        "ig": ((1, 1), 0),
        "ik": ((0, 1), 0),
        "cm3": ((1, 1, 1), 1),
        "ik3": ((0, 0, 0), 0),
        "rm3": ((1, 0, 1), 1),
    }
    records = []
    for unit, (singles, several) in cases.items():
        for i, reward in enumerate(singles, 1):
            records.append(
                a_record("wemath", float(reward), unit=unit, key=f"{len(singles)}steps_{i}")
            )
        records.append(
            a_record("wemath", float(several), unit=unit, key=f"{len(singles)}steps_multi")
        )
    records.append(
        a_record("wemath", 1.0, unit="partly", key="2steps_multi")
    )  # its single steps are not there
    numbers = compare.summarise(records)["wemath"]["beside"]
    # of 8: IG 1, IK 2; strict: CM 2, RM 3; loose: CM 4 (cm, rm, cm3, rm3), RM 1 (rm_both)
    assert numbers == pytest.approx(
        {
            "IG": 12.5,
            "IK": 25,
            "CM strict": 25,
            "RM strict": 37.5,
            "CM loose": 50,
            "RM loose": 12.5,
            "RM rate strict": 60,
            "RM rate loose": 20,
            "score strict": 100 * (8 - 0.5 - 3 - 2) / 8,
            "score loose": 100 * (8 - 0.5 - 1 - 2) / 8,
        }
    )


def test_capability_mean():
    records = [
        a_record("ocrbench_en", reward, capability=capability)
        for capability, reward in (
            ("recognition", 1.0),
            ("recognition", 0.0),
            ("recognition", 0.0),
            ("spotting", 0.5),
            ("elements", 1.0),
        )
    ]
    assert compare.summarise(records)["ocrbench_en"]["score"] == pytest.approx(
        100 * (1 / 3 + 0.5 + 1) / 3
    )
    records.append(a_record("ocrbench_en", None, capability="elements", method="not scored"))
    assert (
        compare.summarise(records)["ocrbench_en"]["score"] is None
    )  # no number rather than a wrong one


def test_scores_by_group():
    records = [
        a_record("charxiv", 1.0, half="reasoning"),
        a_record("charxiv", 0.0, half="descriptive"),
        a_record("charxiv", 0.0, half="descriptive"),
        a_record("charxiv", 1.0, half="descriptive"),
    ]
    assert compare.summarise(records)["charxiv"]["score"] == pytest.approx(
        100 * (1 + 1 / 3) / 2
    )
    records = [
        a_record("mmvet", 0.3, capability=["ocr", "math"]),
        a_record("mmvet", 0.9, capability=["ocr"]),
    ]
    summary = compare.summarise(records)["mmvet"]
    assert summary["score"] == pytest.approx(60)
    assert summary["groups"]["capability"] == pytest.approx({"ocr": 60, "math": 30})


def test_mmlu_redux_without_wrong_rows():
    records = [
        a_record("mmlu_redux", reward, error_type=error)
        for error, reward in (("ok", 1.0), ("expert", 0.0))
    ]
    summary = compare.summarise(records)["mmlu_redux"]
    assert (summary["score"], summary["beside"]) == (50.0, {"rows without an error": 100.0})


def test_bootstrap_reproduces_table_14():
    table = pd.DataFrame({row: compare.paper(f"0.8B/{row}") for row in ("grpo_replay", "zppo")})
    vlm = table[[BY_NAME[name].family == "vlm" for name in table.index]]
    row = cluster_bootstrap(vlm, "grpo_replay").loc["zppo"]
    assert (row["delta"], row["low"], row["high"]) == pytest.approx((4.79, 3.45, 6.12), abs=0.1)
    assert row["wins"] == 16 == len(vlm)


def test_bootstrap_by_hand():
    scores = pd.DataFrame({"a": [10.0, 20.0], "b": [11.0, 23.0], "c": [10.0, 20.0]})
    result = cluster_bootstrap(scores, "a")
    assert result.loc["b", ["mean", "delta", "low", "high", "wins"]].tolist() == [
        17,
        2,
        1,
        3,
        2,
    ]
    assert result.loc["c", ["delta", "low", "high", "wins"]].tolist() == [0, 0, 0, 0]
    assert cluster_bootstrap(scores, "a").equals(result)  # a fixed seed


def test_macro_averages_say_what_is_missing():
    scores = {entry.name: 50.0 for entry in BENCHMARKS if entry.family != "llm"}
    scores |= {"ai2d": 82.0, "mmlu": 30.0, "hle": None}
    assert compare.macro(scores) == {
        "vlm": (52.0, 16, 16),
        "llm": (30.0, 1, 10),
        "video": (50.0, 5, 5),
    }
    assert compare.paper("2B/zppo")["mmlu"] > 0
    theirs = compare.macro(compare.paper("0.8B/zppo"))
    assert [round(theirs[family][0], 1) for family in ("llm", "vlm", "video")] == [
        33.1,
        50.2,
        52.9,
    ]
    with pytest.raises(ValueError, match="7B/zppo"):
        compare.paper("7B/zppo")
