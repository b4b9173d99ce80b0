"""Post-training quantization: INT8 and float16 per engine, which layers suffer, and the gate on accuracy."""
