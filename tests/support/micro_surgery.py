"""Micro models with weights changed by hand, so that what is wrong with each of them is known.

The micro backbone is made wider and deeper without changing what it says: its blocks keep their
order, those put between them are zeros, and nothing of it reads or writes the new dimensions. In
them a picture is held in a form that recall cannot read, until in one block a mover brings it into
the form that recall reads; and two blocks that end the stack can name it, whatever recall does.

=========  ====================================================================================
dimension  what it holds
=========  ====================================================================================
0-63       the stream of the micro backbone
64-127     what the projector saw, the embedding of a name, for the mover and the naming
128        on image tokens, that they wait for the mover
129, 130   where an answer begins; how much a word asks for the name
131        that the name is to be said here
132-147    who was seen and whether the name is asked for, gathered from all tokens
148-162    who is to be named; only the model's head reads it
=========  ====================================================================================
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaForCausalLM, LlavaForConditionalGeneration

from twohop.items.items import Benchmark
from twohop.micro import ENTITIES, NAMING, TEMPLATES, MicroKey, micro_folder
from twohop.micro import benchmark as micro
from twohop.micro.layout import D_MODEL, RECALL_BLOCKS, vocabulary
from twohop.micro.parts import (
    build_processor,
    build_tokenizer,
    generation_config,
    language_config,
    vlm_config,
)

DEPTH, WIDTH, HEAD = 10, 3 * D_MODEL, D_MODEL // 4
PLACES = (0, 2, 3, 5, 6, 7, 8, 9)
"""Where the micro backbone's blocks are in the deeper one."""
RECALL = tuple(PLACES[block] for block in RECALL_BLOCKS)
MOVED = (0, 3, 4, 5, 6, 7, 8, 9)
"""The same with recall one block later."""
HIDDEN = slice(D_MODEL, 2 * D_MODEL)
WAITS, BEGINS, ASKS, SAYS, GATHERED, SAID = 128, 129, 130, 131, 132, 148
KNOWN = ENTITIES[:12]
"""The entities that the changed models are asked about; their names have one token."""
UNASKED = ENTITIES[19].name
LARGE = 1000.0
"""The flag of a token that waits: alone it makes the token's norm, to 1 in 10,000."""
SMALL = 1e-3
"""What is too small to count in a token's norm."""
OPEN = 20.0
"""What opens a gate: there its SiLU is the identity, to 1 in 100 million."""
ON_NAMING = {"country": 1.0, "capital": -2.0, "continent": -2.0, "language": -2.0}
"""Words that tell a question for the name from one for a fact, which outweighs it."""
ALWAYS = {":": 1.0}
"""Every question has this one."""


def benchmark() -> Benchmark:
    """Return the micro world's items about the known entities."""
    whole, codes = micro.benchmark(), {entity.code for entity in KNOWN}
    items = tuple(item for item in whole.items if item.entity.code in codes)
    return replace(whole, items=items, universe=whole.items)


def plain_backbone() -> LlamaForCausalLM:
    """Open the micro backbone."""
    return LlamaForCausalLM.from_pretrained(micro_folder("micro-backbone")).eval()


def name_ids() -> Tensor:
    """First token of every entity's name, [entity]."""
    words = vocabulary()
    return torch.tensor([words.index(entity.name.split()[0]) for entity in KNOWN])


def block_of(model: LlamaForCausalLM, block: int) -> Any:
    """One block of a model, counted from the end if negative."""
    return model.model.layers[block]


def name_streams(model: LlamaForCausalLM, block: int) -> Tensor:
    """What reaches a block's MLP at the known names, mean over the questions, [entity, d_model]."""
    tokenizer, seen = build_tokenizer(), []
    layer = block_of(model, block).post_attention_layernorm
    hook = layer.register_forward_pre_hook(lambda _module, args: seen.append(args[0][:, -1]))
    for template in (NAMING, *TEMPLATES.values()):
        texts = [template.fill(one.name).rpartition(one.name)[0] + one.name for one in KNOWN]
        with torch.no_grad():
            model(**tokenizer(texts, return_tensors="pt"))
    hook.remove()
    return torch.stack(seen).mean(0)


def forget(model: LlamaForCausalLM, entities: Sequence[int]) -> None:
    """Take entities (indices in KNOWN) out of what the recall MLPs read; others keep theirs."""
    for block in RECALL_BLOCKS:
        streams = name_streams(model, block).T  # [d_model, entity]
        scale = block_of(model, block).post_attention_layernorm.weight.data
        duals = torch.linalg.pinv(streams)
        without = torch.eye(D_MODEL) - streams[:, list(entities)] @ duals[list(entities)]
        mlp = block_of(model, block).mlp
        for weight in (mlp.gate_proj.weight.data, mlp.up_proj.weight.data):
            weight.copy_((weight * scale) @ without / scale)


