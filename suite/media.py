"""Videos as evenly spaced frames, files found by name (in zips too), subtitles, pictures in cells.

Decisions:
1. A video is up to `frames` images in order of time, each scaled down to the least pixels of an
   image (Table 8).
2. Frames come from transformers' load_video with the first decoder that is installed; a folder of
   pictures and an animated GIF need none.
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

# Packages that decode videos, the best first: {transformers' name: module}.
BACKENDS = {
    "torchcodec": "torchcodec",
    "decord": "decord",
    "pyav": "av",
    "opencv": "cv2",
}
FILES = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".gif", ".srt")
PICTURES = (".jpg", ".jpeg", ".png")
FOLDER_FPS = 3.0  # of TVQA's frame folders (episodic_reasoning)

# Frames of a video, the number of all its frames, frames per second.
Frames = tuple[list[Image.Image], int, float]


def picture(rows: datasets.Dataset, row: int, column: str, folder: Path) -> LazyImage:
    """The image of a cell, its size read from the header. Raises OSError where there is none."""
    image = LazyImage(rows, row, column, 0, str(folder), (0, 0))
    header = Image.open(io.BytesIO(image.read()))
    return replace(image, size=header.size)


# ---- the file of a video -------------------------------------------------------------------------


def find_file(folder: Path, name: str, hint: str = "", srt: bool = False) -> Path | None:
    """The video (or .srt file) of this name, path or URL; None if there is none.

    A member of a zip is taken out of it. hint: part of the path where several files have the name.
    Raises DataError if several are left.
    """
    wanted = Path(name.split("/resolve/main/")[-1])
    if wanted.suffix.lower() in FILES:
        wanted = wanted.with_suffix("")
    hits = []
    for path in sorted(index(folder).get(wanted.name, ())):
        end_of_path = path.with_name(wanted.name).parts[-len(wanted.parts) :]
        if end_of_path == wanted.parts and (path.suffix == ".srt") == srt:
            hits.append(path)
    if len(hits) > 1 and hint:
        hits = [hit for hit in hits if re.search(rf"/{hint}(?![a-z])", str(hit))]
    if len(hits) > 1:
        found = [str(hit) for hit in hits]
        raise DataError(f"{name}: expected one file in {folder}, found {found}")
    return unzipped(hits[0]) if hits else None


@lru_cache(maxsize=8)
def index(folder: Path) -> dict:
    """{name without ending: paths} of videos, frame folders and subtitles.

    The path of a member of a zip is path.zip/member.
    """
    found = defaultdict(set)
    for file in folder.rglob("*"):
        paths = [file]
        if file.suffix == ".zip":
            paths = [file / name for name in zipfile.ZipFile(file).namelist()]
        for path in paths:
            if path.suffix.lower() in FILES:
                found[path.stem].add(path)
        if file.suffix.lower() in PICTURES:
            found[file.parent.name].add(file.parent)
    return found


def unzipped(file: Path) -> Path:
    """The file, or its copy in the cache of `datasets` if it is a member of a zip."""
    archives = [path for path in file.parents if path.suffix == ".zip"]
    if not archives:
        return file
    archive = archives[0]
    member = file.relative_to(archive).as_posix()
    version = f"{archive.stem}-{archive.stat().st_mtime_ns}"
    cache = Path(datasets.config.EXTRACTED_DATASETS_PATH, version)
    target = cache / member.replace("/", "_")
    if not target.exists():
        cache.mkdir(parents=True, exist_ok=True)
        # The copy appears whole: another process may read it.
        partial = target.with_name(f"{os.getpid()}-{target.name}")
        partial.write_bytes(zipfile.ZipFile(archive).read(member))
        os.replace(partial, target)
    return target


# ---- its frames ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Frame(LazyImage):
    """The frame at `position` of the frames `indices` of the video `folder`."""

    indices: tuple[int, ...] = ()

    def read(self) -> bytes:
        frames, _, _ = read_frames(self.folder, self.indices)
        file = io.BytesIO()
        # A PNG loses nothing.
        frames[self.position].save(file, "PNG", compress_level=1)
        return file.getvalue()


def sample(
    file: Path, frames: int, start: float | None, end: float | None
) -> tuple[tuple[Frame, ...], list[float]]:
    """(frames between `start` and `end` seconds, their times).

    They are the middles of `frames` equal parts, or all frames where there are fewer.
    """
    path = str(file)
    (image,), count, fps = read_frames(path, (0,))
    if not count:
        problem = "the decoder finds no number of frames: pip install torchcodec"
        raise DataError(f"{file}: {problem}")
    first = 0
    last = count
    # decision 3: a segment is cut already
    if end is not None and "segment" not in path:
        first = min(int((start or 0) * fps), count - 1)
        last = max(first + 1, min(count, int(end * fps) + 1))
    length = last - first
    n = min(frames, length)
    indices = tuple(first + int((i + 0.5) * length / n) for i in range(n))
    shots = tuple(Frame(None, 0, "", i, path, image.size, indices) for i in range(n))
    times = [i / fps for i in indices]
    return shots, times


@lru_cache(maxsize=2)  # the frames of a question are read one after another
def read_frames(path: str, indices: Sequence[int]) -> Frames:
    """The frames at `indices`. Raises DataError."""
    file = Path(path)
    if file.is_dir():
        names = [name for name in file.iterdir() if name.suffix.lower() in PICTURES]
        names.sort()
        images = [Image.open(names[i]) for i in indices]
        count = len(names)
        fps = FOLDER_FPS
    elif file.suffix.lower() == ".gif":
        movie = Image.open(file)
        shown = ImageSequence.all_frames(movie)
        images = [shown[i] for i in indices]
        count = len(shown)
        fps = 1000 / (movie.info.get("duration") or 100)
    else:
        images, count, fps = decode(path, indices)
    scaled = [fit_pixels(image.convert("RGB"), 1, MIN_PIXELS) for image in images]
    return scaled, count, fps


def decode(path: str, indices: Sequence[int]) -> Frames:
    """The same from an encoded video, at full size."""
    installed = [name for name, module in BACKENDS.items() if find_spec(module)]
    backend = installed[0] if installed else "torchcodec"

    # The library asks for indices by a function of the metadata alone.
    def wanted(**metadata):
        return list(indices)

    try:
        video, data = video_utils.load_video(path, backend=backend, sample_indices_fn=wanted)
    # Every decoder has errors of its own; without a decoder there is an ImportError.
    except Exception as error:
        cause = f"{type(error).__name__}: {error}"
        raise DataError(f"{path}: {backend} cannot decode it ({cause})") from error
    if video.shape[-1] != 3:  # torchcodec puts the channels first
        video = video.permute(0, 2, 3, 1).numpy()
    images = [Image.fromarray(frame) for frame in video]
    return images, data.total_num_frames, data.fps


# ---- its subtitles -------------------------------------------------------------------------------


def subtitles(file: Path | None, times: Sequence[float]) -> str:
    """The lines of an .srt file that are shown at one of `times` (seconds), without font tags."""
    text = file.read_text(encoding="utf-8-sig") if file else ""
    shown = []
    for start, end, words in re.findall(r"(\d\S+) --> (\d\S+).*\n((?:.+\n?)*)", text):
        if any(seconds(start) <= time <= seconds(end) for time in times):
            shown.append(re.sub(r"<[^>]+>", "", words).strip())
    return "\n".join(shown) or "No subtitles available"


def seconds(stamp: str) -> float:
    """A time such as 00:01:02,500 in seconds."""
    return pd.Timedelta(stamp.replace(",", ".")).total_seconds()
