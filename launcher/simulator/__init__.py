"""The embedded default engine: a server that speaks TGI's protocol without a GPU.

One process per replica, started with ``python -m launcher.simulator``. It has TGI's routes, wire
formats, permits, schedulers, errors and log lines, and a timing model in the place of a model. It
never pretends to be the real thing: the banner and ``/info`` say that it is a simulator.
"""
