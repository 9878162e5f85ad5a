"""Tile choice."""
