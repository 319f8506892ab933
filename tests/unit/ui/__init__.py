"""The UI's unit ring: its client against a fake gateway on a loopback port, and its pure parts."""
