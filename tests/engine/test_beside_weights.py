"""What modules compute with beside registered weights is a part of what a model is."""

import datetime
import functools
import logging
import operator
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from torch import nn
from torch.testing._internal.two_tensor import TwoTensor

import interventions as iv
from interventions.digests import digest_of
from interventions.errors import ResultsError
from interventions.model.fingerprints import fingerprint, hooks_of, weights_digest

TEXTS = ["The capital of France is", "The capital of Italy is"]
FACTOR = 2.0


@dataclass
class Strength:
    """A number that an object holds."""

    value: float


def times(factor: float) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda hidden: hidden * factor


def by_the_global(hidden: torch.Tensor) -> torch.Tensor:
    return hidden * FACTOR


def through_another(hidden: torch.Tensor) -> torch.Tensor:
    return by_the_global(hidden)


class Scaled(nn.Module):
    """A part whose output is changed by something that is no parameter."""

    def __init__(self, inner: nn.Module, by: Any) -> None:
        super().__init__()
        self.inner, self.by = inner, by

    def forward(self, hidden: torch.Tensor) -> Any:
        by = self.by
        while isinstance(by, list | tuple | dict):
            by = by[0]
        by = by.value if isinstance(by, Strength) else by
        found = self.inner(hidden)
        return by(found) if callable(by) else found * torch.as_tensor(by)


def unregistered(factor: float) -> list[nn.Module]:
    """A module in a list, which torch does not find."""
    part: Any = nn.Linear(1, 1, bias=False).eval().requires_grad_(False)
    part.weight.fill_(factor)
    part.forward = lambda hidden: hidden * part.weight
    return [part]


HELD: dict[str, Callable[[float], Any]] = {
    "tensor": torch.tensor,
    "tensors in a list": lambda factor: [torch.tensor(factor)],
    "tensors in a dict": lambda factor: {0: torch.tensor(factor), (1, 2): "a"},
    "array": lambda factor: np.array(factor, dtype=np.float32),
    "scalar of numpy": np.float32,
    "function": times,
    "partial": lambda factor: functools.partial(torch.mul, other=factor),
    "object": Strength,
    "module in a list": unregistered,
}


def fresh(name: str = "llama") -> iv.Model:
    module, tokenizer = tiny.build(name)
    return iv.load(module, tokenizer=tokenizer)


def scaled(by: Any) -> iv.Model:
    module, tokenizer = tiny.build("llama")
    layer: Any = module.model.layers[1]
    layer.mlp.down_proj = Scaled(layer.mlp.down_proj, by).eval()
    return iv.load(module, tokenizer=tokenizer)


def logits(model: iv.Model, *, share_prefix: bool = False) -> torch.Tensor:
    found = iv.run(model, model.prompt(TEXTS, share_prefix=share_prefix)).logits
    assert found is not None
    return found[:, -1]


@pytest.mark.parametrize("what", HELD)
def test_whatever_a_module_holds_is_told_by_its_content(what: str, tmp_path: Path) -> None:
    model, same, other = scaled(HELD[what](2.0)), scaled(HELD[what](2.0)), scaled(HELD[what](3.0))
    assert (logits(model) - logits(other)).abs().max() > 1e-4
    assert fingerprint(model) == fingerprint(same)  # after passes and before
    assert fingerprint(model)["modules"] != fingerprint(other)["modules"]
    prompt = model.prompt(TEXTS)
    asked = {"answers": " a", "components": ["mlp_out"], "progress": False, "out": tmp_path}
    iv.sweep(model, prompt, 0.0, **asked)
    logits(model, share_prefix=True)
    model.module.model.layers[1].mlp.down_proj.by = HELD[what](3.0)
    torch.testing.assert_close(logits(model, share_prefix=True), logits(other))
    with pytest.raises(ResultsError, match=r"model\.fingerprint\.modules"):
        iv.sweep(model, prompt, 0.0, **asked)


def doubled_class(factor: float) -> type:
    return type("Times", (), {"__call__": lambda _, hidden: hidden * factor})


def gives(factor: float) -> Any:
    return type("Gives", (dict,), {"__missing__": lambda *_: factor})()


