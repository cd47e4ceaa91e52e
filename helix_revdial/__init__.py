"""Reverse dial on Twisted: a control plane reaches services beside agents that only dial out."""

__version__ = "0.1.0"
