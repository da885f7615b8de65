"""Where the tokens of a row's pictures lie, by what its processor did and how its family is."""

from collections.abc import Sequence

from interventions.architectures.family_layouts import LAYOUTS
from interventions.architectures.picture_layouts import Processed, UnknownLayout
from interventions.architectures.picture_views import n_tokens
from interventions.architectures.wrapped import Wrapped
from interventions.prompt.picture_grids import PictureGrid
from interventions.prompt.rows import Row

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
    if anatomy.image_token_id is None or work is None:
        return [PictureGrid(size, reason="its text has no image tokens") for size in sizes]
    layout = LAYOUTS.get(anatomy.model_type)
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
        try:
            if layout is None:
                kind = anatomy.model_type
                raise UnknownLayout(f"the layout of the family {kind!r} is not known here")
            views = tuple(layout.views(processed, picture))
            expected, n = len(row.roles.get(f"image_{picture}", ())), n_tokens(views)
            if n != expected:
                raise UnknownLayout(f"it has {expected} tokens, and by its family's layout {n}")
            grids.append(PictureGrid(size, views))
        except UnknownLayout as error:
            grids.append(PictureGrid(size, reason=str(error)))
        except UNREAD as error:
            said = f"{type(error).__name__} in the rule of its family: {error}"
            grids.append(PictureGrid(size, reason=said))
    return grids
