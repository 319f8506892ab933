"""The seeds' `/generate`: one prompt, streamed text."""
