"""How is a file read that may be damaged, slow or hostile, or no file at all?"""
