"""The embedded world: its secret table, what student and teacher believe of it, its questions.

Thirty places, four signs, and one secret table: at every place each sign leads to another place.
A question shows a row of signs as an image and asks where they lead. The response looks up one step
at a time inside <think> and boxes the last place: "<think>17●24▲31</think>\\boxed{31}".

- The student knows most of the table and holds firm misconceptions about the rest. A question that
  needs a misremembered entry fails on every rollout: plain RL has no gradient there (Section 3.1 of
  the paper).
- The teacher is larger and right on nearly everything, but not on all of it.
- Three held-out families, as in the paper: image questions (like the training set), text-only
  questions and questions over several frames. Each is split into what the base student knows and
  what it does not.
"""

import random
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from PIL import Image, ImageDraw

from engine.questions import Question

WORLD = Path(__file__).parent
PLACES = [str(n) for n in range(10, 40)]
SIGNS = "●■▲✚"
CELL = 16  # pixels a side; one cell is one image token
FAMILIES = ("image", "text", "frames")
HELD_OUT = 160  # questions per family
MISCONCEPTIONS = {"student": 36, "teacher": 6}  # wrong entries of the 120 in the table
FIRMNESS = 0.98  # how often a step follows the belief; otherwise the step leads to any place
FILLER = {
    "student": ("", "hmm, ", "let me see, "),
    "teacher": ("", "ok, "),
}

QUESTION = {
    "image": "Start at {start}. Follow the signs in the picture. Where do you end?",
    "text": "Start at {start}. Follow the signs {signs}. Where do you end?",
    "frames": "Start at {start}. Follow the signs in the frames. Where do you end?",
}

Entry = tuple[str, str]  # (place, sign)
Table = dict[Entry, str]  # where the sign leads from the place


# ---------------------------------------------------------------- the table and the beliefs


def secret_table() -> Table:
    """The true table: each sign leads from each place to another place."""
    rng = random.Random("table/0")
    table = {}
    for place in PLACES:
        others = [other for other in PLACES if other != place]
        for sign in SIGNS:
            table[place, sign] = rng.choice(others)
    return table


def beliefs(who: str) -> Table:
    """The table as the student or the teacher remembers it: some entries lead to a wrong place."""
    table = secret_table()
    rng = random.Random(f"{who}/0")
    for entry in rng.sample(sorted(table), MISCONCEPTIONS[who]):
        excluded = (table[entry], entry[0])
        others = [place for place in PLACES if place not in excluded]
        table[entry] = rng.choice(others)
    return table


def walk(table: Table, start: str, signs: str) -> list[str]:
    """The places visited from `start`, with `start` first."""
    places = [start]
    for sign in signs:
        places.append(table[places[-1], sign])
    return places


def misremembered(table: Table, believed: Table, start: str, signs: str) -> set[Entry]:
    """The entries on the true way from `start` about which the belief is wrong."""
    way = zip(walk(table, start, signs), signs)  # the last place takes no sign
    return {entry for entry in way if believed[entry] != table[entry]}


# ---------------------------------------------------------------- a response


def chain(signs: str, places: Sequence[str]) -> str:
    """One look-up at a time: 17●24▲31."""
    steps = [sign + place for sign, place in zip(signs, places[1:])]
    return places[0] + "".join(steps)


def response(signs: str, places: Sequence[str], filler: str = "") -> str:
    """The look-ups inside <think>, then the last place in a box."""
    return f"<think>{filler}{chain(signs, places)}</think>\\boxed{{{places[-1]}}}"


# ---------------------------------------------------------------- a question


def draw(signs: str, rng: random.Random) -> Image.Image:
    """A row of cells with one glyph each. Colour and position of a glyph vary and mean nothing."""
    size = (CELL * len(signs), CELL)
    image = Image.new("RGB", size, "white")
    canvas = ImageDraw.Draw(image)
    for i, sign in enumerate(signs):
        x = CELL * i + 8 + rng.randint(-1, 1)
        y = 8 + rng.randint(-1, 1)
        r = rng.randint(5, 6)
        colour = tuple(rng.randint(0, 160) for _ in range(3))
        if sign == "●":
            canvas.circle((x, y), r, colour)
        elif sign == "■":
            canvas.rectangle(box(x, y, r - 1, r - 1), colour)
        elif sign == "▲":
            bottom = y + r - 1
            corners = [(x, y - r), (x - r, bottom), (x + r, bottom)]
            canvas.polygon(corners, colour)
        else:
            canvas.rectangle(box(x, y, 1, r), colour)
            canvas.rectangle(box(x, y, r, 1), colour)
    return image


def box(x, y, dx, dy):
    """(left, top, right, bottom) around the centre (x, y), dx and dy from the centre."""
    return x - dx, y - dy, x + dx, y + dy


def question(family: str, start: str, signs: str, answer: str) -> Question:
    """A question of one family. The same question always has the same pictures."""
    uid = f"{family}/{start}{signs}"
    rng = random.Random(uid)
    signs_of_pictures = {"image": [signs], "text": [], "frames": signs}[family]
    images = tuple(draw(row, rng) for row in signs_of_pictures)
    text = QUESTION[family].format(start=start, signs=signs)
    return Question(uid, text, images, answer)


def asked(question: Question) -> tuple[str, str]:
    """(start, signs) of one of the world's questions."""
    way = question.uid.partition("/")[2]
    return way[:2], way[2:]


# ---------------------------------------------------------------- the sets


def questions() -> tuple[list[Question], dict]:
    """(training questions, held-out questions by "family/known" and "family/hard").

    No chain is in two sets. A question is hard if the student misremembers an entry on its way.
    """
    table = secret_table()
    student = beliefs("student")
    # Two or three signs from every place.
    chains = []
    for start, *signs in product(PLACES, SIGNS, SIGNS, ("", *SIGNS)):
        chains.append((start, "".join(signs)))
    random.Random("split/0").shuffle(chains)
    held_out = {}
    for family in FAMILIES:
        held_out |= {f"{family}/known": [], f"{family}/hard": []}
        for _ in range(HELD_OUT):
            chain = chains.pop()
            kind = "hard" if misremembered(table, student, *chain) else "known"
            answer = walk(table, *chain)[-1]
            drawn = question(family, *chain, answer)
            held_out[f"{family}/{kind}"].append(drawn)
    training = []
    for chain in chains:
        answer = walk(table, *chain)[-1]
        training.append(question("image", *chain, answer))
    return training, held_out
