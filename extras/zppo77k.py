"""ZPPO-77K, built from its two public sources by the recipe of App. B.1.

    python -m extras.zppo77k --out zppo77k

The result is a parquet set that train.py takes as it is, with a report in which every row that was
read has one fate. The recipe stands in zppo77k.yaml; where a source has renamed something, the
message names the line to edit there. The same command resumes an interrupted build, GROUP files at
a time. Other settings, another recipe or other files start afresh. After other changes of a source
or of the code, delete --out first: until the end it holds all rows too.

Decisions where the paper is silent (those on texts and golds are in engine/cleaning.py):
1. Sub-datasets are merged by canonical name: two WeMath configs share one cap. A sub-dataset that
   both sources hold is taken from Vero alone.
2. Vero rows graded by box, click, web action or instruction check have no short answer: dropped. So
   are golds that list the parts of one answer or a sequence, and MMFineReason rows without a
   pass_rate.
3. The same question and images with different golds: all are dropped.
4. Copies across sub-datasets are merged before the caps, and the copy of Vero stays. A cap then
   takes the questions of the lowest hash of (seed, uid): the set depends neither on workers nor on
   files or their order.
"""

import hashlib
import json
import os
import re
import shutil
import sys
from collections import Counter
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import yaml

import prompts
from engine.cleaning import spelled_list
from engine.images import bound_pixels, image_bytes, prompt_tokens
from engine.models import load_processor
from engine.options import option, parse
from engine.questions import (
    DataError,
    Question,
    as_list,
    clean_row,
    names_in,
    open_images,
    value_of,
)
from engine.stopping import sentences
from rewards import answers_match

VERO = "vero"
FINE = "mmfinereason"
RECIPE_FILE = "extras/zppo77k.yaml"
RECIPE = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_bytes())
CAPS = {  # most questions of a sub-dataset: {"vero/ai2d": 2800, ...}
    f"{source}/{name}": cap
    for source in (VERO, FINE)
    for tier, cap in RECIPE["caps"].items()
    for name in RECIPE[source][tier]
}
GROUP = 32  # files that are filtered in one go
PROCESSES = max(1, (os.cpu_count() or 2) - 1)
TEXTS = ["uid", "question", "answer", "subset", "origin", "row_id", "fate"]
CELLS = dict.fromkeys(TEXTS, datasets.Value("string"))
FEATURES = datasets.Features(CELLS | {"images": [datasets.Image()]})


@dataclass
class BuildArgs:
    out: str = option("zppo77k", "folder of the set; the same command again resumes there")
    student: str = option("Qwen/Qwen3.5-0.8B", "model whose processor measures the prompts")
    vero: str = option(RECIPE[VERO]["id"], "hub id or folder of the first source; '' leaves it out")
    mmfinereason: str = option(RECIPE[FINE]["id"], "the second source; '' leaves it out")
    allow_missing: bool = option(False, "build although the sources lack some of the recipe")
    seed: int = option(0, "of the choice under the caps")
    workers: int = option(PROCESSES, "processes; the set does not depend on them", minimum=1)


def canonical(origin: str) -> str:
    """Name of a sub-dataset in the recipe: "vero/chart_ocr-CoSyn_400k_math" -> "vero/cosyn_math",
    "mmfinereason/FineVision-tqa(qa)" -> "mmfinereason/tqa"."""
    source, label = origin.split("/", 1)
    if source == VERO:
        name = label.split("-", 1)[-1]
    else:
        name = re.sub(r"\(.*?\)|^FineVision-", "", label)
    name = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
    # Decision 1: two configs may share one name.
    return f"{source}/{RECIPE['aliases'].get(name, name)}"


@contextmanager
def reading(what: str, fix: str):
    """Turn any error into a DataError that names source and fix: `datasets` raises many kinds."""
    try:
        yield
    except Exception as error:
        raise DataError(f"{what}: cannot be read: {error.__cause__ or error}. {fix}") from error


# ---------------------------------------------------------------- which files, which sub-datasets


