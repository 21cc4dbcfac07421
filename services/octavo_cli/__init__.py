"""See ``service.py``."""
