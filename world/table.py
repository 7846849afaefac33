"""The embedded world: its secret table, what student and teacher believe of it, and the questions about it.

Thirty places, four signs, and one secret table: at every place each sign leads to another place. A
question shows a row of signs as an image and asks where they lead. The response looks up one step at a
time inside <think> and boxes the last place: "<think>17●24▲31</think>\\boxed{31}".

- The student knows most of the table and holds firm misconceptions about the rest. A question that needs
  a misremembered entry fails on every rollout: plain RL has no gradient there (section 3.1 of the paper).
- The teacher is larger and right on nearly everything, but not on all of it.
- Three held-out families, as in the paper: image questions (like the training set), text-only questions
  and questions over several frames, each split into what the base student knows and what it does not.
"""

import random
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from engine.questions import Question

WORLD = Path(__file__).parent
PLACES = [str(n) for n in range(10, 40)]
SIGNS = "●■▲✚"
CELL = 16  # pixels a side, one image token
FAMILIES = ("image", "text", "frames")
HELD_OUT = 160  # questions per family
MISCONCEPTIONS = {"student": 36, "teacher": 6}  # of 120 table entries
FIRMNESS = 0.98  # how often a belief is held; else any place
FILLER = {"student": ("", "hmm, ", "let me see, "), "teacher": ("", "ok, ")}

QUESTION = {
    "image": "Start at {start}. Follow the signs in the picture. Where do you end?",
    "text": "Start at {start}. Follow the signs {signs}. Where do you end?",
    "frames": "Start at {start}. Follow the signs in the frames. Where do you end?",
}

Table = dict[tuple[str, str], str]  # (place, sign) -> place


def secret_table(seed: int = 0) -> Table:
    rng = random.Random(f"table/{seed}")
    return {(place, sign): rng.choice([p for p in PLACES if p != place]) for place in PLACES for sign in SIGNS}


def beliefs(who: str, seed: int = 0) -> Table:
    """The table as the student or the teacher remembers it: some entries replaced by another place."""
    table, rng = secret_table(seed), random.Random(f"{who}/{seed}")
    for entry in rng.sample(sorted(table), MISCONCEPTIONS[who]):
        table[entry] = rng.choice([p for p in PLACES if p not in (table[entry], entry[0])])
    return table


def walk(table: Table, start: str, signs: str) -> list[str]:
    """The places visited from `start`, itself included."""
    places = [start]
    for sign in signs:
        places.append(table[places[-1], sign])
    return places


def misremembered(table: Table, believed: Table, start: str, signs: str) -> set[tuple[str, str]]:
    """The entries on the way from `start` that are believed to be other than in the table."""
    return {entry for entry in zip(walk(table, start, signs), signs, strict=False) if believed[entry] != table[entry]}


def asked(question: Question) -> tuple[str, str]:
    """(start, signs) of one of the world's questions."""
    way = question.uid.partition("/")[2]
    return way[:2], way[2:]


def chain(signs: str, places: Sequence[str]) -> str:
    """One look-up at a time: 17●24▲31."""
    return places[0] + "".join(sign + place for sign, place in zip(signs, places[1:], strict=True))


def response(signs: str, places: Sequence[str], filler: str = "") -> str:
    return f"<think>{filler}{chain(signs, places)}</think>\\boxed{{{places[-1]}}}"


def draw(signs: str, rng: random.Random) -> Image.Image:
    """A row of cells with one glyph each; colour and place of a glyph vary and mean nothing."""
    image = Image.new("RGB", (CELL * len(signs), CELL), (255, 255, 255))
    canvas = ImageDraw.Draw(image)
    for i, sign in enumerate(signs):
        x, y, r = CELL * i + 8 + rng.randint(-1, 1), 8 + rng.randint(-1, 1), rng.randint(5, 6)
        colour = tuple(rng.randint(0, 160) for _ in range(3))
        if sign == "●":
            canvas.ellipse((x - r, y - r, x + r, y + r), fill=colour)
        elif sign == "■":
            canvas.rectangle((x - r + 1, y - r + 1, x + r - 1, y + r - 1), fill=colour)
        elif sign == "▲":
            canvas.polygon([(x, y - r), (x - r, y + r - 1), (x + r, y + r - 1)], fill=colour)
        else:
            canvas.rectangle((x - 1, y - r, x + 1, y + r), fill=colour)
            canvas.rectangle((x - r, y - 1, x + r, y + 1), fill=colour)
    return image


def question(family: str, start: str, signs: str, answer: str) -> Question:
    """A question of one family; its picture is fixed by its own text."""
    uid = f"{family}/{start}{signs}"
    rng = random.Random(uid)
    rows = {"image": [signs], "text": [], "frames": signs}[family]  # the signs of each picture
    images = tuple(draw(row, rng) for row in rows)
    return Question(uid, QUESTION[family].format(start=start, signs=signs), images, answer)


def questions(seed: int = 0) -> tuple[list[Question], dict[str, list[Question]]]:
    """(training questions, held-out questions by "family/known" and "family/hard"). No chain is in two sets."""
    table, student = secret_table(seed), beliefs("student", seed)
    chains = [(p, a + b + c) for p in PLACES for a in SIGNS for b in SIGNS for c in ("", *SIGNS)]
    random.Random(f"split/{seed}").shuffle(chains)
    held_out: dict[str, list[Question]] = {f"{f}/{kind}": [] for f in FAMILIES for kind in ("known", "hard")}
    for family in FAMILIES:
        for start, signs in [chains.pop() for _ in range(HELD_OUT)]:
            kind = "hard" if misremembered(table, student, start, signs) else "known"
            held_out[f"{family}/{kind}"].append(question(family, start, signs, walk(table, start, signs)[-1]))
    return [question("image", p, signs, walk(table, p, signs)[-1]) for p, signs in chains], held_out
