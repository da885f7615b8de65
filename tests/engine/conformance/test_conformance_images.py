"""Images of every family enter where their features do."""

import pytest
import tiny
import torch
from families import PATHS, Case, arguments_of, plainly, raw_run
from floors import FLOOR32, relative

import interventions as iv
from interventions.errors import PromptError, RoleError


def test_image_features_are_read_and_written_where_they_enter(shown: Case) -> None:
    model, prompt = shown.model, shown.prompt
    plain, _ = raw_run(shown)
    if model.anatomy.cross_blocks:
        with model.trace(prompt):
            model.image_features[:] = 0.0
            logits = model.logits[:].save()
        assert not torch.equal(logits, plain)
        with pytest.raises(Exception, match="no image positions"), model.trace(prompt):
            model.image_features[prompt.at("last")].save()
        return
    image = prompt.at("image", -1)
    with model.trace(prompt):
        features = model.image_features[image].save()
    _, [entering] = raw_run(shown, reads=[("resid_pre", 0)])
    assert torch.equal(features, entering[torch.arange(2), image.index[:, 0]])
    with model.trace(prompt):
        model.image_features[prompt.at("image")] = 0.0
        logits = model.logits[:].save()
    assert not torch.equal(logits, plain)


def test_another_image_gives_another_answer(shown: Case) -> None:
    model = shown.model
    swapped = model.prompt(list(shown.texts), images=list(shown.pictures[::-1]))
    one, two = iv.run(model, shown.prompt).logits, iv.run(model, swapped).logits
    assert one is not None
    assert two is not None
    assert relative(one, two) > 1e-3


def test_image_roles_are_the_tokens_that_features_replace(shown: Case) -> None:
    model, prompt = shown.model, shown.prompt
    if model.anatomy.cross_blocks:
        with pytest.raises(RoleError, match="cross-attention"):
            prompt.at("image")
        return
    for row, roles in enumerate(prompt.roles):
        ids = prompt.inputs["input_ids"][row]
        expected = (ids == model.anatomy.image_token_id).nonzero().flatten().tolist()
        assert roles["image"] == expected
        assert roles["image_0"] == expected
        assert roles["last_image"] == expected[-1:]
        assert not set(roles["question"]) & set(expected)


def test_two_images_in_a_row(shown: Case) -> None:
    model = shown.model
    token = model.image_token or ""
    text = f"{token} and {token} in France"
    if PATHS[shown.name].image_first:
        text = f"{token}{token}both in France"
    pictures = [tiny.picture((40, 30)), tiny.picture((24, 60), seed=1)]
    other = [pictures[0]], shown.texts[0]
    if model.anatomy.cross_blocks:
        other = pictures[::-1], text.replace("in", "once in")
    images = [pictures, other[0]]
    texts = [text, other[1]]
    prompt = model.prompt(texts, images=images, spans={"entity": ["France", "France"]})
    with model.trace(prompt):
        logits = model.logits[:].save()
    with torch.no_grad():
        plain = model.module(**arguments_of(prompt)).logits
    assert torch.equal(logits, plain)
    encoded = plainly(model.processor, text, [pictures])
    with torch.no_grad():
        theirs = model.module(**encoded).logits
    alone = model.prompt(text, images=[pictures])
    with model.trace(alone):
        ours = model.logits[:].save()
    assert torch.equal(ours, theirs)
    assert relative(logits[0, -1], theirs[0, -1]) < FLOOR32
    if not model.anatomy.cross_blocks:
        roles = prompt.roles[0]
        assert roles["image"] == roles["image_0"] + roles["image_1"]
        assert roles["image_0"]
        assert roles["image_1"]


def test_a_text_only_row_beside_an_image(shown: Case) -> None:
    model = shown.model
    text = "The capital of France is"
    if model.anatomy.cross_blocks:
        with pytest.raises(PromptError, match="different numbers of images"):
            model.prompt([shown.texts[0], text], images=[shown.pictures[0], None])
        return
    prompt = model.prompt([shown.texts[0], text], images=[shown.pictures[0], None])
    together = iv.run(model, prompt).logits
    alone = iv.run(model, model.prompt(text)).logits
    pictured = iv.run(model, model.prompt(shown.texts[0], images=shown.pictures[0])).logits
    assert together is not None
    assert alone is not None
    assert pictured is not None
    assert relative(together[0], pictured[0]) < FLOOR32
    assert relative(together[1], alone[0]) < FLOOR32


def test_an_image_too_many_is_refused_before_anything_runs(shown: Case) -> None:
    with pytest.raises(PromptError, match=r"2 image\(s\) were given for a text with 1"):
        shown.model.prompt(shown.texts[0], images=[list(shown.pictures)])
