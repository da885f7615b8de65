"""Steering, ablation, noise, frozen paths and the like, each against a plain PyTorch hook."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import nnsight
import pytest
import torch
from families import PATHS, Case, Edit, case_of, model_of, part, raw_run
from floors import FLOOR32, noise, relative

import interventions as iv
from interventions.errors import SiteError
from interventions.model.sites import Component
from interventions.prompt.positions import Mode

FEW = ("llama", "gemma2", "llava", "qwen2_5_vl", "mllama", "llama4")
PARTS: tuple[Component, ...] = ("head_out", "attn_out", "mlp_out", "resid_post")


@pytest.fixture(params=FEW)
def case(request: pytest.FixtureRequest) -> Case:
    return case_of(request.param)


def layer_of(case: Case) -> int:
    return case.model.anatomy.self_blocks[1]


def changed(at: iv.Positions, change: Callable[[int, torch.Tensor], Any]) -> Edit:
    """Edit that passes each row's values [position, width] at some positions through a function."""

    def edit(hidden: torch.Tensor) -> torch.Tensor:
        hidden = hidden.clone()
        for row in range(at.n_rows):
            index = at.index[row][at.mask[row]]
            hidden[row, index] = change(row, hidden[row, index])
        return hidden

    return edit


def final(case: Case, edits: Any = ()) -> torch.Tensor:
    """What plain hooks find behind the last block, at the tokens that are no padding."""
    deepest = case.model.n_layers - 1
    return raw_run(case, edits=edits, reads=[("resid_post", deepest)])[1][0][case.real]


def ours(case: Case, **how: Any) -> torch.Tensor:
    """The same by the engine."""
    site = iv.Site("resid_post", case.model.n_layers - 1)
    return iv.run(case.model, case.prompt, reads=[site], logits=False, **how).reads[0][case.real]


def ragged(case: Case) -> iv.Positions:
    at = case.prompt.at("entity")
    assert at.ragged, "the rows must differ in tokens for this to test anything"
    return at


# Steering, scaling, ablation


def test_steering_adds_a_vector_at_every_token_of_a_role(case: Case) -> None:
    layers, at = case.model.anatomy.self_blocks[1:3], ragged(case)
    vector = noise((case.model.d_model,))
    edit = changed(at, lambda _row, old: old + 2.0 * vector)
    expected = final(case, [("resid_post", layer, edit) for layer in layers])
    steered = ours(case, patches=[iv.steering(layers, at, vector, scale=2.0)])
    assert torch.equal(steered, expected)
    assert not torch.equal(steered, final(case))


def test_steering_and_scaling_inside_a_trace(case: Case) -> None:
    model, layer, at = case.model, layer_of(case), case.place
    vector = noise((model.d_model,))
    with model.trace(case.prompt):
        model.resid_post[layer, at] += vector
        model.resid_post[layer, at] *= 0.5
        logits = model.logits[:].save()
    edit = changed(at, lambda _row, old: (old + vector) * 0.5)
    assert torch.equal(logits, raw_run(case, edits=[("resid_post", layer, edit)])[0])


def test_adding_to_a_whole_stream_leaves_what_was_read_before_as_it_was(case: Case) -> None:
    model, layer = case.model, layer_of(case)
    vector = noise((model.d_model,))
    with model.trace(case.prompt):
        before = model.resid_post[layer].save()
        model.resid_post[layer] += vector
        after = model.resid_post[layer].save()
        logits = model.logits[:].save()
    _, [plain] = raw_run(case, reads=[("resid_post", layer)])
    assert torch.equal(before, plain)
    assert torch.equal(after, plain + vector)
    expected, _ = raw_run(case, edits=[("resid_post", layer, lambda hidden: hidden + vector)])
    assert torch.equal(logits, expected)


