"""Models inside PEFT's and torch's wrappers: the values are those of plain hooks on the wrapper."""

import copy
from collections.abc import Callable
from typing import Any

import peft
import pytest
import tiny
import torch
import transformers
from families import Case, case_of, part, sees
from peft import LoraConfig, get_peft_model
from tiny.weights import randomise
from transformers import PreTrainedModel
from transformers.integrations.peft import MIN_PEFT_VERSION
from transformers.utils.peft_utils import check_peft_version

import interventions as iv
from interventions.architectures.wrapping import adapters_of, original
from interventions.errors import LoadError
from interventions.model.sites import COMPONENTS, Component

Wrap = Callable[[Any], Any]
pytestmark = [  # of PEFT and of torch.compile themselves
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Unsupported layer type .*RMSNorm:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning"),
]

DEEP = ["q_proj", "o_proj", "down_proj"]


def lora(**settings: Any) -> Wrap:
    given = {"target_modules": DEEP, "r": 2, "lora_alpha": 64, "init_lora_weights": False}
    return lambda module: get_peft_model(module, LoraConfig(**(given | settings)))


def injected(module: Any) -> Any:
    config = LoraConfig(target_modules=DEEP, r=2, lora_alpha=64, init_lora_weights=False)
    peft.inject_adapter_in_model(config, module)
    return module


def added(module: Any) -> Any:
    """By transformers' own method, which may want a newer peft than there is to install."""
    try:
        check_peft_version(MIN_PEFT_VERSION)
    except ValueError as refused:
        pytest.skip(f"transformers {transformers.__version__}: {refused}")
    module.add_adapter(LoraConfig(target_modules=DEEP, r=2, init_lora_weights=False))
    return module


def trained(module: Any) -> Any:
    """Copies of head and embeddings beside the ones that they replace."""
    wrapped = lora(target_modules=["o_proj"], modules_to_save=["embed_tokens", "lm_head"])(module)
    for held in wrapped.modules():
        if isinstance(copies := getattr(held, "modules_to_save", None), torch.nn.ModuleDict):
            randomise(copies["default"], 7)
    return wrapped


def norms(module: Any) -> Any:
    config = peft.LNTuningConfig(target_modules=["input_layernorm", "norm"])
    wrapped = get_peft_model(module, config)
    randomise(wrapped, 5)
    return wrapped


def mixed(module: Any) -> Any:
    given = {"target_modules": ["o_proj"], "r": 2}
    wrapped = get_peft_model(module, LoraConfig(**given, init_lora_weights=False), mixed=True)
    wrapped.add_adapter("other", peft.LoKrConfig(**given, init_weights=False))
    wrapped.set_adapter(["default", "other"])
    return wrapped


WRAPPERS: dict[str, Wrap] = {
    "lora": lora(),
    "lora on head and embeddings": lora(target_modules=[*DEEP, "embed_tokens", "lm_head"]),
    "dora": lora(use_dora=True),
    "modules to save": trained,
    "injected": injected,
    "added": added,
    "norms": norms,
    "mixed": mixed,
    "the tuner itself": lambda module: lora()(module).base_model,
    "merged": lambda module: lora()(module).merge_and_unload(),
    "compiled": torch.compile,
    "parallel": torch.nn.DataParallel,
    "adapter in compiled": lambda module: torch.compile(lora()(module)),
}


def wrapped(name: str, wrap: Wrap) -> tuple[Any, Case]:
    module, processor = tiny.build(name)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        outer = wrap(module).eval()
    kind = "processor" if sees(name) else "tokenizer"
    model = iv.load(outer, **{kind: processor})
    plain = case_of(name)
    return outer, Case(name, model, plain.prompt, plain.texts, plain.pictures)


