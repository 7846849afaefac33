"""What a run says on the screen."""

import sys
from contextlib import suppress

from accelerate import PartialState
from tqdm import tqdm

WIDTH = 100  # columns of a line about a step
SHOWN = 400  # characters of the beginning and of the end of a long text
BAD = 0.25  # a teacher that is right in a smaller share, whose summaries fail in a larger one
LEGEND = """\
Two lines a step. Shares of its rollouts: plain, bcq, ncq: right, by kind of prompt; active: with
an advantage; cut: at --max_response_tokens; no box: without \\boxed{}. length: mean tokens.
buffer: questions to replay (+admitted -graduated -evicted). tok/s: response tokens in the time of
the whole step. After "s:" phases, longest first. A third line where the teacher does badly."""
SHARES = {  # label on the screen: metric
    "plain": "plain_accuracy",
    "bcq": "bcq_accuracy",
    "ncq": "ncq_accuracy",
    "active": "active_share",
    "cut": "cut_share",
    "no box": "no_answer_share",
}
NO_PHASES = {"step", "total", "padding_share"}  # what else a line of times.jsonl holds


def print_main(text: str, screen: str = "stdout") -> None:
    """The main process prints this, above its progress bar and at once."""
    if not PartialState().is_main_process:
        return
    stream = getattr(sys, screen)
    # Not every console knows every character (Windows: cp1252): the others appear as escapes.
    encoding = stream.encoding or "utf-8"
    text = text.encode(encoding, "backslashreplace").decode(encoding)
    # A screen that is gone (`| tee` ended by the same Ctrl-C) stops nothing.
    with suppress(OSError):
        tqdm.write(text, file=stream)
        stream.flush()


def step_lines(metrics: dict, times: dict, always: bool = False) -> str:
    """A step on the screen: lines within WIDTH, explained by LEGEND. always: of `teacher_line`."""
    shares = "  ".join(f"{label} {show(metrics, name, 4, '.0%')}" for label, name in SHARES.items())
    length = show(metrics, "response_length", 5, ".0f")
    first = f"step {metrics['step']:>5}  {shares}  length {length}"

    total = times["total"]
    digits = 1 if total < 100 else 0
    buffer = "buffer {buffer} (+{admitted} -{graduated} -{evicted})".format(**metrics)
    norm = show(metrics, "grad_norm", 1, ".2f")
    speed = f"{metrics['response_tokens'] / total:.0f} tok/s"
    second = f"  {buffer}  grad {norm}  {speed}  {total:.{digits}f} s:"
    # As many phases as fit, longest first.
    for name in sorted(times.keys() - NO_PHASES, key=times.get, reverse=True):
        phase = f" {name} {times[name]:.{digits}f}"
        if len(second + phase) <= WIDTH:
            second += phase
    return f"{first}\n{second}{teacher_line(metrics, always)}"


def show(metrics: dict, name: str, width: int, form: str) -> str:
    """A number in `width` columns, or a dash where the step has none."""
    value = metrics.get(name)
    return f"{'-':>{width}}" if value is None else f"{value:{width}{form}}"


def teacher_line(metrics: dict, always: bool) -> str:
    """How often the teacher was right, and its summaries unusable: where this is bad, or always."""
    said = []
    asked = metrics.get("teacher_questions")
    if asked:
        right = metrics["teacher_accuracy"]
        if always or right < BAD:
            said.append(f"{right:.0%} right on {asked} hard questions")
    compressed = metrics.get("compressed")
    if compressed:
        unusable = metrics["compression_fallbacks"]
        if always or unusable > BAD * compressed:
            said.append(f"{unusable} of {compressed} summaries unusable")
    return f"\n  teacher: {', '.join(said)}" if said else ""


def why_trivial(metrics: dict) -> str:
    """The likely cause why every group is trivial: all right or all wrong."""
    right = metrics.get("plain_accuracy") or 0.0
    cut = metrics.get("cut_share") or 0.0
    no_box = metrics.get("no_answer_share") or 0.0
    # Of the finished responses, at least: a cut one rarely has its box.
    no_box = (no_box - cut) / (1 - cut) if cut < 1 else 0.0
    if right == 1:
        cause = "all answers are right: the questions are too easy"
    elif no_box >= 0.5:
        cause = (
            f"{no_box:.0%} of the finished responses have no \\boxed{{}}: "
            "can the model follow instructions?"
        )
    elif cut >= 0.5:
        cause = f"{cut:.0%} of the responses are cut: raise --max_response_tokens"
    elif right == 0:
        cause = "all answers are wrong: compare them with the golds in dumps/"
    else:
        cause = "each question is all right or all wrong: raise --group_size"
    return f"No rollout taught anything in 3 steps:\n  {cause}"


def closing_tables(before: dict, after: dict, graduated: dict) -> str:
    """Held-out accuracy in percent by family; questions by accuracy at admission (Fig. 4).

    before, after: {family: accuracy}. graduated: {accuracy at admission: (graduated, admitted)}."""
    lines = []
    if before and after:
        lines.append(f"\n{'held-out questions':<22}{'before':>8}{'after':>8}")
        for family in before:
            lines.append(f"{family:<22}{before[family]:>7.1f}%{after[family]:>7.1f}%")
    if graduated:
        lines.append(f"\n{'accuracy at admission':<22}{'admitted':>9}{'graduated':>10}")
    for accuracy, (left, admitted) in graduated.items():
        lines.append(f"{100 * accuracy:>20.1f}% {admitted:>9}{left:>10}")
    return "\n".join(lines)


def print_samples(records: list[dict], n: int, rollouts: int = 1, whole: bool = False) -> None:
    """n of the records of `zppo.dump`, evenly spread over them, each with its first rollouts."""
    distance = max(1, len(records) // max(1, n))
    for record in records[::distance][:n]:
        texts = [f"\n---- {record['kind']} prompt of question {record['uid']}", record["prompt"]]
        for rollout in record["rollouts"][:rollouts]:
            reward = f"reward {rollout['reward']:.0f}"
            answers = f"answer {rollout['answer']!r}, gold {record['gold']!r}"
            texts += [f"---- {reward}, {answers}", rollout["text"]]
        if not whole:
            texts = [shorten(text) for text in texts]
        print_main("\n".join(texts))


def shorten(text: str) -> str:
    """Beginning and end of a long text."""
    if len(text) <= 2 * SHOWN:
        return text
    return f"{text[:SHOWN]}\n[...]\n{text[-SHOWN:]}"
