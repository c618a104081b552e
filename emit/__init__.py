"""EMIT-Diff: labelled medical images out of text and edges."""

__version__ = "0.2.0"
