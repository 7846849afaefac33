"""ZPPO-77K, built from its two public sources by the recipe of App. B.1.

    python -m extras.zppo77k --out zppo77k

The result is a parquet set that train.py takes as it is, with a report in which every row that was read has one fate.
The recipe is the constants below; where a source has renamed something, the message names the constant to edit. The
same command resumes an interrupted build, GROUP files at a time. Other settings, other code or changed sources start
afresh. Until the end, --out also holds all rows that passed.

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
import io
import json
import os
import re
import shutil
import sys
from collections import Counter
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import datasets
from PIL import Image
from transformers import HfArgumentParser

import prompts
from engine import cleaning, images, questions
from engine.cleaning import spelled_list
from engine.images import bound_pixels, image_bytes, prompt_tokens
from engine.models import load_processor
from engine.questions import DataError, Question, as_list, broken_images, clean_row, names_in
from rewards import answers_match

CODE = "extras/zppo77k.py"
VERO, FINE = "vero", "mmfinereason"
RECIPE = {  # source -> (tier 1, tier 2), canonical names
    VERO: ("ai2d geo170k geomverse geoqa_plus mmk12 cosyn_math cosyn_chart cosyn_diagram cosyn_table wemath tqa "
           "visualwebinstruct chartqa arxivqa".split(),
           "pathvqa vqarad raven evochart infographic_vqa aokvqa gqa iconqa vqav2 visual7w tallyqa pixelreasoner "
           "multihop pixmo visual_probe".split()),
    FINE: ("mmr1 euclid geo170k geometry3k mm_openr1 wemath visualwebinstruct bmmr tqa ai2d scienceqa virl39k".split(),
           "raven visualsphinx puzzleqa llava_cot zebra_cot".split()),
}
NAMES = {source: {*first, *second} for source, (first, second) in RECIPE.items()}
ALIASES = {  # how a source writes a name of RECIPE, once subset_of has tidied it
    "ai2d_merged": "ai2d", "chartqa_difficulty": "chartqa", "arxivqa_formatted": "arxivqa", "multihop_qa": "multihop",
    "euclid30k": "euclid", "mmopenr1_8k": "mm_openr1", "zebra_cot_physics": "zebra_cot",
}
COLUMNS = {  # of the sources; a row takes the first of these names that holds something
    VERO: {"question": ["extra_info.question"], "answer": ["reward_model.ground_truth", "extra_info.answer"],
           "images": ["image"], "row_id": ["id"], "reward_type": ["extra_info.reward_type"]},
    FINE: {"question": ["question"], "answer": ["answer"], "images": ["image"], "row_id": ["id"], "source": ["source"],
           "pass_rate": ["pass_rate", "qwen3vl_4b_pass_rate"]},
}
SPLIT = "train"  # of both sources
CAPS = (2800, 1400)  # most questions of a sub-dataset in tier 1 and tier 2
MAX_PASS_RATE = 0.5  # an MMFineReason row above is too easy
MIN_SIDE = 100  # pixels
MAX_PROMPT_TOKENS = 4096  # template, image tokens, question and closer
NO_SHORT_ANSWER = ("grounding", "clicking", "web_action", "instruction_following")  # Vero reward types
LISTS = {"list_match": "answer_is_a_list_of_parts", "ordering": "answer_is_a_sequence"}
GROUP = 32  # files that are filtered in one go
ROWS_PER_FILE = 2000
TEXTS = ("uid", "question", "answer", "source", "subset", "origin", "row_id", "rank", "fate")
FEATURES = datasets.Features({name: datasets.Value("string") for name in TEXTS} | {"images": [datasets.Image()]})


def arg(default, text: str):
    return field(default=default, metadata={"help": text})


@dataclass
class BuildArgs:
    """Build ZPPO-77K (App. B.1) from its two public sources: parquet that train.py takes as it is."""

    out: str = field(metadata={"help": "folder of the set; the same command again resumes there"})
    student: str = arg("Qwen/Qwen3.5-0.8B", "model id or folder whose processor measures the prompts")
    vero: str = arg("zlab-princeton/Vero-600k", "hub id or folder of the first source; '' leaves it out")
    mmfinereason: str = arg(
        "OpenDataArena/MMFineReason-SFT-586K-Qwen3-VL-235B-Thinking", "the second source; '' leaves it out"
    )
    allow_missing: bool = arg(False, "build although the sources lack sub-datasets of the recipe")
    limit: int | None = arg(None, "read at most so many rows of each file: for a trial")
    seed: int = arg(0, "of the choice under the caps")
    workers: int = arg(max(1, (os.cpu_count() or 2) - 1), "processes; the set does not depend on them")


def subset_of(origin: str) -> str:
    """Canonical name of "vero/<config>" or "mmfinereason/<source value>": the part after the domain, tidied.

    "vero/chart_ocr-CoSyn_400k_math" -> "cosyn_math", "mmfinereason/FineVision-geo170k(qa)" -> "geo170k".
    """
    source, label = origin.split("/", 1)
    name = label.split("-", 1)[-1] if source == VERO else re.sub(r"\(.*?\)|^FineVision-", "", label)
    name = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
    name = re.sub(r"^wemath2.*", "wemath", name).replace("cosyn_400k_", "cosyn_")
    return ALIASES.get(name, name)


def cap_of(subset: str) -> int:
    return CAPS[0] if any(subset in tiers[0] for tiers in RECIPE.values()) else CAPS[1]


def rank_of(uid: str, seed: int) -> str:
    return hashlib.sha256(f"{seed} {uid}".encode()).hexdigest()[:16]


def value_of(row: dict, names: list[str]):
    """The first of these columns that holds something, or None."""
    values = [row.get(name) for name in names]
    return next((value for value in values if value is not None and value != ""), None)


@contextmanager
def reading(what: str, fix: str):
    """Turn any error into a DataError that names source and fix: `datasets` raises many kinds."""
    try:
        yield
    except Exception as error:
        raise DataError(f"{what}: cannot be read: {error.__cause__ or error}. {fix}") from error


def origins_of(source: str, path: str) -> list[str]:
    """What a source holds: Vero's configs, or the labels in the source column of MMFineReason."""
    if source == VERO:
        labels = datasets.get_dataset_config_names(path)
    else:
        columns = COLUMNS[FINE]["source"]
        rows = datasets.load_dataset(path, split=SPLIT, streaming=True, columns=columns)
        labels = {value_of(row, columns) for row in rows}
    return sorted(f"{source}/{label}" for label in labels)


