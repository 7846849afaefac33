"""What sampling runs on: prefill, one more token for every row of a batch, random numbers.

Decisions:
1. The cache has free columns behind its last one. It is copied every CACHE_STEP tokens, transformers' own at every one.
2. At every token transformers copies the keys for each query head that shares them. For one new token these heads are
   one matrix instead (`grouped_attention`): the same numbers to rounding.
3. A prefill goes through the model in pieces of bounded size: some layers hold several vectors of the model's width for
   each token, and a mask for padding has L x L entries a row.
"""

from collections.abc import Sequence
from contextlib import contextmanager

import torch
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.cache_utils import DynamicCache, DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from engine.models import Tensors, collate, position_ids, rope_index_of

CACHE_STEP = 1024  # columns that a cache grows by
RANDOM_BLOCK = 64  # uniform numbers drawn at a time from a rollout's stream
PREFILL_TOKENS = 16_384  # of a prefill's piece, padding included; a longer prompt is a piece of its own


def grouped_attention(module, query, key, value, attention_mask, scaling=None, **kwargs):
    """transformers' sdpa attention, but for one new token behind a cache (decision 2).
    query: [B, heads, L, D], key and value: [B, kv heads, columns, D]. Returns ([B, L, heads, D], None)."""
    shared = query.shape[1] // key.shape[1]
    if query.shape[2] > 1 or shared == 1 or attention_mask is None or kwargs.get("position_bias") is not None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    together = query.reshape(len(query), -1, shared, query.shape[-1])  # [B, kv heads, shared, D]
    output = scaled_dot_product_attention(together, key, value, attention_mask, scale=scaling)
    return output.reshape(len(query), query.shape[1], 1, -1).transpose(1, 2), None


AttentionInterface.register("sdpa", grouped_attention)


class KVCache(DynamicCache):
    """Keys and values in the type that attention computes in: under autocast models hand them over in float32."""

    def update(self, keys: torch.Tensor, values: torch.Tensor, *args, **kwargs):
        if torch.is_autocast_enabled(keys.device.type):
            keys, values = (x.to(torch.get_autocast_dtype(x.device.type)) for x in (keys, values))
        return super().update(keys, values, *args, **kwargs)


