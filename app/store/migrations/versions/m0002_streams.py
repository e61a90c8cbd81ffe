"""Resumable streams with their log, and tokens for browsers."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_SECONDS = sa.Float(precision=53)


def upgrade() -> None:
    _shards()
    _streams()
    _browser_tokens()


def _shards() -> None:
    op.create_table(
        "shards",
        sa.Column("number", _NUMBER, autoincrement=True, nullable=False),
        sa.Column("runner", sa.String(length=64), nullable=False),
        sa.Column("closed", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.PrimaryKeyConstraint("number"),
        sqlite_autoincrement=True,
    )
    op.create_index("shards_by_runner", "shards", ["closed", "runner"], unique=False)
    op.create_table(
        "stream_log",
        sa.Column("shard", _NUMBER, autoincrement=False, nullable=False),
        sa.Column("position", _NUMBER, autoincrement=False, nullable=False),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("shard", "position"),
    )
    op.create_index("stream_log_by_size", "stream_log", ["size"], unique=False)


def _streams() -> None:
    op.create_table(
        "streams",
        sa.Column("number", _NUMBER, autoincrement=True, nullable=False),
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("holder", sa.String(length=64), nullable=False),
        sa.Column("token", sa.LargeBinary(length=32), nullable=False),
        sa.Column("url", sa.String(length=64), nullable=False),
        sa.Column("model", sa.Text(), nullable=True),
        sa.Column("shard", _NUMBER, nullable=False),
        sa.Column("start", _NUMBER, nullable=False),
        sa.Column("stop", _NUMBER, nullable=True),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("cancelling", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("events", sa.Integer(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("timing", sa.JSON(), nullable=True),
        sa.Column("created_at", _SECONDS, nullable=False),
        sa.Column("ended_at", _SECONDS, nullable=True),
        sa.Column("expires_at", _SECONDS, nullable=False),
        sa.PrimaryKeyConstraint("number"),
        sa.UniqueConstraint("id"),
        sqlite_autoincrement=True,
    )
    op.create_index("streams_by_shard", "streams", ["shard", "start"], unique=False)
    op.create_index("streams_by_age", "streams", ["status", "expires_at"], unique=False)


def _browser_tokens() -> None:
    op.create_table(
        "browser_tokens",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("remaining", sa.Integer(), nullable=False),
        sa.Column("expires_at", _SECONDS, nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("browser_tokens_by_age", "browser_tokens", ["expires_at"], unique=False)
    op.create_table(
        "secrets",
        sa.Column("name", sa.String(length=32), nullable=False),
        sa.Column("value", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
