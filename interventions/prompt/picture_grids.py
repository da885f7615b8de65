"""Where in a picture each of its tokens lies, and which tokens a region of it names."""

from collections.abc import Sequence
from dataclasses import dataclass

from interventions.architectures.picture_layouts import Processed, UnknownLayout
from interventions.architectures.picture_views import Patches, patches_of
from interventions.architectures.wrapped import Wrapped
from interventions.prompt.rows import Row

UNREAD = (LookupError, AttributeError, TypeError, ValueError, ZeroDivisionError)
"""What rules raise where a processor of somebody's own is unlike that of its family."""


@dataclass(frozen=True)
class PictureGrid:
    """One picture of a prompt: its size, and where its tokens lie in it.

    Attributes
    ----------
    size : (int, int)
        Width and height in pixels, upright.
    patches : Patches or None
        In the order of its tokens.
    reason : str
        Why it is not known where they lie.
    """

    size: tuple[int, int]
    patches: Patches | None = None
    reason: str = ""


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
    layout = anatomy.family.layout
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
            patches = patches_of(layout.views(processed, picture))
            expected, n = len(row.roles.get(f"image_{picture}", ())), len(patches.kind)
            if n != expected:
                raise UnknownLayout(f"it has {expected} tokens, and by its family's layout {n}")
            grids.append(PictureGrid(size, patches))
        except UnknownLayout as error:
            grids.append(PictureGrid(size, reason=str(error)))
        except UNREAD as error:
            said = f"{type(error).__name__} in the rule of its family: {error}"
            grids.append(PictureGrid(size, reason=said))
    return grids
