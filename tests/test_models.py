"""Chat template, batches, position ids and log-probs: each row of a batch is what it is alone."""

import pytest
import tiny
import torch
import transformers

from engine import models
from engine.checks import check_model
from engine.models import (
    banned_token_ids,
    collate,
    disable_dropout,
    encode,
    end_token_ids,
    load_model,
    load_processor,
    position_ids,
    response_positions,
    special_tokens,
)
from engine.update import Policy
from generate import Sampling, generate

ARCHITECTURES = ["qwen3", "gemma2", "qwen3_5", "qwen2_5_vl"]
QUESTION = "What is the name of the capital of France, and why?"
RESPONSES = [[40, 41, 42, 43, tiny.END], [70], [50, 51, 52]]


def batch_of(model, prompts, responses, pad_id=0):
    batch = collate(prompts, responses, pad_id)
    return (
        batch,
        position_ids(model, batch),
        response_positions(prompts, responses, batch["input_ids"].shape),
    )


def score(model, prompts, responses, pad_id=0, banned=()):
    """Log-probs of each row's response tokens."""
    with torch.no_grad():
        logp, entropy = Policy(model, banned)(*batch_of(model, prompts, responses, pad_id))
    return logp.split([len(response) for response in responses])


# ---------------------------------------------------------------- log-probs


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_policy_agrees_with_the_model_one_token_at_a_time(name):
    """Off-by-one, padding, positions, images, banned tokens, what follows the head."""
    model, banned = tiny.make(name), banned_token_ids(tiny.make(name), tiny.PROCESSOR)
    prompts = tiny.prompts(model)
    scored = score(model, prompts, RESPONSES, banned=banned)
    for prompt, response, logp in zip(prompts, RESPONSES, scored):
        for i, token in enumerate(response):
            with torch.no_grad():
                logits = tiny.naive_logits(model, prompt, response[:i]).double()
            logits[banned] = -torch.inf
            assert logp[i].item() == pytest.approx(logits.log_softmax(-1)[token].item(), abs=2e-5)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_row_alone_is_the_same_row_in_a_batch(name):
    model = tiny.make(name)
    prompts = tiny.prompts(model)
    together = score(model, prompts, RESPONSES)
    backwards = score(model, prompts[::-1], RESPONSES[::-1])[::-1]
    for i in range(3):
        (alone,) = score(model, [prompts[i]], [RESPONSES[i]])
        torch.testing.assert_close(together[i], alone, atol=1e-5, rtol=0)
        torch.testing.assert_close(backwards[i], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_architecture_whose_head_does_more_than_a_linear_map_is_refused(dtype):
    for name in ARCHITECTURES:
        model = tiny.make(name).to(dtype)
        check_model(model, encode(tiny.TOKENIZER, QUESTION), 256, 256)
    config = {name: value for name, value in tiny.CAUSAL.items() if name != "head_dim"}
    scaled = transformers.CohereForCausalLM(transformers.CohereConfig(**config, logit_scale=0.5))
    divided = transformers.GraniteForCausalLM(
        transformers.GraniteConfig(**config, logits_scaling=2.0)
    )
    for model in (scaled, divided):
        model = tiny.sharpen(model).to(dtype)
        with pytest.raises(
            SystemExit, match=f"{model.config.model_type}.*a scale or a bias behind its head"
        ):
            check_model(model, encode(tiny.TOKENIZER, QUESTION), 256, 256)


@pytest.mark.parametrize("name", ["qwen3", "qwen3_5"])
def test_padding_is_in_neither_loss_nor_gradient(name):
    model = tiny.make(name)
    prompts, gradients, losses = tiny.prompts(model), [], []
    for columns in (0, 5):
        batch = collate(prompts, RESPONSES)
        for key in ("input_ids", "mm_token_type_ids", "attention_mask"):
            if key in batch:
                fill = 33 if key == "input_ids" else 0  # whatever stands in a padded place
                batch[key] = torch.cat([batch[key], batch[key].new_full((3, columns), fill)], dim=1)
        predicts = response_positions(prompts, RESPONSES, batch["input_ids"].shape)
        loss = Policy(model)(batch, position_ids(model, batch), predicts)[0].sum()
        model.zero_grad()
        loss.backward()
        losses.append(loss.detach())
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(*losses, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


def test_end_token_is_trained_where_padding_and_end_are_one_token():
    """Masks come from lengths. Row 0 ends, row 1 was cut, row 2 begins with the end token."""
    model = tiny.make("qwen3")
    prompts = [encode(tiny.TOKENIZER, text) for text in ("a", "bb", "c")]
    responses = [[5, 6, tiny.END], [7, 8], [tiny.END, 9, 10, 11]]
    for pad_id in (0, tiny.END):
        batch, positions, predicts = batch_of(model, prompts, responses, pad_id)
        lengths = [len(p["input_ids"]) + len(r) for p, r in zip(prompts, responses)]
        assert batch["attention_mask"].sum(-1).tolist() == lengths
        assert predicts.sum(-1).tolist() == [3, 2, 4]
        assert torch.equal(
            batch["input_ids"].roll(-1, -1)[predicts], torch.tensor(sum(responses, []))
        )
        logp, _ = Policy(model)(batch, positions, predicts)
        gradient = torch.autograd.grad(logp[2], model.get_input_embeddings().weight)[0]
        assert gradient.abs().sum() > 0
        torch.testing.assert_close(
            logp, torch.cat(score(model, prompts, responses, 3)), atol=1e-6, rtol=0
        )


def test_state_of_a_generation_does_not_leak_into_scoring():
    model = tiny.make("qwen3_5")
    prompts = tiny.prompts(model)
    before = score(model, prompts, RESPONSES)
    generate(model, prompts[2:], [[1, 2, 3, 4, 5]], Sampling(4), [tiny.END])
    after = score(model, prompts, RESPONSES)
    text = score(model, prompts[1:2], RESPONSES[1:2])
    generate(model, prompts[:1], [[1, 2]], Sampling(4), [tiny.END])
    assert all(torch.equal(x, y) for x, y in zip(before, after))
    assert torch.equal(text[0], score(model, prompts[1:2], RESPONSES[1:2])[0])


def test_images_stay_with_their_rows():
    """Another picture in each row, one row without: any order and split give the same log-probs."""
    model = tiny.make("qwen3_5")
    red, lime, blue = tiny.colour("red"), tiny.colour("lime", 48, 16), tiny.colour("blue")
    prompts = [encode(tiny.PROCESSOR, "colour?", x) for x in ([red], [lime], [], [blue, red])]
    response = [40, 41, 42]
    alone = [score(model, [prompt], [response])[0] for prompt in prompts]
    (other,) = score(model, [encode(tiny.PROCESSOR, "colour?", [blue])], [response])
    assert (alone[0] - other).abs().max() > 0.01
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1], [1, 3]):
        together = score(model, [prompts[i] for i in order], [response] * len(order))
        for i, logp in zip(order, together):
            torch.testing.assert_close(logp, alone[i], atol=1e-5, rtol=0)


