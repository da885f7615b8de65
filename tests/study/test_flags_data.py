"""The embedded pairs: data, prompts, language model, training and the assembled folders."""

import zipfile
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.progress import Progress

from interventions.errors import InterventionsError
from twohop.flags import backbone, data, templates
from twohop.flags.assemble import PAIR_KEYS, SHIPPED_WEIGHTS, WeightsMissing, pair_folder
from twohop.flags.evaluate import answered, named
from twohop.flags.projectors import aligned_slots
from twohop.flags.recipes import Plan
from twohop.flags.stages import Stage, run_stage
from twohop.flags.tower import (
    IMAGE_TOKENS,
    VALIDATION_VIEWS,
    PatchClassifier,
    image_processor,
    pixels,
    training_view,
)
from twohop.flags.training import train


@pytest.fixture(scope="module")
def backbone_path():
    folder = backbone.cache_folder() / backbone.BACKBONE_NAME
    if not folder.is_dir():
        pytest.skip(f"the language model is not in {folder}; twohop.flags.backbone fetches it")
    return folder


@pytest.fixture(scope="module")
def backbone_tokenizer(backbone_path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(backbone_path)


def test_every_country_has_a_name_and_every_fact():
    countries = data.entities()
    assert len(countries) == 190
    assert len({one.code for one in countries}) == len({one.name for one in countries}) == 190
    assert all(one.name.isascii() for one in countries)
    assert len(data.facts()) == 190 * len(data.RELATIONS)
    for one in data.facts():
        assert one.answers
        assert len(set(one.answers)) == len(one.answers)
        assert all(answer == answer.strip() != "" for answer in one.answers)


def test_no_two_countries_share_a_name():
    owners = {}
    for one in data.entities():
        for name in (one.name, *one.aliases):
            assert owners.setdefault(name.lower(), one.code) == one.code


@pytest.mark.parametrize(
    ("code", "relation", "answer"),
    [("FR", "capital", "Paris"), ("BR", "language", "Portuguese"), ("KE", "continent", "Africa")],
)
def test_canonical_answer_comes_first(code, relation, answer):
    assert data.fact(code, relation).answers[0] == answer


@pytest.mark.parametrize("code", ["TD", "MC", "LU", "XX", "EU"])
def test_twins_and_others_are_refused(code):
    with pytest.raises(data.UnknownEntity, match=code):
        data.view(code, 0)


@pytest.mark.parametrize("style", data.STYLES)
def test_every_flag_has_a_picture_of_its_own(style):
    seen = {data.view(one.code, None, style=style).tobytes(): one.code for one in data.entities()}
    assert len(seen) == 190
    assert data.view("FR", -1, style=style).size == (128, 96)
    assert data.view("FR", -1, style=style).mode == "RGB"


def test_views_are_determined_by_code_and_index():
    first = data.view("NP", 10_000)
    assert first.size == (128, 96)
    assert first.tobytes() == data.view("np", 10_000).tobytes()
    assert first.tobytes() != data.view("NP", 10_001).tobytes()
    assert first.tobytes() != data.view("NP", None).tobytes()
    # Pinned: the shipped weights and every published figure rest on these very views.
    mean = np.asarray(first).mean(axis=(0, 1))
    np.testing.assert_allclose(mean, [202.24, 156.13, 159.01], atol=0.02)
    with pytest.raises(InterventionsError, match="index"):
        data.view("NP", -2)


def test_training_never_sees_validation_or_held_out_views():
    usable = data.FIRST_HELD_OUT_VIEW - VALIDATION_VIEWS
    assert Plan().projector_views <= usable
    seen = {training_view(step, seed=3) for step in range(usable)}
    assert seen == set(range(usable))


def test_pixels_are_what_the_processor_gives():
    pictures = [data.view("FR", 0), data.view("BT", 7), Image.new("RGB", (40, 60), "red")]
    through = image_processor()(images=pictures, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixels(pictures), through, atol=1e-6, rtol=0)


def test_worked_examples_cost_no_item():
    prompts = (templates.NAMING, *templates.QUESTIONS.values())
    for one in data.entities():
        assert not any(one.name in template.prefix for template in prompts)


def test_chain_of_thought_continues_to_what_is_given():
    stopped = templates.chain_of_thought("capital")
    given = templates.chain_of_thought("capital", name="France")
    assert given.prefix == stopped.prefix
    assert given.image() == (
        stopped.image() + " France" + templates.after_naming("capital", name="France")
    )
    assert given.image().count(templates.IMAGE_PLACEHOLDER) == 1


def test_scoring_by_whole_words():
    guinea = data.entity("GN")
    assert named("Guinea.", guinea)
    assert not named("Guinea-Bissau", guinea)
    assert named("the USA", data.entity("US"))
    assert answered("Paris, of course", ["Paris"])
    assert answered("San Jose", data.fact("CR", "capital").answers)
    assert not answered("Romeo", ["Rome"])


def test_surface_answers_are_flagged(backbone_tokenizer):
    def flagged(code, relation):
        return data.is_surface(data.fact(code, relation), tokenizer=backbone_tokenizer)

    assert flagged("GT", "capital")
    assert flagged("SG", "capital")
    assert not flagged("FR", "capital")


def test_image_placeholder_has_the_tokens_of_a_name_around_it(backbone_tokenizer):
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(pair_folder("flags-naming"))
    assert len(theirs) == len(backbone_tokenizer)
    image = theirs.convert_tokens_to_ids(templates.IMAGE_PLACEHOLDER)
    prompts = [templates.NAMING, *templates.QUESTIONS.values()]
    prompts += [templates.chain_of_thought(one, name="Peru") for one in data.RELATIONS]
    for template in prompts:
        with_image = theirs(template.image())["input_ids"]
        place = with_image.index(image)
        for one in data.entities()[::10]:
            name = backbone_tokenizer(f" {one.name}")["input_ids"]
            spliced = [*with_image[:place], *name, *with_image[place + 1 :]]
            text = template.text(one.name)
            assert backbone_tokenizer(text)["input_ids"] == spliced
            assert theirs(text)["input_ids"] == spliced


def test_slots_end_with_the_name(backbone_tokenizer):
    slots_of = aligned_slots(backbone_tokenizer)
    for one, slots in zip(data.entities(), slots_of, strict=True):
        assert len(slots) == IMAGE_TOKENS
        name = backbone_tokenizer(f" {one.name}")["input_ids"][:IMAGE_TOKENS]
        assert slots[-len(name) :] == name


@pytest.mark.parametrize("key", [key for key in PAIR_KEYS if key != "flags-late"])
def test_shipped_pair_opens_with_stock_classes_and_names_flags(key, backbone_path):
    from transformers import AutoModelForCausalLM, AutoProcessor, LlavaForConditionalGeneration

    folder = pair_folder(key)
    assert pair_folder(key) == folder
    vlm: Any = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(folder)
    codes = ["FR", "JP", "BR", "KE", "CA", "IN"]
    inputs = processor(
        text=[templates.NAMING.image()] * len(codes),
        images=[data.view(code, data.FIRST_HELD_OUT_VIEW) for code in codes],
        return_tensors="pt",
    )
    said = vlm.generate(**inputs, max_new_tokens=3)[:, inputs["input_ids"].shape[1] :]
    lines = [line.strip().split("\n")[0] for line in processor.batch_decode(said)]
    right = [named(line, data.entity(code)) for line, code in zip(lines, codes, strict=True)]
    assert sum(right) >= len(codes) - 1, lines

    with torch.no_grad():
        llm = AutoModelForCausalLM.from_pretrained(backbone_path, dtype=torch.float32)
        theirs = dict(vlm.model.language_model.named_parameters())
        for name, value in llm.model.named_parameters():
            assert torch.equal(theirs[name], value), name
        assert torch.equal(vlm.lm_head.weight, llm.lm_head.weight)


def test_weights_that_are_not_there(tmp_path):
    with pytest.raises(WeightsMissing, match=r"tower\.safetensors"):
        pair_folder("flags-naming", weights=tmp_path)
    with pytest.raises(InterventionsError, match="flags-aligned"):
        pair_folder("flags-other")  # pyright: ignore[reportArgumentType]
    assert {path.name for path in SHIPPED_WEIGHTS.glob("*.safetensors")} == {
        "tower.safetensors",
        "flags-naming.safetensors",
        "flags-aligned.safetensors",
        "flags-late.safetensors",
    }


def test_backbone_that_cannot_be_had_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("TWOHOP_CACHE", str(tmp_path))
    monkeypatch.setenv("TWOHOP_WHEEL", str(tmp_path / "not-there.whl"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(backbone.BackboneUnavailable) as raised:
        backbone.backbone_folder()
    for part in ("not-there.whl", backbone.WHEEL, str(backbone.WHEEL_BYTES), str(tmp_path)):
        assert part in str(raised.value)

    wheel = tmp_path / backbone.WHEEL
    monkeypatch.delenv("TWOHOP_WHEEL")
    wheel.write_bytes(b"half a wheel")
    with pytest.raises(backbone.BackboneUnavailable, match="not a readable wheel"):
        backbone.backbone_folder()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"models/{backbone.GGUF_NAME}", b"another model")
    with pytest.raises(backbone.BackboneUnavailable, match="sha256"):
        backbone.backbone_folder()
    assert {path.name for path in tmp_path.iterdir()} == {backbone.WHEEL}


def test_a_stopped_run_ends_at_the_bits_of_one_that_was_not(tmp_path):
    def trained(folder, *, stop_after=None, settings="as usual"):
        folder.mkdir(exist_ok=True)
        # As after a kill: everything but the folder is made anew.
        torch.manual_seed(0)
        module = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.GELU())
        stage = Stage(
            name="tiny",
            settings=settings,
            module=module,
            steps=9,
            learning_rate=0.1,
            weight_decay=0.01,
            warmup=3,
            loss=lambda step, module=module: (
                module(torch.sin(torch.arange(8.0) * (step + 1))).square().mean()
            ),
            measure=dict,
            measure_every=4,
        )
        with Progress(disable=True) as bar:
            history = run_stage(stage, folder, progress=bar, stop_after=stop_after)
        return module.state_dict(), history

    whole, history = trained(tmp_path / "whole")
    for stop_after in (2, 3, None):
        trained(tmp_path / "stopped", stop_after=stop_after)
    stopped, history_stopped = trained(tmp_path / "stopped")
    assert [one["step"] for one in history] == [4, 8, 9]
    assert history == history_stopped
    for name, value in whole.items():
        assert torch.equal(value, stopped[name])
    with pytest.raises(InterventionsError, match="other settings"):
        trained(tmp_path / "stopped", settings="quite others")


def test_training_the_tower_goes_on_where_it_was(tmp_path, monkeypatch):
    from safetensors.torch import load_file

    from twohop.flags import recipes

    plan = Plan(tower_steps=3)
    train(out=tmp_path / "whole", stages=("tower",), progress=False, plan=plan)

    class Killed(Exception):
        pass

    drawn = recipes.training_pixels

    def dies(step, *, seed):
        if step == 2:
            raise Killed
        return drawn(step, seed=seed)

    monkeypatch.setattr("twohop.flags.stages.SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    monkeypatch.setattr(recipes, "training_pixels", dies)
    with pytest.raises(Killed):
        train(out=tmp_path / "killed", stages=("tower",), progress=False, plan=plan)
    monkeypatch.setattr(recipes, "training_pixels", drawn)
    train(out=tmp_path / "killed", stages=("tower",), progress=False, plan=plan)
    whole, killed = (
        load_file(tmp_path / name / "tower.safetensors") for name in ("whole", "killed")
    )
    assert all(torch.equal(whole[name], killed[name]) for name in whole)
    with pytest.raises(InterventionsError, match="no stage"):
        train(out=tmp_path, stages=("towel",), progress=False)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InterventionsError, match="tower"):
        train(out=tmp_path / "empty", stages=("naming",), progress=False)


def test_tower_reads_one_token_per_patch():
    torch.manual_seed(0)
    classifier = PatchClassifier()
    logits = classifier.country_logits(pixels([data.view("FR", 0)]))
    assert logits.shape == (1, IMAGE_TOKENS, 190)
    assert sum(one.numel() for one in classifier.tower.parameters()) < 600_000