def plan(args: BuildArgs) -> tuple[list, set, dict]:
    """What is read: (files, held, found).

    files: [(origin, rows of one file), ...]. held: names of MMFineReason that Vero holds too.
    found: "outside", origins that are not in the recipe, and "missing", names of the recipe without
    an origin. Raises DataError where a source is not as the recipe says.
    """
    files, origins = [], []
    paths = {VERO: args.vero, FINE: args.mmfinereason}
    paths = {source: path for source, path in paths.items() if path}
    fix = "Is it whole, and the right id or folder? If its split has another name: edit `split` in "
    for source, path in paths.items():
        place = f"--{source} {path}"
        with reading(place, fix + RECIPE_FILE):
            found, streams = streams_of(source, path)
        origins += found
        for origin, rows in streams.items():
            check_columns(source, f"{place}, {origin}", names_in(rows.features))
            shards = rows.num_shards
            files += [(origin, rows.shard(shards, i)) for i in range(shards)]
    outside = [origin for origin in origins if canonical(origin) not in CAPS]
    there = {canonical(origin) for origin in origins}
    # Decision 1: what both sources hold is taken from Vero alone.
    vero = {name for name in there & CAPS.keys() if name.startswith(VERO)}
    held = {name.replace(VERO, FINE) for name in vero}
    absent = CAPS.keys() - there - held
    missing = sorted(name for name in absent if name.split("/")[0] in paths)
    if missing and not args.allow_missing:
        asked = " ".join(f"--{source} {path}" for source, path in paths.items())
        raise DataError(
            f"{asked}: nothing there matches {missing} of the recipe; "
            f"there, not in the recipe: {outside}. If one of these is meant, "
            f"add it to `aliases` in {RECIPE_FILE}; to build without: --allow_missing"
        )
    return files, held, {"outside": outside, "missing": missing}


def streams_of(source: str, path: str) -> tuple[list, dict]:
    """(origins that a source holds, {origin: its rows, images undecoded} of those in the recipe).

    Vero has a config for each origin. MMFineReason names the origin in each row: its one stream
    stands under the name of the source.
    """
    load = partial(datasets.load_dataset, path, split=RECIPE["split"], streaming=True)
    if source == FINE:
        column = RECIPE[FINE]["columns"]["source"]
        origins = {f"{FINE}/{value_of(row, column)}" for row in load(columns=column)}
        return sorted(origins), {FINE: load().decode(False)}
    origins, streams = [], {}
    for config in sorted(datasets.get_dataset_config_names(path)):
        origin = f"{VERO}/{config}"
        origins.append(origin)
        if canonical(origin) in CAPS:
            streams[origin] = load(config).decode(False)
    return origins, streams


def check_columns(source: str, place: str, there: dict) -> None:
    """Raises DataError where none of a column's names is there. place: names the source."""
    for ours, names in RECIPE[source]["columns"].items():
        if there.keys().isdisjoint(names):
            raise DataError(
                f"{place}: no column for {ours}: expected one of {names}, "
                f"the source has {list(there)}. Edit `{ours}` of {source} in {RECIPE_FILE}"
            )


# ---------------------------------------------------------------- what becomes of a row


def judged_rows(files: list[tuple], held: set[str], processor):
    """Each source row through all filters, as a row of FEATURES.

    fate: why the row is dropped, or "" if it passes.
    """
    for origin, stream in files:
        columns = RECIPE[origin.split("/")[0]]["columns"]
        for row in map(names_in, stream):
            value = {ours: value_of(row, names) for ours, names in columns.items()}
            made = dict.fromkeys(TEXTS, "")
            made["images"] = []
            made["row_id"] = str(value["row_id"])
            made["origin"] = f"{FINE}/{value['source']}" if origin == FINE else origin
            made["subset"] = canonical(made["origin"])
            cells = as_list(value["images"]) or [None]  # a question of this set has an image
            fate = unwanted(made["subset"], value, held)
            if not fate:
                question, fate = clean_row(value["question"], value["answer"], cells)
            fate = fate or unfit(question, processor)
            if not fate:
                made |= {"uid": question.uid, "question": question.text}
                made |= {"answer": question.answer, "images": [*map(image_bytes, cells)]}
            yield made | {"fate": fate}


def unwanted(subset: str, value: dict, held: set[str]) -> str:
    """Why the recipe drops a row of these values, whatever its question and image.

    "" if the recipe does not.
    """
    if subset not in CAPS:
        return "not_in_recipe"
    if subset in held:
        return "held_by_vero"
    if "pass_rate" in value:
        if pd.isna(value["pass_rate"]):
            return "pass_rate_missing"
        if float(value["pass_rate"]) > RECIPE["max_pass_rate"]:
            return "pass_rate_too_high"
        return ""
    # Decision 2: no short answer, or the parts of one answer.
    reward_type = value["reward_type"]
    if reward_type in RECIPE[VERO]["no_short_answer"]:
        return "no_short_answer"
    items = as_list(spelled_list(value["answer"], (object,)))
    if len(items) > 1:
        return RECIPE[VERO]["lists"].get(reward_type, "")
    return ""


def unfit(question: Question, processor) -> str:
    """Why a clean question is dropped; "" if it is not."""
    if min(min(image.size) for image in question.images) < RECIPE["min_side"]:
        return "image_too_small"
    prompt = prompts.plain_prompt(question.text)
    if prompt_tokens(processor, prompt, question.images) > RECIPE["max_prompt_tokens"]:
        return "prompt_too_long"
    try:
        open_images(question)  # the costly check comes last
    except DataError:
        return "image_unreadable"
    return ""


