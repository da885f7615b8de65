"""How much each place of a model matters, from gradients, and checked by intervening.

An exact sweep runs the model once per place; a gradient gives a linear estimate of all of them
from two forward passes and one backward pass. The estimate can be badly wrong, so it is given with
its agreement with exact patching (:mod:`interventions.attribution.agreement`).
"""

import json
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr

from interventions.architectures.quantisation import without_gradients
from interventions.attribution.agreement import add_agreement
from interventions.attribution.estimates import METHODS, Method, estimates
from interventions.attribution.passes import Place
from interventions.attribution.sides import Given, contrast_digest, contrast_of, side_digest
from interventions.errors import PromptError, RoleError, SiteError
from interventions.given import flag, names, of_kind, one_of, one_or_several, plain, seed_of, whole
from interventions.model.fingerprints import Unchanged
from interventions.model.model import Model
from interventions.model.sites import COMPONENTS, TOWER, Component, Layers, check_runs
from interventions.prompt.prompt import Prompt
from interventions.results import provenance, with_provenance
from interventions.sweeping.contrast import Contrast, Embedded, prompt_of
from interventions.sweeping.grid import chosen_components, chosen_layers, space_among
from interventions.sweeping.labels import (
    answer_words,
    picture_places,
    token_labels,
    token_words,
)
from interventions.sweeping.metrics import METRICS, Answers, Metric, Named, unit_of
from interventions.sweeping.own_metrics import is_own, metric_name

GRADIENT_METRICS: tuple[Named, ...] = ("logprob", "logit_diff")
TOKENS_AT_ONCE = 4096
MOST_STEPS = 1000  # the points of the rule are eigenvalues of a matrix of that size
SITES: tuple[Component, ...] = ("resid_post", "attn_out", "mlp_out", "head_out")
BEHIND_THE_TOWER: dict[str, str] = {
    "ig": "goes along the embeddings that enter the language model, behind the vision tower",
    "relp": "has rules for the language model's parts, and none for those of a vision tower",
}
OF_THE_TOWER = 'Of the tower use method="patching" or "ig-activations", or sweep it (iv.sweep).'
MEANING = "estimated change of the metric if prompt runs, and values of source are put into it"


