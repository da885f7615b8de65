"""Every public call with arguments that fit, and values that users might hand over instead."""

import warnings
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tiny
import torch
import xarray as xr

import interventions as iv

TEXTS = ["The capital of France is", "Who was the mayor of the town"]
OTHERS = ["The capital of Italy is", "Who was the baker of the town"]


class NoNumber:
    """A class whose every use as a number or a text fails."""

    def __index__(self) -> int:
        raise RuntimeError("no number")

    def __repr__(self) -> str:
        raise RuntimeError("no text")


def breaking() -> Iterator[int]:
    yield 0
    raise RuntimeError("it broke")


def quantised() -> torch.Tensor:
    with warnings.catch_warnings(action="ignore"):  # torch means to move this elsewhere
        return torch.quantize_per_tensor(torch.zeros(48), 1.0, 0, torch.qint8)


VALUES: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "True": lambda: True,
    "False": lambda: False,
    "0": lambda: 0,
    "1": lambda: 1,
    "-1": lambda: -1,
    "99": lambda: 99,
    "a huge int": lambda: 2**70,
    "1.0": lambda: 1.0,
    "0.5": lambda: 0.5,
    "-0.5": lambda: -0.5,
    "1e300": lambda: 1e300,
    "NaN": lambda: float("nan"),
    "inf": lambda: float("inf"),
    "1j": lambda: 1j,
    "an empty text": lambda: "",
    "a text": lambda: "the",
    "digits": lambda: "3",
    "a role": lambda: "last",
    "a component": lambda: "resid_post",
    "a misspelt component": lambda: "resid_pots",
    "half a character": lambda: "\ud800",
    "a zero byte": lambda: "a\0b",
    "bytes": lambda: b"last",
    "a bytearray": lambda: bytearray(b"last"),
    "an empty list": list,
    "a list of an int": lambda: [0],
    "a list of two": lambda: [0, 1],
    "a list of one twice": lambda: [1, 1],
    "a list of one and its other name": lambda: [0, -4],
    "a list of float": lambda: [0.0, 1.0],
    "a list of bool": lambda: [True, False],
    "a mask of the layers": lambda: [True, False, True, False],
    "a list of text": lambda: ["the", "of"],
    "a list of text and None": lambda: ["the", None],
    "a list of lists": lambda: [[0, 1], [1]],
    "mixed labels": lambda: [1, True, 1.0, "1", 1, True, 1.0, "1"],
    "labels with NaN": lambda: [1.0, float("nan"), 1.0, 2.0, 2.0, 2.0, 1.0, 1.0],
    "labels of bytes": lambda: [b"a", b"a\0"] * 4,
    "labels of None": lambda: [None] * 8,
    "labels of uint8": lambda: np.array([255, 1] * 4, dtype=np.uint8),
    "labels of Categorical": lambda: pd.Categorical(["a", None] * 4),
    "labels of half": lambda: torch.tensor([0.1, 2.0] * 4, dtype=torch.bfloat16),
    "a tuple": lambda: (0, 2),
    "a tuple of text": lambda: ("the", "of"),
    "an empty mapping": dict,
    "a mapping": lambda: {"a": 1},
    "a mapping of ints": lambda: {1: np.zeros((2, 8, 3)), "1": np.zeros((2, 8, 3))},
    "a set": lambda: {0, 1},
    "a generator": lambda: (one for one in (0, 1)),
    "a generator of text": lambda: (one for one in ("the", "of")),
    "a range": lambda: range(2),
    "an empty range": lambda: range(0),
    "Ellipsis": lambda: ...,
    "an object": object,
    "a class": lambda: int,
    "a function": lambda: lambda *_: None,
    "a Decimal": lambda: Decimal(1),
    "a Fraction": lambda: Fraction(1, 2),
    "a date": lambda: date(2020, 1, 1),
    "a path": lambda: Path("there"),
    "a slice": lambda: slice(0, 2),
    "a slice backward": lambda: slice(3, 0, -1),
    "a slice beyond": lambda: slice(2, 99),
    "an empty slice": lambda: slice(1, 1),
    "a slice of step 0": lambda: slice(0, 2, 0),
    "a slice of float": lambda: slice(0.0, 2.0),
    "a slice of numpy": lambda: slice(np.int64(0), np.uint8(2)),
    "an int of numpy": lambda: np.int64(1),
    "a uint8 of numpy": lambda: np.uint8(255),
    "a float of numpy": lambda: np.float32(0.5),
    "a bool of numpy": lambda: np.bool_(True),
    "a time of numpy": lambda: np.datetime64("2020-01-01", "ns"),
    "a text of numpy": lambda: np.str_("last"),
    "0 axes": lambda: np.array(1),
    "an array": lambda: np.array([0, 1]),
    "an array of uint16": lambda: np.array([0, 1], dtype=np.uint16),
    "an array of float": lambda: np.array([0.0, 1.0]),
    "an array of bool": lambda: np.array([True, False]),
    "an array of text": lambda: np.array(["the", "of"]),
    "an array of objects": lambda: np.array([None, 1], dtype=object),
    "an array backward": lambda: np.arange(2)[::-1],
    "an array of another byte order": lambda: np.arange(2, dtype=">f4"),
    "an array with no axis left": lambda: np.zeros((0, 3)),
    "an array of 4 axes": lambda: np.zeros((1, 2, 1, 48)),
    "a masked array": lambda: np.ma.masked_array([0.0, 1.0], mask=[False, True]),
    "complex numbers": lambda: np.zeros(48, dtype=np.complex64),
    "a vector of float64": lambda: np.full(48, 1e300),
    "a vector of uint8": lambda: np.full(48, 200, dtype=np.uint8),
    "a vector with NaN": lambda: torch.full((48,), torch.nan),
    "a vector": lambda: torch.ones(48),
    "a vector with a gradient": lambda: torch.ones(48, requires_grad=True),
    "a tensor of an int": lambda: torch.tensor(1),
    "a tensor of a bool": lambda: torch.tensor(True),
    "a tensor of ints": lambda: torch.tensor([0, 1], dtype=torch.int32),
    "a tensor of uint8": lambda: torch.tensor([0, 1], dtype=torch.uint8),
    "a tensor of bools": lambda: torch.tensor([True, False]),
    "a tensor of float": lambda: torch.zeros(2, 3),
    "a tensor of one": lambda: torch.zeros(1),
    "a tensor elsewhere": lambda: torch.zeros(2, device="meta"),
    "a quantised tensor": quantised,
    "a generator that breaks": breaking,
    "a class of no number": NoNumber,
    "labels of time": lambda: np.array(["2020-01-01", "2020-01-02"] * 4, dtype="datetime64[D]"),
    "a deque": lambda: deque([0, 1]),
    "keys of a mapping": lambda: {0: "a", 1: "b"}.keys(),
    "a sparse tensor": lambda: torch.zeros(48).to_sparse(),
    "a Series": lambda: pd.Series([0, 1], index=[1, 0]),
    "a Series of text": lambda: pd.Series(["the", "of"], index=[5, 6]),
    "a table": lambda: pd.DataFrame({"a": [0, 1]}),
    "a Dataset": xr.Dataset,
    "a Dataset with a map": lambda: xr.Dataset(
        {"score": (("layer", "position"), np.full((2, 2), np.nan))}
    ),
    "a DataArray": lambda: xr.DataArray(np.zeros((2, 2)), dims=("layer", "row")),
    "positions of another prompt": lambda: text().model.prompt("The sea").at("last"),
    "another prompt": lambda: text().model.prompt("The sea"),
    "a prompt of no rows": lambda: text().clean.select([]),
    "a model": lambda: text().model,
}


