"""Where the tokens of a row's pictures lie, by what its processor did and how its family is."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from interventions.architectures.family_layouts import LAYOUTS
from interventions.architectures.family_towers import tower_of
from interventions.architectures.picture_layouts import Processed, UnknownLayout
from interventions.architectures.picture_views import View, n_tokens
from interventions.architectures.wrapped import Wrapped
from interventions.prompt.picture_grids import PictureGrid
from interventions.prompt.rows import Row

Known = TypeVar("Known")
UNREAD = (LookupError, AttributeError, TypeError, ValueError, ZeroDivisionError)
"""What rules raise where a processor of somebody's own is unlike that of its family."""


def grids_of(model: Wrapped, row: Row, sizes: Sequence[tuple[int, int]]) -> list[PictureGrid]:
    """Where the tokens of each picture of a row lie.

    Parameters
    ----------
    model : Wrapped
    row : Row
    sizes : sequence of (int, int)
        Width and height of its pictures.
    """
    anatomy, work = model.anatomy, row.work
    if work is None:
        why = "it is not known what its image processor did"
        return [PictureGrid(size, reason=why, tower_reason=why) for size in sizes]
    processed = Processed(
        module=model.module,
        processor=getattr(model.processor, "image_processor", None),
        settings=work.settings,
        output=work.output,
        tensors=row.images,
        sizes=[(height, width) for width, height in sizes],
    )
    grids = []
    for picture, size in enumerate(sizes):
        grid = PictureGrid(size)
        n = None if anatomy.image_token_id is None else len(row.roles.get(f"image_{picture}", ()))
        views, why = _known(lambda i=picture, n=n: _views(processed, i, anatomy.model_type, n))
        grid = replace(grid, views=views or (), reason=why)
        shown = grid.views
        seen, why = _known(lambda i=picture, v=shown: tower_of(processed, i, anatomy.model_type, v))
        tower, features = seen or (None, None)
        grids.append(replace(grid, tower=tower, features=features, tower_reason=why))
    return grids


def _known(find: Callable[[], Known]) -> tuple[Known | None, str]:
    """What a rule finds, and why it found nothing."""
    try:
        return find(), ""
    except UnknownLayout as error:
        return None, str(error)
    except UNREAD as error:
        return None, f"{type(error).__name__} in the rule of its family: {error}"


def _views(processed: Processed, picture: int, kind: str, expected: int | None) -> tuple[View, ...]:
    """The views whose tokens a text has ``expected`` of; None: it has no image tokens."""
    if expected is None:
        raise UnknownLayout("its text has no image tokens")
    if kind not in LAYOUTS:
        raise UnknownLayout(f"the layout of the family {kind!r} is not known here")
    views = tuple(LAYOUTS[kind].views(processed, picture))
    if (n := n_tokens(views)) != expected:
        raise UnknownLayout(f"it has {expected} tokens, and by its family's layout {n}")
    return views
