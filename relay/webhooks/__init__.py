"""Events on their way out: to URLs, files and commands. At least once, in order for each message, for days if need be."""
