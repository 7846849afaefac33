"""ZPPO-77K, built from its two public sources by the recipe of App. B.1.

    python zppo77k.py --out zppo77k      # long; the same command resumes. --help explains every filter

The result is a parquet set that train.py takes as it is, with a card and a report: every row at every filter.

Decisions where the paper is silent (those on cleaning a row are in data.py):
1. Caps count canonical sub-datasets (two WeMath configs share one) and choose by the hash of (seed, uid), so not by
   workers, files or order. A sub-dataset that both sources hold is taken from Vero alone.
2. Vero rows graded by box, click, web action or instruction check have no short answer: dropped. MMFineReason rows
   without a pass_rate are dropped.
3. Exact copies across sub-datasets are dropped after the caps, without a refill.
"""

import functools
import hashlib
import heapq
import json
import multiprocessing
import os
import re
import shutil
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from types import SimpleNamespace

import datasets
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm
from transformers import HfArgumentParser

import prompts
from engine.models import load_processor
from engine.questions import (
    MAX_ANSWER_CHARS,
    MAX_PIXELS,
    MIN_PIXELS,
    DataError,
    as_list,
    bound_pixels,
    clean_row,
    dig,
    image_bytes,
    image_size,
    parse_columns,
    prompt_tokens,
)

VERO, FINE = "vero", "mmfinereason"
RECIPE = {  # source -> (tier 1, tier 2), canonical names
    VERO: ({"ai2d", "geo170k", "geomverse", "geoqa_plus", "mmk12", "cosyn_math", "cosyn_chart",
            "cosyn_diagram", "cosyn_table", "wemath", "tqa", "visualwebinstruct", "chartqa", "arxivqa"},
           {"pathvqa", "vqarad", "raven", "evochart", "infographic_vqa", "aokvqa", "gqa", "iconqa", "vqav2",
            "visual7w", "tallyqa", "pixelreasoner", "multihop", "pixmo", "visual_probe"}),
    FINE: ({"mmr1", "euclid", "geo170k", "geometry3k", "mm_openr1", "wemath", "visualwebinstruct", "bmmr",
            "tqa", "ai2d", "scienceqa", "virl39k"},
           {"raven", "visualsphinx", "puzzleqa", "llava_cot", "zebra_cot"}),
}
NAMES = {source: first | second for source, (first, second) in RECIPE.items()}
ALIASES = {  # how the sources write a name of RECIPE once subset_of has tidied it; --aliases adds to it
    "ai2d_merged": "ai2d", "chartqa_difficulty": "chartqa", "arxivqa_formatted": "arxivqa",
    "cosyn_400k_math": "cosyn_math", "cosyn_400k_chart": "cosyn_chart", "cosyn_400k_table": "cosyn_table",
    "cosyn_400k_diagram": "cosyn_diagram", "wemath20_pro": "wemath", "wemath20_standard": "wemath",
    "wemath2_pro": "wemath", "wemath2_standard": "wemath", "wemath2_sft": "wemath", "multihop_qa": "multihop",
    "euclid30k": "euclid", "mmopenr1_8k": "mm_openr1", "zebra_cot_physics": "zebra_cot",
}
SOURCE_COLUMNS = {
    VERO: {"question": "extra_info.question", "answer": "reward_model.ground_truth", "images": "image",
           "row_id": "id", "reward_type": "extra_info.reward_type"},
    FINE: {"question": "question", "answer": "answer", "images": "image", "row_id": "id", "source": "source",
           "pass_rate": "pass_rate"},
}
NO_SHORT_ANSWER = ("grounding", "clicking", "web_action", "instruction_following")  # Vero reward types
ROWS_PER_FILE = 2000
FEATURES = datasets.Features(
    {name: datasets.Value("string") for name in ("uid", "question", "answer")}
    | {"images": datasets.List(datasets.Image())}
    | {name: datasets.Value("string") for name in ("source", "subset", "origin", "row_id", "rank")})


def arg(default, text: str):
    return field(default=default, metadata={"help": text})


