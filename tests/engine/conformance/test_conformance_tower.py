"""The vision tower of every family: reads and writes are those of plain hooks, and land."""

from typing import cast

import pytest
import torch
from families import Case, with_sdpa
from floors import FLOOR32, noise, relative
from raw_tower import blocks, raw_patterns, raw_tower, tower_paths

import interventions as iv
from interventions.errors import BudgetTooSmall, PatchError, SiteError
from interventions.model.sites import INSIDE, VISION, Component
from interventions.prompt.positions import Space
from interventions.running import attention_memory

STREAMS: tuple[Component, ...] = tuple(name for name in VISION if name != "vision.attn_pattern")


def layers_of(case: Case, component: Component) -> list[int]:
    return [0] if "projector" in component else list(range(len(blocks(case))))


def written(case: Case, component: Component) -> list[int]:
    """Layers in which a write has an effect."""
    layers = layers_of(case, component)
    unused = 0 if "projector" in component else tower_paths(case.name).unused
    return layers[: len(layers) - unused]


def space_of(case: Case, component: Component) -> Space:
    if component == "vision.projector_out":
        return "features"
    reads = case.model.anatomy.family.projector_reads
    return reads if component == "vision.projector_in" else "tower"


def rows_of(case: Case, component: Component, flat: torch.Tensor) -> torch.Tensor:
    """Tokens behind one another [token, ...], as rows [row, token, ...] of zeros behind."""
    slots = case.prompt.vision[space_of(case, component)]
    parts = flat.split(slots.counts)
    return torch.nn.utils.rnn.pad_sequence(list(parts), batch_first=True)


def flat_index(case: Case, at: iv.Positions) -> torch.Tensor:
    """Positions of all rows, counted over all tokens that run behind one another."""
    counts = torch.tensor([0, *case.prompt.vision[at.of].counts])
    return (at.index + counts.cumsum(0)[:-1, None])[at.mask]


def places(case: Case, component: Component) -> iv.Positions:
    """A region of each picture, in the tower or behind it; rows differ in how many tokens."""
    of = space_of(case, component)
    return case.prompt.at("image", of=of, box=[(0, 0, 20, 20), (0, 15, 24, 45)])


def as_heads(case: Case, component: Component, value: torch.Tensor) -> torch.Tensor:
    return value.unflatten(-1, (4, -1)) if component == "vision.head_out" else value


@pytest.mark.parametrize("component", STREAMS)
def test_reads_equal_hooks_at_every_layer(shown: Case, component: Component) -> None:
    layers = layers_of(shown, component)
    name = component.removeprefix("vision.")
    _, theirs = raw_tower(shown, reads=[(name, layer) for layer in layers])
    expected = torch.stack([rows_of(shown, component, value) for value in theirs])
    expected = as_heads(shown, component, expected)
    [ours] = iv.read(shown.model, shown.prompt, [iv.Site(component, layers)])
    assert torch.equal(ours, expected)
    place = shown.prompt.at("image", 1, of=space_of(shown, component))
    with shown.model.trace(shown.prompt):
        there = getattr(shown.model.vision, name)[layers, place].save()
    assert torch.equal(there, expected[:, torch.arange(len(shown.prompt)), place.index[:, 0]])


@pytest.mark.parametrize("component", STREAMS)
def test_writes_equal_hooks_and_land(shown: Case, component: Component) -> None:
    model, prompt, at = shown.model, shown.prompt, places(shown, component)
    plain, _ = raw_tower(shown)
    name = component.removeprefix("vision.")
    for layer in written(shown, component):
        [own] = iv.read(model, prompt, [iv.Site(component, layer)])
        value = noise((*at.index.shape, *own.shape[2:]), layer)
        index = flat_index(shown, at)

        def put(
            tokens: torch.Tensor, index: torch.Tensor = index, value: torch.Tensor = value
        ) -> torch.Tensor:
            changed = tokens.clone()
            changed[index] = value[at.mask].flatten(1).to(tokens.dtype)
            return changed

        theirs, _ = raw_tower(shown, edits=[(name, layer, put)])
        patch = iv.Patch(component, layer, at, value)
        ours = iv.run(model, prompt, patches=[patch], logits=prompt.every()).logits
        assert ours is not None
        expected = theirs[torch.arange(len(prompt))[:, None], prompt.every().index]
        mask = prompt.every().mask
        assert torch.equal(ours[mask], expected[mask]), layer
        assert not torch.equal(theirs[:, -1], plain[:, -1]), layer


