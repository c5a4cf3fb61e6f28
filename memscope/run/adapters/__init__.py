"""One module a kind of model: finds the layers that select and captures them. What a subject is, is in ``run/subject.py``."""