@dataclass(frozen=True)
class Text:
    """A tiny language model, and prompts of two rows."""

    model: iv.Model
    clean: iv.Prompt
    corrupt: iv.Prompt


@cache
def text() -> Text:
    module, tokenizer = tiny.build("llama")
    model = iv.load(module, tokenizer=tokenizer)
    spans = {"entity": ["France", "town"]}
    clean = model.prompt(TEXTS, spans=spans)
    return Text(model, clean, model.prompt(OTHERS, spans={"entity": ["Italy", "town"]}))


@dataclass(frozen=True)
class Call:
    """A public call, with arguments that fit."""

    act: Callable[..., Any]
    fits: Callable[[], dict[str, Any]] = field(default=dict)

    def __call__(self, **changed: Any) -> Any:
        return self.act(**{**self.fits(), **changed})


def _last() -> iv.Positions:
    return text().clean.at("last")


def _patch(**changed: Any) -> iv.Patch:
    return iv.Patch(
        **{"component": "resid_post", "layers": 1, "positions": _last(), "value": 0.0, **changed}
    )


def _run_patch(**changed: Any) -> Any:
    return iv.run(text().model, text().clean, patches=[_patch(**changed)]).logits


def _read(**changed: Any) -> Any:
    fields = {"component": "resid_post", "layers": 1, "positions": _last(), **changed}
    return iv.read(text().model, text().clean, [iv.Site(**fields)])


