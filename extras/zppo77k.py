"""ZPPO-77K, built from its two public sources by the recipe of App. B.1.

    python -m extras.zppo77k --out zppo77k

The result is a parquet set that train.py takes as it is, with a report in which every row that was read has one fate.
The recipe stands in zppo77k.yaml; where a source has renamed something, the message names the line to edit there. The
same command resumes an interrupted build, GROUP files at a time; other settings or another recipe start afresh. After
a change of the code or of a source, delete --out first. Until the end, --out also holds all rows that passed.

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
import math
import os
import re
import shutil
import sys
from collections import Counter, defaultdict
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import product
from pathlib import Path

import datasets
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
NAMES = {source: {*RECIPE[source]["tier_1"], *RECIPE[source]["tier_2"]} for source in (VERO, FINE)}
GROUP = 32  # files that are filtered in one go
ROWS_PER_FILE = 2000
TEXTS = ["uid", "question", "answer", "source", "subset", "origin", "row_id", "rank", "fate"]
FEATURES = datasets.Features({name: datasets.Value("string") for name in TEXTS} | {"images": [datasets.Image()]})


@dataclass
class BuildArgs:
    out: str = field(metadata={"help": "folder of the set; the same command again resumes there"})
    student: str = option("Qwen/Qwen3.5-0.8B", "model id or folder whose processor measures the prompts")
    vero: str = option(RECIPE[VERO]["id"], "hub id or folder of the first source; '' leaves it out")
    mmfinereason: str = option(RECIPE[FINE]["id"], "the second source; '' leaves it out")
    allow_missing: bool = option(False, "build although the sources lack sub-datasets of the recipe")
    seed: int = option(0, "of the choice under the caps")
    workers: int = option(max(1, (os.cpu_count() or 2) - 1), "processes; the set does not depend on them", least=1)


def subset_of(origin: str) -> str:
    """Canonical name: "vero/chart_ocr-CoSyn_400k_math" -> "cosyn_math", "mmfinereason/FineVision-tqa(qa)" -> "tqa"."""
    source, label = origin.split("/", 1)
    name = label.split("-", 1)[-1] if source == VERO else re.sub(r"\(.*?\)|^FineVision-", "", label)
    name = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
    name = re.sub(r"^wemath2.*", "wemath", name).replace("cosyn_400k_", "cosyn_")
    return RECIPE["aliases"].get(name, name)


def cap_of(subset: str) -> int:
    first, second = RECIPE["caps"]
    return first if any(subset in RECIPE[source]["tier_1"] for source in NAMES) else second


def rank_of(uid: str, seed: int) -> str:
    return hashlib.sha256(f"{seed} {uid}".encode()).hexdigest()[:16]


@contextmanager
def reading(what: str, fix: str):
    """Turn any error into a DataError that names source and fix: `datasets` raises many kinds."""
    try:
        yield
    except Exception as error:
        raise DataError(f"{what}: cannot be read: {error.__cause__ or error}. {fix}") from error


def origins_of(source: str, path: str) -> list[str]:
    """What a source holds: "vero/<config>", or "mmfinereason/<value of the source column>" of each row."""
    if source == VERO:
        return [f"{VERO}/{config}" for config in sorted(datasets.get_dataset_config_names(path))]
    columns = RECIPE[FINE]["columns"]["source"]
    rows = datasets.load_dataset(path, split=RECIPE["split"], streaming=True, columns=columns)
    return sorted({f"{FINE}/{value_of(row, columns)}" for row in rows})


def plan(args: BuildArgs) -> tuple[list[tuple], set[str], dict[str, list[str]]]:
    """([(origin, rows of one file, images undecoded)], names that Vero holds, {"outside": origins that are not in the
    recipe, "missing": its names without an origin}). The origin of a file of MMFineReason is "mmfinereason"."""
    files, held, found = [], set(), {"outside": [], "missing": []}
    for source, path in ((VERO, args.vero), (FINE, args.mmfinereason)):
        if not path:
            continue
        fix = f"Is it whole, and the right id or folder? If its split has another name: edit `split` in {RECIPE_FILE}"
        with reading(f"--{source} {path}", fix):
            origins = origins_of(source, path)
            wanted = [origin for origin in origins if subset_of(origin) in NAMES[source]]
            configs = {origin: origin.split("/", 1)[1] for origin in wanted} if source == VERO else {FINE: None}
            load = partial(datasets.load_dataset, path, split=RECIPE["split"], streaming=True)
            streams = {origin: load(config).decode(False) for origin, config in configs.items()}
            columns = {origin: names_in(stream.features or next(iter(stream))) for origin, stream in streams.items()}
        for origin, (ours, names) in product(streams, RECIPE[source]["columns"].items()):
            if columns[origin].keys().isdisjoint(names):
                what = f"no column for {ours}: expected one of {names}, the source has {list(columns[origin])}"
                raise DataError(f"--{source} {path}, {origin}: {what}. Edit `{ours}` of {source} in {RECIPE_FILE}")
        outside = [origin for origin in origins if origin not in wanted]
        missing = sorted(NAMES[source] - held - {subset_of(origin) for origin in wanted})
        if missing and not args.allow_missing:
            what = f"nothing there matches {missing} of the recipe; there, not in the recipe: {outside}"
            fix = f"If one of these is meant, add it to `aliases` in {RECIPE_FILE}; to build without: --allow_missing"
            raise DataError(f"--{source} {path}: {what}. {fix}")
        found = {"outside": found["outside"] + outside, "missing": found["missing"] + missing}
        held |= {subset_of(origin) for origin in wanted if source == VERO}
        for origin, stream in streams.items():
            files += [(origin, stream.shard(stream.num_shards, i)) for i in range(stream.num_shards)]
    return files, held, found


def unwanted(source: str, subset: str, value: dict, held: set[str]) -> str:
    """Why the recipe drops a row of these values, whatever its question and image; "" if it does not."""
    if subset not in NAMES[source]:
        return "not_in_recipe"
    if source == VERO:
        if value["reward_type"] in RECIPE[VERO]["no_short_answer"]:
            return "no_short_answer"
        items = as_list(spelled_list(value["answer"], (object,)))
        return RECIPE[VERO]["lists"].get(value["reward_type"], "") if len(items) > 1 else ""
    if subset in held:
        return "held_by_vero"
    if value["pass_rate"] is None or math.isnan(float(value["pass_rate"])):
        return "pass_rate_missing"
    return "pass_rate_too_high" if float(value["pass_rate"]) > RECIPE["max_pass_rate"] else ""


def judge_row(row: dict, origin: str, held: set[str], processor, seed: int) -> dict:
    """One source row through all filters, as a row of FEATURES. fate: why the row is dropped, or "" if it passes."""
    source, subset = origin.split("/", 1)[0], subset_of(origin)
    value = {ours: value_of(row, names) for ours, names in RECIPE[source]["columns"].items()}
    made = dict.fromkeys(TEXTS, "") | {"source": source, "subset": subset, "origin": origin, "images": []}
    made["row_id"] = str(value["row_id"])
    cells = as_list(value["images"]) or [None]  # a question of this set has an image
    reason = unwanted(source, subset, value, held)
    if not reason:
        checked, reason = clean_row(value["question"], value["answer"], cells)
    if reason:
        return made | {"fate": reason}
    text, _, answer, pictures, uid = checked
    if min(min(picture.size) for picture in pictures) < RECIPE["min_side"]:
        return made | {"fate": "image_too_small"}
    if prompt_tokens(processor, prompts.plain_prompt(text), pictures) > RECIPE["max_prompt_tokens"]:
        return made | {"fate": "prompt_too_long"}
    try:
        open_images(Question(uid, text, tuple(pictures), answer))  # the costly check comes last
    except DataError:
        return made | {"fate": "image_unreadable"}
    made["images"] = [{"bytes": image_bytes(cell), "path": None} for cell in cells]
    return made | {"uid": uid, "question": text, "answer": answer, "rank": rank_of(uid, seed)}


def judged_rows(files: list[tuple], held: set[str], processor, seed: int):
    """The rows of these files, judged. A file of MMFineReason names the origin in each row."""
    for origin, stream in files:
        for row in map(names_in, stream):
            label = f"{FINE}/{value_of(row, RECIPE[FINE]['columns']['source'])}" if origin == FINE else origin
            yield judge_row(row, label, held, processor, seed)


def settle(rows: dict[str, list[str]]) -> list[str]:
    """The one fate of each row: its reason, or what becomes of copies and caps (decisions 3, 4), or "kept"."""
    fates, copies, owned = list(rows["fate"]), defaultdict(list), defaultdict(list)
    order = list(zip(*(rows[name] for name in ("source", "subset", "origin", "answer", "row_id"))))
    for i in sorted(range(len(fates)), key=lambda i: (order[i][0] != VERO, order[i])):  # rows of Vero come first
        if not fates[i]:
            copies[rows["uid"][i]].append(i)
    for owner, *others in copies.values():
        subset, answer = rows["subset"][owner], rows["answer"][owner]
        if all(answers_match(rows["answer"][i], answer) for i in others):
            owned[subset].append(owner)
            for i in others:
                fates[i] = "duplicate" if rows["subset"][i] == subset else "duplicate_of_another_subset"
        else:
            for i in (owner, *others):
                fates[i] = "conflicting_answers"
    for subset, members in owned.items():
        for place, i in enumerate(sorted(members, key=rows["rank"].__getitem__)):
            fates[i] = "kept" if place < cap_of(subset) else "over_cap"
    return fates


def build(args: BuildArgs, processor=None) -> dict:
    """Make the set in args.out: data/train-*.parquet and report.json. Returns the report: {"questions", "settings",
    "outside" and "missing" of the recipe, "subsets": {subset: [cap, questions]}, "totals": {"rows", fate: n},
    "origins": {origin: the same}}. processor: that of args.student if None."""
    final, work = Path(args.out, "data"), Path(args.out, "work")
    if final.exists():
        raise DataError(f"{final} exists: the set is finished. Delete it or choose another --out")
    with reading(f"--student {args.student}", "Is it the id or the folder of a model with images?"):
        processor = bound_pixels(processor or load_processor(args.student))
    files, held, found = plan(args)
    settings = {name: value for name, value in asdict(args).items() if name not in ("out", "workers")}
    state, groups = hashlib.sha256(repr((settings, RECIPE, GROUP)).encode()).hexdigest()[:16], []
    for start in range(0, len(files), GROUP):  # a group that is on disk with this fingerprint is not read again
        given = {"files": files[start : start + GROUP], "held": held, "processor": processor, "seed": args.seed}
        options = {"fingerprint": f"{state}-{start}", "num_proc": args.workers, "gen_kwargs": given}
        with reading("a source file", "The lines above name the file: is it whole?"):
            groups.append(datasets.Dataset.from_generator(judged_rows, FEATURES, str(work), **options))
    rows = datasets.concatenate_datasets(groups)
    columns = rows.select_columns(TEXTS).to_dict()
    fates, origins = settle(columns), defaultdict(Counter)
    for origin, fate in zip(columns["origin"], fates):
        origins[origin].update(["rows", fate])
    kept = sorted((i for i, fate in enumerate(fates) if fate == "kept"), key=lambda i: columns["rank"][i])
    subsets = Counter(columns["subset"][i] for i in kept)
    report = {"questions": len(kept), "settings": settings, **found}
    report["subsets"] = {name: [cap_of(name), subsets[name]] for name in sorted(subsets)}
    report["totals"] = dict(sum(origins.values(), Counter()))
    report["origins"] = {origin: dict(origins[origin]) for origin in sorted(origins)}
    chosen, total, part = rows.select(kept).remove_columns("fate"), math.ceil(len(kept) / ROWS_PER_FILE), work / "set"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for i in range(total):
        chosen.shard(total, i, contiguous=True).to_parquet(part / f"train-{i:05d}-of-{total:05d}.parquet")
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
