"""Key and value cache write of already rotated keys."""
