"""Preceptor's pages: one module per tab, HTTP to the gateway and to nothing else. Start at `app`."""
