"""Which block of a VLM corresponds to which block of its backbone."""

from interventions.errors import AlignmentError
from interventions.model import Model


def layer_map(vlm: Model, backbone: Model) -> list[int]:
    """VLM block that corresponds to each block of the backbone.

    Parameters
    ----------
    vlm, backbone : Model

    Returns
    -------
    list of int
        Entry ``l`` is the VLM's block for the backbone's block ``l``.

    Raises
    ------
    AlignmentError
        If width or depth differ, so that nothing can be patched from one into the other.

    Examples
    --------
    >>> layer_map(vlm, llm)[:3]      # doctest: +SKIP
    [0, 1, 2]
    """
    ours = (vlm.n_layers, vlm.d_model)
    theirs = (backbone.n_layers, backbone.d_model)
    if ours != theirs:
        raise AlignmentError(
            f"{vlm.name} has {ours[0]} layers x {ours[1]}, {backbone.name} has {theirs[0]} x "
            f"{theirs[1]}. Patching needs a VLM and the backbone it was built on."
        )
    return list(range(backbone.n_layers))
