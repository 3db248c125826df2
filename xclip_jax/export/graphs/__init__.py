"""What are the graphs of an export, and how are they written as StableHLO?"""
