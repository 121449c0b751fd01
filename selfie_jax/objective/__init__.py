"""The loss and the statistics it is made of."""
