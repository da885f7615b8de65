"""NDIF's API with its check of keys on, and the keys in a file in place of Postgres.

``serve.py --keys FILE`` runs it. FILE is JSON: each key, a UUID, to a list of tags. Requests of a
key that is ``trusted`` run beside the weights, those of another in a process of their own.
"""

import json
import os
from pathlib import Path

from ndif.common.providers.postgres import PostgresProvider

KEYS = json.loads(Path(os.environ["NDIF_KEYS_FILE"]).read_text())


async def fetch(_query, key):
    """Rows as the server's own query gives them: one per tag, and none of an unknown key."""
    if str(key) not in KEYS:
        return []
    tags = KEYS[str(key)] or [None]
    return [{"user_id": "0", "email": None, "user_tag": tag} for tag in tags]


PostgresProvider.url = "in a file"  # without one, the server checks nothing
PostgresProvider.fetch = fetch

from ndif.services.api.app import app  # noqa: E402, F401 - what the server runs
