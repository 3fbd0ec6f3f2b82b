"""Checks and measurements to run on the device in question; part of the installed package."""
