# -*- test-case-name: tests.api.test_reload -*-
"""C{POST /api/v1/admin/reload}: read the settings again, all of them or nothing."""

from __future__ import annotations

import msgspec

from helix_revdial.api.services import Services
from helix_revdial.config import ConfigError
from helix_revdial.http.operations import Call, Operation
from helix_revdial.http.problem import Problem
from helix_revdial.reload import Unreloadable


class ReloadAnswer(msgspec.Struct):
    """
    The settings that are others now, such as C{tunnel.grace_period}.
    Certificates were read again whether or not they are among them.
    """

    changed: list[str]


def operations(services: Services) -> list[Operation]:
    """The one row."""

    async def reload(call: Call) -> ReloadAnswer:
        principal = call.principal
        try:
            done = await services.reload(principal.tokenId)
        except ConfigError as error:
            raise Problem(400, f"Nothing was changed. {error}", code="bad-settings") from None
        except Unreloadable as error:
            raise Problem(409, f"Nothing was changed. {error}", code="needs-restart") from None
        services.audit.record(
            "reload",
            subject=principal.tokenId,
            tenant=principal.tenant,
            changed=list(done.changed),
            peer=call.request.clientHost,
        )
        return ReloadAnswer(list(done.changed))

    return [
        Operation(
            name="reload",
            method="POST",
            path="/api/v1/admin/reload",
            run=reload,
            access="server",
            response=ReloadAnswer,
            errors=(400, 401, 403, 409),
            summary="Reload the server's settings and certificates: all of them or nothing.",
            tags=("admin",),
        )
    ]
