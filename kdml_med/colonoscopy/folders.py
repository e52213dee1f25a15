"""Names of files: kinds that are not read, and names as messages show them."""

from __future__ import annotations

import os

UNREAD_PICTURES = (
    *(".gif", ".webp", ".heic", ".heif", ".avif", ".jp2", ".j2k", ".jxl", ".jfif", ".jpe", ".tga", ".ppm", ".pgm"),
    *(".pbm", ".pnm", ".dcm", ".dicom", ".psd", ".svg", ".exr", ".npy", ".npz", ".mat", ".nii", ".gz"),
)
"""Suffixes of pictures, and of what may hold some, that are not read."""
UNREAD_VIDEOS = (
    *(".flv", ".f4v", ".vob", ".3gp", ".3g2", ".ogv", ".mxf", ".asf", ".m2v", ".mpe", ".divx", ".rm", ".rmvb", ".dv"),
    *(".h264", ".264", ".h265", ".hevc", ".dav"),
)


def printable(name: str) -> str:
    """A file name with "\ufffd" for bytes that are not UTF-8, so that it can stand in a table."""
    return os.fsencode(name).decode("utf-8", "replace")


def one_line(text: str) -> str:
    """Text with line breaks and other control characters written out, for messages and pictures."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
