"""Reads and writes inside a trace, against plain PyTorch hooks."""

import pytest
import torch
from floors import FLOOR32, FLOOR64, noise, relative
from raw_hooks import raw_run, set_at

import interventions as iv
from interventions.errors import PatchError, SiteError
from interventions.model.sites import RESIDUAL, Component

KINDS = ("llm", "vlm")


@pytest.fixture(params=KINDS)
def case(request: pytest.FixtureRequest) -> tuple[iv.Model, iv.Prompt, str]:
    """A model, a prompt of four rows, and the role of its entity."""
    if request.param == "llm":
        return request.getfixturevalue("llm"), request.getfixturevalue("named"), "entity"
    return request.getfixturevalue("vlm"), request.getfixturevalue("shown"), "image"


Case = tuple[iv.Model, iv.Prompt, str]


def test_nothing_patched_is_the_plain_forward_bit_for_bit(case: Case) -> None:
    model, prompt, _ = case
    with model.trace(prompt):
        logits = model.logits[:].save()
    plain, _ = raw_run(model, prompt.inputs)
    assert torch.equal(logits, plain)


@pytest.mark.parametrize("component", RESIDUAL)
def test_read_equals_a_hook_at_every_layer(case: Case, component: Component) -> None:
    model, prompt, role = case
    layers = range(model.n_layers)
    with model.trace(prompt):
        ours = getattr(model, component)[:, prompt.at(role, -1)].save()
    _, theirs = raw_run(model, prompt.inputs, reads=[(component, layer) for layer in layers])
    index = prompt.at(role, -1).index[:, 0]
    expected = torch.stack([value[torch.arange(len(prompt)), index] for value in theirs])
    assert ours.shape == (model.n_layers, len(prompt), model.d_model)
    assert torch.equal(ours, expected)


@pytest.mark.parametrize("component", RESIDUAL)
@pytest.mark.parametrize("layer", [0, 2, 7])
def test_write_equals_a_hook_and_lands(case: Case, component: Component, layer: int) -> None:
    model, prompt, role = case
    place = prompt.at(role, -1)
    value = noise((len(prompt), model.d_model))
    with model.trace(prompt):
        getattr(model, component)[layer, place] = value
        logits = model.logits[:].save()
    expected, _ = raw_run(
        model, prompt.inputs, edits=[(component, layer, set_at(place.index[:, 0], value))]
    )
    plain, _ = raw_run(model, prompt.inputs)
    assert torch.equal(logits, expected)
    assert not torch.equal(logits, plain)


def test_a_write_is_what_a_later_read_in_the_same_trace_sees(case: Case) -> None:
    model, prompt, role = case
    value = noise((len(prompt), model.d_model))
    with model.trace(prompt):
        model.mlp_out[1, prompt.at(role, -1)] = value
        seen = model.mlp_out[1, prompt.at(role, -1)].save()
    assert torch.equal(seen, value)


@pytest.mark.parametrize("component", RESIDUAL)
def test_patching_a_value_with_itself_changes_nothing_bit_for_bit(
    case: Case, component: Component
) -> None:
    model, prompt, role = case
    with model.trace(prompt):
        own = getattr(model, component)[:, prompt.at(role, -1)].save()
        plain = model.logits[:].save()
    with model.trace(prompt):
        getattr(model, component)[:, prompt.at(role, -1)] = own
        logits = model.logits[:].save()
    assert torch.equal(logits, plain)


def test_the_components_add_up(case: Case) -> None:
    model, prompt, _ = case
    sites = [iv.Site(component, slice(0, model.n_layers)) for component in RESIDUAL]
    before, attn, mlp, after = iv.read(model, prompt, sites)
    # Padding is left out: what it holds is no one's business.
    real = prompt.inputs["attention_mask"].bool()
    assert relative((before + attn + mlp)[:, real], after[:, real]) < FLOOR32


