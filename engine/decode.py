"""One more token for every row of a batch, and the memory that a row takes.

Decisions:
1. `Decoder` lets cache and mask grow by a column with every token. This is the default, and the faster one on a CPU.
2. `StaticDecoder` (`cuda_graphs`) works in tensors of fixed shape, so that on a GPU one graph per shape can be captured
   and replayed; its tokens are the same. The capture itself has not been run on a GPU yet; on a CPU the steps run
   without it.
3. The memory of a row is measured in the model at hand, not computed from its config.
4. Where several query heads share their keys, transformers copies the keys for each of them, at every token. For one
   new token they are one matrix instead (`grouped_attention`): the same numbers to rounding, without the copies.
"""

import torch
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.cache_utils import DynamicCache, LinearAttentionCacheLayerMixin, StaticLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from engine.models import collate, position_ids

CACHE_STEP = 1024  # columns that a cache of fixed shape grows by
WARM_UPS = 3  # steps that run on a side stream before the capture
PROBE = 64  # tokens of the shorter of two prompts that the cache is measured with
MEMORY_SHARE = 0.8  # of the free memory goes to rollouts; the rest is for activations and fragments


def grouped_attention(module, query, key, value, attention_mask, scaling=None, **kwargs):
    """transformers' sdpa attention, without copies where one new token meets a cache (decision 4).

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


def prefill(model, batch: dict[str, torch.Tensor], positions: torch.Tensor):
    """The model's output behind `models.collate`d prompts, with a new cache and the logits of the last column."""
    cache = KVCache(config=model.config)
    return model(**batch, position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=1)


class Decoder:
    """Logits behind one more token of every row. Cache and mask grow by a column each time."""

    def __init__(self, model, cache, mask: torch.Tensor, positions: torch.Tensor):
        """After a prefill: its cache, attention mask [B, L] and positions [B, L] or [3, B, L]."""
        self.model, self.cache, self.mask = model, cache, mask
        self.multimodal_rope = positions.dim() == 3
        last = positions.amax(-1)  # [B] or [3, B]
        self.position = last.amax(0) if self.multimodal_rope else last  # [B]

    def keep(self, rows: torch.Tensor) -> None:
        """Go on with these rows; one may be taken several times."""
        self.cache.reorder_cache(rows)
        self.mask, self.position = self.mask[rows], self.position[rows]

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        """tokens [B] -> logits [B, V]."""
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(tokens), 1)], dim=-1)
        self.position = self.position + 1
        return self.forward(tokens)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        positions = self.position.unsqueeze(-1)  # [B, 1]
        output = self.model(
            input_ids=tokens.unsqueeze(-1),
            attention_mask=self.mask,
            position_ids=positions.expand(3, -1, -1) if self.multimodal_rope else positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1]


class StaticDecoder(Decoder):
    """The same in tensors that keep shape and place from step to step, so that a CUDA graph can replay the step.

    Attention caches and mask have free columns at their end; full ones, and those of fewer rows, are allocated anew.
    Sliding windows are kept whole: the mask hides what has left them. The states of linear attention are in place as
    they are. Raises ValueError for a model whose caches or masks are of another kind.
    """

    def __init__(self, model, cache, mask: torch.Tensor, positions: torch.Tensor, room: int):
        """room: the most tokens that will come."""
        super().__init__(model, cache, mask, positions)
        text = model.config.get_text_config()
        kinds = set(getattr(text, "layer_types", None) or ["full_attention"])
        others = kinds - {"full_attention", "sliding_attention", "linear_attention"}
        if text._attn_implementation != "sdpa":
            others.add(f"{text._attn_implementation} attention")
        if others:
            what = f"{type(model).__name__} with {', '.join(sorted(others))}"
            raise ValueError(f"no decoding in tensors of fixed shape for {what}: leave cuda_graphs out")
        self.length, self.limit = mask.shape[1], mask.shape[1] + room  # columns in use, and at most
        self.side: torch.cuda.Stream | None = None

    def keep(self, rows: torch.Tensor) -> None:
        self.graph, self.logits, self.warm_ups = None, None, 0
        columns = min(self.length + CACHE_STEP, self.limit)
        for i, layer in enumerate(self.cache.layers):  # one after the other: two whole caches would not fit
            if isinstance(layer, LinearAttentionCacheLayerMixin):
                layer.reorder_cache(rows)
                continue
            keys, values = (x[:, :, : self.length][rows] for x in (layer.keys, layer.values))  # [B, heads, L, D]
            gone = self.length - keys.shape[2]  # columns that a sliding window has let go of
            self.cache.layers[i] = layer = StaticLayer(columns)
            layer.keys, layer.values = (pad(x, (0, 0, gone, columns - self.length)) for x in (keys, values))
            layer.cumulative_length, layer.device = torch.tensor(self.length, device=rows.device), rows.device
            layer.is_initialized = True
        self.mask = pad(self.mask[rows, : self.length], (0, columns - self.length))
        self.position = self.position[rows]
        self.column = torch.tensor([self.length], device=rows.device)
        self.tokens = torch.zeros_like(rows)

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        if self.length == self.mask.shape[1]:
            self.keep(torch.arange(len(tokens), device=tokens.device))
        self.length += 1
        self.tokens.copy_(tokens)
        return self.replay() if tokens.is_cuda else self.step()

    def step(self) -> torch.Tensor:
        """Everything in place: what a replay repeats."""
        self.mask.index_fill_(1, self.column, 1)
        self.column += 1
        self.position += 1
        return self.forward(self.tokens)

    def replay(self) -> torch.Tensor:
        """The step as a graph. The warm-ups that a capture needs are the first steps of each shape."""
        if self.warm_ups < WARM_UPS:
            self.warm_ups += 1
            side, current = self.side or torch.cuda.Stream(), torch.cuda.current_stream()
            self.side = side  # one for all: each stream has memory of its own
            side.wait_stream(current)
            with torch.cuda.stream(side):
                logits = self.step()
            current.wait_stream(side)
            return logits
        if self.graph is None:
            graph = torch.cuda.CUDAGraph()
            try:
                # thread_local: the threads that watch over other processes may go on meanwhile
                with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                    self.logits = self.step()  # recorded, not run
            except RuntimeError as error:
                raise RuntimeError(f"{type(self.model).__name__} cannot be captured: leave cuda_graphs out") from error
            self.graph = graph
        self.graph.replay()
        return self.logits


@torch.no_grad()
def row_bytes(model, tokens: int) -> float:
    """Memory of one rollout of so many tokens, its prompt's included: the cache, by two real prefills, and sampling."""
    sizes = []
    for length in (PROBE, 2 * PROBE):
        prompt = {"input_ids": torch.zeros(length, dtype=torch.long)}
        batch = collate([prompt], device=model.get_output_embeddings().weight.device)
        cache = prefill(model, batch, position_ids(model, batch)).past_key_values
        held = [value for layer in cache.layers for value in vars(layer).values()]  # keys, values; states in dicts
        held = [x for value in held for x in (value.values() if isinstance(value, dict) else [value])]
        sizes.append(sum(x.nbytes for x in held if torch.is_tensor(x) and x.dim()))
    per_token = (sizes[1] - sizes[0]) / PROBE
    sampling = 24 * model.get_output_embeddings().weight.shape[0]  # logits, probabilities, their sum in float64
    return sizes[0] + per_token * (tokens - PROBE) + sampling


def rows_that_fit(model, tokens: int, free: float) -> int:
    """How many rollouts of so many tokens at a time to keep in `free` bytes; at least 1."""
    return max(1, int(MEMORY_SHARE * free / row_bytes(model, tokens)))
