"""What a registry costs a month: prices, what was measured of a push and a pull, and a model."""
