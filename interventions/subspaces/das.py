"""Distributed alignment search: is a variable of a hypothesis in a subspace of a stream?"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr

from interventions.errors import PatchError, ProbeError, PromptError, SiteError
from interventions.given import (
    HIGHEST_RATE,
    MOST_CONTROLS,
    MOST_EPOCHS,
    batch_size,
    names,
    number,
    of_kind,
    seed_of,
    whole,
)
from interventions.given_arrays import classes_of, row_values
from interventions.model.model import Model
from interventions.model.sites import (
    ANY,
    ATTENDING,
    Component,
    Site,
    check_component,
    check_place,
    check_written,
    layer_list,
    of_head,
    width_of,
)
from interventions.probing.splits import group_interval, held_out_groups
from interventions.prompt.answer_tokens import spaced, token_ids
from interventions.prompt.positions import Positions
from interventions.prompt.prompt import Prompt
from interventions.results import provenance, with_provenance
from interventions.running.checking import check_asked
from interventions.running.patches import Patch
from interventions.running.run import read
from interventions.subspaces.subspace import Subspace
from interventions.subspaces.training import Fit, Swaps, learned, likeliest

SWAPPED: tuple[Component, ...] = tuple(name for name in ANY if name not in ATTENDING)
"""Streams of which there is one vector per token."""


@dataclass(frozen=True, eq=False)
class Alignment:
    """A learned subspace, and how well swapping it does what it should.

    Attributes
    ----------
    subspace : Subspace
    scores : Dataset
        ``correct`` (condition, row): share of draws in which the likeliest next token was the
        expected answer's first, on the rows held out; ``accuracy`` (condition), its mean, with
        ``low`` and ``high``: 95 % interval by bootstrap over groups; ``loss`` (epoch), nats, of
        the rows fitted; coordinate ``group`` (row). Conditions: ``learned``; ``random``: subspaces
        of the same size, mean over draws; ``permuted``: the learned one, but the source is
        another row's that expects another answer; ``whole``: all dimensions; ``none``: no swap;
        and ``other``, where answers of another variable were given: how often the learned one
        gives those.
    """

    subspace: Subspace
    scores: xr.Dataset

    def __repr__(self) -> str:
        shares = self.scores["accuracy"].to_series().round(3).to_dict()
        return f"<Alignment: {self.subspace.size} of {self.subspace.width} dimensions, {shares}>"


def das(
    model: Model,
    base: Prompt,
    source: Prompt,
    *,
    expected: Sequence[str],
    layer: int,
    at: Positions,
    source_at: Positions,
    size: int,
    component: Component = "resid_post",
    source_model: Model | None = None,
    source_layer: int | None = None,
    other: Sequence[str] | None = None,
    groups: Any | None = None,
    test_share: float = 0.25,
    epochs: int = 20,
    batch_rows: int = 16,
    learning_rate: float = 0.2,
    n_random: int = 5,
    seed: int = 0,
) -> Alignment:
    """Learn a subspace whose swap gives the counterfactual answer, and test it on other rows.

    In each row the base prompt runs with the part of its vectors that lies in the subspace
    replaced by the source's: h + (s - h) B B^T. B is learned so that the answer is ``expected``,
    what the hypothesis says of a base whose variable has the source's value (Geiger et al.,
    "Finding Alignments Between Interpretable Causal Variables and Distributed Neural
    Representations", CLeaR 2024). Interchange intervention accuracy is measured on groups that
    were not fitted.

    Parameters
    ----------
    model : Model
    base, source : Prompt
        Row for row.
    expected : sequence of str [row]
        The answers of the base with the source's value. Their first tokens count.
    layer : int
    at, source_at : Positions
        Tokens of base and source, as many in each row of both.
    size : int
        Number of dimensions, k.
    component : str
    source_model : Model, optional
        Whose vectors the source's are, if not the model's: the backbone of a VLM, with
        ``source_layer``. Streams must be of one width.
    source_layer : int, optional
        Default: ``layer``.
    other : sequence of str [row], optional
        Answers if another variable had the source's value: a swap of this one should not give
        these.
    groups : sequence [row], optional
        Rows of a group (an entity, a picture) are fitted or tested together, and drawn together
        for the interval. Default: each row its own.
    test_share : float
        Share of the groups held out.
    epochs, batch_rows, learning_rate
        Passes over the fitted rows; rows per step; length of the first step of Adam, as a share
        of the size of the basis's entries.
    n_random : int
        Random subspaces.
    seed : int
        Of the split, the start, the order of rows, and the controls.

    Returns
    -------
    Alignment

    Raises
    ------
    PatchError, SiteError, PromptError, ProbeError
        If rows, places, answers or sizes do not fit; before anything runs.
    SiteError
        If the model is on a server that lets no gradients through.

    Examples
    --------
    Whether the name of a country, and nothing else, is in 8 of 64 dimensions:

    >>> countries = ["Avaria", "Belmora", "Corvenia", "Dravia", "Elsenia", "Fenmark"]
    >>> texts = [question.format(country) for country in countries]
    >>> every = llm.prompt(texts, spans={"entity": countries})
    >>> capitals = iv.complete(llm, every, stop=" .").texts
    >>> pairs = [(i, j) for i in range(6) for j in range(6) if i != j]
    >>> base, source = (every.select([pair[side] for pair in pairs]) for side in (0, 1))
    >>> alignment = das(
    ...     llm, base, source, expected=[capitals[j] for _, j in pairs], layer=2, size=8,
    ...     at=base.at("entity", -1), source_at=source.at("entity", -1),
    ...     groups=[countries[i] for i, _ in pairs], epochs=10)
    >>> shares = alignment.scores.accuracy
    >>> bool(shares.sel(condition="learned") > shares.sel(condition="random"))
    True
    """
    check_asked(model, base)
    there = model if source_model is None else source_model
    check_asked(there, source)
    check_written(check_component(component, SWAPPED))
    layer = whole(layer, "layer", error=SiteError)
    source_layer = layer if source_layer is None else whole(source_layer, "layer", error=SiteError)
    width = _checked_places(model, there, base, source, component, layer, source_layer)
    _check_positions(model, base, at, layer, "at")
    _check_positions(there, source, source_at, source_layer, "source_at")
    if len(base) != len(source) or not torch.equal(at.counts.cpu(), source_at.counts.cpu()):
        raise PatchError(
            f"base has {len(base)} rows with {at.counts.tolist()[:8]} tokens at {at.role!r}, "
            f"source {len(source)} with {source_at.counts.tolist()[:8]} at {source_at.role!r}. "
            "Give the same rows in the same order, and as many tokens in each, such as "
            "at(role, -1)."
        )
    seed = seed_of(seed, error=ProbeError)
    size = whole(size, "size", least=1, most=width, error=ProbeError)
    n_random = whole(n_random, "n_random", least=1, most=MOST_CONTROLS, error=ProbeError)
    fit = Fit(
        size=size,
        epochs=whole(epochs, "epochs", least=1, most=MOST_EPOCHS, error=ProbeError),
        batch_rows=batch_size(batch_rows, error=ProbeError),
        learning_rate=number(
            learning_rate, "learning_rate", above=0, most=HIGHEST_RATE, error=ProbeError
        ),
        seed=seed,
    )
    tokens = _first_tokens(model, base, expected, "expected")
    others = None if other is None else _first_tokens(model, base, other, "other")
    group = np.arange(len(base)) if groups is None else _groups(groups, len(base))
    held_out = held_out_groups(group, share=test_share, seed=seed)
    [vectors] = read(there, source, [Site(component, source_layer, source_at.filled())])
    vectors = vectors[:, None] if source_at.single else vectors
    vectors = vectors.flatten(-2) if of_head(component) else vectors
    swaps = Swaps(component, layer, at, vectors, tokens)
    fitted = torch.from_numpy(np.flatnonzero(~held_out))
    outcome = learned(model, base.select(fitted), swaps.rows(fitted), fit)
    if outcome is None:
        raise SiteError(
            f"requests for {model.name} run in a process of their own on this server; gradients do "
            "not get there, and learning a subspace needs them. Load the model here to learn it; "
            "the subspace can then be swapped there: Subspace.interchange gives a patch."
        )
    basis, losses = outcome
    about = {"model": model.name, "component": component, "layer": layer, "seed": seed}
    subspace = Subspace(basis.cpu(), about)
    tested = torch.from_numpy(np.flatnonzero(held_out))
    correct = _scored(
        model, base.select(tested), swaps.rows(tested), subspace, others, tested, n_random, fit
    )
    scores = _scores(correct, group[held_out], losses, seed).assign_coords(row=tested.numpy())
    settings = {
        **{"size": size, "component": component, "layer": layer, "source_layer": source_layer},
        **{"epochs": fit.epochs, "batch_rows": fit.batch_rows, "n_random": n_random},
        **{"learning_rate": fit.learning_rate, "test_share": test_share},
        **{"fitted_rows": len(fitted), "at": at.role, "source_at": source_at.role},
    }
    models = {"model": model, **({} if source_model is None else {"source_model": source_model})}
    scores = with_provenance(scores, provenance(**models), settings=settings, seed=seed)
    return Alignment(subspace, scores)


def _checked_places(
    model: Model,
    there: Model,
    base: Prompt,
    source: Prompt,
    component: Component,
    layer: int,
    source_layer: int,
) -> int:
    """Width of the stream, which both models must have alike."""
    widths = []
    for which, prompt, block in ((model, base, layer), (there, source, source_layer)):
        layer_list(block, which.n_layers)
        check_place(which, prompt, "a swap", block, None)
        widths.append(int(np.prod(width_of(which, Site(component, block)))))
    if widths[0] != widths[1]:
        raise PatchError(
            f"{component} of {model.name} is {widths[0]} wide and of {there.name} {widths[1]}. "
            "Only streams of one width can be swapped."
        )
    return widths[0]


def _check_positions(model: Model, prompt: Prompt, at: Positions, layer: int, what: str) -> None:
    of_kind(at, Positions, what, error=PatchError)
    check_place(model, prompt, what, layer, at)


def _first_tokens(model: Model, base: Prompt, answers: Any, what: str) -> torch.Tensor:
    texts = names(answers, what, error=PromptError)
    if len(texts) != len(base):
        raise PromptError(f"{what} are {len(texts)} for {len(base)} rows. Give one per row.")
    ids = token_ids(model, texts, space=spaced(model, base))
    if empty := [text for text, tokens in zip(texts, ids, strict=True) if not tokens]:
        raise PromptError(f"{what}: {empty[0]!r} has no tokens.")
    return torch.tensor([tokens[0] for tokens in ids])


def _groups(groups: Any, n_rows: int) -> np.ndarray:
    return classes_of(row_values(groups, n_rows, "groups", error=ProbeError))[1]


def _scored(
    model: Model,
    prompt: Prompt,
    swaps: Swaps,
    subspace: Subspace,
    others: torch.Tensor | None,
    rows: torch.Tensor,
    n_random: int,
    fit: Fit,
) -> dict[str, np.ndarray]:
    """Whether each row's answer is the expected one, by condition."""
    generator = np.random.default_rng(fit.seed + 1)
    moved = _other_sources(swaps.tokens.numpy(), generator)
    drawn = [
        Subspace.random(subspace.width, subspace.size, seed=fit.seed + 1 + i)
        for i in range(n_random)
    ]

    def patch(space: Subspace, source: torch.Tensor) -> list[Patch]:
        return [space.interchange(swaps.component, swaps.layer, swaps.at, source)]

    whole_space = _whole_swap(swaps)
    own = torch.from_numpy(np.where(moved < 0, np.arange(len(moved)), moved))
    cells = [
        patch(subspace, swaps.source),
        patch(subspace, swaps.source[own.to(swaps.source.device)]),
        [whole_space],
        *[patch(space, swaps.source) for space in drawn],
    ]
    tokens = likeliest(model, prompt, cells, fit.batch_rows).cpu()
    hits = (tokens == swaps.tokens).double().numpy()
    correct = {
        "learned": hits[1],
        "random": hits[4:].mean(0),
        "permuted": np.where(moved < 0, np.nan, hits[2]),
        "whole": hits[3],
        "none": hits[0],
    }
    if others is not None:
        correct["other"] = (tokens[1] == others[rows]).double().numpy()
    return correct


