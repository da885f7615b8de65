"""Replayed cells equal one plain forward pass each, on every family; at the cost promised."""

import gc
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from typing import Any

import pytest
import tiny
import torch
from families import PATHS, TWINS, Case, Edit, case_of, raw_run, sees, twin_config
from floors import FLOOR16, FLOOR32, FLOOR64, noise, relative

import interventions as iv
from interventions.errors import PatchError, SiteError
from interventions.model.sites import COMPONENTS
from interventions.running.budget import Budget
from interventions.running.patches import Patch
from interventions.sweeping.replay import replay, replayed, run_clean
from interventions.sweeping.schedule import cell, groups, path_of
from interventions.sweeping.sizes import Sizes

FAMILIES = (*tiny.FAMILIES, *TWINS)
SDPA = [name for name in FAMILIES if not PATHS[name].no_sdpa]
PATH = {
    "gemma3": "rows",
    "gemma4": "rows",
    "paligemma": "rows",
    "mllama": "plain",
    "qwen3_vl": "plain",
}


def path_expected(name: str) -> str:
    if PATHS[name].recurrent:
        return "rows"
    if not sees(name):
        return "suffix"
    return PATH.get(twin_config(name).model_type if name in TWINS else name, "suffix")


def patch_of(
    case: Case, component: Any, layer: Any, place: iv.Positions, seed: int, **more: Any
) -> Patch:
    """A patch with a value of its own for every row and token."""
    model = case.model
    last: tuple[int, ...] = (model.d_model,)
    if component == "head_out":
        last = (model.anatomy.head_dim,)
        if not isinstance(more.get("heads"), int):
            last = (model.anatomy.n_heads, model.anatomy.head_dim)
    lead = () if isinstance(layer, int) else (len(layer),)
    value = noise((*lead, *place.index.shape, *last), seed)
    return Patch(component, layer, place, value, **more)


