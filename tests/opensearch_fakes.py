"""What tests of the OpenSearch engine need: a server."""

from __future__ import annotations

import sys
from pathlib import Path

from lexvla_indexer.opensearch.product import OPENSEARCH
from server_fakes import SharedServer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

import opensearch_server

_SERVER = SharedServer(OPENSEARCH, "opensearchpy", opensearch_server)
missing, url, stop = _SERVER.missing, _SERVER.url, _SERVER.stop
address, cleaned = _SERVER.address, _SERVER.cleaned
