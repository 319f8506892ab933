"""Candidate records from documents and topics, made by a language model and reviewed by a person."""
