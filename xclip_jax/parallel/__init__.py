"""Which devices and processes take part, and where does each array live?"""