def test_several_layers_are_steered_in_a_trace_by_write(case: Case) -> None:
    model, layers, at = case.model, case.model.anatomy.self_blocks[1:3], ragged(case)
    vector = noise((model.d_model,))
    with model.trace(case.prompt):
        model.resid_post.write(layers, at, vector, mode="add")
        logits = model.logits[:].save()
    edit = changed(at, lambda _row, old: old + vector)
    expected, _ = raw_run(case, edits=[("resid_post", layer, edit) for layer in layers])
    assert torch.equal(logits, expected)
    with pytest.raises(SiteError, match='mode="add"'), model.trace(case.prompt):
        model.resid_post[layers, case.place] += vector


@pytest.mark.parametrize("component", PARTS)
def test_scaling_and_ablation(case: Case, component: Component) -> None:
    layer, at = layer_of(case), ragged(case)
    for factor in (0.5, 0.0, -2.0):
        patch = iv.Patch(component, layer, at, torch.tensor(factor), "scale")
        expected = final(case, [(component, layer, changed(at, lambda _, old, f=factor: old * f))])
        assert torch.equal(ours(case, patches=[patch]), expected)
    zeroed = final(case, [(component, layer, changed(at, lambda _, old: old * 0.0))])
    assert torch.equal(ours(case, patches=[iv.ablated(component, layer, at)]), zeroed)
    assert not torch.equal(zeroed, final(case))


@pytest.mark.parametrize("component", ["attn_out", "mlp_out", "resid_post"])
def test_mean_ablation(case: Case, component: Component) -> None:
    layers, at, rows = case.model.anatomy.self_blocks[1:3], ragged(case), len(case.prompt)
    one = noise((case.model.d_model,))
    edits = [(component, layer, changed(at, lambda _row, _old: one)) for layer in layers]
    assert torch.equal(
        ours(case, patches=[iv.ablated(component, layers, at, one)]), final(case, edits)
    )
    means = noise((2, rows, case.model.d_model))
    edits = [
        (component, layer, changed(at, lambda row, _old, i=i: means[i, row]))
        for i, layer in enumerate(layers)
    ]
    assert torch.equal(
        ours(case, patches=[iv.ablated(component, layers, at, means)]), final(case, edits)
    )


def test_ablating_a_cross_attention_block_cuts_the_image_off() -> None:
    case = case_of("mllama")
    layers, at = case.model.anatomy.cross_blocks, case.prompt.every()
    edit = changed(at, lambda _row, old: old * 0.0)
    expected = final(case, [("attn_out", layer, edit) for layer in layers])
    assert torch.equal(ours(case, patches=[iv.ablated("attn_out", layers, at)]), expected)
    assert not torch.equal(expected, final(case))


# Rows that differ in how many tokens a role has


@pytest.mark.parametrize("mode", ["set", "add", "scale"])
def test_rows_with_different_numbers_of_tokens(case: Case, mode: Mode) -> None:
    layer, at = layer_of(case), ragged(case)
    value = noise((*at.index.shape, case.model.d_model))
    merge: dict[Mode, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
        "set": lambda _old, new: new,
        "add": lambda old, new: old + new,
        "scale": lambda old, new: old * new,
    }

    def change(row: int, old: torch.Tensor) -> torch.Tensor:
        return merge[mode](old, value[row][at.mask[row]])

    edits = [("resid_post", layer, changed(at, change))]
    patch = iv.Patch("resid_post", layer, at, value, mode)
    assert torch.equal(ours(case, patches=[patch]), final(case, edits))
    with case.model.trace(case.prompt):
        case.model.resid_post.write(layer, at, value, mode=mode)
        logits = case.model.logits[:].save()
    assert torch.equal(logits, raw_run(case, edits=edits)[0])


