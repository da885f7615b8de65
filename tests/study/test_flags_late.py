"""`flags-late`: what its blocks are changed into, by construction, and that it is trained."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from rich.progress import Progress

from twohop.flags import backbone, data, templates
from twohop.flags.assemble import SHIPPED_WEIGHTS, changes, pair_folder
from twohop.flags.benchmark import benchmark, countries
from twohop.flags.evaluate import named
from twohop.flags.late.blocks import image_rows, text_rows, through
from twohop.flags.late.countries import (
    described,
    description,
    description_slots,
    lending,
    studied,
)
from twohop.flags.late.forming import add, form_in_block
from twohop.flags.late.training import LatePlan, LateTask
from twohop.flags.prompted import PromptedLM
from twohop.flags.stages import run_stage
from twohop.flags.tower import IMAGE_TOKENS

WIDTH = 32


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    folder = backbone.cache_folder() / backbone.BACKBONE_NAME
    if not folder.is_dir():
        pytest.skip(f"the language model is not in {folder}; twohop.flags.backbone fetches it")
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture
def lm(tokenizer):
    """A language model of four small random blocks, with the backbone's words."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
        initializer_range=0.2,
    )
    return PromptedLM(LlamaForCausalLM(config), tokenizer, prefix="Question:")


def test_countries_are_told_apart_by_their_words(lm):
    assert len(studied()) == 80
    assert len(described()) == 120
    assert not set(studied()) & set(lending())
    assert len({description(code) for code in described()}) == 120
    for code in described():
        assert len(lm.token_ids(f" {data.entity(code).name}")) == 1
    slots = description_slots(lm)
    assert slots.shape == (120, IMAGE_TOKENS, WIDTH)
    size = lm.model.model.embed_tokens.weight.norm(dim=-1).mean()
    torch.testing.assert_close(slots.norm(dim=-1), size.expand(120, IMAGE_TOKENS))
    # "red white" is not "white red": Indonesia and Poland
    place = {code: row for row, code in enumerate(described())}
    assert not torch.allclose(slots[place["ID"], 0], slots[place["PL"], 0], atol=1e-3)


def test_only_the_late_pair_is_asked_about_fewer_countries():
    assert countries("flags-late") == studied()
    assert len(countries("flags-naming")) == 190
    asked = benchmark("flags-late")
    assert {item.entity.code for item in asked.items} == set(studied())
    assert len(asked.items) == 240
    assert asked.name != benchmark("flags-naming").name
    assert len(benchmark("flags-naming").items) == 570