def _whole_swap(swaps: Swaps) -> Patch:
    width = swaps.source.shape[-1]
    if not of_head(swaps.component):
        return Patch(swaps.component, swaps.layer, swaps.at, swaps.source)
    whole_space = Subspace(torch.eye(width))
    return whole_space.interchange(swaps.component, swaps.layer, swaps.at, swaps.source)


def _other_sources(tokens: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """For each row another one that expects another answer; -1 if there is none."""
    chosen = np.full(len(tokens), -1)
    for row, token in enumerate(tokens):
        differing = np.flatnonzero(tokens != token)
        if len(differing):
            chosen[row] = generator.choice(differing)
    return chosen


def _scores(
    correct: dict[str, np.ndarray], group: np.ndarray, losses: list[float], seed: int
) -> xr.Dataset:
    """Accuracies with their intervals, by bootstrap over groups."""
    values = np.stack(list(correct.values()))
    accuracy, low, high = group_interval(values, group, seed=seed)
    return xr.Dataset(
        {
            "correct": (("condition", "row"), values),
            "accuracy": ("condition", accuracy),
            "low": ("condition", low),
            "high": ("condition", high),
            "loss": ("epoch", np.array(losses)),
        },
        coords={"condition": list(correct), "group": ("row", group)},
    )