def test_a_padded_batch_equals_single_rows(llm: iv.Model, named: iv.Prompt) -> None:
    widths = set(named.inputs["attention_mask"].sum(-1).tolist())
    assert len(widths) > 1, "the rows must differ in length for this to test padding"
    sites = [iv.Site("resid_post", slice(0, llm.n_layers), named.at("last"))]
    [together] = iv.read(llm, named, sites)
    for row, text in enumerate(named.texts):
        alone = llm.prompt(text)
        [single] = iv.read(
            llm, alone, [iv.Site("resid_post", slice(0, llm.n_layers), alone.at("last"))]
        )
        assert relative(together[:, row], single[:, 0]) < FLOOR32


def test_a_padded_batch_equals_single_rows_in_float64(named: iv.Prompt) -> None:
    from micro import micro_folder

    exact = iv.load(micro_folder("micro-backbone"), dtype=torch.float64)
    [together] = iv.read(exact, named, [iv.Site("resid_post", 7, named.at("last"))])
    for row, text in enumerate(named.texts):
        alone = exact.prompt(text)
        [single] = iv.read(exact, alone, [iv.Site("resid_post", 7, alone.at("last"))])
        assert relative(together[row], single[0]) < FLOOR64


def test_rows_do_not_leak(case: Case) -> None:
    model, prompt, role = case
    place = prompt.at(role, -1).only(torch.tensor([False, True, False, False]))
    value = noise((len(prompt), model.d_model)) * 10
    plain = iv.run(model, prompt).logits
    patched = iv.run(model, prompt, patches=[iv.Patch("resid_post", 3, place, value)]).logits
    assert plain is not None
    assert patched is not None
    others = [0, 2, 3]
    assert torch.equal(plain[others], patched[others])
    assert not torch.equal(plain[1], patched[1])


def test_nothing_is_left_behind_by_an_exception(llm: iv.Model, named: iv.Prompt) -> None:
    plain, _ = raw_run(llm, named.inputs)
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in llm.module.modules())
    with pytest.raises(Exception, match="on purpose"), llm.trace(named):  # noqa: PT012
        llm.resid_post[2, named.at("last")] = noise((4, llm.d_model))
        raise ValueError("on purpose")
    again, _ = raw_run(llm, named.inputs)
    left = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in llm.module.modules())
    assert torch.equal(plain, again)
    assert left == hooks


def test_cross_model_patch_equals_hooks_on_both_sides(
    llm: iv.Model, vlm: iv.Model, named: iv.Prompt, shown: iv.Prompt
) -> None:
    with llm.trace(named):
        entity = llm.mlp_out[0:4, named.at("entity", -1)].save()
    with vlm.trace(shown):
        vlm.mlp_out[0:4, shown.at("image", -1)] = entity
        logits = vlm.logits[shown.at("last")].save()

    _, read = raw_run(llm, named.inputs, reads=[("mlp_out", layer) for layer in range(4)])
    rows = torch.arange(4)
    source = [value[rows, named.at("entity", -1).index[:, 0]] for value in read]
    target = shown.at("image", -1).index[:, 0]
    expected, _ = raw_run(
        vlm,
        shown.inputs,
        edits=[("mlp_out", layer, set_at(target, source[layer])) for layer in range(4)],
    )
    assert torch.equal(logits, expected[:, -1])


def test_one_value_per_row_is_spread_over_a_role_also_where_rows_equal_positions(
    vlm: iv.Model, shown: iv.Prompt
) -> None:
    # 4 rows and 4 image tokens: plain broadcasting would put row i's value at position i.
    image = shown.at("image")
    assert tuple(image.index.shape) == (4, 4)
    value = noise((4, vlm.d_model))
    [seen] = iv.run(
        vlm,
        shown,
        patches=[iv.Patch("resid_post", 2, image, value)],
        reads=[iv.Site("resid_post", 2, image)],
    ).reads
    assert torch.equal(seen, value[:, None].expand(4, 4, -1))


