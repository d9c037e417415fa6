"""A clustered, partitioned message-queue server on PostgreSQL."""

__version__ = "0.1.0"
