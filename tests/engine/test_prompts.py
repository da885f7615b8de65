"""Rows, padding and token roles."""

import pytest
import torch
from floors import FLOOR32, NAMES, relative
from PIL import Image

import interventions as iv
from interventions.errors import PromptError, RoleError


def test_roles_are_the_tokens_they_name(llm: iv.Model, named: iv.Prompt) -> None:
    for row, name in enumerate(NAMES):
        ids = named.inputs["input_ids"][row]
        entity = ids[named.roles[row]["entity"]]
        assert llm.tokenizer.decode(entity).split() == name.split()
        assert llm.tokenizer.decode(ids[named.roles[row]["last"]]).strip() == ":"
        assert llm.tokenizer.decode(ids[named.roles[row]["question"]]).split() == (
            named.texts[row].split()
        )


def test_image_role_covers_exactly_the_image_tokens(vlm: iv.Model, shown: iv.Prompt) -> None:
    token = vlm.anatomy.image_token_id
    assert token is not None
    for row in range(len(shown)):
        where = (shown.inputs["input_ids"][row] == token).nonzero().flatten().tolist()
        assert shown.roles[row]["image"] == where
        assert not set(where) & set(shown.roles[row]["question"])
    features = vlm.module.get_image_features(shown.inputs["pixel_values"]).pooler_output
    assert sum(len(one) for one in features) == sum(len(one["image"]) for one in shown.roles)


def test_two_images_in_a_row(vlm: iv.Model, pictures: list[Image.Image]) -> None:
    text = f"Which country is {vlm.image_token} ? {vlm.image_token} in"
    prompt = vlm.prompt([text, text], images=[pictures[:2], pictures[2:]])
    assert [len(roles["image"]) for roles in prompt.roles] == [8, 8]
    swapped = prompt.select([1, 0])
    assert torch.equal(swapped.inputs["pixel_values"], prompt.inputs["pixel_values"][[2, 3, 0, 1]])
    one, other = iv.run(vlm, prompt).logits, iv.run(vlm, swapped).logits
    assert one is not None
    assert other is not None
    assert relative(other, one[[1, 0]]) < FLOOR32


def test_an_image_without_a_placeholder_is_put_in_front(
    vlm: iv.Model, pictures: list[Image.Image]
) -> None:
    prompt = vlm.prompt("Which country is", images=pictures[0])
    assert prompt.texts == [f"{vlm.image_token}\nWhich country is"]
    assert len(prompt.at("image").index[0]) == 4


def test_two_images_without_placeholders(vlm: iv.Model, pictures: list[Image.Image]) -> None:
    prompt = vlm.prompt("Which country is", images=pictures[:2])
    assert len(prompt.at("image").index[0]) == 8


def test_select_takes_a_mask_and_negative_rows(vlm: iv.Model, shown: iv.Prompt) -> None:
    masked = shown.select(torch.tensor([True, False, False, True]))
    assert masked.texts == [shown.texts[0], shown.texts[3]]
    last = shown.select([-1])
    assert torch.equal(last.inputs["pixel_values"], shown.inputs["pixel_values"][3:])
    with pytest.raises(RoleError, match="one bool per row"):
        shown.at("last").only(torch.tensor([0, 1]))


def test_a_shared_prefix_notices_changed_weights(llm: iv.Model, named: iv.Prompt) -> None:
    import copy

    from raw_hooks import part

    edited = iv.load(copy.deepcopy(llm.module), tokenizer=llm.tokenizer)
    iv.run(edited, edited.prompt(named.texts, share_prefix=True))
    with torch.no_grad():
        part(edited, "attn_out", 3).v_proj.weight.mul_(2)  # pyright: ignore
    shared = iv.run(edited, edited.prompt(named.texts, share_prefix=True)).logits
    whole = iv.run(edited, edited.prompt(named.texts)).logits
    assert shared is not None
    assert whole is not None
    assert relative(shared, whole) < FLOOR32


