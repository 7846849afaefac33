"""Sampling: exactly the distribution that was asked for, and the same rollouts however they are computed."""

from types import SimpleNamespace

import pytest
import tiny
import torch
import transformers
from transformers import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from engine.decode import Decoder
from engine.models import banned_token_ids, collate, position_ids, response_positions
from engine.questions import Question
from engine.sampling import RANDOM_BLOCK, UniformStreams, sample_tokens
from engine.update import Policy
from generate import (
    Actor,
    Request,
    Sampling,
    generate,
    seed_of,
    until_end,
)
from prompts import plain_prompt

NEVER = [tiny.VOCABULARY]  # an end token that is never sampled
GREEDY = Sampling(max_new_tokens=24, temperature=0)
LONG = Sampling(max_new_tokens=12)


# ---------------------------------------------------------------- one token


def filtered(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """The distribution by transformers' own filters, in float64."""
    scores = logits.double()[None]
    for wrong, warper in (
        (sampling.temperature == 1, TemperatureLogitsWarper(sampling.temperature)),
        (not sampling.top_k, TopKLogitsWarper(sampling.top_k or 1)),
        (sampling.top_p == 1, TopPLogitsWarper(sampling.top_p)),
        (not sampling.min_p, MinPLogitsWarper(sampling.min_p)),
    ):
        scores = scores if wrong else warper(None, scores)
    return scores.softmax(-1)[0]


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=0.6),
        Sampling(top_k=5),
        Sampling(top_k=500),
        Sampling(top_p=0.7),
        Sampling(top_p=1e-6),
        Sampling(min_p=0.2),
        Sampling(temperature=0.6, top_k=20, top_p=0.95),  # evaluation
        Sampling(temperature=2.0, top_k=8, top_p=0.8, min_p=0.05),
    ],
)
def test_evenly_spaced_uniforms_give_the_exact_distribution(sampling):
    logits = torch.randn(40, generator=torch.Generator().manual_seed(1)) * 2
    logits[[0, 7, 39]] = -torch.inf  # banned, also at both ends
    expected = filtered(logits, sampling)
    n = 20_000
    uniform = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    counts = sample_tokens(logits.expand(n, -1), uniform, sampling).bincount(minlength=40)
    assert (counts - n * expected).abs().max() < 1.1
    assert (counts[expected == 0] == 0).all()


@pytest.mark.parametrize("uniform", [0.0, 1e-300, 0.5, 1 - 2**-24, 1 - 2**-53, 1.0])
def test_a_token_of_probability_zero_is_never_drawn(uniform):
    logits = torch.full((1, 6), -torch.inf)
    logits[0, 2:4] = torch.tensor([0.0, -1000.0])  # the second underflows to 0
    draw = torch.tensor([uniform], dtype=torch.float64)
    assert sample_tokens(logits, draw, Sampling()).item() == 2
    assert sample_tokens(logits.bfloat16(), draw.float().clamp(max=1 - 2**-24), Sampling(top_p=0.9)).item() == 2


@pytest.mark.parametrize("vocabulary", [40, 512, 700, 1024, 5000])
def test_a_token_picked_by_blocks_is_the_token_of_one_sum_over_all(vocabulary):
    """Against one running sum in float64, with whole blocks and parts of blocks without any probability."""
    generator = torch.Generator().manual_seed(vocabulary)
    logits = torch.randn(300, vocabulary, generator=generator) * 4
    logits[:, torch.rand(vocabulary, generator=generator) < 0.2] = -torch.inf
    logits[: 100, : min(600, vocabulary - 20)] = -torch.inf  # the first block and more
    logits[100:200, 20:] = -torch.inf  # all but the start
    uniform = torch.rand(300, generator=generator, dtype=torch.float64)
    uniform[::7] = 0.0
    uniform[1::7] = 1 - 2**-53
    probs = logits.softmax(-1, dtype=torch.float32)
    cdf = probs.cumsum(-1, dtype=torch.float64)
    target = uniform.clamp(max=1 - 1e-12).unsqueeze(-1) * cdf[:, -1:]
    expected = torch.searchsorted(cdf, target, right=True).squeeze(-1)
    found = sample_tokens(logits, uniform, Sampling())
    assert (found == expected).sum() >= 299  # a sum of a block in fp32 may move one boundary
    assert (probs.gather(1, found.unsqueeze(1)) > 0).all()


