"""Reads a project and rasters with PyQGIS and prints what QGIS makes of them; run by its own Python."""

import json
import sys

from qgis.core import (
    QgsApplication,
    QgsMapRendererParallelJob,
    QgsMapSettings,
    QgsProject,
    QgsRasterLayer,
)
from qgis.PyQt.QtCore import QSize


def described(layer):
    """What is drawn of a layer."""
    renderer = layer.renderer()
    labels = [text for text, _ in renderer.legendSymbologyItems()] if renderer else []
    band = renderer.band() if hasattr(renderer, "band") else None
    return {
        "name": layer.name(),
        "valid": layer.isValid(),
        "crs": layer.crs().isValid(),
        "renderer": renderer.type() if renderer else None,
        "band": band,
        "labels": labels,
    }


def main(project_path, picture_path, *raster_paths):
    """Prints JSON."""
    application = QgsApplication([], False)
    application.initQgis()
    project = QgsProject.instance()
    assert project.read(project_path), project.error()
    layers = [node.layer() for node in project.layerTreeRoot().findLayers()]
    shown = [node.layer() for node in project.layerTreeRoot().findLayers() if node.isVisible()]
    settings = QgsMapSettings()
    settings.setLayers(shown)
    settings.setDestinationCrs(project.crs())
    settings.setExtent(shown[0].extent())
    settings.setOutputSize(QSize(400, 300))
    job = QgsMapRendererParallelJob(settings)
    job.start()
    job.waitForFinished()
    image = job.renderedImage()
    image.save(picture_path)
    colours = {image.pixel(x, y) for x in range(400) for y in range(0, 300, 5)}
    opened = [described(QgsRasterLayer(path, path)) for path in raster_paths]
    result = {
        "project": [described(layer) for layer in layers],
        "crs": project.crs().authid(),
        "shown": [layer.name() for layer in shown],
        "opened": opened,
        "colours": len(colours),
    }
    print(json.dumps(result))
    project.clear()
    application.exitQgis()


if __name__ == "__main__":
    main(*sys.argv[1:])
