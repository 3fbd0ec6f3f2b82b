"""The device test on another machine, over ssh or under emulation."""
