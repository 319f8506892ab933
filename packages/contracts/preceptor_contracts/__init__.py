"""What two members of Preceptor must agree on to the byte. Start at `domains`, then `prompts`, then `manifest`."""
