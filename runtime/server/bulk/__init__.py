"""Embedding a file of texts with processes; what it writes is the same however often it was stopped."""