def test_greedy_takes_the_largest_whatever_the_uniform():
    logits = torch.tensor([[0.0, 3.0, 2.9], [5.0, 3.0, 2.9]])
    assert sample_tokens(logits, torch.tensor([0.999, 0.999]), Sampling(temperature=0)).tolist() == [1, 0]


def test_streams_do_not_repeat_and_follow_their_row():
    expected = []
    for seed in (11, 12, 13):
        generator = torch.Generator().manual_seed(seed)
        expected.append(torch.rand(3 * RANDOM_BLOCK, generator=generator, dtype=torch.float64))
    streams = UniformStreams([11, 12], torch.device("cpu"))
    for i in range(2 * RANDOM_BLOCK + 20):
        rows = [0, 1] if i <= 70 else [0] if i <= 80 else [0, 2]
        starts = {0: 0, 1: 0, 2: 81}  # the third joins later, at the start of its stream
        assert streams.next().tolist() == [expected[row][i - starts[row]].item() for row in rows]
        if i == 70:
            streams.keep(torch.tensor([0]))
        if i == 80:
            streams.add([13])


def test_seeds_are_stable_and_all_different():
    assert seed_of(0, 1, "plain", "q/7", 2) == seed_of(*(0, 1), "plain", "q/7", 2) != seed_of(0, 1, "plain", "q/7", "2")
    keys = [
        (s, t, k, u, j)
        for s in (0, 1)
        for t in (0, 1, 10)
        for k in ("plain", "bcq")
        for u in ("1", "11")
        for j in range(12)
    ]
    assert len({seed_of(*key) for key in keys}) == len(keys)
    assert all(0 <= seed_of(*key) < 2**63 for key in keys)
    assert seed_of(0, 3, "plain", "a", 7) == 7423634979011349761  # the same on every machine and in every run


# ---------------------------------------------------------------- whole rollouts


def naive(model, prompt, seed, sampling, end_ids, banned=()):
    """One rollout by one full forward pass per token: no cache, no batch, the same uniform numbers."""
    generator = torch.Generator().manual_seed(seed)
    uniforms, tokens = [], []
    while len(tokens) < sampling.max_new_tokens and not (tokens and tokens[-1] in end_ids):
        if len(tokens) % RANDOM_BLOCK == 0:
            uniforms += torch.rand(RANDOM_BLOCK, generator=generator, dtype=torch.float64).tolist()
        logits = tiny.naive_logits(model, prompt, tokens)
        logits[list(banned)] = -torch.inf
        logits[sorted(set(tokens))] -= sampling.presence_penalty
        draw = torch.tensor([uniforms[len(tokens)]], dtype=torch.float64)
        tokens.append(sample_tokens(logits[None], draw, sampling).item())
    return tokens


@pytest.mark.parametrize("name", ["qwen3", "gemma2", "qwen3_5", "qwen2_5_vl"])
@pytest.mark.parametrize(
    "sampling", [Sampling(20), Sampling(20, temperature=0.7, top_k=30, top_p=0.9, presence_penalty=3.0)]
)
@torch.no_grad()
def test_rollouts_equal_one_full_pass_per_token(name, sampling):
    """Cache, positions, left padding, dropped rows, random streams, bans and penalty. Several end tokens, so that rows
    end at different times; nothing follows an end token."""
    model = tiny.make(name)
    prompts, ends = tiny.prompts(model), list(range(0, tiny.VOCABULARY, 12))
    banned = [*banned_token_ids(model, tiny.PROCESSOR), 40, 41]
    seeds = [[1, 2, 3], [4, 5, 6, 7], [8]]
    groups = generate(model, prompts, seeds, sampling, ends, banned)
    assert [len(group) for group in groups] == [3, 4, 1]
    lengths = {len(tokens) for group in groups for tokens in group}
    assert len(lengths) > 3
    for prompt, group, row in zip(prompts, groups, seeds):
        for tokens, seed in zip(group, row):
            assert tokens == naive(model, prompt, seed, sampling, ends, banned)
            assert not set(tokens[:-1]) & set(ends) and not set(tokens) & set(banned)
            assert tokens[-1] in ends or len(tokens) == sampling.max_new_tokens


