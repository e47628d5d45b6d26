"""Faults of the machine: power cuts, full and failing disks, clocks, damage, crashes. A real process under each."""
