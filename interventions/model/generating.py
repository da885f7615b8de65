"""What a generation is told, so that it is greedy unless the user asks for something else.

A checkpoint carries settings of generation (penalties, beams, sampling, tokens never written),
which change what is written without a word in the code that asks for it. Here they count for
nothing but the tokens that end a text: what is not asked for is set to have no effect.
"""

from typing import Any

from interventions.architectures.wrapped import Wrapped
from interventions.errors import PromptError

DEFAULT_NEW_TOKENS = 20
WITHOUT_EFFECT: dict[str, Any] = {
    "do_sample": False,
    "num_beams": 1,
    "num_return_sequences": 1,
    "early_stopping": False,
    "use_cache": True,
    "min_length": 0,
    "temperature": 1.0,
    "top_p": 1.0,
    "typical_p": 1.0,
    "repetition_penalty": 1.0,
    "length_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "renormalize_logits": False,
    "remove_invalid_values": False,
    "token_healing": False,
    "output_attentions": False,
    "output_hidden_states": False,
    "output_scores": False,
    "output_logits": False,
    "return_dict_in_generate": False,
    **dict.fromkeys(
        (
            *("max_length", "min_new_tokens", "max_time", "stop_strings"),
            *("cache_implementation", "cache_config", "prefill_chunk_size", "compile_config"),
            *("top_k", "min_p", "epsilon_cutoff", "eta_cutoff", "encoder_repetition_penalty"),
            *("bad_words_ids", "forced_bos_token_id", "forced_eos_token_id", "sequence_bias"),
            *("exponential_decay_length_penalty", "suppress_tokens", "begin_suppress_tokens"),
            *("guidance_scale", "watermarking_config", "prompt_lookup_num_tokens"),
            *("assistant_early_exit", "penalty_alpha", "dola_layers", "low_memory"),
            *("diversity_penalty", "num_beam_groups", "constraints", "force_words_ids"),
        )
    ),
}
"""Every setting that changes what is written, or what comes back, at the value that does not."""
ABOUT_TOKENS = ("bos_token_id", "decoder_start_token_id", "transformers_version")


def settings_of(
    model: Wrapped, asked: dict[str, Any], *, max_new_tokens: int | None = None
) -> dict[str, Any]:
    """Everything that ``generate`` of transformers is to be told.

    Parameters
    ----------
    model : Wrapped
    asked : dict
        What the user passed: settings by name, or all of them as ``generation_config``.
    max_new_tokens : int, optional
        Default: what ``asked`` says of the length, or else 20.

    Returns
    -------
    dict
        What was asked, the model's end tokens, and all else without effect.

    Raises
    ------
    PromptError
        If settings of generation were written into the model's config, where transformers takes
        none.
    """
    asked = dict(asked)
    if (config := asked.pop("generation_config", None)) is not None:
        asked = _set_in(config) | asked
    if max_new_tokens is not None:
        asked["max_new_tokens"] = max_new_tokens
    elif asked.get("max_new_tokens") is None and asked.get("max_length") is None:
        asked["max_new_tokens"] = DEFAULT_NEW_TOKENS
    plain = dict(WITHOUT_EFFECT)
    if model.remote is False:  # a server may have another transformers, which may know fewer
        _check_config(model)
        plain = dict.fromkeys(_set_in(model.module.generation_config)) | plain
    ends = {"eos_token_id": sorted(model.end_ids) or None}
    return {**plain, **ends, "pad_token_id": model.tokenizer.pad_token_id, **asked}


def _set_in(config: Any) -> dict[str, Any]:
    """The settings that a generation config names, without those about tokens of a beginning."""
    from transformers import GenerationConfig

    known = {name for name in vars(GenerationConfig()) if not name.startswith("_")}
    return {
        name: value
        for name, value in vars(config).items()
        if value is not None and name in known and name not in ABOUT_TOKENS
    }


def _check_config(model: Wrapped) -> None:
    settings = model.module.config._get_generation_parameters()
    if settings:
        named = ", ".join(f"{name}={value!r}" for name, value in settings.items())
        raise PromptError(
            f"the config of {model.name} has settings of generation ({named}), with which "
            "transformers does not generate. Delete them there (del model.module.config."
            f"{next(iter(settings))}), and pass to generate() what you want of them."
        )
