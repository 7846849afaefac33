"""What sampling runs on: prefill, one more token for every row of a batch, random numbers.

Decisions:
1. The cache has free columns behind its last one. So it is copied every CACHE_STEP tokens;
   transformers copies its cache at every token.
2. At every token transformers copies the keys for each query head that shares them. For one new
   token these heads are one matrix instead (`grouped_attention`): the same numbers to rounding. It
   takes the place of transformers' function while a model decodes (`decoding`), and at no other
   time.
3. A prefill goes through the model in pieces of bounded size: some layers hold several vectors of
   the model's width for each token, and a mask for padding has L x L entries a row.
4. Rows of a batch end in one column, and begin where they may: columns before its first one are a
   row's padding. So new rows can join a batch at any time, and columns that no row uses any more
   are cut off.
5. A 2D mask makes transformers look at its values at every token, and the host waits for the GPU.
   A 4D mask does not. Models with sliding windows need the 2D mask.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import contextmanager

import torch
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers.cache_utils import DynamicCache, DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from engine.models import Tensors, collate, position_ids, rope_index_of

CACHE_STEP = 1024  # columns that a cache grows by, at most
# Of a prefill's piece, padding included. A longer prompt is a piece of its own.
PREFILL_TOKENS = 16_384


@contextmanager
def decoding(model):
    """The model in eval mode, and attention by `grouped_attention`, for a while.

    In train mode gradient checkpointing would switch the KV cache off.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    ALL_ATTENTION_FUNCTIONS["sdpa"] = grouped_attention
    try:
        yield
    finally:
        del ALL_ATTENTION_FUNCTIONS["sdpa"]  # transformers' own is below it again
        for module, mode in modes:
            module.training = mode


# ---------------------------------------------------------------- the batch


def prefill(model, prompts: Sequence[Tensors], device: torch.device, room: int = CACHE_STEP):
    """Encoded prompts through the model: (logits of the next token [P, V], a Decoder behind them).

    room: tokens that will come. The cache grows in equal steps towards them.
    """
    logits = []
    decoder = None
    for piece in pieces_of(prompts):
        new_logits, new_rows = read(model, piece, device, room)
        logits.append(new_logits)
        decoder = decoder.join(new_rows) if decoder else new_rows
    return torch.cat(logits), decoder


def pieces_of(prompts: Sequence[Tensors]) -> list[list[Tensors]]:
    """The prompts in pieces of at most PREFILL_TOKENS, padding included (decision 3)."""
    pieces: list[list[Tensors]] = []
    longest = 0  # of the last piece
    for prompt in prompts:
        longest = max(longest, len(prompt["input_ids"]))
        if not pieces or longest * (len(pieces[-1]) + 1) > PREFILL_TOKENS:
            pieces.append([])
            longest = len(prompt["input_ids"])
        pieces[-1].append(prompt)
    return pieces


