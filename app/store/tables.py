"""Every table, in one place. What changes here needs a migration beside it (`migrations/versions`)."""

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
    false,
)

metadata = MetaData()
_Number = BigInteger().with_variant(Integer, "sqlite")  # SQLite counts up only what it calls INTEGER
_Seconds = Float(53)

# The statuses of a batch, those that end by themselves and those that are an end.
RUNNING = ("validating", "in_progress", "finalizing", "cancelling")
ENDED = ("failed", "completed", "expired", "cancelled")

# A process that holds work. What it holds is free again when its lease is over (on the database's clock).
owners = Table(
    "owners",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("until", _Seconds, nullable=False),
)

# `number` counts up, so that pages have an order; `deleted`: unseen, but a batch still reads it.
files = Table(
    "files",
    metadata,
    Column("number", _Number, primary_key=True, autoincrement=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("owner", Text, nullable=False),
    Column("filename", Text, nullable=False),
    Column("purpose", String(32), nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger),
    Column("deleted", Boolean, nullable=False, server_default=false()),
    Index("files_by_owner", "owner", "number"),
    sqlite_autoincrement=True,
)

# Beside OpenAI's fields: `ending`, the status to finish with; `runner`, who validates or finishes it (owners.id).
batches = Table(
    "batches",
    metadata,
    Column("number", _Number, primary_key=True, autoincrement=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("owner", Text, nullable=False),
    Column("models", JSON),  # those the owner's key may use; null: all
    Column("endpoint", String(64), nullable=False),
    Column("input_file_id", String(64), nullable=False),
    Column("completion_window", String(16), nullable=False),
    Column("status", String(16), nullable=False),
    Column("model", Text),
    Column("errors", JSON),
    Column("output_file_id", String(64)),
    Column("error_file_id", String(64)),
    Column("created_at", BigInteger, nullable=False),
    Column("in_progress_at", BigInteger),
    Column("expires_at", BigInteger, nullable=False),
    Column("finalizing_at", BigInteger),
    Column("completed_at", BigInteger),
    Column("failed_at", BigInteger),
    Column("expired_at", BigInteger),
    Column("cancelling_at", BigInteger),
    Column("cancelled_at", BigInteger),
    Column("metadata", JSON),
    Column("output_ttl", Integer),  # seconds
    Column("total", Integer, nullable=False, server_default="0"),
    Column("completed", Integer, nullable=False, server_default="0"),
    Column("failed", Integer, nullable=False, server_default="0"),
    Column("input_tokens", BigInteger, nullable=False, server_default="0"),
    Column("cached_tokens", BigInteger, nullable=False, server_default="0"),
    Column("output_tokens", BigInteger, nullable=False, server_default="0"),
    Column("reasoning_tokens", BigInteger, nullable=False, server_default="0"),
    Column("total_tokens", BigInteger, nullable=False, server_default="0"),
    Column("priority", SmallInteger, nullable=False, server_default="0"),
    Column("on_doubt", String(8), nullable=False),
    Column("dedupe", Boolean, nullable=False),
    Column("pack_embeddings", Boolean, nullable=False),
    Column("in_doubt", Integer, nullable=False, server_default="0"),
    Column("key", LargeBinary(32)),  # of the request that made it, if that had an Idempotency-Key
    Column("paused_code", String(64)),
    Column("paused_reason", Text),
    Column("paused_until", _Seconds),
    Column("ending", String(16)),
    Column("runner", String(64)),
    Column("cleared", Boolean, nullable=False, server_default=false()),  # of slices and results, after its end
    Index("batches_by_owner", "owner", "number"),
    Index("batches_by_status", "cleared", "status"),
    Index("batches_by_key", "key"),
    sqlite_autoincrement=True,
)

# A run of lines of a batch's input. `sent` and `done` are bitmaps over its lines; see wire/bits.py.
slices = Table(
    "slices",
    metadata,
    Column("batch", _Number, primary_key=True, autoincrement=False),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("start", BigInteger, nullable=False),  # bytes into the input file
    Column("stop", BigInteger, nullable=False),
    Column("lines", Integer, nullable=False),
    Column("owner", String(64)),
    Column("sent", LargeBinary, nullable=False),
    Column("done", LargeBinary, nullable=False),
    Column("sent_count", Integer, nullable=False, server_default="0"),
    Column("done_count", Integer, nullable=False, server_default="0"),
    Column("finished", Boolean, nullable=False, server_default=false()),
    Column("version", Integer, nullable=False, server_default="0"),  # of commits: one that is repeated is told by it
    Index("slices_to_do", "batch", "finished", "number"),
    Index("slices_by_owner", "owner"),
)

# Results in the order in which they were stored; gone once they stand in the output files.
results = Table(
    "results",
    metadata,
    Column("batch", _Number, primary_key=True, autoincrement=False),
    Column("position", Integer, primary_key=True, autoincrement=False),  # from 1, without gaps
    Column("ok", Boolean, nullable=False),
    Column("at", _Seconds, nullable=False),
    Column("line", LargeBinary, nullable=False),  # the output line's fields behind `id`
)

# Calls with an Idempotency-Key: running (`owner` set), or over (`body` set).
replies = Table(
    "replies",
    metadata,
    Column("key", LargeBinary(32), primary_key=True),
    Column("request", LargeBinary(32), nullable=False),
    Column("owner", String(64)),
    Column("status", SmallInteger),
    Column("headers", LargeBinary),
    Column("body", LargeBinary),
    Column("size", Integer, nullable=False, server_default="0"),
    Column("expires_at", _Seconds),
    Index("replies_by_age", "expires_at", "size"),
    Index("replies_by_owner", "owner"),
)

# Many streams of one process share a shard's log, so that a group commit writes few rows. A closed one takes no more.
shards = Table(
    "shards",
    metadata,
    Column("number", _Number, primary_key=True, autoincrement=True),
    Column("runner", String(64), nullable=False),  # owners.id
    Column("closed", Boolean, nullable=False, server_default=false()),
    Index("shards_by_runner", "closed", "runner"),
    sqlite_autoincrement=True,
)

# What a group commit adds to a shard: new events of several of its streams (store/stream_log.py).
stream_log = Table(
    "stream_log",
    metadata,
    Column("shard", _Number, primary_key=True, autoincrement=False),
    Column("position", _Number, primary_key=True, autoincrement=False),
    Column("size", Integer, nullable=False),
    Column("data", LargeBinary, nullable=False),
    Index("stream_log_by_size", "size"),  # adds them up without reading the data
)

# A stream that outlives its readers. Its events stand in its shard's log from `start` to `stop`, its end stands here.
streams = Table(
    "streams",
    metadata,
    Column("number", _Number, primary_key=True, autoincrement=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("owner", Text, nullable=False),
    Column("holder", String(64), nullable=False),  # the browser token that made it; empty: the key itself
    Column("token", LargeBinary(32), nullable=False),  # SHA-256 of what opens this stream only
    Column("url", String(64), nullable=False),
    Column("model", Text),
    Column("shard", _Number, nullable=False),
    Column("start", _Number, nullable=False),
    Column("stop", _Number),
    Column("status", String(16), nullable=False),
    Column("cancelling", Boolean, nullable=False, server_default=false()),
    Column("events", Integer),  # how many; null: it goes on, or its server died
    Column("error", Text),  # the envelope it ended with
    Column("timing", JSON),
    Column("created_at", _Seconds, nullable=False),
    Column("ended_at", _Seconds),
    Column("expires_at", _Seconds, nullable=False),
    Index("streams_by_shard", "shard", "start"),
    Index("streams_by_age", "status", "expires_at"),
    sqlite_autoincrement=True,
)

# Browser tokens with a number of requests, until they expire.
browser_tokens = Table(
    "browser_tokens",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("remaining", Integer, nullable=False),
    Column("expires_at", _Seconds, nullable=False),
    Index("browser_tokens_by_age", "expires_at"),
)

# What all replicas must know alike, drawn at random by the first one.
secrets = Table(
    "secrets",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("value", LargeBinary, nullable=False),
)
