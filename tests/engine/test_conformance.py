"""One suite over every family: reads and writes against plain hooks, rows, padding, identities."""

import warnings
from typing import Any

import pytest
import tiny
import torch
from families import PATHS, TWINS, Case, arguments_of, case_of, part, raw_run, sees, set_at
from floors import FLOOR16, FLOOR32, FLOOR64, noise, relative

import interventions as iv
from interventions.errors import PromptError, RoleError, SiteError
from interventions.model.sites import COMPONENTS, RESIDUAL, Component
from interventions.prompt.answer_tokens import candidate_ids
from interventions.prompt.positions import from_lists
from interventions.running.complete import following

FAMILIES = (*tiny.FAMILIES, *TWINS)
VLMS = [name for name in FAMILIES if sees(name)]


@pytest.fixture(params=FAMILIES)
def case(request: pytest.FixtureRequest) -> Case:
    return case_of(request.param)


@pytest.fixture(params=VLMS)
def shown(request: pytest.FixtureRequest) -> Case:
    return case_of(request.param)


def some_layers(model: iv.Model) -> list[int]:
    return sorted({0, 1, model.n_layers // 2, *model.anatomy.cross_blocks, model.n_layers - 1})


def width(model: iv.Model, component: str) -> int:
    heads = model.anatomy.n_heads * model.anatomy.head_dim
    return heads if component == "head_out" else model.d_model


def as_heads(model: iv.Model, component: str, value: torch.Tensor) -> torch.Tensor:
    dim = model.anatomy.head_dim
    return value.unflatten(-1, (-1, dim)) if component == "head_out" else value


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


def plainly(source: Any, text: str, images: list[Any] | None) -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "__array__", DeprecationWarning)  # PaliGemma's labels
        given = {"images": images} if images else {}
        encoded = source(text=[text], return_tensors="pt", **given)
    encoded.pop("labels", None)
    return encoded


@pytest.mark.parametrize("component", COMPONENTS)
def test_reads_equal_hooks_at_every_layer(case: Case, component: Component) -> None:
    model = case.model
    layers = range(model.n_layers)
    with model.trace(case.prompt):
        ours = getattr(model, component)[:, case.place].save()
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
            continue  # tested in test_cross_attention.py
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
    model = case.model
    with model.trace(case.prompt):
        own = getattr(model, component)[:, case.place].save()
        plain = model.logits[:].save()
    with model.trace(case.prompt):
        getattr(model, component)[:, case.place] = own
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
        assert relative(total[real], after[layer][real]) < FLOOR32
    for layer in range(model.n_layers - 1):
        same = torch.equal(after[layer][case.real], before[layer + 1][case.real])
        assert same is (layer not in paths.added_between)


def test_a_padded_batch_equals_single_rows(case: Case) -> None:
    assert not case.real.all(), "the rows must differ in length for this to test padding"
    check_rows(case, FLOOR32)


def test_a_padded_batch_equals_single_rows_in_float64(case: Case) -> None:
    check_rows(with_sdpa(case, torch.float64), FLOOR64)


def with_sdpa(case: Case, dtype: torch.dtype = torch.float32) -> Case:
    if PATHS[case.name].no_sdpa:
        pytest.skip("transformers has no sdpa attention for this family")
    return case_of(case.name, dtype, "sdpa")


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


def test_knocked_out_edges_have_weight_zero_and_others_stay(case: Case) -> None:
    model = case.model
    queries, layer = case.prompt.at("last"), model.anatomy.self_blocks[1]
    end = case.prompt.length - 1
    keys = from_lists([[end - 1], [end - 1, end - 2]], length=end + 1, single=False, role="before")
    weights: list[torch.Tensor] = []
    attention = model.module.get_submodule(f"{PATHS[case.name].blocks}.{layer}.self_attn")
    handle = attention.register_forward_hook(lambda _m, _a, out: weights.append(out[1].clone()))
    try:
        clean = iv.run(model, case.prompt)
        cut = iv.run(model, case.prompt, knockouts=[iv.Knockout(layer, queries, keys)])
    finally:
        handle.remove()
    before, after = weights
    for row in range(len(case.prompt)):
        q = queries.index[row, 0]
        k = keys.index[row][keys.mask[row]]
        assert (before[row, :, q, k] > 0).any()
        assert (after[row, :, q, k] == 0).all()
        others = [i for i in range(case.prompt.length) if i != int(q) and case.real[row, i]]
        assert torch.equal(before[row, :, others], after[row, :, others])
        assert after[row, :, q].sum(-1).allclose(torch.ones(after.shape[1]), atol=1e-5)
    assert clean.logits is not None
    assert cut.logits is not None
    assert not torch.equal(clean.logits, cut.logits)


def test_the_knockout_is_the_same_under_sdpa(case: Case) -> None:
    other = with_sdpa(case)
    cut = [
        iv.Knockout(
            case.model.anatomy.self_blocks[1:3], case.prompt.at("last"), case.prompt.at("entity")
        )
    ]
    eager = iv.run(case.model, case.prompt, knockouts=cut).logits
    sdpa = iv.run(other.model, other.prompt, knockouts=cut).logits
    assert eager is not None
    assert sdpa is not None
    assert relative(sdpa, eager) < FLOOR32


def test_sdpa_reads_what_eager_reads(case: Case) -> None:
    other = with_sdpa(case)
    sites = [iv.Site("resid_post", slice(0, case.model.n_layers), case.place)]
    [eager] = iv.read(case.model, case.prompt, sites)
    [sdpa] = iv.read(other.model, other.prompt, sites)
    assert relative(sdpa, eager) < FLOOR32


def test_the_lens_at_the_last_layer_is_the_models_own_prediction(case: Case) -> None:
    model = case.model
    last = case.prompt.at("last")
    tokens = torch.tensor([[5, 9], [7, 11]])
    [final] = iv.read(model, case.prompt, [iv.Site("resid_post", [model.n_layers - 1], last)])
    logprob, rank = iv.lens(model, final, tokens)
    logits = iv.run(model, case.prompt).logits
    assert logits is not None
    expected = logits.log_softmax(-1).gather(-1, tokens)
    assert relative(logprob[0], expected) < FLOOR32
    assert torch.equal(rank[0], (logits[:, None] > logits.gather(-1, tokens)[..., None]).sum(-1))


def test_generation_is_the_librarys_and_edits_act_in_the_prefill(case: Case) -> None:
    model, prompt = case.model, case.prompt
    value = noise((2, model.d_model))
    with torch.no_grad():
        inputs = {k: v for k, v in case.arguments.items() if k != "position_ids"}
        theirs = model.module.generate(**inputs, do_sample=False, max_new_tokens=4)
    with model.generate(prompt, max_new_tokens=4) as tracer:
        ours = tracer.result.save()
    assert torch.equal(ours, theirs)
    with model.generate(prompt, max_new_tokens=4) as tracer:
        model.resid_post[1, case.place] = value
        edited = tracer.result.save()
    found = iv.complete(
        model,
        prompt,
        patches=[iv.Patch("resid_post", 1, case.place, value)],
        max_new_tokens=4,
        stop=None,
    )
    special = model.end_ids
    for row, text in enumerate(found.texts):
        new = edited[row, prompt.length :].tolist()
        stop = next((i for i, token in enumerate(new) if token in special), len(new))
        assert text == model.tokenizer.decode(new[:stop], skip_special_tokens=True).strip()


def test_a_known_answer_scores_the_same_in_one_pass_and_token_by_token(case: Case) -> None:
    if case.name == "paligemma":
        pytest.skip("a prefix that is read in both directions cannot hold the answer")
    model = case.model
    [ids] = candidate_ids(model, ["Paris"])
    answers = [ids, ids]
    pad = model.tokenizer.pad_token_id
    asked = following(case.prompt, answers, pad_id=pad)
    at = asked.at("answer")
    logits = iv.run(model, asked, logits=at).logits
    assert logits is not None
    once = logits.log_softmax(-1).gather(-1, torch.tensor(answers)[..., None])[..., 0].sum(-1)
    found = iv.complete(model, case.prompt, candidates=["Paris"], max_new_tokens=2, stop=None)
    assert relative(torch.tensor(found.logprobs), once) < FLOOR32


def test_a_shared_prefix_changes_no_number(case: Case) -> None:
    model = case.model
    longer = [f"This is a longer beginning. {text}" for text in case.texts]
    if PATHS[case.name].image_first:
        longer = list(case.texts)
    images = list(case.pictures) if case.pictures else None
    whole = model.prompt(longer, images=images)
    shared = model.prompt(longer, images=images, share_prefix=True)
    if not case.pictures and not model.anatomy.windowed:
        assert len(shared.prefix_ids) > 3
    one, two = iv.run(model, whole).logits, iv.run(model, shared).logits
    assert one is not None
    assert two is not None
    assert relative(two, one) < FLOOR32


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


def test_heads_are_separate(case: Case) -> None:
    model, prompt = case.model, case.prompt
    anatomy = model.anatomy
    head, layer = anatomy.n_heads - 1, 1
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


def test_the_map_has_a_path_for_every_part(case: Case) -> None:
    model = case.model
    for layer, block in enumerate(model.anatomy.parts):
        mine = model.module.get_submodule(f"{model.anatomy.blocks}.{layer}")
        for component, path in (("attn_out", block.attn_out), ("mlp_out", block.mlp_out)):
            assert mine.get_submodule(path) is part(case.name, model.module, component, layer)
        assert block.cross is (layer in PATHS[case.name].cross_blocks)
    assert model.anatomy.is_vlm is (case.name in VLMS)
