"""Edge attribution, its agreement with exact patching, and path patching."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from interventions.architectures.quantisation import without_gradients
from interventions.attribution.agreement import RESAMPLES, _resampled_spearman, spearman
from interventions.attribution.attribute import MOST_STEPS, check_input_line
from interventions.attribution.sides import Given
from interventions.circuits.asked import as_asked, batches_of, edge_contrast, settings_of
from interventions.circuits.carried import carried_by_name
from interventions.circuits.estimates import METHODS, Method, edge_estimates
from interventions.circuits.exact import exact_edges
from interventions.circuits.graph import ARROW
from interventions.circuits.scores import GRAPH, EdgeScores, graph_text
from interventions.errors import ResultsError, SiteError
from interventions.given import flag, names, of_kind, one_of, seed_of, several, whole
from interventions.model.fingerprints import Unchanged
from interventions.model.model import Model
from interventions.results import provenance, read_provenance, with_provenance
from interventions.sweeping.labels import answer_words
from interventions.sweeping.metrics import Answers, Metric, unit_of

MEANING = "estimated change of the metric if prompt runs, and an edge carries what source writes"


def attribute_edges(
    model: Model,
    prompt: Given,
    source: Given,
    *,
    answers: Answers | None = None,
    foils: Answers | None = None,
    metric: Metric = "logit_diff",
    roles: Sequence[str] | None = None,
    read_roles: Sequence[str] | None = None,
    by_role: bool = False,
    method: Method = "eap",
    steps: int = 5,
    batch_size: int | None = None,
) -> EdgeScores:
    """Estimate, for every edge between parts of a model, what it carries.

    ``prompt`` runs. An edge leads from what writes to the residual stream (the input, a head, an
    MLP) to what reads it later (queries, keys or values of a head, an MLP, the logits). Its score
    is ``(what the sender writes in source - what it writes in prompt) . gradient of the metric
    with respect to what the receiver reads``: an estimate of what
    patching this edge alone does to the metric. The gradient goes through the norm in front of the
    receiver.

    Parameters
    ----------
    model : Model
        Weights need no gradient and get none. On a server, one request.
    prompt, source : Prompt, or a baseline
        As of :func:`interventions.attribute`, row for row; rows of the same length, unless
        ``roles`` say which tokens correspond. For a circuit of a behaviour, ``prompt`` is the
        clean one, and ``source`` the corrupted one.
    answers, foils, metric
        As of :func:`interventions.attribute`: ``"logit_diff"``, ``"logprob"``, a function of
        logits or a :class:`interventions.Direction`. One of the residual stream is of what the
        final norm reads, with what an edge into the logits carries.
    roles, read_roles : sequence of str, optional
        Edges at these tokens only, with a score for each role. Default: at all tokens, summed.
    by_role : bool
        At all tokens, with a score for each role.
    method : {"eap", "ig", "clean-corrupted"}
        ``"eap"``: the gradient of the run (Syed, Rager and Conmy, "Attribution Patching
        Outperforms Automated Circuit Discovery", 2023). ``"ig"``: its mean on the line between the
        embeddings of both runs, EAP-IG (Hanna, Pezzelle and Belinkov, "Have Faith in
        Faithfulness", COLM 2024). ``"clean-corrupted"``: the mean of its two ends.
    steps : int
        Points of the Gauss-Legendre rule along that line.
    batch_size : int, optional
        Rows per pass.

    Returns
    -------
    EdgeScores
        With every item's scores; ``.circuit(n)``, ``.table()``, ``.to_dataframe()``, ``.save()``.

    Raises
    ------
    PromptError, RoleError, PatchError
        As of :func:`interventions.attribute`.
    SiteError
        For a server or quantised layers that let no gradients through, and pictures that differ
        where blocks read them beside the residual stream.

    Examples
    --------
    >>> scores = iv.attribute_edges(llm, named, other, answers="Marlow", foils="Brenn")
    >>> scores.circuit(20)  # doctest: +ELLIPSIS
    <Circuit: ... of ... edges>
    """
    contrast, asked = edge_contrast(
        model,
        prompt,
        source,
        answers=answers,
        foils=foils,
        metric=metric,
        roles=roles,
        read_roles=read_roles,
        by_role=by_role,
    )
    if kind := without_gradients(model.module):
        raise SiteError(
            f"{model.name} is quantised ({kind}): no gradient comes back through its layers. Score "
            "edges on the model that it was made from, or sweep (iv.sweep)."
        )
    one_of(method, "method", METHODS)
    steps = whole(steps, "steps (at least 1)", least=1, most=MOST_STEPS)
    batch_size = None if batch_size is None else whole(batch_size, "batch_size", least=1)
    if method != "eap":
        check_input_line(model, contrast)
    columns = asked["by_role"] or asked["roles"] is not None
    batches = batches_of(model, contrast, batch_size)
    with Unchanged(model):
        parts = edge_estimates(model, batches, method, steps, columns=columns)
    if isinstance(parts, str):
        raise SiteError(parts)
    graph = parts[0].graph
    roles_of_scores = max((part.columns for part in parts), key=len)
    score = np.concatenate([_padded(part.score, len(roles_of_scores)) for part in parts])
    dims = ("item", "edge", "role") if columns else ("item", "edge")
    words: dict[str, Any] = {}
    if contrast.target.answers[0]:
        told = answer_words(model, contrast.target.answers)
        words["answer"] = ("item", np.array(told, dtype=object))
    data = xr.Dataset(
        {
            "score": (dims, score if columns else score[..., 0], {"units": unit_of(metric)}),
            "run_metric": ("item", np.concatenate([part.run for part in parts])),
            "source_metric": ("item", np.concatenate([part.source for part in parts])),
            "sender": ("edge", graph.edges[:, 0]),
            "receiver": ("edge", graph.edges[:, 1]),
        },
        coords={"item": contrast.items, "edge": np.arange(len(graph.edges)), **words},
        attrs={
            GRAPH: graph_text(graph),
            "method": method,
            "method_name": METHODS[method],
            "metric": asked["metric"],
            "meaning": MEANING,
            "left_out": contrast.left_out,
            "passes": _passes(method, steps),
        },
    )
    if columns:
        data = data.assign_coords(role=roles_of_scores)
    settings = settings_of(contrast, {**asked, "method": method, "steps": steps})
    return EdgeScores(with_provenance(data, provenance(model=model), settings=settings))


def _padded(score: np.ndarray, n_columns: int) -> np.ndarray:
    """Scores [item, edge, column] with as many columns as rows with longer answers have."""
    missing = n_columns - score.shape[-1]
    return np.pad(score, ((0, 0), (0, 0), (0, missing)))


def _passes(method: Method, steps: int) -> str:
    """How many passes of the model scores of all edges took."""
    points = {"eap": 0, "ig": steps, "clean-corrupted": 1}[method]
    return f"{2 + points} forward, {1 + points} backward"


def verify_edges(
    model: Model,
    scores: EdgeScores,
    prompt: Given,
    source: Given,
    *,
    answers: Answers | None = None,
    foils: Answers | None = None,
    metric: Metric | None = None,
    k: int = 16,
    seed: int = 0,
    budget: int | None = None,
) -> EdgeScores:
    """Patch some edges exactly, each alone, and say how far their scores agree.

    The ``k`` edges of the largest mean score, of either sign, and ``k`` drawn from all whose score
    is not 0. What a patched edge changes is computed by the receiver's own norm and projection,
    and only the blocks above it are run.

    Parameters
    ----------
    model, prompt, source, answers, foils
        What :func:`interventions.attribute_edges` was given.
    scores : EdgeScores
    metric : callable, optional
        The same again, where it was a function or a direction: results hold its name and no code.
    k : int
    seed : int
        For the draw and the bootstrap.
    budget : int, optional
        Bytes that may be used. Default: part of what is free.

    Returns
    -------
    EdgeScores
        With ``spearman`` (sample): rank correlation of mean score and mean exact effect,
        ``spearman_low`` and ``spearman_high``: its 95 % interval, bootstrap over edges;
        ``sign_agreement``, ``n_checked``; and for every edge that was patched (checked)
        ``checked_edge``, ``checked_score`` and ``checked_effect`` (item, checked),
        ``checked_top``, ``checked_random``. The attribute ``cost`` says how many tokens went
        through a block, and how many that were with a pass for each edge.

    Raises
    ------
    ResultsError
        If the scores are of other prompts, or of another model.
    """
    of_kind(scores, EdgeScores, "scores", error=ResultsError)
    k, seed = whole(k, "k", least=1), seed_of(seed)
    budget = None if budget is None else whole(budget, "budget", least=1)
    contrast, _ = as_asked(
        model, scores.data, prompt, source, answers=answers, foils=foils, metric=metric
    )
    rng = np.random.default_rng(seed)
    mean = scores.mean
    there = np.flatnonzero(mean != 0) if (mean != 0).any() else np.arange(len(mean))
    samples = {
        "top": there[np.argsort(-np.abs(mean[there]), kind="stable")[:k]],
        "random": rng.choice(there, min(k, len(there)), replace=False),
    }
    edges = sorted({int(edge) for own in samples.values() for edge in own})
    with Unchanged(model):
        parts = exact_edges(model, batches_of(model, contrast, None), edges, budget)
    if isinstance(parts, str):
        raise SiteError(parts)
    effect = np.concatenate([part.effect for part in parts])
    spent, alone = (sum(getattr(part, n) for part in parts) for n in ("token_blocks", "alone"))
    place = {edge: i for i, edge in enumerate(edges)}
    numbers: dict[str, list[float]] = {}
    for own in samples.values():
        score, exact = mean[own], effect[:, [place[int(edge)] for edge in own]].mean(0)
        draws = rng.integers(len(own), size=(RESAMPLES, len(own)))
        again = _resampled_spearman(score, exact, draws)
        again = again[np.isfinite(again)]
        low, high = np.quantile(again, (0.025, 0.975)) if again.size else (np.nan, np.nan)
        statistics = {
            "spearman": spearman(score, exact),
            "spearman_low": float(low),
            "spearman_high": float(high),
            "sign_agreement": float(np.mean(np.sign(score) == np.sign(exact))),
            "n_checked": len(own),
        }
        for name, value in statistics.items():
            numbers.setdefault(name, []).append(value)
    checked = xr.Dataset(
        {
            **{name: ("sample", np.array(values)) for name, values in numbers.items()},
            "checked_edge": ("checked", np.array(edges)),
            "checked_score": (("item", "checked"), scores.per_item[:, edges]),
            "checked_effect": (("item", "checked"), effect),
            **{
                f"checked_{name}": ("checked", np.isin(edges, own)) for name, own in samples.items()
            },
        },
        coords={"sample": [*samples], "item": scores.data["item"]},
    )
    plain = scores.data.drop_vars([v for v in checked.variables if v in scores.data.data_vars])
    plain = plain.drop_dims([d for d in ("sample", "checked") if d in plain.dims])
    data = xr.merge([plain, checked], combine_attrs="drop")
    data.attrs = {
        **scores.data.attrs,
        "verified": f"up to {k} top and {k} random edges, patched exactly",
        "cost": f"{spent} tokens through blocks; {alone} with a pass for each edge",
    }
    about = read_provenance(scores.data)
    settings = {**about.pop("settings", {}), "verify": k}
    return EdgeScores(with_provenance(data, about, settings=settings, seed=seed))


def path_patch(
    model: Model,
    prompt: Given,
    source: Given,
    paths: Sequence[str | Sequence[str]],
    *,
    answers: Answers | None = None,
    foils: Answers | None = None,
    metric: Metric = "logit_diff",
    roles: Sequence[str] | None = None,
    read_roles: Sequence[str] | None = None,
    isolated: bool = True,
    budget: int | None = None,
) -> xr.Dataset:
    """Patch what flows along named edges only, exactly.

    Edges in which a path begins carry what their senders write in ``source``; edges that go on
    from a node that the path enters carry what that node then writes. Every other edge into a named
    receiver, and out of a node that the path goes through, carries what it carries in ``prompt``.
    Where a path ends below the logits, what its last node writes flows on freely.

    Parameters
    ----------
    model : Model
        On a server, one request.
    prompt, source, answers, foils, metric, roles, read_roles
        As of :func:`interventions.attribute_edges`.
    paths : sequence of str, or of sequences of str
        Each a set of edges, ``"L3.H5->L7.H2.q"``, patched together: several senders, several
        receivers, or one behind the other. A text is one edge.
    isolated : bool
        False: the edges named carry the source, and all else flows as it then comes.
    budget : int, optional
        Bytes that may be used. Default: part of what is free.

    Returns
    -------
    Dataset
        ``effect`` (path, item): change of the metric, in its unit. ``run_metric`` and
        ``source_metric`` (item). ``edges`` (path): names.

    Raises
    ------
    SiteError
        If there is no such edge, with near names.

    Notes
    -----
    Wang et al., "Interpretability in the Wild", ICLR 2023; Goldowsky-Dill et al., "Localizing Model
    Behavior with Path Patching", 2023.

    Examples
    --------
    >>> effects = iv.path_patch(
    ...     llm, named, other, ["input->L2.mlp", ["L2.mlp->L5.mlp", "L5.mlp->logits"]],
    ...     answers="Marlow", foils="Brenn",
    ... )
    >>> effects["effect"].sizes
    Frozen({'path': 2, 'item': 1})
    """
    contrast, asked = edge_contrast(
        model,
        prompt,
        source,
        answers=answers,
        foils=foils,
        metric=metric,
        roles=roles,
        read_roles=read_roles,
    )
    expected = f"a list of edges, such as 'input{ARROW}logits', or of lists of them"
    given = several(paths, "paths", error=SiteError, expected=expected)
    wanted = [
        [path] if isinstance(path, str) else names(path, "a path", error=SiteError)
        for path in given
    ]
    if not wanted or not all(wanted):
        raise SiteError(f"paths is empty, or one of them is. Expected {expected}.")
    isolated = flag(isolated, "isolated")
    budget = None if budget is None else whole(budget, "budget", least=1)
    with Unchanged(model):
        parts = carried_by_name(
            model, batches_of(model, contrast, None), wanted, budget, isolated=isolated
        )
    if parts[0].refused:
        raise SiteError(parts[0].refused)
    run = np.concatenate([part.run for part in parts])
    units: dict[str, Any] = {"units": unit_of(metric)}
    data = xr.Dataset(
        {
            "effect": (
                ("path", "item"),
                np.concatenate([part.values for part in parts], 1) - run,
                units,
            ),
            "run_metric": ("item", run, units),
            "source_metric": ("item", np.concatenate([part.source for part in parts]), units),
        },
        coords={
            "path": np.arange(len(wanted)),
            "edges": ("path", np.array([" ".join(path) for path in wanted], dtype=object)),
            "item": contrast.items,
        },
        attrs={
            GRAPH: graph_text(parts[0].graph),
            "metric": asked["metric"],
            "isolated": isolated,
            "left_out": contrast.left_out,
            "cost": f"{sum(part.token_blocks for part in parts)} tokens through blocks",
        },
    )
    settings = settings_of(contrast, {**asked, "isolated": isolated, "paths": json.dumps(wanted)})
    return with_provenance(data, provenance(model=model), settings=settings)
