"""Greedy is greedy, whatever the checkpoint's settings of generation say."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from families import Case, case_of, model_of
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GenerationConfig

import interventions as iv
from interventions.errors import PromptError
from interventions.model.generating import WITHOUT_EFFECT
from interventions.running.greedy import greedy

NEW = 6

CHECKPOINTS: dict[str, dict[str, Any]] = {
    "repetition_penalty": {"repetition_penalty": 5.0},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 1},
    "beams": {"num_beams": 3, "early_stopping": True, "length_penalty": 2.0},
    "several": {"num_beams": 3, "num_return_sequences": 2},
    "sampling": {"do_sample": True, "temperature": 30.0, "top_k": 5, "top_p": 0.9, "min_p": 0.01},
    "more sampling": {"do_sample": True, "typical_p": 0.5, "epsilon_cutoff": 0.01},
    "min_new_tokens": {"min_new_tokens": 5},
    "min_length": {"min_length": 60},
    "max_length": {"max_length": 9},
    "max_new_tokens": {"max_new_tokens": 2},
    "max_time": {"max_time": 1e-9},
    "suppress_tokens": {"suppress_tokens": list(range(3, 60))},
    "begin_suppress_tokens": {"begin_suppress_tokens": list(range(3, 60))},
    "forced_bos": {"forced_bos_token_id": 7},
    "forced_eos": {"forced_eos_token_id": 7},
    "encoder": {"encoder_repetition_penalty": 3.0, "encoder_no_repeat_ngram_size": 1},
    "bad_words": {"bad_words_ids": [[token] for token in range(3, 60)]},
    "sequence_bias": {"sequence_bias": [[[token], -9.0] for token in range(3, 60)]},
    "decay": {"exponential_decay_length_penalty": [1, 9.0]},
    "contrastive": {"penalty_alpha": 0.6, "top_k": 4},
    "lookup": {"prompt_lookup_num_tokens": 3},
    "stop_strings": {"stop_strings": ["a", "e"]},
    "no cache": {"use_cache": False},
    "a dict": {"return_dict_in_generate": True, "output_scores": True, "output_logits": True},
    "states": {"return_dict_in_generate": True, "output_hidden_states": True},
    "static": {"cache_implementation": "static"},
    "guidance": {"guidance_scale": 4.0},
    "chunks": {"prefill_chunk_size": 2},
    "watermark": {"watermarking_config": {"bias": 9.0, "greenlist_ratio": 0.5}},
    "dola": {"dola_layers": "low"},
    "groups": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.0},
}


def fresh(name: str, **config: Any) -> Case:
    """A case whose model says ``config`` of generation; its weights are the shared one's."""
    case = case_of(name)
    module = copy.copy(case.model.module)
    module.generation_config = GenerationConfig(
        **{"eos_token_id": case.model.tokenizer.eos_token_id, "pad_token_id": 0} | config
    )
    kind = "processor" if case.model.processor is not None else "tokenizer"
    model = iv.load(module, **{kind: case.model.processor or case.model.tokenizer})
    return Case(name, model, case.prompt, case.texts, case.pictures)


def by_hand(model: iv.Model, prompt: iv.Prompt, n: int) -> list[list[int]]:
    """The likeliest token, time after time, by forward passes of the module over whole texts."""
    found = []
    for row in range(len(prompt)):
        some = prompt.select([row]).trimmed()[0]
        ids = some.inputs["input_ids"]
        written: list[int] = []
        extra = {key: some.inputs[key] for key in some.entries}
        for _ in range(n):
            with torch.no_grad():
                logits = model.module(input_ids=ids, use_cache=False, **extra).logits
            written.append(int(logits[0, -1].argmax()))
            if written[-1] in model.end_ids:
                break
            ids = torch.cat([ids, torch.tensor([written[-1:]])], 1)
        found.append(written)
    return found


def generated(model: iv.Model, prompt: iv.Prompt, **asked: Any) -> list[list[int]]:
    """Tokens of each row that ``generate`` writes, up to the first that ends it."""
    with model.generate(prompt, **asked) as tracer:
        ids = tracer.result.save()
    rows = []
    for row in ids[:, prompt.full_ids.shape[1] :].tolist():
        stop = next((i + 1 for i, one in enumerate(row) if one in model.end_ids), len(row))
        rows.append(row[:stop])
    return rows


