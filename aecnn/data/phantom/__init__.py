"""Synthetic chest radiographs in the official ChestX-ray14 layout, for demonstrations and tests."""

from aecnn.data.phantom.population import draw_patient, draw_population
from aecnn.data.phantom.render import render_patient
from aecnn.data.phantom.write import PhantomReport, write_phantom

__all__ = ["PhantomReport", "draw_patient", "draw_population", "render_patient", "write_phantom"]
