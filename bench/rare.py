"""train.py on the embedded world with hard questions made rare: does the replay buffer matter then?

    python -m bench.rare --steps 180 --method zppo        options as train.py

Of the world's training questions all stay that the base student knows. Of the others so many stay that they are 1 in
RARE of all, by a seeded draw; as long as some misremembered fact is in none of them, only questions with such a fact
are drawn. The held-out questions are the world's own.
"""

import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import train  # noqa: E402
from engine.questions import Question  # noqa: E402
from world import table as world  # noqa: E402

RARE = 16


def facts_of(questions: list[Question]) -> dict[str, set[tuple[str, str]]]:
    """{uid: the table entries on the question's way that the student misremembers}."""
    table, student = world.secret_table(), world.beliefs("student")
    return {question.uid: world.misremembered(table, student, *world.asked(question)) for question in questions}


def rare(questions: list[Question]) -> list[Question]:
    """The questions without most of the hard ones, in their order."""
    facts = facts_of(questions)
    hard = [question for question in questions if facts[question.uid]]
    random.Random("rare").shuffle(hard)
    size, kept = (len(questions) - len(hard)) // (RARE - 1), []
    missing = set().union(*facts.values())
    while len(kept) < size:
        place = next((i for i, question in enumerate(hard) if facts[question.uid] & missing), 0)
        kept.append(hard.pop(place))
        missing -= facts[kept[-1].uid]
    dropped = {question.uid for question in hard}
    return [question for question in questions if question.uid not in dropped]


if __name__ == "__main__":
    everything, held_out = world.questions()
    chosen = rare(everything)
    world.questions = lambda: (chosen, held_out)
    train.main(sys.argv[1:])
