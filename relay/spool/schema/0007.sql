-- The same order, and all that who counts asks for: SQLite takes `state < 2` for a column that it has to read, and read each
-- row for it. To write it costs nothing more: `message` and `n` are in it in any case, and a state of 0 or 1 takes one octet.
DROP INDEX ready;
CREATE INDEX ready ON recipient (lane, priority, due_at, message, n, state) WHERE state < 2;
