"""A stand-in for a server: a process that runs requests, and cannot import our packages.

    python tests/support/worker.py NAME...  # families whose tiny models it holds, or folders

Reads requests from stdin and writes what they saved to stdout, each behind its length. A request
begins with the model's name. The real server, which ``make test-ndif`` starts, does the same with
more around it.
"""

import io
import sys
import traceback
from pathlib import Path
from typing import IO

MISSING = ("interventions", "twohop", "xarray", "matplotlib")


class Missing:
    """Makes ``import`` fail for what a server does not have."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        """Refuse, unless something before us has found it."""
        if name.split(".")[0] in MISSING:
            raise ModuleNotFoundError(f"No module named {name!r} (not on a server)", name=name)


def read(stream: IO[bytes]) -> bytes:
    """Read one message; empty at the end."""
    size = int.from_bytes(stream.read(8), "big")
    return stream.read(size)


def write(stream: IO[bytes], message: bytes) -> None:
    """Write one message."""
    stream.write(len(message).to_bytes(8, "big") + message)
    stream.flush()


def main(names: list[str]) -> None:
    """Serve until stdin ends."""
    out = sys.stdout.buffer
    sys.stdout = sys.stderr
    import tiny
    import torch
    from nnsight.modeling.transformers import TransformersModel
    from nnsight.schema.request import RequestModel
    from nnsight.tracing.tracer import _saves, dec, inc

    from interventions import load

    torch.set_num_threads(1)
    models = {}
    for name in names:
        if Path(name).is_dir():
            models[name] = load(name).nn
            continue
        module, given = tiny.build(name, attn_implementation="sdpa")
        sees = name in tiny.VLMS
        models[name] = TransformersModel(
            module.requires_grad_(False),
            task="image-text-to-text" if sees else "text-generation",
            **{"processor" if sees else "tokenizer": given},
        )
    for name in [name for name in sys.modules if name.split(".")[0] in MISSING]:
        del sys.modules[name]  # needed to build the models
    sys.meta_path.insert(0, Missing())  # type: ignore[arg-type]
    while message := read(sys.stdin.buffer):
        name, blob = message.split(b"\n", 1)
        model = models[name.decode()]
        made = io.BytesIO()
        try:
            persistent = model._remoteable_persistent_objects()
            tracer = RequestModel.deserialize(blob, persistent, compress=True)
            inc()
            try:
                tracer.execute(tracer.info.code)
                scope = tracer.info.frame.f_locals
                saved = {key: one for key, one in scope.items() if id(one) in _saves()}
            finally:
                dec()
            torch.save(saved, made)
        except Exception:
            made = io.BytesIO()
            torch.save({"error": traceback.format_exc()}, made)
        write(out, made.getvalue())


if __name__ == "__main__":
    main(sys.argv[1:])
