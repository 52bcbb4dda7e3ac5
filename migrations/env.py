"""How alembic reaches the file: one write transaction over everything, on the path it is handed.

From the command line the path is TIMELINE_HOME's, or `-x path=FILE`.
"""

from pathlib import Path

from alembic import context

from timeline.config import find_paths
from timeline.store import schema, sqlite

path = context.config.attributes.get("path") or context.get_x_argument(as_dictionary=True).get("path")
with sqlite.connect(Path(path) if path else find_paths().store) as connection:
    context.configure(connection=connection, target_metadata=schema.metadata, transactional_ddl=True)
    context.run_migrations()