def test_head_out_is_steered_at_some_heads(case: Case) -> None:
    model, layer, at = case.model, layer_of(case), ragged(case)
    dim, heads = model.anatomy.head_dim, [0, model.anatomy.n_heads - 1]
    value = noise((len(case.prompt), 2, dim))

    def change(row: int, old: torch.Tensor) -> torch.Tensor:
        split = old.unflatten(-1, (-1, dim)).clone()
        split[:, heads] += value[row]
        return split.flatten(-2)

    patch = iv.Patch("head_out", layer, at, value, "add", heads)
    expected = final(case, [("head_out", layer, changed(at, change))])
    assert torch.equal(ours(case, patches=[patch]), expected)
    assert not torch.equal(expected, final(case))


def test_one_value_for_all_rows_of_some_heads(case: Case) -> None:
    model, layers, at = case.model, case.model.anatomy.self_blocks[:2], ragged(case)
    dim, heads = model.anatomy.head_dim, [0, 1]
    value = noise((2, dim))  # as many heads as layers: not to be taken for one value per layer

    def change(_row: int, old: torch.Tensor) -> torch.Tensor:
        split = old.unflatten(-1, (-1, dim)).clone()
        split[:, heads] = value
        return split.flatten(-2)

    patch = iv.Patch("head_out", layers, at, value, heads=heads)
    expected = final(case, [("head_out", layer, changed(at, change)) for layer in layers])
    assert torch.equal(ours(case, patches=[patch]), expected)


# Noise, frozen paths


def test_noise_is_three_sigma_of_the_embeddings_there(case: Case) -> None:
    model, prompt = case.model, case.prompt
    _, [embedded] = raw_run(case, reads=[("resid_pre", 0)])
    roles = ["entity"] if model.anatomy.cross_blocks or not case.pictures else ["entity", "image"]
    for role in roles:
        at = prompt.at(role)
        patch = iv.embedding_noise(model, prompt, at)
        there = torch.cat([embedded[row, at.index[row][at.mask[row]]] for row in range(2)])
        drawn = patch.value[at.mask]
        assert (patch.component, patch.layers, patch.mode) == ("resid_pre", 0, "add")
        assert float(drawn.std()) == pytest.approx(3 * float(there.std()), rel=0.15)
        again = iv.embedding_noise(model, prompt, at, sigmas=6.0)
        assert torch.allclose(again.value, 2 * patch.value)
        assert not torch.equal(iv.embedding_noise(model, prompt, at, seed=1).value, patch.value)
        added = changed(at, lambda row, old, at=at, new=patch.value: old + new[row][at.mask[row]])
        expected = final(case, [("resid_pre", 0, added)])
        assert torch.equal(ours(case, patches=[patch]), expected)
        assert not torch.equal(expected, final(case))


def test_image_features_get_noise_of_their_own_scale() -> None:
    case = case_of("llava")
    spread = {}
    for role in ("entity", "image"):
        at = case.prompt.at(role)
        spread[role] = iv.embedding_noise(case.model, case.prompt, at).value[at.mask].std()
    assert not 0.9 < spread["image"] / spread["entity"] < 1.1


@pytest.mark.parametrize("component", PARTS)
def test_frozen_places_keep_their_clean_values_while_another_patch_acts(
    case: Case, component: Component
) -> None:
    model, at = case.model, ragged(case)
    layers = model.anatomy.self_blocks[1:3]
    value = noise((len(case.prompt), model.d_model))
    patch = iv.Patch("resid_pre", 0, case.place, value)
    hold = iv.frozen(model, case.prompt, at, layers, component=component)
    edits: list[Any] = [("resid_pre", 0, changed(case.place, lambda row, _old: value[row]))]
    without = final(case, edits)
    _, clean = raw_run(case, reads=[(component, layer) for layer in layers])
    for layer, held in zip(layers, clean, strict=True):
        put = changed(at, lambda row, _old, held=held: held[row, at.index[row][at.mask[row]]])
        edits.append((component, layer, put))
    expected = final(case, edits)
    assert torch.equal(ours(case, patches=[patch, *hold]), expected)
    assert not torch.equal(expected, without)


