"""Attention to a shared prefix and to a row's own tokens, beside one softmax over both."""

from types import SimpleNamespace

import pytest
import torch
from floors import FLOOR32
from torch import nn

import interventions as iv
from interventions.model import prefix_attention
from interventions.model.prefix_attention import LONG, SharedLayer
from interventions.running.last_block import only_wanted
from interventions.running.run import run_checked

CELLS, GROUPS, KV_HEADS, EACH, BEFORE, WIDTH = 3, 2, 2, 3, 11, 8
ROWS, HEADS = CELLS * GROUPS, KV_HEADS * EACH


def given(own: int, masked: str) -> tuple[torch.Tensor, ...]:
    """Queries; keys and values of a prefix and of rows; and a mask [row, 1, position, key]."""
    draw = torch.Generator().manual_seed(own)
    query = torch.randn(ROWS, HEADS, own, WIDTH, generator=draw)
    before = torch.randn(2, GROUPS, KV_HEADS, BEFORE, WIDTH, generator=draw)
    mine = torch.randn(2, ROWS, KV_HEADS, own, WIDTH, generator=draw)
    mask = torch.ones(ROWS, 1, own, BEFORE + own, dtype=torch.bool)
    mask &= torch.ones(own, BEFORE + own, dtype=torch.bool).tril(BEFORE)
    if masked == "a padded prefix":
        mask[::2, ..., :4] = False
    if masked == "edges that are cut":
        mask[1, :, own // 2 :, BEFORE : BEFORE + own // 2] = False
    if masked == "heads of their own":
        mask = mask.repeat(1, HEADS, 1, 1)
        mask[:, 1, own // 2 :, BEFORE : BEFORE + own // 2] = False
    return query, before, mine, mask


@pytest.mark.parametrize("wanted", [None, 1, LONG])
@pytest.mark.parametrize("own", [1, LONG - 1, LONG, 3 * LONG])
@pytest.mark.parametrize(
    "masked", ["causal", "a padded prefix", "edges that are cut", "heads of their own"]
)
def test_equals_one_softmax(masked: str, own: int, wanted: int | None) -> None:
    query, before, mine, mask = given(own, masked)
    config = SimpleNamespace(_attn_implementation=prefix_attention.NAME)
    layer = SharedLayer(before[0], before[1], n_rows=ROWS, config=config, growing=False)
    layer.wanted = None if wanted is None else min(wanted, own)
    key, value = layer.update(mine[0], mine[1])
    found, _ = prefix_attention.attention(None, query, key, value, mask, scaling=0.3)
    whole = [
        torch.cat([tensor.repeat_interleave(CELLS, 0), rows], -2).repeat_interleave(EACH, 1)
        for tensor, rows in zip(before.double(), mine.double(), strict=True)
    ]
    scores = 0.3 * query.double() @ whole[0].mT
    expected = scores.masked_fill(~mask, -torch.inf).softmax(-1) @ whole[1]
    first = 0 if layer.wanted is None else own - layer.wanted
    assert found.shape == (ROWS, own, HEADS, WIDTH)
    torch.testing.assert_close(
        found[:, first:].double(), expected.transpose(1, 2)[:, first:], atol=FLOOR32, rtol=FLOOR32
    )
    assert not found[:, :first].any()


def test_the_last_block_leaves_out_what_nobody_reads(llm: iv.Model) -> None:
    """How many tokens its MLP is given, and that what is asked for behind it turns this off."""
    model = llm
    prompt = model.prompt("Marlow is in Belmora")
    last = model.n_layers - 1
    mlp = model.anatomy.parts[last].mlp
    block = model.module.get_submodule(model.anatomy.blocks)[last]
    inner = next(one for one in block.get_submodule(mlp).modules() if isinstance(one, nn.Linear))
    tokens: list[int] = []
    seen = inner.register_forward_pre_hook(lambda _, args: tokens.append(args[0].shape[1]))
    try:
        [entering] = iv.read(model, prompt, [iv.Site("resid_pre", 2, None)])
        whole = run_checked(model, prompt).logits
        start = (2, entering)
        torch.testing.assert_close(
            run_checked(model, prompt, start=start, narrow=True).logits,
            whole,
            atol=FLOOR32,
            rtol=FLOOR32,
        )
        places = [iv.Site("mlp_out", last, None), iv.Site("attn_out", last, None)]
        for site in places:
            alone = run_checked(model, prompt, reads=[site])
            found = run_checked(model, prompt, start=start, reads=[site], narrow=True)
            torch.testing.assert_close(found.reads[0], alone.reads[0], atol=FLOOR32, rtol=FLOOR32)
            patch = iv.steering(last, prompt.at("last"), torch.ones(model.d_model))
            steered = [
                run_checked(
                    model, prompt, patches=[patch], start=begun, narrow=begun is not None
                ).logits
                for begun in (None, start)
            ]
            torch.testing.assert_close(*steered, atol=FLOOR32, rtol=FLOOR32)
    finally:
        seen.remove()
    length = prompt.length
    assert tokens[0] == length
    assert tokens.count(1) == 1
    assert {*tokens} == {1, length}


def test_hooks_do_not_outlive_an_error(llm: iv.Model) -> None:
    def hooks() -> list[int]:
        return [
            len(one._forward_hooks) + len(one._forward_pre_hooks) for one in llm.module.modules()
        ]

    before = hooks()
    with pytest.raises(KeyError), only_wanted(llm, 5, 1, None):
        raise KeyError
    assert hooks() == before