def test_rows_are_padded_on_the_left_with_positions_of_their_own(named: iv.Prompt) -> None:
    mask, position = named.inputs["attention_mask"], named.inputs["position_ids"]
    for row in range(len(named)):
        n = int(mask[row].sum())
        assert mask[row, -n:].all()
        assert position[row, -n:].tolist() == list(range(n))


def test_a_shared_prefix_changes_no_number(llm: iv.Model, named: iv.Prompt) -> None:
    shared = llm.prompt(named.texts, spans={"entity": list(NAMES)}, share_prefix=True)
    assert llm.tokenizer.decode(shared.prefix_ids).split()[1:] == named.texts[0].split()[:7]
    assert shared.length == named.length - len(shared.prefix_ids)
    for role in ("entity", "last"):
        [ours] = iv.read(llm, shared, [iv.Site("resid_post", slice(0, 8), shared.at(role, -1))])
        [theirs] = iv.read(llm, named, [iv.Site("resid_post", slice(0, 8), named.at(role, -1))])
        assert relative(ours, theirs) < FLOOR32


def test_a_shared_prefix_can_be_limited_to_a_text(llm: iv.Model, named: iv.Prompt) -> None:
    limited = llm.prompt(named.texts, share_prefix="Question : What")
    assert llm.tokenizer.decode(limited.prefix_ids).split()[-1] == "What"


def test_a_named_span_is_never_shared(llm: iv.Model) -> None:
    alone = llm.prompt("Which country is Avaria ?", spans={"entity": "Avaria"}, share_prefix=True)
    assert llm.tokenizer.decode(alone.inputs["input_ids"][0]).split() == ["Avaria", "?"]
    assert alone.at("entity").index.tolist() == [[0]]


def test_the_last_token_is_never_shared(llm: iv.Model) -> None:
    same = llm.prompt(["Which country", "Which country"], share_prefix=True)
    assert same.length == 1
    assert same.at("last").index.tolist() == [[0], [0]]


def test_bad_spans_and_images_are_refused(
    llm: iv.Model, vlm: iv.Model, pictures: list[Image.Image]
) -> None:
    with pytest.raises(PromptError, match="occurs 0 times"):
        llm.prompt("Which country", spans={"entity": "Avaria"})
    with pytest.raises(PromptError, match="occurs 2 times"):
        llm.prompt("Avaria Avaria", spans={"entity": "Avaria"})
    with pytest.raises(PromptError, match="outside the text"):
        llm.prompt("Avaria", spans={"entity": (0, 99)})
    with pytest.raises(PromptError, match="text-only model"):
        llm.prompt("Avaria", images=pictures[0])
    with pytest.raises(PromptError, match="1 image placeholder"):
        vlm.prompt(f"Which {vlm.image_token}", images=[pictures[:2]])
    with pytest.raises(PromptError, match="0 image"):
        vlm.prompt(f"Which {vlm.image_token}")
    with pytest.raises(PromptError, match="2 images for 3 rows"):
        vlm.prompt(["Which"] * 3, images=pictures[:2])
    with pytest.raises(PromptError, match="given already"):
        llm.prompt("Avaria", spans={"last": "Avaria"})
    with pytest.raises(PromptError, match="at least one row"):
        llm.prompt([])


def test_unknown_roles_name_the_nearest(named: iv.Prompt) -> None:
    with pytest.raises(RoleError, match="Did you mean 'entity'"):
        named.at("entitty")
    with pytest.raises(RoleError, match="no image tokens"):
        named.at("image")
    with pytest.raises(RoleError, match="no index 5"):
        named.at("entity", 5)


def test_a_role_that_some_rows_lack_names_them(llm: iv.Model) -> None:
    prompt = llm.prompt(
        ["Avaria Belmora", "Belmora Avaria"], spans={"entity": "Avaria"}, share_prefix=False
    )
    prompt.roles[1].pop("entity")
    with pytest.raises(RoleError, match=r"row\(s\) \[1\]"):
        prompt.at("entity")
