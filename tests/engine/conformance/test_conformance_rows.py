"""A row of every family is what it is alone: padding, skipped blocks, other rows, prefixes."""

import pytest
import torch
from families import PATHS, Case, case_of, raw_run, with_sdpa
from floors import FLOOR32, FLOOR64, noise, relative

import interventions as iv
from interventions.errors import PromptError


def test_a_padded_batch_equals_single_rows(case: Case) -> None:
    assert not case.real.all(), "the rows must differ in length for this to test padding"
    check_rows(case, FLOOR32)


def test_a_padded_batch_equals_single_rows_in_float64(case: Case) -> None:
    inside = PATHS[case.name].float32_inside
    check_rows(with_sdpa(case, torch.float64), FLOOR32 if inside else FLOOR64)


def test_float64_under_eager_attention_is_refused_for_padded_rows(case: Case) -> None:
    exact = case_of(case.name, torch.float64)
    with pytest.raises(PromptError, match="eager attention in float64"):
        iv.run(exact.model, exact.prompt)


def check_rows(case: Case, floor: float) -> None:
    model = case.model
    sites = [iv.Site("resid_post", slice(0, model.n_layers), case.prompt.at("last"))]
    [together] = iv.read(model, case.prompt, sites)
    for row, text in enumerate(case.texts):
        images = [case.pictures[row]] if case.pictures else None
        alone = model.prompt(text, images=images)
        [single] = iv.read(
            model, alone, [iv.Site("resid_post", slice(0, model.n_layers), alone.at("last"))]
        )
        assert relative(together[:, row], single[:, 0]) < floor
        selected = case.prompt.select([row])
        [part] = iv.read(
            model, selected, [iv.Site("resid_post", slice(0, model.n_layers), selected.at("last"))]
        )
        assert relative(part[:, 0], single[:, 0]) < floor


def test_columns_of_padding_can_be_taken_off(case: Case) -> None:
    model, prompt = case.model, case.prompt
    short = int(prompt.lengths.argmin())
    whole = prompt.select([short])
    trimmed, left = whole.trimmed()
    assert left == prompt.length - int(prompt.lengths.min()) > 0
    assert trimmed.length == int(prompt.lengths.min())
    value = noise((1, model.d_model))
    place = whole.at("entity", -1)
    moved = place.shifted(left, trimmed.length)
    assert torch.equal(moved.index, trimmed.at("entity", -1).index)
    one = iv.run(model, whole, patches=[iv.Patch("resid_post", 1, place, value)]).logits
    two = iv.run(model, trimmed, patches=[iv.Patch("resid_post", 1, moved, value)]).logits
    assert one is not None
    assert two is not None
    assert relative(two, one) < FLOOR32


def test_blocks_below_a_patch_can_be_skipped(case: Case) -> None:
    model, prompt = case.model, case.prompt
    block = model.n_layers - 2
    [state] = iv.read(model, prompt, [iv.Site("resid_pre", block)])
    patch = iv.Patch("resid_post", block, case.place, noise((2, model.d_model)))
    whole = iv.run(model, prompt, patches=[patch]).logits
    fast = iv.run(model, prompt, patches=[patch], start=(block, state)).logits
    assert whole is not None
    assert fast is not None
    assert torch.equal(whole, fast)


def test_rows_do_not_leak(case: Case) -> None:
    model = case.model
    first = case.place.only(torch.tensor([True, False]))
    patch = iv.Patch("resid_post", 0, first, noise((len(case.prompt), model.d_model)))
    sites = [iv.Site("resid_post", model.n_layers - 1, case.prompt.at("last"))]
    [clean] = iv.read(model, case.prompt, sites)
    patched = iv.run(model, case.prompt, patches=[patch], reads=sites).reads[0]
    assert torch.equal(clean[1], patched[1])
    assert not torch.equal(clean[0], patched[0])


def test_an_exception_leaves_nothing_behind(case: Case) -> None:
    model = case.model
    plain, _ = raw_run(case)
    hooks = count_hooks(model)
    with pytest.raises(Exception, match="no layer 99"), model.trace(case.prompt):  # noqa: PT012
        model.resid_post[0, case.place] = 0.0
        model.resid_post[99, case.place] = 0.0
    assert count_hooks(model) == hooks
    again, _ = raw_run(case)
    assert torch.equal(plain, again)


def count_hooks(model: iv.Model) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.module.modules())


def test_a_shared_prefix_changes_no_number(case: Case) -> None:
    model = case.model
    longer = [f"This is a longer beginning. {text}" for text in case.texts]
    if PATHS[case.name].image_first:
        longer = list(case.texts)
    images = list(case.pictures) if case.pictures else None
    whole = model.prompt(longer, images=images)
    shared = model.prompt(longer, images=images, share_prefix=True)
    if PATHS[case.name].recurrent:
        assert not len(shared.prefix_ids)
    elif not case.pictures and not model.anatomy.windowed:
        assert len(shared.prefix_ids) > 3
    one, two = iv.run(model, whole).logits, iv.run(model, shared).logits
    assert one is not None
    assert two is not None
    assert relative(two, one) < FLOOR32
