"""What a value means by the feature that a data set declares for it.

Features are those of Hugging Face's `datasets`, as plain data: what ``Features.to_dict()`` gives,
and what its Parquet files carry in their metadata. Values are as they are stored, nothing decoded,
so that a broken picture is one value and not the end of the table.
"""

import json
from collections.abc import Mapping
from numbers import Integral
from typing import Any

import numpy as np

from twohop.items.cells import Unread

Feature = Any
"""A dict with ``_type``, a dict of fields, a list of one feature, or None where it is not known."""

NO_TEXT = {
    "Audio": "a recording (feature Audio)",
    "Video": "a video (feature Video)",
    "Pdf": "a document (feature Pdf)",
    "Nifti": "a scan (feature Nifti)",
    "Mesh": "a shape in space (feature Mesh)",
    "BioSequence": "a sequence of a molecule (feature BioSequence)",
    "BioStructure": "the structure of a molecule (feature BioStructure)",
}
"""Features that are neither text nor a picture, in words."""

NARROW = {"float16": np.float16, "float32": np.float32}
LISTS = ("List", "LargeList", "Sequence")
ARRAYS = ("Array2D", "Array3D", "Array4D", "Array5D")


def meaning(value: Any, feature: Feature) -> Any:
    """Return what a stored value means.

    Parameters
    ----------
    value
        As it is stored: a picture as ``{"bytes": ..., "path": ...}``, a label as its number.
    feature
        Declared for it; None leaves the value as it is.

    Returns
    -------
    Any
        A text, number, date, list or picture that cells take; None for nothing; for what is
        neither text nor picture, :class:`~twohop.items.cells.Unread`.

    Examples
    --------
    >>> label = {"_type": "ClassLabel", "names": ["Paris", "Rome"]}
    >>> meaning(1, label), meaning(-1, label), meaning([0, 1], {"_type": "List", "feature": label})
    ('Rome', None, ['Paris', 'Rome'])
    """
    if value is None or feature is None or isinstance(value, Unread):
        return value
    if isinstance(feature, list):
        return _listed(value, feature[0] if feature else None)
    kind = feature.get("_type")
    if not isinstance(kind, str):  # a struct: fields and their features
        return _struct(value, feature)
    if kind in LISTS:
        return _listed(value, feature.get("feature"))
    if kind == "Value":
        narrow = NARROW.get(feature.get("dtype", ""))
        return narrow(value) if narrow and isinstance(value, float) else value
    if kind == "ClassLabel":
        return _label(value, feature)
    if kind == "Image":
        return _picture(value, feature.get("mode"))
    if kind in ARRAYS:
        return _array(value, feature)
    if kind == "Json":
        return _parsed(value)
    if kind in ("Translation", "TranslationVariableLanguages"):
        spoken = ", ".join(map(str, feature.get("languages") or ())) or "several languages"
        return Unread(f"a translation ({spoken}); make a column of the language that is meant")
    return Unread(NO_TEXT.get(kind, f"a feature of the kind {kind}, which is not known here"))


def _listed(value: Any, feature: Feature) -> Any:
    if isinstance(value, Mapping) and isinstance(feature, Mapping) and "_type" not in feature:
        # A sequence of structs may be stored as a struct of sequences.
        return {name: _listed(part, feature.get(str(name))) for name, part in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [meaning(part, feature) for part in value]
    return value


def _struct(value: Any, fields: Mapping[str, Feature]) -> Any:
    if not isinstance(value, Mapping):
        return value
    return {name: meaning(part, fields.get(str(name))) for name, part in value.items()}


def _label(value: Any, feature: Mapping[str, Any]) -> Any:
    if not isinstance(value, Integral):
        return value
    names, number = list(feature.get("names") or ()), int(value)
    if number == -1:  # what the library has for a label that is not known
        return None
    if 0 <= number < len(names):
        return names[number]
    return Unread(f"label {number}, and the feature names {len(names)}")


def _picture(value: Any, mode: str | None) -> Any:
    if isinstance(value, Mapping):
        if value.get("bytes") is None and value.get("path") is None:
            return None
        stored = dict(value)
    else:
        stored = {"path": value} if isinstance(value, str) else {"bytes": value}
    return stored | {"mode": mode} if mode else value


def _array(value: Any, feature: Mapping[str, Any]) -> Any:
    try:
        return np.asarray(value, dtype=feature.get("dtype"))
    except (ValueError, TypeError, OverflowError) as error:
        return Unread(f"an array that is none: {error}")


def _parsed(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value