def cells_of(case: Case) -> list[list[Patch]]:
    """First, middle and last blocks; one token, ragged ones, images; and several patches."""
    model, prompt = case.model, case.prompt
    places = [prompt.at("entity"), prompt.at("last"), prompt.at("entity", -1)]
    if prompt.has_images and not prompt.cross_attention:
        places += [prompt.at("image", 2), prompt.at("image")]
    layers = sorted({0, *model.anatomy.cross_blocks[:1], model.n_layers // 2, model.n_layers - 1})
    cells = []
    for i, (component, layer) in enumerate(product(COMPONENTS, layers)):
        if component == "head_out" and layer in PATHS[case.name].headless:
            continue
        mode = ("set", "add", "scale")[i % 3]
        heads = i % model.anatomy.n_heads if component == "head_out" and i % 2 else None
        place = places[i % len(places)]
        cells.append([patch_of(case, component, layer, place, i, mode=mode, heads=heads)])
    first, last = model.anatomy.self_blocks[0], model.n_layers - 1
    entity, end = places[0], places[1]
    cells += [
        [patch_of(case, "resid_post", [first, last], entity, 50)],
        [patch_of(case, "mlp_out", 0, end, 51), patch_of(case, "attn_out", last, entity, 52)],
        [  # the same block's output, several times over
            patch_of(case, "mlp_out", 1, entity, 53, mode="add"),
            patch_of(case, "mlp_out", 1, entity, 54),
            patch_of(case, "mlp_out", 1, entity, 55, mode="scale"),
            patch_of(case, "resid_post", 1, end, 56, mode="add"),
        ],
        [Patch("resid_pre", last, end, torch.tensor(0), mode="scale")],
        [Patch("resid_pre", last, end, torch.tensor(0.5), mode="scale")],
    ]
    return cells


def hook_edits(case: Case, patches: Sequence[Patch]) -> list[tuple[str, int, Edit]]:
    """The same patches for plain hooks, written down token by token."""
    found: list[tuple[str, int, Edit]] = []
    for patch in patches:
        single = isinstance(patch.layers, int)
        layers: Any = [patch.layers] if single else patch.layers
        for i, layer in enumerate(layers):
            value = patch.value if single else patch.value[i]
            found.append((patch.component, layer, edit_of(case, patch, value)))
    return found


def edit_of(case: Case, patch: Patch, value: torch.Tensor) -> Edit:
    dim = case.model.anatomy.head_dim

    def edit(hidden: torch.Tensor) -> torch.Tensor:
        changed = hidden.clone()
        for row, (index, mask) in enumerate(
            zip(patch.positions.index, patch.positions.mask, strict=True)
        ):
            for k, position in enumerate(index[mask].tolist()):
                here = changed[row, position]
                if patch.component == "head_out":
                    here = here.view(-1, dim)[slice(None) if patch.heads is None else patch.heads]
                new = value[row, k].to(hidden) if value.ndim else value.to(hidden)
                if patch.mode == "add":
                    here += new
                elif patch.mode == "scale":
                    here *= new
                else:
                    here.copy_(new)
        return changed

    return edit


def raw_logits(case: Case, cells: Sequence[Sequence[Patch]]) -> torch.Tensor:
    """Logits [cell, row, vocab] at the last token: one forward pass with plain hooks per cell."""
    dtype = case.model.dtype
    arguments = {
        key: value.to(dtype) if value.is_floating_point() else value
        for key, value in case.arguments.items()
    }
    return torch.stack(
        [raw_run(case, edits=hook_edits(case, one), arguments=arguments)[0][:, -1] for one in cells]
    )


def reaches_the_end(case: Case, patches: Sequence[Patch]) -> bool:
    """Whether some patch can change the last token: not the last block's at another token."""
    n, end = case.model.n_layers, case.prompt.length - 1
    return any(
        patch.component == "resid_pre"
        or patch.layers not in (n - 1, [n - 1])
        or bool((patch.positions.index[patch.positions.mask] == end).any())
        for patch in patches
    )


def check(case: Case, floor: float) -> None:
    cells = cells_of(case)
    path, reason = path_of(case.model, case.prompt)
    assert path == path_expected(case.name)
    assert bool(reason) is (path != "suffix")
    ours = replay(case.model, case.prompt, cells)[:, :, 0]
    theirs = raw_logits(case, cells)
    clean = raw_logits(case, [[]])
    for i, one in enumerate(cells):
        assert relative(ours[i], theirs[i]) < floor, one
        if reaches_the_end(case, one):
            assert relative(theirs[i], clean[0]) > min(floor, FLOOR32), one


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_equals_hooks_under_eager_attention(name: str) -> None:
    check(case_of(name), FLOOR32)


@pytest.mark.parametrize("name", [name for name in SDPA if name not in TWINS])
def test_equals_hooks_under_sdpa(name: str) -> None:
    check(case_of(name, torch.float32, "sdpa"), FLOOR32)


@pytest.mark.parametrize("name", SDPA)
def test_the_difference_falls_in_float64(name: str) -> None:
    check(case_of(name, torch.float64, "sdpa"), FLOOR64)


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3_text", "llava", "gemma3"])
def test_equals_hooks_in_bfloat16(name: str) -> None:
    check(case_of(name, torch.bfloat16, "sdpa"), FLOOR16)


def test_families_without_sdpa_are_few_and_known() -> None:
    """What the tests under sdpa leave out, all of which run under eager attention."""
    left_out = {
        twin_config(name).model_type if name in TWINS else name
        for name in FAMILIES
        if name not in SDPA
    }
    assert left_out == {"gemma2"}


@pytest.mark.parametrize(
    ("name", "path"), [("mllama", "rows"), ("gemma3", "suffix"), ("qwen3_vl", "suffix")]
)
def test_text_alone_in_a_vlm_takes_the_faster_path(name: str, path: str) -> None:
    model = case_of(name, torch.float64, "sdpa").model
    texts = ["The capital of France is", "Who was the first mayor of the town in the north?"]
    prompt = model.prompt(texts, spans={"entity": ["France", "the town"]})
    case = Case(name, model, prompt, tuple(texts), ())
    assert path_of(model, prompt)[0] == path
    cells = [
        [patch_of(case, component, layer, prompt.at("entity"), layer)]
        for component, layer in product(COMPONENTS, (0, 2, model.n_layers - 1))
    ]
    assert relative(replay(model, prompt, cells)[:, :, 0], raw_logits(case, cells)) < FLOOR64


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3_text", "qwen2_vl", "llava", "mllama"])
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_a_shared_prefix_changes_no_number(name: str, attn: str) -> None:
    case = case_of(name, torch.float32, attn)
    model = case.model
    begin = "This is a longer beginning. The capital of "
    texts, names = [f"{begin}France is"] * 2, ["France"] * 2
    if not model.anatomy.windowed:  # else rows are of equal length
        texts, names = [*texts, f"{begin}the town was"], [*names, "the town"]
    spans = {"entity": names}
    whole = model.prompt(texts, spans=spans)
    shared = model.prompt(texts, spans=spans, share_prefix=True)
    assert len(shared.prefix_ids) > 3
    if model.anatomy.windowed:
        assert path_of(model, shared)[0] == "plain"
    n = len(shared.prefix_ids)
    for component, layer in product(("resid_pre", "attn_out", "mlp_out"), (0, 2)):
        at = shared.at("entity")
        there = iv.Positions(at.index + n, at.mask, whole.length, False, "entity")
        moved = patch_of(case, component, layer, at, 3)
        patch = Patch(component, layer, there, moved.value)
        assert torch.equal(there.index[at.mask], whole.at("entity").index[at.mask])
        [ours] = replay(model, shared, [[moved]])
        theirs = iv.run(model, whole, patches=[patch]).logits
        assert theirs is not None
        assert relative(ours[:, 0], theirs) < FLOOR32


@pytest.mark.parametrize("name", ["llama", "llava", "qwen2_5_vl"])
def test_a_padded_batch_equals_single_rows(name: str) -> None:
    case = case_of(name, torch.float64, "sdpa")
    model, prompt = case.model, case.prompt
    cells = [
        [patch_of(case, component, layer, prompt.at("entity", -1), layer)]
        for component, layer in product(COMPONENTS, (0, model.n_layers - 1))
    ]
    together = replay(model, prompt, cells)
    for row in range(len(prompt)):
        alone, left = prompt.select([row]).trimmed()
        moved = [[one[0].of_rows([row])] for one in cells]
        moved = [
            [Patch(p.component, p.layers, p.positions.shifted(left, alone.length), p.value)]
            for [p] in moved
        ]
        assert relative(replay(model, alone, moved)[:, 0], together[:, row]) < FLOOR64


def test_logits_are_given_where_they_are_wanted() -> None:
    case = case_of("llava", torch.float64, "sdpa")
    at = case.prompt.at("question", slice(-3, None))
    cells = [[patch_of(case, "resid_post", layer, case.place, layer)] for layer in (0, 2)]
    ours = replay(case.model, case.prompt, cells, logits=at)
    for one, found in zip(cells, ours, strict=True):
        theirs = iv.run(case.model, case.prompt, patches=one, logits=at).logits
        assert theirs is not None
        assert found.shape == (2, 3, case.model.anatomy.vocab)
        assert relative(found, theirs) < FLOOR64


def test_a_patch_nowhere_is_the_clean_run() -> None:
    case = case_of("llama", torch.float64, "sdpa")
    nowhere = case.place.only(torch.tensor([False, False]))
    value = noise((2, 1, case.model.d_model))
    [found] = replay(case.model, case.prompt, [[Patch("resid_post", 1, nowhere, value)]])
    clean = iv.run(case.model, case.prompt).logits
    assert clean is not None
    assert relative(found[:, 0], clean) < FLOOR64


@contextmanager
def counted(case: Case) -> Iterator[list[tuple[int, int, int]]]:
    """(block, rows, tokens) of everything that goes through the attention of a block."""
    seen: list[tuple[int, int, int]] = []
    handles = []
    for i in range(case.model.n_layers):
        attention = case.model.module.get_submodule(f"{PATHS[case.name].blocks}.{i}.self_attn")

        def hook(_m: Any, args: Any, kwargs: Any, i: int = i) -> None:
            hidden = args[0] if args else kwargs["hidden_states"]
            seen.append((i, hidden.shape[0], hidden.shape[1]))

        handles.append(attention.register_forward_pre_hook(hook, with_kwargs=True))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def test_only_what_changes_is_computed_and_images_are_seen_once() -> None:
    case = case_of("llava", torch.float32, "sdpa")
    model, prompt = case.model, case.prompt
    places = [prompt.at("last"), prompt.at("entity", -1), prompt.at("image", 2)]
    cells = [
        [patch_of(case, component, layer, place, layer)]
        for component in ("resid_pre", "mlp_out", "resid_post")
        for layer in range(model.n_layers)
        for place in places
    ]
    images: list[int] = []
    tower = model.module.get_submodule("model.vision_tower")
    handle = tower.register_forward_pre_hook(
        lambda _m, args, kwargs: images.append(len(args[0] if args else kwargs["pixel_values"])),
        with_kwargs=True,
    )
    try:
        with counted(case) as seen:
            replay(model, prompt, cells)
    finally:
        handle.remove()
    assert images == [2]  # each row's picture, once
    n = model.n_layers
    assert seen[:n] == [(i, 2, prompt.length) for i in range(n)]  # the clean run
    path, _ = path_of(model, prompt)
    made = [cell(model, one) for one in cells]
    planned = groups(model, prompt, made, path, Budget.of(model))
    expected = [
        (block, 2 * len(group.cells), prompt.length - group.position)
        for group in planned
        for block in range(group.block, n)
    ]
    assert seen[n:] == expected
    assert sorted(i for group in planned for i in group.cells) == list(range(len(cells)))
    for group in planned:
        for i in group.cells:
            assert made[i].block == group.block
            assert made[i].position >= group.position
    lowest = {made[i].position for i in range(len(cells))}
    assert all(group.position in lowest for group in planned)
    patched_last = [one for one in made if one.block == n]
    assert len(patched_last) == 2 * len(places)  # of these, the head alone runs


@pytest.mark.parametrize(("name", "path"), [("llava", "suffix"), ("gemma3", "rows")])
def test_a_budget_changes_passes_and_no_number(name: str, path: str) -> None:
    case = case_of(name, torch.float32, "sdpa")
    model, prompt = case.model, case.prompt
    cells = [[patch_of(case, "resid_pre", 1, case.place, seed)] for seed in range(6)]
    with counted(case) as seen:
        wide = replay(model, prompt, cells)
    n_wide = sum(block == model.n_layers - 1 for block, _, _ in seen)
    with pytest.raises(PatchError, match=r"budget is 0\.0 MiB") as error:
        replay(model, prompt, cells, budget=1)
    [needed] = [int(word[7:]) for word in str(error.value).split() if word.startswith("budget=")]
    with pytest.raises(PatchError, match=f"Give budget={needed} or more"):
        replay(model, prompt, cells, budget=needed - 1)
    with counted(case) as seen:
        narrow = replay(model, prompt, cells, budget=needed)
    n_narrow = sum(block == model.n_layers - 1 for block, _, _ in seen)
    assert path_of(model, prompt)[0] == path
    assert (n_wide, n_narrow > 2) == (2, True)
    assert relative(narrow, wide) < FLOOR32


def test_what_the_budget_says_is_enough_with_a_shared_prefix_too() -> None:
    case = case_of("llama", torch.float32, "eager")
    model = case.model
    texts = ["This is a longer beginning. The capital of France is"] * 2
    prompt = model.prompt(texts, spans={"entity": "France"}, share_prefix=True)
    needed = 2 * Sizes.of(model).clean(prompt.length, len(prompt.prefix_ids))
    cells = [[patch_of(case, "resid_pre", 0, prompt.at("entity"), 0)]]
    assert replay(model, prompt, cells, budget=needed).shape[0] == 1
    with pytest.raises(PatchError, match=f"budget={needed}"):
        replay(model, prompt, cells, budget=needed - 1)


def state_of(case: Case) -> tuple[int, list[str]]:
    modules = list(case.model.module.modules())
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules)
    configs = {id(m.config): m.config for m in modules if hasattr(m, "config")}
    return hooks, [str(one._attn_implementation) for one in configs.values()]


def n_tensors() -> int:
    gc.collect()
    return sum(issubclass(type(one), torch.Tensor) for one in gc.get_objects())


@pytest.mark.parametrize("name", ["llava", "gemma3", "mllama"])
def test_nothing_is_kept_alive(name: str) -> None:
    case = case_of(name, torch.float32, "sdpa")
    model, prompt = case.model, case.prompt.select([0, 1])
    cells = [[patch_of(case, "mlp_out", layer, prompt.at("entity"), layer)] for layer in (0, 2)]
    replay(model, prompt, cells)
    before, state = n_tensors(), state_of(case)
    for _ in range(20):
        replay(model, prompt, cells)
    assert n_tensors() <= before
    assert state_of(case) == state
    found = replay(model, prompt, cells)
    gone = [weakref.ref(prompt), weakref.ref(found), weakref.ref(cells[0][0])]
    del prompt, found, cells
    gc.collect()
    assert [one() for one in gone] == [None] * 3


@pytest.mark.parametrize("when", [0, 1])
def test_nothing_survives_an_exception(when: int) -> None:
    """In the clean run (0), or in the middle of a replayed pass (1)."""
    case = case_of("llava", torch.float32, "sdpa")
    model, prompt = case.model, case.prompt
    cells = [[patch_of(case, "resid_pre", 1, case.place, 0)]]
    fine, state = replay(model, prompt, cells), state_of(case)
    before = n_tensors()
    calls: list[int] = []

    def fail(*_: Any) -> None:
        calls.append(0)
        if len(calls) > when:
            raise RuntimeError("stopped here")

    block = model.module.get_submodule(f"{PATHS['llava'].blocks}.2.mlp")
    handle = block.register_forward_pre_hook(fail)
    try:
        with pytest.raises(Exception, match="stopped here"):
            replay(model, prompt, cells)
    finally:
        handle.remove()
    assert len(calls) == when + 1
    assert state_of(case) == state
    assert n_tensors() <= before
    assert torch.equal(replay(model, prompt, cells), fine)


def test_a_replay_given_up_halfway_leaves_no_trace() -> None:
    case = case_of("llava", torch.float32, "sdpa")
    model, prompt = case.model, case.prompt
    made = [cell(model, [patch_of(case, "resid_pre", i, case.place, i)]) for i in range(3)]
    state = state_of(case)
    clean = run_clean(model, prompt, prompt.at("last"), made, "suffix")
    todo = groups(model, prompt, made, "suffix", Budget.of(model))
    some = replayed(model, clean, made, "suffix", todo)
    next(some)
    assert state_of(case) == state
    some.close()


def test_logits_before_what_is_patched_are_refused() -> None:
    """Of these cells no forward pass is run there: the last one patches one token later."""
    case = case_of("llama", torch.float32, "sdpa")
    model, prompt, last = case.model, case.prompt, case.prompt.at("last")
    cells = [
        [patch_of(case, "resid_post", 0, case.place, 0)],
        [patch_of(case, "resid_post", 0, last, 0)],
    ]
    with counted(case) as seen, pytest.raises(SiteError, match="cell 1 patches nothing before"):
        replay(model, prompt, cells, logits=case.place)
    assert not seen
    assert replay(model, prompt, cells[:1], logits=case.place).shape[:3] == (1, 2, 1)


def test_bad_cells_are_refused_before_anything_runs() -> None:
    case = case_of("llava", torch.float32, "sdpa")
    model, prompt, place = case.model, case.prompt, case.place
    value = noise((2, 1, model.d_model))
    bad: list[tuple[type[Exception], str, Any]] = [
        (PatchError, "cells is empty", []),
        (PatchError, "at least one patch", [[]]),
        (SiteError, "no layer 99", [[Patch("resid_post", 99, place, value)]]),
        (SiteError, "no component", [[Patch("resid", 0, place, value)]]),  # type: ignore[arg-type]
        (PatchError, "NaN", [[Patch("resid_post", 0, place, value * torch.nan)]]),
        (PatchError, "does not fit", [[Patch("resid_post", 0, place, value[:, :, None])]]),
        (SiteError, "cannot be split", [[Patch("mlp_out", 0, place, value, heads=1)]]),
    ]
    with counted(case) as seen:
        for kind, message, cells in bad:
            with pytest.raises(kind, match=message):
                replay(model, prompt, cells)
    assert not seen


@pytest.mark.parametrize("family", ["llama", "gemma3", "mllama"])
def test_edits_of_a_cell_keep_their_order_beside_other_cells(family: str) -> None:
    """What two cells have in common is merged; a cell's first may come up after its second."""
    case = case_of(family)
    model, prompt, last = case.model, case.prompt, case.prompt.at("last")
    first, other = noise((model.d_model,)), noise((model.d_model,), seed=1)
    space = iv.Subspace.random(model.d_model, 3, seed=2)

    def patch(value: Any, mode: Any, component: Any = "attn_out") -> iv.Patch:
        return iv.Patch(component, 2, last, value, mode)

    within = space.interchange("mlp_out", 2, last, other)
    below = iv.Patch("resid_post", 0, last, other, "add")
    cells = [
        [below, patch(first, "set"), patch(other, "add")],
        [below, patch(torch.tensor(0.0), "scale"), patch(other, "add")],
        [below, patch(first, "add", "mlp_out"), within],
        [below, within, patch(first, "add", "mlp_out")],
    ]
    found = iv.replay(model, prompt, cells)
    for own, logits in zip(cells, found, strict=True):
        expected = iv.run(model, prompt, patches=own).logits
        assert expected is not None
        assert relative(logits[:, 0], expected) < FLOOR32
