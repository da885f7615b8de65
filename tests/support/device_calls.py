"""What a user can call, as a table: run on a model here and on one elsewhere, it gives the same.

Each call takes a model and a case, whose prompt has two rows, and returns tensors, Datasets, texts
or lists of these.
"""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import matplotlib as mpl
import torch
import xarray as xr
from families import Case
from remote_operations import drawn, folders_of_dictionaries, layers_of

import interventions as iv
from interventions.model.sites import COMPONENTS, Component

Call = Callable[[iv.Model, Case], Any]
WORDS = ["Paris", "the big river", "Madrid town", "the north"]
ASKED: dict[str, Any] = {"answers": ["Paris", "the big river"], "foils": "Madrid town"}
BEGINNING = "The capital of France is the"
CALLS: dict[str, Call] = {}


def call(function: Call) -> Call:
    """Put a function into the table, under its name."""
    CALLS[function.__name__] = function
    return function


# Traces


@call
def traced_reads(model: iv.Model, case: Case) -> Any:
    layer, place = layers_of(case)[0], case.place
    with model.trace(case.prompt):
        embedded = model.embeddings[place].save()
        pre = model.resid_pre[layer, place].save()
        heads = model.head_out[layer, place].save()
        attn = model.attn_out[layer, place].save()
        mlp = model.mlp_out[layer, place].save()
        post = model.resid_post[layer, place].save()
        logits = model.logits[case.prompt.at("last")].save()
    return [embedded, pre, heads, attn, mlp, post, logits]


@call
def traced_reads_of_all_layers(model: iv.Model, case: Case) -> Any:
    with model.trace(case.prompt):
        values = model.resid_post[layers_of(case), case.prompt.at("last")].save()
    return values


@call
def traced_writes(model: iv.Model, case: Case) -> Any:
    first, _, third = layers_of(case)
    with model.trace(case.prompt):
        model.embeddings[case.place] *= 1.5
        model.attn_out[first, case.place] = drawn(2, model.d_model)
        model.resid_post[third, case.place] += 1.0
        logits = model.logits[case.prompt.at("last")].save()
    return logits


@call
def traced_knockout(model: iv.Model, case: Case) -> Any:
    with model.trace(case.prompt):
        last = case.prompt.at("last")
        iv.knockout(model, layers_of(case)[1], queries=last, keys=case.place)
        logits = model.logits[last].save()
    return logits


@call
def traced_image_features(model: iv.Model, case: Case) -> Any:
    if not case.pictures or model.anatomy.cross_blocks:
        return None
    image = case.prompt.at("last_image")
    with model.trace(case.prompt):
        model.image_features[image] *= 0.5
        features = model.image_features[image].save()
        logits = model.logits[case.prompt.at("last")].save()
    return [features, logits]


@call
def generated(model: iv.Model, case: Case) -> Any:
    with model.generate(case.prompt, max_new_tokens=4) as tracer:
        model.resid_post[layers_of(case)[1], case.place] *= 0.5
        ids = tracer.result.save()
    return model.completions(ids, case.prompt)


# Runs


@call
def plain_run(model: iv.Model, case: Case) -> Any:
    return iv.run(model, case.prompt).logits


@call
def logits_at_positions(model: iv.Model, case: Case) -> Any:
    return iv.run(model, case.prompt, logits=case.place).logits


@call
def reads_of_every_component(model: iv.Model, case: Case) -> Any:
    sites = [iv.Site(component, layers_of(case), case.place) for component in COMPONENTS]
    return iv.read(model, case.prompt, sites)


@call
def ragged_reads(model: iv.Model, case: Case) -> Any:
    sites = [iv.Site("resid_post", layers_of(case), case.prompt.every().filled())]
    return iv.read(model, case.prompt, sites)


