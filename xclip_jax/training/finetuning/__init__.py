"""How do weights learn the labels of somebody's own clips?"""