@pytest.mark.parametrize("name", ["qwen3", "qwen3_5"])
def test_greedy_is_transformers_greedy(name):
    model = tiny.make(name)
    for prompt in tiny.prompts(model):
        inputs = {key: value[None] if value.dim() == 1 else value for key, value in prompt.items()}
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        theirs = model.generate(**inputs, do_sample=False, max_new_tokens=24, eos_token_id=NEVER[0])
        ours = generate(model, [prompt], [[0, 1]], GREEDY, NEVER)[0]
        assert ours[0] == ours[1] == theirs[0, len(prompt["input_ids"]) :].tolist()


@pytest.mark.parametrize("name", ["qwen3", "qwen3_5"])
def test_rollouts_do_not_depend_on_the_batch(name):
    model = tiny.make(name)
    prompts, ends = tiny.prompts(model), list(range(0, tiny.VOCABULARY, 9))
    seeds = [[10 * i + j for j in range(6)] for i in range(3)]
    together = generate(model, prompts, seeds, LONG, ends)
    assert generate(model, prompts[::-1], seeds[::-1], LONG, ends)[::-1] == together
    for prompt, row, group in zip(prompts, seeds, together):
        assert [generate(model, [prompt], [[seed]], LONG, ends)[0][0] for seed in row] == group
    endless = generate(model, prompts, seeds, LONG, NEVER)
    assert len({tuple(tokens) for group in endless for tokens in group}) == 18  # one stream each


@pytest.mark.parametrize("name", ["qwen3", "gemma2", "qwen3_5", "qwen2_5_vl"])
@pytest.mark.parametrize(
    ("sampling", "every"), [(Sampling(40), 1), (Sampling(40, temperature=0.7, presence_penalty=3.0), 5)]
)
def test_a_pool_of_any_size_draws_the_same_rollouts(name, sampling, every, monkeypatch):
    """Rows join and leave: columns, positions, masks, windows, states and random streams stay each row's own."""
    model, ends = tiny.make(name), list(range(0, tiny.VOCABULARY, 20))
    prompts = tiny.prompts(model) * 2
    seeds = [[10 * i + j for j in range(6)] for i in range(len(prompts))]
    alone = [[generate(model, [p], [[seed]], sampling, ends)[0][0] for seed in row] for p, row in zip(prompts, seeds)]
    lengths = [len(tokens) for group in alone for tokens in group]
    assert max(lengths) > 3 * min(lengths) and sampling.max_new_tokens in lengths
    monkeypatch.setattr("generate.LOOK_EVERY", {"cpu": every})
    for rows in (3, 7, 32):
        assert generate(model, prompts, seeds, sampling, ends, rows=rows) == alone


def test_a_pool_makes_few_steps_and_holds_no_column_that_no_row_uses(monkeypatch):
    """192 rollouts of unequal lengths, 32 at a time: hardly more steps than 192 / 32 times the mean length."""
    model, ends = tiny.make("qwen3"), list(range(0, tiny.VOCABULARY, 30))
    prompts, seeds = tiny.prompts(model), [[100 * i + j for j in range(64)] for i in range(3)]
    steps, forward = [], Decoder.__call__

    def counted(decoder, tokens):
        steps.append((decoder.columns - min(decoder.first), decoder.columns, len(tokens)))
        return forward(decoder, tokens)

    monkeypatch.setattr(Decoder, "__call__", counted)
    drawn = generate(model, prompts, seeds, Sampling(200), ends, rows=32)
    lengths = [len(tokens) for group in drawn for tokens in group]
    pooled, batches = len(steps), sum(max(lengths[i : i + 32]) for i in range(0, 192, 32))
    assert pooled < 1.3 * sum(lengths) / 32 + max(lengths) and pooled < batches / 1.5
    assert all(used == held for used, held, _ in steps) and max(rows for *_, rows in steps) == 32
    longest = max(len(prompt["input_ids"]) for prompt in prompts)
    assert max(held for _, held, _ in steps) <= longest + max(lengths)


