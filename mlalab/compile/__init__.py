"""Configuration and capture of compiled layers."""
