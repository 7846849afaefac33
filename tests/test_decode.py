"""Decoding with room in the cache, prefills in pieces: as with transformers' own cache and all prompts at once."""

from types import SimpleNamespace

import pytest
import tiny
import torch
import transformers
from transformers.cache_utils import DynamicLayer
from transformers.integrations import sdpa_attention

from bench.gpu import Waits
from engine import decode
from engine.decode import Decoder, KVCache, RoomyLayer, decoding, grouped_attention, prefill
from engine.models import banned_token_ids
from generate import Sampling, generate

NEVER = [tiny.VOCABULARY]  # an end token that is never sampled
ARCHITECTURES = ["qwen3", "gemma2", "qwen3_5", "qwen2_5_vl"]
SEEDS = [[1, 2, 3], [4, 5, 6, 7], [8]]
CPU = torch.device("cpu")


def started(model, room: int = 11) -> Decoder:
    """A decoder behind a prefill, with two rollouts of each prompt."""
    _, decoder = prefill(model, tiny.prompts(model), CPU, room)
    decoder.keep(torch.tensor([0, 0, 1, 1, 2, 2]))
    return decoder


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("columns", [1, 3, 1024])
def test_room_in_the_cache_changes_no_rollout(name, columns, monkeypatch):
    """Caches that are full after every token, now and then, or never; rows that end early, and rows that never do."""
    model = tiny.make(name)
    prompts, banned = tiny.prompts(model), banned_token_ids(model, tiny.PROCESSOR)
    for sampling in (Sampling(24), Sampling(24, temperature=0.7, presence_penalty=3.0)):
        for ends in (NEVER, list(range(0, tiny.VOCABULARY, 12))):
            with monkeypatch.context() as patch:
                patch.setattr(decode, "RoomyLayer", lambda room: DynamicLayer())  # transformers' own
                expected = generate(model, prompts, SEEDS, sampling, ends, banned)
            monkeypatch.setattr(decode, "CACHE_STEP", columns)
            assert generate(model, prompts, SEEDS, sampling, ends, banned) == expected


@torch.no_grad()
def test_the_cache_moves_only_when_its_room_is_used_up(monkeypatch):
    monkeypatch.setattr(decode, "CACHE_STEP", 4)
    decoder, places = started(tiny.make("qwen3"), room=10), []
    for step in range(10):
        decoder(torch.arange(step, step + 6))
        places.append(decoder.cache.layers[0].held_keys.data_ptr())
    moves = [step for step in range(1, 10) if places[step] != places[step - 1]]
    assert moves == [4, 8] and type(decoder.cache.layers[0]) is RoomyLayer
    assert decoder.cache.layers[0].free < 4  # no more room than will be used, but for one step


@pytest.mark.parametrize(("room", "step"), [(1, 1), (10, 10), (1024, 1024), (1025, 513), (12_288, 1024)])
def test_the_cache_grows_in_equal_steps(room, step):
    assert RoomyLayer(room).step == step and step * -(-room // step) - room < 2


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("budget", [1, 60, 10_000])
@torch.no_grad()
def test_a_prefill_in_pieces_is_the_prefill_of_all(name, budget, monkeypatch):
    model = tiny.make(name)
    prompts, calls = tiny.prompts(model), []
    prompts += prompts[:1]  # two of one length
    prompts.sort(key=lambda prompt: len(prompt["input_ids"]))
    results, forward = [], model.forward
    for tokens in (10_000, budget):
        monkeypatch.setattr(decode, "PREFILL_TOKENS", tokens)
        calls.clear()
        with monkeypatch.context() as patch:
            patch.setattr(model, "forward", lambda **kw: calls.append(kw["input_ids"].shape) or forward(**kw))
            logits, decoder = prefill(model, prompts, CPU, room=9)  # more than gemma's sliding window of 8
        decoder.keep(torch.tensor([0, 1, 1, 2, 3]))
        results.append([logits, *(decoder(torch.arange(step, step + 5)) for step in range(9))])
    assert all(rows * width <= budget or rows == 1 for rows, width in calls)
    assert len(calls) > 1 or budget == 10_000
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_prompts_of_one_length_need_no_mask(monkeypatch):
    """A mask has L x L entries for each row."""
    model, masks = tiny.make("qwen3"), []
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda **kw: masks.append(kw.get("attention_mask")) or forward(**kw))
    prompt, other, _ = tiny.prompts(model)
    prefill(model, [prompt, prompt], CPU)
    prefill(model, [other], CPU)
    prefill(model, [prompt, other], CPU)
    assert [mask is None for mask in masks] == [True, True, False]


