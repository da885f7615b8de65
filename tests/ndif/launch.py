"""Start a hub and an NDIF server on loopback, run the tests of this folder, and stop both.

python tests/ndif/launch.py [arguments for pytest]
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE.parent / "support"))

import tiny  # noqa: E402
from hub import serve  # noqa: E402

from twohop.flags.assemble import pair_folder  # noqa: E402
from twohop.flags.backbone import backbone_folder  # noqa: E402
from twohop.micro import MicroKey, micro_folder  # noqa: E402

MODELS = ("llava", "llama", "mllama")
MICRO: tuple[MicroKey, ...] = ("micro-naming", "micro-backbone")


def free_port() -> int:
    """A port nobody listens on now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def main(arguments: list[str]) -> int:
    """Run pytest against a server of our own; return its exit status."""
    with tempfile.TemporaryDirectory(prefix="ndif-tests-") as made:
        folder = Path(made)
        repos = {f"tiny/{name}": tiny.save(name, folder / "hub" / name) for name in MODELS}
        lost = tiny.save("llama", folder / "hub" / "weightless")
        for file in lost.glob("*.safetensors*"):
            file.unlink()  # no server can load it
        repos["tiny/weightless"] = lost
        repos["tiny/hurried"] = repos["tiny/llama"]  # deployed with a time limit
        repos |= {f"twohop/{key}": micro_folder(key) for key in MICRO}
        repos["twohop/flags-naming"] = pair_folder("flags-naming")
        repos["twohop/flags-backbone"] = backbone_folder()
        with serve(repos) as (hub, _):
            port = free_port()
            base = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "NDIF_"))}
            base |= {"HF_ENDPOINT": hub, "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1"}
            log = folder / "server.log"
            command = ["examples/ndif/serve.py", "--cpu", "--port", str(port), "--timeout", "600"]
            with log.open("wb") as out:
                server = subprocess.Popen(
                    [sys.executable, *command, "--folder", str(folder / "server")],
                    env={**base, "HF_HOME": str(folder / "server-cache")},
                    stdout=subprocess.PIPE,
                    stderr=out,
                    text=True,
                    cwd=ROOT,
                )
            assert server.stdout is not None
            try:
                if not server.stdout.readline().startswith("ready"):
                    server.wait(60)
                    sys.stderr.write(log.read_text())
                    return 1
                tests = subprocess.run(
                    [sys.executable, "-m", "pytest", str(HERE), *arguments],
                    env={
                        **base,
                        "HF_HOME": str(folder / "client-cache"),
                        "NDIF_HOST": f"http://127.0.0.1:{port}",
                        "NDIF_TESTS": str(folder / "server"),
                        "OMP_NUM_THREADS": "1",
                    },
                    cwd=ROOT,
                )
                return tests.returncode
            finally:
                server.send_signal(signal.SIGTERM)
                server.wait(60)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