def test_where_everything_is_frozen_a_patch_does_nothing(case: Case) -> None:
    model, prompt = case.model, case.prompt
    patch = iv.Patch("resid_pre", 0, case.place, noise((len(prompt), model.d_model)))
    hold = iv.frozen(model, prompt, prompt.every(), range(model.n_layers))
    assert torch.equal(ours(case, patches=[patch, *hold]), ours(case))
    assert not torch.equal(ours(case, patches=[patch]), ours(case))


def test_an_int_layer_is_frozen_like_a_list_of_one(case: Case) -> None:
    layer, at = layer_of(case), case.prompt.at("last")
    [one] = iv.frozen(case.model, case.prompt, at, layer)
    [many] = iv.frozen(case.model, case.prompt, at, [layer])
    assert torch.equal(one.value, many.value[0])
    patch = iv.Patch("resid_pre", 0, case.place, noise((2, case.model.d_model)))
    assert torch.equal(ours(case, patches=[patch, one]), ours(case, patches=[patch, many]))


# Embeddings and logits


def test_embeddings_are_read_and_written_where_they_enter(case: Case) -> None:
    model, at = case.model, case.place
    value = noise((2, model.d_model))
    _, [entering] = raw_run(case, reads=[("resid_pre", 0)])
    with model.trace(case.prompt):
        read = model.embeddings[:].save()
        model.embeddings[at] = value
        model.embeddings[at] *= 0.5
        logits = model.logits[:].save()
    assert torch.equal(read, entering)
    edit = changed(at, lambda row, _old: value[row] * 0.5)
    assert torch.equal(logits, raw_run(case, edits=[("resid_pre", 0, edit)])[0])


def test_logits_are_written_where_asked(case: Case) -> None:
    model, last = case.model, case.prompt.at("last")
    plain, _ = raw_run(case)
    with model.trace(case.prompt):
        model.logits[last] += 1.0
        all_logits = model.nn.output.logits.save()
    expected = plain.clone()
    expected[:, -1] += 1.0
    assert torch.equal(all_logits, expected)


def test_written_logits_choose_the_next_token(case: Case) -> None:
    model, last = case.model, case.prompt.at("last")
    wanted = torch.tensor([21, 34])
    with model.generate(case.prompt, max_new_tokens=3, min_new_tokens=3) as tracer:
        model.logits[last] = torch.nn.functional.one_hot(wanted, model.anatomy.vocab) * 99.0
        ids = tracer.result.save()
    assert ids[:, case.prompt.length].tolist() == wanted.tolist()
    assert ids.shape[1] == case.prompt.length + 3


# Generation


@contextmanager
def hooked(case: Case, layer: int, edit: Edit, steps: range) -> Iterator[None]:
    """Edit the output of a block on some steps of a generation; step 0 is the prefill."""
    step = -1

    def hook(_module: Any, _args: Any, output: Any) -> Any:
        nonlocal step
        step += 1
        if step not in steps:
            return output
        if isinstance(output, tuple):
            return (edit(output[0]), *output[1:])
        return edit(output)

    module = part(case.name, case.model.module, "resid_post", layer)
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def raw_generate(case: Case, prompt: iv.Prompt, **settings: Any) -> torch.Tensor:
    inputs = {k: v for k, v in prompt.inputs.items() if k != "position_ids"}
    with torch.no_grad():
        return case.model.module.generate(**inputs, do_sample=False, **settings)


LONG = {"max_new_tokens": 5, "min_new_tokens": 5}


def test_an_edit_acts_on_the_prefill_only(case: Case) -> None:
    model, layer = case.model, layer_of(case)
    vector = 4 * noise((model.d_model,))
    with model.generate(case.prompt, **LONG) as tracer:
        model.resid_post[layer, -1] += vector
        ids = tracer.result.save()

    def edit(hidden: torch.Tensor) -> torch.Tensor:
        hidden = hidden.clone()
        hidden[:, -1] += vector
        return hidden

    found = []
    for steps in (range(1), range(9)):
        with hooked(case, layer, edit, steps):
            found.append(raw_generate(case, case.prompt, **LONG))
    assert torch.equal(ids, found[0])
    assert not torch.equal(ids, found[1])


