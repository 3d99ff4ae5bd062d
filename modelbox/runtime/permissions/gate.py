"""The gate: finds out who calls, and lets pass what the table of permissions allows.

Owns the answers to who may not: without credentials that are good, `NotAuthenticated`; what may not be read, as if it
were not there; what may be read and no more, `AuthError` that names the role that is lacking. Where access control is
off, everybody is let pass and nothing is looked at.

Invariants: nothing of a request is carried out before all that it needs is granted; what cannot be found is not there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import replace
from typing import Any, Protocol

from modelbox.access import Caller, Permission, Role
from modelbox.errors import ApprovalNeeded, AuthError, ConflictError, ModelBoxError, NotAuthenticated, NotFoundError
from modelbox.refs import shown
from modelbox.runtime.absence import hide
from modelbox.runtime.caller import CALLER, RENEWAL, REQUEST_ID
from modelbox.runtime.permissions.places import Places
from modelbox.runtime.permissions.rules import Need, Rule
from modelbox.runtime.permissions.targets import SERVER, Place, Target
from modelbox.runtime.services.access import AccessService, Credentials
from modelbox.runtime.services.denials import AUTHENTICATION

__all__ = ("DenialLog", "Gate", "reads_all", "without_hidden")

_ROLES = dict(zip(Permission, Role, strict=True))
_PERMISSIONS = {role.value: permission.value for permission, role in _ROLES.items()}
_NOBODY = Caller(name="")
"""Until it is known who calls: may do nothing."""
_NOWHERE = ("", "")
_CREDENTIALS: ContextVar[Credentials] = ContextVar("modelbox_credentials")


class DenialLog(Protocol):
    """Keeps what callers were refused; `modelbox.runtime.services.denials` is one."""

    def note(
        self,
        caller: Caller,
        *,
        method: str,
        permission: str,
        namespace: str = "",
        object: str = "",
        request_id: str = "",
    ) -> None:
        """Counts a call that was refused. Never fails, and never waits."""


class Gate:
    """What every call passes.

    Args:
        access: Knows the callers.
        places: Knows where things are.
        denials: Told of what callers may not, whatever they are answered.
    """

    def __init__(self, access: AccessService, places: Places, *, denials: DenialLog | None = None) -> None:
        self._access = access
        self._places = places
        self._denials = denials

    @property
    def on(self) -> bool:
        """Whether there is access control."""
        return self._access.on

    # -- who -------------------------------------------------------------------------------------------------------

    def know(
        self, authorization: Sequence[str], *, declared: str, address: str, certificate_names: tuple[str, ...]
    ) -> None:
        """Keeps what came with a call in its context, for `enter`.

        Args:
            authorization: The headers of that name.
            declared: Who the caller says to be.
            address: Where the call comes from.
            certificate_names: Of the caller's certificate.
        """
        credentials = self._access.credentials(
            # Two of them are none: who knows which one others went by?
            authorization[0] if len(authorization) == 1 else ", ".join(authorization),
            declared=declared,
            address=address,
            certificate_names=certificate_names,
        )
        _CREDENTIALS.set(credentials)
        CALLER.set(_NOBODY if self._access.on else self._access.caller(credentials))

    async def enter(self, call: str, *, lasting: bool = False) -> Caller:
        """Finds out who calls; from here on `current_caller` says so.

        Args:
            call: The method or route.
            lasting: The call may go on for long, and will ask `current_renewal` whether it still may.

        Raises:
            NotAuthenticated: Nobody, as far as the credentials go.
            ServerBusy: Too many bad ones came from the address.
        """
        credentials = _CREDENTIALS.get()
        try:
            caller = await self._access.admit(credentials)
        except NotAuthenticated:
            self._note(replace(_NOBODY, address=credentials.address), call, AUTHENTICATION)
            raise
        CALLER.set(caller)
        if lasting:
            RENEWAL.set(lambda: self._access.renewed(caller))
        return caller

    def note_refusal(self, call: str, caller: Caller, error: AuthError) -> None:
        """Keeps what the services behind the gate refuse, who know more than the table: which alias is protected.

        Args:
            call: The method or route.
            caller: Who made it.
            error: What they said.
        """
        # What waits for a second person was not refused.
        if isinstance(error, ApprovalNeeded):
            return
        namespace = str(error.fields.get("namespace", ""))
        permission = _PERMISSIONS.get(str(error.fields.get("role", "")), "")
        name = str(error.fields.get("name", "")) or namespace
        self._note(caller, call, permission, namespace, name)

    def _note(self, caller: Caller, call: str, permission: str, namespace: str = "", name: str = "") -> None:
        if self._denials is not None:
            self._denials.note(
                caller,
                method=call,
                permission=permission,
                namespace=namespace,
                object=name,
                request_id=REQUEST_ID.get(),
            )

    # -- what ------------------------------------------------------------------------------------------------------

    async def check(self, call: str, rule: Rule, caller: Caller, source: Any, *, fresh: bool = True) -> None:
        """Lets a call pass, or not.

        Args:
            call: The method or route, for errors.
            rule: Its row.
            caller: Who makes it.
            source: Its message, or `Asked`.
            fresh: Also that ids for what is to be made are nothing's that the caller may not see. Without it, see
                `check_made`.

        Raises:
            NotFoundError: Something is not there, or may not be read.
            AuthError: Something may be read, and not more.
            InvalidError: Something is named by no name.
        """
        pending = list(self.pending(rule, caller, source))
        made = list(rule.fresh.find(source)) if fresh and rule.fresh is not None and not reads_all(caller) else []
        ids = [target.text for _, target in pending if target.place is None] + [target.text for target in made]
        found = await self._places.find(ids) if ids else {}
        for need, target in pending:
            self.judge(call, caller, need, target, target.place or found.get(target.text))
        for target in made:
            self.judge_fresh(caller, target, found.get(target.text))

    def pending(self, rule: Rule, caller: Caller, source: Any) -> Iterator[tuple[Need, Target]]:
        """What has to be judged one by one, as the caller may not do it everywhere."""
        for need in rule.needs:
            if not caller.may(need.permission):
                for target in need.on.find(source):
                    yield need, target

    def passes_at_once(self, rule: Rule, source: Any) -> bool:
        """Whether a call passes that needs nothing looked up; one that does not may pass `check` all the same."""
        try:
            caller = self._access.caller(_CREDENTIALS.get())
        except ModelBoxError:
            return False
        for need in rule.needs:
            if not caller.may(need.permission):
                for _, text, place in need.on.find(source):
                    namespace, model = place or self._places.known(text) or _NOWHERE
                    if not namespace or not caller.may(need.permission, namespace, model):
                        return False
        return True

    def settles(self, rule: Rule, caller: Caller) -> bool:
        """Whether a call passes whatever it is about."""
        return all(caller.may(need.permission) for need in rule.needs) and (rule.fresh is None or reads_all(caller))

    def judge(self, call: str, caller: Caller, need: Need, target: Target, place: Place | None) -> None:
        """Lets pass what a caller may do with something.

        Args:
            call: For errors.
            caller: Who.
            need: What is to be done.
            target: The thing.
            place: Where it is; None if it is nowhere.

        Raises:
            NotFoundError: See `check`.
            AuthError: The same.
        """
        if place is None:
            raise _hidden(target)
        if caller.may(need.permission, *place):
            return
        by_name = target.what == "namespace"
        if need.listing and by_name and caller.scope.shows_namespace(place.namespace):
            return
        if need.somewhere and any(
            grant.namespace == place.namespace and grant.role.allows(need.permission) for grant in caller.grants
        ):
            return
        self._note(caller, call, need.permission.value, place.namespace, target.text)
        if (
            place == SERVER
            or (target.place is not None and target.what in need.creates)
            or caller.may(Permission.READ, *place)
            or (by_name and caller.scope.shows_namespace(place.namespace))
        ):
            raise _refused(call, need.permission, place)
        raise _hidden(target)

    def judge_fresh(self, caller: Caller, target: Target, place: Place | None) -> None:
        """Refuses an id for something new that is that of something which the caller may not see.

        That it is taken cannot be hidden, as no answer but the one of a free id would do.
        """
        if place is not None and not caller.may(Permission.READ, *place):
            raise _hidden(target)

    async def check_made(self, rule: Rule, caller: Caller, answer: Any) -> None:
        """Keeps back an answer that holds something else than what was to be made; see `Rule.fresh`."""
        if rule.made is None:
            return
        for uid, namespace in rule.made(answer):
            if caller.may(Permission.READ, namespace):
                self._places.learn(uid, Place(namespace))
            else:
                target = Target("object", uid, None)
                self.judge_fresh(caller, target, (await self._places.find([uid])).get(uid, Place(namespace)))

    async def find(self, ids: Sequence[str]) -> dict[str, Place]:
        """Where things are, by their ids; those that are not there are left out."""
        return await self._places.find(ids)


def reads_all(caller: Caller) -> bool:
    """Whether nothing is hidden from a caller."""
    return caller.may(Permission.READ)


def without_hidden(error: ModelBoxError, caller: Caller) -> ModelBoxError:
    """An error as a caller may read it: what there is instead, or in the way, only if it is for them to see."""
    error = hide(error, caller.scope)
    current = error.fields.get("current")
    if isinstance(error, ConflictError) and isinstance(current, dict) and "namespace" in current:
        namespace, model = str(current["namespace"]), str(current.get("model", ""))
        if not caller.may(Permission.READ, namespace, model):
            return type(error)(error.message, **{**error.fields, "current": None})
    return error


def _hidden(target: Target) -> NotFoundError:
    return NotFoundError(
        f"no {target.what} {shown(target.text)}: it is not there, or not for you to see",
        what=target.what,
        name=target.text,
    )


def _refused(call: str, permission: Permission, place: Place) -> AuthError:
    role = _ROLES[permission]
    where = "everywhere" if place == SERVER else f"of {place}" if place.model else f"in {place}"
    return AuthError(
        f"{call} needs the role {role} {where}: ask an admin for it",
        role=role.value,
        permission=permission.value,
        namespace=place.namespace,
        model=place.model,
    )