@dataclass
class BuildArgs:
    """Build ZPPO-77K (App. B.1) from its two public sources: parquet that train.py takes as it is."""

    out: str = field(metadata={"help": "folder of the set; the same command again resumes there"})
    student: str = arg("Qwen/Qwen3.5-0.8B", "model id or folder whose processor measures the prompts")
    vero: str = arg("zlab-princeton/Vero-600k", "hub id or folder of the first source; '' leaves it out")
    mmfinereason: str = arg("OpenDataArena/MMFineReason-SFT-586K-Qwen3-VL-235B-Thinking",
                            "hub id or folder of the second source; '' leaves it out")
    vero_split: str = arg("train", "split of the first source")
    mmfinereason_config: str = arg("default", "config of the second source")
    mmfinereason_split: str = arg("train", "split of the second source")
    vero_columns: list[str] = field(default_factory=list, metadata={
        "help": "ours=theirs where a column has another name: answer=extra_info.answer"})
    mmfinereason_columns: list[str] = field(default_factory=list, metadata={
        "help": "the same: pass_rate=qwen3vl_4b_pass_rate"})
    aliases: list[str] = field(default_factory=list, metadata={
        "help": "theirs=ours where a sub-dataset has another name: chartqa_v2=chartqa"})
    allow_missing: list[str] = field(default_factory=list, metadata={
        "help": "sub-datasets of the recipe that the sources may lack"})
    tier1_cap: int = arg(2800, "most questions of a tier 1 sub-dataset")
    tier2_cap: int = arg(1400, "most questions of a tier 2 sub-dataset")
    max_pass_rate: float = arg(0.5, "MMFineReason rows above it are too easy")
    max_answer_chars: int = arg(MAX_ANSWER_CHARS, "longest gold answer, characters")
    min_side: int = arg(100, "shortest allowed image side, pixels")
    max_prompt_tokens: int = arg(4096, "longest prompt: template, image tokens, question and closer")
    min_pixels: int = arg(MIN_PIXELS, "lower pixel bound of the processor")
    max_pixels: int = arg(MAX_PIXELS, "upper pixel bound of the processor")
    seed: int = arg(0, "of the choice under the caps")
    workers: int = arg(max(1, (os.cpu_count() or 2) - 1), "processes; the set does not depend on them")


@dataclass(frozen=True)
class Shard:
    """One parquet file of a source, the unit of work and of resuming."""

    source: str
    config: str
    url: str
    rows: int

    @property
    def key(self) -> str:
        return f"{self.source}-{self.config}-{hashlib.sha256(self.url.encode()).hexdigest()[:12]}"


def subset_of(origin: str, args: BuildArgs) -> str:
    """Canonical name of "vero/<config>" or "mmfinereason/<source value>": the part after the domain, tidied.

    "vero/chart_ocr-CoSyn_400k_math" -> "cosyn_math", "mmfinereason/FineVision-geo170k(qa)" -> "geo170k".
    """
    source, label = origin.split("/", 1)
    name = label.split("-", 1)[-1] if source == VERO else re.sub(r"\(.*?\)|^FineVision-", "", label)
    name = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
    return (ALIASES | dict(alias.split("=") for alias in args.aliases)).get(name, name)


def cap_of(subset: str, args: BuildArgs) -> int:
    return args.tier1_cap if any(subset in tiers[0] for tiers in RECIPE.values()) else args.tier2_cap


def rank_of(uid: str, seed: int) -> str:
    return hashlib.sha256(f"{seed} {uid}".encode()).hexdigest()[:16]


def columns_of(source: str, args: BuildArgs) -> dict[str, str]:
    return SOURCE_COLUMNS[source] | parse_columns(getattr(args, f"{source}_columns"), SOURCE_COLUMNS[source])


def find_files(path: str, source: str, config: str, split: str) -> list[str]:
    """URLs or paths of the parquet files of one config and split; DataError lists what exists."""
    try:
        files = datasets.load_dataset_builder(path, config).config.data_files or {}
    except (ValueError, OSError) as error:
        raise DataError(f"{path}: config {config!r} was expected: {error}. Set --{source}_config") from error
    if split not in files:
        raise DataError(f"{path} ({config}): split {split!r} was expected, the source has {sorted(files)}. "
                        f"Set --{source}_split")
    return sorted(files[split])


def open_shard(url: str, source: str, columns: dict[str, str]) -> pq.ParquetFile:
    """The file, opened for streaming, once all its columns are known to exist. DataError otherwise."""
    try:
        file = pq.ParquetFile(fsspec.open(url, "rb").open())
    except pa.ArrowInvalid as error:
        raise DataError(f"{url}: not a whole parquet file ({error}); only parquet is read") from error
    leaves = [file.schema.column(i).path.split(".") for i in range(len(file.schema))]
    exist = {".".join(leaf[:depth]) for leaf in leaves for depth in (1, 2)}
    if missing := {ours: theirs for ours, theirs in columns.items() if theirs and theirs not in exist}:
        raise DataError(f"{url}: columns {missing} were expected, the file has {sorted(exist)}. "
                        f"Map them: --{source}_columns {next(iter(missing))}=<name>")
    return file


