"""Detectors on images and videos, and what people correct of what they found."""