def by_hooks(
    case: Case, call: Any, component: Component, layer: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of the outermost module, and the value, with plain hooks on the inner one."""
    module = part(case.name, case.model.module, component, layer)
    found = []

    def before(_: Any, args: Any, kwargs: Any) -> None:
        found.append((args[0] if args else kwargs["hidden_states"]).clone())

    def after(_: Any, _args: Any, output: Any) -> None:
        found.append((output[0] if isinstance(output, tuple) else output).clone())

    if component in ("resid_pre", "head_out"):
        handle = module.register_forward_pre_hook(before, with_kwargs=True)
    else:
        handle = module.register_forward_hook(after)
    with torch.no_grad():
        logits = call(**case.arguments).logits
    handle.remove()
    return logits, found[0].reshape(*case.prompt.inputs["input_ids"].shape, -1)


@pytest.mark.parametrize("name", ["llama", "llava"])
@pytest.mark.parametrize("how", WRAPPERS)
def test_streams_of_a_wrapped_model_are_those_of_plain_hooks(name: str, how: str) -> None:
    outer, case = wrapped(name, WRAPPERS[how])
    model = case.model
    assert isinstance(model.module, PreTrainedModel)
    # A compiled wrapper would take the hooks' values into its graph: the module inside is called.
    call = model.module if "compiled" in how else outer
    assert all(block.projection for block in model.anatomy.parts)
    assert model.anatomy.head_dim == case_of(name).model.anatomy.head_dim
    logits = torch.empty(0)
    for component in COMPONENTS:
        logits, expected = by_hooks(case, call, component, 1)
        (value,) = iv.read(model, case.prompt, [iv.Site(component, 1)])
        assert torch.equal(value.flatten(2), expected)
        with model.trace(case.prompt):
            mine = model.logits[:].save()
        assert torch.equal(mine, logits)
    if how not in ("compiled", "parallel"):
        with torch.no_grad():
            plain = case_of(name).model.module(**case.arguments).logits
        assert not torch.allclose(plain, logits), "the adapter acts"
    (after,) = iv.read(model, case.prompt, [iv.Site("resid_post", model.n_layers - 1)])
    with torch.no_grad():
        error = (model.unembed(after) - logits).abs().max()
    assert error < 1e-5 * logits.abs().max()


@pytest.mark.parametrize("name", ["llama", "llava"])
def test_writes_reach_a_wrapped_model(name: str) -> None:
    outer, case = wrapped(name, lora())
    model, place = case.model, case.place
    patch = iv.ablated("head_out", 1, place)
    ours = iv.run(model, case.prompt, patches=[patch], logits=place).logits
    theirs = iv.replay(model, case.prompt, [[patch]], logits=place)[0]
    projection = part(name, model.module, "head_out", 1)
    index = place.index[:, 0]

    def blank(_: Any, args: Any) -> Any:
        changed = args[0].clone()
        changed[torch.arange(len(index)), index] = 0
        return (changed, *args[1:])

    handle = projection.register_forward_pre_hook(blank)
    with torch.no_grad():
        logits = outer(**case.arguments).logits[torch.arange(len(index)), index]
    handle.remove()
    assert ours is not None
    assert torch.allclose(ours[:, 0], logits, atol=1e-5)
    assert torch.allclose(theirs[:, 0], logits, atol=1e-4)


def test_the_wrapper_is_left_as_it_was() -> None:
    module, processor = tiny.build("llava")
    outer = lora()(module)
    names = [name for name, _ in outer.named_parameters()]
    iv.load(outer, processor=processor)
    assert [name for name, _ in outer.named_parameters()] == names
    assert outer.get_base_model() is module
    assert outer.active_adapters == ["default"]
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in outer.modules())


@pytest.mark.parametrize("name", ["llama", "llava"])
@pytest.mark.parametrize(
    "config",
    [
        peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
        peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
        peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    ],
    ids=lambda config: str(config.peft_type.value),
)
def test_vectors_in_front_of_the_prompt_are_refused(name: str, config: Any) -> None:
    module, processor = tiny.build(name)
    outer = get_peft_model(module, copy.deepcopy(config))
    kind = "processor" if sees(name) else "tokenizer"
    with pytest.raises(LoadError, match=r"puts vectors in front of every prompt"):
        iv.load(outer, **{kind: processor})


def test_adapters_that_begin_at_a_token_are_refused() -> None:
    module, tokenizer = tiny.build("llama")
    config = LoraConfig(
        target_modules=["q_proj"], r=2, task_type="CAUSAL_LM", alora_invocation_tokens=[5, 6]
    )
    with pytest.raises(LoadError, match=r"activated LoRA.* acts from some tokens"):
        iv.load(get_peft_model(module, config), tokenizer=tokenizer)


class Doubling(peft.PeftModel):
    """A wrapper that computes something that the model inside does not."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output: Any = super().forward(*args, **kwargs)
        output.logits = output.logits * 2
        return output


def test_a_wrapper_that_computes_something_else_is_refused() -> None:
    module, tokenizer = tiny.build("llama")
    outer = lora()(module)
    outer.__class__ = Doubling
    with pytest.raises(LoadError, match=r"computes something else than the wrapper"):
        iv.load(outer, tokenizer=tokenizer)


def test_compiled_parts_are_refused_by_name() -> None:
    module: Any
    module, tokenizer = tiny.build("llama")
    module.model.layers[1].compile()
    with pytest.raises(LoadError, match=r"its model\.layers\.1 is compiled \(module\.compile"):
        iv.load(module, tokenizer=tokenizer)
    module, tokenizer = tiny.build("llama")
    module.model.layers[2].mlp = torch.compile(module.model.layers[2].mlp)
    with pytest.raises(LoadError, match=r"its model\.layers\.2\.mlp is compiled \(torch\.compile"):
        iv.load(module, tokenizer=tokenizer)


class WithValueHead(torch.nn.Module):
    """What a library for reinforcement learning puts around a model."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.pretrained_model = inner
        self.v_head = torch.nn.Linear(2, 1)


def test_an_unknown_wrapper_is_named_with_the_model_inside() -> None:
    module, tokenizer = tiny.build("llama")
    match = r"a wrapper around one \(LlamaForCausalLM\)\. Pass its \.pretrained_model"
    with pytest.raises(LoadError, match=match):
        iv.load(WithValueHead(module), tokenizer=tokenizer)


def test_adapters_are_told() -> None:
    outer, case = wrapped("llama", lora())
    (one,) = adapters_of(case.model.module)
    n = 3 * case.model.n_layers
    assert (one.name, one.kind, one.modules, one.active, one.merged) == ("default", "LORA", n, n, 0)
    assert one.scales == (32.0,)
    with outer.disable_adapter():
        assert adapters_of(case.model.module)[0].active == 0
    outer.merge_adapter()
    assert adapters_of(case.model.module)[0].merged == n
    assert adapters_of(case_of("llama").model.module) == ()
    inner = original(case.model.module.model.layers[0].self_attn.o_proj)
    assert type(inner) is torch.nn.Linear


def test_a_shared_prefix_follows_the_adapters() -> None:
    """Its keys and values are kept, and an adapter that is put off changes them."""
    outer, case = wrapped("llama", lora())
    model = case.model
    texts = ["The capital of France is", "The capital of the country is"]
    whole, shared = (model.prompt(texts, share_prefix=share) for share in (False, True))
    assert len(shared.prefix_ids)
    seen = []
    for _ in range(2):
        one, two = (iv.run(model, prompt).logits for prompt in (whole, shared))
        assert one is not None
        assert two is not None
        assert torch.allclose(one, two, atol=1e-4)
        seen.append(one)
        outer.base_model.disable_adapter_layers()
    assert not torch.allclose(*seen)
