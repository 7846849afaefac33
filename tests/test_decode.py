"""Decoding in tensors of fixed shape: as with growing ones; and the memory of a row."""

from types import SimpleNamespace

import pytest
import tiny
import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers.integrations import sdpa_attention

from engine.decode import (
    MEMORY_SHARE,
    Decoder,
    KVCache,
    StaticDecoder,
    grouped_attention,
    prefill,
    row_bytes,
    rows_that_fit,
)
from engine.models import banned_token_ids, collate, position_ids
from generate import Sampling, generate

NEVER = [tiny.VOCABULARY]  # an end token that is never sampled
ARCHITECTURES = ["qwen3", "gemma2", "qwen3_5", "qwen2_5_vl"]
SEEDS = [[1, 2, 3], [4, 5, 6, 7], [8]]


def started(model, kind=Decoder, **room):
    """A decoder behind a prefill, with two rollouts of each prompt."""
    batch = collate(tiny.prompts(model))
    positions = position_ids(model, batch)
    cache = prefill(model, batch, positions).past_key_values
    decoder = kind(model, cache, batch["attention_mask"], positions, **room)
    decoder.keep(torch.tensor([0, 0, 1, 1, 2, 2]))
    return decoder


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("columns", [1, 3, 1024])
def test_fixed_shapes_give_the_same_rollouts(name, columns, monkeypatch):
    """Caches that are full after every token, now and then, or never; rows that end early, and rows that never do."""
    monkeypatch.setattr("decode.CACHE_STEP", columns)
    model = tiny.make(name)
    prompts, banned = tiny.prompts(model), banned_token_ids(model, tiny.PROCESSOR)
    for sampling in (Sampling(24), Sampling(24, temperature=0.7, presence_penalty=3.0)):
        for ends in (NEVER, list(range(0, tiny.VOCABULARY, 12))):
            growing = generate(model, prompts, SEEDS, sampling, ends, banned)
            assert generate(model, prompts, SEEDS, sampling, ends, banned, cuda_graphs=True) == growing


@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.no_grad()
def test_fixed_shapes_give_the_same_logits(name, monkeypatch):
    monkeypatch.setattr("decode.CACHE_STEP", 4)
    model = tiny.make(name)
    decoders = [started(model), started(model, StaticDecoder, room=11)]
    for step in range(11):
        if step == 6:
            for decoder in decoders:
                decoder.keep(torch.tensor([5, 1, 2]))
        tokens = torch.arange(step, step + len(decoders[0].mask))
        logits = [decoder(tokens) for decoder in decoders]
        torch.testing.assert_close(logits[1], logits[0], rtol=1e-4, atol=1e-4)
    assert decoders[1].mask.shape == decoders[0].mask.shape  # no more room than was asked for


class Tape(TorchDispatchMode):
    """What a CUDA graph does, on a CPU: records every operation of a step with its tensors and repeats them in place.

    Fails where a capture would: a tensor's value is asked for, or a tensor is made from Python's numbers.
    """

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        assert name not in ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "lift_fresh"), name
        self.calls.append((function, args, kwargs or {}, function(*args, **(kwargs or {}))))
        return self.calls[-1][-1]

    def replay(self) -> None:
        for function, args, kwargs, output in self.calls:
            for old, new in zip(tree_leaves(output), tree_leaves(function(*args, **kwargs)), strict=True):
                if torch.is_tensor(old) and old.data_ptr() != new.data_ptr():  # neither a view nor in place
                    old.copy_(new)


@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.no_grad()
def test_a_recorded_step_can_be_repeated(name):
    """Nothing in a step depends on Python's numbers or on tensors that get replaced: its record does all later ones."""
    model, tape = tiny.make(name), Tape()
    growing, static = started(model), started(model, StaticDecoder, room=20)
    for step in range(20):
        tokens = torch.arange(step, step + 6)
        expected = growing(tokens)
        static.tokens.copy_(tokens)
        if step < 2:
            logits = static.step()
        elif step == 2:
            with tape:
                logits = static.step()
        else:
            tape.replay()
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_growing_step_cannot_be_recorded():
    decoder = started(tiny.make("qwen3"))
    with pytest.raises(AssertionError, match="_local_scalar_dense"), Tape():
        decoder(torch.arange(6))


