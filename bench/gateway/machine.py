"""stub"""
class Missing(Exception): pass
