-- Delivery status notifications (RFC 3461), and how often a recipient was in flight when the process died.
ALTER TABLE message ADD COLUMN envid TEXT NOT NULL DEFAULT '';      -- ENVID, decoded
ALTER TABLE message ADD COLUMN ret TEXT NOT NULL DEFAULT '';        -- FULL, HDRS, or not said
ALTER TABLE message ADD COLUMN report INTEGER NOT NULL DEFAULT 0;   -- 1: a report that we wrote, 2: one about a report

ALTER TABLE recipient ADD COLUMN notify INTEGER NOT NULL DEFAULT 0; -- bits of relay.spool.Notify; 0: not said
ALTER TABLE recipient ADD COLUMN orcpt TEXT NOT NULL DEFAULT '';    -- ORCPT, as it was written: type;xtext
ALTER TABLE recipient ADD COLUMN crashes INTEGER NOT NULL DEFAULT 0;
