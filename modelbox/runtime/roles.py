"""What a server does of what there is to do: its role.

Servers of role ``blobs`` send and take bytes, so that these cannot hold up anything else; servers of role ``control``
do all the rest; those of role ``all`` do both. Every call and route is refused by name here or nowhere; health and what
a client asks first are for all.
"""

from __future__ import annotations

from modelbox.errors import InvalidError, ServerBusy

__all__ = ("ROLES", "RoleRules")

ROLES = ("all", "control", "blobs")

_BYTES_CALLS = frozenset(["modelbox.v1.ArtifactService/Upload", "modelbox.v1.ArtifactService/Download"])
_BYTES_ROUTES = frozenset(
    [
        "PATCH /api/v1/uploads/{id}",
        "GET /api/v1/models/{ns}/{model}/versions/{selector}/files/{path}",
        "GET /api/v1/artifacts/{id}/files/{path}",
    ]
)
_WITH_BYTES_CALLS = _BYTES_CALLS | {
    "modelbox.v1.ArtifactService/BeginUpload",
    "modelbox.v1.ArtifactService/BeginDownload",
    "modelbox.v1.ServerService/GetServerInfo",
    "modelbox.v1.ServerService/ListMembers",
}
_WITH_BYTES_ROUTES = _BYTES_ROUTES | {
    "POST /api/v1/uploads",
    "GET /api/v1/uploads/{id}",
    "POST /api/v1/uploads/{id}/urls",
    "GET /api/v1/server",
    "GET /api/v1/members",
    "GET /healthz",
    "GET /readyz",
}


class RoleRules:
    """What a server of a role refuses.

    Args:
        role: One of `ROLES`.
    """

    def __init__(self, role: str) -> None:
        self.role = role

    def refuses_call(self, name: str) -> bool:
        """Whether a method of gRPC, as ``package.Service/Method``, is for servers of another role."""
        if self.role == "control":
            return name in _BYTES_CALLS
        return self.role == "blobs" and name.startswith("modelbox.") and name not in _WITH_BYTES_CALLS

    def refuses_route(self, route: str) -> bool:
        """Whether a route of HTTP, as ``METHOD /path/{part}``, is for servers of another role; HEAD goes as GET."""
        if route.startswith("HEAD "):
            route = f"GET {route[5:]}"
        if self.role == "control":
            return route in _BYTES_ROUTES
        return self.role == "blobs" and route != "unknown" and route not in _WITH_BYTES_ROUTES

    def refusal(self, what: str, *, bytes_address: str = "") -> InvalidError | ServerBusy:
        """Why ``what`` is refused, and where to go instead."""
        if self.role == "blobs":
            return InvalidError(
                f"this server has role blobs and does not answer {what}: ask one of role control or all"
            )
        if not bytes_address:
            return ServerBusy("no server with bytes is there at the moment: try again", retry_after_s=1.0)
        return InvalidError(
            f"this server has role control and does not answer {what}: bytes are at {bytes_address}",
            bytes_address=bytes_address,
        )
