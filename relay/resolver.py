"""Questions to the DNS. Owns: which servers are asked and for how long; tells absence from trouble."""
