"""What is inside the blocks of every family is what plain hooks see, and goes where they put it."""

import pytest
import torch
from families import PATHS, Case, case_of, some_layers, with_sdpa
from floors import FLOOR32, noise, relative
from raw_inside import Value, has, raw_inside, writing

import interventions as iv
from interventions.errors import InterventionsError, PatchError, SiteError
from interventions.model.sites import STREAMS, Component, rank_of

INSIDE: tuple[Component, ...] = (
    "q",
    "k",
    "v",
    "resid_mid",
    "mlp_in",
    "router",
    "mlp_pre",
    "mlp_post",
)
WRITTEN = tuple(name for name in INSIDE if not STREAMS[name].instead)


def layers_with(case: Case, component: Component) -> list[int]:
    return [layer for layer in range(case.model.n_layers) if has(case.name, component, layer)]


def layers_without(case: Case, component: Component) -> list[int]:
    return [layer for layer in range(case.model.n_layers) if not has(case.name, component, layer)]


@pytest.mark.parametrize("component", INSIDE)
def test_reads_equal_hooks_at_every_layer(case: Case, component: Component) -> None:
    for layer in layers_without(case, component):
        with pytest.raises(SiteError, match=f"block {layer} of "):
            iv.read(case.model, case.prompt, [iv.Site(component, layer, case.place)])
    if not (layers := layers_with(case, component)):
        return
    [ours] = iv.read(case.model, case.prompt, [iv.Site(component, layers)])
    _, theirs = raw_inside(case, reads=[(component, layer) for layer in layers])
    assert torch.equal(ours, torch.stack(theirs))
    [placed] = iv.read(case.model, case.prompt, [iv.Site(component, layers, case.place)])
    rows = torch.arange(len(case.prompt))
    assert torch.equal(placed, ours[:, rows, case.place.index[:, 0]])


