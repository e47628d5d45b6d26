-- The first schema. Why each column and index: docs/adr/0003-spool-schema.md.
CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;

CREATE TABLE message (
  id INTEGER PRIMARY KEY,             -- our counter, never reused; the queue id is its base 32
  sender TEXT NOT NULL,               -- reverse-path, '' is the null one
  header_from TEXT NOT NULL,
  user TEXT NOT NULL,
  class TEXT NOT NULL,
  tag TEXT NOT NULL,
  listener TEXT NOT NULL,
  client TEXT NOT NULL,
  priority INTEGER NOT NULL,
  send_at REAL NOT NULL,              -- not before this, whatever an operator does; 0: at once
  accepted_at REAL NOT NULL,          -- UTC epoch seconds, as all times here
  size INTEGER NOT NULL,              -- head + body, bytes
  smtp INTEGER NOT NULL,              -- 1: needs 8BITMIME, 2: needs SMTPUTF8
  head BLOB NOT NULL,                 -- the final header block, with the empty line that ends it
  place INTEGER NOT NULL              -- where the body is: 0 table content, 1 file content/ID, 2 dropped
);

CREATE TABLE content (id INTEGER PRIMARY KEY, bytes BLOB NOT NULL);

CREATE TABLE lane (id INTEGER PRIMARY KEY, facts TEXT NOT NULL UNIQUE);

CREATE TABLE recipient (
  message INTEGER NOT NULL,
  n INTEGER NOT NULL,
  lane INTEGER NOT NULL,
  state INTEGER NOT NULL,             -- relay.recipient.State
  priority INTEGER NOT NULL,
  due_at REAL NOT NULL,
  expires_at REAL NOT NULL,
  attempts INTEGER NOT NULL DEFAULT 0,
  run INTEGER NOT NULL DEFAULT 0,     -- the process that claimed it
  in_doubt INTEGER NOT NULL DEFAULT 0,
  address TEXT NOT NULL,
  egress TEXT NOT NULL DEFAULT '',    -- the last one that was tried
  note TEXT NOT NULL DEFAULT '{}',    -- JSON: why, last_reply, remote_id, settled_at
  PRIMARY KEY (message, n)
) WITHOUT ROWID;

-- The one hot index: what may be claimed, in the order in which it is.
CREATE INDEX ready ON recipient (lane, priority, due_at) WHERE state < 2;

CREATE TABLE event (
  id INTEGER PRIMARY KEY,             -- also the cursor of the stream
  at REAL NOT NULL,
  message INTEGER NOT NULL,
  n INTEGER,                          -- NULL: of the whole message
  kind TEXT NOT NULL,
  egress TEXT NOT NULL,
  code INTEGER NOT NULL,              -- SMTP reply code, 0: none
  data TEXT NOT NULL                  -- JSON
);
CREATE INDEX event_message ON event (message);

CREATE TABLE idempotency (
  user TEXT NOT NULL, key TEXT NOT NULL, message INTEGER NOT NULL,
  PRIMARY KEY (user, key)
) WITHOUT ROWID;
CREATE INDEX idempotency_message ON idempotency (message);
