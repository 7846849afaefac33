"""What is looked at before a run: models that would quietly sample from one distribution and be
scored by another, and data that a model cannot see.

All checks raise SystemExit with a sentence that names the cause and a way out.
"""

from collections.abc import Sequence

import torch
from transformers import AutoConfig

from engine.decode import decoding, prefill
from engine.models import Tensors, collate, position_ids, response_positions
from engine.questions import Question, names_in
from engine.screen import print_main
from engine.update import Policy

CHECKED = 8  # tokens that a row is sampled for
LENGTHS = (16, 48)  # tokens of the two rows' prompts, where a model has no switch
SWITCHES = ("sliding_window", "attention_chunk_size", "original_max_position_embeddings")


def check_student(path: str) -> None:
    """Refuse quantised weights: an optimiser cannot move them."""
    try:
        config = AutoConfig.from_pretrained(path)
    except Exception:
        return  # to load the model will say what is wrong
    if quantised := getattr(config, "quantization_config", None):
        kind = dict(quantised).get("quant_method", "")
        raise SystemExit(f"--student {path} is quantised ({kind}): name the model it was made from")


def check_sight(option: str, processor, questions: Sequence[Question]) -> None:
    """Refuse questions with images for a model that reads none."""
    pictured = sum(bool(question.images) for question in questions)
    if pictured and not hasattr(processor, "image_processor"):
        raise SystemExit(
            f"{option} reads no images, and {pictured} questions have some: name a VLM, or leave "
            "the images out (own data: --columns images=)"
        )


@torch.no_grad()
def check_model(model, prompt: Tensors, prompt_tokens: int, response_tokens: int) -> None:
    """Refuse a model whose rollouts are drawn from another distribution than they are scored by.

    A short and a long row are sampled together, as rollouts are. Then they are scored as in the
    update, twice together and once each alone. All four must agree to rounding.
    model: in the mode of its scoring, and nothing wraps it yet. prompt: any encoded one, without
    images. The rest: the most tokens of a run's prompts and responses.
    """
    name = f"the model ({model.config.model_type})"
    config = model.config.get_text_config()
    window = getattr(config, "max_position_embeddings", None)
    if window and response_tokens >= window:
        print_main(f"{name} was made for {window} tokens: lower --max_response_tokens")
    generator = torch.Generator().manual_seed(0)
    short, long = LENGTHS
    longer = [length for length in switches(config) if length < prompt_tokens + response_tokens]
    rows = [draw(prompt, length, generator) for length in (short, max([long, *longer]) + 1)]
    try:
        with decoding(model):
            sampled, log_probs = sample(model, rows, generator)
        first = score(model, rows, sampled)
        again = score(model, rows, sampled)
        alone = torch.cat([score(model, rows[i : i + 1], sampled[i : i + 1]) for i in (0, 1)])
    except Exception as error:  # each architecture has errors of its own
        raise SystemExit(f"{name} cannot be sampled and scored here: {error!r}") from error
    kind = model.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else model.dtype
    causes = {
        "in train mode, each time it scores a row: noise in its layers?": again,
        "beside a longer row: does its rotary embedding switch? Lower --max_*_tokens.": alone,
        "in sampling and in scoring: a scale or a bias behind its head, its own cache?": log_probs,
    }
    for cause, others in causes.items():
        gap = (first - others).abs().mean(-1).max()  # [2 rows, CHECKED]
        if not gap <= torch.finfo(dtype).eps ** 0.5:  # NaN is not, either
            what = f"{name} gives other log-probs (by {gap:.2g}) {cause}"
            raise SystemExit(f"{what} Choose another architecture")


def switches(config) -> list[int]:
    """Lengths at which a model begins to compute in another way."""
    known = names_in(config.to_dict())  # "rope_parameters.full_attention.rope_type", ...
    found = [known[name] for name in known if name.split(".")[-1] in SWITCHES]
    if "dynamic" in known.values():
        found.append(config.max_position_embeddings)
    return [length for length in found if length]


def draw(prompt: Tensors, length: int, generator: torch.Generator) -> Tensors:
    """A prompt of this length from the tokens of another, in any order."""
    size = len(prompt["input_ids"])
    places = torch.randint(size, (length,), generator=generator)
    return {key: values[places] for key, values in prompt.items()}


def sample(model, rows: Sequence[Tensors], generator) -> tuple[torch.Tensor, torch.Tensor]:
    """CHECKED tokens of each row, drawn with the cache, and their log-probs: [2, CHECKED] each."""
    logits, decoder = prefill(model, rows, model.device, room=CHECKED)
    tokens, log_probs = [], []
    for _ in range(CHECKED):
        logp = logits.float().log_softmax(-1)  # [2, V]
        drawn = torch.multinomial(logp.exp().cpu(), 1, generator=generator).to(model.device)
        tokens.append(drawn)
        log_probs.append(logp.gather(-1, drawn))
        logits = decoder(drawn.squeeze(-1))
    return torch.cat(tokens, -1), torch.cat(log_probs, -1)


def score(model, rows: Sequence[Tensors], responses: torch.Tensor) -> torch.Tensor:
    """Log-probs [rows, CHECKED] as in the update: padding on the right, and no mask."""
    batch = collate(rows, responses.tolist(), device=model.device)
    positions = position_ids(model, batch)
    predicts = response_positions(rows, responses, batch["input_ids"].shape)
    del batch["attention_mask"]
    log_probs, _ = Policy(model)(batch, positions, predicts.to(model.device))
    return log_probs.view(responses.shape)
