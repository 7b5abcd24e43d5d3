"""Configuration, capture and (later) dispatch of compiled layers."""