@pytest.mark.parametrize("name", ["qwen3", "qwen3_5"])
def test_dropping_finished_rows_changes_nothing(name, monkeypatch):
    model = tiny.make(name)
    prompts, ends = tiny.prompts(model), list(range(0, tiny.VOCABULARY, 9))
    seeds = [list(range(5))] * 3
    rollouts = []
    for share in (0, 1, 8, 1000):  # never, when all are done, at 1/8, at once
        monkeypatch.setattr("generate.DROP_SHARE", share)
        rollouts.append(generate(model, prompts, seeds, LONG, ends))
    assert all(other == rollouts[0] for other in rollouts)
    assert len({len(tokens) for group in rollouts[0] for tokens in group}) > 2


def test_what_runs_on_behind_an_end_is_dropped(monkeypatch):
    """As on a GPU, where the tokens are looked at now and then."""
    assert until_end([3, 1, 2, 1], {1, 2}) == [3, 1] and until_end([3], {1}) == [3]
    model, ends = tiny.make("qwen3_5"), list(range(0, tiny.VOCABULARY, 9))
    prompts, seeds, rollouts = tiny.prompts(model), [[1, 2, 3], [4, 5, 6, 7], [8]], []
    for every in (1, 5, 16):
        monkeypatch.setattr("generate.LOOK_EVERY", {"cpu": every})
        rollouts.append(generate(model, prompts, seeds, Sampling(40), ends))
    assert all(other == rollouts[0] for other in rollouts)


def test_first_tokens_have_the_models_distribution():
    model, n = tiny.make("qwen3_5"), 3000
    prompt = tiny.prompts(model)[0]
    seeds = [seed_of(0, 0, "plain", "q", j) for j in range(n)]
    drawn = torch.tensor(generate(model, [prompt], [seeds], Sampling(1), NEVER)[0]).flatten()
    with torch.no_grad():
        expected = n * tiny.naive_logits(model, prompt, []).softmax(-1)
    counts = drawn.bincount(minlength=len(expected))
    common = expected > 5
    chi_square = ((counts - expected)[common] ** 2 / expected[common]).sum() + (
        (counts - expected)[~common].sum() ** 2 / expected[~common].sum()
    )
    assert common.sum() > 20 and chi_square < common.sum() + 4 * (2 * common.sum()) ** 0.5


def test_generation_config_does_not_decide_how_to_sample():
    model = tiny.make("qwen3")
    prompts, seeds = tiny.prompts(model), [[1, 2], [3, 4], [5, 6]]
    before = generate(model, prompts, seeds, LONG, NEVER)
    model.generation_config = transformers.GenerationConfig(
        do_sample=True, top_k=20, temperature=0.6, top_p=0.8, repetition_penalty=1.5, max_new_tokens=3, eos_token_id=[5]
    )
    assert generate(model, prompts, seeds, LONG, NEVER) == before


@pytest.mark.parametrize("sampling", [Sampling(16), Sampling(16, temperature=0)])
def test_a_banned_token_with_a_huge_logit_is_never_sampled_and_scoring_agrees(sampling):
    model = tiny.make("qwen3_5")
    banned = banned_token_ids(model, tiny.PROCESSOR)
    push = torch.zeros(tiny.VOCABULARY)
    push[banned] = 50.0
    model.get_output_embeddings().register_forward_hook(lambda module, inputs, logits: logits + push)
    prompts = tiny.prompts(model)
    groups = generate(model, prompts, [[1, 2], [3], [4]], sampling, NEVER, banned)
    assert not {token for group in groups for tokens in group for token in tokens} & set(banned)
    responses = [group[0] for group in groups]
    batch = collate(prompts, responses)
    predicts = response_positions(prompts, responses, batch["input_ids"].shape)
    with torch.no_grad():
        logp = Policy(model, banned)(batch, position_ids(model, batch), predicts)[0]
        logits = tiny.naive_logits(model, prompts[0], [])
    logits[banned] = -torch.inf
    assert logp.min() > -20
    assert logp[0].item() == pytest.approx(logits.log_softmax(-1)[responses[0][0]].item(), abs=1e-5)


def test_presence_penalty_is_taken_off_once_and_not_for_the_prompt():
    model = tiny.make("qwen3")
    with torch.no_grad():
        model.lm_head.weight.zero_()  # all logits 0: greedy takes the first token that is not penalised
    (group,) = generate(
        model, [{"input_ids": torch.tensor([0, 1, 2])}], [[1]], Sampling(6, 0, presence_penalty=1.0), NEVER
    )
    assert group == [[0, 1, 2, 3, 4, 5]]


