"""Doubles that several test folders share: servers that speak the protocol, never patched functions."""
