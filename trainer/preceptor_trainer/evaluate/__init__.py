"""Stage evaluate: both sides sit the domain's exam through the gateway, and a paired test decides."""