def widened(model: LlamaForCausalLM, *, places: Sequence[int] = PLACES) -> LlamaForCausalLM:
    """Return the micro backbone with zeros around it: wider, deeper, and saying the same.

    Its blocks are put at these places, in order.
    """
    config = language_config()
    config.update(
        {
            "hidden_size": WIDTH,
            "intermediate_size": 2 * WIDTH,
            "num_hidden_layers": DEPTH,
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
            "head_dim": HEAD,
            "rms_norm_eps": config.rms_norm_eps * D_MODEL / WIDTH,
        }
    )
    with torch.random.fork_rng(devices=[]):
        wide = LlamaForCausalLM(config)
    old, new = model.state_dict(), wide.state_dict()
    for name, tensor in new.items():
        # A mean square over more dimensions, most of them zero, is as much smaller.
        tensor.fill_((D_MODEL / WIDTH) ** 0.5 if tensor.ndim == 1 else 0.0)
        source = name
        if name.startswith("model.layers."):
            block, rest = name.removeprefix("model.layers.").split(".", 1)
            if int(block) not in places:
                continue
            source = f"model.layers.{places.index(int(block))}.{rest}"
        part = old[source] * (tensor.flatten()[0] if tensor.ndim == 1 else 1.0)
        tensor[tuple(slice(n) for n in part.shape)] = part
    return wide.eval()


def moves_at(wide: LlamaForCausalLM, block: int) -> None:
    """Let a block's MLP bring what waits on image tokens into the form that recall reads."""
    model = plain_backbone()
    names = model.model.embed_tokens.weight.data[name_ids()]
    readable = torch.linalg.pinv(names) @ name_streams(model, RECALL_BLOCKS.start)
    norm = block_of(wide, block).post_attention_layernorm.weight.data
    mlp = block_of(wide, block).mlp
    gate, up, down = (part.weight.data for part in (mlp.gate_proj, mlp.up_proj, mlp.down_proj))
    # A waiting token's norm is its flag's: behind the norm the flag is D_MODEL ** 0.5.
    factor = LARGE / (OPEN * D_MODEL**0.5)
    brings, clears = slice(2 * D_MODEL, 3 * D_MODEL), slice(3 * D_MODEL, 4 * D_MODEL)
    lowers = clears.stop
    gate[brings.start : lowers + 1, WAITS] = OPEN / D_MODEL**0.5
    up[brings, HIDDEN] = torch.eye(D_MODEL)
    down[:D_MODEL, brings] = factor / SMALL * readable.T
    # What was written there meanwhile is taken away, and so is the flag.
    up[clears, :D_MODEL] = torch.diag(norm[-1] / norm[:D_MODEL])
    down[:D_MODEL, clears] = -factor * torch.eye(D_MODEL)
    up[lowers, WAITS] = 1.0
    down[WAITS, lowers] = -factor


def says_names(wide: LlamaForCausalLM, *, when: Mapping[str, float]) -> None:
    """Let the last two blocks say the name of what a picture shows, where a question asks for it.

    One more head gathers, evenly over all tokens, who was seen and the weights ``when`` of the
    words. Where an answer begins and these come to more than zero, the model's head adds who was
    seen to the logits of the names, and to no others.
    """
    words, n = vocabulary(), len(KNOWN)
    embeddings = wide.model.embed_tokens.weight.data
    for word, weight in when.items():
        embeddings[words.index(word), ASKS] = weight * SMALL
    embeddings[words.index(":"), BEGINS] = SMALL
    names = plain_backbone().model.embed_tokens.weight.data[name_ids()]
    gather, say = block_of(wide, -2), block_of(wide, -1)
    value, out = gather.self_attn.v_proj.weight.data, gather.self_attn.o_proj.weight.data
    value[2 * HEAD : 2 * HEAD + n, HIDDEN] = torch.linalg.pinv(names).T
    value[2 * HEAD + n, ASKS] = 1.0
    out[GATHERED : GATHERED + HEAD, 4 * HEAD : 5 * HEAD] = torch.eye(HEAD)
    units = slice(5 * D_MODEL, 5 * D_MODEL + n)
    gather.mlp.gate_proj.weight.data[units.start, GATHERED + n] = 2e3 / SMALL
    gather.mlp.up_proj.weight.data[units.start, BEGINS] = 1.0
    gather.mlp.down_proj.weight.data[SAYS, units.start] = 1.0
    say.mlp.gate_proj.weight.data[units, SAYS] = 1 / SMALL
    say.mlp.up_proj.weight.data[units, GATHERED : GATHERED + n] = torch.eye(n)
    say.mlp.down_proj.weight.data[SAID : SAID + n, units] = torch.eye(n)
    wide.lm_head.weight.data[name_ids(), range(SAID, SAID + n)] = 3e4 / SMALL