@call
def patched_run(model: iv.Model, case: Case) -> Any:
    first, second, third = layers_of(case)
    patches = [
        iv.Patch("resid_post", first, case.place, drawn(2, model.d_model)),
        iv.Patch("mlp_out", third, case.place, drawn(2, model.d_model, seed=1)),
        iv.Patch("head_out", second, case.place, torch.zeros(()), heads=[0, 1]),
    ]
    return iv.run(model, case.prompt, patches=patches).logits


@call
def own_values_patched(model: iv.Model, case: Case) -> Any:
    """Values that are read from a model are written into it where they lie."""
    site = iv.Site("resid_post", layers_of(case)[2], case.place)
    [value] = iv.read(model, case.prompt.select([1, 0]), [site])
    patch = iv.Patch("resid_post", layers_of(case)[0], case.place, value)
    return iv.run(model, case.prompt, patches=[patch]).logits


@call
def knocked_out_run(model: iv.Model, case: Case) -> Any:
    cuts = [iv.Knockout(layers_of(case), queries=case.prompt.at("last"), keys=case.place)]
    return iv.run(model, case.prompt, knockouts=cuts).logits


@call
def continued_run(model: iv.Model, case: Case) -> Any:
    layer = layers_of(case)[2]
    before = iv.read(model, case.prompt, [iv.Site("resid_pre", layer)])[0]
    return iv.run(model, case.prompt, start=(layer, before)).logits


@call
def steered_run(model: iv.Model, case: Case) -> Any:
    vector = iv.read(model, case.prompt, [iv.Site("resid_post", 0, case.place)])[0][0]
    patch = iv.steering(layers_of(case)[1], case.prompt.at("last"), vector, scale=2.0)
    return iv.run(model, case.prompt, patches=[patch]).logits


@call
def noisy_run(model: iv.Model, case: Case) -> Any:
    noise = iv.embedding_noise(model, case.prompt, case.place, seed=3)
    hold = iv.frozen(
        model, case.prompt, case.prompt.at("last"), layers_of(case), component="mlp_out"
    )
    return iv.run(model, case.prompt, patches=[noise, *hold]).logits


@call
def ablated_run(model: iv.Model, case: Case) -> Any:
    mean = iv.read(model, case.prompt, [iv.Site("mlp_out", 0, case.place)])[0].mean(0)
    patches = [
        iv.ablated("mlp_out", layers_of(case)[0], case.place, mean),
        iv.ablated("attn_out", layers_of(case)[1], case.place),
    ]
    return iv.run(model, case.prompt, patches=patches).logits


@call
def shared_prefix_run(model: iv.Model, case: Case) -> Any:
    """Of text alone, which is what begins alike."""
    prompt = model.prompt([f"{BEGINNING} town", f"{BEGINNING} river in France"], share_prefix=True)
    return iv.run(model, prompt).logits


# Answers


@call
def free_answers(model: iv.Model, case: Case) -> Any:
    return iv.complete(model, case.prompt, max_new_tokens=4, stop=".").texts


@call
def forced_choice(model: iv.Model, case: Case) -> Any:
    rules: Any = ["sum", "per_token", "prior_corrected"]
    prior = drawn(len(WORDS), seed=5).abs().neg()
    answered = iv.complete(
        model, case.prompt, candidates=WORDS, rules=rules, prior=prior, max_new_tokens=3
    )
    return [answered.texts, answered.choices, str(answered.choices_by), answered.logprobs]


@call
def every_score(model: iv.Model, case: Case) -> Any:
    answered = iv.complete(
        model, case.prompt, candidates=WORDS, every_score=True, max_new_tokens=3, batch_rows=3
    )
    return [answered.choices, answered.scores]


@call
def patched_answers(model: iv.Model, case: Case) -> Any:
    patches = [iv.ablated("mlp_out", layers_of(case)[1], case.place)]
    answered = iv.complete(
        model, case.prompt, patches=patches, candidates=WORDS, max_new_tokens=4, stop="."
    )
    return [answered.texts, answered.choices, answered.logprobs]


