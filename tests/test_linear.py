"""Linear attention's lighter rules beside transformers' own."""

import copy

import pytest
import tiny
import torch
from transformers.models.qwen3_5 import modeling_qwen3_5 as reference

from engine.linear import lighten, one_token
from engine.models import collate, position_ids
from generate import Sampling, generate

NEVER = [tiny.VOCABULARY]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("normed", [True, False])
def test_one_token_is_the_references_step(dtype, normed):
    torch.manual_seed(0)
    ours = theirs = torch.randn(3, 4, 16, 8)
    ours = ours.clone()
    place = ours.data_ptr()
    for _ in range(20):
        query, key = (torch.randn(3, 1, 4, 16, dtype=dtype) for _ in "qk")
        value = torch.randn(3, 1, 4, 8, dtype=dtype)
        decay, beta = -torch.rand(3, 1, 4), torch.rand(3, 1, 4).to(dtype)
        given = dict(g=decay, beta=beta, use_qk_l2norm_in_kernel=normed, output_final_state=True)
        expected, theirs = reference.torch_recurrent_gated_delta_rule(
            query, key * 0.1, value, initial_state=theirs, **given
        )
        found, ours = one_token(query, key * 0.1, value, initial_state=ours, **given)
        assert found.shape == expected.shape and found.dtype == expected.dtype
        tolerance = 1e-5 if dtype == torch.float32 else 1e-2
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert ours.data_ptr() == place  # in place


@pytest.fixture
def pair() -> tuple:
    """The same model as transformers makes it, and lightened."""
    model = tiny.make("qwen3_5")
    light = copy.deepcopy(model)
    lighten(light)
    return model, light


def test_rollouts_of_a_lightened_model_are_the_same(pair):
    model, light = pair
    called = []
    for layer in light.modules():
        if isinstance(layer, reference.Qwen3_5GatedDeltaNet):
            layer.register_forward_hook(lambda module, *_: called.append(module.forward.__func__.__globals__))
    seeds = [[1, 2, 3], [4, 5], [6]]
    given = (tiny.prompts(model), seeds, Sampling(60), NEVER)
    assert generate(light, *given) == generate(model, *given)
    assert called and all(names["torch_recurrent_gated_delta_rule"] is one_token for names in called)
    assert reference.torch_recurrent_gated_delta_rule is not one_token  # the library is as it was


@pytest.mark.parametrize("training", [False, True])
def test_scoring_of_a_lightened_model_is_the_same_and_without_casts_under_autocast(pair, training):
    results, casts = [], []
    for model in pair:
        if training:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train(training)
        batch = collate(tiny.prompts(model), [[5, 6, 7]] * 3)
        positions = position_ids(model, batch)
        logits = model(**batch, position_ids=positions, use_cache=False).logits
        logits.float().log_softmax(-1)[..., 5].sum().backward()
        results.append([logits.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
        with torch.autocast("cpu", torch.bfloat16), torch.profiler.profile() as profile:
            model(**batch, position_ids=positions, use_cache=False)
        casts.append(sum(event.count for event in profile.key_averages() if event.key == "aten::copy_"))
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)
    assert casts[1] < casts[0]


def test_models_without_linear_attention_are_left_alone():
    model = tiny.make("qwen3")
    lighten(model)
    assert not any("forward" in vars(module) for module in model.modules())
