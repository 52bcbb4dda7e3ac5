"""Migrations of the event store, run by alembic when a file of an older release is opened."""