def attribute(
    model: Model,
    prompt: Given,
    source: Given,
    *,
    answers: Answers | None = None,
    foils: Answers | None = None,
    metric: Metric = "logit_diff",
    components: str | Sequence[str] = SITES,
    layers: Layers | None = None,
    roles: Sequence[str] | None = None,
    read_roles: Sequence[str] | None = None,
    each: bool = False,
    by_role: bool = False,
    method: Method = "patching",
    steps: int = 8,
    verify: int | Literal[False] = 16,
    seed: int = 0,
    batch_size: int | None = None,
) -> xr.Dataset:
    """Estimate, for every place, what putting the value of another run there does to the metric.

    As in :func:`interventions.sweep`, ``prompt`` runs, and values of ``source`` are put into it.
    The score of a place is ``(value in source - value in prompt) . gradient of the metric``, an
    estimate of ``metric(run, patched there) - metric(run)``. With a corrupt ``prompt`` and a clean
    ``source`` this is what papers call denoising: positive scores restore the clean answer. The
    other way round it is noising.

    Parameters
    ----------
    model : Model
        Weights need no gradient and get none. On a server, one request, and one for ``verify``.
    prompt : Prompt, or Tensor [row, position, d_model], [d_model], or number
        The runs that are patched; a row is an item. Numbers are a baseline: the rows of ``source``
        with these values entering the first block in place of their embeddings.
    source : Prompt, or Tensor [row, position, d_model], [d_model], or number
        Where values come from: the same model on another prompt or image (row for row), or on the
        rows of ``prompt`` with numbers entering the first block. Only one of the two can be
        numbers. (A sweep writes a number at the place itself, for it needs no second run.)
    answers, foils : str, or sequence of str or of token ids
        For the metric; one text for all rows, or one per row, as a text or as the ids of its
        tokens. Answers of several tokens are scored whole.
    metric : {"logit_diff", "logprob"} or callable
        In nats; or a function of logits [row, vocab] at the token that predicts the answer, which
        gives a number for each row by itself, [row], and has a gradient; or a
        :class:`interventions.Direction`. One, as each takes a backward pass of its own; other
        named ones have no gradient.
    components : str or sequence of str
        Of ``"resid_pre"``, ``"head_out"``, ``"attn_out"``, ``"mlp_out"``, ``"resid_post"``; or the
        same of the vision tower's blocks, ``"vision.resid_post"``: columns are its tokens, and the
        gradient comes back through the projector.
    layers : int, slice or list of int, optional
        Default: all that run.
    roles : sequence of str, optional
        Columns: all tokens of ``"entity"`` together, or one of them, ``"entity[-1]"``, wherever
        they are in each prompt. Default: each token of the prompt is a column.
    read_roles : sequence of str, optional
        Where the values are read, one for each of ``roles``. Default: the same.
    each : bool
        A column for each token of the roles.
    by_role : bool
        Sum over all tokens by role; each token counts for the narrowest of its roles. Not in a
        sweep: estimates add up, effects of patches do not.
    method : str
        ``"patching"``: gradient of the run (Nanda, "Attribution Patching", 2023; Syed et al.,
        2023). ``"ig"``: mean gradient on the straight line between the embeddings of both runs
        (Sundararajan et al., ICML 2017; Hanna et al., "Have Faith in Faithfulness", COLM 2024).
        ``"ig-activations"``: for each component of each layer, on the line between its values
        (Marks et al., "Sparse Feature Circuits", ICLR 2025); ``steps`` passes for each.
        ``"relp"``: relevance coefficients instead of gradients (Rezaei Jafari et al., 2025); see
        :mod:`interventions.attribution.relevance`.
    steps : int
        Points of the Gauss-Legendre rule along the line.
    verify : int or False
        How many of the highest-scored and of randomly drawn places are patched exactly, for each
        component.
    seed : int
        For that draw and its bootstrap.
    batch_size : int, optional
        Rows per pass. Default: what makes 4096 tokens. The backward pass holds the activations of
        these rows, which is why it is no ``budget`` in bytes, as of a sweep. 1, where rows that
        run together would change each other (``model.anatomy.dependent_rows``).

    Returns
    -------
    Dataset
        ``score`` (item, component, layer, position or role), nats; NaN where a row has no token.
        That of ``head_out`` is the sum over heads; ``head_score`` (item, layer, ..., head) has
        them. ``run_metric`` and ``source_metric`` (item), nats, without any patch.
        ``completeness_error`` with the integrated gradients: the sum of the scores minus what it
        should be, for the whole input (item), or for a component of a layer at all these places
        together (item, component, layer). What :func:`interventions.verify` adds. ``item`` is the
        row of the prompts given; rows left out are in the attribute ``left_out``. Attributes say
        what was done, and which side is which: ``prompt`` ran, and ``source`` gave the values.

    Raises
    ------
    PromptError
        For a metric without gradients, or prompts that do not belong together.
    RoleError
        For rows of different length, with what to do.
    SiteError
        For a server or quantised layers that let no gradients through, a place the model does
        not have, or a part RelP has no rule for.
    PatchError
        For a baseline that does not fit, or numbers that are NaN.

    Examples
    --------
    >>> scores = iv.attribute(llm, other, named, answers="Marlow", foils="Brenn", verify=2)
    >>> scores["score"].sizes
    Frozen({'item': 1, 'component': 4, 'layer': 8, 'position': 12})
    >>> figure = iv.heatmap(scores)
    """
    of_kind(model, Model, "the model", error=PromptError)
    if kind := without_gradients(model.module):
        raise SiteError(
            f"{model.name} is quantised ({kind}): no gradient comes back through its layers, and "
            "scores would miss what goes through them. Attribute on the model that it was made "
            "from, or patch exactly (iv.sweep)."
        )
    check_settings(metric, method, steps)
    k = None if _no(verify) else whole(verify, "verify (verify=False checks none)", least=1)
    seed = seed_of(seed)
    batch_size = None if batch_size is None else whole(batch_size, "batch_size", least=1)
    asked: dict[str, Any] = {
        "roles": None if roles is None else names(roles, "roles=", error=RoleError),
        "read_roles": None
        if read_roles is None
        else names(read_roles, "read_roles=", error=RoleError),
        "each": flag(each, "each"),
        "by_role": flag(by_role, "by_role"),
    }
    # Read once: what is given may be an iterator.
    answers = None if answers is None else one_or_several(answers, "answers")
    foils = None if foils is None else one_or_several(foils, "foils")
    chosen = chosen_components(components)
    of = space_among(chosen)
    contrast = contrast_of(
        model, prompt, source, answers=answers, foils=foils, metric=metric, of=of, **asked
    )
    if method in BEHIND_THE_TOWER and of == "tower":
        raise SiteError(f"method={method!r} {BEHIND_THE_TOWER[method]}. {OF_THE_TOWER}")
    if method == "ig":
        check_input_line(model, contrast)
    places = which_places(model, chosen, layers, contrast)
    n = len(contrast.items)
    long = contrast.prompt.length + (contrast.columns.length_in(contrast.prompt) * (of == "tower"))
    size = batch_size or max(1, TOKENS_AT_ONCE // (long * contrast.target.repeats))
    if model.anatomy.dependent_rows is not None:
        size = 1
    batches = [contrast.rows(range(n)[i : i + size]) for i in range(0, n, size)]
    with Unchanged(model):
        parts = estimates(model, batches, places, method, steps)
    dataset = xr.merge([_labels(model, contrast), xr.concat(parts, "item")])
    dataset = dataset.assign_coords(item=contrast.items)
    for values in dataset.data_vars.values():
        values.attrs["units"] = unit_of(metric)
    dataset.attrs |= {
        "method": method,
        "method_name": METHODS[method],
        "metric": metric_name(metric),
        "prompt": _said(contrast.run),
        "source": _said(contrast.source),
        "meaning": MEANING,
        **asked,
        "roles": json.dumps(asked["roles"]),
        "read_roles": json.dumps(asked["read_roles"]),
        "steps": steps if method.startswith("ig") else 0,
        "precision": str(model.dtype).removeprefix("torch."),
        "left_out": contrast.left_out,
        "verified": "not verified",
    }
    settings = {
        "contrast": contrast_digest(contrast),
        "prompt": side_digest(contrast.run),
        "source": side_digest(contrast.source),
        "answers": answers,
        "foils": foils,
        "metric": metric_name(metric),
        "components": dataset["component"].values.tolist(),
        "layers": dataset["layer"].values.tolist(),
        **asked,
        "method": method,
        "steps": steps,
        "verify": k,
    }
    dataset = with_provenance(dataset, provenance(model=model), settings=settings)
    if k is None:
        return dataset
    return add_agreement(model, contrast, dataset, k=k, seed=seed)


def _no(verify: Any) -> bool:
    """Whether nothing is to be checked; True says no number, and is refused as one."""
    return isinstance(plain(verify), bool) and not plain(verify)


def check_settings(metric: Metric, method: str, steps: int) -> None:
    """Refuse what cannot be done, before anything runs."""
    one_of(method, "method", METHODS)
    whole(steps, "steps (at least 1)", least=1, most=MOST_STEPS)
    if is_own(metric):
        return
    one_of(metric, "metric", METRICS)
    if metric not in GRADIENT_METRICS:
        raise PromptError(
            f"metric {metric!r} has no gradient that says anything here. Use one of "
            f"{', '.join(map(str, GRADIENT_METRICS))}, a function of logits, or an exact sweep."
        )


def check_input_line(model: Model, contrast: Contrast) -> None:
    """Refuse a line between two inputs that are more than their embeddings."""
    source: Any = contrast.source
    run, source = contrast.prompt, prompt_of(source)
    if not torch.equal(run.lengths, source.lengths):
        raise RoleError(
            f'method="ig" goes from the embeddings of one run to those of the other, token by '
            f"token, whatever the roles; their rows differ in length: {run.lengths.tolist()[:8]} "
            f'and {source.lengths.tolist()[:8]} tokens. Use method="ig-activations", '
            '"relp" or "patching", or names of as many tokens and images of the same size.'
        )
    anatomy = model.anatomy
    aside = anatomy.cross_blocks or anatomy.added_between
    if run.has_images and aside:
        images = [{k: p.inputs[k] for k in p.entries} for p in (run, source)]
        same = all(torch.equal(images[0][key], images[1][key]) for key in images[0])
        if not same:
            raise SiteError(
                f"in {model.name} images do not only enter with the embeddings, so the line "
                "between two embeddings does not lead from one image to the other. Use method="
                '"ig-activations", "relp" or "patching".'
            )


def which_places(
    model: Model, components: str | Sequence[str], layers: Layers | None, contrast: Contrast
) -> list[Place]:
    """Every component of every layer, in the order of computation."""
    chosen = chosen_components(components)
    if contrast.of_tower:
        asked = chosen_layers(model, layers, images=True, of="tower")
        return [(name, layer) for layer in sorted(set(asked)) for name in TOWER if name in chosen]
    asked = chosen_layers(model, layers, images=contrast.has_images)
    for layer in asked:
        check_runs(model, layer, images=contrast.has_images)
    blind = [layer for layer in asked if model.anatomy.parts[layer].projection is None]
    if "head_out" in chosen and blind:
        raise SiteError(
            f"the heads of block(s) {blind[:8]} of {model.name} cannot be told apart. Leave "
            '"head_out" out of components=.'
        )
    return [
        (component, layer)
        for layer in sorted(set(asked))
        for component in COMPONENTS
        if component in chosen
    ]


def _labels(model: Model, contrast: Contrast) -> xr.Dataset:
    """What the items and columns are called."""
    texts = {"answer": contrast.target.answers, "foil": contrast.target.foils}
    coords: dict[str, Any] = {
        name: ("item", np.array(answer_words(model, tokens), dtype=object))
        for name, tokens in texts.items()
        if tokens is not None and any(tokens)
    }
    names = contrast.columns.names
    dim = "position" if contrast.each else "role"
    coords |= picture_places(contrast.prompt, contrast.columns, dim)
    if not contrast.each:
        return xr.Dataset(coords={**coords, "role": names})
    coords |= {
        "position": np.arange(len(names)),
        **token_labels(model, contrast.prompt, contrast.columns),
    }
    if contrast.of_tower:
        return xr.Dataset(coords=coords)
    if isinstance(contrast.source, Prompt) and isinstance(contrast.run, Prompt):
        words = token_words(model, contrast.source, contrast.read_columns)
        coords["source_token"] = (("item", "position"), words)
    return xr.Dataset(coords=coords)


def _said(side: Any) -> str:
    """What a side is, in words: which of two it is can be read from this."""
    if isinstance(side, Embedded):
        first = side.value.flatten()[0]
        what = f"{first.item():g}" if bool((side.value == first).all()) else "a baseline"
        return f"{what} entering the first block, in place of embeddings"
    more = f" (and {len(side) - 1} more)" if len(side) > 1 else ""
    return f"{side.texts[0]}{more}"
