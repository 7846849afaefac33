"""train.py on the embedded world with hard questions made rare: does the replay buffer matter then?

    python -m bench.rare --steps 180 --method zppo        options as train.py

Of the world's training questions all stay that the base student knows. Of the others so many stay
that they are 1 in RARE of all, by a seeded draw; as long as some misremembered fact is in none of
them, only questions with such a fact are drawn. The held-out questions are the world's own.
"""

import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import train  # noqa: E402
from engine.questions import Question  # noqa: E402
from world import table as world  # noqa: E402

RARE = 16

Facts = dict[str, set[tuple[str, str]]]


def facts_of(questions: list[Question]) -> Facts:
    """{uid: the table entries on the question's way that the student misremembers}."""
    table = world.secret_table()
    student = world.beliefs("student")
    facts = {}
    for question in questions:
        start, signs = world.asked(question)
        facts[question.uid] = world.misremembered(table, student, start, signs)
    return facts


def rare(questions: list[Question]) -> list[Question]:
    """The questions without most of the hard ones, in their order."""
    facts = facts_of(questions)
    hard = [question for question in questions if facts[question.uid]]
    known = len(questions) - len(hard)
    random.Random("rare").shuffle(hard)
    missing = set().union(*facts.values())
    for _ in range(known // (RARE - 1)):
        place = next_place(hard, facts, missing)
        kept = hard.pop(place)
        missing -= facts[kept.uid]
    dropped = {question.uid for question in hard}
    return [question for question in questions if question.uid not in dropped]


def next_place(hard: list[Question], facts: Facts, missing: set[tuple[str, str]]) -> int:
    """Where the first question with a missing fact stands; 0 if there is none."""
    for place, question in enumerate(hard):
        if facts[question.uid] & missing:
            return place
    return 0


def main() -> None:
    everything, held_out = world.questions()
    chosen = rare(everything)

    def questions() -> tuple[list[Question], dict]:
        return chosen, held_out

    world.questions = questions
    train.main(sys.argv[1:])


if __name__ == "__main__":
    main()
