"""What runs on a Jetson without PyTorch, and builds engines here as well. The bundle holds these files side by side."""

FILES = (
    "arithmetic.py",
    "builder.py",
    "cudart.py",
    "depth.py",
    "device.py",
    "engine.py",
    "measurement.py",
    "runner.py",
)
