"""Which streams and operations a model has, and what to use where one is missing."""

from dataclasses import dataclass
from typing import Literal

from interventions.architectures.anatomy import Anatomy

State = Literal["yes", "partly", "no"]


@dataclass(frozen=True)
class Ability:
    """Whether something works with a model.

    Attributes
    ----------
    name : str
        A stream or an operation, as it is called in code.
    state : {"yes", "partly", "no"}
    note : str
        What it gives; the condition, where it works partly; what to use instead, where it does not.
    """

    name: str
    state: State
    note: str


WHOLE = "is ignored (rows run whole, numbers are the same)"


def abilities(anatomy: Anatomy) -> tuple[Ability, ...]:
    """Return what can be done with a model, in the order in which it is usually asked."""
    return (*_images(anatomy), *_tower(anatomy), *_streams(anatomy), *_operations(anatomy))


def listed(layers: list[int]) -> str:
    """Write block indices down as short as can be.

    Examples
    --------
    >>> listed([0, 1, 2, 3, 5, 6, 9])
    '0-3, 5, 6, 9'
    >>> listed(list(range(3, 100, 5)))
    '3, 8, 13, ..., 98'
    """
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    names = [
        name
        for run in runs
        for name in ([f"{run[0]}-{run[-1]}"] if len(run) > 2 else [str(layer) for layer in run])
    ]
    return ", ".join(names if len(names) <= 8 else [*names[:3], "...", names[-1]])


def _images(anatomy: Anatomy) -> list[Ability]:
    if not anatomy.is_vlm:
        none = "a text-only model; load the VLM for images"
        return [Ability('prompt.at("image")', "no", none), Ability("image_features", "no", none)]
    if anatomy.cross_blocks:
        return [
            Ability(
                'prompt.at("image")',
                "no",
                "images enter through cross-attention, not at positions; use image_features[:], or "
                f"attn_out of blocks {listed(anatomy.cross_blocks)}, at positions of text",
            ),
            Ability(
                "image_features", "yes", "projected vision states [row, vision token, d_model]"
            ),
        ]
    three = "; positions are (time, height, width), made by prompt()"
    return [
        Ability(
            'prompt.at("image")',
            "yes",
            "also image_0, image_1, ... and last_image"
            + (three if anatomy.three_axis_positions else ""),
        ),
        Ability("image_features", "yes", "what the projector gave, where it enters the sequence"),
    ]


def _tower(anatomy: Anatomy) -> list[Ability]:
    tower = anatomy.tower
    if tower is None:
        return []
    if tower.why:
        return [Ability("vision.*", "no", f"{tower.why}; use nnsight at its modules")]
    n = len(tower.blocks)
    seen = "as many tokens as the picture's size gives"
    if tower.n_patches is not None:
        seen = f"{tower.n_patches} to a view of the picture"
    sides = "patches" if tower.patch is None else "patches of {} x {} pixels".format(*tower.patch)
    unused = ""
    if tower.n_used < n:
        above = listed(list(range(tower.n_used, n)))
        unused = f"; features are taken behind block {tower.n_used - 1}: {above} can only be read"
    return [
        Ability(
            "vision.*",
            "partly" if unused else "yes",
            f"{n} blocks, {tower.width} wide, {tower.n_heads} heads x {tower.head_dim}, over "
            f"{sides}, {seen}: resid_pre, attn_pattern, head_out, attn_out, mlp_out and resid_post "
            "are read and written, and so are projector_in and projector_out; q, k, v and neurons "
            f"are not among them{unused}",
        )
    ]


