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
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager

import torch
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers.cache_utils import DynamicCache, DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from engine.models import Tensors, collate, position_ids, rope_index_of

CACHE_STEP = 1024  # columns that a cache grows by
RANDOM_BLOCK = 64  # uniform numbers drawn at a time from a rollout's stream
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


def prefill(model, prompts: Sequence[Tensors], device: torch.device):
    """Encoded prompts through the model, piece by piece.

    Returns logits of the next token [P, V], the cache, the mask [P, L] of prompts padded on the
    left, and the position of each prompt's last token [P].
    """
    logits = []
    caches = []
    masks = []
    last = []
    for piece in pieces_of(prompts):
        batch = collate(piece, device=device)
        masks.append(batch["attention_mask"])
        positions = position_ids(model, batch)  # [P, L] or [3, P, L]
        last.append(positions.amax(-1).view(-1, len(piece)).amax(0))
        lengths = {len(prompt["input_ids"]) for prompt in piece}
        # Without padding attention is plainly causal, and a mask would have L x L entries a row.
        if len(lengths) == 1:
            del batch["attention_mask"]
        cache = KVCache(config=model.config)
        caches.append(cache)
        output = model(
            **batch,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits.append(output.logits[:, -1])
    columns = max(mask.shape[1] for mask in masks)
    masks = [pad(mask, (columns - mask.shape[1], 0)) for mask in masks]
    return torch.cat(logits), join(caches), torch.cat(masks), torch.cat(last)


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


class Decoder:
    """Logits behind one more token of every row."""

    def __init__(
        self, model, cache: KVCache, mask: torch.Tensor, position: torch.Tensor, room: int
    ):
        """What `prefill` returned. room: the most tokens that will come."""
        self.model = model
        self.cache = cache
        self.columns = mask.shape[1]
        self.position = position  # [B], of the last token
        self.mask = pad(mask, (0, room), value=1)  # [B, L + room]
        for i, layer in enumerate(cache.layers):
            # Sliding windows and linear attention hold a bounded state: they need no room.
            if type(layer) is DynamicLayer:
                cache.layers[i] = RoomyLayer(layer, self.columns + room)

    def keep(self, rows: torch.Tensor) -> None:
        """Go on with these rows; one may be taken several times."""
        self.cache.reorder_cache(rows)
        self.mask = self.mask[rows]
        self.position = self.position[rows]

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        """tokens [B] -> logits [B, V]."""
        self.columns += 1
        self.position = self.position + 1
        positions = self.position.unsqueeze(-1)  # [B, 1]
        if rope_index_of(self.model):
            positions = positions.expand(3, -1, -1)
        output = self.model(
            input_ids=tokens.unsqueeze(-1),
            attention_mask=self.mask[:, : self.columns],
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1]


class KVCache(DynamicCache):
    """Keys and values in the type of autocast: models hand them over in float32."""

    def update(self, keys: torch.Tensor, values: torch.Tensor, *args, **kwargs):
        if torch.is_autocast_enabled(keys.device.type):
            dtype = torch.get_autocast_dtype(keys.device.type)
            keys = keys.to(dtype)
            values = values.to(dtype)
        return super().update(keys, values, *args, **kwargs)


class RoomyLayer(DynamicLayer):
    """Full attention's keys and values, with free columns behind them (decision 1).

    keys, values: [B, kv heads, columns, D], views of what is held.
    """

    def __init__(self, layer: DynamicLayer, limit: int):
        """layer: a prefilled one. limit: the most columns there will be."""
        super().__init__()
        self.limit = limit
        self.dtype = layer.dtype
        self.device = layer.device
        self.is_initialized = True
        self.place(layer.keys, layer.values)

    def place(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        free = min(CACHE_STEP, self.limit - keys.shape[2])
        self.held_keys = pad(keys, (0, 0, 0, free))
        self.held_values = pad(values, (0, 0, 0, free))
        self.use(keys.shape[2])

    def use(self, columns: int) -> None:
        """The first columns are in use, those behind them are free."""
        self.keys = self.held_keys[:, :, :columns]
        self.values = self.held_values[:, :, :columns]

    def update(self, keys: torch.Tensor, values: torch.Tensor, *args, **kwargs):
        first = self.keys.shape[2]
        last = first + keys.shape[2]
        if last > self.held_keys.shape[2]:
            self.place(self.keys, self.values)
        self.held_keys[:, :, first:last] = keys
        self.held_values[:, :, first:last] = values
        self.use(last)
        return self.keys, self.values

    def reorder_cache(self, rows: torch.Tensor) -> None:
        self.place(self.keys[rows], self.values[rows])


def join(caches: Sequence[KVCache]) -> KVCache:
    """One cache for the rows of all, aligned on the right. It is the first of them, changed."""
    if len(caches) > 1:
        for layers in zip(*(cache.layers for cache in caches), strict=True):
            join_states(layers)
            if getattr(layers[0], "keys", None) is not None:
                join_columns(layers)
    return caches[0]


def join_states(layers: Sequence) -> None:
    """Linear attention: {index: state [B, ...]} by name. All rows go into the first layer."""
    for name in ("conv_states", "recurrent_states"):
        states = getattr(layers[0], name, {})
        for index, state in list(states.items()):
            if state is not None:
                states[index] = torch.cat([getattr(layer, name)[index] for layer in layers])


def join_columns(layers: Sequence) -> None:
    """Keys and values [B, kv heads, columns, D]. All rows go into the first layer."""
    first = layers[0]
    # Of the cache, not of the prompts: sliding windows hold fewer.
    columns = max(layer.keys.shape[2] for layer in layers)
    for name in ("keys", "values"):
        held = [getattr(layer, name) for layer in layers]
        aligned = [pad(x, (0, 0, columns - x.shape[2], 0)) for x in held]
        setattr(first, name, torch.cat(aligned))
    if hasattr(first, "cumulative_length"):
        first.cumulative_length = max(layer.cumulative_length for layer in layers)


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


class UniformStreams:
    """One stream of uniform numbers per rollout, drawn in blocks."""

    def __init__(self, seeds: Sequence[int], device: torch.device):
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.device = device
        self.used = RANDOM_BLOCK

    def next(self) -> torch.Tensor:
        """One number for each row [B]."""
        if self.used == RANDOM_BLOCK:
            size = dict(size=(RANDOM_BLOCK,), dtype=torch.float64)
            drawn = [torch.rand(generator=generator, **size) for generator in self.generators]
            self.block = torch.stack(drawn).to(self.device)  # [B, RANDOM_BLOCK]
            self.used = 0
        self.used += 1
        return self.block[:, self.used - 1]

    def keep(self, rows: torch.Tensor) -> None:
        """Go on with these rows."""
        self.generators = [self.generators[i] for i in rows.tolist()]
        self.block = self.block[rows]
