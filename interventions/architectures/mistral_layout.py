"""Pixtral checkpoints in Mistral's own layout, written as a folder that transformers opens.

The layout of ``mistralai`` repos that have no other: ``params.json``, ``consolidated*.safetensors``
and ``tekken.json``. Queries and keys are stored there for rotations of neighbouring pairs, and
turned here for those of two halves, which transformers' classes do.
"""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from interventions.architectures.partial_folder import partial_folder
from interventions.errors import LoadError

PARAMS, TOKENS, WEIGHTS = "params.json", "tekken.json", "consolidated*.safetensors"
WHOLE = "consolidated.safetensors"
PIECE = re.compile(r"consolidated-(\d+)-of-(\d+)\.safetensors")
SHARD_BYTES = 4 * 2**30
MARGIN = 2**28  # for what is beside the weights
TEXT = "model.language_model."
TOWER = "model.vision_tower."
NAMES = {
    "tok_embeddings.weight": f"{TEXT}embed_tokens.weight",
    "norm.weight": f"{TEXT}norm.weight",
    "output.weight": "lm_head.weight",
    "vision_encoder.patch_conv.weight": f"{TOWER}patch_conv.weight",
    "vision_encoder.ln_pre.weight": f"{TOWER}ln_pre.weight",
    **{
        f"vision_language_adapter.{old}.{kind}": f"model.multi_modal_projector.{new}.{kind}"
        for old, new in (("w_in", "linear_1"), ("w_out", "linear_2"))
        for kind in ("weight", "bias")
    },
}
LAYER = re.compile(r"(vision_encoder\.transformer\.)?layers\.(\d+)\.(.+)\.weight")
MLP = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
CHAT = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{{ message['content'] if message['content'] is string else message['content'][0]['text'] }}"
    "{{ eos_token }}{% else %}{% set own = message['role'] == 'system' %}"
    "{{ '[SYSTEM_PROMPT]' if own else '[INST]' }}{% if message['content'] is string %}"
    "{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{{ '[IMG]' if part['type'] == 'image' else part['text'] }}{% endfor %}{% endif %}"
    "{{ '[/SYSTEM_PROMPT]' if own else '[/INST]' }}{% endif %}{% endfor %}"
)


OTHER_NUMBERS = ("sliding_window", "rope_scaling", "llama_4_scaling", "yarn", "moe", "quantization")
OTHER_SIGHT = ("add_pre_mm_projector_layer_norm",)
"""What a Pixtral has not."""


def convert(source: str | Path, target: str | Path, *, shard_bytes: int = SHARD_BYTES) -> Path:
    """Write a Pixtral checkpoint of Mistral's layout as transformers' LLaVA.

    Parameters
    ----------
    source : str or Path
        Folder with ``params.json``, ``consolidated*.safetensors`` and ``tekken.json``.
    target : str or Path
        A folder that is not there yet. It appears when all of it is written.
    shard_bytes : int
        About how large a file of weights becomes; as much memory is needed twice.

    Returns
    -------
    Path
        ``target``; ``iv.load`` and ``twohop study --vlm`` open it.

    Raises
    ------
    LoadError
        If a file is missing or of something else, or there is no room; nothing is left behind.
    """
    source, target = Path(source), Path(target)
    params, files = _checked(source)
    _check_new(target)
    size = sum(file.stat().st_size for file in files)
    target.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(target.parent).free
    if free < size + MARGIN:
        raise LoadError(
            f"{str(target)!r}: {(size + MARGIN) / 1e9:.1f} GB are needed there and "
            f"{free / 1e9:.1f} GB are free. Make room, or name a folder on another disk."
        )
    with partial_folder(target) as partial:
        try:
            config = _config_of(params)
            _write_weights(files, config, partial, shard_bytes)
            config.architectures = ["LlavaForConditionalGeneration"]
            config.save_pretrained(partial)
            _processor(source, params).save_pretrained(partial)
            _check_new(target)
            partial.rename(target)
        except LoadError:
            raise
        except Exception as error:  # of the disk; tokenizers and safetensors have classes of none
            raise LoadError(
                f"{str(target)!r} could not be written: {error}. Nothing is left of it."
            ) from error
    return target


def _check_new(target: Path) -> None:
    if target.exists():
        raise LoadError(f"{str(target)!r} is there already. Name a folder that is not.")