def test_a_model_without_fixed_shapes_is_named():
    model = tiny.make("gemma2")
    model.set_attn_implementation("eager")
    with pytest.raises(ValueError, match="Gemma2ForCausalLM with eager attention: leave cuda_graphs out"):
        generate(model, tiny.prompts(model), SEEDS, Sampling(2), NEVER, cuda_graphs=True)
    model = tiny.make("qwen3")
    decoder = started(model)
    model.config.layer_types = ["chunked_attention", "full_attention"]
    with pytest.raises(ValueError, match="Qwen3ForCausalLM with chunked_attention"):
        StaticDecoder(model, decoder.cache, decoder.mask, decoder.mask, room=1)


@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.no_grad()
def test_under_autocast_the_cache_is_narrow_and_nothing_changes(name, monkeypatch):
    model, logits = tiny.make(name), []
    with torch.autocast("cpu", torch.bfloat16):
        for cache in (transformers.DynamicCache, KVCache):
            monkeypatch.setattr("decode.KVCache", cache)
            decoder = started(model)
            logits.append([decoder(torch.arange(6)) for _ in range(4)])
        static = started(model, StaticDecoder, room=4)
        for ours, theirs in zip(*logits, strict=True):
            assert torch.equal(ours, theirs)
            torch.testing.assert_close(static(torch.arange(6)), ours, rtol=0.1, atol=0.1)
    keys = [layer.keys for layer in decoder.cache.layers if getattr(layer, "keys", None) is not None]
    assert keys and {key.dtype for key in keys} == {torch.bfloat16}


def test_a_rows_memory_is_what_the_config_says():
    model = tiny.make("qwen3_5")
    c = model.config.get_text_config()
    full, linear = c.layer_types.count("full_attention"), c.layer_types.count("linear_attention")
    per_token = full * 2 * c.num_key_value_heads * c.head_dim * 4
    keys, values = (n * d for n, d in (
        (c.linear_num_key_heads, c.linear_key_head_dim), (c.linear_num_value_heads, c.linear_value_head_dim)
    ))  # fmt: skip
    state = linear * 4 * (values * c.linear_key_head_dim + (2 * keys + values) * c.linear_conv_kernel_dim)
    assert full and linear
    for tokens in (100, 16_384):
        row = tokens * per_token + state + 24 * tiny.VOCABULARY
        assert row_bytes(model, tokens) == row
        assert rows_that_fit(model, tokens, 10.5 * row / MEMORY_SHARE) == 10
        assert rows_that_fit(model, tokens, -row) == 1
    with torch.autocast("cpu", torch.bfloat16):
        assert row_bytes(model, 2000) - row_bytes(model, 1000) == 1000 * per_token / 2


@pytest.mark.parametrize("kv_heads", [1, 2, 8])
def test_grouped_attention_is_transformers_attention(kv_heads):
    """One new token against a cache, several or a single query head to a key head, with and without free columns."""
    torch.manual_seed(0)
    module = SimpleNamespace(num_key_value_groups=8 // kv_heads, is_causal=True)
    query, (key, value) = torch.randn(3, 8, 1, 16), torch.randn(2, 3, kv_heads, 20, 16)
    mask = torch.rand(3, 1, 1, 20) < 0.7
    mask[..., 0] = True
    for keep in (mask, torch.zeros(3, 1, 1, 20).masked_fill(~mask, -torch.inf), None):
        both = grouped_attention, sdpa_attention.sdpa_attention_forward
        ours, theirs = (attend(module, query, key, value, keep, scaling=0.3) for attend in both)
        assert ours[0].shape == theirs[0].shape == (3, 1, 8, 16)
        torch.testing.assert_close(ours[0], theirs[0])


def test_no_keys_are_copied_for_a_new_token(monkeypatch):
    copies = []
    monkeypatch.setattr(sdpa_attention, "repeat_kv", lambda x, n: copies.append(x.shape) or x.repeat_interleave(n, 1))
    model = tiny.make("qwen3")
    batch = collate(tiny.prompts(model))
    positions = position_ids(model, batch)
    output = prefill(model, batch, positions)
    before = len(copies)
    Decoder(model, output.past_key_values, batch["attention_mask"], positions)(torch.tensor([5, 6, 7]))
    assert before > 0 and len(copies) == before
