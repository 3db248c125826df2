"""Scripts that are copied into an export and run its graphs without this package."""
