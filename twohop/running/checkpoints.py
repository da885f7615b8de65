"""What a checkpoint holds, so that weights replaced under the same name are told apart."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from interventions.storable import write_atomically

SIDECAR = ".checkpoints.json"
WEIGHTS = (".safetensors", ".bin", ".gguf", ".pt", ".pth")
OTHERS = (".json", ".jinja", ".txt", ".model", ".tiktoken", ".spm", ".vocab", ".py")
LEFT_OUT = re.compile(
    r"^(\..*|trainer_state\.json|training_args\..*|optimizer\..*|scheduler\..*|scaler\..*"
    r"|rng_state.*|.*requirements.*\.txt|licen[cs]e.*|notice.*|readme.*|use_policy.*)$",
    re.IGNORECASE,
)
"""Files beside a model that loading it does not read: of training, and for people."""
TOKENIZER = ("tokenizer", "vocab", "merges", "special_tokens", "added_tokens", "chat_template")
PLAIN = ("config.json", "generation_config.json")
OF_THE_WRITER = ("transformers_version", "_name_or_path", "_commit_hash")
"""Fields of a config that say who wrote it and when, and nothing of the model."""
BLOCK = 2**22  # bytes read at a time


class Digests:
    """Contents of checkpoints, remembered in a file beside the runs so that a rerun is quick.

    A file is read again if its size, or when it or its entry was last changed, is not what it was.

    Parameters
    ----------
    folder : Path
        Of runs.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / SIDECAR
        self._known: dict[str, list[Any]] = {}
        self._changed = False
        try:
            stored = json.loads(self.path.read_text(encoding="utf-8"))
            self._known = {str(key): list(value) for key, value in stored.items()}
        except (OSError, ValueError, AttributeError, TypeError):
            pass  # nothing is lost: it is computed again

    def of(self, place: Path | str) -> dict[str, str]:
        """What is in a checkpoint.

        Parameters
        ----------
        place : Path or str
            A folder, or a repo id of the hub.

        Returns
        -------
        dict of str to str
            Of a folder, a hash each of what its files of a kind hold: ``config``, ``weights``,
            ``adapter``, ``tokenizer``, ``processor``, ``code``, ``other``. Of a repo id, the
            ``commit`` that the hub's cache on this machine has, which is then the one to load, and
            which only a first run has to ask the hub for; else the ``revision`` that will be asked
            for.
        """
        if Path(place).is_dir():
            return self._of_folder(Path(place).resolve())
        commit = commit_of(str(place))
        return {"revision": "main"} if commit is None else {"commit": commit}

    def save(self) -> None:
        """Write the file, if there is anything new."""
        if self._changed:
            write_atomically(self.path, json.dumps(self._known, indent=1).encode())
            self._changed = False

    def _of_folder(self, folder: Path) -> dict[str, str]:
        kinds: dict[str, list[tuple[str, str]]] = {}
        for path in model_files(folder):
            name = path.relative_to(folder).as_posix()
            kinds.setdefault(kind_of(path.name), []).append((name, self._of_file(path)))
        return {kind: digest_of(json.dumps(files).encode()) for kind, files in kinds.items()}

    def _of_file(self, path: Path) -> str:
        about = path.stat()
        state = [about.st_size, about.st_mtime_ns, about.st_ctime_ns, about.st_ino]
        known = self._known.get(str(path))
        if known is not None and known[:-1] == state:
            return str(known[-1])
        digest = digest_of_file(path)
        self._known[str(path)] = [*state, digest]
        self._changed = True
        return digest


def model_files(folder: Path) -> Iterator[Path]:
    """The files of a folder that loading a model may read, in order of their names."""
    for path in sorted(folder.iterdir()):
        if path.is_dir() and path.name == "additional_chat_templates":
            yield from sorted(
                template for template in path.iterdir() if template.suffix == ".jinja"
            )
        elif (
            path.is_file()
            and path.suffix.lower() in (*WEIGHTS, *OTHERS)
            and not LEFT_OUT.match(path.name)
        ):
            yield path


def kind_of(name: str) -> str:
    """What a file of a checkpoint is about, by its name.

    Examples
    --------
    >>> kind_of("model-00001-of-00002.safetensors"), kind_of("preprocessor_config.json")
    ('weights', 'processor')
    """
    if name.startswith("adapter_"):
        return "adapter"
    if name.endswith((*WEIGHTS, ".index.json")):
        return "weights"
    if name.endswith(".py"):
        return "code"
    if "processor" in name:
        return "processor"
    if name.startswith(TOKENIZER) or name.endswith((".jinja", ".model", ".tiktoken", ".spm")):
        return "tokenizer"
    return "config" if name.endswith("config.json") else "other"


def digest_of_file(path: Path) -> str:
    """Hash of what a file holds; of a config, of what it says of the model."""
    if path.name in PLAIN:
        data = path.read_bytes()
        try:
            said = json.loads(data)
        except ValueError:
            return digest_of(data)
        return digest_of(json.dumps(_of_the_model(said), sort_keys=True).encode())
    import xxhash

    hasher = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            hasher.update(block)
    return hasher.hexdigest()


def digest_of(data: bytes) -> str:
    """Hash of bytes."""
    import xxhash

    return xxhash.xxh3_128_hexdigest(data)


def commit_of(repo: str) -> str | None:
    """Commit of a repo's main branch in the hub's cache here; None if it cannot be had.

    What is not cached is asked of the hub, as loading it will have to: else a first run would be
    bound to less than the next one.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(repo, "config.json")
        if config is None:
            config = hf_hub_download(repo, "config.json")
    except (OSError, ValueError, HFValidationError):
        return None  # loading it will say why
    return Path(config).parent.name if isinstance(config, str) else None


def _of_the_model(said: Any) -> Any:
    if isinstance(said, dict):
        return {
            key: _of_the_model(value) for key, value in said.items() if key not in OF_THE_WRITER
        }
    return [_of_the_model(part) for part in said] if isinstance(said, list) else said
