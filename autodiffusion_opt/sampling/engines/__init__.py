"""What serving engines and front ends can express of a candidate, and how.

Each room knows one engine: ``comfyui`` (noise levels for its custom sampling). None of them is imported to write its
settings; where one is installed, tests open what is written with it.
"""
