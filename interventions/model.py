"""One vocabulary over an nnsight model: prompts, streams, traces."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from nnsight.modeling.transformers import TransformersModel

from interventions.anatomy import Anatomy, find_anatomy
from interventions.errors import PromptError
from interventions.prefixes import PrefixCache
from interventions.prompts import Prompt, Span, build_row, collate
from interventions.streams import LogitsStream, Stream

RESERVED = {"image", "question", "last", "answer"}


class Model:
    """A language model or VLM whose parts have the same names whatever its architecture.

    Made by :func:`interventions.load`. ``trace`` and ``generate`` return nnsight's own contexts;
    inside them the streams are read and written.

    Attributes
    ----------
    nn : nnsight TransformersModel
        The wrapped model, for everything nnsight can do.
    anatomy : Anatomy
        Where the parts are.
    resid_pre, attn_out, mlp_out, resid_post : Stream
        Indexed ``[layers, positions]`` inside a trace.
    logits : LogitsStream
        Indexed ``[positions]`` inside a trace.

    Examples
    --------
    >>> with vlm.trace(prompt):                                    # doctest: +SKIP
    ...     entity = vlm.resid_post[0:12, prompt.at("image", -1)].save()
    ...     logits = vlm.logits[prompt.at("last")].save()
    """

    def __init__(self, nn: TransformersModel, *, name: str, revision: str | None = None) -> None:
        self.nn = nn
        self.name = name
        self.revision = revision
        self.anatomy: Anatomy = find_anatomy(nn._module)
        self.resid_pre = Stream(self, "resid_pre")
        self.attn_out = Stream(self, "attn_out")
        self.mlp_out = Stream(self, "mlp_out")
        self.resid_post = Stream(self, "resid_post")
        self.logits = LogitsStream(self)
        self._prefixes = PrefixCache()

    def __repr__(self) -> str:
        kind = "VLM" if self.anatomy.is_vlm else "language model"
        return f"<Model {self.name}: {kind}, {self.n_layers} layers x {self.d_model}>"

    @property
    def module(self) -> Any:
        """The transformers model itself."""
        return self.nn._module

    @property
    def n_layers(self) -> int:
        """Number of decoder blocks."""
        return self.anatomy.n_layers

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.anatomy.d_model

    @property
    def device(self) -> torch.device:
        """Where the embeddings are."""
        return next(self.module.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Number format of the weights."""
        return next(self.module.parameters()).dtype

    @property
    def end_ids(self) -> set[int]:
        """Tokens that end a generation: the tokenizer's, and those of the generation config."""
        config = getattr(self.module, "generation_config", None)
        more = getattr(config, "eos_token_id", None)
        several = more if isinstance(more, list | tuple) else [more]
        return {one for one in (self.tokenizer.eos_token_id, *several) if one is not None}

    @property
    def processor(self) -> Any | None:
        """The image-and-text processor, or None in a text-only model."""
        return self.nn.processor

    @property
    def tokenizer(self) -> Any:
        """The tokenizer."""
        return self.processor.tokenizer if self.processor is not None else self.nn.tokenizer

    @property
    def image_token(self) -> str | None:
        """How an image is written in the text of a prompt; None in a text-only model."""
        return getattr(self.processor, "image_token", None)

    @property
    def blocks(self) -> Any:
        """The nnsight envoys of the decoder blocks."""
        return self.nn.get(self.anatomy.blocks)

    @property
    def head(self) -> Any:
        """The nnsight envoy of the output head."""
        return self.nn.get(self.anatomy.head)

    @property
    def final_norm(self) -> Any:
        """The nnsight envoy of the norm before the head."""
        return self.nn.get(self.anatomy.final_norm)

    def prompt(
        self,
        text: str | Sequence[Any],
        *,
        images: Any | None = None,
        spans: Mapping[str, Span | Sequence[Span]] | None = None,
        share_prefix: bool | str = False,
    ) -> Prompt:
        """Turn text and images into padded rows whose tokens have roles.

        Parameters
        ----------
        text : str, chat messages, or a list of either
            One row each. Where a text with images has no image placeholder, one line of them is
            put in front, as LLaVA does.
        images : image, or list, optional
            One image per row, or a list of images per row. A single row takes an image as it is.
        spans : dict, optional
            Name to the text of a span that occurs once in the row, or to (start, stop) characters;
            or to one of these per row.
        share_prefix : bool or str
            Compute the keys and values of the tokens that all rows begin with once, and leave
            them out of the rows. The numbers stay the same; images and named spans stay in
            the rows, while the ``question`` role loses the tokens of the prefix. A string limits
            this to the tokens of that text.

        Returns
        -------
        Prompt

        Raises
        ------
        PromptError
            If images, placeholders, spans and rows do not fit together.

        Examples
        --------
        >>> named = llm.prompt("The capital of France is", spans={"entity": "France"})
        ... # doctest: +SKIP
        """
        if taken := sorted(RESERVED & set(spans or {})):
            raise PromptError(f"a span cannot be called {taken[0]!r}: that role is given already.")
        texts = self._texts(text)
        per_row = self._images(images, len(texts))
        rows = []
        for i, (one, pictures) in enumerate(zip(texts, per_row, strict=True)):
            if pictures and self.image_token is not None and self.image_token not in one:
                one = self.image_token * len(pictures) + "\n" + one
            chosen = {
                name: _of_row(span, i, len(texts), name) for name, span in (spans or {}).items()
            }
            rows.append(
                build_row(
                    one,
                    pictures,
                    chosen,
                    tokenizer=self.tokenizer,
                    processor=self.processor,
                    image_token_id=self.anatomy.image_token_id,
                )
            )
        if not rows or any(not row.ids for row in rows):
            raise PromptError("a prompt needs at least one row, and every row at least one token.")
        pad = self.tokenizer.pad_token_id
        return collate(rows, pad_id=pad if pad is not None else 0, share_prefix=share_prefix)

    def _texts(self, text: str | Sequence[Any]) -> list[str]:
        if isinstance(text, str):
            return [text]
        if text and isinstance(text[0], Mapping):
            text = [text]
        return [one if isinstance(one, str) else self._templated(one) for one in text]

    def _templated(self, messages: Any) -> str:
        source: Any = self.processor if self.processor is not None else self.tokenizer
        text = source.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        start = self.tokenizer.bos_token
        if start and self.tokenizer("")["input_ids"][:1] == [self.tokenizer.bos_token_id]:
            return text.removeprefix(start)  # the tokenizer puts its own in front
        return text

    def _images(self, images: Any | None, n_rows: int) -> list[list[Any]]:
        if images is None:
            return [[] for _ in range(n_rows)]
        if self.processor is None:
            raise PromptError(
                f"images were given, but {self.name} is a text-only model (no processor). "
                "Load the VLM, or leave images out."
            )
        if not isinstance(images, list | tuple):
            images = [images]
        if n_rows == 1 and not any(isinstance(one, list | tuple) for one in images):
            images = [images]
        if len(images) != n_rows:
            raise PromptError(f"{len(images)} images for {n_rows} rows. Give one entry per row.")
        return [
            list(one) if isinstance(one, list | tuple) else ([] if one is None else [one])
            for one in images
        ]

    def _arguments(self, prompt: Prompt) -> dict[str, Any]:
        arguments: dict[str, Any] = {}
        for key, value in prompt.inputs.items():
            value = value.to(self.device)
            arguments[key] = value.to(self.dtype) if value.is_floating_point() else value
        if len(prompt.prefix_ids):
            arguments["past_key_values"] = self._prefixes.expanded(
                self.module, prompt.prefix_ids.to(self.device), len(prompt)
            )
        return arguments

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
        return self.nn.trace({**self._arguments(prompt), **kwargs.pop("inputs", {})}, **kwargs)

    def generate(self, prompt: Prompt, *, max_new_tokens: int = 20, **kwargs: Any) -> Any:
        """Open an nnsight trace of greedy generation.

        What the block reads and writes acts on the prefill step only, unless it asks for others
        with nnsight's ``tracer.iter``. The ids are ``tracer.result``; :meth:`completions` turns
        them into text.

        Examples
        --------
        >>> with vlm.generate(prompt, max_new_tokens=5) as tracer:     # doctest: +SKIP
        ...     vlm.resid_post[3, prompt.at("image", -1)] = value
        ...     ids = tracer.result.save()
        """
        arguments = self._arguments(prompt)
        del arguments["position_ids"]  # generate derives the same ones from the mask, step by step
        arguments["input_ids"] = prompt.full_ids.to(self.device)
        settings = {"do_sample": False, "max_new_tokens": max_new_tokens} | kwargs
        return self.nn.trace(arguments, fn="generate", **settings)

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


def _of_row(span: Any, row: int, n_rows: int, name: str) -> Span:
    if isinstance(span, str) or (isinstance(span, tuple) and isinstance(span[0], int)):
        return span
    if len(span) != n_rows:
        raise PromptError(f"span {name!r} has {len(span)} entries for {n_rows} rows.")
    return span[row]