@pytest.mark.parametrize("training", [True, False])
def test_cache_stays_on_under_gradient_checkpointing(training):
    model = tiny.make("qwen3_5")
    prompts, seeds = tiny.prompts(model), [[1, 2], [3, 4], [5, 6]]
    expected = generate(model, prompts, seeds, LONG, NEVER)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train(training)
    model.model.visual.eval()  # a frozen part
    flags = {name: module.training for name, module in model.named_modules()}
    widths = []
    hook = model.register_forward_pre_hook(
        lambda m, args, kwargs: widths.append(kwargs["input_ids"].shape[-1]), with_kwargs=True
    )
    assert generate(model, prompts, seeds, LONG, NEVER) == expected
    hook.remove()
    assert widths[0] > 1 and widths[1:] == [1] * (LONG.max_new_tokens - 1)
    assert {name: module.training for name, module in model.named_modules()} == flags
    assert model.is_gradient_checkpointing and all(p.grad is None and p.requires_grad for p in model.parameters())


def test_prompts_are_left_as_they_were():
    model = tiny.make("qwen3_5")
    prompts = tiny.prompts(model)
    copies = [{key: value.clone() for key, value in prompt.items()} for prompt in prompts]
    first, second = (generate(model, prompts, [[1], [2, 3], [4]], LONG, NEVER) for _ in range(2))
    assert first == second
    for prompt, copy in zip(prompts, copies):
        assert prompt.keys() == copy.keys() and all(torch.equal(prompt[key], copy[key]) for key in copy)


# ---------------------------------------------------------------- the actor


def ask(uid: str, *colours: str, kind: str = "plain", text: str = "which colour?") -> Request:
    question = Question(uid, text, tuple(tiny.colour(colour) for colour in colours), "")
    return Request(kind, uid, plain_prompt(text), question)


REQUESTS = [
    ask("a", "red"),
    ask("b"),
    ask("c", "blue", "red"),
    ask("d", "lime", text="a much longer question about colours?"),
    Request("compress", "0", "a request without a question"),
]


def test_actor_gives_the_same_replies_for_any_batch_size_and_order():
    model = tiny.make("qwen3_5")
    drawn = [Actor(model, tiny.PROCESSOR, rows)(REQUESTS, 3, LONG, (0, 1), "rollout") for rows in (1, 3, 6, 64)]
    assert all(replies == drawn[0] for replies in drawn)
    actor = Actor(model, tiny.PROCESSOR, 6)
    assert actor(REQUESTS[::-1], 3, LONG, (0, 1), "rollout")[::-1] == drawn[0]
    assert actor(REQUESTS[2:3], 5, LONG, (0, 1), "rollout")[0][:3] == drawn[0][2]
    assert actor([], 3, LONG, (0, 1), "rollout") == []


@pytest.mark.parametrize(("prompts", "processes"), [(480, 8), (7, 3), (3, 8)])
def test_every_request_goes_to_one_process_and_all_have_as_much_to_do(prompts, processes, monkeypatch):
    shares = []
    lengths = [10 + 7 * i % 31 for i in range(prompts)]
    asked = [ask(str(i), text="x" * length) for i, length in enumerate(lengths)]
    for process in range(processes):
        state = SimpleNamespace(process_index=process, num_processes=processes, is_main_process=False)
        monkeypatch.setattr("generate.PartialState", lambda state=state: state)
        actor = Actor(tiny.make("qwen3"), tiny.TOKENIZER)
        given = {}  # place of a prompt: its draws, in the order in which they are to be begun
        monkeypatch.setattr(actor, "draw", lambda requests, groups, *_, given=given: given.update(groups) or [])
        assert list(actor.batches(asked, 8, LONG, (0, 0), "rollout")) == []
        assert all(len(draws) == 8 for draws in given.values())
        shares.append([lengths[place] for place in given])
    assert sorted(x for share in shares for x in share) == sorted(lengths)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert max(map(sum, shares)) - min(map(sum, shares)) <= max(lengths)
    assert all(share == sorted(share, reverse=True) for share in shares)