@call
def answers_edited_at_every_step(model: iv.Model, case: Case) -> Any:
    layers, last = layers_of(case), case.prompt.at("last")
    vector = iv.read(model, case.prompt, [iv.Site("resid_post", 0, case.place)])[0][0]
    answered = iv.complete(
        model,
        case.prompt,
        patches=[iv.steering(layers[1], last, vector, steps="all")],
        knockouts=[iv.Knockout(layers[2], queries=last, keys=case.place, steps="all")],
        candidates=WORDS,
        every_score=True,
        temperature=0.8,
        max_new_tokens=3,
    )
    return [answered.texts, answered.choices, answered.scores]


@call
def generated_under_edits(model: iv.Model, case: Case) -> Any:
    last = case.prompt.at("last")
    patches = [iv.steering(layers_of(case)[1], last, drawn(model.d_model), steps="all")]
    cuts = [iv.Knockout(layers_of(case)[1:], queries=last, keys=case.place, steps="all")]
    asked: dict[str, Any] = {"patches": patches, "knockouts": cuts, "max_new_tokens": 3}
    with iv.generate(model, case.prompt, **asked) as tracer:
        ids = tracer.result.save()
    return model.completions(ids, case.prompt)


@call
def answers_behind_a_shared_prefix(model: iv.Model, case: Case) -> Any:
    prompt = model.prompt([f"{BEGINNING} town", f"{BEGINNING} river in France"], share_prefix=True)
    answered = iv.complete(model, prompt, candidates=WORDS, every_score=True, max_new_tokens=3)
    return [answered.texts, answered.choices, answered.scores]


# The vision tower


@call
def towers_blocks_read_and_written(model: iv.Model, case: Case) -> Any:
    if not model.anatomy.is_vlm:
        return []
    at = case.prompt.at("image", slice(0, 2), of="tower")
    behind = case.prompt.at("image", slice(0, 2), of="features")
    names: tuple[Component, ...] = ("vision.resid_post", "vision.head_out", "vision.attn_pattern")
    reads = [*(iv.Site(name, 0, at) for name in names), iv.Site("vision.projector_out", 0, behind)]
    patches = [
        iv.Patch("vision.attn_out", 0, at, torch.zeros(())),
        iv.Patch("vision.projector_out", 0, behind, torch.tensor(0.5), "scale"),
    ]
    run = iv.run(model, case.prompt, patches=patches, reads=reads)
    return [run.logits, *run.reads]


@call
def towers_blocks_swept_and_attributed(model: iv.Model, case: Case) -> Any:
    if not model.anatomy.is_vlm:
        return []
    asked: dict[str, Any] = {"components": "vision.resid_post", "roles": ["image[0]", "image[2]"]}
    noised = iv.sweep(model, case.prompt, iv.Noise(seed=1), metrics=["kl"], progress=False, **asked)
    pictures = [picture.rotate(180) for picture in case.pictures]
    other = model.prompt(list(case.texts), images=pictures)
    scores = iv.attribute(
        model, case.prompt, other, answers="Paris", metric="logprob", verify=1, **asked
    )
    return [noised, scores]


# Reading out


@call
def lens(model: iv.Model, case: Case) -> Any:
    site = iv.Site("resid_post", layers_of(case), case.prompt.at("last"))
    [hidden] = iv.read(model, case.prompt, [site])
    return iv.lens(model, hidden, torch.tensor([[5, 6], [7, 8]]))[0]


@call
def lens_of_each_token(model: iv.Model, case: Case) -> Any:
    seen = iv.lens_map(model, case.prompt, "Paris", layers=layers_of(case))
    return seen[["logprob", "probability"]]


@call
def attention_of_each_token(model: iv.Model, case: Case) -> Any:
    return iv.attention_map(model, case.prompt, heads=[0, 1])


@call
def rolled_out(model: iv.Model, case: Case) -> Any:
    if model.anatomy.cross_blocks or any(part.recurrent for part in model.anatomy.parts):
        return None
    return iv.attention_map(model, case.prompt, rollout=True)


