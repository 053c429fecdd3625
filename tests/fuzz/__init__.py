"""Random networks, everything public of which is compared with the oracle: `make fuzz`."""
