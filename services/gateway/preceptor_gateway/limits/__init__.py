"""What a key may ask for in a minute and at once, and what can not fit the engine's context."""