STRENGTHS = (Strength(2.0), Strength(3.0))
SAID: dict[str, Callable[[float], Any]] = {
    "a number without attributes": lambda factor: Decimal(int(factor)),
    "a span of time": lambda factor: datetime.timedelta(factor),
    "a cached function": lambda factor: functools.cache(times(factor)),
    "a method of a tensor": lambda factor: torch.tensor(factor).mul,
    "a method of a dict": lambda factor: {0: factor}.get,
    "a part of a list": lambda factor: [factor].__getitem__,
    "a getter": lambda factor: operator.itemgetter(int(factor)),
    "a function for arrays": lambda factor: np.vectorize(times(factor)),
    "an object of a library": lambda factor: torch.distributions.Normal(0.0, factor),
    "numbers drawn": lambda factor: np.random.default_rng(int(factor)),
    "a mask": lambda factor: np.ma.masked_array([1, 2], mask=[factor > 2, False]),
    "a class": doubled_class,
    "an object of a class": lambda factor: doubled_class(factor)(),
    "a dict of a class of its own": gives,
    "a picture": lambda factor: Image.new("L", (2, 2), int(factor)),
    "a compiled function": lambda factor: torch.jit.trace(times(factor), torch.ones(2)),
    "which of two is shared": lambda factor: [*STRENGTHS, STRENGTHS[factor > 2]],
    "tensors of different length": lambda factor: torch.nested.nested_tensor(
        [torch.ones(1), torch.full((2,), factor)]
    ),
}


