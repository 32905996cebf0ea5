"""One file for each group of routes; ``launcher.simulator.app`` puts them into an application."""