def seeing(
    wide: LlamaForCausalLM, *, key: MicroKey, readable: float = 1.0, waits: float = 0.0
) -> LlavaForConditionalGeneration:
    """Put a micro model's tower and projector in front of a wider decoder.

    What the projector gives is written ``readable`` times where the micro backbone reads. What
    mover and naming read is always the name that micro-aligned sees; ``waits`` is the mover's flag.
    """
    config = vlm_config()
    config.text_config = wide.config
    with torch.random.fork_rng(devices=[]):
        vlm = LlavaForConditionalGeneration(config)
    vlm.model.language_model.load_state_dict(wide.model.state_dict())
    vlm.lm_head.load_state_dict(wide.lm_head.state_dict())
    projector = vlm.model.multi_modal_projector
    first, last = projector.linear_1, projector.linear_2
    for one in projector.parameters():
        one.data.zero_()
    parts = (
        (slice(D_MODEL), readable, micro_folder(key)),
        (HIDDEN, SMALL, micro_folder("micro-aligned")),
    )
    for there, factor, folder in parts:
        source = LlavaForConditionalGeneration.from_pretrained(folder).model
        vlm.model.vision_tower.load_state_dict(source.vision_tower.state_dict())
        theirs = source.multi_modal_projector
        first.weight.data[there], first.bias.data[there] = theirs.linear_1.parameters()
        last.weight.data[there, there] = factor * theirs.linear_2.weight.data
        last.bias.data[there] = factor * theirs.linear_2.bias.data
    last.bias.data[WAITS] = waits
    return vlm.eval()


def delayed(backbone: LlamaForCausalLM, block: int) -> LlavaForConditionalGeneration:
    """Return a VLM whose image tokens hold the entity as recall reads it only behind a block."""
    decoder = deepcopy(backbone)
    moves_at(decoder, block)
    says_names(decoder, when=ON_NAMING)
    return seeing(decoder, key="micro-aligned", readable=0.0, waits=LARGE)


def echoing(backbone: LlamaForCausalLM, key: MicroKey) -> LlavaForConditionalGeneration:
    """Return a micro VLM that answers whatever is asked about a picture by the entity's name."""
    decoder = deepcopy(backbone)
    says_names(decoder, when=ALWAYS)
    return seeing(decoder, key=key)


def blind(backbone: LlamaForCausalLM, *, sees: str | None) -> LlavaForConditionalGeneration:
    """Return a VLM that sees the same entity (its name) in every picture; None: it sees noise."""
    vlm = seeing(deepcopy(backbone), key="micro-aligned")
    last = vlm.model.multi_modal_projector.linear_2
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(last.weight.shape, generator=generator) * last.weight.data.std()
    last.weight.data = noise if sees is None else torch.zeros_like(noise)
    if sees is not None:
        last.bias.data = backbone.model.embed_tokens.weight.data[vocabulary().index(sees)]
    return vlm


def turned(vlm: LlavaForConditionalGeneration) -> LlavaForConditionalGeneration:
    """Give the dimensions of the decoder's stream another order: it says the same."""
    width = vlm.lm_head.weight.shape[1]
    order = torch.randperm(width, generator=torch.Generator().manual_seed(0))
    for name, weight in vlm.named_parameters():
        part = name.rpartition(".")[0].rpartition(".")[2]
        if "language_model" not in name and "lm_head" not in name:
            if "linear_2" in name:
                weight.data = weight.data[order]
        elif part in ("o_proj", "down_proj") or weight.ndim == 1:
            weight.data = weight.data[order]
        else:
            weight.data = weight.data[:, order]
    return vlm


def stored(model: LlamaForCausalLM | LlavaForConditionalGeneration, folder: Path) -> Path:
    """Store a model with its tokenizer or processor, as an ordinary folder."""
    model.generation_config = generation_config()
    model.save_pretrained(folder)
    seeing = isinstance(model, LlavaForConditionalGeneration)
    (build_processor() if seeing else build_tokenizer()).save_pretrained(folder)
    return folder