def completed(model: iv.Model, prompt: iv.Prompt, n: int) -> list[list[int]]:
    prefill = iv.run(model, prompt, keep_cache=True)
    return greedy(model, prefill, max_new_tokens=n, stop=None).ids


@pytest.mark.parametrize("which", CHECKPOINTS)
def test_generate_is_complete_under_any_settings_of_the_checkpoint(which: str) -> None:
    case = fresh("llama", **CHECKPOINTS[which])
    model, prompt = case.model, case.prompt
    before = model.module.generation_config.to_dict()
    expected = by_hand(model, prompt, NEW)
    assert generated(model, prompt, max_new_tokens=NEW) == expected
    assert completed(model, prompt, NEW) == expected
    texts = [model.tokenizer.decode(one, skip_special_tokens=True) for one in expected]
    answered = iv.complete(model, prompt, max_new_tokens=NEW, stop=None).texts
    assert answered == [text.strip() for text in texts]
    assert model.module.generation_config.to_dict() == before


ALL_AT_ONCE = {
    **CHECKPOINTS["repetition_penalty"],
    **CHECKPOINTS["beams"],
    **CHECKPOINTS["min_new_tokens"],
    **CHECKPOINTS["suppress_tokens"],
    **CHECKPOINTS["a dict"],
}


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_generate_is_complete_in_every_family(name: str) -> None:
    case = fresh(name, **ALL_AT_ONCE)
    model, prompt = case.model, case.prompt
    assert generated(model, prompt, max_new_tokens=NEW) == completed(model, prompt, NEW)


@pytest.mark.parametrize("which", ["repetition_penalty", "beams", "static", "no cache", "chunks"])
def test_a_shared_prefix_too(which: str) -> None:
    model = fresh("llama", **CHECKPOINTS[which]).model
    texts = ["The capital of France is", "The capital of the big country is"]
    whole, shared = (model.prompt(texts, share_prefix=share) for share in (False, True))
    assert len(shared.prefix_ids)
    expected = generated(model, whole, max_new_tokens=NEW)
    assert generated(model, shared, max_new_tokens=NEW) == expected
    assert completed(model, shared, NEW) == expected


@settings(max_examples=25, deadline=None)
@given(ends=st.sets(st.integers(3, 200), max_size=40), as_list=st.booleans())
def test_any_end_tokens(ends: set[int], as_list: bool) -> None:
    several: Any = sorted(ends) if as_list or len(ends) != 1 else next(iter(ends))
    case = fresh("llama", eos_token_id=several or None, repetition_penalty=3.0)
    model, prompt = case.model, case.prompt
    assert model.end_ids == ends | {model.tokenizer.eos_token_id}
    expected = by_hand(model, prompt, NEW)
    assert generated(model, prompt, max_new_tokens=NEW) == expected
    assert completed(model, prompt, NEW) == expected


ASKED: dict[str, dict[str, Any]] = {
    "beams": {"num_beams": 3},
    "penalty": {"repetition_penalty": 5.0},
    "ngrams": {"no_repeat_ngram_size": 1},
    "suppressed": {"suppress_tokens": list(range(3, 60))},
    "longer": {"min_new_tokens": 6},
}


@pytest.mark.parametrize("which", ASKED)
def test_what_the_user_passes_acts(which: str) -> None:
    case = fresh("llama", repetition_penalty=2.0, top_k=3)
    asked = ASKED[which]
    plain = case_of("llama").model
    inputs = {key: value for key, value in case.prompt.inputs.items() if key != "position_ids"}
    theirs = copy.copy(plain.module)
    theirs.generation_config = GenerationConfig(eos_token_id=sorted(plain.end_ids), pad_token_id=0)
    ids = theirs.generate(**inputs, max_new_tokens=NEW, do_sample=False, **asked)
    for way in (asked, {"generation_config": GenerationConfig(**asked)}):
        with case.model.generate(case.prompt, max_new_tokens=NEW, **way) as tracer:
            mine = tracer.result.save()
        assert torch.equal(mine, ids)