@pytest.mark.filterwarnings("ignore:.*nested tensors is in prototype stage:UserWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("what", SAID)
def test_what_has_no_attributes_of_pythons_is_told_too(what: str) -> None:
    one, same, other = (scaled(SAID[what](factor)) for factor in (2.0, 2.0, 3.0))
    assert fingerprint(one) == fingerprint(same)
    assert fingerprint(one)["modules"] != fingerprint(other)["modules"]


def test_a_function_that_cannot_be_looked_into_is_never_known_again() -> None:
    made = scaled(np.frompyfunc(times(2.0), 1, 1))
    assert fingerprint(made)["modules"] != fingerprint(made)["modules"]
    known = scaled(np.exp)
    assert fingerprint(known) == fingerprint(known)


class Noting:
    """What keeps a log, and a lock, which change no number."""

    def __init__(self) -> None:
        self.log, self.lock = logging.getLogger("noting"), threading.Lock()

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        self.log.debug("seen")
        return hidden


def test_a_log_is_no_part_of_a_model() -> None:
    model = scaled(Noting())
    before = fingerprint(model)
    logits(model)
    logging.getLogger("noting.of another")
    assert fingerprint(model) == before


def test_a_model_that_was_sent_is_the_same() -> None:
    model = fresh()
    before = fingerprint(model)
    model.nn.lm_head.__getstate__()
    assert fingerprint(model) == before


def replaced_function(model: iv.Model, monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    from transformers.models.llama import modeling_llama

    monkeypatch.setattr(modeling_llama, "rotate_half", times(factor))


def own_attention(model: iv.Model, monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    def attention(*args: Any, **kwargs: Any) -> Any:
        return sdpa_attention_forward(*args, **kwargs)[0] * factor, None

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "own", attention)
    model.module.config._attn_implementation = "own"


def number_of_a_class(model: iv.Model, monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    kind = type(model.module.model.layers[0].mlp)
    monkeypatch.setattr(kind, "factor", factor, raising=False)


def private_number(model: iv.Model, monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    monkeypatch.setattr(model.module, "_factor", factor, raising=False)


def private_list(model: iv.Model, monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    attention = model.module.model.layers[0].self_attn
    monkeypatch.setattr(attention, "_factors", [factor], raising=False)


@pytest.mark.parametrize(
    "change",
    [replaced_function, own_attention, number_of_a_class, private_number, private_list],
)
def test_what_was_put_into_a_librarys_code_counts(
    change: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = fresh()
    found = [fingerprint(model)["modules"]]
    for factor in (2.0, 3.0):
        change(model, monkeypatch, factor)
        found.append(fingerprint(model)["modules"])
    assert len({*found}) == 3


@pytest.mark.parametrize("function", [by_the_global, through_another])
def test_a_function_is_also_what_it_names(
    function: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = scaled(function)
    before, shown = fingerprint(model), digest_of(function)
    layer = model.module.model.layers[0]
    handle = layer.register_forward_hook(lambda _module, _inputs, output: function(output))
    hooks, first = hooks_of(model), logits(model, share_prefix=True)
    assert hooks == hooks_of(model)
    monkeypatch.setitem(globals(), "FACTOR", 3.0)
    assert (fingerprint(model), digest_of(function)) != (before, shown)
    assert hooks_of(model) != hooks
    after = logits(model, share_prefix=True)
    torch.testing.assert_close(after, logits(model))
    assert (after - first).abs().max() > 1e-4
    handle.remove()


STRENGTH = Strength(2.0)


def test_a_hook_that_reads_a_global_object_is_no_old_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model = fresh()
    layer = model.module.model.layers[0]
    handle = layer.register_forward_hook(lambda _m, _i, output: output * STRENGTH.value)
    logits(model, share_prefix=True)
    monkeypatch.setattr(STRENGTH, "value", 3.0)
    torch.testing.assert_close(logits(model, share_prefix=True), logits(model))
    handle.remove()


def test_classes_of_one_name_are_told_by_their_code() -> None:
    def model(forward: Callable[..., Any]) -> iv.Model:
        made = type("Act", (nn.Module,), {"forward": forward})
        module, tokenizer = tiny.build("llama")
        layer: Any = module.model.layers[1]
        layer.mlp.act_fn = made().eval()
        return iv.load(module, tokenizer=tokenizer)

    one, other = (model(one) for one in (lambda _, x: x.relu(), lambda _, x: x.tanh()))
    assert fingerprint(one)["modules"] != fingerprint(other)["modules"]


def test_a_method_of_a_library_that_was_replaced_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    before = fingerprint(fresh())
    kind = type(tiny.build("llama")[0].model.layers[0].mlp)
    plain = kind.forward
    monkeypatch.setattr(kind, "forward", lambda self, x: plain(self, x) * 2)
    assert fingerprint(fresh())["modules"] != before["modules"]


@pytest.mark.parametrize("part", ["act_fn", "down_proj"])
def test_a_forward_put_on_a_module_counts(part: str) -> None:
    model = fresh()
    before = fingerprint(model)
    mlp = model.module.model.layers[1].mlp
    getattr(mlp, part).forward = times(2.0)
    assert fingerprint(model)["modules"] != before["modules"]


def test_autocast_is_another_model(tmp_path: Path) -> None:
    model = fresh()
    prompt = model.prompt(TEXTS)
    asked = {"answers": " a", "components": ["mlp_out"], "progress": False, "out": tmp_path}
    with torch.autocast("cpu", torch.bfloat16):
        rough = logits(model, share_prefix=True)
        iv.sweep(model, prompt, 0.0, **asked)
    exact = logits(model, share_prefix=True)
    torch.testing.assert_close(exact, logits(model))
    assert (exact - rough).abs().max() > 1e-4
    with pytest.raises(ResultsError, match=r"fingerprint\.autocast: stored 'bfloat16'"):
        iv.sweep(model, prompt, 0.0, **asked)


def one_of(values: list[float], stride: int = 2) -> torch.Tensor:
    return torch.tensor(values).as_strided((1,), (stride,))


IMAGINARY = torch.tensor([1 + 2j, 3 - 1j])
FORMS: dict[str, tuple[torch.Tensor, torch.Tensor]] = {
    "sparse": (torch.eye(3).to_sparse(), (2 * torch.eye(3)).to_sparse()),
    "conjugate": (IMAGINARY, IMAGINARY.conj()),
    "negative": (IMAGINARY.imag, IMAGINARY.conj().imag),
    "any stride": (one_of([1.0]), one_of([2.0])),
    "float8": (torch.ones(3).to(torch.float8_e4m3fn), torch.zeros(3).to(torch.float8_e4m3fn)),
    "class of its own": (
        TwoTensor(torch.zeros(3), torch.ones(3)),
        TwoTensor(torch.zeros(3), torch.zeros(3)),
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_tensors_of_every_form_are_told_by_their_content(form: str) -> None:
    found = []
    for tensor in FORMS[form]:
        module = nn.Module()
        module.register_buffer("it", tensor)
        found.append(weights_digest(module))
        assert weights_digest(module) == found[-1]
    assert found[0] != found[1]


class Elsewhere(Mapping[str, torch.Tensor]):
    """Weights that are read anew at every access, always to the same place in memory."""

    def __init__(self, values: dict[str, float]) -> None:
        self.values_by_name = values
        self.place = torch.zeros(4)

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.place.fill_(self.values_by_name[name]).view(4)

    def __iter__(self) -> Iterator[str]:
        return iter(self.values_by_name)

    def __len__(self) -> int:
        return len(self.values_by_name)


def test_weights_fetched_to_the_same_place_are_read_each() -> None:
    found = set()
    for second in (1.0, 2.0):
        module: Any = nn.Module()
        module.one = nn.Parameter(torch.empty(4, device="meta"), requires_grad=False)
        module.two = nn.Parameter(torch.empty(4, device="meta"), requires_grad=False)
        module._hf_hook = type("Hook", (), {"weights_map": Elsewhere({"one": 1.0, "two": second})})
        found.add(weights_digest(module))
    assert len(found) == 2


def test_digests_of_masks_and_turned_pictures() -> None:
    values = np.arange(3.0)
    one, other = (np.ma.masked_array(values, mask) for mask in (values > 1, values == 1))
    assert digest_of(one) != digest_of(other)
    picture = Image.new("RGB", (2, 3))
    before = digest_of(picture)
    picture.getexif()[0x0112] = 6
    assert iv.as_picture(picture).size == (3, 2)
    assert digest_of(picture) != before
