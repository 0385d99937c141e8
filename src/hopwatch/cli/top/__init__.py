"""What happens when somebody types `hopwatch top`? The live page in a terminal, by keyboard.

Textual is imported by what is in here alone, so that no other command is slower for it.
"""