@pytest.mark.parametrize("component", VISION)
def test_what_is_written_where_it_is_anyway_changes_nothing(
    shown: Case, component: Component
) -> None:
    model, prompt = shown.model, shown.prompt
    plain = iv.run(model, prompt).logits
    layer = written(shown, component)[-1]
    at = prompt.at("image", [0, 1], of=space_of(shown, component))
    [own] = iv.read(model, prompt, [iv.Site(component, layer, at)])
    same = iv.run(model, prompt, patches=[iv.Patch(component, layer, at, own)])
    assert plain is not None
    assert same.logits is not None
    assert torch.equal(same.logits, plain)


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
def test_patterns_equal_the_eager_functions(shown: Case, attn: str) -> None:
    case = with_sdpa(shown) if attn == "sdpa" else shown
    for layer in layers_of(case, "vision.attn_pattern"):
        _, theirs = raw_patterns(case, layer=layer)
        [ours] = iv.read(case.model, case.prompt, [iv.Site("vision.attn_pattern", layer)])
        start = 0
        for row, n in enumerate(case.prompt.vision["tower"].counts):
            stop = start + n
            expected = theirs[start:stop, :, start:stop]
            assert relative(ours[row, :n, :, :n], expected) < FLOOR32
            assert not ours[row, n:].any()
            assert not ours[row, :, :, n:].any()
            start = stop


def test_written_patterns_equal_the_eager_functions_and_land(shown: Case) -> None:
    model, prompt = shown.model, shown.prompt
    at = prompt.at("image", 1, of="tower")
    plain, _ = raw_tower(shown)
    starts = torch.tensor([0, *prompt.vision["tower"].counts]).cumsum(0).tolist()
    for layer in written(shown, "vision.attn_pattern"):
        [own] = iv.read(model, prompt, [iv.Site("vision.attn_pattern", layer, at)])
        value = noise(tuple(own.shape), 3).abs() * (own > 0)
        value = value / value.sum(-1, keepdim=True)

        def put(weights: torch.Tensor, value: torch.Tensor = value) -> torch.Tensor:
            weights = weights.clone()
            for row, start in enumerate(starts[:-1]):
                token, stop = start + int(at.index[row, 0]), starts[row + 1]
                if token >= len(weights) or not weights[token].any():
                    continue  # of another of several calls
                stop = min(stop, len(weights))
                weights[token, :, start:stop] = value[row, :, : stop - start]
            return weights

        theirs, _ = raw_patterns(shown, layer=layer, change=put)
        ours = iv.run(model, prompt, patches=[iv.Patch("vision.attn_pattern", layer, at, value)])
        assert ours.logits is not None
        assert relative(ours.logits, theirs[:, -1]) < FLOOR32
        assert relative(theirs[:, -1], plain[:, -1]) > 10 * FLOOR32


def test_a_pattern_that_is_none_is_refused(shown: Case) -> None:
    model, prompt = shown.model, shown.prompt
    at = prompt.at("image", 0, of="tower")
    [own] = iv.read(model, prompt, [iv.Site("vision.attn_pattern", 0, at)])
    with pytest.raises(PatchError, match="sum"):
        iv.run(model, prompt, patches=[iv.Patch("vision.attn_pattern", 0, at, own * 2)])
    unseen = torch.zeros_like(own)
    blind = (own == 0).all(1)
    if blind.any(-1).all():
        for row in range(len(own)):
            unseen[row, :, int(blind[row].nonzero()[0])] = 1
        with pytest.raises(PatchError, match="does not attend"):
            iv.run(model, prompt, patches=[iv.Patch("vision.attn_pattern", 0, at, unseen)])


def test_attention_for_which_there_is_no_memory_is_refused(
    shown: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention_memory, "free_on", lambda _model: 10_000)
    with pytest.raises(BudgetTooSmall, match="MiB are free"):
        iv.read(shown.model, shown.prompt, [iv.Site("vision.attn_pattern", 0)])


def test_rows_do_not_leak_and_are_what_they_are_alone(shown: Case) -> None:
    model, prompt = shown.model, shown.prompt
    at = places(shown, "vision.resid_post")
    value = noise((model.anatomy.tower.width,)) if model.anatomy.tower else noise((1,))
    patch = iv.Patch("vision.resid_post", 0, at, value)
    whole = iv.run(model, prompt, patches=[patch]).logits
    plain = iv.run(model, prompt).logits
    half = iv.Patch("vision.resid_post", 0, at.only(torch.tensor([True, False])), value)
    first = iv.run(model, prompt, patches=[half]).logits
    assert whole is not None
    assert plain is not None
    assert first is not None
    assert relative(first[1], plain[1]) < FLOOR32
    assert relative(first[0], whole[0]) < FLOOR32
    if model.anatomy.dependent_rows is not None:
        return
    for row in range(len(prompt)):
        alone = prompt.select([row])
        mine = iv.run(model, alone, patches=[patch.of_rows([row])]).logits
        assert mine is not None
        assert relative(mine[0], whole[row]) < FLOOR32


