"""Accounts, tokens and grants; who made a change and from where; rules of namespaces; signatures of versions.

Each part has its own pair of functions below.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from modelbox.runtime.store.schema import LongText
from modelbox.runtime.store.undoing import drop_columns, drop_indexes, drop_tables

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_CALLER = ("token_id", "address", "request_id")

_Id = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


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
    for name in _CALLER:
        column = sa.Column(name, sa.String(length=64), nullable=False, server_default=sa.text("''"))
        op.add_column("feed_changes", column)
    op.create_index(op.f("ix_feed_changes_object_kind_rev"), "feed_changes", ["object", "kind", "rev"])
    # Empty: what readers of the feed do not get is gone, as it was before.
    op.add_column("feed_head", sa.Column("audit_rev", sa.BigInteger(), nullable=True))
    op.add_column("feed_head", sa.Column("audit_chain", sa.LargeBinary(length=32), nullable=True))


def _drop_audit() -> None:
    there = {column["name"] for column in sa.inspect(op.get_bind()).get_columns("feed_changes")}
    if there.issuperset(_CALLER):
        _forget_what_names_callers()
    drop_columns("feed_head", "audit_rev", "audit_chain")
    drop_indexes("feed_changes", "ix_feed_changes_object_kind_rev")
    drop_columns("feed_changes", *_CALLER)


def _forget_what_names_callers() -> None:
    # Older releases take it that nothing is there up to `compact_rev`, and could not verify changes without callers.
    conn = op.get_bind()
    named = sa.text("SELECT max(rev) FROM feed_changes WHERE token_id <> '' OR address <> '' OR request_id <> ''")
    compact_rev = conn.execute(sa.text("SELECT compact_rev FROM feed_head WHERE id = 1")).scalar() or 0
    upto = conn.execute(named).scalar() or 0
    if upto > compact_rev:
        conn.execute(
            sa.text(
                "UPDATE feed_head SET compact_rev = :upto, compact_chain ="
                " (SELECT chain FROM feed_changes WHERE rev = :upto AND idx = 0) WHERE id = 1"
            ),
            {"upto": upto},
        )
    conn.execute(sa.text("DELETE FROM feed_changes WHERE rev <= :upto"), {"upto": max(upto, compact_rev)})


def _add_rules() -> None:
    op.create_table(
        "rules",
        sa.Column("scope", sa.String(length=160), nullable=False),
        sa.Column("alias", sa.String(length=64), nullable=False),
        sa.Column("labels", LongText(), nullable=False),
        sa.Column("metadata", LongText(), nullable=False),
        sa.Column("owner", sa.Boolean(), nullable=False),
        sa.Column("description", sa.Boolean(), nullable=False),
        sa.Column("dataset", sa.Boolean(), nullable=False),
        sa.Column("signed", sa.Boolean(), nullable=False),
        sa.Column("updated_at_us", sa.BigInteger(), nullable=False),
        sa.Column("updated_by", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("scope", "alias", name=op.f("pk_rules")),
    )
    op.create_table(
        "alias_protections",
        sa.Column("scope", sa.String(length=160), nullable=False),
        sa.Column("alias", sa.String(length=64), nullable=False),
        sa.Column("approval", sa.Boolean(), nullable=False),
        sa.Column("updated_at_us", sa.BigInteger(), nullable=False),
        sa.Column("updated_by", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("scope", "alias", name=op.f("pk_alias_protections")),
    )
    number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table(
        "alias_requests",
        sa.Column("id", number, autoincrement=True, nullable=False),
        sa.Column("uid", sa.String(length=40), nullable=False),
        sa.Column("model_id", number, nullable=False),
        sa.Column("alias", sa.String(length=64), nullable=False),
        sa.Column("from_version", sa.BigInteger(), nullable=True),
        sa.Column("to_version", sa.BigInteger(), nullable=True),
        sa.Column("from_mod_rev", sa.BigInteger(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("requested_by", sa.Text(), nullable=False),
        sa.Column("requested_at_us", sa.BigInteger(), nullable=False),
        sa.Column("expires_at_us", sa.BigInteger(), nullable=False),
        sa.Column("decided_by", sa.Text(), nullable=False),
        sa.Column("decided_at_us", sa.BigInteger(), nullable=True),
        sa.Column("comment", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name=op.f("fk_alias_requests_model_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_alias_requests")),
        sa.UniqueConstraint("uid", name=op.f("uq_alias_requests_uid")),
    )
    op.create_index(op.f("ix_alias_requests_model_id_alias"), "alias_requests", ["model_id", "alias"])


def _drop_rules() -> None:
    drop_tables("alias_requests", "alias_protections", "rules")


def _add_signatures() -> None:
    op.add_column("versions", sa.Column("bundle", LongText(), nullable=True))


def _drop_signatures() -> None:
    drop_columns("versions", "bundle")