@call
def unembedded(model: iv.Model, case: Case) -> Any:
    return model.unembed(drawn(2, 2, model.d_model, seed=1))


@call
def patchscope(model: iv.Model, case: Case) -> Any:
    site = iv.Site("resid_post", layers_of(case)[1], case.place)
    values = iv.read(model, case.prompt, [site])[0]
    return iv.patchscope(model, values, layer=layers_of(case)[0], max_new_tokens=3)


# Many patches


def space_of(model: iv.Model) -> iv.Subspace:
    return iv.Subspace.random(model.d_model, 3, seed=2)


@call
def ran_within_a_subspace(model: iv.Model, case: Case) -> Any:
    source, (first, second, *_) = drawn(2, model.d_model), layers_of(case)
    patches = [
        space_of(model).interchange("resid_post", first, case.place, source),
        space_of(model).project_out("mlp_out", second, case.prompt.at("last")),
    ]
    replayed_cells = iv.replay(model, case.prompt, [[patch] for patch in patches])
    return [iv.run(model, case.prompt, patches=patches).logits, replayed_cells]


@call
def ran_with_features(model: iv.Model, case: Case) -> Any:
    with TemporaryDirectory() as folder:
        dictionaries = folders_of_dictionaries(case, Path(folder))
    patches = [one.patch([3, 1], case.place, 2.0, "add") for one in dictionaries]
    acts = [iv.feature_acts(model, case.prompt, one, case.place) for one in dictionaries]
    return [iv.run(model, case.prompt, patches=patches).logits, *acts]


@call
def learned_a_subspace(model: iv.Model, case: Case) -> Any:
    base, source = case.prompt.select([0, 1] * 3), case.prompt.select([1, 0] * 3)
    alignment = iv.das(
        model,
        base,
        source,
        expected=["Paris", "Madrid"] * 3,
        layer=layers_of(case)[1],
        at=base.at("last"),
        source_at=source.at("last"),
        size=2,
        epochs=2,
    )
    return [alignment.subspace.basis, torch.from_numpy(alignment.scores.loss.values)]


@call
def fitted_lenses(model: iv.Model, case: Case) -> Any:
    layer, last = layers_of(case)[1], model.n_layers - 1
    states = drawn(2, 3 * model.d_model, model.d_model, seed=5)
    tuned = iv.tuned_lens(model, states, layers=[layer, last], epochs=1)
    jacobian = iv.jacobian_lens(model, case.prompt, layers=[layer], skip=1)
    read = [
        iv.lens(model, states[:1, :2], torch.tensor([[5], [7]]), fitted=fitted)[0]
        for fitted in (tuned, jacobian)
    ]
    return [tuned.weight, jacobian.weight, *read]


def cells_of(case: Case) -> list[list[iv.Patch]]:
    """One patch each, of every sublayer of some blocks."""
    return [
        [iv.Patch(component, layer, case.place, drawn(2, case.model.d_model, seed=layer))]
        for component in ("attn_out", "mlp_out", "resid_post")
        for layer in layers_of(case)
    ]


@call
def replayed(model: iv.Model, case: Case) -> Any:
    return iv.replay(model, case.prompt, cells_of(case))


@call
def replayed_and_reduced(model: iv.Model, case: Case) -> Any:
    return iv.replay(model, case.prompt, cells_of(case), reduce=lambda cells: cells.amax(-1))


@call
def swept_from_a_prompt(model: iv.Model, case: Case) -> Any:
    return iv.sweep(
        model,
        case.prompt,
        case.prompt.select([1, 0]),
        **ASKED,
        metrics=["logprob", "logit_diff", "kl"],
        components=["mlp_out", "attn_out", "resid_post"],
        layers=layers_of(case),
        roles=["entity[-1]", "last"],
        read_roles=["last", "entity[-1]"],
        progress=False,
    )