def test_replies_come_prompt_by_prompt_as_soon_as_the_last_rollout_has_ended():
    model = tiny.make("qwen3")
    model.generation_config.eos_token_id = list(range(0, tiny.VOCABULARY, 25))
    requests, actor = [ask(str(i)) for i in range(12)], Actor(model, tiny.TOKENIZER, rows=4)
    whole = actor(requests, 3, Sampling(60), (0, 0), "rollout")
    parts, training = [], []
    for part in actor.batches(requests, 3, Sampling(60), (0, 0), "rollout"):
        parts.append(part)
        training.append(model.train().training)  # between two of them the model is as the caller left it
    assert len(parts) > 8 and all(training) and model.training
    assert [reply for i in range(12) for part in parts if i in part for reply in part[i]] == sum(whole, [])
    ends = [max(len(reply.tokens) for reply in row) for part in parts for row in part.values()]
    assert ends != sorted(ends)  # a later prompt's short replies come before a longer one's end


def test_actor_has_one_stream_for_each_step_kind_question_and_sample():
    actor = Actor(tiny.make("qwen3"), tiny.TOKENIZER)
    requests = [ask(uid, kind=kind) for uid in ("a", "b") for kind in ("plain", "teacher", "ncq")]
    replies = [actor(requests, 3, LONG, key, "rollout") for key in ((0, 0), (0, 1), (1, 0))]
    assert len({tuple(reply.tokens) for step in replies for row in step for reply in row}) == 3 * 6 * 3


def test_a_reply_says_whether_it_ended():
    model = tiny.make("qwen3")
    model.generation_config.eos_token_id = list(range(0, tiny.VOCABULARY, 12))
    actor = Actor(model, tiny.TOKENIZER)
    (row,) = actor([ask("a")], 16, LONG, (0, 0), "rollout")
    assert {reply.finished for reply in row} == {True, False}
    for reply in row:
        assert reply.finished == (reply.tokens[-1] in actor.end_ids)
        assert reply.finished or len(reply.tokens) == LONG.max_new_tokens
        assert reply.text == tiny.TOKENIZER.decode(reply.tokens, skip_special_tokens=True)
    assert actor.seconds["rollout"] > 0


@pytest.mark.parametrize("largest", [1, 2, 5])
def test_out_of_memory_halves_the_rows_and_goes_on_with_the_same_replies(largest, monkeypatch, capsys):
    """A forward pass with more rows than `largest` fails as CUDA does."""
    model = tiny.make("qwen3_5")
    expected = Actor(model, tiny.PROCESSOR, 64)(REQUESTS, 3, LONG, (0, 1), "rollout")
    forward = model.forward

    def limited(**inputs):
        if len(inputs["input_ids"]) > largest:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return forward(**inputs)

    monkeypatch.setattr(model, "forward", limited)
    actor = Actor(model.train(), tiny.PROCESSOR, 64)
    assert actor(REQUESTS, 3, LONG, (0, 1), "rollout") == expected
    assert actor.rows <= largest and model.training
    assert f"going on with {actor.rows}" in capsys.readouterr().out
    monkeypatch.setattr(model, "forward", lambda **inputs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        actor(REQUESTS, 3, LONG, (0, 1), "rollout")
    assert model.training


@pytest.mark.parametrize(
    ("template", "rollout"), [({}, "default"), ({"enable_thinking": True}, "on"), ({"enable_thinking": False}, "off")]
)
def test_rollouts_think_as_they_are_told_and_summaries_hints_and_verdicts_never(template, rollout):
    """Also for an image, where transformers takes other ways; a template without the switch is not given it."""
    question = Question("q", "q", (tiny.colour("red"),), "1")
    for switch in (True, False):
        processor = tiny.pretrain.make_processor()
        processor.chat_template = tiny.pretrain.CHAT_TEMPLATE
        if switch:
            processor.chat_template += (
                "{% if enable_thinking is not defined %}default{% elif enable_thinking %}on{% else %}off{% endif %}"
            )
        actor = Actor(tiny.make("qwen3_5"), processor, template=template if switch else {})
        ends = [processor.tokenizer.decode(actor.encoder("q", asked)["input_ids"]) for asked in (question, None)]
        expected = [rollout, "off"] if switch else ["", ""]
        assert [end.rpartition("assistant\n")[2] for end in ends] == expected
