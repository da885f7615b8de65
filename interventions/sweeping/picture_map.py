"""What is laid over a picture: values by component, layer and place."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

COLOURS = "RdBu_r"
OPAQUE = 0.6
"""How much of a colour covers the picture."""
WHITE = 255
"""Of a grey picture, drawn from half grey to white, for colours to be seen on it."""


@dataclass(frozen=True)
class Drawing:
    """Values of a picture's tokens by component and layer; what is drawn.

    Attributes
    ----------
    picture : PIL.Image.Image
        As the model was shown it.
    layers : ndarray [layer]
    components : list of str
    x, y : ndarray [column + 1], [line + 1]
        Ends of cells, in pixels of the picture. Where a view has no token, cells hold NaN.
    values : ndarray [component, layer, line, column]
    label : str
        What they are, with their unit.
    title, note : str
    warned : bool
        The note is a warning.
    """

    picture: Image.Image
    layers: np.ndarray
    components: list[str]
    x: np.ndarray
    y: np.ndarray
    values: np.ndarray
    label: str
    title: str
    note: str = ""
    warned: bool = False

    @property
    def most(self) -> float:
        """The largest absolute value, the end of the colour scale."""
        return float(np.nanmax(np.abs(self.values))) or 1.0

    @property
    def least(self) -> float:
        """The other end: 0 where no value is negative."""
        return -self.most if np.nanmin(self.values) < 0 else 0.0