def _checked(source: Path) -> tuple[dict[str, Any], list[Path]]:
    """The settings and the files of weights of a checkpoint that is whole."""
    files = _one_set(source)
    lost = [name for name in (PARAMS, TOKENS) if not (source / name).is_file()]
    lost += [] if files else [WEIGHTS]
    pieces = [match for file in files if (match := PIECE.fullmatch(file.name))]
    for total in {match[2] for match in pieces}:
        there = {int(match[1]) for match in pieces if match[2] == total}
        lost += [
            f"consolidated-{i:0{len(total)}}-of-{total}.safetensors"
            for i in range(1, int(total) + 1)
            if i not in there
        ]
    if lost:
        raise LoadError(
            f"{str(source)!r} is no whole checkpoint in Mistral's layout: {', '.join(lost)} "
            "missing. Download it again."
        )
    try:
        params = json.loads((source / PARAMS).read_text(encoding="utf-8"))
    except ValueError as error:
        raise LoadError(f"{PARAMS} of {str(source)!r} cannot be read: {error}.") from error
    seeing = params.get("vision_encoder")
    if seeing is None or seeing.get("mm_projector_id"):
        what = "merges patches" if seeing else "has no vision encoder"
        raise LoadError(
            f"{str(source)!r} {what}, so it is no Pixtral. Its maker has it in transformers' "
            "layout too: use that repo."
        )
    others = [key for key in OTHER_NUMBERS if params.get(key)]
    others += [key for key in OTHER_SIGHT if seeing.get(key)]
    others += ["spatial_merge_size"] if seeing.get("spatial_merge_size", 1) != 1 else []
    if others:
        raise LoadError(
            f"{PARAMS} of {str(source)!r} has {', '.join(others)}, which is not converted: the "
            "numbers would be others. Its maker may have it in transformers' layout too."
        )
    return params, files


def _one_set(source: Path) -> list[Path]:
    """The files of weights; of a folder that has them whole and in pieces, the whole one.

    Raises
    ------
    LoadError
        If there are pieces of two sets, or files of other names.
    """
    files = sorted(source.glob(WEIGHTS))
    if (source / WHOLE).is_file():
        return [source / WHOLE]
    totals = {match[2] if (match := PIECE.fullmatch(file.name)) else file.name for file in files}
    if len(totals) > 1:
        raise LoadError(
            f"{str(source)!r} has more than one set of weights: "
            f"{', '.join(file.name for file in files)}. Leave the files of one."
        )
    return files


def _config_of(params: dict[str, Any]) -> Any:
    try:
        return config_of(params)
    except KeyError as error:
        raise LoadError(f"{PARAMS} does not say {error}, so it is no Pixtral's.") from error


def config_of(params: dict[str, Any]) -> Any:
    """The config of transformers' LLaVA for what a ``params.json`` says."""
    from transformers import LlavaConfig, MistralConfig, PixtralVisionConfig

    seeing = params["vision_encoder"]
    text = MistralConfig(
        vocab_size=params["vocab_size"],
        hidden_size=params["dim"],
        intermediate_size=params["hidden_dim"],
        num_hidden_layers=params["n_layers"],
        num_attention_heads=params["n_heads"],
        num_key_value_heads=params["n_kv_heads"],
        head_dim=params["head_dim"],
        rms_norm_eps=params["norm_eps"],
        max_position_embeddings=params.get("max_seq_len", 131_072),
        sliding_window=None,
        rope_parameters={"rope_type": "default", "rope_theta": params["rope_theta"]},
    )
    vision = PixtralVisionConfig(
        **{
            key: seeing[key]
            for key in (
                *("hidden_size", "num_channels", "image_size", "patch_size"),
                *("intermediate_size", "num_hidden_layers", "num_attention_heads"),
            )
        },
        hidden_act="silu",  # as its maker's code has it; the class's default is another
        rope_parameters={"rope_type": "axial", "rope_theta": seeing["rope_theta"]},
    )
    return LlavaConfig(
        text_config=text,
        vision_config=vision,
        image_token_index=seeing["image_token_id"],
        image_seq_length=1,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        multimodal_projector_bias=seeing.get("adapter_bias", True),
    )