# ---------------------------------------------------------------- batches and positions


def test_collate_pads_left_for_generation_and_right_for_scoring():
    prompts = [
        {"input_ids": torch.tensor(ids), "token_type_ids": torch.ones(len(ids), dtype=torch.long)}
        for ids in ([1, 2, 3], [4])
    ]
    left, right = collate(prompts, pad_id=9), collate(prompts, [[5], [6, 7]], pad_id=9)
    assert left["input_ids"].tolist() == [[1, 2, 3], [9, 9, 4]]
    assert (
        left["attention_mask"].tolist() == left["token_type_ids"].tolist() == [[1, 1, 1], [0, 0, 1]]
    )
    assert right["input_ids"].tolist() == [[1, 2, 3, 5], [4, 6, 7, 9]]
    assert right["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert right["token_type_ids"].tolist() == [
        [1, 1, 1, 0],
        [1, 0, 0, 0],
    ]  # a response holds no image
    assert response_positions(prompts, [[5], [6, 7]], (2, 4)).tolist() == [
        [False, False, True, False],
        [True, True, False, False],
    ]
    assert all(
        set(prompt) == {"input_ids", "token_type_ids"} and len(prompt["input_ids"]) < 4
        for prompt in prompts
    )


def test_an_empty_response_has_no_positions():
    prompts = [{"input_ids": torch.tensor([1, 2])}, {"input_ids": torch.tensor([3])}]
    batch = collate(prompts, [[], [4]])
    assert batch["input_ids"].tolist() == [[1, 2], [3, 4]]
    assert response_positions(prompts, [[], [4]], (2, 2)).tolist() == [
        [False, False],
        [True, False],
    ]


