"""What is done to the float model so that eight bits hold it: SmoothQuant, QFeP, LLM.int8."""
