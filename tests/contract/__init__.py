"""The API as its document describes it: what may change in it, and whether the server keeps it."""
