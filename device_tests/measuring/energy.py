"""Energy counters of Linux: what processors and batteries say they used.

    RAPL      /sys/class/powercap: joules of whole processor packages, everything on them included;
              since Linux 5.10 only root may read it
    battery   /sys/class/power_supply: what is left in it, in steps that need minutes to show

Elsewhere, and where neither can be read, energy is unknown.
"""

from __future__ import annotations

from edgecodec.runtimes.device.facts import Files, SystemFiles, whole

RAPL = "/sys/class/powercap"
SUPPLY = "/sys/class/power_supply"


class RaplMeter:
    """Joules of all processor packages since the meter was made.

    Must be read more often than the counters wrap around, which takes a minute or more.
    """

    source = "RAPL"

    def __init__(self, files: Files | None = None) -> None:
        self._files = files or SystemFiles()
        self._zones = {
            zone: span
            for zone in self._files.names(RAPL)
            # Packages, not what is inside of them: intel-rapl:0, not intel-rapl:0:1.
            if zone.count(":") == 1 and self._microjoules(zone) is not None
            for span in [whole(self._files.read(f"{RAPL}/{zone}/max_energy_range_uj"))]
        }
        self._last = {zone: self._microjoules(zone) for zone in self._zones}
        self._total = 0

    @property
    def available(self) -> bool:
        """Whether there is a counter that may be read."""
        return bool(self._zones)

    def joules(self) -> float | None:
        """Return joules used so far; None where no counter can be read."""
        if not self._zones:
            return None
        for zone, span in self._zones.items():
            now, before = self._microjoules(zone), self._last[zone]
            if now is None or before is None:
                return None
            self._total += now - before if now >= before else now + span - before
            self._last[zone] = now
        return self._total * 1e-6

    def _microjoules(self, zone: str) -> int | None:
        text = self._files.read(f"{RAPL}/{zone}/energy_uj").strip()
        return int(text) if text.isdigit() else None


def battery_joules(files: Files | None = None) -> float | None:
    """Return what is left in all batteries that are being used; None unless one is."""
    files = files or SystemFiles()
    found = [_left(files, f"{SUPPLY}/{name}/") for name in files.names(SUPPLY)]
    joules = [value for value in found if value is not None]
    return sum(joules) if joules else None


def _left(files: Files, folder: str) -> float | None:
    if files.read(folder + "status").strip() != "Discharging":
        return None
    energy = whole(files.read(folder + "energy_now"))  # microwatt-hours
    if energy:
        return energy * 3600e-6
    charge = whole(files.read(folder + "charge_now"))  # microampere-hours
    volts = whole(files.read(folder + "voltage_now")) * 1e-6
    return charge * 3600e-6 * volts if charge and volts else None
