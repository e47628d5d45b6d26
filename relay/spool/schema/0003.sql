-- The few bodies that are files: a start compares them with the folder, and must not read every message's row for it.
CREATE INDEX in_file ON message (id) WHERE place = 1;
