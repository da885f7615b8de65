"""A running model that is late at a word of the question, and not at any image token.

The pictures of micro-late describe a flag in four tokens, the last of which closes the description
and is where the entity is formed, late. Here that token is the word "is", and the question has the
closing word behind the picture.
"""

from dataclasses import replace

import pytest
import torch
import xarray as xr

import interventions as iv
from twohop.ask.study import Study
from twohop.items.items import PICTURE, PLACE
from twohop.micro.benchmark import benchmark
from twohop.micro.folders import micro_folder
from twohop.micro.layout import LATE_BLOCK, vocabulary
from twohop.micro.templates import FLAG
from twohop.protocol import Protocol
from twohop.stages.run import run_stages


@pytest.fixture(scope="module")
def found() -> dict[str, xr.Dataset]:
    vlm, llm = iv.load(micro_folder("micro-late")), iv.load(micro_folder("micro-backbone"))
    word = llm.module.get_input_embeddings().weight[vocabulary().index("is")].detach()

    def without_the_last(
        _module: torch.nn.Module, _args: object, out: torch.Tensor
    ) -> torch.Tensor:
        out = out.clone()
        out[:, -1] = word
        return out

    vlm.module.model.multi_modal_projector.register_forward_hook(without_the_last)
    whole = benchmark()
    behind = {
        name: replace(
            template, image_question=template.question.replace(PLACE, f"{PICTURE} {FLAG}")
        )
        for name, template in whole.templates.items()
    }
    naming = replace(
        whole.naming, image_question=whole.naming.question.replace(PLACE, f"{PICTURE} {FLAG}")
    )
    asked = replace(whole, templates=behind, naming=naming)
    # Four tokens from the end of the question: a first look writes at two of them.
    protocol = replace(Protocol.preset("quick"), back_tokens=4, gate_resamples=40)
    return run_stages(["diagnosis"], Study(vlm, llm, asked, protocol=protocol))


def test_it_is_found_at_the_word_and_called_late(found: dict[str, xr.Dataset]) -> None:
    places = {str(role) for role in found["resolution"]["chosen_role"].values}
    assert not {place for place in places if "image" in place}, places
    verdicts = found["diagnosis"]["verdict"].values.tolist()
    right = found["recall"]["right"]
    lost = right.sel(gate="backbone_text") & right.sel(gate="recognised")
    lost = int((lost & ~right.sel(gate="vlm_image")).sum())
    assert lost > 20
    assert verdicts.count("late") > 0.7 * lost
    assert "never_in_circuit" not in verdicts
    onset = found["diagnosis"]["blocks"].values
    assert (onset[onset >= 0] >= LATE_BLOCK).mean() > 0.8
