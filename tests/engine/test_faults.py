"""A model that the installed transformers breaks is named by doctor and refused, not crashed."""

import io
from contextlib import nullcontext
from typing import Any

import pytest
import tiny
import torch
from families import arguments_of, model_of
from rich.console import Console
from transformers import Llama4ForConditionalGeneration

import interventions as iv
from interventions.architectures.doctor import report
from interventions.architectures.faults import FAULTS, fault_of
from interventions.architectures.wrapped import forward
from interventions.cli import print_report
from interventions.errors import UpstreamError


class AsIn524(Llama4ForConditionalGeneration):
    """Llama 4 as transformers 5.24.0 has it, where the version at hand may be whole."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        outputs = self.language_model(*args, **kwargs)
        return outputs.image_outputs


@pytest.fixture
def broken() -> iv.Model:
    module, processor = tiny.build("llama4")
    module.__class__ = AsIn524
    return iv.load(module, processor=processor)


@pytest.mark.parametrize("shown", [True, False])
@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_a_fault_is_named_where_the_plain_model_crashes_and_only_there(
    name: str, shown: bool
) -> None:
    model = model_of(name)
    picture = tiny.picture((40, 30)) if shown and name in tiny.VLMS else None
    prompt = model.prompt("what is it", images=picture)
    broken = fault_of(model.module, model.anatomy.model_type) is not None
    as_said = pytest.raises(AttributeError, match="image_outputs") if broken else nullcontext()
    with torch.no_grad(), as_said:
        model.module(**arguments_of(prompt))


def test_the_broken_code_crashes(broken: iv.Model) -> None:
    """Without which there would be nothing to refuse."""
    with pytest.raises(AttributeError, match="image_outputs"):
        broken.module(input_ids=torch.ones(1, 3, dtype=torch.long))


def test_a_broken_model_is_refused_before_anything_runs(broken: iv.Model) -> None:
    prompt = broken.prompt("what is it")
    place = prompt.at("last")
    for ask in (
        lambda: iv.run(broken, prompt),
        lambda: iv.read(broken, prompt, [iv.Site("mlp_out", 0, place)]),
        lambda: iv.complete(broken, prompt, max_new_tokens=2),
        lambda: broken.trace(prompt),
        lambda: broken.generate(prompt),
        lambda: forward(broken, {"input_ids": torch.ones(1, 3, dtype=torch.long)}),
        lambda: iv.run(broken, broken.prompt("what is it now", share_prefix=True)),
    ):
        with pytest.raises(UpstreamError, match=r"AsIn524 of transformers .*Install transformers"):
            ask()


def test_doctor_names_the_fault(broken: iv.Model) -> None:
    found = report(broken.module, source="here", processor=broken.processor)
    assert found.broken is not None
    for said in (found.broken, str(found.record()["broken"])):
        assert FAULTS["llama4"].what in said
        assert FAULTS["llama4"].advice in said
        assert FAULTS["llama4"].since in said
    assert {one.state for one in found.abilities} == {"no"}
    shown = io.StringIO()
    print_report(found, Console(width=80, file=shown))
    assert "broken" in shown.getvalue()
    assert "image_outputs" in shown.getvalue()
    whole = report(model_of("llava").module, source="here")
    assert whole.broken is None
