"""Several processes as one run: ranks, rendezvous, restarts, signals, sharding."""
