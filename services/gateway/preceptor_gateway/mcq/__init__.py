"""Multiple choice with a probability per option and the mass that fell on none of them."""