def test_edits_on_chosen_steps_with_nnsights_iter(case: Case) -> None:
    """nnsight's ``tracer.iter[steps]`` runs its body once per step; step 0 is the prefill.

    A decoding step has one position, -1: those of a prompt hold for the prefill only.
    """
    model, layer = case.model, layer_of(case)
    vector = 4 * noise((model.d_model,))
    with model.generate(case.prompt, **LONG) as tracer:
        for _step in tracer.iter[2:4]:
            model.resid_post[layer, -1] += vector
        ids = tracer.result.save()

    def edit(hidden: torch.Tensor) -> torch.Tensor:
        assert hidden.shape[1] == 1
        return hidden + vector

    with hooked(case, layer, edit, range(2, 4)):
        assert torch.equal(ids, raw_generate(case, case.prompt, **LONG))
    plain = raw_generate(case, case.prompt, **LONG)
    assert torch.equal(ids[:, : case.prompt.length + 2], plain[:, : case.prompt.length + 2])
    assert not torch.equal(ids, plain)


def test_a_prefill_edit_and_later_steps_in_one_generation(case: Case) -> None:
    model, layer = case.model, layer_of(case)
    vector = 4 * noise((model.d_model,))
    with model.generate(case.prompt, **LONG) as tracer:
        seen = nnsight.save([])
        for step in tracer.iter[:3]:
            if step == 0:
                model.resid_post[layer, case.prompt.at("last")] += vector
            seen.append(model.resid_post[layer, -1])
        ids = tracer.result.save()

    def edit(hidden: torch.Tensor) -> torch.Tensor:
        hidden = hidden.clone()
        hidden[:, -1] += vector
        return hidden

    with hooked(case, layer, edit, range(1)):
        assert torch.equal(ids, raw_generate(case, case.prompt, **LONG))
    assert [tuple(one.shape) for one in seen] == [(2, model.d_model)] * 3


def test_positions_of_the_prompt_are_refused_on_later_steps(case: Case) -> None:
    model = case.model
    refused = pytest.raises(SiteError, match="prefill step only")
    with refused, model.generate(case.prompt, **LONG) as tracer:
        for _step in tracer.iter[1:2]:
            model.resid_post[0, case.prompt.at("last")] = 0.0


# Patchscopes


@pytest.mark.parametrize("source", ["itself", "another"])
def test_a_patchscope_is_a_hook_and_a_generation(case: Case, source: str) -> None:
    model, layer = case.model, layer_of(case)
    origin = case if source == "itself" else case_of("llava" if case.name == "llama" else "llama")
    assert origin.model.d_model == model.d_model
    [values] = iv.read(origin.model, origin.prompt, [iv.Site("resid_post", 1, origin.place)])
    for text, mark in ((None, "?"), ("Tell me of x in short:", "x")):
        more = {} if text is None else {"prompt": text, "placeholder": mark}
        said = iv.patchscope(model, values, layer=layer, max_new_tokens=4, **more)
        whole = text or "cat -> cat\n1135 -> 1135\nhello -> hello\n?"
        start = whole.rindex(mark)
        asked = model.prompt([whole] * 2, spans={"there": [(start, start + 1)] * 2})
        put = changed(asked.at("there", -1), lambda row, _old: values[row])
        with hooked(case, layer, put, range(1)):
            ids = raw_generate(case, asked, max_new_tokens=4)
        assert said == model.tokenizer.batch_decode(
            ids[:, asked.length :], skip_special_tokens=True
        )


# Knockout beside patches, and rows


