"""Packs the Compose stack's volumes into one archive and unpacks one; service `volumes`, called by scripts/backup.py.

Nothing but the standard library: it is mounted into the gateway's image, and `verify` runs on the host, too.
"""
