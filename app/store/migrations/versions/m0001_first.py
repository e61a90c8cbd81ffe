"""Files, batches with their slices and results, owners of work, replies kept for an Idempotency-Key."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

_BATCHES: list[sa.schema.SchemaItem] = [
    sa.Column("number", _NUMBER, autoincrement=True, nullable=False),
    sa.Column("id", sa.String(length=64), nullable=False),
    sa.Column("owner", sa.Text(), nullable=False),
    sa.Column("models", sa.JSON(), nullable=True),
    sa.Column("endpoint", sa.String(length=64), nullable=False),
    sa.Column("input_file_id", sa.String(length=64), nullable=False),
    sa.Column("completion_window", sa.String(length=16), nullable=False),
    sa.Column("status", sa.String(length=16), nullable=False),
    sa.Column("model", sa.Text(), nullable=True),
    sa.Column("errors", sa.JSON(), nullable=True),
    sa.Column("output_file_id", sa.String(length=64), nullable=True),
    sa.Column("error_file_id", sa.String(length=64), nullable=True),
    sa.Column("created_at", sa.BigInteger(), nullable=False),
    sa.Column("in_progress_at", sa.BigInteger(), nullable=True),
    sa.Column("expires_at", sa.BigInteger(), nullable=False),
    sa.Column("finalizing_at", sa.BigInteger(), nullable=True),
    sa.Column("completed_at", sa.BigInteger(), nullable=True),
    sa.Column("failed_at", sa.BigInteger(), nullable=True),
    sa.Column("expired_at", sa.BigInteger(), nullable=True),
    sa.Column("cancelling_at", sa.BigInteger(), nullable=True),
    sa.Column("cancelled_at", sa.BigInteger(), nullable=True),
    sa.Column("metadata", sa.JSON(), nullable=True),
    sa.Column("output_ttl", sa.Integer(), nullable=True),
    sa.Column("total", sa.Integer(), server_default="0", nullable=False),
    sa.Column("completed", sa.Integer(), server_default="0", nullable=False),
    sa.Column("failed", sa.Integer(), server_default="0", nullable=False),
    sa.Column("input_tokens", sa.BigInteger(), server_default="0", nullable=False),
    sa.Column("cached_tokens", sa.BigInteger(), server_default="0", nullable=False),
    sa.Column("output_tokens", sa.BigInteger(), server_default="0", nullable=False),
    sa.Column("reasoning_tokens", sa.BigInteger(), server_default="0", nullable=False),
    sa.Column("total_tokens", sa.BigInteger(), server_default="0", nullable=False),
    sa.Column("priority", sa.SmallInteger(), server_default="0", nullable=False),
    sa.Column("on_doubt", sa.String(length=8), nullable=False),
    sa.Column("dedupe", sa.Boolean(), nullable=False),
    sa.Column("pack_embeddings", sa.Boolean(), nullable=False),
    sa.Column("in_doubt", sa.Integer(), server_default="0", nullable=False),
    sa.Column("key", sa.LargeBinary(length=32), nullable=True),
    sa.Column("paused_code", sa.String(length=64), nullable=True),
    sa.Column("paused_reason", sa.Text(), nullable=True),
    sa.Column("paused_until", sa.Float(precision=53), nullable=True),
    sa.Column("ending", sa.String(length=16), nullable=True),
    sa.Column("runner", sa.String(length=64), nullable=True),
    sa.Column("cleared", sa.Boolean(), server_default=sa.false(), nullable=False),
    sa.PrimaryKeyConstraint("number"),
    sa.UniqueConstraint("id"),
]


def upgrade() -> None:
    _batches()
    _files()
    _owners()
    _replies()
    _results()
    _slices()


def _batches() -> None:
    op.create_table("batches", *_BATCHES, sqlite_autoincrement=True)
    op.create_index("batches_by_owner", "batches", ["owner", "number"], unique=False)
    op.create_index("batches_by_status", "batches", ["cleared", "status"], unique=False)
    op.create_index("batches_by_key", "batches", ["key"], unique=False)


def _files() -> None:
    op.create_table(
        "files",
        sa.Column("number", _NUMBER, autoincrement=True, nullable=False),
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("filename", sa.Text(), nullable=False),
        sa.Column("purpose", sa.String(length=32), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=True),
        sa.Column("deleted", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.PrimaryKeyConstraint("number"),
        sa.UniqueConstraint("id"),
        sqlite_autoincrement=True,
    )
    op.create_index("files_by_owner", "files", ["owner", "number"], unique=False)


def _owners() -> None:
    op.create_table(
        "owners",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("until", sa.Float(precision=53), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )


def _replies() -> None:
    op.create_table(
        "replies",
        sa.Column("key", sa.LargeBinary(length=32), nullable=False),
        sa.Column("request", sa.LargeBinary(length=32), nullable=False),
        sa.Column("owner", sa.String(length=64), nullable=True),
        sa.Column("status", sa.SmallInteger(), nullable=True),
        sa.Column("headers", sa.LargeBinary(), nullable=True),
        sa.Column("body", sa.LargeBinary(), nullable=True),
        sa.Column("size", sa.Integer(), server_default="0", nullable=False),
        sa.Column("expires_at", sa.Float(precision=53), nullable=True),
        sa.PrimaryKeyConstraint("key"),
    )
    op.create_index("replies_by_age", "replies", ["expires_at", "size"], unique=False)
    op.create_index("replies_by_owner", "replies", ["owner"], unique=False)


def _results() -> None:
    op.create_table(
        "results",
        sa.Column("batch", _NUMBER, autoincrement=False, nullable=False),
        sa.Column("position", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("ok", sa.Boolean(), nullable=False),
        sa.Column("at", sa.Float(precision=53), nullable=False),
        sa.Column("line", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("batch", "position"),
    )


def _slices() -> None:
    op.create_table(
        "slices",
        sa.Column("batch", _NUMBER, autoincrement=False, nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("start", sa.BigInteger(), nullable=False),
        sa.Column("stop", sa.BigInteger(), nullable=False),
        sa.Column("lines", sa.Integer(), nullable=False),
        sa.Column("owner", sa.String(length=64), nullable=True),
        sa.Column("sent", sa.LargeBinary(), nullable=False),
        sa.Column("done", sa.LargeBinary(), nullable=False),
        sa.Column("sent_count", sa.Integer(), server_default="0", nullable=False),
        sa.Column("done_count", sa.Integer(), server_default="0", nullable=False),
        sa.Column("finished", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("version", sa.Integer(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("batch", "number"),
    )
    op.create_index("slices_by_owner", "slices", ["owner"], unique=False)
    op.create_index("slices_to_do", "slices", ["batch", "finished", "number"], unique=False)