def _stream(index: Any, positions: Any, heads: Any, value: Any, mode: Any) -> Any:
    model = text().model
    with model.trace(text().clean):
        model.head_out.write(index, positions, value, mode=mode, heads=heads)
        found = model.head_out[index, positions, heads].save()
    return found


def _resid(index: Any, positions: Any, value: Any) -> Any:
    model = text().model
    with model.trace(text().clean):
        model.resid_post[index, positions] = value
        logits = model.logits[text().clean.at("last")].save()
    return logits


def _embeddings(positions: Any, value: Any) -> Any:
    model = text().model
    with model.trace(text().clean):
        model.embeddings[positions] = value
        logits = model.logits[positions].save()
    return logits


def _knockout(**given: Any) -> Any:
    cut = iv.Knockout(**given)
    return iv.run(text().model, text().clean, knockouts=[cut]).logits


def _ablated(**changed: Any) -> Any:
    fields = {"component": "mlp_out", "layers": 1, "positions": _last(), "mean": None, **changed}
    return iv.run(text().model, text().clean, patches=[iv.ablated(**fields)]).logits


def _steering(**changed: Any) -> Any:
    fields = {"layers": 1, "positions": _last(), "vector": torch.ones(48), "scale": 1.0, **changed}
    return iv.run(text().model, text().clean, patches=[iv.steering(**fields)]).logits


def _sources(**changed: Any) -> Any:
    source = iv.Noise(**{k: v for k, v in changed.items() if k in ("scale", "seed")})
    if "layers" in changed:
        source = iv.FromLayers(changed["layers"])
    return _sweep(source=source)


def _sweep(**changed: Any) -> Any:
    fields = {
        "model": text().model,
        "prompt": text().clean,
        "source": text().corrupt,
        "answers": "the",
        "layers": [1],
        "roles": ["last"],
        "progress": False,
    }
    return iv.sweep(**{**fields, **changed})


def _attribute(**changed: Any) -> Any:
    fields = {
        "model": text().model,
        "prompt": text().corrupt,
        "source": text().clean,
        "answers": "the",
        "foils": "of",
        "components": ["mlp_out"],
        "layers": [1],
        "roles": ["last"],
        "verify": False,
    }
    return iv.attribute(**{**fields, **changed})


@cache
def scores() -> xr.Dataset:
    return _attribute()


def _verify(**changed: Any) -> Any:
    fields = {
        "model": text().model,
        "scores": scores(),
        "prompt": text().corrupt,
        "source": text().clean,
        "answers": "the",
        "foils": "of",
        "k": 1,
    }
    return iv.verify(**{**fields, **changed})


