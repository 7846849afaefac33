"""What a run says on the screen."""

import sys
from contextlib import suppress

from accelerate import PartialState
from tqdm import tqdm

SHOWN = 400  # characters of the beginning and of the end of a long text on the screen
LEGEND = """\
Two lines a step. Shares of its rollouts: plain, bcq, ncq: right, by kind of prompt; active: with
an advantage; cut: at --max_response_tokens; no box: without \\boxed{}. length: mean tokens.
buffer: questions to replay (+admitted -graduated -evicted). After "s:" phases, longest first."""


def print_main(text: str, screen: str = "stdout") -> None:
    """The main process prints this, above its progress bar and at once."""
    if PartialState().is_main_process:
        with suppress(OSError):  # a screen that is gone (`| tee` ended by the same Ctrl-C) stops nothing
            tqdm.write(text, file=getattr(sys, screen))
            getattr(sys, screen).flush()


def step_lines(metrics: dict, times: dict) -> str:
    """A step on the screen: two lines within 100 columns, explained by LEGEND. As many phases as fit, longest first."""

    def show(name: str, form: str) -> str:
        return format(metrics[name], form) if metrics.get(name) is not None else f"{'-':>{form[0]}}"

    shares = dict(plain="plain_accuracy", bcq="bcq_accuracy", ncq="ncq_accuracy", active="active_share")
    shares |= {"cut": "cut_share", "no box": "no_answer_share"}
    first = "  ".join(f"{label} {show(name, '4.0%')}" for label, name in shares.items())
    total, digits = times["total"], 1 if times["total"] < 100 else 0
    second = "  buffer {buffer} (+{admitted} -{graduated} -{evicted})  grad ".format(**metrics)
    second += f"{show('grad_norm', '1.2f')}  {metrics['response_tokens'] / total:.0f} tok/s  {total:.{digits}f} s:"
    for name in sorted(times.keys() - {"step", "total", "padding_share"}, key=times.get, reverse=True):
        phase = f" {name} {times[name]:.{digits}f}"
        second += phase if len(second + phase) <= 100 else ""
    return f"step {metrics['step']:>5}  {first}  length {show('response_length', '5.0f')}\n{second}"


def why_trivial(metrics: dict) -> str:
    """The likely cause why every group of rollouts is all right or all wrong, and none has an advantage."""
    cut, no_box, right = (metrics.get(name) or 0.0 for name in ("cut_share", "no_answer_share", "plain_accuracy"))
    causes = {
        "all answers are right: the questions are too easy": right == 1,
        f"{cut:.0%} of the responses are cut: raise --max_response_tokens": cut >= 0.5,
        f"{no_box:.0%} have no \\boxed{{}}: can the model follow instructions?": no_box >= 0.5,
        "all answers are wrong: compare them with the golds in dumps/": right == 0,
        "each question is all right or all wrong: raise --group_size": True,
    }
    return "No rollout taught anything in 3 steps; " + next(cause for cause, holds in causes.items() if holds)


def closing_tables(before: dict[str, float], after: dict[str, float], graduated: dict[float, tuple[int, int]]) -> str:
    """Held-out accuracy in percent by family, and (graduated, admitted) by accuracy at admission (Fig. 4)."""
    lines = [f"\n{'held-out questions':<22}{'before':>8}{'after':>8}"] if before and after else []
    lines += [f"{family:<22}{before[family]:>7.1f}%{after[family]:>7.1f}%" for family in before if after]
    lines += [f"\n{'accuracy at admission':<22}{'admitted':>9}{'graduated':>10}"] if graduated else []
    lines += [f"{100 * at:>20.1f}% {admitted:>9}{left:>10}" for at, (left, admitted) in graduated.items()]
    return "\n".join(lines)


def print_samples(records: list[dict], n: int, rollouts: int = 1) -> None:
    """n of the records of `zppo.dump`, evenly spread over them, each with its first rollouts, long texts shortened."""
    for record in records[:: max(1, len(records) // max(1, n))][:n]:
        texts = [f"\n---- {record['kind']} prompt of question {record['uid']}", record["prompt"]]
        for rollout in record["rollouts"][:rollouts]:
            texts.append(f"---- reward {rollout['reward']:.0f}, answer {rollout['answer']!r}, gold {record['gold']!r}")
            texts.append(rollout["text"])
        print_main("\n".join(text if len(text) <= 2 * SHOWN else f"{text[:SHOWN]}\n[...]\n{text[-SHOWN:]}" for text in texts))