def plan(args: BuildArgs) -> tuple[list[Shard], set[str], list[str]]:
    """(shards, sub-datasets that Vero holds, origins outside the recipe), from metadata alone.

    DataError if a sub-dataset of the recipe matches nothing: a name differs from those known here.
    """
    files, origins, shards = [], {VERO: set(), FINE: set()}, []
    if args.vero:
        try:
            configs = sorted(datasets.get_dataset_config_names(args.vero))
        except (ValueError, OSError) as error:
            raise DataError(f"--vero {args.vero}: cannot be opened: {error}") from error
        for config in configs:
            origins[VERO].add(f"{VERO}/{config}")
            if subset_of(f"{VERO}/{config}", args) in NAMES[VERO]:
                files += [(VERO, config, url) for url in find_files(args.vero, VERO, config, args.vero_split)]
    if args.mmfinereason:
        config, split = args.mmfinereason_config, args.mmfinereason_split
        files += [(FINE, config, url) for url in find_files(args.mmfinereason, FINE, config, split)]
    for source, config, url in tqdm(files, desc="file headers", unit="file"):
        columns = columns_of(source, args)
        with open_shard(url, source, columns) as file:
            shards.append(Shard(source, config, url, file.metadata.num_rows))
            if source == FINE:  # this one column tells which sub-datasets there are
                values = file.read([columns["source"]]).to_pylist()
                origins[FINE] |= {f"{FINE}/{dig(row, columns['source'])}" for row in values}
    names = {source: {subset_of(origin, args) for origin in origins[source]} for source in origins}
    held, outside = names[VERO] & NAMES[VERO], []
    for source, path in ((VERO, args.vero), (FINE, args.mmfinereason)):
        others = sorted(origin for origin in origins[source] if subset_of(origin, args) not in NAMES[source])
        outside += others
        lost = sorted(NAMES[source] - names[source] - held - set(args.allow_missing))
        if path and lost:
            raise DataError(
                f"{path}: nothing there matches {lost} of the recipe; there, not in the recipe: {others}. If "
                f"one of these is meant: --aliases <its name, lower case, _ between words>={lost[0]}; to "
                f"build without: --allow_missing {' '.join(lost)}")
    return shards, held, outside


def judge_row(row: dict, origin: str, subset: str, columns: dict, args: BuildArgs, held: set, processor):
    """One source row through all filters, in this order: (row of the set, "") or (None, reason)."""
    source = origin.split("/", 1)[0]
    if subset not in NAMES[source]:
        return None, "not_in_recipe"
    if source == FINE:
        if subset in held:
            return None, "held_by_vero"
        rate = dig(row, columns["pass_rate"])
        if rate is None or np.isnan(float(rate)):
            return None, "pass_rate_missing"
        if float(rate) > args.max_pass_rate:
            return None, "pass_rate_too_high"
    elif dig(row, columns["reward_type"]) in NO_SHORT_ANSWER:
        return None, "no_short_answer"
    cells = as_list(dig(row, columns["images"])) or [None]  # a question of this set has an image
    checked, reason = clean_row(dig(row, columns["question"]), dig(row, columns["answer"]), cells,
                                max_answer_chars=args.max_answer_chars)
    if reason:
        return None, reason
    text, answer, sizes, uid = checked
    if min(min(size) for size in sizes) < args.min_side:
        return None, "image_too_small"
    prompt, boxes = prompts.plain_prompt(text), [SimpleNamespace(size=size) for size in sizes]
    if prompt_tokens(processor, prompt, boxes) > args.max_prompt_tokens:
        return None, "prompt_too_long"
    images = [{"bytes": image_bytes(cell), "path": None} for cell in cells]
    try:
        for image in images:
            image_size(image["bytes"], full=True)  # the costly check comes last
    except OSError:
        return None, "image_unreadable"
    return {"uid": uid, "question": text, "answer": answer, "images": images, "source": source,
            "subset": subset, "origin": origin, "row_id": str(dig(row, columns["row_id"])),
            "rank": rank_of(uid, args.seed)}, ""


def choice_order(row: dict) -> tuple:
    return row["rank"], row["origin"], row["answer"], row["row_id"]


def lowest_ranks(rows: list[dict], cap: int) -> list[dict]:
    """The rows that a cap can still choose: the `cap` lowest ranks, one row per (uid, origin)."""
    chosen, ranks = {}, set()
    for row in sorted(rows, key=choice_order):
        ranks.add(row["rank"])
        if len(ranks) > cap:
            break
        chosen.setdefault((row["uid"], row["origin"]), row)
    return list(chosen.values())


