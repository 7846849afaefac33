"""A reward of your own in place of grader and judge: --reward file.py:function.

The function is called with (question, response, gold) and answers 0 or 1: the paper's rewards are 0
and 1, and a group is trivial if its rewards are equal. Of the other columns of a row it gets those
that it names, or all with **columns: tests of a program, the format that was asked for.
"""

import inspect
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from accelerate.utils import broadcast_object_list

from engine.questions import Question
from engine.screen import print_main
from rewards import Response


def load_reward(place: str, question: Question) -> "OwnReward | None":
    """The function at "file.py:function", called once with a right response to this question; None
    for an empty place.

    Raises SystemExit: what is wrong. A function that fails should fail before training.
    """
    if not place:
        return None
    response = f"\\boxed{{{question.answer}}}"
    try:
        reward = OwnReward(place)
        reward.call(Response(question.text, response, question.answer, False, None, question.row))
    except (Exception, SystemExit) as error:
        what = f"expected file.py:function ({type(error).__name__}: {error})"
        raise SystemExit(f"--reward {place}: {what}") from error
    return reward


class OwnReward:
    """What `rewards.score` calls with all responses of a step."""

    def __init__(self, place: str):
        file, _, name = place.partition(":")
        sys.path.insert(0, str(Path(file).parent))  # for what the file imports
        self.place = place
        self.function = runpy.run_path(file)[name]
        self.problems: set[str] = set()
        parameters = list(inspect.signature(self.function).parameters.values())
        self.first = {one.name for one in parameters[:3]}
        self.named = {one.name for one in parameters[3:]}
        self.takes_all = any(one.kind is one.VAR_KEYWORD for one in parameters)

    def __call__(self, responses: Sequence[Response]) -> list[float]:
        """The rewards of the main process. Two processes may answer differently, where a function
        looks at a clock or a sandbox, and all must learn from the same groups."""
        return broadcast_object_list([self.reward(one) for one in responses])

    def reward(self, one: Response) -> float:
        """A call that fails counts as 0 and is named once: no run is lost by one response."""
        try:
            return self.call(one)
        except (Exception, SystemExit) as error:
            problem = f"--reward {self.place}: {type(error).__name__}: {error}; it counts as 0"
        if problem not in self.problems:
            print_main(problem)
        self.problems.add(problem)
        return 0.0

    def call(self, one: Response) -> float:
        columns = {}
        for name, value in one.row().items():
            if name in self.named or (self.takes_all and name not in self.first):
                columns[name] = value
        value = self.function(one.question, one.text, one.gold, **columns)
        if value not in (0, 1):
            raise ValueError(f"gave {value!r}: expected is 0 or 1")
        return float(value)
