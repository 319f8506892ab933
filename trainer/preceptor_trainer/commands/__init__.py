"""The commands, one module a theme; `cli` names them."""
