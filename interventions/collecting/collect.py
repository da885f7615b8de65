"""Activations of many rows, written to disk as they are computed."""

import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
import xarray as xr

from interventions.collecting.batches import (
    Batch,
    Fetched,
    Maker,
    RoleSite,
    digest_of_batches,
    first_batch,
    make_batches,
)
from interventions.collecting.folder import Collection, as_stored, open_collection
from interventions.collecting.rows import Told, digest_rows, maker_of
from interventions.digests import digest_of
from interventions.errors import PromptError, ResultsError, SiteError
from interventions.given import batch_size, flag, folder_of, named, of_kind, shown, whole
from interventions.given_arrays import row_values
from interventions.model.fingerprints import Unchanged, processing_of
from interventions.model.model import Model
from interventions.model.sites import (
    COMPONENTS,
    Site,
    check_component,
    check_heads,
    check_sites,
    layer_list,
)
from interventions.progress import LateBar
from interventions.prompt.positions import index_list
from interventions.results import origin
from interventions.running.run import read

StoredType = Literal["float32", "float16", "bfloat16"]
Rows = Sequence[Any] | Maker
Values = dict[str, tuple[list[int], np.ndarray]]
"""For each site the rows that were read, and [layer, row, ...] of them."""
BATCH_TOKENS = 4096
TAKEN = ("row", "reason", "set_aside", "layer", "position", "head", "d_model", "head_dim")


