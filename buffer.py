"""The replay buffer of hard questions [Z3]: first in, first out, with graduation at half accuracy.

A question enters when its plain accuracy is below tau. It leaves ("graduates") when a later visit
reaches tau, and is evicted, oldest first, when the buffer is over capacity. Only the accuracy of
*plain* rollouts is ever given to the buffer: BCQ and NCQ accuracy never touches it (Algorithm 1,
stage 6).

This file imports nothing from the rest of the project: copy what you need.

Decisions where the paper is silent:
1. Failing again while in the buffer does not refresh a question's place (FIFO by admission).
2. A question that comes back after graduation is appended at the end, as a new admission.
3. Graduations happen before admissions, admissions before evictions, in the order in which the
   accuracies are given.
"""

import random
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field


@dataclass
class Entry:
    """One admission of one question, from entering the buffer to leaving it (Figs. 4, 5, 20-24)."""

    uid: str
    accuracy: float  # plain accuracy at admission
    step: int  # rollout step of admission
    # (step, plain accuracy) of each replay
    visits: list[tuple[int, float]] = field(default_factory=list)
    fate: str | None = None  # "graduated" or "evicted"; None while in the buffer
    fate_step: int | None = None


class ReplayBuffer:
    """Holds question ids, never questions: the data set stays where it is."""

    def __init__(self, capacity: int):
        if capacity < 0:
            raise ValueError(f"the buffer's capacity must not be negative, got {capacity}")
        self.capacity = capacity
        self.entries: dict[str, Entry] = {}  # oldest first
        self.history: list[Entry] = []  # those that left, in the order they left

    def __len__(self) -> int:
        return len(self.entries)

    def __contains__(self, uid: str) -> bool:
        return uid in self.entries

    def sample(
        self,
        count: int,
        rng: random.Random,
        exclude: Iterable[str] = (),
    ) -> list[str]:
        """Draw `count` question ids uniformly without replacement, or all if there are fewer.

        exclude: ids that are already in this step's batch.
        """
        excluded = set(exclude)
        eligible = [uid for uid in self.entries if uid not in excluded]
        return rng.sample(eligible, min(count, len(eligible)))

    def update(
        self,
        accuracies: Iterable[tuple[str, float]],
        step: int,
        tau: float = 0.5,
    ) -> dict[str, list[str]]:
        """Admit, graduate and evict after one step, from plain accuracies (Algorithm 1, stage 6).

        accuracies: (question id, mean reward of its plain group) for every question of the step.
        Returns the ids under "admitted", "graduated" and "evicted". Raises ValueError on a repeated
        id.
        """
        accuracies = list(accuracies)
        if len(dict(accuracies)) != len(accuracies):
            raise ValueError("a question id occurs twice in one update of the replay buffer")
        events: dict[str, list[str]] = {
            "admitted": [],
            "graduated": [],
            "evicted": [],
        }

        # decision 3: graduate, admit, evict
        for uid, accuracy in accuracies:
            if uid not in self.entries:
                continue
            self.entries[uid].visits.append((step, accuracy))
            if accuracy >= tau:
                self.remove(uid, "graduated", step)
                events["graduated"].append(uid)

        for uid, accuracy in accuracies:
            # decision 1: a question that is there already keeps its place
            if accuracy < tau and uid not in self.entries:
                self.entries[uid] = Entry(uid, accuracy, step)
                events["admitted"].append(uid)

        while len(self.entries) > self.capacity:
            oldest = next(iter(self.entries))
            self.remove(oldest, "evicted", step)
            events["evicted"].append(oldest)
        return events

    def remove(self, uid: str, fate: str, step: int) -> None:
        """A question leaves, for the history."""
        entry = self.entries.pop(uid)
        entry.fate = fate
        entry.fate_step = step
        self.history.append(entry)

    def graduation_by_admission(self) -> dict[float, tuple[int, int]]:
        """Admission accuracy -> (graduated, admitted), over all admissions so far (Fig. 4)."""
        table: dict[float, tuple[int, int]] = {}
        for entry in [*self.history, *self.entries.values()]:
            graduated, admitted = table.get(entry.accuracy, (0, 0))
            graduated += entry.fate == "graduated"
            table[entry.accuracy] = (graduated, admitted + 1)
        return dict(sorted(table.items()))

    def state_dict(self) -> dict:
        """Everything, as plain lists and numbers that survive JSON."""
        return {
            "capacity": self.capacity,
            "entries": [asdict(entry) for entry in self.entries.values()],
            "history": [asdict(entry) for entry in self.history],
        }

    def load_state_dict(self, state: dict) -> None:
        """Restore `state_dict()`. The capacity stays the one given to the constructor."""
        entries = [Entry(**fields) for fields in state["entries"]]
        self.entries = {entry.uid: entry for entry in entries}
        self.history = [Entry(**fields) for fields in state["history"]]
        for entry in [*self.entries.values(), *self.history]:
            # JSON has lists where tuples were.
            entry.visits = [tuple(visit) for visit in entry.visits]
