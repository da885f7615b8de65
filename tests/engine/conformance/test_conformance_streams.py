"""Reads and writes of every family are those of plain hooks, and the parts add up."""

from typing import Any

import pytest
import torch
from families import (
    PATHS,
    Case,
    as_heads,
    attending,
    case_of,
    part,
    plainly,
    raw_run,
    sees,
    set_at,
    some_layers,
    width,
)
from floors import FLOOR16, FLOOR32, noise, relative

import interventions as iv
from interventions.errors import SiteError
from interventions.model.sites import COMPONENTS, RESIDUAL, Component


def test_nothing_patched_is_the_plain_forward_bit_for_bit(case: Case) -> None:
    with case.model.trace(case.prompt):
        logits = case.model.logits[:].save()
    plain, _ = raw_run(case)
    assert torch.isfinite(plain[case.real]).all()
    assert torch.equal(logits, plain)


def test_a_single_row_is_what_processor_and_model_make_of_it(case: Case) -> None:
    """Ids, image tensors and positions are the library's own, which is given none of ours."""
    source: Any = case.model.processor or case.model.tokenizer
    for row, text in enumerate(case.texts):
        images = [case.pictures[row]] if case.pictures else None
        encoded = plainly(source, text, images)
        with torch.no_grad():
            theirs = case.model.module(**encoded).logits
        alone = case.model.prompt(text, images=images)
        assert torch.equal(alone.inputs["input_ids"], encoded["input_ids"])
        with case.model.trace(alone):
            ours = case.model.logits[:].save()
        assert torch.equal(ours, theirs)


def layers_with(case: Case, component: Component) -> list[int]:
    """Blocks that have a component: not all have heads of one size."""
    headless = PATHS[case.name].headless if component == "head_out" else ()
    return [layer for layer in range(case.model.n_layers) if layer not in headless]


@pytest.mark.parametrize("component", COMPONENTS)
def test_reads_equal_hooks_at_every_layer(case: Case, component: Component) -> None:
    model = case.model
    layers = layers_with(case, component)
    with model.trace(case.prompt):
        ours = getattr(model, component)[layers, case.place].save()
    _, theirs = raw_run(case, reads=[(component, layer) for layer in layers])
    rows = torch.arange(len(case.prompt))
    expected = torch.stack([value[rows, case.place.index[:, 0]] for value in theirs])
    assert torch.equal(ours, as_heads(model, component, expected))


@pytest.mark.parametrize("component", COMPONENTS)
def test_writes_equal_hooks_and_land(case: Case, component: Component) -> None:
    model = case.model
    plain, _ = raw_run(case)
    value = noise((len(case.prompt), width(model, component)))
    for layer in some_layers(model):
        if component == "head_out" and layer in model.anatomy.cross_blocks:
            continue  # of a cross-attention block: its heads read the image
        if layer not in layers_with(case, component):
            continue
        with model.trace(case.prompt):
            getattr(model, component)[layer, case.place] = as_heads(model, component, value)
            logits = model.logits[:].save()
        expected, _ = raw_run(case, edits=[(component, layer, set_at(case.place, value))])
        assert torch.equal(logits, expected), layer
        assert not torch.equal(logits, plain), layer


@pytest.mark.parametrize("component", COMPONENTS)
def test_patching_a_value_with_itself_changes_nothing_bit_for_bit(
    case: Case, component: Component
) -> None:
    model, layers = case.model, layers_with(case, component)
    with model.trace(case.prompt):
        own = getattr(model, component)[layers, case.place].save()
        plain = model.logits[:].save()
    with model.trace(case.prompt):
        getattr(model, component)[layers, case.place] = own
        logits = model.logits[:].save()
    assert torch.equal(logits, plain)


