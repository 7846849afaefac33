"""Videos as evenly spaced frames, files found by name (in zips too), subtitles, pictures in cells of rows.

Decisions:
1. A video is up to `frames` images in order of time, each scaled down to the least pixels of an image (Table 8).
2. Frames come from transformers' load_video with the first decoder that is installed; a folder of pictures and an
   animated GIF need none.
3. MVBench's start and end count, unless the file is a cut segment already (its path says so).
"""

import io
import os
import re
import zipfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import datasets
import pandas as pd
from PIL import Image, ImageSequence
from transformers import video_utils

from engine.images import MIN_PIXELS, fit_pixels
from engine.questions import DataError, LazyImage

BACKENDS = {"torchcodec": "torchcodec", "decord": "decord", "pyav": "av", "opencv": "cv2"}  # best first
FILES, PICTURES = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".gif", ".srt"), (".jpg", ".jpeg", ".png")
FOLDER_FPS = 3.0  # of TVQA's frame folders (episodic_reasoning)


def picture(rows: datasets.Dataset, row: int, column: str, folder: Path) -> LazyImage:
    """The image of a cell, its size read from the header. Raises OSError where there is none."""
    image = LazyImage(rows, row, column, 0, str(folder), (0, 0))
    return replace(image, size=Image.open(io.BytesIO(image.read())).size)


@dataclass(frozen=True)
class Frame(LazyImage):
    """The frame at `position` of the frames `indices` of the video `folder`."""

    indices: tuple[int, ...] = ()

    def read(self) -> bytes:
        frames, _, _ = read_frames(self.folder, self.indices)
        frames[self.position].save(file := io.BytesIO(), "PNG", compress_level=1)  # nothing is lost
        return file.getvalue()


@lru_cache(maxsize=8)
def index(folder: Path) -> dict[str, set[Path]]:
    """{name without ending: paths} of videos, frame folders and subtitles; a member of a zip is path.zip/member."""
    found = defaultdict(set)
    for file in folder.rglob("*"):
        members = [file / name for name in zipfile.ZipFile(file).namelist()] if file.suffix == ".zip" else [file]
        for path in members:
            if path.suffix.lower() in FILES:
                found[path.stem].add(path)
        if file.suffix.lower() in PICTURES:
            found[file.parent.name].add(file.parent)
    return found


def find_file(folder: Path, name: str, hint: str = "", srt: bool = False) -> Path | None:
    """The video (or .srt file) of this name, path or URL, taken out of its zip if need be; None if there is none.

    hint: part of the path where several files have the name. Raises DataError if several are left.
    """
    wanted = Path(name.split("/resolve/main/")[-1])
    wanted = wanted.with_suffix("") if wanted.suffix.lower() in FILES else wanted
    hits = [hit for hit in sorted(index(folder).get(wanted.name, ())) if (hit.suffix == ".srt") == srt]
    hits = [hit for hit in hits if hit.with_name(wanted.name).parts[-len(wanted.parts) :] == wanted.parts]
    if len(hits) > 1 and hint:
        hits = [hit for hit in hits if re.search(rf"/{hint}(?![a-z])", str(hit))]
    if len(hits) > 1:
        raise DataError(f"{name}: expected one file in {folder}, found {[str(hit) for hit in hits]}")
    return unzipped(hits[0]) if hits else None


def unzipped(file: Path) -> Path:
    """The file, or its copy in the cache of `datasets` if it is a member of a zip."""
    archive = next((path for path in file.parents if path.suffix == ".zip"), None)
    if archive is None:
        return file
    member = file.relative_to(archive).as_posix()
    cache = Path(datasets.config.EXTRACTED_DATASETS_PATH, f"{archive.stem}-{archive.stat().st_mtime_ns}")
    if not (target := cache / member.replace("/", "_")).exists():  # it appears whole: another process may read it
        cache.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f"{os.getpid()}-{target.name}")
        partial.write_bytes(zipfile.ZipFile(archive).read(member))
        os.replace(partial, target)
    return target


@lru_cache(maxsize=2)  # a question's frames are read one after another
def read_frames(path: str, indices: Sequence[int]) -> tuple[list[Image.Image], int, float]:
    """(the frames at `indices`, how many there are in all, frames per second). Raises DataError."""
    file = Path(path)
    if file.is_dir():
        names = sorted(name for name in file.iterdir() if name.suffix.lower() in PICTURES)
        images, count, fps = [Image.open(names[i]) for i in indices], len(names), FOLDER_FPS
    elif file.suffix.lower() == ".gif":
        shown = ImageSequence.all_frames(movie := Image.open(file))
        images, count, fps = [shown[i] for i in indices], len(shown), 1000 / (movie.info.get("duration") or 100)
    else:
        backend = next((name for name, package in BACKENDS.items() if find_spec(package)), "torchcodec")
        try:
            # The indices go in as a function of the metadata: the library has no other way to ask for them.
            video, data = video_utils.load_video(path, backend=backend, sample_indices_fn=lambda **_: list(indices))
        except Exception as error:  # every decoder has errors of its own; without any of them an ImportError
            raise DataError(f"{path}: {backend} cannot decode it ({type(error).__name__}: {error})") from error
        if video.shape[-1] != 3:  # torchcodec puts the channels first
            video = video.permute(0, 2, 3, 1).numpy()
        images, count, fps = [Image.fromarray(frame) for frame in video], data.total_num_frames, data.fps
    return [fit_pixels(image.convert("RGB"), 1, MIN_PIXELS) for image in images], count, fps


def sample(file: Path, frames: int, start: float | None, end: float | None) -> tuple[tuple[Frame, ...], list[float]]:
    """(frames between `start` and `end` seconds, from the middles of as many equal parts; their times)."""
    (image,), count, fps = read_frames(str(file), (0,))
    if not count:
        raise DataError(f"{file}: the decoder finds no number of frames: pip install torchcodec")
    first, last = 0, count
    if end is not None and "segment" not in str(file):
        first = min(int((start or 0) * fps), count - 1)
        last = max(first + 1, min(count, int(end * fps) + 1))
    n = min(frames, last - first)
    indices = tuple(first + int((i + 0.5) * (last - first) / n) for i in range(n))
    return tuple(Frame(None, 0, "", i, str(file), image.size, indices) for i in range(n)), [i / fps for i in indices]


def subtitles(file: Path | None, times: Sequence[float]) -> str:
    """The lines of an .srt file that are shown at one of `times` (seconds), without font tags."""
    text, shown = file.read_text(encoding="utf-8-sig") if file else "", []
    for start, end, words in re.findall(r"(\d\S+) --> (\d\S+).*\n((?:.+\n?)*)", text):
        start, end = (pd.Timedelta(stamp.replace(",", ".")).total_seconds() for stamp in (start, end))
        if any(start <= time <= end for time in times):
            shown.append(re.sub(r"<[^>]+>", "", words).strip())
    return "\n".join(shown) or "No subtitles available"
