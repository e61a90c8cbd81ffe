"""The schema's history. `upgrade` brings a database of any age to the present, at every start."""

from pathlib import Path

from sqlalchemy import Connection, inspect, text

from app.errors import StorageError

HEAD = "0002"
_LOCK = 0x51_1C_E6_A7  # any number, as long as every replica takes the same


def upgrade(connection: Connection) -> None:
    """Runs the migrations that are missing. Replicas that start together take turns.

    Raises: StorageError: A newer version has been here.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
    found = _version(connection)
    if found == HEAD:
        return
    if found is not None and found > HEAD:
        raise StorageError(f"the database belongs to a newer version of this service (schema {found}, here {HEAD})")
    from alembic import command  # noqa: PLC0415 - 0.3 s and 11 MB that only a migration needs
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _version(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    found: str | None = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    return found
