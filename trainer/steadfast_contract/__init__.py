"""What operator, agent and trainer all believe: environment, exits, progress, checkpoint layout.

Standard library only, so that every process can import it in milliseconds. Spelled once, here.
"""

CONTRACT_VERSION = 1
