"""Who an adapter is, its revisions, who may use it, and its keys. Start reading at ``service.py``."""