def same_gold(answer: str, other: str) -> bool:
    """True if two golds mean the same, whichever of them is written as a number."""
    return answers_match(answer, other) or answers_match(other, answer)


def settle(rows: pd.DataFrame) -> pd.Series:
    """The one fate of each row: its reason, or what becomes of copies and caps, or "kept"."""
    passed = rows[rows.fate == ""].copy()
    # Decision 4: the copy of Vero comes first.
    passed["second"] = ~passed.subset.str.startswith(VERO)
    passed = passed.sort_values(["second", "subset", "origin", "answer", "row_id"])
    first = passed.groupby("uid")[["subset", "answer"]].transform("first")
    copy = passed.uid.duplicated()
    # Decision 3: all rows of a question are dropped if one has another answer.
    pairs = map(same_gold, passed.answer, first.answer)
    same = pd.Series(pairs, passed.index, dtype=bool)
    agree = same.groupby(passed.uid).transform("all")
    candidates = passed[agree & ~copy].sort_values("rank")
    place = candidates.groupby("subset").cumcount().reindex(passed.index)
    cases = {
        "conflicting_answers": ~agree,
        "duplicate": copy & (passed.subset == first.subset),
        "duplicate_of_another_subset": copy,
        "kept": place < passed.subset.map(CAPS),
    }
    # The first case that holds for a row is its fate.
    passed["fate"] = np.select(list(cases.values()), list(cases), "over_cap")
    return passed.fate.combine_first(rows.fate)


# ---------------------------------------------------------------- the set


def build(args: BuildArgs, processor=None) -> dict:
    """Make the set in args.out: data/train.parquet and report.json. Returns `report_of` the set.

    processor: that of args.student if None.
    """
    out = Path(args.out)
    final, work = out / "data", out / "work"
    if final.exists():
        raise DataError(f"{final} exists: the set is finished. Delete it or choose another --out")
    with reading(f"--student {args.student}", "Is it the id or the folder of a model with images?"):
        processor = bound_pixels(processor or load_processor(args.student))
    files, held, found = plan(args)
    settings = asdict(args)
    for name in ("out", "workers"):  # the set does not depend on them
        del settings[name]
    given = {"held": held, "processor": processor}
    rows = filtered_rows(files, given, settings, args)
    texts = rows.select_columns(TEXTS).to_pandas()
    texts["rank"] = [sha256(f"{args.seed} {uid}") for uid in texts.uid]
    texts["fate"] = settle(texts)
    kept = texts[texts.fate == "kept"].sort_values("rank")
    report = report_of(texts, kept, settings, found)
    part = work / "set"
    part.mkdir(exist_ok=True)
    rows.select(kept.index).remove_columns("fate").to_parquet(part / "train.parquet")
    (out / "report.json").write_text(json.dumps(report, indent=1))
    part.replace(final)  # the set appears whole
    shutil.rmtree(work)
    return report


def filtered_rows(
    files: list[tuple], given: dict, settings: dict, args: BuildArgs
) -> datasets.Dataset:
    """`judged_rows` of all files, GROUP files at a time.

    A group that is on disk from the same inputs is not read again.
    """
    origins = [origin for origin, _ in files]
    state = sha256(repr((settings, RECIPE, GROUP, origins)))[:16]
    groups = []
    for start in range(0, len(files), GROUP):
        group = files[start : start + GROUP]
        with reading("a source file", "The lines above name the file: is it whole?"):
            rows = datasets.Dataset.from_generator(
                judged_rows,
                FEATURES,
                f"{args.out}/work",
                fingerprint=f"{state}-{start}",
                num_proc=args.workers,
                gen_kwargs={"files": group} | given,
            )
        groups.append(rows)
    return datasets.concatenate_datasets(groups)


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def report_of(texts: pd.DataFrame, kept: pd.DataFrame, settings: dict, found: dict) -> dict:
    """What report.json holds.

    "questions": how many. "settings". "outside" and "missing" of the recipe. "subsets": {subset:
    [cap, questions]}. "totals": {"rows", fate: n}. "origins": {origin: the same}.
    """
    subsets = kept.groupby("subset").size().to_dict()
    report = {"questions": len(kept), "settings": settings} | found
    report["subsets"] = {name: [CAPS[name], count] for name, count in subsets.items()}
    report["totals"] = counted(texts.fate)
    origins = texts.groupby("origin").fate
    report["origins"] = {name: counted(fates) for name, fates in origins}
    return report


def counted(fates: pd.Series) -> dict:
    return {"rows": len(fates)} | Counter(fates)


def main() -> None:
    (args,) = parse([BuildArgs], sys.argv[1:], "Build ZPPO-77K (App. B.1) from its two sources.")
    with sentences(DataError):
        report = build(args)
    print(json.dumps({"questions": report["questions"], "totals": report["totals"]}, indent=1))


if __name__ == "__main__":
    main()