def open_files(source: str, path: str, config: str | None) -> tuple[list[datasets.IterableDataset], str]:
    """(one stream for each file of a config, images undecoded; identity of the files). Raises DataError."""
    what = f"--{source} {path}, config {config}"
    with reading(what, f"If its split has another name: edit SPLIT of {CODE}"):
        builder = datasets.load_dataset_builder(path, config)
        stream = builder.as_streaming_dataset(split=SPLIT)
        exist = names_in(stream.features or next(iter(stream)))
    for ours, names in COLUMNS[source].items():
        if not set(names) & set(exist):
            expected = f"expected one of {names}, the source has {list(exist)}"
            raise DataError(f"{what}: no column for {ours}: {expected}. Edit COLUMNS of {CODE}")
    stream = stream.decode(False)
    return [stream.shard(stream.num_shards, i) for i in range(stream.num_shards)], builder.cache_dir


def plan(args: BuildArgs) -> tuple[list[tuple], list[str], set[str], list[str], list[str]]:
    """([(origin, stream of one file)], identities of the files, names that Vero holds, origins outside the recipe, its
    names that are missing). A file of MMFineReason has many origins: "mmfinereason" stands for them."""
    files, identities, held, outside, missing = [], [], set(), [], []
    for source, path in ((VERO, args.vero), (FINE, args.mmfinereason)):
        if not path:
            continue
        with reading(f"--{source} {path}", "Is the id or the folder right, and are the files whole?"):
            origins = origins_of(source, path)
        there = {subset_of(origin) for origin in origins}
        others = [origin for origin in origins if subset_of(origin) not in NAMES[source]]
        lost = sorted(NAMES[source] - there - held)
        if lost and not args.allow_missing:
            raise DataError(
                f"--{source} {path}: nothing there matches {lost} of the recipe; there, not in the recipe: {others}. "
                f"If one of these is meant, add it to ALIASES of {CODE}; to build without: --allow_missing"
            )
        outside, missing = outside + others, missing + lost
        held = there & NAMES[VERO] if source == VERO else held
        for origin in sorted(set(origins) - set(others)) if source == VERO else [FINE]:
            streams, identity = open_files(source, path, origin.partition("/")[2] or None)
            files += [(origin, stream) for stream in streams]
            identities.append(identity)
    return files, identities, held, outside, missing


