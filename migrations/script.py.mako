"""${message}."""

from alembic import op

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}


def upgrade() -> None:
    """What the new release needs."""
    ${upgrades if upgrades else 'op.execute("")'}
