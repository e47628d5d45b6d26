"""The scheduler: lane heads -> gate -> claim -> deliver -> settle -> record.

`Scheduler` (loop.py) owns the dispatch and record loops and the carriers; `Lanes` (lanes.py) the lanes in memory and what
the operator is told of them; housekeeping.py what happens seldom.
"""
