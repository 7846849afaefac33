"""checks.py and what loading refuses: models that sample and score differently, data nobody sees."""

import json

import pytest
import tiny
import torch
import transformers
from accelerate import Accelerator
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    FalconMambaConfig,
    Llama4TextConfig,
    LlamaConfig,
    Mamba2Config,
    MambaConfig,
    MiniMaxConfig,
    MixtralConfig,
    Phi3Config,
    PhimoeConfig,
    PreTrainedTokenizerFast,
)

from engine import models
from engine.checks import check_model, check_sight, check_student
from engine.images import bound_pixels
from engine.models import Encoder, disable_dropout, encode, load_processor, special_tokens
from engine.questions import Question
from engine.update import make_accelerator
from generate import Actor

PLAIN = {name: value for name, value in tiny.CAUSAL.items() if name != "head_dim"}
STATES = dict(
    vocab_size=tiny.VOCABULARY,
    hidden_size=32,
    num_hidden_layers=2,
    state_size=8,
    eos_token_id=tiny.END,
    pad_token_id=0,
    bos_token_id=0,
)
FACTORS = dict(short_factor=[1.0] * 4, long_factor=[4.0] * 4)
LONGROPE = dict(
    rope_parameters=dict(rope_type="longrope", rope_theta=1e4, **FACTORS),
    original_max_position_embeddings=64,
)
DYNAMIC = dict(rope_type="dynamic", factor=4.0, rope_theta=1e4)
EXPERTS = dict(num_local_experts=4, num_experts_per_tok=2)
SHORT = PLAIN | dict(max_position_embeddings=64)


def model_of(config, factor: float = 8.0):
    torch.manual_seed(0)
    model = tiny.sharpen(transformers.AutoModelForCausalLM.from_config(config), factor)
    disable_dropout(model)
    return model.train()


def prompt_of(processor=tiny.TOKENIZER):
    return encode(processor, "What is the name of the capital of France, and why?")


# ---------------------------------------------------------------- sampled as it is scored


@pytest.mark.parametrize("name", ["qwen3", "gemma2", "qwen3_5", "qwen2_5_vl"])
@pytest.mark.parametrize("bf16", [False, True])
def test_architectures_that_sample_as_they_score_pass(name, bf16):
    model = tiny.make(name).train()
    disable_dropout(model)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        check_model(model, prompt_of(), 256, 256)
    assert model.training


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        (lambda: Phi3Config(**PLAIN, **LONGROPE), "beside a longer row"),
        (lambda: LlamaConfig(**SHORT, rope_parameters=DYNAMIC), "beside a longer row"),
        (lambda: PhimoeConfig(**PLAIN, **EXPERTS), "in train mode, each time"),
        (lambda: MambaConfig(**STATES), "in sampling and in scoring"),
        (
            lambda: Mamba2Config(**STATES, num_heads=8, head_dim=8, n_groups=1, chunk_size=16),
            "in sampling and in scoring",
        ),
        (lambda: FalconMambaConfig(**STATES), "in sampling and in scoring"),
        (
            lambda: Llama4TextConfig(**tiny.CAUSAL, num_local_experts=2, intermediate_size_mlp=64),
            "cannot be sampled and scored here",
        ),
        (lambda: MiniMaxConfig(**tiny.CAUSAL, **EXPERTS), "cannot be sampled and scored here"),
    ],
    ids=["longrope", "dynamic", "phimoe", "mamba", "mamba2", "falcon_mamba", "llama4", "minimax"],
)
def test_a_model_that_is_scored_otherwise_than_sampled_is_refused_by_name(config, problem):
    model = model_of(config())
    kind = model.config.model_type
    with pytest.raises(SystemExit, match=rf"the model \({kind}\).*{problem}"):
        check_model(model, prompt_of(), 256, 256)


def test_a_switch_that_no_row_reaches_is_no_reason_to_refuse(capsys):
    model = model_of(Phi3Config(**PLAIN, **LONGROPE))
    check_model(model, prompt_of(), 32, 32)
    assert "was made for" not in capsys.readouterr().out
    with pytest.raises(SystemExit, match="beside a longer row"):
        check_model(model, prompt_of(), 32, 33)


def test_noise_of_a_router_is_switched_off_like_dropout():
    config = MixtralConfig(**PLAIN, **EXPERTS, router_jitter_noise=0.3)
    noisy = tiny.sharpen(transformers.AutoModelForCausalLM.from_config(config), 8.0).train()
    with pytest.raises(SystemExit, match="in train mode, each time"):
        check_model(noisy, prompt_of(), 256, 256)
    check_model(model_of(config), prompt_of(), 256, 256)


def test_a_response_beyond_the_models_window_is_announced(capsys):
    model = model_of(LlamaConfig(**SHORT))
    check_model(model, prompt_of(), 256, 63)
    assert "was made for" not in capsys.readouterr().out
    check_model(model, prompt_of(), 256, 64)
    assert "was made for 64 tokens: lower --max_response_tokens" in capsys.readouterr().out


# ---------------------------------------------------------------- what cannot be loaded


@pytest.fixture
def folder(tmp_path):
    tiny.make("qwen3").save_pretrained(tmp_path)
    tiny.TOKENIZER.save_pretrained(tmp_path)
    return tmp_path


def load(folder):
    return Actor.load(str(folder), Accelerator(cpu=True), torch.float32, (1, 10_000))