class RoomyLayer(DynamicLayer):
    """Keys and values [B, kv heads, columns, D] of full attention, with free columns behind them (decision 1)."""

    def __init__(self, layer: DynamicLayer, limit: int):
        """layer: a prefilled one. limit: the most columns there will be."""
        super().__init__()
        self.limit, self.dtype, self.device, self.is_initialized = limit, layer.dtype, layer.device, True
        self.place(layer.keys, layer.values)

    def place(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        columns = keys.shape[2]
        self.held = [pad(x, (0, 0, 0, min(CACHE_STEP, self.limit - columns))) for x in (keys, values)]
        self.keys, self.values = (x[:, :, :columns] for x in self.held)

    def update(self, keys: torch.Tensor, values: torch.Tensor, *args, **kwargs):
        first, last = self.keys.shape[2], self.keys.shape[2] + keys.shape[2]
        if last > self.held[0].shape[2]:
            self.place(self.keys, self.values)
        for held, new in zip(self.held, (keys, values), strict=True):
            held[:, :, first:last] = new
        self.keys, self.values = (x[:, :, :last] for x in self.held)
        return self.keys, self.values

    def reorder_cache(self, rows: torch.Tensor) -> None:
        self.place(self.keys[rows], self.values[rows])


def prefill(model, prompts: Sequence[Tensors], device: torch.device):
    """Encoded prompts through the model, in pieces of at most PREFILL_TOKENS (decision 3).

    Returns logits of the next token [P, V], the cache, the mask [P, L] of prompts padded on the left, and the position
    of each prompt's last token [P]."""
    pieces: list[list[Tensors]] = [[]]
    for prompt in prompts:
        longest = max(len(p["input_ids"]) for p in [*pieces[-1], prompt])
        if pieces[-1] and longest * (len(pieces[-1]) + 1) > PREFILL_TOKENS:
            pieces.append([])
        pieces[-1].append(prompt)
    logits, caches, masks, last = [], [], [], []
    for piece in pieces:
        batch = collate(piece, device=device)
        masks.append(batch["attention_mask"])
        positions = position_ids(model, batch)  # [P, L] or [3, P, L]
        last.append(positions.amax(-1).view(-1, len(piece)).amax(0))
        if len({len(prompt["input_ids"]) for prompt in piece}) == 1:  # no padding: attention is plainly causal
            del batch["attention_mask"]
        caches.append(KVCache(config=model.config))
        batch |= dict(position_ids=positions, past_key_values=caches[-1], use_cache=True, logits_to_keep=1)
        logits.append(model(**batch).logits[:, -1])
    columns = max(mask.shape[1] for mask in masks)
    masks = [pad(mask, (columns - mask.shape[1], 0)) for mask in masks]
    return torch.cat(logits), join(caches) if caches[1:] else caches[0], torch.cat(masks), torch.cat(last)


def join(caches: Sequence[KVCache]) -> KVCache:
    """One cache for the rows of all, their columns aligned on the right."""
    for layers in zip(*(cache.layers for cache in caches), strict=True):
        first = layers[0]
        for name in ("conv_states", "recurrent_states"):  # linear attention: {index: [B, ...]}
            states = getattr(first, name, {})
            for k in [k for k, state in states.items() if state is not None]:
                states[k] = torch.cat([getattr(layer, name)[k] for layer in layers])
        if getattr(first, "keys", None) is not None:  # [B, kv heads, columns, D]; sliding windows hold fewer columns
            columns = max(layer.keys.shape[2] for layer in layers)
            for name in ("keys", "values"):
                held = [getattr(layer, name) for layer in layers]
                setattr(first, name, torch.cat([pad(x, (0, 0, columns - x.shape[2], 0)) for x in held]))
        if hasattr(first, "cumulative_length"):
            first.cumulative_length = max(layer.cumulative_length for layer in layers)
    return caches[0]


class Decoder:
    """Logits behind one more token of every row."""

    def __init__(self, model, cache: KVCache, mask: torch.Tensor, position: torch.Tensor, room: int):
        """What `prefill` returned. room: the most tokens that will come."""
        self.model, self.cache, self.columns, self.position = model, cache, mask.shape[1], position
        self.mask = pad(mask, (0, room), value=1)  # [B, L + room]
        for i, layer in enumerate(cache.layers):
            if type(layer) is DynamicLayer:  # sliding windows and linear attention hold a bounded state
                cache.layers[i] = RoomyLayer(layer, self.columns + room)

    def keep(self, rows: torch.Tensor) -> None:
        """Go on with these rows; one may be taken several times."""
        self.cache.reorder_cache(rows)
        self.mask, self.position = self.mask[rows], self.position[rows]

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        """tokens [B] -> logits [B, V]."""
        self.columns += 1
        self.position = self.position + 1
        positions = self.position.unsqueeze(-1)  # [B, 1]
        positions = positions.expand(3, -1, -1) if rope_index_of(self.model) else positions
        batch = dict(input_ids=tokens.unsqueeze(-1), attention_mask=self.mask[:, : self.columns])
        batch |= dict(position_ids=positions, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        return self.model(**batch).logits[:, -1]


class UniformStreams:
    """One stream of uniform numbers per rollout, drawn in blocks."""

    def __init__(self, seeds: Sequence[int], device: torch.device):
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.device, self.used = device, RANDOM_BLOCK

    def next(self) -> torch.Tensor:
        if self.used == RANDOM_BLOCK:
            draw = [torch.rand(RANDOM_BLOCK, generator=g, dtype=torch.float64) for g in self.generators]
            self.block, self.used = torch.stack(draw).to(self.device), 0  # [B, RANDOM_BLOCK]
        self.used += 1
        return self.block[:, self.used - 1]

    def keep(self, rows: torch.Tensor) -> None:
        self.generators = [self.generators[i] for i in rows.tolist()]
        self.block = self.block[rows]


@contextmanager
def evaluating(model):
    """The model in eval mode for a while: gradient checkpointing in train mode would switch the KV cache off."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
