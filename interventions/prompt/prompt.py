"""Text and images become padded rows whose tokens have roles.

Roles are found row by row from the ids the processor really produced, never by arithmetic on
constants: ``image`` (every image token), ``image_0``, ``image_1`` ... (those of one image),
``last_image`` (the last of them), ``question`` (every token of the text), ``last`` (the token that
predicts the answer), and any named span of the text, such as ``entity``.
"""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from interventions.digests import digest_of
from interventions.errors import PromptError, RoleError, did_you_mean
from interventions.given import index_of, one_of, rows_of, text_of
from interventions.prompt.picture_grids import PictureGrid, Slots
from interventions.prompt.positions import SPACES, Positions, Space, from_lists, picked
from interventions.prompt.rows import SEQUENCE_KEYS

if TYPE_CHECKING:
    import xarray as xr

SINGLE = ("last", "last_image")
NO_IMAGE_POSITIONS = (
    "This model reads images through cross-attention blocks, so its text has no image tokens; use "
    "model.image_features, or attn_out of model.anatomy.cross_blocks. In its tower they have: "
    'at("image", of="tower").'
)


@dataclass(frozen=True)
class Prompt:
    """A padded batch that a model can run, with the role of every token.

    Made by :meth:`interventions.Model.prompt`. Rows are padded on the left and position ids count
    from each row's first real token.

    Attributes
    ----------
    inputs : dict of str to Tensor
        What the model's forward takes. ``input_ids`` and ``position_ids`` are [row, position]
        (positions [row, axis, position] for models that place image tokens in a plane);
        ``attention_mask`` also covers the shared prefix: [row, prefix + position].
    roles : list of dict
        For each row, role name to the positions of its tokens.
    texts : list of str
        The text of each row, as its chat template wrote it and with its images' places in the
        family's own way, before image tokens are expanded. Spans by character are places in the
        text that was given; in a chat, in this one.
    prefix_ids : Tensor [prefix]
        Tokens that all rows share and whose keys and values are computed once. Empty unless the
        prompt was made with ``share_prefix``. They hold no positions of the prompt.
    entries : dict of str to list of int
        For each image tensor, how many of its entries along the first axis belong to each row.
    cross_attention : bool
        The prompt is for a model whose text has no image positions.
    grids : list of list of PictureGrid
        For each row, where the tokens of each of its pictures lie; see :meth:`image_grid`.
    vision : dict of str to Slots
        How many tokens each row has in the vision tower, and behind its projector; empty without
        pictures, or where that is not known.
    """

    inputs: dict[str, torch.Tensor]
    roles: list[dict[str, list[int]]]
    texts: list[str]
    prefix_ids: torch.Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    entries: dict[str, list[int]] = field(default_factory=dict)
    cross_attention: bool = False
    grids: list[list[PictureGrid]] = field(default_factory=list)
    vision: dict[Space, Slots] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def length(self) -> int:
        """Number of tokens of each padded row, without the shared prefix."""
        return self.inputs["input_ids"].shape[1]

    @property
    def has_images(self) -> bool:
        """Whether any row has an image."""
        return bool(self.entries)

    @property
    def full_ids(self) -> torch.Tensor:
        """Token ids with the shared prefix in front, [row, prefix + position]."""
        prefix = self.prefix_ids.expand(len(self), -1)
        return torch.cat([prefix, self.inputs["input_ids"]], dim=1)

    @property
    def digest(self) -> str:
        """Of what a model is given; where roles lie in it is another matter."""
        return digest_of(dict(self.inputs), self.prefix_ids)

    def at(
        self,
        role: str,
        index: int | slice | Sequence[int] | None = None,
        *,
        box: Any = None,
        mask: Any = None,
        patch: Any = None,
        picture: int | Sequence[int] | None = None,
        view: str | None = None,
        share: float | None = None,
        of: Space = "text",
    ) -> Positions:
        """Positions of a token role in every row; of a picture's, also by where they lie in it.

        Of a picture, regions are in pixels of its own, upright, from the top left, and name every
        token that shows some of them, whatever a processor did to it: see :meth:`image_grid`. A
        region is for all rows, or a list of one for each; rows may differ in how many tokens theirs
        names.

        Parameters
        ----------
        role : str
            ``"image"``, ``"image_0"``, ``"last_image"``, ``"question"``, ``"last"``, or the name
            of a span.
        index : int, slice or list of int, optional
            Which of the role's tokens: ``-1`` is the last one. Default: all of them. A slice takes
            what there is, as a list's does. With a region, of the tokens it names.
        box : (x0, y0, x1, y1), optional
            Of ``"image"``, or of ``"image_0"``...: the tokens that show some of this box.
        mask : bool array [height, width] or PIL image, optional
            Or of this mask of the picture's size: True, or the one number that is not 0, is inside.
        patch : (row, column), optional
            Or the token at this place of the grid of tokens, over all tiles together; negative
            ones count from the end. A row may have a list of them.
        picture : int or list of int, optional
            Which picture of a row; only needed where it has several.
        view : {"picture", "tile", "thumbnail"}, optional
            Tokens of such views only. Default: of all, and for ``patch=`` of the finest.
        share : float, optional
            Least share of a token's area, 0 to 1, that lies in the box or mask. Default: any.
        of : {"text", "tower", "features"}
            Whose tokens: the language model's; those of the vision tower (``model.vision``), of
            which ``"image"`` and ``"image_0"`` are the patches, ``"class"`` the tokens that are
            none, and ``"every"`` all, padding included; or what its projector gives.

        Returns
        -------
        Positions
            One position per row for an int (and for ``"last"``, ``"last_image"`` and one patch),
            else all.

        Raises
        ------
        RoleError
            If the role, the index or the region does not exist in some row, or it is not known
            where the tokens of a picture lie.

        Examples
        --------
        >>> named.at("entity", -1).index  # [row, token]
        tensor([[8]])
        >>> shown.at("image", patch=(0, -1)).index  # the top right corner
        tensor([[9]])
        """
        index = None if index is None else index_of(index, "index", error=RoleError)
        asked = {"box": box, "mask": mask, "patch": patch}
        asked |= {"picture": picture, "view": view, "share": share}
        region = None
        if any(value is not None for value in asked.values()):
            region = _where_pictures_are("picture_regions").Region(**asked)
        role, of = (
            text_of(role, "a role", error=RoleError),
            one_of(of, "of", SPACES, error=RoleError),
        )
        if of != "text":
            there = _where_pictures_are("tower_positions")
            return there.at_tower(role, of, self.grids, self.vision, index=index, region=region)
        self._check_role(role)
        named = None if region is None else region.of(role, self.grids)
        lists: list[list[int]] = []
        for row, roles in enumerate(self.roles):
            positions = roles.get(role, [])
            if named is not None:
                positions = [positions[token] for token in named[row]]
            lists.append(picked(positions, index, role, row))
        single = isinstance(index, int) or role in SINGLE
        single = single or (index is None and region is not None and region.single)
        return from_lists(lists, length=self.length, single=single, role=role)

    def _check_role(self, role: str) -> None:
        known = sorted({name for roles in self.roles for name in roles})
        if role in known:
            return
        hint = ""
        if "image" in role:
            hint = " This prompt has no image tokens: pass images= to prompt()."
            if self.cross_attention:
                hint = f" {NO_IMAGE_POSITIONS}"
        raise RoleError(f"no role {role!r} in this prompt. {did_you_mean(role, known)}{hint}")

    def image_grid(self, of: Space = "text") -> "xr.Dataset":
        """Where in its picture each image token lies, token by token.

        Parameters
        ----------
        of : {"text", "tower", "features"}
            Whose tokens, as of :meth:`at`. The tower's may also be of the kind ``"filler"``, which
            stands for nothing.

        Returns
        -------
        Dataset
            With the dim ``token``, row by row and in the tokens' order. ``row``; ``position`` in
            the padded row; ``picture``, its number in the row; ``kind``: ``"picture"``, ``"tile"``
            or ``"thumbnail"``, of which view it is a patch, ``"padding"``, which shows nothing of
            the picture, or ``"newline"`` or ``"class"``, which is no patch; ``grid_row`` and
            ``grid_column`` in that view, over all its tiles, or -1; ``x0``, ``y0``, ``x1`` and
            ``y1`` in pixels of the picture, upright, from the top left: what it shows, or NaN;
            ``width`` and ``height`` of the picture.

        Raises
        ------
        RoleError
            If the prompt has no image tokens, or it is not known where they lie: the reason.

        Examples
        --------
        >>> grid = shown.image_grid()
        >>> grid["position"].values.tolist(), grid["x0"].values.tolist()
        ([8, 9, 10, 11], [0.0, 12.0, 0.0, 12.0])
        """
        of = one_of(of, "of", SPACES, error=RoleError)
        if of != "text":
            return _where_pictures_are("tower_positions").tower_table(of, self.grids)
        if not any("image" in roles for roles in self.roles):
            self.at("image")  # says why there are none
        return _where_pictures_are("grid_table").grid_table(self.roles, self.grids)

    def every(self) -> Positions:
        """Every real token of every row (padding left out)."""
        mask = self.inputs["attention_mask"][:, -self.length :]
        lists = [row.nonzero().flatten().tolist() for row in mask]
        return from_lists(lists, length=self.length, single=False, role="every token")

    @property
    def lengths(self) -> torch.Tensor:
        """Number of real tokens of each row, without the shared prefix, [row]."""
        return self.inputs["attention_mask"][:, -self.length :].sum(-1)

    def trimmed(self) -> tuple["Prompt", int]:
        """Return the prompt without the columns that are padding in every row.

        Returns
        -------
        prompt : Prompt
        left : int
            Number of columns taken off in front; see :meth:`interventions.Positions.shifted`.
        """
        mask = self.inputs["attention_mask"]
        prefix = mask.shape[1] - self.length
        used = mask[:, prefix:].any(0).nonzero().flatten()
        left, stop = int(used.min()), int(used.max()) + 1
        if (left, stop) == (0, self.length):
            return self, 0
        inputs = dict(self.inputs)
        for key in ("input_ids", *SEQUENCE_KEYS):
            if key in inputs:
                inputs[key] = inputs[key][:, left:stop]
        inputs["position_ids"] = inputs["position_ids"][..., left:stop]
        inputs["attention_mask"] = torch.cat([mask[:, :prefix], mask[:, prefix:][:, left:stop]], 1)
        roles = [
            {name: [position - left for position in positions] for name, positions in row.items()}
            for row in self.roles
        ]
        return replace(self, inputs=inputs, roles=roles), left

    def select(self, rows: Sequence[int] | torch.Tensor) -> "Prompt":
        """Return some rows as a prompt of their own.

        Parameters
        ----------
        rows : sequence of int, or of bool [row]
            In the order given, repeats allowed; negative rows count from the end.
        """
        picked = rows_of(rows, len(self), error=PromptError)
        inputs: dict[str, torch.Tensor] = {}
        entries: dict[str, list[int]] = {}
        for key, value in self.inputs.items():
            if key not in self.entries:
                inputs[key] = value[picked]
                continue
            counts = self.entries[key]
            starts = [sum(counts[:row]) for row in range(len(self) + 1)]
            which = [i for row in picked for i in range(starts[row], starts[row + 1])]
            if which:
                inputs[key] = value[which]
                entries[key] = [counts[row] for row in picked]
        return replace(
            self,
            inputs=inputs,
            roles=[self.roles[row] for row in picked],
            texts=[self.texts[row] for row in picked],
            entries=entries,
            grids=[self.grids[row] for row in picked] if self.grids else [],
            vision={of: slots.select(picked) for of, slots in self.vision.items()},
        )


def _where_pictures_are(module: str) -> Any:
    """A module that looks into pictures. Requests to a server go without: positions travel."""
    try:
        return importlib.import_module(f"{__package__}.{module}")
    except ModuleNotFoundError as error:
        raise RoleError(
            "where tokens lie in a picture is looked up before a request is sent: call at() or "
            "image_grid() outside of what runs on the server, and use its positions there."
        ) from error
