"""Speculative decoding: a small trained head drafts tokens, the model checks many of them in one pass."""
