"""How fast, how soon, how large: the relay beside other servers, on one machine, under one load.

bench.py is the command line and the rounds, loads.py what drives a server and counts what leaves it, peers.py the servers,
backlog.py a full queue, report.py the sums, the table and the plot.
"""
