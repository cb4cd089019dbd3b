"""Which certificates a client trusts, by the environment, and what its TLS errors mean."""

from __future__ import annotations

import os
from typing import Any

from lexvla.errors import EngineUnavailableError
from lexvla_indexer.elastic.product import Place
from lexvla_indexer.elastic.refusals import innermost

__all__ = ["no_tls", "trusted"]


def trusted(place: Place, start: str) -> dict[str, Any]:
    """Return a client's settings from the variables with this start of a name; see `connect`."""
    names = {"ca_certs": "CA_CERTS", "ssl_assert_fingerprint": "CERT_FINGERPRINT"}
    if not place.nodes[0].startswith("https:"):
        return {}
    found = {key: os.environ.get(f"{start}_{name}") for key, name in names.items()}
    return {key: value for key, value in found.items() if value}


def no_tls(place: Place, start: str, error: Exception) -> EngineUnavailableError:
    """Return the error that says what to do about a client's TLS error."""
    cause, remedy = innermost(error), "does the server speak plain http?"
    if "certificate" in cause.lower() or "fingerprint" in cause.lower():
        remedy = f"name its authority by {start}_CA_CERTS, or set {start}_CERT_FINGERPRINT"
    elif "No such file" in cause:
        remedy = f"{start}_CA_CERTS must name a file of certificates"
    return EngineUnavailableError(f"{place}: no TLS: {cause}; {remedy}")
