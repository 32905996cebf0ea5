"""Replicas as containers: what `launcher.runtimes.docker` is made of."""
