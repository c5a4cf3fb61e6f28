"""One module a kind of model: how its layers that select are found and captured; ``run/subject.py`` says for whom."""
