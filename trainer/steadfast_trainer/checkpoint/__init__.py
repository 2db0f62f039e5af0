"""Checkpoints: the object store, the layout in it, saving and loading."""