def test_weights_that_are_cut_misshapen_or_missing_are_a_sentence(folder):
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    assert load(folder).model.config.model_type == "qwen3"
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SystemExit, match="cannot be loaded: .*incomplete"):
        load(folder)
    weights.write_bytes(whole)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 48}))
    with pytest.raises(SystemExit, match="cannot be loaded"):
        load(folder)
    deeper = {"num_hidden_layers": 3, "layer_types": ["full_attention"] * 3}
    (folder / "config.json").write_text(json.dumps(config | deeper))
    with pytest.raises(SystemExit, match=r"11 weights are missing, model.layers.2.*is it whole"):
        load(folder)


def test_gguf_is_refused_by_name(folder):
    for kept in folder.glob("*.safetensors"):
        (folder / "model.gguf").write_bytes(kept.read_bytes())
    assert load_processor(str(folder))  # a folder of both kinds
    (folder / "config.json").unlink()
    for path in (folder, folder / "model.gguf"):
        with pytest.raises(SystemExit, match="GGUF is for serving"):
            load(path)


def test_what_is_named_in_place_of_a_model_is_said(folder):
    (folder / "model").mkdir()
    (folder / "config.json").rename(folder / "model" / "config.json")
    for path, sentence in (
        (folder, f"it is the folder of a run: the model is {folder}/model"),
        (folder / "nothing", "there is no such folder"),
    ):
        with pytest.raises(SystemExit, match=sentence):
            load(path)


@pytest.mark.parametrize("method", ["bitsandbytes", "awq", "gptq", "compressed-tensors"])
def test_a_quantised_student_is_refused(tmp_path, method):
    config = tiny.make("qwen3").config
    config.save_pretrained(tmp_path)
    check_student(str(tmp_path))
    config.quantization_config = {"quant_method": method, "bits": 4}
    config.save_pretrained(tmp_path)
    with pytest.raises(SystemExit, match=rf"is quantised \({method}\): name the model"):
        check_student(str(tmp_path))


def test_fp16_is_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    with pytest.raises(SystemExit, match="fp16 is not known here: launch with bf16 or no"):
        make_accelerator()


# ---------------------------------------------------------------- what cannot be seen


def test_questions_with_images_need_models_that_see():
    text = Question("t", "q?", (), "1")
    picture = Question("p", "q?", (tiny.colour("red"),), "1")
    check_sight("--student s", tiny.TOKENIZER, [text])
    check_sight("--student s", tiny.PROCESSOR, [text, picture])
    with pytest.raises(SystemExit, match="--teacher t reads no images, and 1 questions have some"):
        check_sight("--teacher t", tiny.TOKENIZER, [text, picture])


def test_an_image_processor_of_another_family_is_refused():
    class Processor:
        image_processor = transformers.CLIPImageProcessor()

    with pytest.raises(ValueError, match="its CLIPImageProcessor.* is not known.*Qwen family"):
        bound_pixels(Processor)


# ---------------------------------------------------------------- prompts


def word_tokenizer(*added: str, pad: str) -> PreTrainedTokenizerFast:
    words = {word: i for i, word in enumerate(["5", "!", "/", "3", "<end>", "[", "]"])}
    backend = Tokenizer(WordLevel(words, unk_token="!"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>", pad_token=pad)
    tokenizer.add_special_tokens({"additional_special_tokens": list(added)})
    tokenizer.chat_template = "{{ messages[0].content }}"
    return tokenizer


def test_an_ordinary_character_as_pad_token_stays_in_the_question():
    tokenizer = word_tokenizer("<im>", "word", pad="!")
    assert special_tokens(tokenizer) == ["<end>", "<im>"]
    said = models.break_prompt(tokenizer, "5! / 3! word <im>", "", ())[0]
    assert said == "5! / 3! word < im>"


def test_thousands_of_added_tokens_are_read_once(monkeypatch):
    tokenizer = word_tokenizer(*(f"<extra_{i}>" for i in range(6400)), pad="<end>")
    reads = []
    real = PreTrainedTokenizerFast.added_tokens_decoder

    def counted(self):
        reads.append(1)
        return real.fget(self)

    monkeypatch.setattr(PreTrainedTokenizerFast, "added_tokens_decoder", property(counted))
    encoder = Encoder(tokenizer)
    for i in range(20):
        encoder.length(f"{i} <extra_7>", Question(str(i), "q?", (), "1"))
    assert len(reads) == 1


REFUSES = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
)
FORGETS = (
    "{% for m in messages %}{% if m.role == 'user' %}[user]{{ m.content }}{% endif %}{% endfor %}"
)
KEEPS = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"


@pytest.mark.parametrize("template", [REFUSES, FORGETS])
def test_without_a_system_role_its_text_goes_into_the_user_turn(template):
    tokenizer = tiny.pretrain.make_processor().tokenizer
    question = Question("u", "q?", (), "1", system="Be brief.")
    tokenizer.chat_template = template
    encoder = Encoder(tokenizer)
    assert tokenizer.decode(encoder("q?", question)["input_ids"]) == "[user]Be brief.\n\nq?"
    assert encoder.length("q?", question) == len(encoder("q?", question)["input_ids"])
    tokenizer = tiny.pretrain.make_processor().tokenizer
    tokenizer.chat_template = KEEPS
    assert tokenizer.decode(Encoder(tokenizer)("q?", question)["input_ids"]) == (
        "[system]Be brief.[user]q?"
    )


def test_turns_that_a_template_refuses_are_named_before_training():
    tokenizer = tiny.pretrain.make_processor().tokenizer
    tokenizer.chat_template = (
        "{% if messages[0].role != 'user' %}{{ raise_exception('user first') }}{% endif %}"
    )
    question = Question("u7", "q?", (), "1", turns=(("assistant", "Hello"),))
    with pytest.raises(SystemExit, match="question u7: the chat template refuses.*user first"):
        Encoder(tokenizer).length("q?", question)
