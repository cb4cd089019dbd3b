"""``lexvla api-key``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lexvla_search.api.keys import SCOPES, Scope, make_key, revoke_key
from lexvla_search.cli.arguments import JsonOptions, option
from lexvla_search.cli.console import UsageError, note, print_json


@dataclass(frozen=True)
class Options(JsonOptions):
    """Which key to make or to revoke."""

    keys: Path = option(
        "the file of keys; created if there is none", required=True, metavar="FILE", type=Path
    )
    scope: Scope | None = option("a write key may read too", choices=SCOPES)
    name: str | None = option("the key's name, in the file and in the log", metavar="N")
    revoke: str | None = option("remove this key instead", metavar="N")


def run(options: Options) -> int:
    """Make a key, or revoke one."""
    if options.revoke is not None:
        revoke_key(options.keys, options.revoke)
        if options.json:
            print_json({"revoked": options.revoke})
        else:
            print(f"revoked {options.revoke}")
        return 0
    if options.scope is None:
        raise UsageError("needs --scope read or --scope write, or --revoke NAME")
    secret, key = make_key(options.keys, options.scope, options.name)
    if options.json:
        print_json({"key": secret, "name": key.name, "scope": key.scope})
    else:
        print(secret)
        note(f"lexvla: {options.keys} keeps only its hash: it will not be shown again")
    return 0
