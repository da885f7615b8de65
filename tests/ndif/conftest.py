"""A real NDIF server, started by ``make test-ndif``; without one, nothing here is collected."""

import os

import pytest
from nnsight import CONFIG
from nnsight.schema.request import RequestModel

if not os.environ.get("NDIF_TESTS"):
    collect_ignore_glob = ["test_*.py"]

CONFIG.APP.REMOTE_LOGGING = False


class Untrusted(RequestModel):
    """A request that asks for the sandbox, as a server does for keys it does not trust."""

    trusted: bool = False


@pytest.fixture(params=["trusted", "sandboxed"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a test on both of the ways in which a server runs requests."""

    def metadata(self: RequestModel) -> str:
        return Untrusted(**self.model_dump()).model_dump_json()

    if request.param == "sandboxed":
        monkeypatch.setattr(RequestModel, "metadata", metadata)
    return request.param
