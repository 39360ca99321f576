"""The data room: a folder of pictures looked at from every side."""