@contextmanager
def masked(case: Case, cut: iv.Knockout) -> Iterator[None]:
    """Cut attention edges with a plain hook on the mask."""

    def hook(_module: Any, args: Any, kwargs: Any) -> Any:
        mask = kwargs["attention_mask"].expand(len(case.prompt), -1, -1, -1).clone()
        for row in range(len(case.prompt)):
            for q in cut.queries.index[row][cut.queries.mask[row]]:
                for k in cut.keys.index[row][cut.keys.mask[row]]:
                    mask[row, :, q, k] = torch.finfo(mask.dtype).min
        return args, {**kwargs, "attention_mask": mask}

    block = case.model.module.get_submodule(f"{PATHS[case.name].blocks}.{cut.layers}")
    handle = block.self_attn.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def test_a_knockout_beside_patches(case: Case) -> None:
    model, layer = case.model, case.model.anatomy.self_blocks[2]
    cut = iv.Knockout(layer, case.prompt.at("last"), ragged(case))
    value = noise((2, model.d_model))
    before, after = case.place, case.prompt.at("last")
    patches = [
        iv.Patch("resid_pre", layer, before, value),
        iv.Patch("attn_out", layer, after, value, "add"),
    ]
    edits = [
        ("resid_pre", layer, changed(before, lambda row, _old: value[row])),
        ("attn_out", layer, changed(after, lambda row, old: old + value[row])),
    ]
    with masked(case, cut):
        expected = final(case, edits)
    assert relative(ours(case, patches=patches, knockouts=[cut]), expected) < FLOOR32
    assert not torch.equal(expected, final(case, edits))


VALUES = {
    "per row": lambda case: noise((2, 2, case.model.d_model)),
    "per row and position": lambda case: noise(
        (2, *case.prompt.at("entity").index.shape, case.model.d_model)
    ),
    "per layer": lambda case: noise((2, case.model.d_model)),
    "one vector": lambda case: noise((case.model.d_model,)),
    "a number": lambda _case: torch.tensor(0.5),
}


@pytest.mark.parametrize("value", VALUES)
def test_patches_and_knockouts_of_some_rows(case: Case, value: str) -> None:
    model, prompt, rows = case.model, case.prompt, torch.tensor([1, 0, 1])
    layers = model.anatomy.self_blocks[1:3]
    patch = iv.Patch("resid_post", layers, ragged(case), VALUES[value](case))
    cut = iv.Knockout(layers, prompt.at("last"), prompt.at("entity"))
    site = iv.Site("resid_post", model.n_layers - 1, prompt.at("last"))
    [whole] = iv.run(model, prompt, patches=[patch], knockouts=[cut], reads=[site]).reads
    some = prompt.select(rows)
    [picked] = iv.run(
        model,
        some,
        patches=[patch.of_rows(rows)],
        knockouts=[cut.of_rows(rows)],
        reads=[iv.Site("resid_post", model.n_layers - 1, some.at("last"))],
    ).reads
    assert relative(picked, whole[rows]) < FLOOR32


def test_heads_patched_in_some_rows(case: Case) -> None:
    rows, n_heads, dim = [1], case.model.anatomy.n_heads, case.model.anatomy.head_dim
    at, layers = ragged(case), case.model.anatomy.self_blocks[:2]
    same = iv.Patch("head_out", layers, at, noise((n_heads, dim))).of_rows(rows)
    assert same.value.shape == (n_heads, dim)
    each = iv.Patch("head_out", layers, at, noise((2, 2, n_heads, dim)))
    assert torch.equal(each.of_rows(rows).value, each.value[:, 1:])
    one = iv.Patch("head_out", 0, at, noise((2, dim)), heads=1)
    assert torch.equal(one.of_rows(rows).value, one.value[1:])


def test_two_models_share_no_state() -> None:
    """A trace of one model inside the life of another leaves its running rows alone."""
    one, other = model_of("llama"), model_of("llama4")
    shown = case_of("llama4").prompt
    text = one.prompt("The capital of France is")
    with other.trace(shown):
        before = other.mlp_out[0, shown.at("last")].save()
    iv.run(one, text)
    with other.trace(shown):
        after = other.mlp_out[0, shown.at("last")].save()
    assert torch.equal(before, after)
