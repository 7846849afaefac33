"""What a run says: a step's metrics, its line on the screen, the dumps, the closing table."""

import math

from tqdm import tqdm

from buffer import ReplayBuffer


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
