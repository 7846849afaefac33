"""What a run says: a step's metrics, its line on the screen, the dumps, the closing table."""

import math

from tqdm import tqdm

from buffer import ReplayBuffer
from zppo import Group, Recipe


def summarise(groups: list[Group], recipe: Recipe) -> dict[str, float | None]:
    """Metrics of one step's rollouts (Figs. 5, 22 and 25)."""

    def mean(values) -> float | None:
        values = list(values)
        return sum(values) / len(values) if values else None

    kinds = ("plain", "bcq", "ncq", *(branch for branch in recipe.branches if branch in ("hint", "prefix")))
    by_kind = {kind: [g for g in groups if g.kind == kind] for kind in kinds}
    groups = [group for kind in kinds for group in by_kind[kind]]  # Off-Distill's teacher groups are not rollouts
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    return {
        **{f"{kind}_accuracy": mean(g.accuracy for g in by_kind[kind]) for kind in by_kind},
        **{f"{kind}_prompts": len(by_kind[kind]) for kind in by_kind},
        "hard_share": mean(g.accuracy < recipe.tau for g in by_kind["plain"]),
        "all_wrong_share": mean(g.accuracy == 0 for g in by_kind["plain"]),
        "no_answer_share": mean(rollout.answer is None for rollout in rollouts),
        "positive_share": mean(
            rollout.reward > group.accuracy for group in groups for rollout in group.rollouts
        ),
    }


def reformulated(groups: list[Group]) -> list[dict]:
    """BCQ and NCQ prompts (and hints, ...) with what went into them and what came out (Tables 16-17 audit these)."""
    return [
        {
            "uid": group.question.uid,
            "kind": group.kind,
            "gold": group.question.answer,
            "prompt": group.prompt,
            "candidates": group.candidates,  # BCQ: the correct one first; the prompt has them in random order
            "rollouts": [{"text": r.text, "answer": r.answer, "reward": r.reward} for r in group.rollouts],
        }
        for group in groups
        if group.kind != "plain"
    ]


def finite(record: dict) -> dict:
    """JSON knows no NaN and no infinity: None stands for them."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}


def show(metrics: dict, times: dict) -> None:
    """The step's line on the screen."""

    def percent(name: str) -> str:
        return "  - " if metrics.get(name) is None else f"{100 * metrics[name]:3.0f}%"

    phases = {name: seconds for name, seconds in times.items() if name not in ("step", "total", "padding_share")}
    split = " ".join(f"{name} {seconds:.1f}" for name, seconds in phases.items())
    tqdm.write(
        f"step {metrics['step']:>4}  plain {percent('plain_accuracy')}  bcq {percent('bcq_accuracy')}  "
        f"ncq {percent('ncq_accuracy')}  active {percent('active_share')}  buffer {metrics['buffer']:>4} "
        f"(+{metrics['admitted']} graduated {metrics['graduated']} evicted {metrics['evicted']})  "
        f"grad {metrics['grad_norm']:.2f}  {metrics['response_tokens'] / times['total']:.0f} tok/s  [{split}]"
    )


def close(before: dict[str, float], after: dict[str, float], buffer: ReplayBuffer) -> None:
    """The closing table."""
    if before and after:
        print(f"\n{'held-out questions':<22}{'before':>8}{'after':>8}")
        for family in before:
            print(f"{family:<22}{before[family]:>7.1f}%{after[family]:>7.1f}%")
    print(f"\n{'accuracy at admission':<22}{'admitted':>9}{'graduated':>10}")
    for accuracy, (graduated, admitted) in buffer.graduation_by_admission().items():
        print(f"{100 * accuracy:>20.1f}% {admitted:>9}{graduated:>10}")