def collect(
    model: Model,
    rows: Rows,
    sites: Mapping[str, RoleSite],
    *,
    out: Path | str,
    n_rows: int | None = None,
    batch_rows: int | None = None,
    dtype: StoredType | None = None,
    coords: Mapping[str, Sequence[Any]] | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
    processor_kwargs: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> xr.Dataset:
    """Read activations of many rows and write them to a folder batch by batch.

    One forward pass per batch, which stops after the deepest site. Memory holds one batch. Killed
    or interrupted, the same call goes on where it was and ends with the same bytes; finished, it
    opens what is there. A row that cannot be read is set aside with the reason, and the others go
    on.

    Parameters
    ----------
    model : Model
    rows : sequence, or callable
        What :meth:`interventions.Model.prompt` takes for one row: a text, chat messages, or a
        mapping with ``text`` and, if need be, ``images`` (one or several, in any form that
        :func:`interventions.as_picture` takes, each row judged by itself; paths are opened when
        their turn comes) and ``spans``. Items are fetched batch by batch, so a sequence may make
        them on demand. Or a function that makes the Prompt of the rows with the given numbers;
        then ``n_rows`` is needed.
    sites : mapping of str to RoleSite
        By the name under which to keep each. Rows of a batch are padded together, so put rows of
        like length side by side.
    out : Path
        Folder: ``settings.json``, ``progress.json``, ``coords.json`` and one ``.npy`` per site.
    n_rows : int, optional
        Number of rows; default all.
    batch_rows : int, optional
        Rows per forward pass. Default: as many as have 4096 tokens, by the first batch's row;
        1, where rows that run together would change each other (``model.anatomy.dependent_rows``).
    dtype : {"float32", "float16", "bfloat16"}, optional
        What is stored; default the model's. numpy has no bfloat16: its files hold the bits as
        uint16 (``torch.from_numpy(np.load(path)).view(torch.bfloat16)``), and the Dataset gives
        them as float32, which is exact.
    coords : mapping of str to sequence [row], optional
        Labels to be kept with the rows: numbers, strings or bools.
    template_kwargs, processor_kwargs : dict, optional
        As :meth:`interventions.Model.prompt` takes them, for the rows that are chats, and for
        those with pictures.
    progress : bool
        Show a bar on stderr when it takes over two seconds.

    Returns
    -------
    Dataset
        One variable per site, read from disk when used: (layer, row, position, d_model) with
        ``position`` where a row has several; ``head`` and ``head_dim`` in the place of d_model
        for ``head_out``. Where sites differ in layers or number of positions, the dimension has
        the site's name behind it. ``row`` is the number of the row; rows that were set aside are
        left out; the coordinates ``set_aside`` and ``reason`` say which and why.

    Raises
    ------
    SiteError, PromptError
        Before anything runs, if sites do not fit the model, or rows and coords each other.
    ResultsError
        If the folder is of other settings (the differences are shown), the disk is or would be
        full (what was computed is kept), or no row can be read.

    Examples
    --------
    >>> sites = {"name": RoleSite("resid_post", slice(0, 4), "entity", -1)}
    >>> rows = [{"text": "Marlow is in Belmora", "spans": {"entity": "Marlow"}}]
    >>> collected = collect(llm, rows, sites, out="runs/names")
    >>> collected["name"].sel(layer=3).shape  # [row, d_model]
    (1, 64)
    """
    of_kind(model, Model, "the model", error=PromptError)
    progress, out = flag(progress, "progress"), folder_of(out)
    batch_rows = None if batch_rows is None else batch_size(batch_rows)
    total = _count(rows, n_rows)
    rows = rows if callable(rows) else Fetched(rows)
    sites = _checked(model, sites)
    told = _told(model, rows, template_kwargs, processor_kwargs)
    make = rows if callable(rows) else maker_of(model, rows, sites, told)
    kept = _labels({} if coords is None else coords, sites, total)
    given = model.dtype if dtype is None else dtype
    stored = str(given) if isinstance(given, str | torch.dtype) else shown(given)
    stored = stored.removeprefix("torch.")
    if stored not in get_args(StoredType):
        raise ResultsError(f"{stored} cannot be stored. Choose dtype from {get_args(StoredType)}.")
    counts: dict[str, int] = {}
    first = first_batch(make, total, sites, counts)
    check_sites(model, first.prompt, [site for site, _ in first.places(sites).values()])
    alone = model.anatomy.dependent_rows is not None
    size = 1 if alone else batch_rows or max(1, BATCH_TOKENS // first.prompt.full_ids.shape[1])
    settings = {
        "rows": total,
        "batch_rows": size,
        "dtype": stored,
        "sites": _layout(model, sites, counts, total),
        "coords": {name: digest_of(values) for name, values in kept.items()},
        "first_row": first.digest,
        # Rows are told by how they were given: what makes prompts of them is to be the same.
        **({} if callable(rows) else {"processing": processing_of(model)}),
        **told.settings(),
        **origin(model=model),
    }
    with ExitStack() as stack:
        collection = stack.enter_context(Collection(out, settings, kept))
        bar = stack.enter_context(LateBar("collecting", total, shown=progress, transient=True))
        stack.enter_context(Unchanged(model))
        for start in range(0, total, size):
            stop = min(start + size, total)
            numbers = range(start, stop)
            digest = digest_rows(rows, numbers)
            if start < collection.done:
                digest = digest or digest_of_batches(make_batches(make, numbers, sites, counts))
                if digest != collection.digests[start // size]:
                    raise ResultsError(
                        f"{out} was begun with other rows: some of {start} to {stop - 1} differ. "
                        "Give another folder, or remove it to start afresh."
                    )
            else:
                batches = make_batches(make, numbers, sites, counts)
                values, failed = _read_all(model, batches, sites, stored)
                digest = digest or digest_of_batches(batches)
                collection.add(start, stop, values, failed, digest)
            if isinstance(rows, Fetched):
                rows.forget()
            bar.update(stop)
    if len(collection.set_aside) == total:
        raise ResultsError(f"no row can be read. The first: {collection.set_aside[0][1]}")
    return open_collection(out)


def _read_all(
    model: Model, batches: Sequence[Batch], sites: Mapping[str, RoleSite], stored: str
) -> tuple[Values, list[tuple[int, str]]]:
    """Run batches: the rows and values of each site, and rows that are set aside."""
    failed = [failure for batch in batches for failure in batch.failed]
    parts: list[Values] = []
    for batch in batches:
        if batch.rows:
            values, wrong = _read(model, batch, sites, stored)
            parts.append(values)
            failed += wrong
    joined = {
        name: (
            [row for part in parts for row in part[name][0]],
            np.concatenate([part[name][1] for part in parts], axis=1),
        )
        for name in (sites if parts else ())
    }
    return joined, sorted(failed)


def _read(
    model: Model, batch: Batch, sites: Mapping[str, RoleSite], stored: str
) -> tuple[Values, list[tuple[int, str]]]:
    """Run a batch: the rows and values of each site, and rows whose values are no numbers."""
    places = batch.places(sites)
    tensors = read(model, batch.prompt, [site for site, _ in places.values()])
    wrong: dict[int, str] = {}
    for i, (name, (_, mask)) in enumerate(places.items()):
        value = tensors[i]
        if sites[name].mean:
            weight = mask.to(value.device).float().view(1, *mask.shape, *[1] * (value.ndim - 3))
            tensors[i] = value = (value.float() * weight).sum(2) / weight.sum(2)
        finite = value.isfinite().flatten(2).all(-1)  # [layer, row]
        layers = layer_list(sites[name].layers, model.n_layers)
        for row in (~finite.all(0)).nonzero().flatten().tolist():
            at = layers[int((~finite[:, row]).nonzero()[0])]
            wrong.setdefault(row, f"NaN or infinite values in {name!r}, first in layer {at}")
    right = [row for row in range(len(batch.rows)) if row not in wrong]
    values = {}
    for name, value in zip(places, tensors, strict=True):
        array = as_stored(value[:, right], stored)
        if stored == "float16" and not np.isfinite(array).all():
            raise ResultsError(
                f"{name!r} has values up to {float(value.abs().max()):.3g}, which float16 cannot "
                "hold. Store bfloat16 or float32."
            )
        values[name] = ([batch.rows[row] for row in right], array)
    return values, [(batch.rows[row], reason) for row, reason in wrong.items()]


def _count(rows: Rows, n_rows: int | None) -> int:
    n_rows = None if n_rows is None else whole(n_rows, "n_rows", least=1)
    if isinstance(rows, str | bytes | Mapping):
        raise PromptError(f"rows are {shown(rows)}. Expected a sequence of rows, or a function.")
    if callable(rows):
        total = n_rows
    elif hasattr(rows, "__len__") and getattr(rows, "ndim", 1):
        total = len(rows) if n_rows is None else min(n_rows, len(rows))
    else:
        raise PromptError(
            f"rows are a {type(rows).__name__}, which cannot be gone on with after a stop. Give a "
            "sequence, or a function of row numbers and n_rows."
        )
    if not total or total < 1:
        raise PromptError("there are no rows. With a function, say how many by n_rows.")
    return total


def _checked(model: Model, sites: Any) -> dict[str, RoleSite]:
    """Refuse names and places that cannot be, before any row is made."""
    of_kind(sites, Mapping, "sites", error=SiteError)
    for name, site in sites.items():
        fit = isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9_.-]+", name)
        if not fit or name in TAKEN or not name.strip("."):
            raise SiteError(f"{name!r} cannot name a site: it becomes a file and a variable.")
        of_kind(site, RoleSite, f"site {name!r}", error=SiteError)
        check_component(site.component, COMPONENTS)
        layer_list(site.layers, model.n_layers)
        check_heads(model, Site(site.component, site.layers, None, site.heads))
    if not sites:
        raise SiteError("sites= is empty, so there is nothing to read. Name at least one.")
    return dict(sites)


def _told(model: Model, rows: Rows, template: Any, processor: Any) -> Told:
    names = ("template_kwargs", "processor_kwargs")
    asked = [
        named(settings, name) for name, settings in zip(names, (template, processor), strict=True)
    ]
    if callable(rows) and (
        given := [n for n, settings in zip(names, asked, strict=True) if settings]
    ):
        raise PromptError(
            f"{given[0]} was given, but rows are made by a function, which would not be told. "
            "Give it to model.prompt() in there."
        )
    told = Told(*asked)
    told.check(model)
    return told


def _labels(coords: Any, sites: Mapping[str, RoleSite], total: int) -> dict[str, list[Any]]:
    """Labels of the rows, each of one kind that JSON has."""
    kept = {}
    for name, values in of_kind(coords, Mapping, "coords", error=PromptError).items():
        if not isinstance(name, str) or not name.strip() or set(name) & {"/", "\0"}:
            raise PromptError(f"{shown(name)} cannot name a coordinate: it becomes a variable.")
        what = f"coordinate {name!r}"
        if isinstance(values, list | tuple) and len(values) != total:
            n = len(values)
            raise PromptError(f"{what} with {n} values for {total} rows. Give one per row.")
        labels = row_values(values, total, what, error=PromptError, missing=True)
        if name in (*sites, *TAKEN):
            raise PromptError(f"{what}: give it a name that no site or dimension has.")
        if labels.dtype.kind in "SmM" or any(isinstance(label, bytes) for label in labels.tolist()):
            raise PromptError(f"{what} holds {labels.dtype}. Give numbers, texts or bools.")
        kept[name] = labels.tolist()
    return kept


def _layout(
    model: Model, sites: Mapping[str, RoleSite], counts: Mapping[str, int], total: int
) -> dict[str, Any]:
    """For each site what was asked, and the shape and dimensions of its array."""
    parts: dict[str, dict[str, Any]] = {}
    for name, site in sites.items():
        layers = index_list(site.layers, model.n_layers)
        sizes = {"layer": len(layers), "row": total}
        if not site.single and not site.mean:
            sizes["position"] = counts[name]
        heads: list[int] = []
        if site.component == "head_out":
            asked = slice(None) if site.heads is None else site.heads
            heads = index_list(asked, model.anatomy.n_heads, "head")
            if not isinstance(site.heads, int):
                sizes["head"] = len(heads)
            sizes["head_dim"] = model.anatomy.head_dim
        else:
            sizes["d_model"] = model.d_model
        index = site.index
        parts[name] = {
            "component": site.component,
            "role": site.role,
            "index": repr(index) if isinstance(index, slice) else index,
            "mean": site.mean,
            "layers": layers,
            "heads": heads,
            "sizes": sizes,
        }
    for axis, what in (("layer", "layers"), ("position", "sizes"), ("head", "heads")):
        has = [part for part in parts.values() if axis in part["sizes"]]
        values = [part["sizes"][axis] if what == "sizes" else part[what] for part in has]
        if any(value != values[0] for value in values):
            for name, part in parts.items():
                part["sizes"] = {
                    (f"{axis}:{name}" if dim == axis else dim): n
                    for dim, n in part["sizes"].items()
                }
    for part in parts.values():
        sizes = part.pop("sizes")
        part["dims"], part["shape"] = list(sizes), list(sizes.values())
    return parts
