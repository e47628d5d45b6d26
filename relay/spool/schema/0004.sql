-- What was used up of rates (relay.policy.rate), and small documents by key. Why: docs/adr/0003-spool-schema.md.
CREATE TABLE spent (
  key TEXT NOT NULL,                  -- of which rate, in the words of whoever counts
  until REAL NOT NULL,                -- when this part of it is forgotten
  count INTEGER NOT NULL,
  PRIMARY KEY (key, until)
) WITHOUT ROWID;

CREATE TABLE kept (key TEXT PRIMARY KEY NOT NULL, value TEXT NOT NULL) WITHOUT ROWID;
