"""How are numbers shown? Markdown pages and pictures."""