def _collect(**changed: Any) -> Any:
    site = {"component": "mlp_out", "layers": [1], "role": "last"}
    site |= {key: changed.pop(key) for key in (*site, "index", "mean", "heads") if key in changed}
    fields = {
        "model": text().model,
        "rows": TEXTS,
        "sites": {"end": iv.RoleSite(**site)},
        "out": "collected",
        "progress": False,
    }
    given = {**fields, **changed}
    if "coordinate" in given:
        given["coords"] = {"label": given.pop("coordinate")}
    return iv.collect(**given)


def rows_to_probe() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(2, 8, 3))


def _probe(**changed: Any) -> Any:
    fields = {"activations": rows_to_probe(), "labels": [0, 1] * 4, "splits": 1, "tol": 10.0}
    return iv.probe(**{**fields, **changed})


def _heatmap(**changed: Any) -> Any:
    return iv.heatmap(**{"dataset": scores(), **changed})


def _curves(**changed: Any) -> Any:
    fields = {
        "model": text().model,
        "prompt": text().clean,
        "routes": "entity -> last",
        "answers": "the",
        "layers": [1],
        "progress": False,
    }
    return iv.knockout_curves(**{**fields, **changed})


def _statistics(**changed: Any) -> Any:
    return iv.cell_statistics(**{"dataset": drawn_changes(), **changed})


def _lineplot(**changed: Any) -> Any:
    return iv.lineplot(**{"dataset": drawn_changes(), **changed})


def drawn_changes() -> xr.Dataset:
    """A map of eight items, of no model."""
    values = np.random.default_rng(0).normal(size=(8, 3, 2))
    return xr.Dataset({"score": (("item", "layer", "role"), values)}, {"layer": range(3)})


def _transplant(**changed: Any) -> Any:
    model = text().model
    fields = {
        "pair": iv.pair(model, model),
        "source": text().clean,
        "read_at": text().clean.at("entity"),
        "write_at": text().corrupt.at("last"),
    }
    return iv.run(model, text().corrupt, patches=iv.transplant(**{**fields, **changed})).logits


def _lens(**changed: Any) -> Any:
    fields = {"hidden": torch.ones(2, 2, 48), "tokens": torch.zeros(2, 1, dtype=torch.long)}
    return iv.lens(text().model, **{**fields, **changed})


def _within(**changed: Any) -> Any:
    fields = {
        "component": "resid_post",
        "layers": 1,
        "positions": _last(),
        "value": torch.zeros(2),
        "within": iv.Subspace.random(48, 2),
    }
    return iv.run(text().model, text().clean, patches=[iv.Patch(**{**fields, **changed})]).logits


def _interchange(**changed: Any) -> Any:
    fields = {
        "component": "resid_post",
        "layers": 1,
        "positions": _last(),
        "source": torch.ones(2, 48),
    }
    patch = iv.Subspace.random(48, 2).interchange(**{**fields, **changed})
    return iv.run(text().model, text().clean, patches=[patch]).logits


def _das(**changed: Any) -> Any:
    rows = text().clean.select([0, 1] * 3)
    fields = {
        **{"base": rows, "source": rows, "expected": ["Paris", "Madrid"] * 3, "layer": 1},
        **{"at": rows.at("last"), "source_at": rows.at("last"), "size": 2},
        **{"epochs": 1, "n_random": 1},
    }
    return iv.das(text().model, **{**fields, **changed}).subspace.basis


def _tuned_lens(**changed: Any) -> Any:
    states = torch.randn(4, 100, 48, generator=torch.Generator().manual_seed(0))
    fields = {"activations": states, "epochs": 1}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of states that are none of the model's
        return iv.tuned_lens(text().model, **{**fields, **changed}).weight


def _jacobian_lens(**changed: Any) -> Any:
    fields = {"prompt": text().clean, "layers": [0], "skip": 1, "batch_dims": 48}
    return iv.jacobian_lens(text().model, **{**fields, **changed}).weight


def _lens_map(**changed: Any) -> Any:
    return iv.lens_map(text().model, text().clean, **{"words": "the", **changed})


