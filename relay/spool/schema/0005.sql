-- Who is suppressed, soft bounces that may come to that, reports that were heard, and what endpoints have not taken yet.
-- Why: docs/adr/0014-feedback.md.
CREATE TABLE suppression (
  scope TEXT NOT NULL,                -- '' all mail, tenant:NAME, class:NAME
  address TEXT NOT NULL,              -- relay.policy.suppression.plain
  why INTEGER NOT NULL,               -- relay.policy.suppression.Why
  evidence TEXT NOT NULL,
  source TEXT NOT NULL,
  at REAL NOT NULL,
  until REAL NOT NULL,                -- 0: without an end
  message INTEGER NOT NULL,           -- 0: none
  PRIMARY KEY (scope, address)
) WITHOUT ROWID;
CREATE INDEX suppression_address ON suppression (address);
CREATE INDEX suppression_until ON suppression (until) WHERE until > 0;

-- The columns of its key first: else quick_check of SQLite 3.40 tells of a NULL that is none.
CREATE TABLE softly (
  scope TEXT NOT NULL, address TEXT NOT NULL, at REAL NOT NULL, message INTEGER NOT NULL, until REAL NOT NULL,
  PRIMARY KEY (scope, address, at, message)
) WITHOUT ROWID;

CREATE INDEX softly_until ON softly (until);

CREATE TABLE heard (key TEXT PRIMARY KEY NOT NULL, at REAL NOT NULL) WITHOUT ROWID;
CREATE INDEX heard_at ON heard (at);

CREATE TABLE endpoint (name TEXT PRIMARY KEY NOT NULL, cursor INTEGER NOT NULL) WITHOUT ROWID;

CREATE TABLE parcel (
  endpoint TEXT NOT NULL,
  event INTEGER NOT NULL,
  message INTEGER NOT NULL,
  dead INTEGER NOT NULL,              -- 1: a dead letter
  attempts INTEGER NOT NULL,
  due_at REAL NOT NULL,
  first_at REAL NOT NULL,
  why TEXT NOT NULL,
  body TEXT NOT NULL,
  PRIMARY KEY (endpoint, event)
) WITHOUT ROWID;
-- With `dead` in them they have all that is asked for, and no body is read.
CREATE INDEX parcel_due ON parcel (endpoint, dead, due_at, event, message) WHERE dead = 0;
CREATE INDEX parcel_message ON parcel (endpoint, dead, message) WHERE dead = 0;
CREATE INDEX parcel_dead ON parcel (endpoint, dead) WHERE dead = 1;
