"""Facts about the machine: processor, memory, system, cores."""