def _attention_map(**changed: Any) -> Any:
    return iv.attention_map(text().model, text().clean, **changed)


def _patchscope(**changed: Any) -> Any:
    return iv.patchscope(
        text().model, **{"values": torch.ones(1, 48), "layer": 1, "max_new_tokens": 1, **changed}
    )


def _complete(**changed: Any) -> Any:
    fields = {"prompt": text().clean, "max_new_tokens": 1, "candidates": ["the", "of"]}
    return iv.complete(text().model, **{**fields, **changed})


def _prompt(**changed: Any) -> Any:
    if "span" in changed:
        changed["spans"] = {"entity": changed.pop("span")}
    return text().model.prompt(TEXTS, **changed)


def _replay(**changed: Any) -> Any:
    fields = {"prompt": text().clean, "cells": [[_patch()]]}
    return iv.replay(text().model, **{**fields, **changed})


def _generate(max_new_tokens: Any) -> Any:
    model = text().model
    with model.generate(text().clean, max_new_tokens=max_new_tokens) as tracer:
        ids = tracer.result.save()
    return ids


def _generate_under(**changed: Any) -> Any:
    fields = {"prompt": text().clean, "max_new_tokens": 1, **changed}
    with iv.generate(text().model, **fields) as tracer:
        ids = tracer.result.save()
    return ids


def _attribute_edges(**changed: Any) -> Any:
    fields = {"prompt": text().clean, "source": 0.0, "answers": "the", "foils": "of"}
    return iv.attribute_edges(text().model, **{**fields, "roles": ["last"], **changed})


def _verify_edges(**changed: Any) -> Any:
    scores = _edge_scores()
    fields = {"scores": scores, "prompt": text().clean, "source": 0.0, "answers": "the", "k": 1}
    return iv.verify_edges(text().model, **{**fields, "foils": "of", **changed})


@cache
def _edge_scores() -> Any:
    return _attribute_edges()


def _faithfulness(**changed: Any) -> Any:
    fields = {"prompt": text().clean, "source": 0.0, "answers": "the", "foils": "of"}
    fields |= {"scores": _edge_scores(), "circuits": [1], "n_random": 1}
    return iv.faithfulness(text().model, **{**fields, **changed})


def _path_patch(**changed: Any) -> Any:
    fields = {"prompt": text().clean, "source": 0.0, "answers": "the", "foils": "of"}
    return iv.path_patch(text().model, **{**fields, "paths": ["input->logits"], **changed})


def _direction(**changed: Any) -> Any:
    along = iv.Direction(**{"vector": torch.ones(48), "name": "along", **changed})
    return _path_patch(metric=along, answers=None, foils=None)


def _contrast_vectors(**changed: Any) -> Any:
    model, n = text().model, 7
    fields = {"positive": text().clean.select([0, 1] * n), "layers": [1], "controls": 2}
    fields |= {"negative": text().corrupt.select([0, 1] * n), "metric": "logit_diff"}
    fields |= {"answers": "the", "foils": "of"}
    return iv.contrast_vectors(model, **{**fields, **changed})


