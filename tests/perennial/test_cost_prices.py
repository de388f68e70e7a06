"""The table of prices."""

from __future__ import annotations

from pathlib import Path

import pytest

from perennial.cost.prices import read_prices
from perennial.errors import StateError

HEAD = "region,item,usd,unit,as_of,source\n"


def test_the_table_that_comes_with_perennial_can_be_read() -> None:
    prices = read_prices("us-east-1")
    listed = prices.get("ec2/g5.xlarge")
    assert listed is not None
    assert (listed.usd, listed.unit) == (1.006, "hour")
    assert listed.source.startswith("https://aws.amazon.com/")
    assert listed.as_of == "2026-01"
    assert 0 < prices.assumed("spot/interruptions") < 1


def test_what_is_assumed_says_so_and_what_is_listed_has_its_address() -> None:
    import csv
    from importlib.resources import files

    rows = list(csv.DictReader(files("perennial.cost").joinpath("prices.csv").read_text().splitlines()))
    for row in rows:
        is_assumed = row["source"].startswith("assumption")
        assert is_assumed == (row["region"] == "any"), row
        assert is_assumed or row["source"].startswith("https://aws.amazon.com/"), row


def test_a_price_on_spot_is_never_above_the_one_on_demand() -> None:
    import csv
    from importlib.resources import files

    rows = csv.DictReader(files("perennial.cost").joinpath("prices.csv").read_text().splitlines())
    usd = {(row["region"], row["item"]): float(row["usd"]) for row in rows}
    pairs = [
        (usd[region, item], full)
        for region, item in usd
        if item.startswith("spot/") and (full := usd.get((region, item.replace("spot/", "ec2/"))))
    ]
    assert len(pairs) >= 12
    assert all(0.1 < spot / full < 1 for spot, full in pairs)


def test_prices_that_were_found_in_no_dated_data_are_counted(tmp_path: Path) -> None:
    lines = ["a,x,1,hour,2026-01,https://x/ (y 2026-01-02)", "a,z,1,hour,2025-01,https://x/ (unchecked)"]
    (tmp_path / "p.csv").write_text(HEAD + "\n".join([*lines, "b,x,1,hour,2025-01,https://x/ (unchecked: y)\n"]))
    assert read_prices("a", tmp_path / "p.csv").unchecked() == (1, 2)
    assert read_prices("c", tmp_path / "p.csv").unchecked() == (0, 0)


def test_a_region_or_an_item_that_is_not_there_has_no_price() -> None:
    assert read_prices("mars-north-1").get("ec2/g5.xlarge") is None
    assert read_prices("mars-north-1").months() is None
    assert read_prices("us-east-1").get("ec2/p9.xlarge") is None


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ("item,usd\n", "must be region, item, usd, unit, as_of, source"),
        (f"{HEAD}us-east-1,ec2/x,free,hour,2025-01,u\n", "line 2 .* is no price"),
        (f"{HEAD}us-east-1,ec2/x,0,hour,2025-01,u\n", "line 2 .* a price above 0"),
        (f"{HEAD}us-east-1,ec2/x,nan,hour,2025-01,u\n", "line 2"),
        (f"{HEAD}us-east-1,ec2/x,1,hour,2025-13,u\n", "line 2 .* YYYY-MM"),
        (f"{HEAD}us-east-1,ec2/x,1,week,2025-01,u\n", "line 2 .* a unit of hour, month"),
        (f"{HEAD}us-east-1,ec2/x,1\n", "line 2"),
        (f"{HEAD}us-east-1,ec2/x,1,hour,2025-01,u,more\n", "line 2"),
        (
            f"{HEAD}us-east-1,ec2/x,1,hour,2025-01,u\nus-east-1,ec2/x,2,hour,2025-01,u\n",
            "line 3 .* repeats us-east-1,ec2/x",
        ),
    ],
)
def test_a_line_that_is_no_price_is_told(tmp_path: Path, table: str, sentence: str) -> None:
    file = tmp_path / "prices.csv"
    file.write_text(table)
    with pytest.raises(StateError, match=sentence):
        read_prices("us-east-1", file)


def test_an_assumption_that_was_taken_out_is_told(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text(HEAD)
    with pytest.raises(StateError, match="no line any,spot/away"):
        read_prices("us-east-1", tmp_path / "p.csv").assumed("spot/away")