def _streams(anatomy: Anatomy) -> list[Ability]:
    behind = any(block.behind_norm for block in anatomy.parts)
    cross = f"blocks {listed(anatomy.cross_blocks)} run only where the prompt has an image"
    state: State = "partly" if anatomy.cross_blocks else "yes"

    def stream(name: str, note: str) -> Ability:
        return Ability(name, state, note + (f"; {cross}" if anatomy.cross_blocks else ""))

    added = "what it adds to the residual stream" + (", behind its own norm" if behind else "")
    gated = " (before its gate)" if any(block.attn_gate for block in anatomy.parts) else ""
    recurrent = bool(anatomy.recurrent_blocks)
    blind = [i for i, block in enumerate(anatomy.parts) if block.projection is None]
    heads = f"{anatomy.n_heads} heads x {anatomy.head_dim}, before the output projection"
    if len(blind) == anatomy.n_layers:
        head = Ability(
            "head_out", "no", "the attention's output projection was not recognised; use attn_out"
        )
    elif blind:
        why = ", which keep a recurrent state" if recurrent else ""
        head = Ability(
            "head_out", "partly", f"{heads}; not in blocks {listed(blind)}{why}: use attn_out there"
        )
    else:
        head = stream("head_out", heads)
    inline = anatomy.is_vlm and not anatomy.cross_blocks
    capped = anatomy.softcap is not None or anatomy.logit_scale != 1
    return [
        Ability("embeddings", "yes", "what enters block 0" + ", image features in place" * inline),
        stream("resid_pre, resid_post", "before and behind each block"),
        head,
        stream("attn_out, mlp_out", added + gated),
        Ability("logits", "yes", "as the model gives them" + (", cap and scale done" * capped)),
    ]


def _operations(anatomy: Anatomy) -> list[Ability]:
    cross = bool(anatomy.cross_blocks)
    needs = 'needs attn_implementation "eager" or "sdpa"; flash attention takes no mask of edges'
    if cross:
        needs += (
            f"; not in blocks {listed(anatomy.cross_blocks)}, which see the image only: write 0 "
            "into attn_out there"
        )
    if recurrent := anatomy.recurrent_blocks:
        needs += f"; not in blocks {listed(recurrent)}, which have no edges between tokens"
    return [
        Ability("trace, generate, run", "yes", "edits of generate act on the prefill"),
        Ability("knockout", "partly", needs),
        _sharing(anatomy),
        Ability(
            "lens, patchscope",
            "yes",
            "through the final norm and head" + _capped(anatomy),
        ),
        _pairing(anatomy),
        _batches(anatomy),
    ]


def _batches(anatomy: Anatomy) -> Ability:
    if anatomy.dependent_rows is not None:
        return Ability(
            "padded batches",
            "partly",
            f"{anatomy.dependent_rows}, padding included. sweep, complete, collect and attribute "
            "run one row a pass, replay one cell a pass; trace, run, read and generate run what "
            "they are given: give them one row",
        )
    if anatomy.cross_blocks:
        note = "all rows need equally many images; else make prompts of their own"
        return Ability("padded batches", "partly", note)
    note = "equal to single rows; float64 needs sdpa, as eager makes NaN of padding there"
    return Ability("padded batches", "yes", note)


def _capped(anatomy: Anatomy) -> str:
    changes = []
    if anatomy.softcap is not None:
        changes.append(f"cap {anatomy.softcap:g}")
    if anatomy.logit_scale != 1:
        changes.append(f"scale {anatomy.logit_scale:g}")
    return f", with its {' and '.join(changes)}" if changes else ""


def _sharing(anatomy: Anatomy) -> Ability:
    two_way = anatomy.family.two_way
    if anatomy.dependent_rows is not None:
        return Ability("share_prefix=", "no", f"{anatomy.dependent_rows}, so it {WHOLE}")
    if anatomy.recurrent_blocks:
        return Ability("share_prefix=", "no", f"a recurrent state counts padding, so it {WHOLE}")
    if two_way == "prompt":
        return Ability(
            "share_prefix=", "no", f"tokens of a prompt see each other both ways, so it {WHOLE}"
        )
    limits = []
    if anatomy.cross_blocks:
        limits.append(f"with images it {WHOLE}, as they come in from the side")
    if two_way == "image":
        limits.append(f"with images it {WHOLE}, as their tokens see each other both ways")
    if anatomy.windowed:
        limits.append("blocks with windows need rows of equal length, else it is ignored")
    if not limits:
        return Ability("share_prefix=", "yes", "common tokens are computed once")
    return Ability("share_prefix=", "partly", "; ".join(limits))


def _pairing(anatomy: Anatomy) -> Ability:
    if anatomy.cross_blocks:
        n = len(anatomy.self_blocks)
        return Ability(
            "pair, transplant",
            "yes",
            f"with a language model of {n} blocks; pair().layer_map goes around the "
            "cross-attention blocks; write at positions of text",
        )
    if anatomy.is_vlm:
        return Ability("pair, transplant", "yes", "with its backbone, or with itself in text only")
    return Ability("pair, transplant", "yes", "as the backbone of a VLM built on it")
