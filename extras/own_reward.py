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
    gold = question.answer
    right = Response(question.text, f"\\boxed{{{gold}}}", gold, False, None, question.row)
    what = "expected file.py:function"
    try:
        reward = OwnReward(place)
        what = f"fails on the response {right.text!r} to {question.text[:60]!r}"
        reward.call(right)
    except (Exception, SystemExit) as error:
        raise SystemExit(f"--reward {place}: {what} ({named(error)})") from error
    return reward


def named(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


class OwnReward:
    """What `rewards.score` calls with all responses of a step."""

    def __init__(self, place: str):
        file, _, name = place.partition(":")
        sys.path.insert(0, str(Path(file).parent))  # for what the file imports
        self.place = place
        self.function = runpy.run_path(file)[name]
        parameters = list(inspect.signature(self.function).parameters.values())
        self.first = {one.name for one in parameters[:3]}
        self.named = {one.name for one in parameters[3:]}
        self.takes_all = any(one.kind is one.VAR_KEYWORD for one in parameters)

    def __call__(self, responses: Sequence[Response]) -> list[float]:
        """The rewards of the main process. Two processes may answer differently, where a function
        looks at a clock or a sandbox, and all must learn from the same groups."""
        rewards = [0.0] * len(responses)
        problems = []
        for i, one in enumerate(responses):
            # A call that fails counts as 0: no run is lost by one response.
            try:
                rewards[i] = self.call(one)
            except (Exception, SystemExit) as error:
                problems.append(named(error))
        if problems:
            print_main(
                f"--reward {self.place}: {len(problems)} of {len(responses)} calls failed and "
                f"count as 0, the first with {problems[0]}"
            )
        return broadcast_object_list(rewards)

    def call(self, one: Response) -> float:
        columns = {}
        for name, value in one.row().items():
            if name in self.named or (self.takes_all and name not in self.first):
                columns[name] = value
        value = self.function(one.question, one.text, one.gold, **columns)
        if value not in (0, 1):
            raise ValueError(f"gave {value!r}: expected is 0 or 1")
        return float(value)
