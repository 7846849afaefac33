"""Memory of a device: what running out of it looks like, and how many rollouts fit."""

import os

import psutil
import torch
from accelerate.utils.memory import should_reduce_batch_size
from torch.distributed.tensor import DTensor

LEAST_CACHE = 2**30
ROWS_ON_CPU = 128
MOST_ROWS = 1024  # more rows make a decoding step slower, and its weights are read once anyway
SHARE = 0.8  # of the free memory that rollouts may take: a prefill and fragments need the rest
# What accelerate does not know: other libraries, and CUDA where its allocator noticed too late.
SPELLINGS = (
    "CUDA error: out of memory",
    "Triton Error [CUDA]: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def out_of_memory(error: Exception) -> bool:
    """Does the error say that memory has run out?"""
    return should_reduce_batch_size(error) or any(words in str(error) for words in SPELLINGS)


def cache_bytes() -> int:
    """Bytes of encoded prompts that one model's Encoder may keep on this process.

    A question with the largest image takes 31 MB and is met in rollouts, scoring and update; a step
    has hundreds of them, and encoding one again takes 50 ms.
    """
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    share = psutil.virtual_memory().available // (4 * processes)
    return max(LEAST_CACHE, share)


def segments_that_grow() -> None:
    """Set expandable segments where nobody has set anything. Before CUDA's first allocation.

    A cache that grows and is dropped reserves 1.5 to 2.7 times its memory without them.
    """
    names = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
    if not any(name in os.environ for name in names):
        os.environ["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"


def rows_that_fit(model, student, tokens: int, bf16: bool) -> int:
    """Rollouts of a model at a time on its device, beside a student that has not trained yet.

    tokens: of the longest prompt and response. The models are on their devices; student: maybe the
    same model, maybe in shards. bf16: rollouts compute in it.
    """
    if model.device.type != "cuda":
        return ROWS_ON_CPU
    free, _ = torch.cuda.mem_get_info(model.device)
    moments = 0
    for parameter in student.parameters():
        shard = parameter.to_local() if isinstance(parameter, DTensor) else parameter
        moments += 8 * shard.numel()  # of AdamW, in fp32
    casts = 2 * sum(parameter.numel() for parameter in model.parameters())
    room = SHARE * free - moments - casts
    rows = int(room / row_bytes(model, tokens, 2 if bf16 else 4))
    return max(1, min(MOST_ROWS, rows))


def row_bytes(model, tokens: int, width: int) -> int:
    """Bytes of one rollout: its keys and values, its states, and 24 for each possible next token.

    width: bytes of a key's number.
    """
    text = model.config.get_text_config()
    linear = list(getattr(text, "layer_types", None) or []).count("linear_attention")
    heads = text.num_attention_heads
    head = getattr(text, "head_dim", None) or text.hidden_size // heads
    keys = 2 * (getattr(text, "num_key_value_heads", None) or heads) * head
    state = 0
    if linear:
        state = text.linear_num_value_heads * text.linear_key_head_dim * text.linear_value_head_dim
    full = text.num_hidden_layers - linear
    return width * full * keys * tokens + 4 * linear * state + 24 * text.vocab_size
