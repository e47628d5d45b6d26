-- Programs: tokens, who changed what, what applications say of their messages, and how far readers of reports have come.
-- Why: docs/adr/0015-http-api.md.
CREATE TABLE token (
  id TEXT PRIMARY KEY NOT NULL,
  digest TEXT NOT NULL,               -- SHA-256 of its secret
  name TEXT NOT NULL,
  scopes TEXT NOT NULL,               -- with blanks between
  user TEXT NOT NULL,
  tenant TEXT NOT NULL,
  created_at REAL NOT NULL,
  created_by TEXT NOT NULL,
  expires_at REAL NOT NULL,           -- 0: never
  revoked_at REAL NOT NULL            -- 0: it is not
) WITHOUT ROWID;

CREATE TABLE audit (
  id INTEGER PRIMARY KEY,
  at REAL NOT NULL,
  who TEXT NOT NULL,
  tenant TEXT NOT NULL,
  request TEXT NOT NULL,              -- its id, as the answer had it
  act TEXT NOT NULL,                  -- method and path
  asked TEXT NOT NULL,                -- JSON
  status INTEGER NOT NULL,            -- 0: it began, and its end is not known
  result TEXT NOT NULL                -- JSON
);
CREATE INDEX audit_at ON audit (at);

-- JSON, only where something was given.
CREATE TABLE metadata (message INTEGER PRIMARY KEY, data TEXT NOT NULL);

CREATE TABLE consumer (
  tenant TEXT NOT NULL, name TEXT NOT NULL, cursor INTEGER NOT NULL, at REAL NOT NULL,
  PRIMARY KEY (tenant, name)
) WITHOUT ROWID;

ALTER TABLE idempotency ADD COLUMN digest TEXT NOT NULL DEFAULT '';  -- of what was submitted; empty: not asked

-- An application asks for what it tagged; others' mail pays nothing for it.
CREATE INDEX tagged ON message (tag COLLATE NOCASE) WHERE tag <> '';