def new_name(name: str) -> str:
    """The name that a weight of Mistral's layout has in transformers' LLaVA.

    Raises
    ------
    LoadError
        If it has none.
    """
    if name in NAMES:
        return NAMES[name]
    match = LAYER.fullmatch(name)
    if match is None:
        raise LoadError(f"{name!r} is no weight of a Pixtral, so this is another model.")
    seeing, layer, part = match.groups()
    block = f"{TOWER}transformer.layers.{layer}." if seeing else f"{TEXT}layers.{layer}."
    where, _, which = part.partition(".")
    if where == "attention":
        return f"{block}{'attention' if seeing else 'self_attn'}.{which[1:]}_proj.weight"
    if where == "feed_forward":
        return f"{block}{'feed_forward' if seeing else 'mlp'}.{MLP[which]}.weight"
    norms = {"attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
    return f"{block}{where if seeing else norms[where]}.weight"


def _turned(name: str, weight: torch.Tensor, config: Any) -> torch.Tensor:
    """Queries and keys for rotations of two halves."""
    if not name.endswith(("q_proj.weight", "k_proj.weight")):
        return weight
    text = config.text_config
    heads = config.vision_config.num_attention_heads
    if not name.startswith(TOWER):
        heads = text.num_attention_heads if "q_proj" in name else text.num_key_value_heads
    pairs = weight.view(heads, -1, 2, weight.shape[1])
    return pairs.transpose(1, 2).reshape(weight.shape)


def _weights(files: list[Path], config: Any) -> Iterator[tuple[str, torch.Tensor]]:
    for file in files:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - it is no dict
                new = new_name(name)
                yield new, _turned(new, opened.get_tensor(name), config).contiguous()


def _write_weights(files: list[Path], config: Any, folder: Path, shard_bytes: int) -> None:
    """Write all weights, shard by shard, and the list of them; refuse a checkpoint that lacks some.

    A model without weights says which there are to be.
    """
    from transformers import LlavaForConditionalGeneration

    with torch.device("meta"):
        wanted = LlavaForConditionalGeneration(config).state_dict()
    shard: dict[str, torch.Tensor] = {}
    shards: list[list[str]] = []

    def write() -> None:
        save_file(shard, folder / f"part-{len(shards)}", metadata={"format": "pt"})
        shards.append([*shard])
        shard.clear()

    for name, weight in _weights(files, config):
        if name not in wanted or weight.shape != wanted[name].shape:
            raise LoadError(
                f"{name} is of shape {tuple(weight.shape)}, which {PARAMS} does not tell of. Get "
                "the file that belongs to these weights."
            )
        config.dtype = weight.dtype
        if shard and sum(map(_size, shard.values())) + _size(weight) > shard_bytes:
            write()
        shard[name] = weight
    write()
    written = {name for names in shards for name in names}
    if missing := sorted(wanted.keys() - written):
        raise LoadError(
            f"{len(missing)} weights are in none of the {len(files)} files, such as {missing[0]!r}."
            " Download the checkpoint again."
        )
    places = {}
    for i, names in enumerate(shards):
        file = f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
        (folder / f"part-{i}").rename(folder / file)
        places |= dict.fromkeys(names, file)
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def _size(weight: torch.Tensor) -> int:
    return weight.numel() * weight.element_size()


def _processor(source: Path, params: dict[str, Any]) -> Any:
    """Pixtral's processor around the tokenizer of a ``tekken.json``."""
    from tokenizers.processors import TemplateProcessing
    from transformers import PixtralImageProcessorPil
    from transformers.integrations.mistral.tokenizer import convert_tekken_tokenizer

    from interventions.architectures.processors import processor_class

    tokenizer: Any = convert_tekken_tokenizer(str(source / TOKENS))
    begin = tokenizer.bos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{begin} $A",
        pair=f"{begin} $A {begin} $B:1",
        special_tokens=[(begin, tokenizer.bos_token_id)],
    )
    seeing = params["vision_encoder"]
    side = seeing["patch_size"]
    images = PixtralImageProcessorPil(
        patch_size={"height": side, "width": side}, size={"longest_edge": seeing["image_size"]}
    )
    template = tokenizer.chat_template or CHAT
    return processor_class("PixtralProcessor")(
        images, tokenizer, patch_size=side, spatial_merge_size=1, chat_template=template
    )