@call
def steering_vectors(model: iv.Model, case: Case) -> Any:
    first, second = ([row] * 14 for row in (0, 1))
    vectors = iv.contrast_vectors(
        model,
        case.prompt.select(first),
        case.prompt.select(second),
        layers=layers_of(case)[1:],
        metric=iv.Direction(drawn(model.d_model)),
        controls=3,
    )
    answered = iv.complete(
        model,
        case.prompt,
        patches=[iv.steering(layers_of(case)[1], case.prompt.at("last"), vectors, steps="all")],
        candidates=WORDS,
        every_score=True,
        max_new_tokens=2,
    )
    return [vectors, answered.scores]


@call
def swept_by_functions_and_directions(model: iv.Model, case: Case) -> Any:
    metrics: list[Any] = [
        lambda logits: logits.logsumexp(-1),
        iv.Direction(drawn(model.d_model)),
        iv.Direction(drawn(model.anatomy.vocab), "logits", "over_logits"),
    ]
    return swept(model, case, 0.0, metrics=metrics)


@call
def attributed_to_a_direction(model: iv.Model, case: Case) -> Any:
    return iv.attribute(
        model,
        case.prompt,
        case.prompt.select([1, 0]),
        metric=iv.Direction(drawn(model.d_model)),
        roles=["last"],
        layers=layers_of(case)[:2],
        components=["mlp_out"],
        verify=2,
    )


def swept(model: iv.Model, case: Case, source: Any, **more: Any) -> xr.Dataset:
    """A sweep of few cells."""
    asked = {"answers": "Paris", "layers": layers_of(case)[:2], "roles": ["entity[-1]"]}
    return iv.sweep(model, case.prompt, source, **{**asked, **more}, progress=False)


@call
def curves_of_knockouts(model: iv.Model, case: Case) -> Any:
    """Of all heads, of each of two, and of what is not next to the last token."""
    routes = {"name": "entity -> last", "answer": (case.place, "answer")}
    return [
        iv.knockout_curves(
            model, case.prompt, routes, **ASKED, window=2, heads=heads, progress=False
        )
        for heads in (None, [0, 1])
    ]


@call
def swept_from_layers(model: iv.Model, case: Case) -> Any:
    return swept(model, case, iv.FromLayers(layers_of(case)[1:]))


@call
def swept_with_noise(model: iv.Model, case: Case) -> Any:
    return swept(model, case, iv.Noise(seed=4))


@call
def swept_to_zero(model: iv.Model, case: Case) -> Any:
    return swept(model, case, 0.0, window=2)


@call
def swept_with_a_value(model: iv.Model, case: Case) -> Any:
    """A value that was read from the model, and lies where that is."""
    site = iv.Site("resid_post", 0, case.place)
    return swept(model, case, iv.read(model, case.prompt, [site])[0][0])


@call
def swept_heads(model: iv.Model, case: Case) -> Any:
    return swept(model, case, 0.0, components="head_out", heads=slice(None))


@call
def swept_from_a_model(model: iv.Model, case: Case) -> Any:
    """From the model itself, which a VLM with its own language model is the backbone of."""
    source = iv.FromModel(iv.pair(model, model), case.prompt)
    return swept(model, case, source, read_roles=["last"])


@call
def transplanted(model: iv.Model, case: Case) -> Any:
    names = ["France", "the town"]
    texts = ["The capital of France is", "Who was in the town?"]
    source = model.prompt(texts, spans={"entity": names})
    patches = iv.transplant(
        iv.pair(model, model),
        source,
        layers=list(model.anatomy.self_blocks)[:2],
        read_at=source.at("entity", -1),
        write_at=case.prompt.at("last"),
    )
    return [patches[0].value, iv.run(model, case.prompt, patches=patches).logits]


# Attribution


def attributed(model: iv.Model, case: Case, **asked: Any) -> xr.Dataset:
    """Scores of some places."""
    settings: dict[str, Any] = {
        "roles": ["entity[-1]", "last"],
        "layers": layers_of(case)[:2],
        "components": ["mlp_out", "head_out"],
        "verify": False,
        "steps": 2,
    }
    return iv.attribute(model, case.prompt.select([1, 0]), case.prompt, **ASKED, **settings | asked)


