"""Grams of CO2e for a kilowatt-hour, from the data files of codecarbon. No country is ever assumed."""

from __future__ import annotations

import difflib
import importlib.metadata
from dataclasses import dataclass
from typing import Any

from greenllm.errors import GreenError

_ZONES = {"SWE": "SE", "NOR": "NO", "FIN": "FI"}  # how the Nordic bidding zones begin


@dataclass(frozen=True)
class Grid:
    """A grid's factor and where it is from."""

    grams_per_kwh: float
    source: str
    country: str | None = None
    region: str | None = None


def countries() -> dict[str, str]:
    """ISO 3166 three-letter codes and names of the countries whose factor is known."""
    return {code: str(entry["country_name"]) for code, entry in sorted(_mix().items()) if entry.get("carbon_intensity")}


def grid(country: str | None, region: str | None = None, intensity: float | None = None) -> Grid:
    """The factor of a country (code or name), of a region in it, or the one that is given.

    Args:
        country: "DEU", "Germany".
        region: a state or province, for the USA, Canada, China and the Nordic bidding zones.
        intensity: gCO2e per kWh; it goes before the country's.

    Raises:
        GreenError: nothing was given, or it is not known; near misses are told.
    """
    if intensity is not None:
        if not 0 <= intensity < 10_000:  # noqa: PLR2004 - lignite is near 1200
            raise GreenError(f"{intensity} gCO2e/kWh is no grid's factor; grids lie between 0 and about 1200.")
        return Grid(intensity, "given by the user", country, region)
    if country is None:
        raise GreenError(
            "The carbon of a query depends on the grid, and no country was given.",
            "Give a country (such as DEU), or an intensity in gCO2e/kWh.",
        )
    code = check_country(country)
    entry = _mix()[code]
    version = importlib.metadata.version("codecarbon")
    if region:
        return Grid(_regional(code, region), f"codecarbon {version}, {region}", code, region)
    return Grid(float(entry["carbon_intensity"]), f"codecarbon {version}, year {entry.get('year', 'unknown')}", code)


def check_country(country: str) -> str:
    """The three-letter code of a country that is given by code or name.

    Raises:
        GreenError: it is not known; near misses are told.
    """
    known = countries()
    if country.upper() in known:
        return country.upper()
    by_name = {name.lower(): code for code, name in known.items()}
    if country.lower() in by_name:
        return by_name[country.lower()]
    near = difflib.get_close_matches(country.lower(), by_name, n=2)
    codes = [by_name[n] for n in near] + difflib.get_close_matches(country.upper(), known, n=3, cutoff=0.5)
    meant = ", ".join(f"{c} ({known[c]})" for c in dict.fromkeys(codes))
    raise GreenError(
        f"No grid factor is known for country {country!r}.",
        f"Did you mean {meant}?" if meant else "Give its three-letter ISO code, or an intensity in gCO2e/kWh.",
    )


def _regional(code: str, region: str) -> float:
    from codecarbon.core.emissions import Emissions
    from codecarbon.core.units import Energy
    from codecarbon.external.geography import GeoMetadata
    from codecarbon.input import DataSource

    known = _regions(code)
    if region.lower() not in known:
        near = difflib.get_close_matches(region.lower(), known, n=3)
        what = f"of {code} is known with the name {region!r}" if known else f"has a factor of its own in {code}"
        raise GreenError(f"No region {what}.", f"Did you mean {', '.join(near)}?" if near else "Leave the region out.")
    place = GeoMetadata(country_iso_code=code, region=region.lower())
    return 1000 * float(Emissions(DataSource()).get_region_emissions(Energy.from_energy(1.0), place))


def _regions(code: str) -> list[str]:
    from codecarbon.input import DataSource

    data = DataSource()
    if code == "USA":
        return [k for k in data.get_country_emissions_data("usa") if not k.startswith("_")]
    if code == "CAN":
        return list(data.get_country_energy_mix_data("can"))
    if code == "CHN":
        return [n for p in data.get_china_provincial_emissions_data()["data"].values() for n in p["names"]]
    zones = data.get_nordic_country_energy_mix_data()["data"] if code in _ZONES else {}
    return [zone.lower() for zone in zones if zone.startswith(_ZONES[code])]


def _mix() -> dict[str, dict[str, Any]]:
    from codecarbon.input import DataSource

    found: dict[str, dict[str, Any]] = DataSource().get_global_energy_mix_data()
    return found