def read(model, prompts: Sequence[Tensors], device: torch.device, room: int):
    """One piece of `prefill`."""
    batch = collate(prompts, device=device)
    columns = batch["input_ids"].shape[1]
    first = [columns - len(prompt["input_ids"]) for prompt in prompts]
    positions = position_ids(model, batch)  # [P, L] or [3, P, L]
    # Without padding attention is plainly causal, and a mask would have L x L entries a row.
    if not any(first):
        del batch["attention_mask"]
    cache = KVCache(model.config, room)
    output = model(
        **batch,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    last = positions.amax(-1).view(-1, len(prompts)).amax(0)  # [P]
    return output.logits[:, -1], Decoder(model, cache, columns, first, last)


class Decoder:
    """Logits behind one more token of every row.

    columns: of the cache. first: each row's first column (decision 4). position: of each row's last
    token [B].
    """

    def __init__(self, model, cache: KVCache, columns: int, first: list[int], position):
        self.model = model
        self.cache = cache
        self.columns = columns
        self.first = first
        self.position = position
        self.mask = None
        windows = any(getattr(layer, "is_sliding", False) for layer in cache.layers)
        # Decision 5. Only this kind of attention takes booleans as a 4D mask.
        kind = model.config.get_text_config()._attn_implementation
        self.takes_4d = kind == "sdpa" and not windows

    def keep(self, rows: torch.Tensor) -> None:
        """Go on with these rows; one may be taken several times."""
        first = [self.first[row] for row in rows.tolist()]
        unused = min(first, default=0)  # leading columns that no row uses any more
        self.columns -= unused
        self.first = [column - unused for column in first]
        self.cache.keep_last(self.columns)
        self.cache.reorder_cache(rows)
        self.position = self.position[rows]
        self.mask = None

    def join(self, other: Decoder) -> Decoder:
        """The rows of another decoder go on behind these ones. Returns self."""
        columns = max(self.columns, other.columns)
        self.cache.join(other.cache, columns)
        self.first = [
            first + columns - part.columns for part in (self, other) for first in part.first
        ]
        self.position = torch.cat([self.position, other.position])
        self.columns = columns
        self.mask = None
        return self

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        """tokens [B] -> logits [B, V]."""
        self.columns += 1
        self.position = self.position + 1
        positions = self.position.unsqueeze(-1)  # [B, 1]
        if rope_index_of(self.model):
            positions = positions.expand(3, -1, -1)
        output = self.model(
            input_ids=tokens.unsqueeze(-1),
            attention_mask=self.attention_mask(),
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1]

    def attention_mask(self) -> torch.Tensor | None:
        """True where a row has a token: [B, columns] or [B, 1, 1, columns]; None where all have."""
        if not any(self.first):
            return None
        if self.mask is None or self.mask.shape[1] < self.columns:
            device = self.position.device
            columns = torch.arange(self.columns + CACHE_STEP, device=device)
            self.mask = columns >= torch.tensor(self.first, device=device).unsqueeze(1)
        mask = self.mask[:, : self.columns]
        return mask[:, None, None] if self.takes_4d else mask


# ---------------------------------------------------------------- the cache


class KVCache(DynamicCache):
    """transformers' cache, with room in it, whose rows come and go.

    Keys and values are in the type of autocast: models hand them over in float32.
    """

    def __init__(self, config, room: int):
        super().__init__(config=config)
        for i, layer in enumerate(self.layers):
            # Sliding windows and linear attention hold a bounded state: they need no room.
            if type(layer) is DynamicLayer:
                self.layers[i] = RoomyLayer(room)

    def update(self, keys: torch.Tensor, values: torch.Tensor, *args, **kwargs):
        if torch.is_autocast_enabled(keys.device.type):
            dtype = torch.get_autocast_dtype(keys.device.type)
            keys = keys.to(dtype)
            values = values.to(dtype)
        return super().update(keys, values, *args, **kwargs)

    def keep_last(self, columns: int) -> None:
        """Only the last columns stay. No copy: memory is free at the next one."""
        for layer in self.layers:
            if getattr(layer, "keys", None) is not None:
                keys = layer.keys[:, :, -columns:]
                values = layer.values[:, :, -columns:]
                set_columns(layer, keys, values)
                layer.cumulative_length = columns  # only sliding windows read it

    def join(self, other: KVCache, columns: int) -> None:
        """The rows of the other cache go behind these ones, aligned on the right.

        columns: of the longer one.
        """
        for layer, new in zip(self.layers, other.layers, strict=True):
            for name in ("conv_states", "recurrent_states"):  # linear attention: {index: [B, ...]}
                states = getattr(layer, name, {})
                for index, state in list(states.items()):
                    if state is not None:
                        states[index] = torch.cat([state, getattr(new, name)[index]])
            if getattr(layer, "keys", None) is not None:
                keys = align_right([layer.keys, new.keys])
                values = align_right([layer.values, new.values])
                set_columns(layer, keys, values)
                layer.cumulative_length = columns


def align_right(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Keys or values [B, kv heads, columns, D] of several batches as one."""
    columns = max(part.shape[2] for part in parts)
    aligned = []
    for part in parts:
        missing = columns - part.shape[2]
        aligned.append(pad(part, (0, 0, missing, 0)))
    return torch.cat(aligned)


def set_columns(layer: DynamicLayer, keys: torch.Tensor, values: torch.Tensor) -> None:
    """Other columns in place of a layer's own, without free ones behind them."""
    layer.keys = keys
    layer.values = values
    layer.free = 0
    layer.held_keys = None
    layer.held_values = None


class RoomyLayer(DynamicLayer):
    """Full attention's keys and values, with free columns behind them (decision 1).

    keys, values: [B, kv heads, columns, D]. room: tokens that will come. free: columns.
    """

    def __init__(self, room: int):
        super().__init__()
        self.step = math.ceil(room / math.ceil(room / CACHE_STEP))
        self.free = 0

    def update(self, keys: torch.Tensor, values: torch.Tensor, *args, **kwargs):
        columns = self.get_seq_length()
        if not columns:  # a prefill
            return super().update(keys, values)
        if not self.free:
            self.held_keys = pad(self.keys, (0, 0, 0, self.step))
            self.held_values = pad(self.values, (0, 0, 0, self.step))
            self.free = self.step
        self.held_keys[:, :, columns : columns + 1] = keys
        self.held_values[:, :, columns : columns + 1] = values
        self.keys = self.held_keys[:, :, : columns + 1]
        self.values = self.held_values[:, :, : columns + 1]
        self.free -= 1
        return self.keys, self.values

    def reorder_cache(self, rows: torch.Tensor) -> None:
        set_columns(self, self.keys[rows], self.values[rows])


def grouped_attention(module, query, key, value, attention_mask, scaling=None, **kwargs):
    """transformers' sdpa attention, but for one new token behind a cache (decision 2).

    query: [B, heads, L, D]. key, value: [B, kv heads, columns, D].
    Returns ([B, L, heads, D], None).
    """
    rows, heads, length, width = query.shape
    shared = heads // key.shape[1]
    has_bias = kwargs.get("position_bias") is not None
    if length > 1 or shared == 1 or attention_mask is None or has_bias:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
    together = query.reshape(rows, -1, shared, width)  # [B, kv heads, shared, D]
    output = scaled_dot_product_attention(together, key, value, attention_mask, scale=scaling)
    return output.reshape(rows, heads, 1, -1).transpose(1, 2), None
