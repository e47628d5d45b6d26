"""YAML -> one frozen `Config` made of policy objects. Opens no socket, reads no clock.

`load(path)` returns a Config or raises ConfigError with every problem at once, each with file:line:column and what was
meant. Secrets stay references: they are read when a session logs in.
"""
