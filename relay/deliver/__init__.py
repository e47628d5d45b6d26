"""Getting a message to its next hop. Owns upstream sessions; does not know the spool.

Every session-level failure is one `Failure` with the stage it happened at, so that `reply.classify` can say who suffers.
"""
