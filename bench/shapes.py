"""The paper's models by their published shapes, and what of a run fits on a GPU.

Text only; parameters with vision tower, without MTP. What a layer saves for its backward pass is
asked of autograd, in a linear-attention layer without extra kernels. A local teacher is whole on
every GPU; in FP8 its embedding, head and vision tower stay in bf16.
"""

from dataclasses import dataclass

import torch
from transformers import Qwen3_5ForCausalLM, Qwen3_5TextConfig
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5DecoderLayer

from bench.machine import Costs, costs_of
from engine.decode import PREFILL_TOKENS
from engine.logprobs import token_logprobs

VOCAB, ROW = 248_320, 4_096 + 12_288  # the longest prompt and the longest response of Table 8
CHUNK = token_logprobs.__defaults__[-1]
FIELDS = (
    "hidden_size",
    "num_hidden_layers",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "linear_num_value_heads",
    "tie_word_embeddings",
)
# The fields, then the parameters of the vision tower.
SHAPES = {
    "0.8B": (1024, 24, 3584, 8, 2, 16, True, 0.101e9),
    "2B": (2048, 24, 6144, 8, 2, 16, True, 0.331e9),
    "4B": (2560, 32, 9216, 16, 4, 32, True, 0.334e9),
    "9B": (4096, 32, 12288, 16, 4, 32, False, 0.456e9),
    "27B": (5120, 64, 17408, 24, 4, 48, False, 0.460e9),
}
STUDENTS = ("0.8B", "2B", "4B", "9B")
TEACHERS = {
    "served": 0,
    "27B FP8": 1,
    "27B bf16": 2,
}  # bytes of a weight in the layers of a local one


@dataclass(frozen=True)
class Model:
    config: Qwen3_5TextConfig
    costs: Costs
    vision: float  # parameters of the vision tower
    saved: float  # bytes per token that one layer saves for its backward pass, in bf16

    @property
    def parameters(self) -> float:
        return self.costs.parameters + self.vision

    def weights(self, layer_bytes: int) -> float:
        """Bytes of all weights. layer_bytes: of a weight in the layers; the others are in bf16."""
        return layer_bytes * self.costs.body + 2 * (self.parameters - self.costs.body)

    def row(self, tokens: float = ROW) -> float:
        """Bytes of a rollout: its cache in bf16, its states in fp32, and 24 for each token that may
        come next.
        """
        return 2 * self.costs.keys * tokens + 4 * self.costs.state + 24 * VOCAB


def model_of(size: str) -> Model:
    config = Qwen3_5TextConfig(**dict(zip(FIELDS, SHAPES[size])), vocab_size=VOCAB)
    with torch.device("meta"):
        costs = costs_of(Qwen3_5ForCausalLM(config))
    return Model(config, costs, SHAPES[size][-1], saved_per_token(config))


def saved_per_token(config: Qwen3_5TextConfig, tokens: int = 512) -> float:
    """Bytes that autograd saves in one linear-attention layer in bf16, parameters aside.

    Asked on the meta device.
    """
    found = []  # holds what is saved, so that no storage's id is used twice

    def keep(x: torch.Tensor) -> torch.Tensor:
        found.append(x)
        return x

    dtype = torch.bfloat16
    with torch.device("meta"), torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        hidden = torch.randn(1, tokens, config.hidden_size, dtype=dtype, requires_grad=True)
        Qwen3_5DecoderLayer(config, 0).to(dtype)(hidden, position_embeddings=None)
    sizes = {}
    for x in found:
        base = x if x._base is None else x._base
        if not isinstance(base, torch.nn.Parameter):
            storage = x.untyped_storage()
            sizes[storage._cdata] = storage.nbytes()
    return sum(sizes.values()) / tokens


def teacher_rows(teacher: Model, layer_bytes: int, free: float, tokens: float = ROW) -> float:
    """Rollouts at a time of a teacher in so many bytes: beside its weights and a piece of a
    prefill.
    """
    prefill = (
        6 * PREFILL_TOKENS * teacher.config.intermediate_size
    )  # three vectors of an MLP, in bf16
    return (free - teacher.weights(layer_bytes) - prefill) / teacher.row(tokens)


def fits(
    student: Model,
    n: int,
    teacher: Model,
    teacher_bytes: int,
    memory: float,
    checkpoints: bool = True,
    longest: int = ROW,
) -> tuple[int, int, int] | None:
    """(micro_tokens, rollout_rows, teacher's rollout_rows) of each of n GPUs.

    None where no row of `longest` tokens fits. teacher_bytes: of a weight in a local one's layers;
    0: it is served, and its rows are the student's. memory: bytes of a GPU, of which 90% are used.
    checkpoints: --gradient_checkpointing. The formulas are those that bench/memory.py prints.
    """
    config = student.config
    p = student.parameters
    free = 0.9 * memory
    layers = config.num_hidden_layers
    other = free - 12 * p / n  # beside the student's weights and moments
    if teacher_bytes:
        free -= teacher.weights(teacher_bytes)
    outer = student.costs.parameters - student.costs.body  # embedding and head
    casts = 2 * p
    activation = 4
    if n > 1:
        casts = 2 * outer + 10 * (p - outer) / layers
        activation = 2
    token = layers * student.saved
    if checkpoints:
        token = layers * config.hidden_size * activation + 2 * student.saved
    update = free - 16 * p / n - casts - VOCAB * (16 * CHUNK + 6 * config.hidden_size)
    tokens = update / token
    rows = (free - 12 * p / n - 2 * p) / student.row()
    asked = teacher_rows(teacher, teacher_bytes, other) if teacher_bytes else rows
    if tokens < longest or min(rows, asked) < 1:
        return None
    return int(tokens), int(rows), int(asked)