def test_what_is_inside_reads_in_a_trace_in_the_order_of_the_model(case: Case) -> None:
    model = case.model
    layer = next(i for i in model.anatomy.self_blocks if i not in PATHS[case.name].headless)
    names: list[Component] = sorted(
        [name for name in INSIDE if has(case.name, name, layer)],
        key=lambda component: rank_of(model, component, layer),
    )
    ours = []
    with model.trace(case.prompt):
        for name in names:
            ours.append(getattr(model, name)[layer, case.place].save())
    sites = [iv.Site(name, layer, case.place) for name in names[::-1]]
    for mine, theirs in zip(ours, iv.read(model, case.prompt, sites)[::-1], strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("component", WRITTEN)
def test_writes_equal_hooks_and_land(case: Case, component: Component) -> None:
    model, at = case.model, case.place.index[:, 0]
    plain, _ = raw_inside(case)
    for layer in some_layers(model):
        if not has(case.name, component, layer):
            continue
        [own] = iv.read(model, case.prompt, [iv.Site(component, layer, case.place)])
        value = noise(tuple(own.shape))
        expected, _ = raw_inside(case, edit=Value(component, layer, at, value))
        with model.trace(case.prompt):
            getattr(model, component)[layer, case.place] = value
            logits = model.logits[:].save()
        assert relative(logits, expected) < FLOOR32, layer
        sites = [iv.Site(component, layer, case.place)]
        patch = iv.Patch(component, layer, case.place, value)
        run = iv.run(model, case.prompt, patches=[patch], reads=sites)
        assert torch.equal(run.reads[0], value), layer
        last = case.prompt.at("last").index[:, 0]
        assert run.logits is not None
        rows = torch.arange(len(case.prompt))
        assert relative(run.logits, expected[rows, last]) < FLOOR32, layer
        assert not torch.equal(logits, plain), layer


@pytest.mark.parametrize("component", WRITTEN)
def test_patching_a_value_with_itself_changes_nothing_bit_for_bit(
    case: Case, component: Component
) -> None:
    model = case.model
    if not (layers := layers_with(case, component)):
        return
    with model.trace(case.prompt):
        plain = model.logits[:].save()
    [own] = iv.read(model, case.prompt, [iv.Site(component, layers, case.place)])
    with model.trace(case.prompt):
        getattr(model, component)[layers, case.place] = own
        logits = model.logits[:].save()
    assert torch.equal(logits, plain)


@pytest.mark.parametrize("component", WRITTEN)
def test_cells_replay_what_runs_give(case: Case, component: Component) -> None:
    case = case_of(case.name) if PATHS[case.name].no_sdpa else with_sdpa(case)
    model, layers = case.model, layers_with(case, component)
    cells = []
    for layer in layers[:1] + layers[-1:]:
        [own] = iv.read(model, case.prompt, [iv.Site(component, layer, case.place)])
        cells.append([iv.Patch(component, layer, case.place, noise(tuple(own.shape), layer))])
        cells.append([iv.Patch(component, layer, case.prompt.at("last"), torch.tensor(0.0))])
    if not cells:
        return
    replayed = iv.replay(model, case.prompt, cells)[:, :, 0]
    for ours, patches in zip(replayed, cells, strict=True):
        logits = iv.run(model, case.prompt, patches=patches).logits
        assert logits is not None
        assert relative(ours, logits) < FLOOR32


@pytest.mark.parametrize("component", INSIDE)
def test_a_padded_batch_reads_what_single_rows_do(case: Case, component: Component) -> None:
    if not (layers := layers_with(case, component)):
        return
    [together] = iv.read(
        case.model, case.prompt, [iv.Site(component, layers, case.prompt.at("last"))]
    )
    for row, text in enumerate(case.texts):
        alone = case.model.prompt(text, images=[case.pictures[row]] if case.pictures else None)
        [single] = iv.read(case.model, alone, [iv.Site(component, layers, alone.at("last"))])
        assert relative(together[:, row], single[:, 0]) < FLOOR32


def test_written_keys_and_values_are_in_the_cache(case: Case) -> None:
    model, (layer, *_) = case.model, layers_with(case, "v")
    patches = written(case, layer)
    rows, at = torch.arange(len(case.prompt)), case.place.index[:, 0]
    clean = iv.run(model, case.prompt, keep_cache=True).cache.layers[layer]
    cache = iv.run(model, case.prompt, patches=patches, keep_cache=True).cache.layers[layer]
    n_kept = cache.values.shape[-2]
    where = at - (case.prompt.length - n_kept)
    if bool((where < 0).any()):
        assert n_kept < case.prompt.length  # a window keeps the last ones
        return
    assert relative(cache.values[rows, :, where], patches[1].value) < FLOOR32
    assert not torch.equal(cache.keys[rows, :, where], clean.keys[rows, :, where])
    others = torch.ones(len(rows), n_kept, dtype=torch.bool)
    others[rows, where] = False
    for mine, theirs in ((cache.keys, clean.keys), (cache.values, clean.values)):
        assert torch.equal(mine.transpose(1, 2)[others], theirs.transpose(1, 2)[others])


def test_answers_go_on_from_written_keys_and_values(case: Case) -> None:
    """The reference writes in the library's own generation, in the prefill alone."""
    model, layer = case.model, layers_with(case, "v")[-1]
    patches = written(case, layer)
    edits = [
        Value(patch.component, layer, case.place.index[:, 0], patch.value) for patch in patches
    ]
    inputs = {key: value for key, value in case.arguments.items() if key != "position_ids"}
    with writing(case, edits, prefill_only=True):
        ids = model.module.generate(**inputs, do_sample=False, max_new_tokens=4)
    answers = iv.complete(model, case.prompt, patches=patches, max_new_tokens=4, stop=None)
    for row, text in enumerate(answers.texts):
        new = ids[row, case.prompt.length :].tolist()
        stop = next((i for i, token in enumerate(new) if token in model.end_ids), len(new))
        assert text == model.tokenizer.decode(new[:stop], skip_special_tokens=True).strip()


def written(case: Case, layer: int) -> list[iv.Patch]:
    """Other keys and values of the tokens at the case's place."""
    [own] = iv.read(case.model, case.prompt, [iv.Site("v", layer, case.place)])
    names: tuple[Component, ...] = ("k", "v")
    return [
        iv.Patch(name, layer, case.place, 4 * noise(tuple(own.shape), i))
        for i, name in enumerate(names)
    ]


def test_heads_of_keys_are_those_that_have_keys(case: Case) -> None:
    model = case.model
    layer, n = layers_with(case, "k")[0], model.anatomy.n_kv_heads
    sites = [iv.Site("k", layer, case.place), iv.Site("k", layer, case.place, heads=n - 1)]
    whole, single = iv.read(model, case.prompt, sites)
    assert whole.shape == (2, n, model.anatomy.head_dim)
    assert torch.equal(single, whole[:, n - 1])
    value = noise(tuple(single.shape))
    patch = iv.Patch("k", layer, case.place, value, heads=n - 1)
    [written] = iv.run(model, case.prompt, patches=[patch], reads=sites[:1]).reads
    assert torch.equal(written[:, n - 1], value)
    assert torch.equal(written[:, : n - 1], whole[:, : n - 1])
    with pytest.raises(SiteError, match=f"no head {n}"):
        iv.read(model, case.prompt, [iv.Site("k", layer, case.place, heads=n)])
    with pytest.raises(SiteError, match="not divided into heads"):
        iv.read(model, case.prompt, [iv.Site("resid_mid", layer, case.place, heads=0)])


def test_what_can_only_be_read_is_not_written(case: Case) -> None:
    name: Component = "router" if PATHS[case.name].experts else "mlp_pre"
    patch = iv.Patch(name, 0, case.place, torch.tensor(0.0))
    with pytest.raises(PatchError, match=f"{name} can only be read: .* Write mlp_"):
        iv.run(case.model, case.prompt, patches=[patch])
    with pytest.raises(InterventionsError, match="can only be read"), case.model.trace(case.prompt):
        getattr(case.model, name)[0, case.place] = 0.0
