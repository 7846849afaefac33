"""ZPPO-77K, built from its two public sources by the recipe of App. B.1.

    python -m extras.zppo77k --out zppo77k

The result is a parquet set that train.py takes as it is, with a report in which every row that was read has one fate.
The recipe stands in zppo77k.yaml; where a source has renamed something, the message names the line to edit there. The
same command resumes an interrupted build, GROUP files at a time. Other settings, another recipe or other files start
afresh. After other changes of a source or of the code, delete --out first: until the end it holds all rows too.

Decisions where the paper is silent (those on texts and golds are in engine/cleaning.py):
1. Sub-datasets are merged by canonical name: two WeMath configs share one cap. A sub-dataset that both sources hold is
   taken from Vero alone.
2. Vero rows graded by box, click, web action or instruction check have no short answer: dropped. So are golds that list
   the parts of one answer or a sequence, and MMFineReason rows without a pass_rate.
3. The same question and images with different golds: all are dropped.
4. Copies across sub-datasets are merged before the caps, and the copy of Vero stays. A cap then takes the questions of
   the lowest hash of (seed, uid): the set depends neither on workers nor on files or their order.
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
from engine.questions import DataError, Question, as_list, clean_row, names_in, open_images, value_of
from rewards import answers_match

VERO, FINE = "vero", "mmfinereason"
RECIPE_FILE = "extras/zppo77k.yaml"
RECIPE = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
CAPS = {  # most questions of a sub-dataset: {"vero/ai2d": 2800, ...}
    f"{source}/{name}": cap
    for source in (VERO, FINE) for tier, cap in RECIPE["caps"].items() for name in RECIPE[source][tier]
}  # fmt: skip
GROUP = 32  # files that are filtered in one go
TEXTS = ["uid", "question", "answer", "subset", "origin", "row_id", "fate"]
FEATURES = datasets.Features({name: datasets.Value("string") for name in TEXTS} | {"images": [datasets.Image()]})


@dataclass
class BuildArgs:
    out: str = option("zppo77k", "folder of the set; the same command again resumes there")
    student: str = option("Qwen/Qwen3.5-0.8B", "model id or folder whose processor measures the prompts")
    vero: str = option(RECIPE[VERO]["id"], "hub id or folder of the first source; '' leaves it out")
    mmfinereason: str = option(RECIPE[FINE]["id"], "the second source; '' leaves it out")
    allow_missing: bool = option(False, "build although the sources lack sub-datasets of the recipe")
    seed: int = option(0, "of the choice under the caps")
    workers: int = option(max(1, (os.cpu_count() or 2) - 1), "processes; the set does not depend on them", minimum=1)


def canonical(origin: str) -> str:
    """Name of a sub-dataset in the recipe: "vero/chart_ocr-CoSyn_400k_math" -> "vero/cosyn_math",
    "mmfinereason/FineVision-tqa(qa)" -> "mmfinereason/tqa"."""
    source, label = origin.split("/", 1)
    name = label.split("-", 1)[-1] if source == VERO else re.sub(r"\(.*?\)|^FineVision-", "", label)
    name = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
    return f"{source}/{RECIPE['aliases'].get(name, name)}"


@contextmanager
def reading(what: str, fix: str):
    """Turn any error into a DataError that names source and fix: `datasets` raises many kinds."""
    try:
        yield
    except Exception as error:
        raise DataError(f"{what}: cannot be read: {error.__cause__ or error}. {fix}") from error


def streams_of(source: str, path: str) -> tuple[list[str], dict]:
    """(origins that a source holds, {origin: its rows, images undecoded} of those in the recipe). Vero has a config
    for each origin. MMFineReason names the origin in each row: its one stream stands under the name of the source."""
    load = partial(datasets.load_dataset, path, split=RECIPE["split"], streaming=True)
    if source == VERO:
        configs = {f"{VERO}/{config}": config for config in sorted(datasets.get_dataset_config_names(path))}
        wanted = [origin for origin in configs if canonical(origin) in CAPS]
        return list(configs), {origin: load(configs[origin]).decode(False) for origin in wanted}
    column = RECIPE[FINE]["columns"]["source"]
    origins = {f"{FINE}/{value_of(row, column)}" for row in load(columns=column)}
    return sorted(origins), {FINE: load().decode(False)}


def plan(args: BuildArgs) -> tuple[list[tuple], set[str], dict[str, list[str]]]:
    """([(origin, rows of one file)], names of MMFineReason that Vero holds, {"outside": origins that are not in the
    recipe, "missing": its names without an origin}). Raises DataError where a source is not as the recipe says."""
    files, origins = [], []
    paths = {source: path for source, path in ((VERO, args.vero), (FINE, args.mmfinereason)) if path}
    fix = f"Is it whole, and the right id or folder? If its split has another name: edit `split` in {RECIPE_FILE}"
    for source, path in paths.items():
        with reading(f"--{source} {path}", fix):
            found, streams = streams_of(source, path)
        for origin, rows in streams.items():
            there = names_in(rows.features)
            for ours, names in RECIPE[source]["columns"].items():
                if there.keys().isdisjoint(names):
                    what = f"no column for {ours}: expected one of {names}, the source has {list(there)}"
                    raise DataError(f"--{source} {path}, {origin}: {what}. Edit `{ours}` of {source} in {RECIPE_FILE}")
            files += [(origin, rows.shard(rows.num_shards, i)) for i in range(rows.num_shards)]
        origins += found
    there = {canonical(origin) for origin in origins}
    held = {FINE + name.removeprefix(VERO) for name in there & CAPS.keys() if name.startswith(VERO)}
    missing = sorted(name for name in CAPS.keys() - there - held if name.split("/")[0] in paths)
    outside = [origin for origin in origins if canonical(origin) not in CAPS]
    if missing and not args.allow_missing:
        asked = " ".join(f"--{source} {path}" for source, path in paths.items())
        what = f"nothing there matches {missing} of the recipe; there, not in the recipe: {outside}"
        fix = f"If one of these is meant, add it to `aliases` in {RECIPE_FILE}; to build without: --allow_missing"
        raise DataError(f"{asked}: {what}. {fix}")
    return files, held, {"outside": outside, "missing": missing}


def unwanted(subset: str, value: dict, held: set[str]) -> str:
    """Why the recipe drops a row of these values, whatever its question and image; "" if it does not."""
    if subset not in CAPS:
        return "not_in_recipe"
    if subset in held:
        return "held_by_vero"
    if "pass_rate" in value:
        if pd.isna(value["pass_rate"]):
            return "pass_rate_missing"
        return "pass_rate_too_high" if float(value["pass_rate"]) > RECIPE["max_pass_rate"] else ""
    if value["reward_type"] in RECIPE[VERO]["no_short_answer"]:
        return "no_short_answer"
    items = as_list(spelled_list(value["answer"], (object,)))
    return RECIPE[VERO]["lists"].get(value["reward_type"], "") if len(items) > 1 else ""


def unfit(question: Question, processor) -> str:
    """Why a clean question is dropped; "" if it is not."""
    if min(min(image.size) for image in question.images) < RECIPE["min_side"]:
        return "image_too_small"
    if prompt_tokens(processor, prompts.plain_prompt(question.text), question.images) > RECIPE["max_prompt_tokens"]:
        return "prompt_too_long"
    try:
        open_images(question)  # the costly check comes last
    except DataError:
        return "image_unreadable"
    return ""


def judged_rows(files: list[tuple], held: set[str], processor):
    """Each source row through all filters, as a row of FEATURES. fate: why the row is dropped, or "" if it passes."""
    for origin, stream in files:
        columns = RECIPE[origin.split("/")[0]]["columns"]
        for row in map(names_in, stream):
            value = {ours: value_of(row, names) for ours, names in columns.items()}
            label = f"{FINE}/{value['source']}" if origin == FINE else origin
            cells = as_list(value["images"]) or [None]  # a question of this set has an image
            fate = unwanted(canonical(label), value, held)
            if not fate:
                question, fate = clean_row(value["question"], value["answer"], cells)
            fate = fate or unfit(question, processor)
            made = dict.fromkeys(TEXTS, "") | {"origin": label, "subset": canonical(label), "fate": fate}
            made |= {"row_id": str(value["row_id"]), "images": []}
            if not fate:
                made |= {"uid": question.uid, "question": question.text, "answer": question.answer}
                made["images"] = [{"bytes": image_bytes(cell), "path": None} for cell in cells]
            yield made


def settle(rows: pd.DataFrame) -> pd.Series:
    """The one fate of each row: its reason, or what becomes of copies and caps (decisions 3, 4), or "kept"."""
    passed = rows[rows["fate"] == ""].assign(second=lambda rows: ~rows["subset"].str.startswith(VERO))
    passed = passed.sort_values(["second", "subset", "origin", "answer", "row_id"])  # rows of Vero come first
    first = passed.groupby("uid")[["subset", "answer"]].transform("first")  # of the rows with the same question
    copy = passed["uid"].duplicated()
    agree = pd.Series(map(answers_match, passed["answer"], first["answer"]), passed.index, dtype=bool)
    agree = agree.groupby(passed["uid"]).transform("all")
    place = passed[agree & ~copy].sort_values("rank").groupby("subset").cumcount().reindex(passed.index)
    cases = {
        "conflicting_answers": ~agree,
        "duplicate": copy & (passed["subset"] == first["subset"]),
        "duplicate_of_another_subset": copy,
        "kept": place < passed["subset"].map(CAPS),
    }
    fates = rows["fate"].copy()
    fates[passed.index] = np.select(list(cases.values()), list(cases), "over_cap")  # the first case that holds
    return fates


def build(args: BuildArgs, processor=None) -> dict:
    """Make the set in args.out: data/train.parquet and report.json. Returns the report: {"questions", "settings",
    "outside" and "missing" of the recipe, "subsets": {subset: [cap, questions]}, "totals": {"rows", fate: n},
    "origins": {origin: the same}}. processor: that of args.student if None."""
    final, work = Path(args.out, "data"), Path(args.out, "work")
    if final.exists():
        raise DataError(f"{final} exists: the set is finished. Delete it or choose another --out")
    with reading(f"--student {args.student}", "Is it the id or the folder of a model with images?"):
        processor = bound_pixels(processor or load_processor(args.student))
    files, held, found = plan(args)
    settings = {name: value for name, value in asdict(args).items() if name not in ("out", "workers")}
    inputs = repr((settings, RECIPE, GROUP, [origin for origin, _ in files]))
    state, groups = hashlib.sha256(inputs.encode()).hexdigest()[:16], []
    for start in range(0, len(files), GROUP):  # a group that is on disk with this fingerprint is not read again
        given = {"files": files[start : start + GROUP], "held": held, "processor": processor}
        options = {"fingerprint": f"{state}-{start}", "num_proc": args.workers, "gen_kwargs": given}
        with reading("a source file", "The lines above name the file: is it whole?"):
            groups.append(datasets.Dataset.from_generator(judged_rows, FEATURES, str(work), **options))
    rows = datasets.concatenate_datasets(groups)
    texts = rows.select_columns(TEXTS).to_pandas()
    texts["rank"] = [hashlib.sha256(f"{args.seed} {uid}".encode()).hexdigest() for uid in texts["uid"]]
    texts["fate"] = settle(texts)
    kept = texts[texts["fate"] == "kept"].sort_values("rank")
    report = {"questions": len(kept), "settings": settings, **found}
    report["subsets"] = {name: [CAPS[name], len(members)] for name, members in kept.groupby("subset")}
    report["totals"] = {"rows": len(texts), **Counter(texts["fate"])}
    report["origins"] = {name: {"rows": len(f), **Counter(f)} for name, f in texts.groupby("origin")["fate"]}
    part = work / "set"
    part.mkdir(parents=True, exist_ok=True)
    rows.select(kept.index).remove_columns("fate").to_parquet(part / "train.parquet")
    Path(args.out, "report.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    part.replace(final)  # the set appears whole
    shutil.rmtree(work)
    return report


if __name__ == "__main__":
    (arguments,) = parse([BuildArgs], sys.argv[1:], "Build ZPPO-77K (App. B.1) from its two public sources.")
    try:
        made = build(arguments)
    except DataError as error:
        sys.exit(f"zppo77k.py: {error}")
    print(json.dumps({"questions": made["questions"], "totals": made["totals"]}, indent=1))
