"""Installs the checkout in every way that its README and tools offer, each time into an environment without it."""
