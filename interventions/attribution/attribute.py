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
from interventions.attribution.contrast import (
    DIRECTIONS,
    Contrast,
    Direction,
    make_contrast,
)
from interventions.attribution.estimates import METHODS, Method, estimates
from interventions.attribution.passes import Place
from interventions.errors import PromptError, RoleError, SiteError
from interventions.given import flag, names, one_of, one_or_several, plain, seed_of, whole
from interventions.model.fingerprints import Unchanged
from interventions.model.model import Model
from interventions.model.sites import COMPONENTS, Component, Layers, check_component, layer_list
from interventions.prompt.columns import check_same_tokens, role_labels
from interventions.prompt.prompt import Prompt
from interventions.results import provenance, with_provenance
from interventions.running.checking import check_asked
from interventions.sweeping.metrics import METRICS, UNITS, Answers, Metric, target

GRADIENT_METRICS: tuple[Metric, ...] = ("logprob", "logit_diff")
TOKENS_AT_ONCE = 4096
MOST_STEPS = 1000  # the points of the rule are eigenvalues of a matrix of that size
SITES: tuple[Component, ...] = ("resid_post", "attn_out", "mlp_out", "head_out")


def attribute(
    model: Model,
    clean: Prompt,
    corrupt: Prompt | torch.Tensor | float,
    *,
    answers: Answers,
    foils: Answers | None = None,
    metric: Metric = "logit_diff",
    components: Sequence[Component] = SITES,
    layers: Layers | None = None,
    roles: Sequence[str] | None = None,
    by_role: bool = False,
    method: Method = "patching",
    direction: Direction = "denoising",
    steps: int = 8,
    verify: int | Literal[False] = 16,
    seed: int = 0,
    batch_size: int | None = None,
) -> xr.Dataset:
    """Estimate, for every place, what putting the other run's value there does to the metric.

    The score of a place is ``(value in the source run - value in the run) . gradient of the
    metric``, an estimate of ``metric(run, patched there) - metric(run)``. By default ("denoising",
    as in the papers) the corrupt prompt runs and the clean run is the source: positive scores
    restore the clean answer.

    Parameters
    ----------
    model : Model
        Weights need no gradient and get none. On a server, one request, and one for ``verify``.
    clean : Prompt
    corrupt : Prompt, or Tensor [row, position, d_model], [d_model], or number
        Rows that differ from the clean ones in what is studied; or what enters the first block in
        place of the clean embeddings.
    answers, foils : str, or sequence of str or of token ids
        One text for all rows, or one per row, as a text or as the ids of its tokens; may be
        several tokens long.
    metric : {"logit_diff", "logprob"}
        In nats, of whole answers. The others have no gradient.
    components : sequence of str
        Of ``"resid_pre"``, ``"head_out"``, ``"attn_out"``, ``"mlp_out"``, ``"resid_post"``.
    layers : int, slice or list of int, optional
        Default: every block that runs.
    roles : sequence of str, optional
        Compare these tokens, such as ``("entity[-1]", "last")``, wherever they are in each prompt.
        A role's tokens are summed. Default: all positions, which must correspond.
    by_role : bool
        Sum all positions by role; each token counts for the narrowest of its roles.
    method : str
        ``"patching"``: gradient of the run (Nanda, "Attribution Patching", 2023; Syed et al.,
        2023). ``"ig"``: mean gradient on the straight line between the embeddings of both runs
        (Sundararajan et al., ICML 2017; Hanna et al., "Have Faith in Faithfulness", COLM 2024).
        ``"ig-activations"``: for each component of each layer, on the line between its values
        (Marks et al., "Sparse Feature Circuits", ICLR 2025); ``steps`` passes for each.
        ``"relp"``: relevance coefficients instead of gradients (Rezaei Jafari et al., 2025); see
        :mod:`interventions.attribution.relevance`.
    direction : {"denoising", "noising"}
        Which prompt runs: the corrupt or the clean one. The other is the source.
    steps : int
        Points of the Gauss-Legendre rule along the line.
    verify : int or False
        How many of the highest-scored and of randomly drawn places are patched exactly, for each
        component.
    seed : int
        For that draw and its bootstrap.
    batch_size : int, optional
        Rows per pass. Default: what makes 4096 tokens. The backward pass holds the activations of
        these rows. 1, where rows that run together would change each other
        (``model.anatomy.dependent_rows``).

    Returns
    -------
    Dataset
        ``score`` (item, component, layer, position or role), nats; NaN where a row has no token.
        That of ``head_out`` is the sum over heads; ``head_score`` (item, layer, ..., head) has
        them. ``run_metric`` and ``source_metric`` (item), nats. ``completeness_error`` with the
        integrated gradients: the sum of the scores minus what it should be, for the whole input
        (item), or for a component of a layer at all these places together (item, component,
        layer). What :func:`interventions.verify` adds. ``item`` is the row of the prompts given;
        rows left out are in the attribute ``left_out``.

    Raises
    ------
    PromptError
        For a metric without gradients, or prompts that do not belong together.
    RoleError
        For rows of different length, with what to do.
    SiteError
        For a server or quantised layers that let no gradients through, a place the model does
        not have, or a part RelP has no rule for.

    Examples
    --------
    >>> scores = iv.attribute(llm, named, other, answers="Marlow", foils="Brenn", verify=2)
    >>> scores["score"].sizes
    Frozen({'item': 1, 'component': 4, 'layer': 8, 'position': 12})
    >>> figure = iv.heatmap(scores)
    """
    check_asked(model, clean)
    if kind := without_gradients(model.module):
        raise SiteError(
            f"{model.name} is quantised ({kind}): no gradient comes back through its layers, and "
            "scores would miss what goes through them. Attribute on the model that it was made "
            "from, or patch exactly (iv.sweep)."
        )
    check_settings(metric, method, steps)
    answers = one_or_several(answers, "answers")
    foils = None if foils is None else one_or_several(foils, "foils")
    k = None if _no(verify) else whole(verify, "verify (verify=False checks none)", least=1)
    seed = seed_of(seed)
    by_role = flag(by_role, "by_role")
    batch_size = None if batch_size is None else whole(batch_size, "batch_size", least=1)
    roles = None if roles is None else names(roles, "roles=", error=RoleError, once=True)
    contrast = make_contrast(
        model,
        clean,
        corrupt,
        target=target(model, clean, answers, foils),
        metric=metric,
        direction=direction,
        roles=roles,
        by_role=by_role,
    )
    if method == "ig":
        check_input_line(model, contrast)
    places = which_places(model, components, layers, contrast)
    n = len(contrast.items)
    size = batch_size or max(1, TOKENS_AT_ONCE // (clean.length * contrast.target.repeats))
    if model.anatomy.dependent_rows is not None:
        size = 1
    batches = [contrast.rows(range(n)[i : i + size]) for i in range(0, n, size)]
    with Unchanged(model):
        parts = estimates(model, batches, places, method, steps)
    dataset = xr.merge([_labels(model, contrast, clean, corrupt), xr.concat(parts, "item")])
    dataset = dataset.assign_coords(item=contrast.items)
    for values in dataset.data_vars.values():
        values.attrs["units"] = UNITS[metric]
    dataset.attrs |= {
        "method": method,
        "method_name": METHODS[method],
        "metric": metric,
        "direction": direction,
        "meaning": "estimated change of the metric if " + DIRECTIONS[direction],
        "by_role": by_role,
        "roles": json.dumps(None if roles is None else list(roles)),
        "steps": steps if method.startswith("ig") else 0,
        "precision": str(model.dtype).removeprefix("torch."),
        "left_out": json.dumps(contrast.missing),
        "verified": "not verified",
    }
    settings = {
        "contrast": contrast.digest,
        "answers": answers,
        "foils": foils,
        "metric": metric,
        "components": dataset["component"].values.tolist(),
        "layers": dataset["layer"].values.tolist(),
        "roles": roles,
        "by_role": by_role,
        "method": method,
        "direction": direction,
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


def check_settings(metric: str, method: str, steps: int) -> None:
    """Refuse what cannot be done, before anything runs."""
    one_of(method, "method", METHODS)
    one_of(metric, "metric", METRICS)
    whole(steps, "steps (at least 1)", least=1, most=MOST_STEPS)
    if metric not in GRADIENT_METRICS:
        raise PromptError(
            f"metric {metric!r} has no gradient that says anything here. Use one of "
            f"{', '.join(GRADIENT_METRICS)}, or an exact sweep."
        )


def check_input_line(model: Model, contrast: Contrast) -> None:
    """Refuse a line between two inputs that are more than their embeddings."""
    run, source = contrast.run.prompt, contrast.source.prompt
    check_same_tokens(run, source)
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
    model: Model, components: Sequence[Component], layers: Layers | None, contrast: Contrast
) -> list[Place]:
    """Every component of every layer, in the order of computation."""
    components = names(components, "components=", error=SiteError)  # pyright: ignore
    if not components:
        raise SiteError(f"components= is empty. Known: {', '.join(COMPONENTS)}.")
    chosen = {check_component(one) for one in components}
    images = contrast.run.prompt.has_images and contrast.source.prompt.has_images
    anatomy = model.anatomy
    running = range(model.n_layers) if images else anatomy.self_blocks
    asked = list(running) if layers is None else layer_list(layers, model.n_layers)
    if lost := sorted(set(asked) - set(running)):
        raise SiteError(
            f"block(s) {lost} of {model.name} are cross-attention blocks, which do not run without "
            "an image in both prompts. Leave them out."
        )
    blind = [layer for layer in asked if anatomy.parts[layer].projection is None]
    if "head_out" in chosen and blind:
        raise SiteError(
            f"the heads of block(s) {blind[:8]} of {model.name} cannot be told apart. Leave "
            '"head_out" out of components=.'
        )
    return [(one, layer) for layer in sorted(set(asked)) for one in COMPONENTS if one in chosen]


def _labels(model: Model, contrast: Contrast, clean: Prompt, corrupt: object) -> xr.Dataset:
    """What the items and columns are called."""
    rows = contrast.items
    texts = {"answer": contrast.target.answers, "foil": contrast.target.foils}
    coords: dict[str, object] = {
        name: ("item", np.array([model.tokenizer.decode(one) for one in tokens], dtype=object))
        for name, tokens in texts.items()
        if tokens is not None
    }
    if not contrast.each:
        return xr.Dataset(coords={**coords, "role": contrast.columns.names})
    sides = {"token": clean}
    if isinstance(corrupt, Prompt):
        sides["corrupt_token"] = corrupt
    kept = clean.select(rows)
    coords["position"] = np.arange(clean.length)
    coords["role"] = (("item", "position"), np.array(role_labels(kept), dtype=object))
    for name, prompt in sides.items():
        ids = prompt.inputs["input_ids"][rows].tolist()
        words = [[model.tokenizer.decode([one]) for one in row] for row in ids]
        coords[name] = (("item", "position"), np.array(words, dtype=object))
    return xr.Dataset(coords=coords)