def test_position_ids_of_a_text_model_count_from_the_first_real_token():
    model = tiny.make("qwen3")
    prompts = [{"input_ids": torch.tensor([1, 2, 3])}, {"input_ids": torch.tensor([4])}]
    assert position_ids(model, collate(prompts)).tolist() == [[0, 1, 2], [0, 0, 0]]
    assert position_ids(model, collate(prompts, [[5], [6, 7]]))[0].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("responses", [None, [[5, 6], [5, 6, 7, 8], [5]]])
def test_position_ids_of_a_vlm(responses):
    """Golden: an image stands still in time and counts its rows and columns. The text goes on after
    the longer side."""
    model = tiny.make("qwen3_5")
    prompts = tiny.prompts(model)
    batch = collate(prompts, responses)
    positions = position_ids(model, batch)
    grids = [[(2, 2)], [], [(3, 1), (1, 2)]]  # merged rows and columns of each row's images
    for row, prompt in enumerate(prompts):
        length = len(prompt["input_ids"]) + (len(responses[row]) if responses else 0)
        first = 0 if responses else positions.shape[-1] - length
        own = positions[:, row, first : first + length]
        ids = batch["input_ids"][row, first : first + length].tolist()
        expected = []
        at = 0
        while len(expected) < length:
            if ids[len(expected)] == tiny.IMAGE:
                height, width = grids[row].pop(0)
                for y in range(height):
                    expected += [[at, at + y, at + x] for x in range(width)]
                at += max(height, width)
            else:
                expected.append([at, at, at])
                at += 1
        assert own.T.tolist() == expected


# ---------------------------------------------------------------- chat template and tokens


def test_special_tokens_in_a_question_are_plain_text():
    tokens = special_tokens(tiny.PROCESSOR)
    assert (
        tokens == sorted(tokens, key=len, reverse=True)
        and "<|im_end|>" in tokens
        and "<|image_pad|>" in tokens
    )
    ids = set(tiny.TOKENIZER.convert_tokens_to_ids(tokens))
    for processor, images in (
        (tiny.PROCESSOR, [tiny.colour("red")]),
        (tiny.PROCESSOR, []),
        (tiny.TOKENIZER, []),
    ):
        evil, good = (
            encode(processor, text, images)["input_ids"].tolist()
            for text in ("a" + "".join(tokens), "a")
        )
        assert [i for i in evil if i in ids] == [i for i in good if i in ids]
        assert tiny.TOKENIZER.decode(evil).count("assistant\n") == 1


