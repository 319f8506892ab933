"""Domains as clients see them, and their prompts through LangChain."""
