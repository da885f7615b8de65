"""One vocabulary over an nnsight model: prompts, streams, traces."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from nnsight.modeling.transformers import TransformersModel

from interventions.architectures.faults import check_unbroken
from interventions.architectures.wrapped import (
    Runner,
    Wrapped,
    check_evaluating,
    normed_and_projected,
    where_the_model_is,
)
from interventions.errors import LoadError, PatchError, PromptError, RemoteError
from interventions.given import MOST_TOKENS, of_kind, whole
from interventions.given_arrays import check_range, tensor_of
from interventions.model.attention_streams import AttentionStream
from interventions.model.cache_names import (
    cache_argument,
    installed_name,
    names_a_cache,
    with_cache_named,
)
from interventions.model.fingerprints import fingerprint
from interventions.model.generating import settings_of
from interventions.model.head_streams import HeadStream, ProjectedStream
from interventions.model.inner_streams import InnerStream, MidStream
from interventions.model.prefix_cache import PrefixCache
from interventions.model.streams import (
    EmbeddingStream,
    ImageFeatureStream,
    LogitsStream,
    Stream,
)
from interventions.model.vision import Vision
from interventions.prompt.prompt import Prompt
from interventions.prompt.rows import SEQUENCE_KEYS, Span


class Model(Wrapped):
    """A language model or VLM whose parts have the same names whatever its architecture.

    Made by :func:`interventions.load`. ``trace`` and ``generate`` return nnsight's own contexts;
    inside them the streams are read and written. Every call wants the module in eval mode, as it
    is loaded: one of which a part was put in train mode is refused with a ModeError, and left so.

    Attributes
    ----------
    resid_pre, attn_out, mlp_out, resid_post : Stream
        Indexed ``[layers, positions]`` inside a trace.
    head_out : HeadStream
        Indexed ``[layers, positions, heads]`` inside a trace.
    resid_mid, mlp_in, router, mlp_pre, mlp_post : InnerStream
        Inside a block: indexed ``[layers, positions]``.
    q, k, v : ProjectedStream
        Indexed ``[layers, positions, heads]``.
    q_rot, k_rot, attn_scores, attn_pattern : AttentionStream
        Indexed ``[layers, positions, heads]``.
    embeddings, image_features, logits
        Indexed ``[positions]`` inside a trace.
    vision : Vision
        The streams of the vision tower and its projector; see
        :mod:`interventions.model.vision_streams`.
    nn, anatomy, module, tokenizer, processor, remote, jobs, requests ...
        As :class:`interventions.architectures.wrapped.Wrapped` has them.

    Examples
    --------
    >>> with vlm.trace(shown):
    ...     entity = vlm.resid_post[0:4, shown.at("image", -1)].save()
    ...     logits = vlm.logits[shown.at("last")].save()
    >>> entity.shape  # [layer, row, d_model]
    torch.Size([4, 1, 64])
    """

    def __init__(
        self,
        nn: TransformersModel,
        *,
        name: str,
        revision: str | None = None,
        remote: bool | str = False,
        runner: Callable[[], Runner] | None = None,
    ) -> None:
        super().__init__(nn, name=name, revision=revision, remote=remote, runner=runner)
        self.resid_pre = Stream(self, "resid_pre")
        self.attn_out = Stream(self, "attn_out")
        self.mlp_out = Stream(self, "mlp_out")
        self.resid_post = Stream(self, "resid_post")
        self.head_out = HeadStream(self)
        self.resid_mid = MidStream(self, "resid_mid")
        self.mlp_in = InnerStream(self, "mlp_in")
        self.router = InnerStream(self, "router")
        self.mlp_pre = InnerStream(self, "mlp_pre")
        self.mlp_post = InnerStream(self, "mlp_post")
        self.q = ProjectedStream(self, "q")
        self.k = ProjectedStream(self, "k")
        self.v = ProjectedStream(self, "v")
        self.q_rot = AttentionStream(self, "q_rot")
        self.k_rot = AttentionStream(self, "k_rot")
        self.attn_scores = AttentionStream(self, "attn_scores")
        self.attn_pattern = AttentionStream(self, "attn_pattern")
        self.embeddings = EmbeddingStream(self)
        self.image_features = ImageFeatureStream(self)
        self.logits = LogitsStream(self)
        self.vision = Vision(self)
        self._prefixes = PrefixCache()

    def __getstate__(self) -> dict[str, Any]:
        """What goes to a server, where the model is a local one."""
        return {**super().__getstate__(), "_prefixes": PrefixCache()}

    def fingerprint(self) -> dict[str, Any]:
        """What the model is now, by content; see :mod:`interventions.model.fingerprints`."""
        return fingerprint(self)

    def adapter(self, name: str | None) -> None:
        """Let one of the model's adapters act alone, or, with None, none of them.

        Adapters are loaded with the model (``iv.load(..., adapter=)``) or by PEFT.

        Raises
        ------
        LoadError
            If it has no such adapter, one is merged into its weights, or it runs on a server.
        """
        if self.remote is not False:
            raise LoadError(f"{self.name} runs on a server, which holds it as it was told to.")
        # What knows adapters stays where models are loaded.
        from interventions.architectures.adapters import switch_adapter

        switch_adapter(self.module, name, self.name)

    def unembed(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits [..., vocab] of hidden states [..., d_model]: final norm, head, cap and scale."""
        hidden = tensor_of(hidden, "hidden")
        if not hidden.ndim or hidden.shape[-1] != self.d_model:
            raise PatchError(
                f"hidden states of shape {tuple(hidden.shape)}. Expected [..., {self.d_model}]."
            )
        check_range(hidden, self.dtype, "hidden")
        return _logits_of(self, hidden)

    def prompt(
        self,
        text: str | Sequence[Any],
        *,
        images: Any | None = None,
        spans: Mapping[str, Span | Sequence[Span]] | None = None,
        share_prefix: bool | str = False,
        template_kwargs: Mapping[str, Any] | None = None,
        processor_kwargs: Mapping[str, Any] | None = None,
    ) -> Prompt:
        """Turn text and images into padded rows whose tokens have roles.

        Parameters
        ----------
        text : str, chat messages, or a list of either
            One row each. A text has an image's place as ``<image>``, in every family, or as
            :attr:`image_token`; where it has none, one line of them is put in front, as LLaVA
            does. Messages are written by the chat template: contents may be texts, lists of
            parts, or both; parts may hold their pictures (``{"type": "image", "image": picture}``,
            or ``"path"``, ``"base64"``, ``"image_url"`` with a ``data:`` address); a last message
            by the assistant is gone on with. A think block that the template opens for the answer
            is ended empty, unless ``enable_thinking=True``. Every row has one begin token, where
            the tokenizer, template or processor knows one, and no end token behind it; where it
            begins otherwise a :class:`~interventions.errors.PromptWarning` says so.
        images : image, or list, optional
            One image per row, or a list of images per row. A single row takes an image as it is.
            Each in any form that :func:`interventions.as_picture` takes, which makes the same
            pixels of all; an array of four axes is a list of pictures. Arrays of floats of one
            prompt must be in one range, as a dark one in 0 to 255 looks like one in 0 to 1. In a
            chat they take the places that hold no picture, or stand in front of what the user
            says first.
        spans : dict, optional
            Name to the text of a span that occurs once in the row, or to (start, stop) characters;
            or to one of these per row.
        share_prefix : bool or str
            Compute the keys and values of the tokens that all rows begin with once, and leave
            them out of the rows. The numbers stay the same; images and named spans stay in
            the rows, while the ``question`` role loses the tokens of the prefix. A string limits
            this to the tokens of that text.
        template_kwargs : dict, optional
            For the chat template: what it can be told (``enable_thinking``, ``date_string``,
            ``tools`` ...), ``chat_template`` (the name of one of several, or one of your own),
            and ``add_generation_prompt`` and ``continue_final_message``. What it does not use is
            refused.
        processor_kwargs : dict, optional
            For the image processor (``min_pixels``, ``max_pixels``, ``size``,
            ``do_image_splitting`` ...). What it does not use is refused.

        Returns
        -------
        Prompt

        Raises
        ------
        PromptError
            If images, placeholders, spans and rows do not fit together, or the chat template
            refuses the messages or would leave some of them out; a
            :class:`~interventions.errors.PictureError` if a picture cannot be shown.

        Examples
        --------
        >>> named = llm.prompt("The capital of Belmora is", spans={"entity": "Belmora"})
        >>> llava = iv.load("llava-hf/llava-1.5-7b-hf")
        >>> looked = {"type": "image", "image": "flags/fr.png"}
        >>> asked = {"role": "user", "content": [looked, "Which country is this?"]}
        >>> begun = {"role": "assistant", "content": "This is the flag of"}
        >>> llava.prompt([asked, begun], processor_kwargs={"resample": 2}).texts
        ['<s>USER: <image>\\nWhich country is this? ASSISTANT: This is the flag of']
        """
        from interventions.prompt.making import make_prompt  # prompts are not made on a server

        return make_prompt(
            self,
            text,
            images=images,
            spans=spans,
            share_prefix=share_prefix,
            template_kwargs=template_kwargs,
            processor_kwargs=processor_kwargs,
        )

    def _arguments(self, prompt: Prompt, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
        of_kind(prompt, Prompt, "the prompt", error=PromptError)
        if prompt.has_images and not self.anatomy.is_vlm:
            raise PromptError(
                f"the prompt has pictures, which {self.name} does not see: it would read their "
                "placeholders as words. Make a prompt of text for it: model.prompt(text)."
            )
        check_evaluating(self)
        if not self.remote:
            check_unbroken(self.module, self.anatomy.model_type)
        config = self.module.config
        padded = not bool(prompt.inputs["attention_mask"].all())
        if padded and self.dtype == torch.float64 and config._attn_implementation == "eager":
            raise PromptError(
                "eager attention in float64 makes NaN of padded rows: transformers masks with the "
                "lowest float64 and takes the softmax in float32. Load with "
                "attn_implementation='sdpa', or run rows of equal length."
            )
        arguments: dict[str, Any] = {}
        for key, value in prompt.inputs.items():
            value = value.to(self.device)
            arguments[key] = value.to(self.dtype) if value.is_floating_point() else value
        if arguments["position_ids"].ndim == 3:
            arguments["position_ids"] = arguments["position_ids"].transpose(0, 1)
        given = self._named(cache_argument(self.module), given or {})
        if len(prompt.prefix_ids) and not names_a_cache(given):
            if self.remote:
                raise RemoteError(
                    "a prompt made with share_prefix cannot be traced by hand on a server: the "
                    "keys and values of its prefix are there. Leave share_prefix out, or use "
                    "iv.run, or model.job."
                )
            arguments[cache_argument(self.module)] = self.prefix_cache(prompt)
        self.running_rows, self.running_images = len(prompt), prompt.has_images
        self.running_vision, self.running_prefix = prompt.vision, len(prompt.prefix_ids)
        self.running_keys = False
        return {**arguments, **given}

    def prefix_cache(self, prompt: Prompt) -> Any:
        """Keys and values of the prefix that a prompt's rows share, to go on from; else None."""
        if not len(prompt.prefix_ids):
            return None
        return self._prefixes.expanded(self, prompt.prefix_ids.to(self.device), len(prompt))

    def trace(self, prompt: Prompt, **kwargs: Any) -> Any:
        """Open an nnsight trace of one forward pass over a prompt.

        Parameters
        ----------
        prompt : Prompt
            What to run.
        **kwargs
            For the model's forward (``logits_to_keep=1``) or nnsight (``remote=``, ``backend=``).

        Returns
        -------
        nnsight tracer
            Use as ``with model.trace(prompt):``.
        """
        arguments = self._arguments(prompt, kwargs.pop("inputs", {}))
        kwargs = self._named(cache_argument(self.module), kwargs)
        return self.nn.trace(arguments, **self._place(kwargs))

    def generate(self, prompt: Prompt, *, max_new_tokens: int | None = None, **kwargs: Any) -> Any:
        """Open an nnsight trace of generation: greedy, whatever the checkpoint's settings say.

        Of the checkpoint's generation config the end tokens count, and nothing else: penalties,
        beams, sampling and forbidden tokens act where they are passed here, so that by default
        the tokens are those of :func:`interventions.complete`. What the block reads and writes
        acts on the prefill step only, unless it asks for others with nnsight's ``tracer.iter``;
        :func:`interventions.generate` takes patches and knockouts that say their steps.
        The ids are ``tracer.result``; :meth:`completions` turns them into text.

        Parameters
        ----------
        prompt : Prompt
            What to go on from.
        max_new_tokens : int, optional
            Default: 20, unless ``kwargs`` say how long.
        **kwargs
            For transformers' ``generate`` (``num_beams=2``, ``repetition_penalty=1.2``,
            ``generation_config=``), or nnsight. To generate as the checkpoint says, pass
            ``generation_config=model.module.generation_config``.

        Returns
        -------
        nnsight tracer
            Use as ``with model.generate(prompt) as tracer:``.

        Raises
        ------
        PromptError
            If settings of generation were written into the model's config.

        Examples
        --------
        >>> with vlm.generate(shown, max_new_tokens=3) as tracer:
        ...     vlm.resid_post[3, shown.at("image", -1)] *= 2
        ...     ids = tracer.result.save()
        >>> vlm.completions(ids, shown)
        ['Tessin .']
        """
        inputs, settings = self.generation(prompt, max_new_tokens=max_new_tokens, **kwargs)
        return self.nn.trace(inputs, **settings)

    def generation(
        self, prompt: Prompt, *, max_new_tokens: int | None = None, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """What nnsight's trace of a generation is given, as of :meth:`generate`.

        Returns
        -------
        inputs : dict
        settings : dict
        """
        if max_new_tokens is not None:
            max_new_tokens = whole(max_new_tokens, "max_new_tokens", least=1, most=MOST_TOKENS)
        arguments = self._arguments(prompt)
        self.running_keys = True
        del arguments["position_ids"]  # generate derives the same ones, step by step
        arguments["input_ids"] = prompt.full_ids.to(self.device)
        for key in set(SEQUENCE_KEYS) & set(arguments):
            shape = (len(prompt), len(prompt.prefix_ids), *arguments[key].shape[2:])
            before = arguments[key].new_zeros(shape)
            arguments[key] = torch.cat([before, arguments[key]], dim=1)
        settings = settings_of(self, kwargs, max_new_tokens=max_new_tokens)
        arguments, settings = (
            self._named(installed_name(), keywords) for keywords in (arguments, settings)
        )
        return arguments, {"fn": "generate", **self._place(settings)}

    def _named(self, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments in which a cache has this name; on a server, the one that the user chose."""
        return dict(given) if self.remote else with_cache_named(name, given)

    def _place(self, settings: dict[str, Any]) -> dict[str, Any]:
        return settings if self.remote is False else self.sender.placed(self, settings)

    def completions(self, ids: torch.Tensor, prompt: Prompt) -> list[str]:
        """Text that was generated after each row of a prompt, special tokens left out.

        Parameters
        ----------
        ids : Tensor [row, position]
            ``tracer.result`` of :meth:`generate`.
        prompt : Prompt
            What was generated from.
        """
        new = ids[:, prompt.full_ids.shape[1] :]
        return self.tokenizer.batch_decode(new, skip_special_tokens=True)


@where_the_model_is
def _logits_of(model: Model, hidden: torch.Tensor) -> torch.Tensor:
    anatomy = model.anatomy
    logits = normed_and_projected(model, hidden) * anatomy.logit_scale
    if anatomy.softcap is not None:
        logits = torch.tanh(logits / anatomy.softcap) * anatomy.softcap
    return logits