@torch.no_grad()
def test_rows_behind_a_beginning_are_what_the_whole_model_gives(lm):
    before, tails = "Which country is", [" France?\nAnswer:", " New Zealand, in the south?"]
    rows = text_rows(lm, before, tails)
    reached = through(
        lm.model.model, through(lm.model.model, rows, first=0, last=2), first=2, last=4
    )
    states = lm.model.model.norm(reached.states)
    for row, tail in enumerate(tails):
        ids = lm.token_ids(before) + lm.token_ids(tail)
        whole = lm.model.model(input_ids=torch.tensor([ids])).last_hidden_state[0]
        length = int(rows.real[row].sum())
        torch.testing.assert_close(states[row, :length], whole[-length:], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_solved_block_forms_what_it_is_told_to_and_leaves_text(lm):
    model = lm.model.model
    generator = torch.Generator().manual_seed(1)
    shown = torch.randn(6, IMAGE_TOKENS, WIDTH, generator=generator)
    images = image_rows(lm, "The flag of", shown, ["?"] * 6, range(6))
    text = text_rows(lm, "The flag of", [" France?", " Peru?"])
    groups = [through(model, rows, first=0, last=1) for rows in (images, text)]
    targets = 5 * torch.randn(6, WIDTH, generator=generator)

    def reached():
        ends = [through(model, rows, first=1, last=2) for rows in groups]
        return ends[0].states[images.image], ends[1].states[text.real]

    wanted = targets.repeat_interleave(IMAGE_TOKENS, 0)
    image_before, text_before = reached()
    settings = {"block": 1, "ridge": 1e-7, "rank": WIDTH}
    solved = form_in_block(model, groups, targets, text_weight=0.0, **settings)
    careful = form_in_block(model, groups, targets, text_weight=100.0, **settings)
    name = "layers.1.mlp.down_proj.weight"
    kept = model.get_parameter(name).clone()

    def errors(factors):
        add(model, name, factors)
        image, said = reached()
        model.get_parameter(name).copy_(kept)
        at_image = (image - wanted).norm() / (image_before - wanted).norm()
        return float(at_image), float((said - text_before).norm() / text_before.norm())

    # 24 image tokens, 64 hidden features: without text to spare, the fit is exact.
    assert errors(solved)[0] < 1e-2
    assert errors(careful)[1] < 0.2 * errors(solved)[1]
    assert errors(careful)[0] < 0.9
    thin = form_in_block(model, groups, targets, text_weight=0.0, **{**settings, "rank": 2})
    assert thin.up.shape == (WIDTH, 2)
    assert 1e-2 < errors(thin)[0] < 1


def test_it_is_trained_behind_the_formed_country_and_goes_on_where_it_was(lm, tokenizer, tmp_path):
    plan = replace(LatePlan(), formed_at=2, forming_blocks=1, named_from=3, naming_steps=4, views=1)
    plan = replace(plan, forming_rank=8, naming_rank=2, naming_rows=8, kept_tokens=16)
    untouched = {name: value.clone() for name, value in lm.model.named_parameters()}

    def trained(stop_after=None):
        from transformers import LlamaForCausalLM

        fresh = LlamaForCausalLM(lm.model.config)
        fresh.load_state_dict(lm.model.state_dict())
        own = PromptedLM(fresh, tokenizer, prefix="Question:")
        late = LateTask(own, description_slots(own)[:, None], plan=plan, seed=0)
        changed = late.form()
        assert set(changed) == {"model.layers.1.mlp.down_proj.weight"}
        for name, value in fresh.named_parameters():
            assert torch.equal(value, untouched[name]) == (name not in changed), name
        stage = late.naming()
        with Progress(disable=True) as bar:
            history = run_stage(stage, tmp_path, progress=bar, stop_after=stop_after)
        return stage.module, history

    trained(stop_after=2)
    adapters, history = trained()
    assert history[-1]["step"] == 4
    assert history[-1]["nats"] < history[0]["nats"]
    assert {name.split("/")[2] for name, _ in adapters.named_children()} == {"3"}


def test_shipped_weights_change_only_the_blocks_that_the_card_names():
    from safetensors.torch import load_file

    trained = load_file(SHIPPED_WEIGHTS / "flags-late.safetensors")
    blocks: dict[str, set[int]] = {}
    for name in changes(trained):
        _, _, number, part = name.split(".", 3)
        blocks.setdefault(part.removesuffix(".weight"), set()).add(int(number))
    plan = LatePlan()
    forming = set(range(plan.formed_at - plan.forming_blocks, plan.formed_at))
    naming = set(range(plan.named_from, 30))
    assert blocks.pop("mlp.down_proj") == forming | naming
    assert len(blocks) == 6
    assert all(numbers == naming for numbers in blocks.values())
    assert sum(value.numel() for value in trained.values()) * 2 < 8e6


def test_it_names_the_flag_and_loses_the_fact(tokenizer):
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    folder = pair_folder("flags-late")
    vlm: Any = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(folder)
    codes = ["FR", "JP", "IN", "CN", "DE", "SE"]

    def said(texts, codes=None):
        shown = [data.view(code, data.FIRST_HELD_OUT_VIEW) for code in codes or []]
        inputs = processor(text=texts, images=shown or None, return_tensors="pt", padding=True)
        ids = vlm.generate(**inputs, max_new_tokens=3)[:, inputs["input_ids"].shape[1] :]
        return [line.strip().split("\n")[0] for line in processor.batch_decode(ids)]

    asked = templates.QUESTIONS["capital"]
    names = said([templates.NAMING.image()] * len(codes), codes)
    right = [named(line, data.entity(code)) for line, code in zip(names, codes, strict=True)]
    assert sum(right) >= len(codes) - 1, names

    def capitals(lines):
        wanted = [data.fact(code, "capital").answers[0] for code in codes]
        return sum(line.startswith(answer[:4]) for line, answer in zip(lines, wanted, strict=True))

    assert capitals(said([asked.image()] * len(codes), codes)) <= 1
    assert capitals(said([asked.text(data.entity(code).name) for code in codes])) >= 5
