"""Alembic's environment: runs on the connection that `keys.database` hands over, inside its transaction and lock."""

from __future__ import annotations

from alembic import context

from preceptor_gateway.keys.tables import Base

context.configure(connection=context.config.attributes["connection"], target_metadata=Base.metadata)
context.run_migrations()
