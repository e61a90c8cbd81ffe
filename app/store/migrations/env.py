"""How Alembic is run here: inside the transaction that `upgrade` was given."""

from alembic import context

context.configure(connection=context.config.attributes["connection"], target_metadata=None)
context.run_migrations()
