"""Hydra configurations: verl's own, with ours on top."""
