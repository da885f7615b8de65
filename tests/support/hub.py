"""A hub on loopback: serves folders under repo ids to an unmodified huggingface_hub."""

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlparse

COMMIT = "0" * 40


@contextmanager
def serve(
    repos: Mapping[str, Path], *, gated: Mapping[str, str] | None = None
) -> Iterator[tuple[str, list[str]]]:
    """Serve folders by repo id; yields the address and the list of what was asked for.

    ``gated``: repos that are given to one token only, as the hub does it: 401 without a token, 403
    with another; an unknown repo is 401 to who has none.
    """
    keys = gated or {}
    asked: list[str] = []

    class Hub(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            return

        def _answer(self, status: int, body: bytes, **headers: str) -> None:
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def _missing(self, what: str) -> None:
            self._answer(404, b"{}", X_Error_Code=f"{what}NotFound")

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = unquote(urlparse(self.path).path).strip("/")
            api = path.startswith("api/")
            path = path.removeprefix("api/").removeprefix("models/").removeprefix("datasets/")
            if "/" not in path:  # who asks, or whether it is there
                return self._missing("Repo")
            org, name, *rest = path.split("/")
            repo = f"{org}/{name}"
            folder, token = repos.get(repo), self.headers.get("Authorization")
            if repo in keys and token != f"Bearer {keys[repo]}":
                said = f"Access to model {repo} is restricted."
                status = 401 if token is None else 403
                return self._answer(status, b"{}", X_Error_Code="GatedRepo", X_Error_Message=said)
            if folder is None and gated is not None and token is None:
                return self._answer(401, b"{}", X_Error_Message="Invalid username or password.")
            if folder is None:
                return self._missing("Repo")
            if api:
                files = [
                    str(f.relative_to(folder)) for f in sorted(folder.rglob("*")) if f.is_file()
                ]
                under = "/".join(rest[2:])
                if rest[:1] == ["tree"] and under:
                    files = [f for f in files if f.startswith(f"{under}/")]
                    if not files:
                        return self._missing("Entry")
                about = {"id": f"{org}/{name}", "modelId": f"{org}/{name}", "sha": COMMIT}
                sizes = [
                    {"type": "file", "path": f, "size": (folder / f).stat().st_size, "oid": COMMIT}
                    for f in files
                ]
                more = {"siblings": [{"rfilename": f} for f in files], "private": False}
                found = sizes if rest[:1] == ["tree"] else {**about, **more, "tags": []}
                return self._answer(
                    200, json.dumps(found).encode(), Content_Type="application/json"
                )
            file = folder / "/".join(rest[2:])
            asked.append(f"{org}/{name}/{'/'.join(rest[2:])}")
            if not file.is_file():
                return self._missing("Entry")
            body = file.read_bytes()
            tag = hashlib.sha256(body).hexdigest()
            return self._answer(200, body, ETag=f'"{tag}"', X_Repo_Commit=COMMIT)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
