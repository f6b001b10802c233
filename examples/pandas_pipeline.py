"""A pipeline of files with pandas: four stations, cleaned and averaged in parallel, to a plot.

Each station has a file of hourly temperatures with faults of the sensor. A task cleans it, another
one averages it by month, and the last ones make a table and a plot of all. The functions know
nothing of daskbatch: the files that the tasks declare say which task comes first.

Needs the extra ``examples``: ``pip install '.[examples]'``. Leaves `pandas_pipeline.png` in the
current directory.
"""

import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from daskbatch import Batch

STATIONS = {"Askim": 7.0, "Bodø": 5.0, "Cuxhaven": 10.0, "Delft": 11.0}
PICTURE = Path("pandas_pipeline.png").resolve()


def measure(station, mean, raw):
    """Write a year of hourly temperatures; now and then the sensor fails."""
    random = np.random.default_rng(sum(map(ord, station)))
    hours = pd.date_range("2025-01-01", "2025-12-31 23:00", freq="h", name="time")
    season = np.cos(2 * np.pi * hours.day_of_year / 365)
    degrees = mean - 11 * season + random.normal(0, 2, len(hours))
    degrees = np.where(random.random(len(hours)) < 0.01, 999.9, degrees)
    pd.DataFrame({"degrees": degrees.round(1)}, index=hours).to_csv(raw)


def clean(raw, cleaned):
    """Leave out what no thermometer measures; return how many values that are."""
    table = pd.read_csv(raw, index_col="time", parse_dates=True)
    good = table[table.degrees.between(-60, 60)]
    good.to_csv(cleaned)
    return len(table) - len(good)


def by_month(cleaned, monthly):
    table = pd.read_csv(cleaned, index_col="time", parse_dates=True)
    table.degrees.groupby(table.index.month).mean().round(2).to_csv(monthly)


def put_together(sources, target):
    columns = {source.stem: pd.read_csv(source, index_col="time").degrees for source in sources}
    table = pd.DataFrame(columns).rename_axis("month")
    table.to_csv(target)
    return table


def plot(source, picture):
    import matplotlib  # where the plot is made; the other tasks need not wait for the import

    matplotlib.use("agg")
    axes = pd.read_csv(source, index_col="month").plot(
        marker="o", ylabel="mean temperature (°C)", title="Four stations, 2025"
    )
    axes.grid(alpha=0.3)
    axes.figure.savefig(picture, dpi=120)


def main(work):
    with Batch(num_workers=2) as batch:
        read, write = batch.read, batch.write
        tasks, cleanings, months = [], [], []
        for name, mean in STATIONS.items():
            raw, cleaned, monthly = (work / kind / f"{name}.csv" for kind in ("raw", "ok", "month"))
            cleaning = batch.function(clean, raw, cleaned, reads=read(raw), writes=write(cleaned))
            tasks += [
                batch.function(measure, name, mean, raw, writes=write(raw)),
                cleaning,
                batch.function(
                    by_month, cleaned, monthly, reads=read(cleaned), writes=write(monthly)
                ),
            ]
            cleanings.append(cleaning)
            months.append(monthly)
        table = work / "table.csv"
        together = batch.function(
            put_together, months, table, reads=read(work / "month"), writes=write(table)
        )
        drawing = batch.function(plot, table, PICTURE, reads=read(table), writes=write(PICTURE))
        batch.compile([*tasks, together, drawing], name="temperatures").run(check=True)
        print(together.get().to_string())
        print("left out:", {n: c.get() for n, c in zip(STATIONS, cleanings, strict=True)})
        print("plot:", PICTURE)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        for name in ("raw", "ok", "month"):
            Path(directory, name).mkdir()
        main(Path(directory))
