"""Where the parts of a model are, found from its structure and config.

Covered so far: decoder-only language models with sequential residual blocks (Llama and its kin)
and LLaVA-type VLMs around them. Anything else is refused with the reason.
"""

from dataclasses import dataclass
from typing import Any

import torch

from interventions.errors import LoadError

BLOCK_PARTS = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
VLM_TYPES = ("llava",)
VISION_NAMES = ("vision_tower", "vision_model", "visual")
PROJECTOR_NAMES = ("multi_modal_projector", "connector", "projector")


@dataclass(frozen=True)
class Anatomy:
    """Dotted paths, from the root module, of the parts of one model.

    Attributes
    ----------
    blocks : str
        The list of decoder blocks.
    attention, mlp : str
        Names of the two sublayers inside a block.
    final_norm, head, embeddings : str
        Norm after the last block, output projection, token embeddings.
    vision_tower, projector : str or None
        None in a text-only model.
    image_token_id : int or None
        Id of the token that image features replace.
    n_layers, d_model, n_heads, vocab : int
        Sizes of the decoder.
    """

    blocks: str
    attention: str
    mlp: str
    final_norm: str
    head: str
    embeddings: str
    vision_tower: str | None
    projector: str | None
    image_token_id: int | None
    n_layers: int
    d_model: int
    n_heads: int
    vocab: int

    @property
    def is_vlm(self) -> bool:
        """Whether the model sees images."""
        return self.image_token_id is not None


def find_anatomy(module: Any) -> Anatomy:
    """Find the parts of a loaded (or meta) transformers model.

    Parameters
    ----------
    module : torch.nn.Module
        A transformers model with a language-model head.

    Raises
    ------
    LoadError
        If a part cannot be found: the part and what the model has instead are named.
    """
    paths = {id(part): path for path, part in module.named_modules()}
    name = type(module).__name__
    decoder = module.get_decoder() if hasattr(module, "get_decoder") else None
    layers = getattr(decoder, "layers", None)
    if decoder is None or not isinstance(layers, torch.nn.ModuleList):
        raise LoadError(
            f"{name}: no list of decoder blocks was found (get_decoder().layers). "
            "Decoder-only language models and LLaVA-type VLMs are supported."
        )
    config: Any = module.config
    text: Any = config.get_text_config(decoder=True)
    image_token_id = getattr(config, "image_token_id", getattr(config, "image_token_index", None))
    image = image_token_id is not None

    if image and config.model_type not in VLM_TYPES:
        raise LoadError(
            f"{name}: VLMs of type {config.model_type!r} are not supported yet, only "
            f"{', '.join(VLM_TYPES)}: their images or positions enter in ways of their own."
        )
    parts = {child for child, _ in layers[0].named_children()}
    if parts != BLOCK_PARTS or getattr(text, "residual_multiplier", 1.0) != 1.0:
        raise LoadError(
            f"{name}: its blocks are not of Llama's build, in which attention and MLP each add "
            f"their output to the residual stream. Expected {', '.join(sorted(BLOCK_PARTS))}; "
            f"got {', '.join(sorted(parts))}."
        )

    head = module.get_output_embeddings()
    norm = getattr(decoder, "norm", None)
    if head is None or norm is None:
        missing = "output head" if head is None else "final norm"
        raise LoadError(f"{name}: no {missing} was found, so logits cannot be read.")

    def optional(names: tuple[str, ...]) -> str | None:
        found = [path for path in paths.values() if path.rsplit(".", 1)[-1] in names]
        return min(found, key=len) if found else None

    return Anatomy(
        blocks=paths[id(layers)],
        attention="self_attn",
        mlp="mlp",
        final_norm=paths[id(norm)],
        head=paths[id(head)],
        embeddings=paths[id(module.get_input_embeddings())],
        vision_tower=optional(VISION_NAMES) if image_token_id is not None else None,
        projector=optional(PROJECTOR_NAMES) if image_token_id is not None else None,
        image_token_id=image_token_id,
        n_layers=len(layers),
        d_model=text.hidden_size,
        n_heads=text.num_attention_heads,
        vocab=text.vocab_size,
    )
