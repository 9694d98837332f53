"""Shapes that torch lacks, one file each: `f(t, steps, **arguments)` is the factor of the base LR.

t counts ticks from 0 in a phase of `steps` ticks. The YAML name is the file's name. Arguments annotated `int`
count ticks, so a config writes them as durations (`cooldown: 20%`, % being of the whole run as everywhere);
`float` is a number, and `Literal` lists the words that are allowed. A ValueError becomes the user's error.
"""