def test_answers_see_what_was_written_into_the_tower(shown: Case) -> None:
    model, prompt, at = shown.model, shown.prompt, places(shown, "vision.resid_post")
    [own] = iv.read(model, prompt, [iv.Site("vision.resid_post", 0)])
    value = noise((own.shape[-1],)) * 3
    patch = iv.Patch("vision.resid_post", 0, at, value)
    ours = iv.complete(model, prompt, patches=[patch], max_new_tokens=1, stop=None)
    logits = iv.run(model, prompt, patches=[patch]).logits
    assert logits is not None
    expected = model.tokenizer.batch_decode(logits.argmax(-1)[:, None], skip_special_tokens=True)
    assert [text.strip() for text in ours.texts] == [text.strip() for text in expected]
    with model.generate(prompt, max_new_tokens=1) as tracer:
        model.vision.resid_post.write(0, at, value)
        ids = tracer.result.save()
    assert torch.equal(ids[:, -1], logits.argmax(-1))


def test_blocks_that_give_nothing_are_read_and_not_written(shown: Case) -> None:
    unused = tower_paths(shown.name).unused
    if not unused:
        return
    layer = len(blocks(shown)) - 1
    at = shown.prompt.at("image", 0, of="tower")
    patch = iv.Patch("vision.resid_post", layer, at, torch.zeros(()))
    with pytest.raises(PatchError, match=f"block {layer} of the tower gives nothing"):
        iv.run(shown.model, shown.prompt, patches=[patch])
    with (
        pytest.raises(PatchError, match=f"block {layer} of the tower gives nothing"),
        shown.model.trace(shown.prompt),
    ):
        shown.model.vision.resid_post[layer, at] = 0


def test_positions_of_another_part_are_refused(shown: Case) -> None:
    model, prompt = shown.model, shown.prompt
    with pytest.raises(SiteError, match="of='tower'"):
        iv.read(model, prompt, [iv.Site("vision.resid_post", 0, prompt.at("last"))])
    with pytest.raises(SiteError, match="of='text'"):
        iv.read(model, prompt, [iv.Site("resid_post", 0, prompt.at("image", 0, of="tower"))])


def test_cells_of_one_pass_are_those_of_a_pass_each(shown: Case) -> None:
    """Blocks side by side: rows are copies of one, and each is patched in a block of its own."""
    if shown.model.anatomy.dependent_rows is not None:
        return
    model, layers = shown.model, written(shown, "vision.resid_post")
    alone = shown.prompt.select([0])
    at = places(shown, "vision.resid_post").rows([0])
    [own] = iv.read(model, alone, [iv.Site("vision.resid_post", 0)])
    value = noise((*at.index.shape, own.shape[-1]))
    copies = alone.select([0] * len(layers))
    rows = torch.arange(len(layers))
    patches = [
        iv.Patch("vision.resid_post", layer, at.rows([0] * len(layers)).only(rows == i), value)
        for i, layer in enumerate(layers)
    ]
    together = iv.run(model, copies, patches=patches).logits
    assert together is not None
    for i, layer in enumerate(layers):
        single = iv.run(model, alone, patches=[iv.Patch("vision.resid_post", layer, at, value)])
        assert single.logits is not None
        assert relative(together[i], single.logits[0]) < FLOOR32


@pytest.mark.parametrize("component", INSIDE)
def test_what_is_inside_its_sublayers_is_refused(shown: Case, component: str) -> None:
    """But its heads' patterns, which have a stream."""
    model, prompt, name = shown.model, shown.prompt, f"vision.{component}"
    if name in VISION:
        return
    says = rf"the vision tower has no stream '{component}'.* model.nn.get\(path\)"
    with pytest.raises(SiteError, match=says):
        iv.read(model, prompt, [iv.Site(cast(Component, name), 0)])
    place = prompt.at("image", 0, of="tower")
    patch = iv.Patch(cast(Component, name), 0, place, torch.tensor(0.0))
    with pytest.raises(SiteError, match=says):
        iv.run(model, prompt, patches=[patch])
    with pytest.raises(AttributeError, match=says):
        getattr(model.vision, component)
    tower = model.anatomy.tower
    assert tower is not None
    for path in tower.blocks:  # where the message leads
        assert model.nn.get(path) is not None