@call
def attributed_by_gradients(model: iv.Model, case: Case) -> Any:
    return attributed(model, case, verify=2)


@call
def attributed_along_the_input(model: iv.Model, case: Case) -> Any:
    """From nothing: its rows are as long as the prompt's."""
    return iv.attribute(
        model,
        case.prompt,
        0.0,
        **ASKED,
        components=["mlp_out", "head_out"],
        layers=layers_of(case)[:2],
        roles=["entity[-1]", "last"],
        method="ig",
        steps=2,
        verify=False,
    )


@call
def attributed_along_activations(model: iv.Model, case: Case) -> Any:
    return attributed(model, case, method="ig-activations", layers=layers_of(case)[1:])


@call
def attributed_by_relevance(model: iv.Model, case: Case) -> Any:
    return attributed(model, case, method="relp")


@call
def attributed_to_a_baseline(model: iv.Model, case: Case) -> Any:
    """A baseline that was read from the model, and lies where that is."""
    baseline = iv.read(model, case.prompt, [iv.Site("resid_pre", 0)])[0] * 0.5
    return iv.attribute(
        model,
        case.prompt,
        baseline,
        **ASKED,
        components=["mlp_out"],
        layers=[0],
        roles=["last"],
        verify=False,
    )


@call
def edges_scored_and_checked(model: iv.Model, case: Case) -> Any:
    """Scores along the input, and some edges patched exactly."""
    given = (case.prompt, iv.read(model, case.prompt, [iv.Site("resid_pre", 0)])[0] * 0.5)
    scores = iv.attribute_edges(model, *given, **ASKED, method="ig", steps=2)
    verified = iv.verify_edges(model, scores, *given, **ASKED, k=4).data
    return verified[["score", "checked_effect"]]  # signs of what is nearly 0 are no numbers


@call
def circuits_and_paths(model: iv.Model, case: Case) -> Any:
    """All edges but a circuit's carry another run; and single ones do."""
    given = (case.prompt, iv.read(model, case.prompt, [iv.Site("resid_pre", 0)])[0] * 0.5)
    scores = iv.attribute_edges(model, *given, **ASKED, roles=["last"])
    kept = iv.faithfulness(model, scores, *given, **ASKED, circuits=[50], n_random=1).data
    paths = scores.circuit(2, prune=False).names
    return [kept, iv.path_patch(model, *given, paths, **ASKED, roles=["last"])]


# Collections


@call
def collected_and_probed(model: iv.Model, case: Case) -> Any:
    sites = {"name": iv.RoleSite("resid_post", layers_of(case), "entity", -1)}
    with TemporaryDirectory() as made:
        rows = [
            {"text": text, "spans": {"entity": "river"}}
            for text in ("The river", "Is the river", "A river", "This river", "One river") * 2
        ]
        activations = iv.collect(model, rows, sites, out=Path(made) / "rows", progress=False).load()
    rounded = activations["name"].values.round(4)  # a probe's test is of which side of a line
    labels = ["a", "b"] * 5
    return [activations, iv.probe(torch.from_numpy(rounded), labels, splits=2, n_controls=1)]


@call
def probed_where_they_lie(model: iv.Model, case: Case) -> Any:
    rows = torch.cat([drawn(1, 12, 6), drawn(1, 12, 6, seed=1)]).to(model.device)
    rows[:, ::2] += 2.0
    return [
        iv.probe(rows, ["a", "b"] * 6, method=method, splits=2) for method in ("logistic", "ridge")
    ]


@call
def drawn_as_a_heatmap(model: iv.Model, case: Case) -> Any:
    mpl.use("Agg")
    figure = iv.heatmap(swept(model, case, 0.0, roles=["last"]))
    return len(figure.axes)
