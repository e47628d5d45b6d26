"""The rules. Pure: time and chance are arguments; nothing here reads a clock, opens a socket or waits."""
