"""A model in train mode is refused by everything that runs it, and left as it is."""

from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch
from families import Case

import interventions as iv
from interventions.errors import ModeError
from interventions.model.generating import DEFAULT_NEW_TOKENS


def loaded(name: str = "llama") -> Case:
    """A case of its own, whose attention drops half of its weights when it is trained."""
    module, processor = tiny.build(name)
    for config in (module.config, module.config.get_text_config(decoder=True)):
        config.attention_dropout = 0.5
    part: Any
    for part in module.modules():
        if hasattr(part, "attention_dropout"):
            part.attention_dropout = 0.5
    kind = "processor" if name in tiny.VLMS else "tokenizer"
    model = iv.load(module, **{kind: processor})
    texts = ("The capital of France is", "Paris is the capital of France")
    return Case(name, model, model.prompt(texts, spans={"entity": "France"}), texts, ())


def trace(case: Case) -> torch.Tensor:
    with case.model.trace(case.prompt):
        logits = case.model.logits[:].save()
    return logits


def generate(case: Case) -> torch.Tensor:
    with case.model.generate(case.prompt, max_new_tokens=DEFAULT_NEW_TOKENS) as tracer:
        ids = tracer.result.save()
    return ids


def prefix(case: Case) -> Any:
    shared = case.model.prompt(case.texts, share_prefix="The capital")
    return iv.run(case.model, shared).logits


def replay(case: Case) -> torch.Tensor:
    place = case.prompt.at("last")
    return iv.replay(case.model, case.prompt, [[iv.ablated("mlp_out", 1, place)]])


def sweep(case: Case) -> Any:
    return iv.sweep(
        case.model, case.prompt, iv.Noise(1.0), answers=" the", roles=["entity"], progress=False
    )["logprob"].to_numpy()


def attribute(case: Case) -> Any:
    other = case.model.prompt(list(case.texts), spans={"entity": "France"})
    return iv.attribute(case.model, other, case.prompt, answers=" the", metric="logprob")


def lens(case: Case) -> torch.Tensor:
    hidden = torch.ones(1, 2, case.model.d_model)
    return iv.lens(case.model, hidden, torch.tensor([[1], [2]]))[0]


def collect(case: Case, folder: Any) -> Any:
    sites = {"here": iv.RoleSite("mlp_out", 1, "last")}
    return iv.collect(case.model, list(case.texts), sites, out=folder)


CALLS: dict[str, Callable[[Case], Any]] = {
    "trace": trace,
    "generate": generate,
    "run": lambda case: iv.run(case.model, case.prompt).logits,
    "read": lambda case: iv.read(case.model, case.prompt, [iv.Site("mlp_out", 1)]),
    "complete": lambda case: iv.complete(case.model, case.prompt, candidates=["a", "the"]),
    "a shared prefix": prefix,
    "replay": replay,
    "sweep": sweep,
    "attribute": attribute,
    "lens": lens,
    "unembed": lambda case: case.model.unembed(torch.ones(2, case.model.d_model)),
    "patchscope": lambda case: iv.patchscope(
        case.model, torch.ones(1, case.model.d_model), layer=1
    ),
}


@pytest.mark.parametrize("what", CALLS)
def test_every_call_refuses_train_mode_and_changes_nothing(what: str) -> None:
    case = loaded()
    act = CALLS[what]
    act(case)
    case.model.module.train()
    with pytest.raises(ModeError, match=r"it is in train mode.*Call model\.module\.eval\(\)"):
        act(case)
    assert all(part.training for part in case.model.module.modules())
    case.model.module.eval()
    act(case)


def test_collecting_refuses_it(tmp_path: Any) -> None:
    case = loaded()
    case.model.module.train()
    with pytest.raises(ModeError, match="train mode"):
        collect(case, tmp_path / "found")


@pytest.mark.parametrize("path", ["model.layers.2.self_attn", "model.layers.0", "lm_head"])
def test_one_part_in_train_mode_is_named(path: str) -> None:
    case = loaded()
    case.model.module.get_submodule(path).train()
    with pytest.raises(ModeError, match=rf"its {path}\b.* is in train mode"):
        iv.run(case.model, case.prompt)


def test_a_ready_module_in_train_mode_is_loaded_in_eval_mode() -> None:
    module, tokenizer = tiny.build("llava")
    module.train()
    model = iv.load(module, processor=tokenizer)
    assert not any(part.training for part in module.modules())
    first, again = (iv.run(model, model.prompt("The capital")).logits for _ in range(2))
    assert first is not None
    assert again is not None
    assert torch.equal(first, again)


def test_dropout_on_purpose() -> None:
    case = loaded()
    case.model.module.train()
    found = []
    for _ in range(2):
        with case.model.nn.trace(dict(case.arguments)):
            found.append(case.model.nn.output.logits.save())
    assert not torch.equal(*found)