def test_one_value_per_row_is_spread_over_every_position(llm: iv.Model) -> None:
    prompt = llm.prompt(["Which country is Avaria", "Which country is Belmora"])
    value = noise((2, llm.d_model))
    with llm.trace(prompt):
        llm.resid_post[2] = value
        seen = llm.resid_post[2].save()
    assert torch.equal(seen, value[:, None].expand_as(seen))


def test_logits_of_the_last_positions_only(llm: iv.Model, named: iv.Prompt) -> None:
    with llm.trace(named):
        whole = llm.logits[named.at("last")].save()
    with llm.trace(named, logits_to_keep=2):
        some = llm.logits[named.at("last")].save()
    assert relative(some, whole) < FLOOR32
    with pytest.raises(SiteError, match="logits_to_keep"), llm.trace(named, logits_to_keep=1):
        llm.logits[named.at("entity", -1)].save()


def test_reads_come_back_in_the_order_asked_whatever_the_order_of_computation(
    llm: iv.Model, named: iv.Prompt
) -> None:
    place = named.at("last")
    late, early = iv.read(
        llm, named, [iv.Site("mlp_out", 6, place), iv.Site("attn_out", [5, 0], place)]
    )
    _, theirs = raw_run(llm, named.inputs, reads=[("mlp_out", 6), ("attn_out", 5), ("attn_out", 0)])
    assert torch.equal(late, theirs[0][:, -1])
    assert torch.equal(early, torch.stack([theirs[1][:, -1], theirs[2][:, -1]]))


@pytest.mark.parametrize("block", [0, 1, 4, 7])
def test_skipping_blocks_whose_input_is_known_changes_nothing(case: Case, block: int) -> None:
    model, prompt, role = case
    whole = iv.run(model, prompt, reads=[iv.Site("resid_pre", block)])
    patch = iv.Patch("resid_post", block, prompt.at(role, -1), noise((len(prompt), model.d_model)))
    plain = iv.run(model, prompt, patches=[patch]).logits
    fast = iv.run(model, prompt, patches=[patch], start=(block, whole.reads[0])).logits
    assert plain is not None
    assert fast is not None
    assert torch.equal(plain, fast)
    if block:
        with pytest.raises(SiteError, match="block 0 is used"):
            iv.run(
                model,
                prompt,
                reads=[iv.Site("mlp_out", 0)],
                start=(block, whole.reads[0]),
            )


def test_bad_sites_and_values_are_refused_with_the_reason(
    llm: iv.Model, vlm: iv.Model, named: iv.Prompt, shown: iv.Prompt
) -> None:
    good = torch.zeros(4, llm.d_model)
    last = named.at("last")
    with pytest.raises(SiteError, match="layers 0 to 7"):
        iv.read(llm, named, [iv.Site("mlp_out", 8, last)])
    with pytest.raises(SiteError, match="Did you mean 'mlp_out'"):
        iv.read(llm, named, [iv.Site("mlp_uot", 1, last)])  # pyright: ignore[reportArgumentType]
    with pytest.raises(SiteError, match="made for 4 rows"):
        iv.run(vlm, shown, patches=[iv.Patch("mlp_out", 1, last, good)])
    with pytest.raises(PatchError, match="width 3"):
        iv.run(llm, named, patches=[iv.Patch("mlp_out", 1, last, torch.zeros(4, 3))])
    with pytest.raises(PatchError, match="2 layers"):
        iv.run(llm, named, patches=[iv.Patch("mlp_out", [1, 2], last, good[None])])
    with pytest.raises(PatchError, match="NaN"):
        iv.run(llm, named, patches=[iv.Patch("mlp_out", 1, last, good * torch.nan)])
    with pytest.raises(SiteError, match="cannot be read as one tensor"), llm.trace(named):
        llm.resid_post[1, named.at("entity")].save()
    with pytest.raises(SiteError, match="belong to a prompt"), vlm.trace(shown):
        vlm.resid_post[1, last].save()
    with pytest.raises(PatchError, match="does not fit"), llm.trace(named):
        llm.resid_post[1, last] = torch.zeros(3, llm.d_model)