def test_the_checkpoints_own_settings_on_request() -> None:
    case = fresh("llama", repetition_penalty=5.0, max_new_tokens=3)
    inputs = {key: value for key, value in case.prompt.inputs.items() if key != "position_ids"}
    with case.model.generate(
        case.prompt, generation_config=case.model.module.generation_config
    ) as tracer:
        mine = tracer.result.save()
    assert torch.equal(mine, case.model.module.generate(**inputs))


def test_how_long() -> None:
    model, prompt = case_of("llama").model, case_of("llama").prompt
    width = prompt.full_ids.shape[1]
    for asked, n in (({}, 20), ({"max_length": width + 3}, 3), ({"max_new_tokens": 4}, 4)):
        with model.generate(prompt, eos_token_id=None, **asked) as tracer:
            ids = tracer.result.save()
        assert ids.shape[1] == width + n


def test_a_dict_comes_back_where_it_is_asked_for() -> None:
    case = fresh("llama")
    with case.model.generate(
        case.prompt, max_new_tokens=2, return_dict_in_generate=True, output_logits=True
    ) as tracer:
        found = tracer.result.save()
    assert len(found.logits) == 2


def test_settings_in_a_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tiny.save("llama", tmp_path / "llama")
    path = folder / "generation_config.json"
    path.write_text(json.dumps({"eos_token_id": [2, 9], "num_beams": 4, "repetition_penalty": 4.0}))
    model = iv.load(folder, attn_implementation="eager")
    prompt = model.prompt(case_of("llama").texts)
    assert model.end_ids >= {2, 9}
    assert generated(model, prompt, max_new_tokens=NEW) == by_hand(model, prompt, NEW)
    assert not caplog.records


def test_settings_in_an_old_config(tmp_path: Path) -> None:
    """Old checkpoints have them in config.json."""
    folder = tiny.save("llama", tmp_path / "llama")
    (folder / "generation_config.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"repetition_penalty": 4.0}))
    model = iv.load(folder, attn_implementation="eager")
    prompt = model.prompt(case_of("llama").texts)
    assert generated(model, prompt, max_new_tokens=NEW) == by_hand(model, prompt, NEW)


def test_settings_written_into_the_config_are_named() -> None:
    module, tokenizer = tiny.build("llama")
    model = iv.load(module, tokenizer=tokenizer)
    prompt = model.prompt("The capital of France is")
    module.config.repetition_penalty = 4.0
    with pytest.raises(PromptError, match=r"repetition_penalty=4.0.*del model\.module\.config"):
        model.generate(prompt)


def test_every_setting_of_transformers_is_known() -> None:
    """One that is new here must be given its value without effect, or be said to have none."""
    known = {name for name in vars(GenerationConfig()) if not name.startswith("_")}
    harmless = {
        *("max_new_tokens", "eos_token_id", "pad_token_id", "bos_token_id"),
        *("decoder_start_token_id", "transformers_version", "continuous_batching_config"),
    }
    only_where_asked = known - set(WITHOUT_EFFECT) - harmless
    model = fresh("llama", **dict.fromkeys(only_where_asked, 0.5)).model
    with model.generate(model.prompt("The capital"), max_new_tokens=1) as tracer:
        tracer.result.save()
    assert model_of("llama").end_ids == model.end_ids


def test_equal_log_probabilities_do_not_decide() -> None:
    """Two logits that differ may have one log-probability; the larger logit is the answer."""
    model = model_of("llama")
    prefill = iv.run(model, model.prompt("The capital of France is"), keep_cache=True)
    assert prefill.logits is not None
    high = torch.full_like(prefill.logits, 0.01)
    high[0, 11] = torch.nextafter(torch.tensor(0.01), torch.tensor(1.0))
    prefill = type(prefill)(high, prefill.reads, prefill.cache, prefill.prompt)
    assert int(high.log_softmax(-1).argmax()) != 11, "told apart: choose other numbers"
    assert greedy(model, prefill, max_new_tokens=1, stop=None).ids == [[11]]
