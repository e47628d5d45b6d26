"""A message is made ready to leave by one egress, written as its steps: rewritten, re-encoded, sealed, signed.

Promises: what `ready` returns is what is sent, byte for byte; the same message by the same route, egress and configuration
gives the same bytes at each try; nothing is done to a message that nothing is to be done to. Whatever takes long is done in
the threads that sign. Refuses, by CannotLeave, what the next hop could not take.
"""
