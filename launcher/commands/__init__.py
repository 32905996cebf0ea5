"""One file per verb of the `launcher` command; each imports what it needs inside its functions."""
