"""Trained networks as files that other programs run: the model that was evaluated, from pixels to answers."""
