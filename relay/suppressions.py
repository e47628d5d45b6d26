"""Who is suppressed, at hand: asked at RCPT, when a message is accepted and before it leaves.

The list is the spool's; this keeps its index in memory (8 bytes an entry) and in step with it.
"""