def scan_shard(shard: Shard, args: BuildArgs, held: set, folder: str, processor) -> int:
    """Filter one file into `folder`; returns its number of rows.

    <key>.parquet: the rows a cap can still choose, in choice order. <key>.json, written last:
    {"counts": {origin: {"rows", reason: n}}, "passed": {origin: [uid]}}.
    """
    columns, counts, passed, kept = columns_of(shard.source, args), {}, {}, {}
    with open_shard(shard.url, shard.source, columns) as file:
        for batch in file.iter_batches(batch_size=32, columns=sorted(filter(None, columns.values()))):
            for row in batch.to_pylist():
                label = shard.config if shard.source == VERO else dig(row, columns["source"])
                origin = f"{shard.source}/{label}"
                subset = subset_of(origin, args)
                made, reason = judge_row(row, origin, subset, columns, args, held, processor)
                counts.setdefault(origin, Counter()).update(["rows"] + [reason] * bool(reason))
                if made:
                    passed.setdefault(origin, []).append(made["uid"])
                    kept.setdefault(subset, []).append(made)
    rows = [row for subset, group in kept.items() for row in lowest_ranks(group, cap_of(subset, args))]
    target = os.path.join(folder, shard.key)
    table = pa.Table.from_pylist(sorted(rows, key=choice_order), schema=FEATURES.arrow_schema)
    pq.write_table(table, f"{target}.parquet", row_group_size=32)
    with open(f"{target}.part", "w") as file:
        json.dump({"counts": counts, "passed": passed}, file)
    os.replace(f"{target}.part", f"{target}.json")  # only a finished shard has this name
    return shard.rows


def scan_all(shards: list[Shard], scan, workers: int) -> None:
    """Run `scan` on the shards, here or in `workers` spawned processes (no lock or thread is inherited)."""
    with tqdm(total=sum(shard.rows for shard in shards), desc="filter", unit="row") as bar:
        if workers <= 1:
            for shard in shards:
                bar.update(scan(shard))
            return
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
            try:
                for done in as_completed([pool.submit(scan, shard) for shard in shards]):
                    bar.update(done.result())
            except BaseException:
                pool.shutdown(cancel_futures=True)  # what runs may finish; the same command resumes
                raise


def choose(stats: list[dict], args: BuildArgs) -> tuple[dict[str, str], dict[str, Counter]]:
    """({uid: origin} of the set, {origin: counts of every fate}): duplicates and caps, from uids alone."""
    counts, passed, owners, chosen = {}, {}, {}, {}
    for stat in stats:
        for origin, count in stat["counts"].items():
            counts.setdefault(origin, Counter()).update(count)
        for origin, uids in stat["passed"].items():
            passed.setdefault(origin, Counter()).update(uids)
    for origin in sorted(passed):  # owners: subset -> {uid: its first origin}
        owner = owners.setdefault(subset_of(origin, args), {})
        for uid, copies in passed[origin].items():
            counts[origin]["duplicate"] += copies - (uid not in owner)
            owner.setdefault(uid, origin)
    for subset in sorted(owners, key=lambda name: (name not in NAMES[VERO], name)):  # Vero's names first
        for place, uid in enumerate(sorted(owners[subset], key=lambda uid: rank_of(uid, args.seed))):
            origin = owners[subset][uid]
            fate = ("over_cap" if place >= cap_of(subset, args) else
                    "duplicate_of_another_subset" if uid in chosen else "kept")
            counts[origin][fate] += 1
            if fate == "kept":
                chosen[uid] = origin
    for origin, count in counts.items():
        assert 2 * count["rows"] == count.total(), f"{origin}: a row without a fate or with two: {count}"
    return chosen, {origin: +counts[origin] for origin in sorted(counts)}