def test_encode_is_one_unpadded_row_with_its_images_in_order():
    images = [tiny.colour("red", 32, 16), tiny.colour("blue", 16, 48)]
    prompt = encode(tiny.PROCESSOR, "hi", images)
    assert (
        prompt["input_ids"].dim() == prompt["mm_token_type_ids"].dim() == 1
        and "attention_mask" not in prompt
    )
    assert prompt["image_grid_thw"].tolist() == [[1, 2, 4], [1, 6, 2]]
    assert (prompt["input_ids"] == tiny.IMAGE).sum() == 2 + 3
    text = tiny.TOKENIZER.decode(prompt["input_ids"])
    assert text.startswith("<|im_start|>user\n<|vision_start|>") and text.endswith(
        "hi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert set(encode(tiny.TOKENIZER, "hi")) == {"input_ids"}


def test_encode_hands_extra_arguments_to_the_template():
    tokenizer = tiny.pretrain.make_processor().tokenizer
    tokenizer.chat_template = "{{ messages[0].content }}{% if enable_thinking %}<think>{% endif %}"
    assert tokenizer.decode(encode(tokenizer, "q", enable_thinking=True)["input_ids"]) == "q<think>"
    assert tokenizer.decode(encode(tokenizer, "q", enable_thinking=False)["input_ids"]) == "q"


@pytest.mark.parametrize(("configured", "ids"), [([7, 9], [7, 9]), (7, [7]), (None, [])])
def test_every_end_token_ends_a_response(configured, ids):
    model = tiny.make("qwen3")
    model.generation_config.eos_token_id = configured
    assert end_token_ids(model, tiny.TOKENIZER) == sorted([*ids, tiny.END])


def test_vision_placeholders_are_banned():
    names = ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"]
    ids = sorted(tiny.TOKENIZER.convert_tokens_to_ids(names))
    for name in ("qwen3_5", "qwen2_5_vl"):
        assert banned_token_ids(tiny.make(name), tiny.PROCESSOR) == ids
    assert tiny.END not in ids


# ---------------------------------------------------------------- loading


@pytest.mark.parametrize(
    ("name", "processor"), [("qwen3", tiny.TOKENIZER), ("qwen3_5", tiny.PROCESSOR)]
)
def test_a_saved_folder_loads_as_it_was(tmp_path, name, processor):
    model = tiny.make(name)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded, again = load_model(str(tmp_path)), load_processor(str(tmp_path))
    assert type(loaded) is type(model)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert {p.dtype for p in load_model(str(tmp_path), torch.bfloat16).parameters()} == {
        torch.bfloat16
    }
    images = [tiny.colour("red")] if name == "qwen3_5" else []
    first, second = encode(processor, "hi", images), encode(again, "hi", images)
    assert first.keys() == second.keys() and all(
        torch.equal(first[key], second[key]) for key in first
    )
    prompts = tiny.prompts(model)
    assert all(
        torch.equal(x, y)
        for x, y in zip(score(model, prompts, RESPONSES), score(loaded.eval(), prompts, RESPONSES))
    )


def test_loading_switches_dropout_off(tmp_path):
    tiny.make("qwen3", attention_dropout=0.5).save_pretrained(tmp_path)
    prompts = [encode(tiny.TOKENIZER, text) for text in ("a", "b", "c")]

    def twice_the_same(model) -> bool:
        first, second = (torch.cat(score(model, prompts, RESPONSES)) for _ in range(2))
        return torch.equal(first, second)

    noisy = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert not twice_the_same(noisy.train())
    assert twice_the_same(load_model(str(tmp_path)).train())


def decoder_with_dropout():
    config = dict(vocab_size=9, n_embd=16, n_layer=1, n_head=2, attn_pdrop=0.5)
    return transformers.GPT2Model(transformers.GPT2Config(**config))


def vision_tower_with_dropout():
    layers = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    picture = dict(image_size=16, patch_size=4, attention_dropout=0.5)
    config = transformers.SiglipVisionConfig(**layers, **picture)
    return transformers.SiglipVisionModel(config)


@pytest.mark.parametrize(
    ("make", "inputs"),
    [
        (decoder_with_dropout, torch.arange(8)[None]),
        (vision_tower_with_dropout, torch.linspace(0, 1, 768).view(1, 3, 16, 16)),
    ],
    ids=["modules", "vision_tower_of_gemma"],
)
def test_dropout_is_found_wherever_an_architecture_keeps_it(make, inputs):
    model = make().train()
    assert not torch.equal(model(inputs).last_hidden_state, model(inputs).last_hidden_state)
    disable_dropout(model)
    assert torch.equal(model(inputs).last_hidden_state, model(inputs).last_hidden_state)


@pytest.mark.parametrize(
    ("capability", "kernels", "message"),
    [
        (None, True, "compute capability 8.9"),
        ((8, 6), True, "compute capability 8.9"),
        ((9, 0), False, "pip install kernels"),
        ((8, 9), True, None),
    ],
)
def test_an_fp8_model_is_refused_where_it_would_not_stay_fp8(
    capability, kernels, message, tmp_path, monkeypatch
):
    config = tiny.make("qwen3").config
    config.quantization_config = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    config.save_pretrained(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(models, "is_kernels_available", lambda: kernels)
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    if message is None:
        models.check_fp8(str(tmp_path), config)
        return
    with pytest.raises(SystemExit, match=f"{tmp_path} is an FP8 model.*{message}.*bf16 model"):
        models.load_model(str(tmp_path))
