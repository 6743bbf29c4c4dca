"""Distillation of CRIS into small students, and INT8: nothing here runs yet."""