def write_set(files: list[str], chosen: dict[str, str], folder: str) -> None:
    """Stream the chosen rows from the sorted shard files into train-*.parquet, by rank: a seeded shuffle."""

    def stream(path):
        for batch in pq.ParquetFile(path).iter_batches(batch_size=8):
            yield from batch.to_pylist()

    total, rows, written = -(-len(chosen) // ROWS_PER_FILE), [], set()
    for row in tqdm(heapq.merge(*map(stream, files), key=choice_order), desc="write", unit="row"):
        if chosen.get(row["uid"]) != row["origin"] or row["uid"] in written:
            continue
        written.add(row["uid"])
        rows.append(row)
        if len(rows) == ROWS_PER_FILE or len(written) == len(chosen):
            name = f"train-{(len(written) - 1) // ROWS_PER_FILE:05d}-of-{total:05d}.parquet"
            table = pa.Table.from_pylist(rows, schema=FEATURES.arrow_schema)
            pq.write_table(table, os.path.join(folder, name), row_group_size=100)
            rows = []


CARD = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*
---
# ZPPO-77K, rebuilt

{questions} questions (image, text, short answer), chosen from two public sets by the recipe of App. B.1 of
the ZPPO paper (arXiv 2606.18216) with `python zppo77k.py`. The licences are those of the sources.

Columns: uid; question (no image marker, no format directive); answer; images (bytes as in the source);
source; subset (canonical name); origin; row_id (id in the source); rank (the hash that chose the row, and the
order of the set).

In the sources but not in the recipe: {outside}.

## Settings
| setting | value |
|---|---|
{settings}

## Questions per sub-dataset
| sub-dataset | cap | questions |
|---|---|---|
{subsets}

## Every row of the files that were read
{origins}
"""


def card(report: dict) -> str:
    """README.md of the set."""

    def table(rows) -> str:
        return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)

    fates = [fate for fate in report["totals"] if fate not in ("rows", "kept")]
    head = ["origin", "rows", *fates, "kept"]
    counts = report["origins"] | {"all": report["totals"]}
    return CARD.format(
        questions=report["questions"], outside=", ".join(report["outside_the_recipe"]) or "nothing",
        settings=table((name, f"`{value}`") for name, value in report["settings"].items()),
        subsets=table((name, cap, kept) for name, (cap, kept) in report["subsets"].items()),
        origins=table([head, ["---"] * len(head)] + [
            [origin] + [count.get(fate, 0) for fate in head[1:]] for origin, count in counts.items()]))


def build(args: BuildArgs, processor=None) -> dict:
    """Make the set in args.out: data/train-*.parquet, README.md, report.json. Returns the report:

    {"settings", "questions", "subsets": {subset: [cap, questions]}, "totals": {"rows", reason: n, "kept"},
    "origins": {"<source>/<label>": the same}, "outside_the_recipe"}. processor: default that of args.student.
    Files finished by an interrupted run with the same settings are not read again. Until the end args.out
    also holds every row that a cap could still choose: a multiple of the final size.
    """
    final = os.path.join(args.out, "data")
    if os.path.exists(final):
        raise DataError(f"{final} exists: the set is finished. Delete it or choose another --out")
    processor = processor or load_processor(args.student)
    bound_pixels(processor, args.min_pixels, args.max_pixels)
    shards, held, outside = plan(args)
    settings = {name: value for name, value in asdict(args).items() if name not in ("out", "workers")}
    with open(__file__, "rb") as code:  # other settings or other code: start afresh
        key = hashlib.sha256(json.dumps([settings, prompts.CLOSER]).encode() + code.read()).hexdigest()[:12]
    work = os.path.join(args.out, f"work-{key}")
    os.makedirs(work, exist_ok=True)
    todo = [shard for shard in shards if not os.path.exists(os.path.join(work, f"{shard.key}.json"))]
    print(f"{len(shards)} files, {sum(shard.rows for shard in shards)} rows; "
          f"{len(shards) - len(todo)} files were finished before")
    scan = functools.partial(scan_shard, args=args, held=held, folder=work, processor=processor)
    scan_all(todo, scan, args.workers)
    stats = []
    for shard in shards:
        with open(os.path.join(work, f"{shard.key}.json")) as file:
            stats.append(json.load(file))
    chosen, counts = choose(stats, args)
    part = os.path.join(work, "set")
    shutil.rmtree(part, ignore_errors=True)
    os.makedirs(part)
    write_set([os.path.join(work, f"{shard.key}.parquet") for shard in shards], chosen, part)
    subsets = Counter(subset_of(origin, args) for origin in chosen.values())
    report = {"settings": settings, "questions": len(chosen),
              "subsets": {name: [cap_of(name, args), subsets[name]] for name in sorted(subsets)},
              "totals": dict(sum(counts.values(), Counter())),
              "origins": {origin: dict(count) for origin, count in counts.items()},
              "outside_the_recipe": outside}
    with open(os.path.join(args.out, "report.json"), "w") as file:
        json.dump(report, file, indent=1)
    with open(os.path.join(args.out, "README.md"), "w") as file:
        file.write(card(report))
    os.replace(part, final)  # the set appears whole
    for name in os.listdir(args.out):
        if name.startswith("work-"):  # those of other settings too
            shutil.rmtree(os.path.join(args.out, name))
    return report


if __name__ == "__main__":
    (arguments,) = HfArgumentParser(BuildArgs).parse_args_into_dataclasses()
    try:
        report = build(arguments)
    except DataError as error:
        sys.exit(f"zppo77k.py: {error}")
    print(json.dumps({"questions": report["questions"], "totals": report["totals"]}, indent=1))
