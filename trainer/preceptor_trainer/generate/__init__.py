"""Candidate records from documents or topics, by any OpenAI-compatible endpoint, for review. Start at `asking`."""
