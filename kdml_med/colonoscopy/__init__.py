"""Colonoscopy: videos and frames, the boxes drawn on them, and the dataset folder made from both."""