CALLS: dict[str, tuple[Call, tuple[str, ...]]] = {
    "Prompt.at": (
        Call(
            lambda role, index: text().clean.at(role, index),
            lambda: {"role": "entity", "index": -1},
        ),
        ("role", "index"),
    ),
    "Prompt.select": (
        Call(lambda rows: text().clean.select(rows), lambda: {"rows": [0]}),
        ("rows",),
    ),
    "Positions.rows": (Call(lambda rows: _last().rows(rows), lambda: {"rows": [0]}), ("rows",)),
    "Positions.only": (
        Call(lambda rows: _last().only(rows), lambda: {"rows": torch.tensor([True, False])}),
        ("rows",),
    ),
    "Model.prompt": (Call(_prompt), ("spans", "span", "share_prefix")),
    "Model.generate": (Call(_generate, lambda: {"max_new_tokens": 1}), ("max_new_tokens",)),
    "Model.unembed": (
        Call(lambda hidden: text().model.unembed(hidden), lambda: {"hidden": torch.ones(2, 48)}),
        ("hidden",),
    ),
    "head_out": (
        Call(
            _stream,
            lambda: {"index": 1, "positions": _last(), "heads": 0, "value": 0.0, "mode": "set"},
        ),
        ("index", "positions", "heads", "value", "mode"),
    ),
    "resid_post": (
        Call(_resid, lambda: {"index": 1, "positions": _last(), "value": 0.0}),
        ("index", "positions", "value"),
    ),
    "embeddings": (
        Call(_embeddings, lambda: {"positions": _last(), "value": 0.0}),
        ("positions", "value"),
    ),
    "Patch": (
        Call(_run_patch),
        ("component", "layers", "positions", "value", "mode", "heads"),
    ),
    "Site": (Call(_read), ("component", "layers", "positions", "heads")),
    "run": (
        Call(lambda **given: iv.run(text().model, **{"prompt": text().clean, **given})),
        ("prompt", "patches", "knockouts", "reads", "logits", "keep_cache", "start", "inputs"),
    ),
    "read": (
        Call(
            lambda sites: iv.read(text().model, text().clean, sites),
            lambda: {"sites": [iv.Site("resid_post", 1, _last())]},
        ),
        ("sites",),
    ),
    "replay": (Call(_replay), ("prompt", "cells", "logits", "budget", "reduce")),
    "Knockout": (
        Call(
            _knockout,
            lambda: {"layers": 1, "queries": _last(), "keys": text().clean.at("entity")},
        ),
        ("layers", "queries", "keys", "heads", "keep_self"),
    ),
    "embedding_noise": (
        Call(
            lambda **given: iv.embedding_noise(text().model, **given),
            lambda: {"prompt": text().clean, "positions": _last()},
        ),
        ("prompt", "positions", "sigmas", "seed"),
    ),
    "frozen": (
        Call(
            lambda **given: iv.frozen(text().model, **given),
            lambda: {"prompt": text().clean, "positions": _last(), "layers": 1},
        ),
        ("prompt", "positions", "layers", "component"),
    ),
    "ablated": (Call(_ablated), ("component", "layers", "positions", "mean")),
    "steering": (Call(_steering), ("layers", "positions", "vector", "scale")),
    "lens": (Call(_lens), ("hidden", "tokens", "kind", "fitted", "layers")),
    "patch_within": (Call(_within), ("value", "mode", "within", "layers", "component")),
    "subspace": (
        Call(lambda **given: iv.Subspace(**{"basis": torch.ones(48), **given})),
        ("basis",),
    ),
    "random_subspace": (
        Call(lambda **given: iv.Subspace.random(**{"width": 48, "size": 2, **given})),
        ("width", "size", "seed"),
    ),
    "interchange": (Call(_interchange), ("component", "layers", "positions", "source")),
    "das": (
        Call(_das),
        (
            *("expected", "layer", "at", "source_at", "size", "component", "source_model"),
            *("source_layer", "other", "groups", "test_share", "epochs", "batch_rows"),
            *("learning_rate", "n_random", "seed", "base", "source"),
        ),
    ),
    "load_sae": (
        Call(lambda **given: iv.load_sae(**{"path": "nowhere", **given})),
        ("path", "component", "source", "layer", "norm_scaling_factor"),
    ),
    "tuned_lens": (
        Call(_tuned_lens),
        (
            *("activations", "layers", "groups", "test_share", "epochs", "batch_rows"),
            *("learning_rate", "weight_decay", "seed"),
        ),
    ),
    "jacobian_lens": (
        Call(_jacobian_lens),
        ("prompt", "layers", "skip", "batch_dims"),
    ),
    "lens_map": (Call(_lens_map), ("words", "component", "layers", "roles")),
    "attention_map": (
        Call(_attention_map),
        ("queries", "layers", "heads", "roles", "rollout"),
    ),
    "patchscope": (
        Call(_patchscope),
        ("values", "layer", "prompt", "placeholder", "max_new_tokens"),
    ),
    "transplant": (
        Call(_transplant),
        (
            *("pair", "source", "component", "layers", "read_at", "write_at", "how", "to_layers"),
            "mode",
        ),
    ),
    "pair": (
        Call(iv.pair, lambda: {"vlm": text().model, "backbone": text().model}),
        ("vlm", "backbone", "text"),
    ),
    "complete": (
        Call(_complete),
        ("prompt", "patches", "candidates", "max_new_tokens", "stop", "end", "batch_rows"),
    ),
    "generate under edits": (
        Call(_generate_under),
        ("prompt", "patches", "knockouts", "max_new_tokens"),
    ),
    "attribute_edges": (
        Call(_attribute_edges),
        (
            *("prompt", "source", "answers", "foils", "metric", "roles", "read_roles", "by_role"),
            *("method", "steps", "batch_size"),
        ),
    ),
    "verify_edges": (
        Call(_verify_edges),
        (*("scores", "prompt", "source", "answers", "foils", "metric", "k", "seed", "budget"),),
    ),
    "faithfulness": (
        Call(_faithfulness),
        (
            *("scores", "prompt", "source", "answers", "foils", "metric", "circuits", "n_random"),
            *("seed", "budget"),
        ),
    ),
    "path_patch": (
        Call(_path_patch),
        (
            *("prompt", "source", "paths", "answers", "foils", "metric", "roles", "read_roles"),
            *("isolated", "budget"),
        ),
    ),
    "Direction": (Call(_direction), ("vector", "name", "space")),
    "contrast_vectors": (
        Call(_contrast_vectors),
        (
            *("positive", "negative", "role", "index", "component", "layers", "metric", "answers"),
            *("foils", "scale", "held_out", "controls", "seed", "budget"),
        ),
    ),
    "sources": (Call(_sources), ("scale", "seed", "layers")),
    "FromModel": (
        Call(iv.FromModel, lambda: {"pair": None, "prompt": text().clean}),
        ("pair", "prompt"),
    ),
    "sweep": (
        Call(_sweep),
        (
            *("prompt", "source", "answers", "foils", "metrics", "components", "layers", "roles"),
            *("read_roles", "each", "heads", "window", "clusters", "out", "budget", "progress"),
        ),
    ),
    "knockout_curves": (
        Call(_curves),
        (
            *("prompt", "routes", "answers", "foils", "metrics", "layers", "window", "heads"),
            *("clusters", "out", "budget", "progress"),
        ),
    ),
    "cell_statistics": (
        Call(_statistics),
        ("dataset", "variable", "clusters", "correction", "flips", "seed"),
    ),
    "lineplot": (Call(_lineplot), ("dataset", "variable", "title")),
    "attribute": (
        Call(_attribute),
        (
            *("prompt", "source", "answers", "foils", "metric", "components", "layers", "roles"),
            *("read_roles", "each", "by_role", "method", "steps", "verify", "seed", "batch_size"),
        ),
    ),
    "verify": (
        Call(_verify),
        ("scores", "prompt", "source", "answers", "foils", "metric", "k", "seed"),
    ),
    "collect": (
        Call(_collect),
        (
            *("rows", "sites", "out", "n_rows", "batch_rows", "dtype", "coords", "coordinate"),
            *("progress", "component", "layers", "role", "index", "mean", "heads"),
        ),
    ),
    "open_collection": (Call(iv.open_collection), ("folder",)),
    "probe": (
        Call(_probe),
        (
            *("activations", "labels", "method", "C", "ridge", "groups", "splits", "test_share"),
            *("n_controls", "tol", "max_iter", "seed", "device"),
        ),
    ),
    "heatmap": (Call(_heatmap), ("dataset", "variable", "item", "title")),
}
"""By name: the call, and the parameters whose values are exchanged."""
CASES = [(name, parameter) for name, (_, some) in CALLS.items() for parameter in some]
