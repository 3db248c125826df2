"""What do other programs need to run our models? Graphs, a tokenizer and a web page."""