def judge_row(row: dict, origin: str, held: set[str], processor, seed: int) -> dict:
    """One source row through all filters, as a row of FEATURES. fate: why the row is dropped, or "" if it passes."""
    source, subset = origin.split("/", 1)[0], subset_of(origin)
    value = {ours: value_of(row, names) for ours, names in COLUMNS[source].items()}
    made = dict.fromkeys(TEXTS, "") | {"source": source, "subset": subset, "origin": origin, "images": []}
    made["row_id"] = str(value["row_id"])
    if subset not in NAMES[source]:
        return made | {"fate": "not_in_recipe"}
    if source == FINE:
        if subset in held:
            return made | {"fate": "held_by_vero"}
        rate = float("nan" if value["pass_rate"] is None else value["pass_rate"])
        if not rate <= MAX_PASS_RATE:
            return made | {"fate": "pass_rate_missing" if rate != rate else "pass_rate_too_high"}
    elif value["reward_type"] in NO_SHORT_ANSWER:
        return made | {"fate": "no_short_answer"}
    elif value["reward_type"] in LISTS and len(as_list(spelled_list(value["answer"], (object,)))) > 1:
        return made | {"fate": LISTS[value["reward_type"]]}
    cells = as_list(value["images"]) or [None]  # a question of this set has an image
    checked, reason = clean_row(value["question"], value["answer"], cells)
    if reason:
        return made | {"fate": reason}
    text, _, answer, sizes, uid = checked
    if min(map(min, sizes)) < MIN_SIDE:
        return made | {"fate": "image_too_small"}
    encoded = [image_bytes(cell) for cell in cells]
    pictures = tuple(Image.open(io.BytesIO(cell)) for cell in encoded)
    if prompt_tokens(processor, prompts.plain_prompt(text), pictures) > MAX_PROMPT_TOKENS:
        return made | {"fate": "prompt_too_long"}
    if broken_images([Question(uid, text, pictures, answer)]):  # the costly check comes last
        return made | {"fate": "image_unreadable"}
    made["images"] = [{"bytes": cell, "path": None} for cell in encoded]
    return made | {"uid": uid, "question": text, "answer": answer, "rank": rank_of(uid, seed)}


def judged_rows(files: list[tuple], held: set[str], processor, args: BuildArgs):
    """The rows of these files, judged. A file of MMFineReason names the origin in each row."""
    for origin, stream in files:
        for row in stream if args.limit is None else stream.take(args.limit):
            row = names_in(row)
            label = origin if origin != FINE else f"{FINE}/{value_of(row, COLUMNS[FINE]['source'])}"
            yield judge_row(row, label, held, processor, args.seed)


