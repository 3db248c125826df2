"""How do words become token ids and text features?"""
