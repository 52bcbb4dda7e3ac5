"""The first released schema: the log, its contents and the projections' checkpoints."""

from alembic import op

revision = "0001"
down_revision = None

STATEMENTS = (
    """
    CREATE TABLE events (
        position INTEGER NOT NULL,
        event_id TEXT NOT NULL,
        session_id TEXT NOT NULL,
        version INTEGER NOT NULL,
        type TEXT NOT NULL,
        v INTEGER NOT NULL,
        recorded_at INTEGER NOT NULL,
        turn_id TEXT,
        step_id TEXT,
        call_id TEXT,
        data TEXT NOT NULL,
        digest TEXT NOT NULL,
        PRIMARY KEY (position),
        UNIQUE (event_id),
        UNIQUE (session_id, version)
    )
     STRICT
    """,
    """
    CREATE TABLE contents (
        digest TEXT NOT NULL,
        body ANY NOT NULL,
        PRIMARY KEY (digest)
    )
     STRICT
    """,
    """
    CREATE TABLE projections (
        name TEXT NOT NULL,
        version INTEGER NOT NULL,
        position INTEGER NOT NULL,
        PRIMARY KEY (name)
    )
     WITHOUT ROWID,
     STRICT
    """,
    """
    CREATE TRIGGER events_only_append BEFORE INSERT ON events
        BEGIN
          SELECT RAISE(ABORT, 'events is append-only: position must be the next one')
           WHERE NEW.position IS NOT (SELECT coalesce(max(position), 0) + 1 FROM events);
          SELECT RAISE(ABORT, 'events is append-only: version must be the session''s next one')
           WHERE NEW.version IS NOT
                 (SELECT coalesce(max(version), 0) + 1 FROM events WHERE session_id = NEW.session_id);
          SELECT RAISE(ABORT, 'events is append-only: this event_id exists')
           WHERE EXISTS (SELECT 1 FROM events WHERE event_id = NEW.event_id);
        END
    """,
    """
    CREATE TRIGGER events_no_delete BEFORE DELETE ON events
        BEGIN
          SELECT RAISE(ABORT, 'events is append-only: nothing is deleted');
        END
    """,
    """
    CREATE TRIGGER events_no_update BEFORE UPDATE ON events
        WHEN NOT (NEW.data GLOB '{"forgotten":"[0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f]"}' AND OLD.data NOT GLOB '{"forgotten":"[0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f]"}' AND NEW.position IS OLD.position AND NEW.event_id IS OLD.event_id AND NEW.session_id IS OLD.session_id AND NEW.version IS OLD.version AND NEW.type IS OLD.type AND NEW.v IS OLD.v AND NEW.recorded_at IS OLD.recorded_at AND NEW.turn_id IS OLD.turn_id AND NEW.step_id IS OLD.step_id AND NEW.call_id IS OLD.call_id AND NEW.digest IS OLD.digest)
        BEGIN
          SELECT RAISE(ABORT, 'events is append-only: only data may become a tombstone');
        END
    """,
    """
    CREATE TRIGGER contents_no_update BEFORE UPDATE ON contents
        BEGIN
          SELECT RAISE(ABORT, 'contents are addressed by their digest: nothing is changed');
        END
    """,
    """
    CREATE TRIGGER contents_no_replace BEFORE INSERT ON contents
        WHEN EXISTS (SELECT 1 FROM contents WHERE digest = NEW.digest AND CAST(body AS BLOB) IS NOT CAST(NEW.body AS BLOB))
        BEGIN
          SELECT RAISE(ABORT, 'contents are addressed by their digest: nothing is changed');
        END
    """,
)


def upgrade() -> None:
    """Make the tables and the triggers that keep them append-only."""
    for statement in STATEMENTS:
        op.execute(statement)
    op.execute("PRAGMA application_id = 1414286897")