def settle(rows: dict[str, list[str]]) -> list[str]:
    """The one fate of each row: its reason, or what becomes of copies and caps (decisions 3, 4), or "kept"."""
    fates, copies, owned = list(rows["fate"]), {}, {}
    order = list(zip(*(rows[name] for name in ("source", "subset", "origin", "answer", "row_id"))))
    for i in sorted(range(len(fates)), key=lambda i: (order[i][0] != VERO, order[i])):
        if not fates[i]:
            copies.setdefault(rows["uid"][i], []).append(i)
    for owner, *others in copies.values():
        if not all(answers_match(rows["answer"][i], rows["answer"][owner]) for i in others):
            fates[owner] = "conflicting_answers"
        else:
            owned.setdefault(rows["subset"][owner], []).append(owner)
        for i in others:
            same = "duplicate" if rows["subset"][i] == rows["subset"][owner] else "duplicate_of_another_subset"
            fates[i] = fates[owner] or same
    for subset, members in owned.items():
        for place, i in enumerate(sorted(members, key=rows["rank"].__getitem__)):
            fates[i] = "kept" if place < cap_of(subset) else "over_cap"
    return fates


def build(args: BuildArgs, processor=None) -> dict:
    """Make the set in args.out: data/train-*.parquet and report.json. Returns the report:

    {"questions", "settings", "outside" and "missing" of the recipe, "subsets": {subset: [cap, questions]},
    "totals": {"rows", fate: n}, "origins": {origin: the same}}. processor: that of args.student if None.
    """
    final, work = os.path.join(args.out, "data"), os.path.join(args.out, "work")
    if os.path.exists(final):
        raise DataError(f"{final} exists: the set is finished. Delete it or choose another --out")
    processor = bound_pixels(processor or load_processor(args.student))
    files, identities, held, outside, missing = plan(args)
    settings = {name: value for name, value in asdict(args).items() if name not in ("out", "workers")}
    files_of_code = [__file__, *(module.__file__ for module in (prompts, cleaning, images, questions))]
    code = [Path(file).read_bytes() for file in files_of_code]
    state, groups = hashlib.sha256(repr((settings, identities, code)).encode()).hexdigest()[:16], []
    for start in range(0, len(files), GROUP):  # a group that is on disk with this fingerprint is not read again
        given = {"files": files[start : start + GROUP], "held": held, "processor": processor, "args": args}
        options = {"fingerprint": f"{state}-{start}-{GROUP}", "num_proc": args.workers, "gen_kwargs": given}
        with reading("a source file", "The lines above name the file: is it whole?"):
            groups.append(datasets.Dataset.from_generator(judged_rows, FEATURES, work, **options))
    rows = datasets.concatenate_datasets(groups)
    columns = rows.select_columns(list(TEXTS)).to_dict()
    fates, counts = settle(columns), {}
    for origin, fate in zip(columns["origin"], fates):
        counts.setdefault(origin, Counter()).update(["rows", fate])
    kept = sorted((i for i, fate in enumerate(fates) if fate == "kept"), key=lambda i: columns["rank"][i])
    chosen, total, part = rows.select(kept).remove_columns("fate"), -(-len(kept) // ROWS_PER_FILE), f"{work}/set"
    shutil.rmtree(part, ignore_errors=True)
    os.makedirs(part)
    for number in range(total):
        name = os.path.join(part, f"train-{number:05d}-of-{total:05d}.parquet")
        chosen.shard(total, number, contiguous=True).to_parquet(name)
    subsets = Counter(columns["subset"][i] for i in kept)
    report = {"questions": len(kept), "settings": settings, "outside": outside, "missing": missing}
    report["subsets"] = {name: [cap_of(name), subsets[name]] for name in sorted(subsets)}
    report["totals"] = dict(sum(counts.values(), Counter()))
    report["origins"] = {origin: dict(counts[origin]) for origin in sorted(counts)}
    Path(args.out, "report.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    os.replace(part, final)  # the set appears whole
    shutil.rmtree(work)
    return report


if __name__ == "__main__":
    (arguments,) = HfArgumentParser(BuildArgs).parse_args_into_dataclasses()
    try:
        made = build(arguments)
    except DataError as error:
        sys.exit(f"zppo77k.py: {error}")
    print(json.dumps({"questions": made["questions"], "totals": made["totals"]}, indent=1))