@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.no_grad()
def test_under_autocast_the_cache_is_narrow_and_nothing_changes(name, monkeypatch):
    model, logits = tiny.make(name), []
    own = SimpleNamespace(update=KVCache.update)
    with torch.autocast("cpu", torch.bfloat16):
        for cache in (transformers.DynamicCache, own):
            monkeypatch.setattr(decode.KVCache, "update", cache.update)
            decoder = started(model)
            logits.append([decoder(torch.arange(6)) for _ in range(4)])
        for ours, theirs in zip(*logits, strict=True):
            assert torch.equal(ours, theirs)
    keys = [layer.keys for layer in decoder.cache.layers if getattr(layer, "keys", None) is not None]
    assert keys and {key.dtype for key in keys} == {torch.bfloat16}


def test_sliding_windows_and_linear_attention_keep_their_own_cache():
    kinds = {name: {type(layer) for layer in started(tiny.make(name)).cache.layers} for name in ARCHITECTURES}
    assert kinds["qwen3"] == {RoomyLayer} and all(DynamicLayer not in found for found in kinds.values())
    assert len(kinds["gemma2"]) == len(kinds["qwen3_5"]) == 2


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


@torch.no_grad()
def test_no_keys_are_copied_for_a_new_token(monkeypatch):
    copies = []
    monkeypatch.setattr(sdpa_attention, "repeat_kv", lambda x, n: copies.append(x.shape) or x.repeat_interleave(n, 1))
    model = tiny.make("qwen3")
    _, decoder = prefill(model, tiny.prompts(model), CPU, room=1)
    before = len(copies)
    with decoding(model):
        decoder(torch.tensor([5, 6, 7]))
    assert before > 0 and len(copies) == before


@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.no_grad()
def test_a_4d_mask_gives_the_same_logits_and_nobody_waits_for_a_value(name):
    """On a GPU the host would wait. Models with sliding windows keep the 2D mask."""
    results, waits = [], []
    for four in (False, True):
        model = tiny.make(name)
        decoder = started(model)
        assert decoder.takes_4d == (name != "gemma2") and any(decoder.first)
        decoder.takes_4d &= four
        with decoding(model):
            logits = [decoder(torch.arange(6))]
            with Waits() as watched:
                logits.append(decoder(torch.arange(6)))
        results.append(torch.stack(logits))
        waits.append(watched.names)
    assert torch.equal(*results)
    assert waits[0] and (not waits[1] or name == "gemma2")


@torch.no_grad()
def test_rows_that_join_go_on_as_if_they_had_been_alone():
    """A batch that has decoded for a while, and longer and shorter prompts that join it."""
    for name in ARCHITECTURES:
        model = tiny.make(name)
        prompts = tiny.prompts(model)
        with decoding(model):
            alone = []
            for i, prompt in enumerate(prompts):
                _, decoder = prefill(model, [prompt], CPU)
                alone.append([decoder(torch.tensor([step + i])) for step in range(14)])
            _, decoder = prefill(model, prompts[:1], CPU)
            for step in range(9):  # more than gemma's window
                torch.testing.assert_close(decoder(torch.tensor([step])), alone[0][step], rtol=1e-3, atol=1e-3)
            _, others = prefill(model, prompts[1:], CPU)
            decoder.join(others)
            for step in range(5):
                logits = decoder(torch.tensor([9 + step, 1 + step, 2 + step]))
                expected = torch.cat([alone[0][9 + step], alone[1][step], alone[2][step]])
                torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-3)
            longest = max(range(3), key=lambda row: -decoder.first[row])
            kept = [row for row in range(3) if row != longest]
            decoder.keep(torch.tensor(kept))
            assert min(decoder.first) == 0 and decoder.columns == max(decoder.columns - x for x in decoder.first)
