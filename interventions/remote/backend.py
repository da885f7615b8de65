"""nnsight's remote backend, with our packages packed in and errors that say what to do."""

from typing import Any

from nnsight.intervention.backends import remote as nnsight_remote
from nnsight.intervention.serialization import dumps, reduce_block
from nnsight.ndif import pull_env

from interventions.errors import JobError, RemoteError
from interventions.remote.package import by_reference, with_luggage


class Backend(nnsight_remote.RemoteBackend):
    """Runs a trace or a session on an NDIF server.

    Attributes
    ----------
    request_bytes : int
        Size of the last request's payload, as sent.
    """

    request_bytes = 0

    def _serialize(self, tracer: Any) -> bytes:
        pull_env()  # a user's own modules travel by value
        frame = tracer.info.frame
        block = reduce_block(tracer.node, frame.f_globals, dict(frame.f_locals))
        blob = with_luggage(by_reference(lambda: dumps((tracer, block))))
        if self.compress:
            import zstandard

            blob = zstandard.ZstdCompressor(level=3).compress(blob)
        self.request_bytes = len(blob)
        self._log(f"request: {len(blob):,} bytes")
        return blob

    def __call__(self, tracer: Any = None) -> Any:
        """Send the request and wait, or only send it (``blocking=False``)."""
        try:
            return super().__call__(tracer)
        except nnsight_remote.RemoteError as error:
            raise self.explained(error) from None
        except OSError as error:
            raise RemoteError(
                f"{self.host} cannot be reached: {self.hidden(str(error))}. Check the address "
                "(remote=, or NDIF_HOST) and that the server runs."
            ) from None

    def hidden(self, text: str) -> str:
        """Return a text without the key."""
        return text.replace(self.api_key, "<key>") if self.api_key else text

    def explained(self, error: Exception) -> RemoteError:
        """Turn nnsight's error into one of ours."""
        text = self.hidden(str(error))
        if text.startswith("Failed to send request"):
            return RemoteError(f"{self.host} did not take the request: {text}")
        return JobError(f"the request failed on {self.host}:\n{text}")
