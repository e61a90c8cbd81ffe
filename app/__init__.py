"""Sluicegate: the gateway between applications and their language models."""
