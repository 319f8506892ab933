"""Published adapters: model card, list, show, diff, archive."""
