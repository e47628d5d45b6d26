"""The scheduler: lane heads -> gate -> claim -> deliver -> settle -> record.

`Scheduler` (loop.py) dispatches; `Carriers` (carry.py) bring claimed work to its end; `Recorder` (record.py) makes that
durable; `Lanes` (lanes.py) are in memory; `Outlook` (outlook.py) tells operators; housekeeping.py does what is seldom.
"""
