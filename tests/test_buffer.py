"""First in, first out; graduation; and a state that survives JSON."""

import json
import random
from collections import Counter

import pytest

from buffer import ReplayBuffer


def filled(*uids: str, capacity: int = 10) -> ReplayBuffer:
    buffer = ReplayBuffer(capacity)
    buffer.update([(uid, 0.0) for uid in uids], step=0)
    return buffer


@pytest.mark.parametrize(("accuracy", "admitted"), [(0.0, True), (0.375, True), (0.5, False), (1.0, False)])
def test_admits_below_tau(accuracy, admitted):
    buffer = ReplayBuffer(4)
    assert buffer.update([("a", accuracy)], 0)["admitted"] == ["a"] * admitted
    assert ("a" in buffer) == admitted and len(buffer) == admitted


def test_graduates_at_tau():
    buffer = filled("a", "b", "c")
    events = buffer.update([("a", 0.5), ("b", 0.375), ("x", 1.0)], 3)
    assert events == {"admitted": [], "graduated": ["a"], "evicted": []}
    assert list(buffer.entries) == ["b", "c"]
    assert [(e.uid, e.fate, e.fate_step, e.visits) for e in buffer.history] == [("a", "graduated", 3, [(3, 0.5)])]
    assert buffer.entries["b"].visits == [(3, 0.375)] and buffer.entries["c"].visits == []


def test_tau_is_a_parameter():
    buffer = ReplayBuffer(4)
    buffer.update([("a", 0.5), ("b", 0.75)], 0, tau=0.75)
    assert list(buffer.entries) == ["a"]


def test_evicts_oldest_first():
    buffer = filled("a", "b", "c", capacity=3)
    events = buffer.update([("d", 0.0), ("e", 0.25)], 1)
    assert events == {"admitted": ["d", "e"], "graduated": [], "evicted": ["a", "b"]}
    assert list(buffer.entries) == ["c", "d", "e"]


def test_graduation_makes_room_before_eviction():
    buffer = filled("a", "b", capacity=2)
    assert buffer.update([("new", 0.0), ("b", 1.0)], 1)["evicted"] == []
    assert list(buffer.entries) == ["a", "new"]


def test_failing_again_does_not_refresh_the_place():
    buffer = filled("a", "b", capacity=2)
    buffer.update([("a", 0.25), ("c", 0.0)], 1)
    assert list(buffer.entries) == ["b", "c"] and buffer.history[0].accuracy == 0.0


def test_readmission_goes_to_the_end():
    buffer = filled("a", "b")
    buffer.update([("a", 1.0)], 1)
    buffer.update([("a", 0.125)], 2)
    assert list(buffer.entries) == ["b", "a"]
    assert (buffer.entries["a"].accuracy, buffer.entries["a"].step, buffer.entries["a"].visits) == (0.125, 2, [])


def test_capacity_zero_and_negative():
    buffer = ReplayBuffer(0)
    assert buffer.update([("a", 0.0)], 0)["evicted"] == ["a"] and len(buffer) == 0
    with pytest.raises(ValueError, match="capacity"):
        ReplayBuffer(-1)


def test_the_same_question_twice_is_an_error_and_changes_nothing():
    buffer = filled("a")
    before = buffer.state_dict()
    with pytest.raises(ValueError, match="twice"):
        buffer.update([("b", 0.0), ("a", 1.0), ("b", 0.0)], 1)
    assert buffer.state_dict() == before


def test_sample_is_uniform_without_replacement():
    buffer = filled(*"abcdefgh")
    counts = Counter()
    for seed in range(2000):
        drawn = buffer.sample(3, random.Random(seed), exclude=["c", "elsewhere"])
        assert len(set(drawn)) == 3 and "c" not in drawn
        counts.update(drawn)
    assert all(abs(counts[uid] - 2000 * 3 / 7) < 5 * (2000 * 3 / 7 * 4 / 7) ** 0.5 for uid in "abdefgh")
    assert sorted(buffer.sample(99, random.Random(0))) == list("abcdefgh")
    assert buffer.sample(2, random.Random(5)) == buffer.sample(2, random.Random(5))
    assert len(buffer) == 8  # a draw removes nothing


def test_state_survives_json_and_shares_nothing():
    buffer = filled("a", "b", "c", capacity=3)
    buffer.update([("a", 0.25), ("b", 0.75), ("d", 0.125), ("e", 0.0)], 1)
    state = buffer.state_dict()
    text = json.dumps(state)
    copies = [ReplayBuffer(3), ReplayBuffer(3)]
    for copy, saved in zip(copies, (state, json.loads(text))):
        copy.load_state_dict(saved)
        assert (copy.entries, copy.history) == (buffer.entries, buffer.history)
    for one in (buffer, *copies):  # the same future
        one.update([("c", 0.0), ("d", 0.5), ("f", 0.0), ("g", 0.0)], 2)
        assert one.state_dict() == buffer.state_dict() != json.loads(text)
    assert json.dumps(state) == text  # no buffer wrote into the saved state


def test_graduation_by_admission():
    buffer = filled("a", "b", "c")
    buffer.update([("d", 0.25), ("a", 1.0)], 1)
    buffer.update([("a", 0.25), ("d", 0.5)], 2)
    assert buffer.graduation_by_admission() == {0.0: (1, 3), 0.25: (1, 2)}
    assert list(buffer.graduation_by_admission()) == [0.0, 0.25]


def test_agrees_with_a_list_over_a_long_run():
    """The rules of Algorithm 1, stage 6, on a plain list: remove, append, cut the front."""
    rng, buffer, queue = random.Random(0), ReplayBuffer(15), []
    for step in range(300):
        new = [f"q{rng.randrange(60)}" for _ in range(6)]
        uids = list(dict.fromkeys(new + rng.sample(queue, min(4, len(queue)))))
        accuracies = [(uid, rng.randrange(9) / 8) for uid in uids]
        buffer.update(accuracies, step)
        hard = [uid for uid, accuracy in accuracies if accuracy < 0.5]
        queue = [uid for uid in queue if uid not in uids or uid in hard] + [uid for uid in hard if uid not in queue]
        queue = queue[-15:]
        assert list(buffer.entries) == queue
    table = buffer.graduation_by_admission()
    assert sum(admitted for _, admitted in table.values()) == len(buffer.history) + len(buffer)
