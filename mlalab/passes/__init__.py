"""The fusion and clean-up passes, and the driver that runs them."""
