"""The control plane: starts one engine per device from a cluster config and keeps it serving."""
