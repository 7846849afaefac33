"""What a run says: a step's metrics and the dumps."""

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
