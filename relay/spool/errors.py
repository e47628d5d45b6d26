"""What a spool says where it can't."""


class SpoolError(Exception):
    """The spool cannot do it now. The text is for the operator."""


class SpoolFull(SpoolError):
    """Below the free-space reserve, or above `max_queued`. Nothing was stored; deliveries go on."""


class SpoolBusy(SpoolError):
    """Another process owns it."""


class SpoolNewer(SpoolError):
    """A newer relay wrote it."""


class SpoolCorrupt(SpoolError):
    """Not a spool, or damaged."""