def test_bf16_reads_and_writes_equal_hooks(case: Case) -> None:
    half = case_of(case.name, torch.bfloat16)
    arguments = {
        key: value.bfloat16() if value.is_floating_point() else value
        for key, value in half.arguments.items()
    }
    value = noise((2, half.model.d_model)).bfloat16()
    edits = [("resid_post", 1, set_at(half.place, value))]
    expected, [read] = raw_run(half, edits=edits, reads=[("mlp_out", 2)], arguments=arguments)
    with half.model.trace(half.prompt):
        half.model.resid_post[1, half.place] = value
        found = half.model.mlp_out[2].save()
        logits = half.model.logits[:].save()
    assert logits.dtype == torch.bfloat16
    assert torch.equal(logits, expected)
    assert torch.equal(found, read)
    exact = iv.run(case.model, case.prompt).logits
    rough = iv.run(half.model, half.prompt).logits
    assert exact is not None
    assert rough is not None
    assert relative(rough, exact) < FLOOR16


def test_components_add_up(case: Case) -> None:
    model, paths = case.model, PATHS[case.name]
    sites = [iv.Site(component, slice(0, model.n_layers)) for component in RESIDUAL]
    before, attn, mlp, after = iv.read(model, case.prompt, sites)
    real = case.real
    if paths.cross_blocks:  # a token before the image sees none, and its block adds nothing
        real = real & case.prompt.inputs["cross_attention_mask"].flatten(2).any(-1)
    for layer in range(model.n_layers):
        gates = [torch.ones(()), torch.ones(())]
        if layer in paths.cross_blocks:
            block = model.module.get_submodule(f"{paths.blocks}.{layer}")
            gates = [block.cross_attn_attn_gate.tanh(), block.cross_attn_mlp_gate.tanh()]
        total = before[layer] + gates[0] * attn[layer] + gates[1] * mlp[layer]
        if paths.scale:
            block = model.module.get_submodule(f"{paths.blocks}.{layer}")
            total *= block.get_buffer(paths.scale)
        assert relative(total[real], after[layer][real]) < FLOOR32
    for layer in range(model.n_layers - 1):
        same = torch.equal(after[layer][case.real], before[layer + 1][case.real])
        assert same is (layer not in paths.added_between)


def test_heads_are_separate(case: Case) -> None:
    model, prompt = case.model, case.prompt
    anatomy = model.anatomy
    head, layer = anatomy.n_heads - 1, attending(case)[:2][-1]
    with model.trace(prompt):
        whole = model.head_out[layer, case.place].save()
    with model.trace(prompt):
        one = model.head_out[layer, case.place, head].save()
    assert whole.shape == (2, anatomy.n_heads, anatomy.head_dim)
    assert torch.equal(one, whole[:, head])
    value = noise((2, anatomy.head_dim))
    with model.trace(prompt):
        model.head_out[layer, case.place, head] = value
        logits = model.logits[:].save()
    flat = whole.clone()
    flat[:, head] = value
    expected, _ = raw_run(case, edits=[("head_out", layer, set_at(case.place, flat.flatten(1)))])
    assert torch.equal(logits, expected)
    with pytest.raises(SiteError, match="no head 99"):
        iv.read(model, prompt, [iv.Site("head_out", 0, case.place, heads=99)])
    with pytest.raises(SiteError, match="cannot be split"):
        iv.read(model, prompt, [iv.Site("mlp_out", 0, case.place, heads=0)])


def test_heads_of_another_size_are_refused_with_the_reason(case: Case) -> None:
    for layer in PATHS[case.name].headless:
        with pytest.raises(SiteError, match=f"block {layer} .* heads cannot be told apart"):
            iv.read(case.model, case.prompt, [iv.Site("head_out", layer, case.place)])


def test_the_map_has_a_path_for_every_part(case: Case) -> None:
    model = case.model
    for layer, block in enumerate(model.anatomy.parts):
        mine = model.module.get_submodule(f"{model.anatomy.blocks}.{layer}")
        for component, path in (("attn_out", block.attn_out), ("mlp_out", block.mlp_out)):
            assert mine.get_submodule(path) is part(case.name, model.module, component, layer)
        assert block.cross is (layer in PATHS[case.name].cross_blocks)
    assert model.anatomy.is_vlm is sees(case.name)
